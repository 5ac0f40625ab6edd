"""The window lane: every group of a window that has no answer gets one."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Engine, func, select, text

from dangerous_driving.assessment.assessor import Assessor, Outcome
from dangerous_driving.assessment.windows import Window
from dangerous_driving.contracts import DetectedObject, DetectionMetadata, DetectionResult, Lane, TrafficGroup
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

#: s between looks at tasks that another worker holds.
WAIT_SECONDS = 0.5


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
    levels: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    cost: float = 0.0
    latency_p50: float | None = None
    latency_p95: float | None = None
    complete: bool = False


async def assess_window(
    assessor: Assessor, window: Window, *, run_id: str, settings: AssessmentSettings
) -> WindowReport:
    """Assess every group of the window that has no current answer, through the window lane of the key pool.

    It can be killed and started again at any point: what is answered is not asked again, what a dead worker held is taken
    over. Tasks that another worker holds (the realtime lane) are waited for, since they end in one of the states.

    Args:
        assessor: from :func:`~dangerous_driving.assessment.opening.open_assessor`.
        window: which camera and time.
        run_id: noted on the window.
        settings: concurrency, attempts and time-outs.
    """
    engine = assessor.engine
    version = await asyncio.to_thread(start_window, engine, window, run_id)
    await asyncio.to_thread(make_missing_tasks, engine, window)
    await asyncio.to_thread(reopen_unanswered, engine, window)
    before = await asyncio.to_thread(window_coverage, engine, window)
    outcomes: Counter[Outcome] = Counter()
    while True:
        claims = await asyncio.to_thread(
            claim_window,
            engine,
            assessor.worker,
            window,
            max_attempts=settings.max_attempts,
            limit=settings.batch_size,
        )
        if claims:
            outcomes.update(await _assess_all(assessor, claims, settings.max_in_flight))
            if outcomes[Outcome.HANDED_BACK]:
                break  # no key: the tasks wait for the next run
        else:
            coverage = await asyncio.to_thread(window_coverage, engine, window)
            if not (coverage.claimed or coverage.pending):
                break
            # another worker holds some, or a sweep has just handed some back
            await asyncio.sleep(WAIT_SECONDS)
        assessor.require_alive()
    after = await asyncio.to_thread(window_coverage, engine, window)
    if after.complete:
        await asyncio.to_thread(complete_window, engine, window, version)
    return await asyncio.to_thread(_report, engine, window, outcomes, before, after)


async def _assess_all(assessor: Assessor, claims: list[Claim], max_in_flight: int) -> list[Outcome]:
    slots = asyncio.Semaphore(max_in_flight)

    async def assess(claim: Claim) -> Outcome:
        async with slots:
            return await assessor.assess(claim, Lane.WINDOW)

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(assess(claim)) for claim in claims]
    return [task.result() for task in running]


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
    in_window = (
        RiskAssessment.camera_id == window.camera_id,
        RiskAssessment.captured_at >= window.start,
        RiskAssessment.captured_at < window.end,
        RiskAssessment.is_current,
    )
    with transaction(engine) as connection:
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
            )
        )
    return WindowReport(
        window=window,
        frames=after.frames,
        groups=after.groups,
        assessed=outcomes[Outcome.ASSESSED],
        already=before.assessed,
        failed=after.failed,
        pending=after.pending + after.claimed,
        levels=after.levels,
        calls=calls or 0,
        cost=cost,
        latency_p50=p50,
        latency_p95=p95,
        complete=after.complete,
    )


def is_assessable(window: Window, *, now: datetime | None = None, lateness: float = 0.0) -> str | None:
    """Why a run on the window makes no sense yet, or None."""
    now = now or datetime.now(UTC)
    if window.start > now:
        return f"the window {window.start:%Y-%m-%d %H:%M} lies in the future"
    if not window.closed(now, lateness):
        return f"the window is open until {window.end + timedelta(seconds=lateness):%Y-%m-%d %H:%M:%S} UTC"
    return None
