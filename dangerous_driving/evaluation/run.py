"""One prompt and model over the newest set: asked, measured, reported."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.key_pool import KeyPool
from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.asking import AskingReport, OnProgress, evaluate
from dangerous_driving.evaluation.cases import SetCase, Split
from dangerous_driving.evaluation.collection import Collected, collect_verdicts
from dangerous_driving.evaluation.figures import Figures, figures_of, mistakes
from dangerous_driving.evaluation.report import (
    MISTAKES,
    Judged,
    Report,
    ReportHead,
    build_report,
    keep_report,
    report_prefix,
)
from dangerous_driving.ledger import evaluation_cases, evaluation_runs
from dangerous_driving.ledger.evaluation_cases import SetVersion
from dangerous_driving.ledger.evaluation_runs import RunRow
from dangerous_driving.objects import ObjectStore
from dangerous_driving.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """A run and its figures; without figures where it stopped before every case was settled."""

    asking: AskingReport
    held_out: Figures | None
    train: Figures | None
    report: Report | None
    report_url: str | None


def refresh_set(engine: Engine, store: ObjectStore, settings: Settings) -> tuple[Collected, SetVersion]:
    """Take in new verdicts and freeze the set; the newest one again where nothing has changed."""
    collected = collect_verdicts(engine, store, open_level=settings.alerts.open_level)
    frozen = evaluation_cases.freeze_set(engine, held_out_share=settings.evaluation.held_out_share)
    return collected, frozen


def require_set(engine: Engine) -> SetVersion:
    """The newest set with a case in it.

    Raises:
        ConfigError: there is none.
    """
    found = evaluation_cases.newest_set(engine)
    if found is None or not found.cases:
        raise ConfigError(
            "evaluation",
            "there are no cases yet",
            "judge alerts on the page, import labelled pictures (dangerous-driving cases import), or make simulated ones "
            "(dangerous-driving simulate cases)",
        )
    return found


async def evaluate_prompt(
    settings: Settings,
    *,
    prompt_version: str,
    model: str,
    set_version: int,
    engine: Engine,
    store: ObjectStore,
    pool: KeyPool,
    at: datetime | None = None,
    on_progress: OnProgress = lambda done, wanted: None,
) -> Evaluated:
    """Ask about all cases of a set, and keep the figures and a report of them.

    Raises:
        ConfigError: the prompt is unknown, unusable, or was changed since it was evaluated; or the endpoint refuses it.
    """
    cases = await asyncio.to_thread(evaluation_cases.set_cases, engine, set_version)
    asking = await evaluate(
        settings,
        cases,
        prompt_version=prompt_version,
        model=model,
        set_version=set_version,
        engine=engine,
        store=store,
        pool=pool,
        at=at,
        on_progress=on_progress,
    )
    if asking.stopped:
        log.warning("evaluation_stopped", run=asking.key.run, reason=asking.stopped)
        return Evaluated(asking, None, None, None, None)
    return await asyncio.to_thread(_measure, settings, asking, cases, engine, store)


def _measure(
    settings: Settings, asking: AskingReport, cases: list[SetCase], engine: Engine, store: ObjectStore
) -> Evaluated:
    run = asking.key.run
    held_out, train, report = report_of(settings, run, cases, engine, store)
    url = keep_report(store, report_prefix(run), report)
    figures = held_out.rows(Split.HELD_OUT) + train.rows(Split.TRAIN)
    evaluation_runs.finish_run(engine, run, figures=figures, report_url=url)
    return Evaluated(asking, held_out, train, report, url)


def report_of(
    settings: Settings,
    run: str,
    cases: list[SetCase],
    engine: Engine,
    store: ObjectStore,
    judged: Judged | None = None,
) -> tuple[Figures, Figures, Report]:
    """The figures of a run on both sides of its set, and the report of them.

    Raises:
        ConfigError: there is no such run.
    """
    row = known_run(engine, run)
    asked = evaluation_runs.run_answers(engine, run)
    resamples = settings.evaluation.resamples
    held_out = figures_of(cases, asked, Split.HELD_OUT, resamples=resamples)
    train = figures_of(cases, asked, Split.TRAIN, resamples=resamples)
    report = build_report(
        ReportHead(
            prompt_version=row.key.prompt_version,
            model=row.key.model,
            set_version=row.key.set_version,
            run=run,
            at=datetime.now(UTC),
            simulated=row.key.model.startswith("simulated"),
        ),
        held_out,
        train,
        mistakes=mistakes(cases, asked, limit=MISTAKES),
        store=store,
        judged=judged,
        significance=settings.evaluation.significance,
    )
    return held_out, train, report


def known_run(engine: Engine, run: str) -> RunRow:
    """A run by its name.

    Raises:
        ConfigError: there is none.
    """
    row = evaluation_runs.get_run(engine, run)
    if row is None:
        raise ConfigError("run", f"there is no evaluation {run!r}", "see: dangerous-driving prompts runs")
    return row
