"""A worker that dies, or is taken for dead, at whatever point: no task stays behind, and none is answered twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from dangerous_driving.assessment.assessor import Assessor
from dangerous_driving.assessment.backfill_run import backfill_plan, backfill_windows
from dangerous_driving.assessment.scheduler import Scheduler
from dangerous_driving.assessment.window_run import WindowReport, assess_window, assess_windows, by_living_workers
from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.contracts import Lane
from dangerous_driving.ledger import backfills, claims
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.settings import AssessmentSettings
from tests.assessment.conftest import LENGTH
from tests.assessment.test_lanes import offer

if TYPE_CHECKING:
    from tests.assessment.conftest import Batches, Bench

pytestmark = pytest.mark.integration

STATES = "SELECT state, count(*) FROM assessment_task GROUP BY 1 ORDER BY 1"


@pytest.fixture
def bench(bench: Bench) -> Bench:
    """Where a dead worker is found out fast."""
    assessment = AssessmentSettings(heartbeat_interval=0.1, worker_timeout=0.6)
    bench.settings = bench.settings.model_copy(update={"assessment": assessment})
    return bench


@pytest.fixture
def window(bench: Bench) -> Window:
    """A closed window with three groups."""
    found = window_of("sim-1", datetime.now(UTC) - timedelta(hours=1), LENGTH)
    bench.record(found.start, groups=3, lane=Lane.WINDOW)
    return found


async def test_a_window_run_takes_up_claims_that_it_lost_track_of(bench: Bench, window: Window) -> None:
    async with bench.assessor() as assessor, asyncio.timeout(60):
        # as after a connection that broke just behind the commit
        lost = claims.claim_window(bench.engine, assessor.worker, window, max_attempts=1, limit=2)
        assert len(lost) == 2
        report = await assess_window(assessor, window, run_id="1", settings=bench.settings.assessment)
    assert (report.assessed, report.complete) == (3, True)


async def test_a_backfill_takes_up_claims_that_it_lost_track_of(bench: Bench, window: Window) -> None:
    plan = backfill_plan(bench.settings, run="better", prompt_version=None, model=None)
    async with bench.assessor() as assessor, asyncio.timeout(60):
        await assess_window(assessor, window, run_id="1", settings=bench.settings.assessment)
        lost = backfills.claim_backfill(bench.engine, "better", assessor.worker, window, max_attempts=1, limit=2)
        assert len(lost) == 2
        [report] = await backfill_windows(assessor, [window], plan, settings=bench.settings.assessment)
    assert (report.assessed, report.complete) == (3, True)


async def test_what_another_living_worker_holds_is_left_to_it(bench: Bench, window: Window) -> None:
    other = claims.start_worker(bench.engine, service="test", node="test", pid=1)
    mine = claims.start_worker(bench.engine, service="test", node="test", pid=2)
    held = claims.claim_window(bench.engine, other, window, max_attempts=1, limit=2)
    assert len(held) == 2
    assert len(claims.claim_window(bench.engine, mine, window, max_attempts=1, limit=9)) == 1
    assert len(backfills.claim_backfill(bench.engine, "b", other, window, max_attempts=1, limit=2)) == 2
    assert len(backfills.claim_backfill(bench.engine, "b", mine, window, max_attempts=1, limit=9)) == 1


async def test_a_run_whose_worker_is_taken_for_dead_goes_on_as_a_new_one(bench: Bench, window: Window) -> None:
    bench.fault("hang")
    workers: list[int] = []

    async def work(assessor: Assessor, windows: Sequence[Window]) -> list[WindowReport]:
        workers.append(assessor.worker)
        if len(workers) == 1:
            giving_up = asyncio.create_task(give_up(assessor))
            reports = await assess_windows(assessor, windows, run_id="1", settings=bench.settings.assessment)
            await giving_up
            assert assessor.given_up
            return reports
        return await assess_windows(assessor, windows, run_id="1", settings=bench.settings.assessment)

    async def give_up(assessor: Assessor) -> None:
        while not bench.rows("SELECT 1 FROM llm_call WHERE status = 'started'"):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(claims.stop_worker, bench.engine, assessor.worker)
        bench.fault("restore")
        while not assessor.given_up:
            await asyncio.sleep(0.01)

    bench.settings = bench.settings.model_copy(update={"llm": bench.settings.llm.model_copy(update={"timeout": 1.0})})
    async with asyncio.timeout(60):
        [report] = await by_living_workers(bench.assessor, [window], work)
    assert len(set(workers)) == len(workers) == 2
    assert (report.complete, report.problem) == (True, None)
    assert bench.rows(STATES) == [("assessed", 3)]


class GoneError(OperationalError):
    """The database, as a process sees it that is dead already."""

    def __init__(self) -> None:
        super().__init__("", None, Exception("gone"))


class Life:
    """Lets a process' transactions through up to the n-th commit, which is its last: nothing of it reaches the ledger later.

    Args:
        last: number of the commit.
        reached: whether it still takes effect (the process dies just behind it) or not (just before).
    """

    def __init__(self, last: int, *, reached: bool) -> None:
        self.commits, self.ended = 0, False
        self._last, self._reached = last, reached
        self._lock = threading.Lock()

    def begins(self, _: Connection) -> None:
        if self.ended:
            raise GoneError

    def commits_now(self, connection: Connection) -> None:
        with self._lock:
            if self.ended:
                raise GoneError
            self.commits += 1
            if self.commits < self._last:
                return
            self.ended = True
            if self._reached:
                connection.connection.commit()
            raise GoneError

    @contextmanager
    def of(self, engine: Engine) -> Iterator[None]:
        event.listen(engine, "begin", self.begins)
        event.listen(engine, "commit", self.commits_now)
        try:
            yield
        finally:
            event.remove(engine, "begin", self.begins)
            event.remove(engine, "commit", self.commits_now)


async def live_and_die(bench: Bench, batches: Batches, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler's process up to its last commit. It signs nothing off."""
    stop, kept = threading.Event(), bench.engine
    mortal = open_engine(bench.settings.database, application="mortal")
    monkeypatch.setattr(Scheduler, "SHUTDOWN_SECONDS", 0.0)
    # the heart has a connection of its own: it must stop with the rest, and not say good-bye
    monkeypatch.setattr(claims, "stop_worker", lambda *_: None)
    beat = claims.heartbeat
    monkeypatch.setattr(claims, "heartbeat", lambda engine, worker: life.ended or beat(engine, worker))
    sweep = claims.sweep
    monkeypatch.setattr(claims, "sweep", lambda *args, **how: claims.Swept() if life.ended else sweep(*args, **how))
    bench.engine = mortal
    try:
        with life.of(mortal):
            async with bench.assessor() as assessor:
                scheduler = Scheduler(assessor, batches, bench.settings.assessment, window_length=LENGTH)
                running = asyncio.create_task(scheduler.run(stop))
                done = asyncio.get_running_loop().time() + 4.0
                while not life.ended and asyncio.get_running_loop().time() < done:
                    await asyncio.sleep(0.02)
                    states = dict(kept_rows(kept, STATES))
                    if set(states) == {"assessed"} and life.commits > 0:
                        break  # it had less to do than that
                stop.set()
                await asyncio.wait([running])
    finally:
        bench.engine = kept
        mortal.dispose()
        monkeypatch.undo()


def kept_rows(engine: Engine, query: str) -> list[Any]:
    from sqlalchemy import text

    with engine.connect() as connection:
        return list(connection.execute(text(query)).all())


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("last", [3, 6, 9])  # the first two read the prompt in use and register the worker
async def test_whenever_a_scheduler_dies_the_lanes_that_live_bring_its_tasks_to_an_end(
    bench: Bench, batches: Batches, now: datetime, monkeypatch: pytest.MonkeyPatch, last: int, reached: bool
) -> None:
    frame = bench.record(now, groups=3)
    offer(batches, frame)
    await live_and_die(bench, batches, Life(last, reached=reached), monkeypatch)
    window = window_of("sim-1", now, LENGTH)
    async with bench.assessor() as assessor, asyncio.timeout(60):
        report = await assess_window(assessor, window, run_id="1", settings=bench.settings.assessment)
        assert report.complete
        while bench.rows("SELECT 1 FROM llm_call WHERE status = 'started'"):
            await asyncio.sleep(0.05)  # marked as lost by a sweep
    assert bench.rows(STATES) == [("assessed", 3)]
    assert bench.rows("SELECT count(*) FROM risk_assessment WHERE is_current") == [(3,)]
    # a call that was answered is paid for once
    assert bench.rows("SELECT task_id FROM llm_call WHERE status = 'ok' GROUP BY 1 HAVING count(*) > 1") == []
