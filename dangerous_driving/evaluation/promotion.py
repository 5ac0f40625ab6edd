"""Champion and challengers: the gate, promotion and roll-back. The only way to another prompt while services run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.champion import current_version
from dangerous_driving.assessment.prompt import known_digests, load_prompt, promoted_digest
from dangerous_driving.errors import ConfigError, GateRefusedError
from dangerous_driving.evaluation.figures import Compared, compare
from dangerous_driving.evaluation.gate import GateDecision, GatePolicy, GateVerdict, decide
from dangerous_driving.evaluation.report import Judged, Report, keep_report
from dangerous_driving.evaluation.run import report_of
from dangerous_driving.ledger import evaluation_cases, evaluation_runs, promotions
from dangerous_driving.ledger.evaluation_runs import RunRow
from dangerous_driving.ledger.promotions import Decision, Promotion
from dangerous_driving.objects import ObjectStore
from dangerous_driving.settings import EvaluationSettings, Settings

log = structlog.get_logger(__name__)

#: Who promotes by itself.
NIGHTLY = "nightly evaluation"
#: Promotions that a roll-back looks back on.
HISTORY = 1000


@dataclass(frozen=True)
class Ruling:
    """What the gate said of a challenger and what was done; ``promotion`` is None where the champion stays."""

    decision_id: int
    champion: str
    challenger: str
    compared: Compared
    decision: GateDecision
    outcome: str
    promotion: Promotion | None
    report: Report
    report_url: str

    @property
    def statistics(self) -> str:
        """Verdict and reasons on a few lines."""
        lines = [f"{self.challenger} against {self.champion}: {self.decision.verdict.replace('_', ' ')}"]
        lines += [f"  {reason}" for reason in self.decision.reasons]
        return "\n".join(lines)


def policy_of(settings: EvaluationSettings) -> GatePolicy:
    """The gate's policy by the settings."""
    return GatePolicy(
        guarded=settings.guarded,
        significance=settings.significance,
        min_coverage=settings.min_coverage,
        min_cases=settings.min_cases,
        margin=settings.margin,
    )


def rule(
    settings: Settings,
    engine: Engine,
    store: ObjectStore,
    challenger: str,
    *,
    by: str,
    promotes: bool,
    accepts_no_evidence: bool = False,
    note: str = "",
) -> Ruling:
    """Hold a challenger against the prompt in use on the newest set, keep the decision, and promote it if it may be.

    Args:
        settings: the whole tree; the comparison is made with ``llm.model``.
        engine: of the ledger.
        store: where the report goes.
        challenger: prompt version.
        by: who asks.
        promotes: promote it where the gate lets it through.
        accepts_no_evidence: also where it is neither better nor worse; a person may want that.
        note: kept with the promotion.

    Raises:
        ConfigError: there is no complete run of one of the two over the newest set, or the prompt cannot be used.
    """
    champion = current_version(settings.llm, engine)
    if challenger == champion:
        raise ConfigError(f"prompt {challenger}", "is the prompt in use", "name another one")
    newest = evaluation_cases.newest_set(engine)
    if newest is None or not newest.cases:
        raise ConfigError("evaluation", "there is no set of cases yet", "run: dangerous-driving prompts evaluate")
    before, after = (_run(engine, settings, name, newest.version) for name in (champion, challenger))
    prompt = load_prompt(challenger, folder=settings.llm.prompt_folder)
    if prompt.digest != after.key.prompt_digest:
        raise ConfigError(
            f"prompt {challenger}",
            "its file was changed since it was evaluated",
            "give the change a version of its own",
        )
    cases = evaluation_cases.set_cases(engine, newest.version)
    compared = compare(
        cases,
        evaluation_runs.run_answers(engine, before.key.run),
        evaluation_runs.run_answers(engine, after.key.run),
        names=settings.evaluation.guarded,
        resamples=settings.evaluation.resamples,
    )
    decision = decide(
        compared.differences,
        cases=compared.cases,
        coverage=compared.coverage,
        champion_coverage=compared.champion_coverage,
        policy=policy_of(settings.evaluation),
    )
    decision_id = promotions.keep_decision(
        engine,
        Decision(
            champion=champion,
            challenger=challenger,
            model=settings.llm.model,
            set_version=newest.version,
            champion_run=before.key.run,
            challenger_run=after.key.run,
            verdict=decision.verdict.value,
            reasons=list(decision.reasons),
            cases=compared.cases,
            clusters=compared.clusters,
            coverage=compared.coverage,
            differences=[
                {**asdict(item), "p_adjusted": decision.adjusted.get(name)}
                for name, item in compared.differences.items()
            ],
            decided_by=by,
        ),
    )
    through = decision.verdict is GateVerdict.BETTER or (
        accepts_no_evidence and decision.verdict is GateVerdict.NO_EVIDENCE
    )
    promotion = None
    if through and promotes:
        promotion = promotions.promote(
            engine,
            kind="promoted",
            prompt_version=challenger,
            prompt_digest=promoted_digest(prompt, folder=settings.llm.prompt_folder),
            previous=champion,
            by=by,
            note=note,
            decision_id=decision_id,
        )
    outcome = _outcome(decision, challenger, champion, promoted=promotion is not None)
    log.info("gate", challenger=challenger, champion=champion, verdict=decision.verdict.value, promoted=bool(promotion))
    _, _, report = report_of(
        settings, after.key.run, cases, engine, store, Judged(champion, compared, decision, outcome)
    )
    url = keep_report(store, f"reports/evaluation/decisions/{decision_id}", report)
    return Ruling(decision_id, champion, challenger, compared, decision, outcome, promotion, report, url)


def promote(
    settings: Settings,
    engine: Engine,
    store: ObjectStore,
    challenger: str,
    *,
    by: str,
    accepts_no_evidence: bool = False,
    note: str = "",
) -> Ruling:
    """Promote a challenger, as a person asks.

    Raises:
        GateRefusedError: it is worse, or not shown to be better; the text has the statistics.
        ConfigError: as in `rule`.
    """
    ruling = rule(
        settings, engine, store, challenger, by=by, promotes=True, accepts_no_evidence=accepts_no_evidence, note=note
    )
    if ruling.promotion is None:
        remedy = (
            "; collect more cases, or promote it all the same with --accept-no-evidence"
            if ruling.decision.verdict is GateVerdict.NO_EVIDENCE
            else ""
        )
        raise GateRefusedError(f"{ruling.statistics}\n{ruling.outcome}{remedy}")
    return ruling


def nightly_rulings(settings: Settings, engine: Engine, store: ObjectStore) -> list[Ruling]:
    """Rule on the configured challengers, one after another; a promotion makes the next one's champion.

    A prompt that a person rolled back is judged, and not promoted again by itself.
    """
    rulings = []
    for challenger in settings.evaluation.challengers:
        if challenger == current_version(settings.llm, engine):
            continue
        promotes = settings.evaluation.promote_better and not _was_rolled_back(engine, challenger)
        rulings.append(rule(settings, engine, store, challenger, by=NIGHTLY, promotes=promotes))
    return rulings


def roll_back(settings: Settings, engine: Engine, *, by: str, note: str = "") -> Promotion:
    """Put the prompt before the one in use back; no gate, since it was in use before.

    Raises:
        ConfigError: nothing was promoted, or the file of the prompt before is gone or is another one than was in use.
    """
    history = promotions.promotions(engine, limit=HISTORY)
    target = rollback_target(history[::-1])
    if target is None:
        raise ConfigError(
            "prompts rollback",
            "no prompt was in use before this one, there is nothing to go back to",
            "see: prompts list",
        )
    made = promotions.promote(
        engine,
        kind="rolled_back",
        prompt_version=target,
        prompt_digest=_digest_in_use_before(settings, engine, target, history),
        previous=history[0].prompt_version,
        by=by,
        note=note,
    )
    log.info("rolled_back", before=made.previous, after=target, by=by)
    return made


def _digest_in_use_before(settings: Settings, engine: Engine, version: str, history: Sequence[Promotion]) -> str:
    """What to keep of a version that goes into use again without a gate: only what was in use, or evaluated, may."""
    kept = next((change.prompt_digest for change in history if change.prompt_version == version), None)
    if kept is None:  # it was the settings' own
        kept = evaluation_runs.evaluated_digest(engine, version)
    prompt = load_prompt(version, folder=settings.llm.prompt_folder)
    now = promoted_digest(prompt, folder=settings.llm.prompt_folder)
    if kept is None:
        return now
    group, frame = known_digests(kept)
    if prompt.digest != group:
        raise ConfigError(
            f"prompt {version}",
            "its file was changed since it was in use",
            "restore the file, or evaluate the change under a new version and promote that",
        )
    # another file for several groups than then does not go live either: services see that it is not the one kept
    return now if frame is None else kept


def rollback_target(history: Sequence[Promotion]) -> str | None:
    """What was in use before the prompt in use, further back with each roll-back; `history` is oldest first. Pure."""
    in_use: list[str] = []
    for change in history:
        if not in_use:
            in_use.append(change.previous)
        if change.kind == "promoted":
            in_use.append(change.prompt_version)
        elif len(in_use) > 1:
            in_use.pop()
    return in_use[-2] if len(in_use) > 1 else None


def _was_rolled_back(engine: Engine, version: str) -> bool:
    return any(
        change.kind == "rolled_back" and change.previous == version
        for change in promotions.promotions(engine, limit=HISTORY)
    )


def _run(engine: Engine, settings: Settings, version: str, set_version: int) -> RunRow:
    found = evaluation_runs.find_run(engine, prompt_version=version, model=settings.llm.model, set_version=set_version)
    if found is None:
        raise ConfigError(
            f"prompt {version}",
            f"there is no complete evaluation of it with {settings.llm.model} over case set {set_version}",
            f"run: dangerous-driving prompts evaluate {version}",
        )
    return found


def _outcome(decision: GateDecision, challenger: str, champion: str, *, promoted: bool) -> str:
    if promoted:
        return f"{challenger} was promoted: it is in use from now on, in place of {champion}."
    if decision.verdict is GateVerdict.BETTER:
        return f"{challenger} may be promoted; {champion} stays in use until somebody does."
    return f"{champion} stays in use."
