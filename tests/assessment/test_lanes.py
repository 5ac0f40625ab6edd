"""The two lanes: the scheduler claims before it commits and loses nothing, a window run leaves nothing out."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from dangerous_driving.assessment.scheduler import Scheduler
from dangerous_driving.assessment.window_run import assess_window, is_assessable
from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.contracts import DetectionResult, Lane
from dangerous_driving.errors import BrokerError
from dangerous_driving.ledger import claims, windows
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.messaging import Topic
from dangerous_driving.messaging.consumer import Received
from dangerous_driving.settings import AssessmentSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection
from tests.assessment.test_assessor import store_away

if TYPE_CHECKING:
    from tests.assessment.conftest import Batches, Bench

pytestmark = pytest.mark.integration

LENGTH = 60


def offer(batches: Batches, *frames: DetectionResult) -> None:
    tasks = [task for frame in frames for task in tasks_from_detection(frame)]
    batches.offer([Received(Topic.ASSESSMENT_TASKS, 0, n, task.camera_id, task) for n, task in enumerate(tasks)])


async def until(bench: Bench, query: str, wanted: object) -> None:
    async with asyncio.timeout(60):
        while bench.rows(query) != wanted:
            await asyncio.sleep(0.05)


async def run_scheduler(bench: Bench, batches: Batches, query: str, wanted: object) -> None:
    """Run the realtime lane until the query gives what is wanted, then stop it cleanly."""
    stop = threading.Event()
    async with bench.assessor() as assessor:
        scheduler = Scheduler(assessor, batches, bench.settings.assessment, window_length=LENGTH)
        running = asyncio.create_task(scheduler.run(stop))
        try:
            await until(bench, query, wanted)
        finally:
            stop.set()
            await running


STATES = "SELECT state, count(*) FROM assessment_task GROUP BY 1 ORDER BY 1"


async def test_tasks_from_the_topic_are_claimed_before_the_commit_and_answered(
    bench: Bench, batches: Batches, now: datetime
) -> None:
    frame = bench.record(now, groups=4)
    seen: list[list[tuple[object, ...]]] = []
    batches.on_commit = lambda: seen.append(bench.rows("SELECT DISTINCT state = 'pending' FROM assessment_task"))
    offer(batches, frame)
    await run_scheduler(bench, batches, STATES, [("assessed", 4)])
    assert batches.commits == 1
    assert seen == [[(False,)]]
    assert {result.metadata.lane for result in bench.sent.results} == {Lane.REALTIME}


async def test_what_no_dead_letter_was_made_of_is_not_committed_and_makes_one(
    bench: Bench, batches: Batches, now: datetime
) -> None:
    with transaction(bench.engine) as connection:
        connection.execute(text("ALTER TABLE assessment_task ADD CHECK (priority < 0.99)"))
    tasks = tasks_from_detection(detection_result("sim-1", now, groups=4))
    tasks[1] = tasks[1].model_copy(update={"priority": 1.0})
    refusals = iter([BrokerError("no leader"), BrokerError("no leader"), None])

    def dead_letter() -> None:
        assert batches.commits == 0
        if error := next(refusals):
            raise error

    batches.on_set_aside = dead_letter
    batches.offer([Received(Topic.ASSESSMENT_TASKS, 0, n, task.camera_id, task) for n, task in enumerate(tasks)])
    await run_scheduler(bench, batches, STATES, [("failed", 3)])  # they have no pictures
    assert [item.message.task_id for item, _, _ in batches.set_asides] == [tasks[1].task_id]
    assert batches.commits == 1


async def test_a_task_that_would_come_too_late_waits_for_its_window(
    bench: Bench, batches: Batches, now: datetime
) -> None:
    late = bench.record(now - timedelta(seconds=30), groups=2)
    offer(batches, late)
    await run_scheduler(bench, batches, "SELECT DISTINCT state, lane, reason FROM assessment_task",
                        [("pending", "window", "deferred: too late for an alert")])  # fmt: skip
    assert batches.commits == 1
    assert bench.rows("SELECT count(*) FROM llm_call") == [(0,)]


async def test_a_task_whose_message_never_came_is_found_in_the_ledger(
    bench: Bench, batches: Batches, now: datetime
) -> None:
    bench.record(now, groups=2)
    await run_scheduler(bench, batches, STATES, [("assessed", 2)])


async def test_a_claim_that_the_scheduler_lost_track_of_is_found_again(
    bench: Bench, batches: Batches, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scheduler, "FORGOTTEN_SECONDS", 0.5)
    frame = bench.record(now, groups=3)
    stop = threading.Event()
    async with bench.assessor() as assessor:
        # as after a connection that broke just behind the commit
        tasks = tasks_from_detection(frame)
        claims.claim_tasks(
            bench.engine, Partitions(), assessor.worker, tasks, [], deferred_reason="", window_length=LENGTH
        )
        running = asyncio.create_task(
            Scheduler(assessor, batches, bench.settings.assessment, window_length=LENGTH).run(stop)
        )
        try:
            await until(bench, STATES, [("assessed", 3)])
        finally:
            stop.set()
            await running


async def test_a_stopped_scheduler_hands_back_what_it_holds(bench: Bench, batches: Batches, now: datetime) -> None:
    bench.fault("hang")
    offer(batches, bench.record(now, groups=3))
    Scheduler.SHUTDOWN_SECONDS, kept = 0.2, Scheduler.SHUTDOWN_SECONDS
    try:
        await run_scheduler(bench, batches, "SELECT count(*) FROM llm_call WHERE status = 'started'", [(3,)])
    finally:
        Scheduler.SHUTDOWN_SECONDS = kept
    assert bench.rows(STATES) == [("pending", 3)]
    assert bench.rows("SELECT DISTINCT status FROM llm_call") == [("cancelled",)]


async def test_a_window_run_answers_every_group_once_and_completes_the_content(bench: Bench) -> None:
    window = window_of("sim-1", datetime.now(UTC) - timedelta(hours=1), LENGTH)
    bench.record(window.start, groups=3, lane=Lane.WINDOW)
    bench.record(window.start + timedelta(seconds=10), groups=2)
    async with bench.assessor() as assessor:
        report = await assess_window(assessor, window, run_id="run-1", settings=bench.settings.assessment)
        again = await assess_window(assessor, window, run_id="run-2", settings=bench.settings.assessment)
    assert (report.frames, report.groups, report.assessed, report.already, report.complete) == (2, 5, 5, 0, True)
    assert sum(report.levels.values()) == 5
    assert report.latency_p95 is not None
    assert (again.assessed, again.already, again.calls) == (0, 5, 5)
    assert windows.due_windows(bench.engine, now=datetime.now(UTC), lateness=0, length=LENGTH, limit=9) == []
    assert {result.metadata.lane for result in bench.sent.results} == {Lane.WINDOW}


async def test_a_window_run_makes_tasks_that_are_missing_and_tries_failed_ones_again(bench: Bench) -> None:
    window = window_of("sim-1", datetime.now(UTC) - timedelta(hours=1), LENGTH)
    bench.record(window.start, groups=3)
    async with bench.assessor() as assessor:
        bench.rows("DELETE FROM assessment_task WHERE group_index = 1 RETURNING 1")
        bench.fault("break")
        broken = await assess_window(
            assessor, window, run_id="1", settings=AssessmentSettings(max_attempts=1, heartbeat_interval=0.2)
        )
        assert (broken.failed, broken.assessed, broken.complete) == ({"unavailable": 3}, 0, True)
        bench.fault("restore")
        await asyncio.sleep(0)
        mended = await assess_window(assessor, window, run_id="2", settings=bench.settings.assessment)
    assert (mended.failed, mended.assessed) == ({}, 3)


async def test_a_window_run_without_the_store_ends_incomplete_and_the_next_one_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = window_of("sim-1", datetime.now(UTC) - timedelta(hours=1), LENGTH)
    bench.record(window.start, groups=3)
    async with bench.assessor() as assessor:
        with monkeypatch.context() as away:
            away.setattr(bench.store, "get", store_away)
            report = await assess_window(assessor, window, run_id="1", settings=bench.settings.assessment)
        assert (report.assessed, report.pending, report.failed, report.complete) == (0, 3, {}, False)
        assert "3 of 3 groups have no answer yet" in str(report.problem)
        due = windows.due_windows(bench.engine, now=datetime.now(UTC), lateness=0, length=LENGTH, limit=9)
        assert [item.window for item in due] == [window]
        report = await assess_window(assessor, window, run_id="2", settings=bench.settings.assessment)
    assert (report.assessed, report.pending, report.failed, report.complete) == (3, 0, {}, True)


async def test_a_window_run_takes_over_what_a_dead_worker_held(bench: Bench) -> None:
    window = window_of("sim-1", datetime.now(UTC) - timedelta(hours=1), LENGTH)
    bench.record(window.start, groups=2)
    dead = claims.start_worker(bench.engine, service="test", node="test", pid=1)
    held = claims.claim_window(bench.engine, dead, window, max_attempts=1, limit=10)
    assert len(held) == 2
    async with bench.assessor() as assessor:
        # it waits for the dead worker's time-out, then takes its tasks
        report = await assess_window(assessor, window, run_id="1", settings=bench.settings.assessment)
    assert (report.assessed, report.complete) == (2, True)


async def test_a_window_without_frames_succeeds_and_says_so(bench: Bench) -> None:
    window = Window("sim-9", datetime(2026, 1, 1, tzinfo=UTC), LENGTH)
    async with bench.assessor() as assessor:
        report = await assess_window(assessor, window, run_id="1", settings=bench.settings.assessment)
    assert (report.frames, report.groups, report.complete) == (0, 0, True)


def test_open_and_future_windows_are_refused_with_the_reason() -> None:
    now = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)
    window = window_of("sim-1", now, LENGTH)
    assert "open until" in (is_assessable(window, now=now) or "")
    future = window_of("sim-1", now + timedelta(hours=1), LENGTH)
    assert "future" in (is_assessable(future, now=now) or "")
    assert is_assessable(window, now=window.end + timedelta(seconds=5), lateness=5) is None


async def test_an_answer_that_is_gone_is_asked_for_again(bench: Bench) -> None:
    window = window_of("sim-1", datetime.now(UTC) - timedelta(hours=1), LENGTH)
    bench.record(window.start, groups=2)
    async with bench.assessor() as assessor:
        await assess_window(assessor, window, run_id="1", settings=bench.settings.assessment)
        bench.rows("DELETE FROM risk_assessment WHERE group_index = 1 RETURNING 1")
        assert not windows.window_coverage(bench.engine, window).complete
        report = await assess_window(assessor, window, run_id="2", settings=bench.settings.assessment)
    assert (report.assessed, report.complete) == (1, True)
