"""Backfills: every group of a window assessed again, with another prompt version or model.

Nothing of it leaves the ledger: no result message, so no alert and no notification. It pays from the evaluation lane, so
realtime and windows that close meanwhile go first, and it stops where its cost limit or the lane's budget ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from typing_extensions import override

from dangerous_driving.assessment.assessor import Assessor, Outcome
from dangerous_driving.assessment.prompt import load_prompt
from dangerous_driving.assessment.publisher import ResultPublisher
from dangerous_driving.assessment.shadow import SHADOW_PREFIX
from dangerous_driving.assessment.window_run import (
    WindowReport,
    each,
    patiently,
    until_covered,
    with_costs,
)
from dangerous_driving.assessment.windows import Window
from dangerous_driving.contracts import LIVE_RUN, Lane, RiskAssessmentResult
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger import backfills
from dangerous_driving.ledger.assessments import AssessmentRecord
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.ledger.windows import window_coverage
from dangerous_driving.settings import AssessmentSettings, Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class BackfillPlan:
    """What a backfill does. ``cost_limit``: money for all of it, over all its windows. ``share``: of each window's groups."""

    run: str
    prompt_version: str
    model: str
    make_current: bool = False
    cost_limit: float | None = None
    share: float = 1.0


class NoPublisher(ResultPublisher):
    """Stands where results leave: a backfill's stay in the ledger."""

    def __init__(self) -> None:
        """Nothing is opened."""

    @override
    def provisional(self, result: RiskAssessmentResult) -> None:
        """Keep it."""

    @override
    def failed(self, result: RiskAssessmentResult) -> None:
        """Keep it."""

    @override
    def final(self, record: AssessmentRecord) -> None:
        """Keep it."""

    @override
    def republish(self) -> int:
        """Leave that to the live lanes."""
        return 0

    @override
    def close(self) -> None:
        """There is nothing to wait for."""


def backfill_plan(
    settings: Settings,
    *,
    run: str,
    prompt_version: str | None,
    model: str | None,
    make_current: bool = False,
    cost_limit: float | None = None,
) -> BackfillPlan:
    """Check what a person asked for; what is not given is as in the settings.

    Raises:
        ConfigError: the prompt version is unknown, or the model or the name cannot be one.
    """
    if not run or run == LIVE_RUN or len(run) > 100 or not run.isprintable():  # noqa: PLR2004  # a name, not a text
        raise ConfigError("backfill", f"{run!r} is no name for a backfill", f"use 1 to 100 letters, not {LIVE_RUN!r}")
    if run.startswith(SHADOW_PREFIX):
        raise ConfigError("backfill", f"{run!r} is the name of a challenger in the shadow", "give it another name")
    if model is not None and (not model.strip() or model != model.strip()):
        raise ConfigError("model", f"{model!r} is no model", "name it as the endpoint does, or leave it out")
    version = prompt_version or settings.llm.prompt_version
    load_prompt(version, folder=settings.llm.prompt_folder)
    return BackfillPlan(run, version, model or settings.llm.model, make_current, cost_limit)


def settings_of(settings: Settings, plan: BackfillPlan) -> Settings:
    """The settings with the backfill's prompt and model, and with no other model to fall back to.

    Claims of a backfill never share calls, so it needs no prompt for several groups.
    """
    changed: dict[str, Any] = {"prompt_version": plan.prompt_version, "model": plan.model}
    if "fallbacks" in type(settings.llm).model_fields:
        changed["fallbacks"] = ()
    return settings.model_copy(
        update={
            "llm": settings.llm.model_copy(update=changed),
            "assessment": settings.assessment.model_copy(update={"coalesce_groups": 1}),
        }
    )


async def backfill_windows(
    assessor: Assessor,
    windows: Sequence[Window],
    plan: BackfillPlan,
    *,
    settings: AssessmentSettings,
    on_report: Callable[[WindowReport], None] = lambda report: None,
) -> list[WindowReport]:
    """Assess the windows again under the plan's name, some at a time.

    Args:
        assessor: opened with :func:`settings_of`.
        windows: closed ones.
        plan: from :func:`backfill_plan`.
        settings: concurrency and attempts.
        on_report: told of each window as it ends.

    Raises:
        ConfigError: the name was used with another prompt version or model.
    """
    assessor.publisher = NoPublisher()
    await patiently(
        backfills.open_backfill, assessor.engine, plan.run, prompt_version=plan.prompt_version, model=plan.model
    )
    slots = asyncio.Semaphore(settings.max_in_flight)

    async def assess(window: Window) -> WindowReport:
        return await _backfill_window(assessor, window, plan, settings, slots)

    return await each(windows, assess, on_report)


async def _backfill_window(
    assessor: Assessor, window: Window, plan: BackfillPlan, settings: AssessmentSettings, slots: asyncio.Semaphore
) -> WindowReport:
    engine, attempts = assessor.engine, settings.max_attempts

    async def coverage() -> backfills.BackfillCoverage:
        return await patiently(
            backfills.backfill_coverage, engine, plan.run, window, max_attempts=attempts, share=plan.share
        )

    async def claim() -> list[Claim]:
        return await patiently(
            backfills.claim_backfill,
            engine,
            plan.run,
            assessor.worker,
            window,
            max_attempts=attempts,
            limit=settings.batch_size,
            share=plan.share,
        )

    async def covered() -> bool:
        return (await coverage()).complete

    before = await coverage()

    async def hindrance(outcomes: Counter[Outcome]) -> str | None:
        if outcomes and not outcomes[Outcome.ASSESSED]:
            # a model that is not known there: no need to ask for all groups, time and again
            refused = await patiently(backfills.refusal, engine, plan.run, window)
            if refused:
                return refused
        return await _over_limit(assessor, window, plan, attempts)

    outcomes, error = await until_covered(
        assessor, Lane.EVALUATION, slots, claim=claim, covered=covered, hindrance=hindrance
    )
    if outcomes[Outcome.HANDED_BACK]:
        error = (
            "groups were handed back: no key may be used for it now, the budget of the lane evaluation is spent, "
            "or the object store is away; run it again later"
        )
    after = await coverage()
    if after.complete and error is None and plan.make_current:
        await patiently(backfills.make_current, engine, plan.run, window)
    live = await patiently(window_coverage, engine, window)
    report = WindowReport(
        window=window,
        frames=live.frames,
        groups=after.groups,
        assessed=outcomes[Outcome.ASSESSED],
        already=before.assessed,
        failed=after.failed,
        pending=after.pending,
        levels=after.levels,
        complete=after.complete and error is None,
        run=plan.run,
        error=error,
    )
    return await patiently(with_costs, engine, report)


async def _over_limit(assessor: Assessor, window: Window, plan: BackfillPlan, max_attempts: int) -> str | None:
    """Why no further call may be made for the window, or None."""
    if plan.cost_limit is None:
        return None
    ahead = await patiently(
        backfills.estimate,
        assessor.engine,
        plan.run,
        [window],
        prompt_version=plan.prompt_version,
        model=plan.model,
        max_attempts=max_attempts,
        share=plan.share,
    )
    if ahead.calls == 0:
        return None
    # the estimate ends the window before it is begun; without one, what is spent is all there is to go by
    expected = ahead.spent + (ahead.cost or 0.0)
    if expected > plan.cost_limit or (ahead.cost is None and ahead.spent >= plan.cost_limit):
        return (
            f"the cost limit of {plan.cost_limit:.4g} would be passed: {ahead.spent:.4g} is spent, "
            f"{ahead.calls} calls are left in this window; raise cost_limit and run it again"
        )
    return None
