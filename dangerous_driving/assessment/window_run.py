"""The window lane: every group of a window that has no answer gets one.

A run takes several windows (a run's start costs seconds, a window's work often less). They share the worker's calls, so
that the last groups of one window do not keep the keys idle, and each ends on its own: what goes wrong in one is said in
its report, and the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog
from sqlalchemy import Engine, func, select, text

from dangerous_driving.assessment.assessor import Assessor, Outcome
from dangerous_driving.assessment.windows import Window
from dangerous_driving.contracts import (
    LIVE_RUN,
    DetectedObject,
    DetectionMetadata,
    DetectionResult,
    Lane,
    TrafficGroup,
)
from dangerous_driving.errors import LedgerError, ObjectStoreError
from dangerous_driving.ledger.claims import Claim, claim_window
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.frames import insert_tasks
from dangerous_driving.ledger.tables import Frame, LlmCall, RiskAssessment
from dangerous_driving.ledger.windows import (
    WindowCoverage,
    complete_window,
    reopen_unanswered,
    start_window,
    window_coverage,
)
from dangerous_driving.settings import AssessmentSettings
from dangerous_driving.tasks.derivation import tasks_from_detection

log = structlog.get_logger(__name__)

ValueT = TypeVar("ValueT")

#: s between looks at tasks that another worker holds.
WAIT_SECONDS = 0.5
#: Windows of one run at a time.
WINDOWS_AT_A_TIME = 4
#: Workers that a run may be in turn, where each is taken for dead.
WORKERS = 3
#: s that a database may be away until a window is given up for this run, and between attempts.
PATIENCE_SECONDS, RETRY_SECONDS = 30.0, 1.0


@dataclass(frozen=True)
class WindowReport:
    """What a run did for a window, and how the window stands after it. Costs in money, latencies in seconds."""

    window: Window
    frames: int
    groups: int
    assessed: int  # by this run
    already: int  # before it
    failed: dict[str, int] = field(default_factory=dict)  # tasks by cause
    pending: int = 0
    expired: int = 0
    levels: dict[str, int] = field(default_factory=dict)
    lanes: dict[str, int] = field(default_factory=dict)  # answers by the lane that brought them
    calls: int = 0
    cost: float = 0.0
    latency_p50: float | None = None
    latency_p95: float | None = None
    complete: bool = False
    run: str = LIVE_RUN  # or the backfill's name
    error: str | None = None  # what kept the run from going on with this window

    @property
    def problem(self) -> str | None:
        """Why the window is not complete, or None."""
        if self.error:
            return self.error
        if self.complete:
            return None
        return f"{self.pending} of {self.groups} groups have no answer yet; they stay pending, and the next run takes them up"


async def assess_windows(
    assessor: Assessor,
    windows: Sequence[Window],
    *,
    run_id: str,
    settings: AssessmentSettings,
    on_report: Callable[[WindowReport], None] = lambda report: None,
) -> list[WindowReport]:
    """Assess windows, some at a time, with at most ``max_in_flight`` calls in all; see :func:`assess_window`.

    Args:
        assessor: from :func:`~dangerous_driving.assessment.opening.open_assessor`.
        windows: in the order in which they are begun.
        run_id: noted on the windows.
        settings: concurrency, attempts and time-outs.
        on_report: told of each window as it ends.

    Returns:
        A report of each window, in their order. A window that the ledger would not let go on has an ``error``.
    """
    slots = asyncio.Semaphore(settings.max_in_flight)

    async def assess(window: Window) -> WindowReport:
        return await assess_window(assessor, window, run_id=run_id, settings=settings, slots=slots)

    return await each(windows, assess, on_report)


async def by_living_workers(
    opened: Callable[[], AbstractAsyncContextManager[Assessor]],
    windows: Sequence[Window],
    work: Callable[[Assessor, Sequence[Window]], Awaitable[list[WindowReport]]],
) -> list[WindowReport]:
    """Work on windows, and go on as a new worker where this one was taken for dead, as on a machine that stood still.

    Args:
        opened: a new worker's assessor.
        windows: all of them.
        work: :func:`assess_windows` or its like, on the windows that are left.

    Returns:
        The last report of each window, in their order. After `WORKERS` workers it is left as it is, and said in the reports.
    """
    reports: dict[Window, WindowReport] = {}
    for number in range(1, WORKERS + 1):
        left = [window for window in windows if window not in reports or not reports[window].complete]
        async with opened() as assessor:
            reports |= {report.window: report for report in await work(assessor, left)}
            given_up = assessor.given_up
        if not given_up:
            break
        log.warning("worker_given_up", workers=number, of=WORKERS, windows=len(left))
    return [reports[window] for window in windows]


async def each(
    windows: Sequence[Window],
    assess: Callable[[Window], Awaitable[WindowReport]],
    on_report: Callable[[WindowReport], None] = lambda report: None,
) -> list[WindowReport]:
    """Run `assess` on windows, some at a time; a ledger that stays away ends one window, not the run."""
    gate = asyncio.Semaphore(WINDOWS_AT_A_TIME)

    async def one(window: Window) -> WindowReport:
        async with gate:
            try:
                report = await assess(window)
            except (LedgerError, ObjectStoreError) as error:
                log.warning(
                    "window_not_completed", camera_id=window.camera_id, window=str(window.start), reason=str(error)
                )
                report = WindowReport(window, 0, 0, 0, 0, error=str(error))
        on_report(report)
        return report

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(one(window)) for window in windows]
    return [task.result() for task in running]


async def patiently(work: Callable[..., ValueT], *args: Any, **kwargs: Any) -> ValueT:
    """Work on the ledger in a thread; an outage is waited for, for `PATIENCE_SECONDS`.

    Raises:
        LedgerError: it is still away then, or refuses.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await asyncio.to_thread(work, *args, **kwargs)
        except LedgerError as error:
            if not error.retriable or time.monotonic() > until:
                raise
            log.warning("ledger_is_away", reason=str(error))
            await asyncio.sleep(RETRY_SECONDS)


async def assess_window(
    assessor: Assessor,
    window: Window,
    *,
    run_id: str,
    settings: AssessmentSettings,
    slots: asyncio.Semaphore | None = None,
) -> WindowReport:
    """Assess every group of the window that has no current answer, through the window lane of the key pool.

    It can be killed and started again at any point: what is answered is not asked again, what a dead worker held is taken
    over. Tasks that another worker holds (the realtime lane) are waited for, since they end in one of the states.

    Args:
        assessor: from :func:`~dangerous_driving.assessment.opening.open_assessor`.
        window: which camera and time.
        run_id: noted on the window.
        settings: concurrency, attempts and time-outs.
        slots: shared by windows of one run; None: ``max_in_flight`` of its own.

    Raises:
        LedgerError: the database stayed away.
    """
    engine = assessor.engine
    slots = slots or asyncio.Semaphore(settings.max_in_flight)
    version = await patiently(start_window, engine, window, run_id)
    await patiently(make_missing_tasks, engine, window)
    await patiently(reopen_unanswered, engine, window)
    before = await patiently(window_coverage, engine, window)

    async def claim() -> list[Claim]:
        limits = {"max_attempts": settings.max_attempts, "limit": settings.batch_size}
        return await patiently(claim_window, engine, assessor.worker, window, **limits)

    async def covered() -> bool:
        coverage = await patiently(window_coverage, engine, window)
        return not (coverage.claimed or coverage.pending)

    outcomes, _ = await until_covered(assessor, Lane.WINDOW, slots, claim=claim, covered=covered)
    after = await patiently(window_coverage, engine, window)
    if after.complete:
        await patiently(complete_window, engine, window, version)
    return await patiently(_report, engine, window, outcomes, before, after)


async def until_covered(
    assessor: Assessor,
    lane: Lane,
    slots: asyncio.Semaphore,
    *,
    claim: Callable[[], Awaitable[list[Claim]]],
    covered: Callable[[], Awaitable[bool]],
    hindrance: Callable[[Counter[Outcome]], Awaitable[str | None]] | None = None,
) -> tuple[Counter[Outcome], str | None]:
    """Claim and assess groups of a window, batch by batch, until it is covered.

    Args:
        assessor: of a living worker.
        lane: whose quota it is.
        slots: for calls.
        claim: takes the next batch.
        covered: asked when there is none: whether nothing is left, with other workers neither.
        hindrance: asked before each batch, with the outcomes so far: why not to go on.

    Returns:
        What became of the groups, and the hindrance. Without a usable key or the object store it ends early; the groups
        wait for the next run.

    Raises:
        LedgerError: the database stayed away, or the worker was given up.
    """
    outcomes: Counter[Outcome] = Counter()
    while True:
        hindered = None if hindrance is None else await hindrance(outcomes)
        if hindered:
            return outcomes, hindered
        claims = await claim()
        if claims:
            outcomes.update(await assess_claims(assessor, claims, lane, slots))
            if outcomes[Outcome.HANDED_BACK]:
                return outcomes, None
        elif await covered():
            return outcomes, None
        else:
            # another worker holds some, or a sweep has just handed some back
            await asyncio.sleep(WAIT_SECONDS)
        assessor.require_alive()


async def assess_claims(
    assessor: Assessor, claims: Sequence[Claim], lane: Lane, slots: asyncio.Semaphore
) -> list[Outcome]:
    """Assess claimed tasks, as many calls at a time as there are slots; groups of one frame share a call where they may."""

    async def assess(together: list[Claim]) -> list[Outcome]:
        async with slots:
            return await assessor.assess_together(together, lane)

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(assess(together)) for together in assessor.by_call(claims)]
    return [outcome for task in running for outcome in task.result()]


def make_missing_tasks(engine: Engine, window: Window) -> int:
    """Make the tasks of the window's frames that are not in the ledger; returns how many."""
    missing = text(
        "EXISTS (SELECT 1 FROM jsonb_array_elements(frame.traffic_groups) AS g "
        "WHERE (g ->> 'objectCount')::int >= 2 AND NOT EXISTS (SELECT 1 FROM assessment_task t "
        "WHERE t.captured_at = frame.captured_at AND t.message_id = frame.message_id "
        "AND t.group_index = (g ->> 'groupIndex')::int))"
    )
    statement = select(Frame).where(
        Frame.camera_id == window.camera_id,
        Frame.captured_at >= window.start,
        Frame.captured_at < window.end,
        missing,
    )
    with transaction(engine) as connection:
        frames = [
            DetectionResult(
                message_id=row.message_id,
                camera_id=row.camera_id,
                timestamp=row.captured_at,
                image_width=row.image_width,
                image_height=row.image_height,
                raw_frame_url=row.raw_frame_url,
                detected_objects=tuple(DetectedObject.model_validate(item) for item in row.detected_objects),
                traffic_groups=tuple(TrafficGroup.model_validate(item) for item in row.traffic_groups),
                metadata=DetectionMetadata(),
            )
            for row in connection.execute(statement)
        ]
        tasks = [task for frame in frames for task in tasks_from_detection(frame)]
        return len(insert_tasks(connection, tasks, lane=Lane.WINDOW, reason="made by a window run"))


def _report(
    engine: Engine, window: Window, outcomes: Counter[Outcome], before: WindowCoverage, after: WindowCoverage
) -> WindowReport:
    report = WindowReport(
        window=window,
        frames=after.frames,
        groups=after.groups,
        assessed=outcomes[Outcome.ASSESSED],
        already=before.assessed,
        failed=after.failed,
        pending=after.pending + after.claimed,
        expired=after.expired,
        levels=after.levels,
        complete=after.complete,
    )
    return with_costs(engine, report)


def with_costs(engine: Engine, report: WindowReport) -> WindowReport:
    """The report with calls, cost and latencies: of the current answers, or of the backfill's."""
    window, live = report.window, report.run == LIVE_RUN
    in_window = (
        RiskAssessment.camera_id == window.camera_id,
        RiskAssessment.captured_at >= window.start,
        RiskAssessment.captured_at < window.end,
        RiskAssessment.is_current if live else RiskAssessment.run == report.run,
    )
    with transaction(engine) as connection:
        lanes = select(RiskAssessment.lane, func.count()).where(*in_window).group_by(RiskAssessment.lane)
        by_lane = dict(connection.execute(lanes).tuples().all())
        cost, p50, p95 = connection.execute(
            select(
                func.coalesce(func.sum(RiskAssessment.cost), 0.0),
                func.percentile_cont(0.5).within_group(RiskAssessment.latency),
                func.percentile_cont(0.95).within_group(RiskAssessment.latency),
            ).where(*in_window)
        ).one()
        calls = connection.scalar(
            select(func.count())
            .select_from(LlmCall)
            .where(
                LlmCall.camera_id == window.camera_id,
                LlmCall.captured_at >= window.start,
                LlmCall.captured_at < window.end,
                LlmCall.run == report.run,
            )
        )
    return replace(report, lanes=by_lane, calls=calls or 0, cost=cost, latency_p50=p50, latency_p95=p95)


def is_assessable(window: Window, *, now: datetime | None = None, lateness: float = 0.0) -> str | None:
    """Why a run on the window makes no sense yet, or None."""
    now = now or datetime.now(UTC)
    if window.start > now:
        return f"the window {window.start:%Y-%m-%d %H:%M} lies in the future"
    if not window.closed(now, lateness):
        return f"the window is open until {window.end + timedelta(seconds=lateness):%Y-%m-%d %H:%M:%S} UTC"
    return None
