"""Backfills: windows assessed again with another prompt version or model, beside what is there.

A backfill's answers are rows of ``risk_assessment`` under its own name (``run``); the live answers stay, and stay the
current ones until somebody asks for the change (:func:`make_current`). The groups of a backfill are claimed in a table of
its own, so that a run which is killed and started again asks nothing twice and the live lanes are not concerned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, func, select, text
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.assessment.shadow import SHADOW_PREFIX, sampled_below
from dangerous_driving.assessment.windows import Window
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.claims import Claim, task_message
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import Backfill, LlmCall

#: Calls of a model that an estimate looks back on.
ESTIMATE_FROM = 1000
#: Calls of any model among which it looks for them: of one that was never called, it would read all there are.
ESTIMATE_AMONG = 100_000


@dataclass(frozen=True)
class BackfillCoverage:
    """How a backfill stands in one window: ``groups`` are the window's tasks, whatever their live state."""

    groups: int
    assessed: int
    failed: dict[str, int] = field(default_factory=dict)
    pending: int = 0  # of them, those without a row are counted too
    levels: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every group has an answer of this backfill, or a cause why it has none."""
        return not self.pending


@dataclass(frozen=True)
class Estimate:
    """What a backfill of some windows would take. ``cost`` is None where nothing is known of the model's costs."""

    groups: int
    answered: int  # by this backfill already
    cost_per_call: float | None
    spent: float
    failed: int = 0  # for good: they are not asked about again

    @property
    def calls(self) -> int:
        """Still to make, failures and retries aside."""
        return self.groups - self.answered - self.failed

    @property
    def cost(self) -> float | None:
        """Of the calls that are still to make."""
        return None if self.cost_per_call is None else self.calls * self.cost_per_call


@dataclass(frozen=True)
class Comparison:
    """Two answers to one group."""

    task_id: str
    camera_id: str
    level: str
    other_level: str
    prompt_version: str
    other_prompt_version: str
    model: str
    other_model: str


def open_backfill(engine: Engine, run: str, *, prompt_version: str, model: str) -> None:
    """Note the backfill's prompt and model; a name stands for one of each, so that its answers can be compared.

    Raises:
        ConfigError: the name was used with another prompt version or model.
    """
    with transaction(engine) as connection:
        connection.execute(
            insert(Backfill).values(run=run, prompt_version=prompt_version, model=model).on_conflict_do_nothing()
        )
        known = connection.execute(select(Backfill.prompt_version, Backfill.model).where(Backfill.run == run)).one()
    if tuple(known) != (prompt_version, model):
        raise ConfigError(
            "backfill",
            f"{run!r} was begun with prompt {known.prompt_version} and model {known.model}, "
            f"not with {prompt_version} and {model}",
            "give another name",
        )


def claim_backfill(
    engine: Engine, run: str, worker: int, window: Window, *, max_attempts: int, limit: int, share: float = 1.0
) -> list[Claim]:
    """Claim groups of the window that have no answer of this backfill, also those that a dead worker held.

    And those of this very worker, as :func:`~dangerous_driving.ledger.claims.claim_window` does. ``share``: of the groups,
    chosen by a hash of their id (:func:`~dangerous_driving.assessment.shadow.is_sampled`).
    """
    parameters = _parameters(window, share) | {
        "run": run, "worker": worker, "limit": limit, "max_attempts": max_attempts,
    }  # fmt: skip
    with transaction(engine) as connection:
        rows = connection.execute(text(_CLAIM), parameters).all()
    claims = [Claim(task_message(row), 0, worker, run=run) for row in rows]
    return sorted(claims, key=lambda claim: (-claim.task.priority, claim.task.timestamp))


def refusal(engine: Engine, run: str, window: Window) -> str | None:
    """What the endpoint says, if it refuses all requests of this backfill in the window as such; None if not."""
    parameters = _parameters(window) | {"run": run}
    with transaction(engine) as connection:
        codes = dict(connection.execute(text(_REFUSED), parameters).tuples().all())
    if set(codes) != {"bad_request"}:
        return None
    return f"the endpoint refuses every request ({codes['bad_request']}); check model and prompt_version"


def backfill_coverage(
    engine: Engine, run: str, window: Window, *, max_attempts: int, share: float = 1.0
) -> BackfillCoverage:
    """Count how the backfill stands in the window; a failed group that may be tried again counts as pending."""
    parameters = _parameters(window, share) | {"run": run, "max_attempts": max_attempts}
    groups = assessed = pending = 0
    failed: dict[str, int] = {}
    with transaction(engine) as connection:
        for state, code, again, count in connection.execute(text(_COUNT), parameters):
            groups += count
            if state == "assessed":
                assessed += count
            elif state == "failed" and not again:
                failed[code] = failed.get(code, 0) + count
            else:
                pending += count
        levels = dict(connection.execute(text(_LEVELS), parameters).tuples().all())
    return BackfillCoverage(groups, assessed, failed, pending, levels)


def make_current(engine: Engine, run: str, window: Window) -> int:
    """Make this backfill's answers of the window the current ones; returns how many changed.

    A task that had failed live has an answer then. Groups that the backfill could not answer keep what they had.

    Raises:
        ConfigError: it is no backfill, but what a challenger said beside the champion.
    """
    if run.startswith(SHADOW_PREFIX):
        raise ConfigError(
            "backfill",
            f"{run} assessed in the shadow, a share of the groups; that is never made current",
            "assess the windows again with its prompt, under the name of a backfill",
        )
    parameters = _parameters(window) | {"run": run}
    with transaction(engine) as connection:
        connection.execute(text(_UNSET_CURRENT), parameters)  # first: one current answer per task, at any time
        changed = connection.execute(text(_SET_CURRENT), parameters).rowcount
        connection.execute(text(_ANSWERED), parameters)
        connection.execute(text(_WRITTEN), parameters)
    return changed


def spent(engine: Engine, run: str) -> float:
    """What the backfill's calls have cost so far, in money."""
    with transaction(engine) as connection:
        statement = select(func.coalesce(func.sum(LlmCall.cost), 0.0)).where(LlmCall.run == run)
        return float(connection.scalar(statement) or 0.0)


def estimate(
    engine: Engine,
    run: str,
    windows: Sequence[Window],
    *,
    prompt_version: str,
    model: str,
    max_attempts: int,
    share: float = 1.0,
) -> Estimate:
    """What is left to ask in these windows, and what a call costs by the last ones of this model.

    Among the newest calls of all lanes, or else by what this backfill has paid before.
    Calls with the same prompt version count alone where there are any: a longer prompt costs more. A backfill shares no calls,
    so those that were shared do not count.
    """
    parameters = {
        "run": run,
        "cameras": [window.camera_id for window in windows],
        "starts": [window.start for window in windows],
        "ends": [window.end for window in windows],
        "sampled_below": sampled_below(share),
        "max_attempts": max_attempts,
    }
    costs = {
        "model": model,
        "prompt": prompt_version,
        "run": run,
        "limit": ESTIMATE_FROM,
        "among": ESTIMATE_AMONG,
    }
    with transaction(engine) as connection:
        groups, answered, failed = connection.execute(text(_ESTIMATE), parameters).one()
        per_call = connection.scalar(text(_COST_PER_CALL), costs)
    return Estimate(groups, answered, per_call, spent(engine, run), failed)


def compare(engine: Engine, run: str, *, other: str = "live", only_different: bool = True) -> list[Comparison]:
    """The groups that two runs answered, one row each."""
    with transaction(engine) as connection:
        rows = connection.execute(text(COMPARE), {"run": run, "other": other, "all": not only_different})
        return [Comparison(*row) for row in rows]


def _parameters(window: Window, share: float = 1.0) -> dict[str, Any]:
    return {
        "camera": window.camera_id,
        "start": window.start,
        "end": window.end,
        "sampled_below": sampled_below(share),
    }


#: The first 32 bits of the task id's MD5, as `is_sampled` has them.
_SAMPLED = "('x' || substr(md5(t.task_id), 1, 8))::bit(32)::bigint < :sampled_below"
_TASKS = (
    "t.camera_id = :camera AND t.captured_at >= :start AND t.captured_at < :end AND t.state <> 'expired' "
    f"AND {_SAMPLED}"
)

_CLAIM = f"""
WITH chosen AS (
    SELECT t.captured_at, t.task_id, t.camera_id FROM assessment_task t
    LEFT JOIN backfill_task b ON b.run = :run AND b.captured_at = t.captured_at AND b.task_id = t.task_id
    WHERE {_TASKS}
      AND (b.task_id IS NULL OR b.state = 'pending' OR (b.state = 'failed' AND b.attempts < :max_attempts)
           OR (b.state = 'claimed' AND (b.worker = :worker OR NOT EXISTS (
                SELECT 1 FROM worker w WHERE w.id = b.worker AND w.stopped_at IS NULL))))
    ORDER BY t.priority DESC, t.captured_at DESC LIMIT :limit
), claimed AS (
    INSERT INTO backfill_task AS b (run, captured_at, task_id, camera_id, state, worker)
    SELECT :run, captured_at, task_id, camera_id, 'claimed', :worker FROM chosen ORDER BY captured_at, task_id
    ON CONFLICT (run, captured_at, task_id) DO UPDATE
        SET state = 'claimed', worker = :worker, failure_code = NULL, failure_message = NULL, updated_at = now()
        -- asked again under the row's lock: of two runs at a time, one gets it
        WHERE b.state IN ('pending', 'failed') OR (b.state = 'claimed' AND (b.worker = :worker OR NOT EXISTS (
            SELECT 1 FROM worker w WHERE w.id = b.worker AND w.stopped_at IS NULL)))
    RETURNING captured_at, task_id
)
SELECT t.* FROM assessment_task t JOIN claimed c ON c.captured_at = t.captured_at AND c.task_id = t.task_id
WHERE {_TASKS}
"""  # noqa: S608  # constants

_REFUSED = """
SELECT coalesce(failure_code, state), max(failure_message) FROM backfill_task
WHERE run = :run AND camera_id = :camera AND captured_at >= :start AND captured_at < :end GROUP BY 1
"""

_COUNT = f"""
SELECT coalesce(b.state, 'pending'), b.failure_code, coalesce(b.attempts, 0) < :max_attempts, count(*)
FROM assessment_task t
LEFT JOIN backfill_task b ON b.run = :run AND b.captured_at = t.captured_at AND b.task_id = t.task_id
WHERE {_TASKS} GROUP BY 1, 2, 3
"""  # noqa: S608

_LEVELS = """
SELECT risk_level, count(*) FROM risk_assessment
WHERE camera_id = :camera AND captured_at >= :start AND captured_at < :end AND run = :run GROUP BY 1
"""

_WITH_ANSWER = """
SELECT 1 FROM risk_assessment n
WHERE n.captured_at = r.captured_at AND n.task_id = r.task_id AND n.run = :run
"""

_UNSET_CURRENT = f"""
UPDATE risk_assessment r SET is_current = false
WHERE r.camera_id = :camera AND r.captured_at >= :start AND r.captured_at < :end
  AND r.is_current AND r.run <> :run AND EXISTS ({_WITH_ANSWER})
"""  # noqa: S608

_SET_CURRENT = """
UPDATE risk_assessment r SET is_current = true
WHERE r.camera_id = :camera AND r.captured_at >= :start AND r.captured_at < :end AND r.run = :run AND NOT r.is_current
"""

_ANSWERED = f"""
UPDATE assessment_task r
SET state = 'assessed', reason = '', failure_code = NULL, failure_message = NULL, failure_raw = NULL, updated_at = now()
WHERE r.camera_id = :camera AND r.captured_at >= :start AND r.captured_at < :end
  AND r.state IN ('failed', 'pending') AND EXISTS ({_WITH_ANSWER})
"""  # noqa: S608

# the analytical tables read again what was written since they were built; the change of an answer's flag has no time
_WRITTEN = f"""
UPDATE assessment_task r SET updated_at = now()
WHERE r.camera_id = :camera AND r.captured_at >= :start AND r.captured_at < :end
  AND r.state = 'assessed' AND EXISTS ({_WITH_ANSWER})
"""  # noqa: S608

_ESTIMATE = f"""
SELECT count(*), count(b.task_id) FILTER (WHERE b.state = 'assessed'),
       count(b.task_id) FILTER (WHERE b.state = 'failed' AND b.attempts >= :max_attempts)
FROM unnest(CAST(:cameras AS text[]), CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[])) AS w(camera, first, last)
JOIN assessment_task t
  ON t.camera_id = w.camera AND t.captured_at >= w.first AND t.captured_at < w.last AND t.state <> 'expired'
  AND {_SAMPLED}
LEFT JOIN backfill_task b ON b.run = :run AND b.captured_at = t.captured_at AND b.task_id = t.task_id
"""  # noqa: S608

_COST_PER_CALL = """
WITH newest AS (
    SELECT model, prompt_version, status, cost, shared_with, started_at FROM llm_call
    ORDER BY started_at DESC LIMIT :among
), recent AS (
    SELECT prompt_version, cost FROM newest
    WHERE model = :model AND status = 'ok' AND cost IS NOT NULL AND shared_with = '{}' ORDER BY started_at DESC LIMIT :limit
)
SELECT coalesce(
    avg(cost) FILTER (WHERE prompt_version = :prompt),
    avg(cost),
    (SELECT avg(cost) FROM llm_call WHERE run = :run AND run <> 'live' AND status = 'ok')
) FROM recent
"""

#: Two answers per group, side by side; the documentation shows it too.
COMPARE = """
SELECT a.task_id, a.camera_id, b.risk_level, a.risk_level, b.prompt_version, a.prompt_version, b.model, a.model
FROM risk_assessment a
JOIN risk_assessment b ON b.captured_at = a.captured_at AND b.task_id = a.task_id AND b.run = :other
WHERE a.run = :run AND (:all OR a.risk_level <> b.risk_level)
ORDER BY a.captured_at, a.task_id
"""
