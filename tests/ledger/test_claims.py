"""A task is assessed once, whoever comes first, and a dead worker's tasks go back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from dangerous_driving.assessment.windows import window_of
from dangerous_driving.contracts import AssessmentTask, Lane
from dangerous_driving.errors import StaleClaimError, StatementRefusedError, UnfitLedgerError
from dangerous_driving.ledger import assessments, claims, frames, windows
from dangerous_driving.ledger.assessments import AssessmentRecord, CallOutcome
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.messaging.refusal import without_refused
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

pytestmark = pytest.mark.integration

NOW = datetime.now(UTC)
FRESH = NOW - timedelta(seconds=10)
LENGTH = 60


def tasks(count: int = 3, *, camera_id: str = "sim-1", at: datetime = NOW) -> list[AssessmentTask]:
    return tasks_from_detection(detection_result(camera_id, at, groups=count))


def worker(ledger: Engine) -> int:
    return claims.start_worker(ledger, service="test", node="here", pid=1)


def claim(
    ledger: Engine, by: int, admitted: list[AssessmentTask], deferred: list[AssessmentTask] | None = None
) -> list[Claim]:
    return claims.claim_tasks(
        ledger, Partitions(), by, admitted, deferred or [], deferred_reason="deferred: too late", window_length=LENGTH
    )


def answer(held: Claim, call_id: str, *, level: str = "none") -> AssessmentRecord:
    task = held.task
    return AssessmentRecord(
        captured_at=task.timestamp, task_id=task.task_id, run="live", message_id=task.request_id,
        camera_id=task.camera_id, group_index=task.group_index, group_bbox=list(task.group_metadata.bbox),
        risk_level=level, confidence=0.9, risk_types=[], description="", trigger_object_ids=[],
        danger_object_count=0, lane="realtime", prompt_version="v1", model="simulated-vl", key_hash="key_hash_1",
        call_id=call_id, retry_count=0, first_token_latency=0.4, latency=1.2, input_tokens=10, output_tokens=5,
        cost=0.0, reused_from=None, raw_answer="{}", node="here", assessed_at=datetime.now(UTC),
    )  # fmt: skip


def start_call(ledger: Engine, held: Claim) -> str:
    return assessments.start_call(
        ledger, held, run="live", lane="realtime", key_hash="key_hash_1", model="simulated-vl", prompt_version="v1"
    )


def states(ledger: Engine) -> list[tuple[str, str, str]]:
    with transaction(ledger) as connection:
        rows = connection.execute(text("SELECT state, lane, reason FROM assessment_task ORDER BY task_id"))
        return [(row.state, row.lane, row.reason) for row in rows]


def test_a_scheduler_may_claim_before_the_tasks_service_wrote_the_task(ledger: Engine) -> None:
    result = detection_result("sim-1", NOW, groups=2)
    derived = tasks_from_detection(result)
    assert len(claim(ledger, worker(ledger), derived)) == 2
    frames.record_detections(ledger, Partitions(), [result], derived, window_length=LENGTH)
    assert [state for state, _, _ in states(ledger)] == ["claimed", "claimed"]


def test_two_schedulers_never_hold_the_same_task(ledger: Engine) -> None:
    derived = tasks(40)
    held: list[Claim] = []
    ready = threading.Barrier(2)

    def take(by: int) -> None:
        ready.wait()
        held.extend(claim(ledger, by, derived))

    threads = [threading.Thread(target=take, args=(worker(ledger),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item.task.task_id for item in held) == sorted(task.task_id for task in derived)


def test_deferred_tasks_stay_pending_for_the_window_lane_with_the_reason(ledger: Engine) -> None:
    claim(ledger, worker(ledger), [], tasks(1))
    assert states(ledger) == [("pending", "window", "deferred: too late")]


def test_a_late_answer_under_an_old_token_is_refused_and_its_call_kept(ledger: Engine) -> None:
    slow, quick = worker(ledger), worker(ledger)
    [old] = claim(ledger, slow, tasks(1))
    old_call = start_call(ledger, old)
    claims.stop_worker(ledger, slow)
    swept = claims.sweep(ledger, worker_timeout=60, captured_after=FRESH)
    assert (swept.to_realtime, swept.calls_lost) == (1, 1)
    with transaction(ledger) as connection:
        assert connection.execute(text("SELECT status FROM llm_call")).scalars().all() == ["lost"]
    [new] = claims.claim_pending_realtime(ledger, quick, captured_after=FRESH, limit=10)
    with pytest.raises(StaleClaimError):  # also while the new claim is only held
        assessments.complete(ledger, old, answer(old, old_call, level="low"), CallOutcome("ok"))
    assert not assessments.fail(ledger, old, code="timeout", message="no answer within 30 s")
    assessments.complete(ledger, new, answer(new, start_call(ledger, new), level="high"), CallOutcome("ok"))

    with pytest.raises(StaleClaimError):
        assessments.complete(ledger, old, answer(old, old_call, level="low"), CallOutcome("ok"))
    with pytest.raises(StaleClaimError):
        start_call(ledger, old)
    with transaction(ledger) as connection:
        assert connection.execute(text("SELECT risk_level FROM risk_assessment WHERE is_current")).scalars().all() == [
            "high"
        ]
        calls = connection.execute(text("SELECT call_number, status FROM llm_call ORDER BY call_number")).all()
    assert [tuple(call) for call in calls] == [(1, "ok"), (2, "ok")]


@pytest.mark.parametrize("admitted_is_older", [False, True])
def test_admitted_and_deferred_tasks_are_written_in_the_order_that_the_tasks_service_writes_them(
    ledger: Engine, admitted_is_older: bool
) -> None:
    # the Flink job has sent them, and the tasks service writes the same rows at the same time
    by = worker(ledger)
    older, newer = (tasks(1, at=NOW - timedelta(seconds=age)) for age in (100, 1))
    admitted, deferred = (older, newer) if admitted_is_older else (newer, older)
    with ThreadPoolExecutor(1) as pool:
        with transaction(ledger) as service:
            frames.insert_tasks(service, older, lane=Lane.REALTIME, reason="recorded")
            claiming = pool.submit(claim, ledger, by, admitted, deferred)
            while not somebody_waits_for_a_lock(ledger):
                assert not claiming.done()
            # had the other one been written first, each would now wait for the other
            frames.insert_tasks(service, newer, lane=Lane.REALTIME, reason="recorded")
        assert [held.task for held in claiming.result(30)] == admitted
    assert {(state, lane) for state, lane, _ in states(ledger)} == {("claimed", "realtime"), ("pending", "window")}


def somebody_waits_for_a_lock(ledger: Engine) -> bool:
    with transaction(ledger) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(connection.scalar(text(query)))


def test_a_task_that_is_deferred_after_it_was_claimed_stays_with_its_worker(ledger: Engine) -> None:
    derived = tasks(2)
    [held] = claim(ledger, worker(ledger), derived[:1], derived[1:])
    assert claim(ledger, worker(ledger), [], derived) == []
    assert sorted(state for state, _, _ in states(ledger)) == ["claimed", "pending"]
    assert claims.release(ledger, [held], lane=Lane.REALTIME, reason="handed back") == 1


def test_a_dead_worker_is_swept_a_living_one_is_not(ledger: Engine) -> None:
    dead, living = worker(ledger), worker(ledger)
    claim(ledger, dead, tasks(1))
    claim(ledger, living, tasks(1, camera_id="sim-2"))
    with transaction(ledger) as connection:
        connection.execute(
            text("UPDATE worker SET heartbeat_at = now() - interval '1 minute' WHERE id = :id"), {"id": dead}
        )
    assert claims.heartbeat(ledger, living)
    swept = claims.sweep(ledger, worker_timeout=10, captured_after=FRESH)
    assert (swept.workers, swept.to_realtime, swept.to_window) == (1, 1, 0)
    assert sorted(state for state, _, _ in states(ledger)) == ["claimed", "pending"]
    assert not claims.heartbeat(ledger, dead)


def test_what_is_no_longer_fresh_goes_back_to_the_window_lane(ledger: Engine) -> None:
    dead = worker(ledger)
    claim(ledger, dead, tasks(1))
    claims.stop_worker(ledger, dead)
    claims.sweep(ledger, worker_timeout=10, captured_after=NOW + timedelta(seconds=1))
    [(state, lane, reason)] = states(ledger)
    assert (state, lane) == ("pending", "window")
    assert "has gone" in reason


def test_a_window_run_takes_what_has_no_answer_most_urgent_first(ledger: Engine) -> None:
    window = window_of("sim-1", NOW, LENGTH)
    low = tasks_from_detection(detection_result("sim-1", window.start, groups=1, priority=0.1))
    high = tasks_from_detection(detection_result("sim-1", window.start + timedelta(seconds=1), groups=1, priority=0.9))
    outside = tasks_from_detection(detection_result("sim-1", window.end, groups=1))
    by = worker(ledger)
    claim(ledger, by, [], [*low, *high, *outside])
    held = claims.claim_window(ledger, by, window, max_attempts=3, limit=10)
    assert [item.task.priority for item in held] == [0.9, 0.1]
    assert held[0].task == high[0]

    assert assessments.fail(ledger, held[0], code="timeout", message="no answer within 30 s")
    other = worker(ledger)
    [again] = claims.claim_window(ledger, other, window, max_attempts=2, limit=10)
    assert again.attempts == 1
    assert assessments.fail(ledger, again, code="timeout", message="no answer within 30 s")
    assert claims.claim_window(ledger, other, window, max_attempts=2, limit=10) == []


def test_released_tasks_wait_again_but_not_those_another_worker_holds(ledger: Engine) -> None:
    first, second = worker(ledger), worker(ledger)
    [held] = claim(ledger, first, tasks(1))
    assert claims.release(ledger, [held], lane=Lane.REALTIME, reason="handed back") == 1
    [taken] = claims.claim_pending_realtime(ledger, second, captured_after=FRESH, limit=10)
    assert claims.release(ledger, [held], lane=Lane.REALTIME, reason="handed back") == 0
    assert taken.token > held.token


def test_a_replayed_frame_changes_nothing_and_new_content_reopens_its_window(ledger: Engine) -> None:
    window = window_of("sim-1", NOW - timedelta(hours=1), LENGTH)
    result = detection_result("sim-1", window.start, groups=2)
    late = detection_result("sim-1", window.start + timedelta(seconds=5), groups=1)

    def record(item: object) -> int:
        assert item is result or item is late
        chosen = result if item is result else late
        return frames.record_detections(
            ledger, Partitions(), [chosen], tasks_from_detection(chosen), window_length=LENGTH
        )

    def due() -> list[int]:
        return [item.version for item in windows.due_windows(ledger, now=NOW, lateness=10, length=LENGTH, limit=10)]

    assert record(result) == 1
    assert due() == [1]
    assert record(result) == 0
    assert due() == [1]
    assert windows.start_window(ledger, window, "run") == 1
    windows.complete_window(ledger, window, 1)
    assert due() == []
    assert record(late) == 1
    assert due() == [2]


def test_coverage_counts_groups_without_a_task_and_tasks_without_an_answer(ledger: Engine) -> None:
    window = window_of("sim-1", NOW, LENGTH)
    result = detection_result("sim-1", window.start, groups=3)
    derived = tasks_from_detection(result)
    frames.record_detections(ledger, Partitions(), [result], derived[:2], window_length=LENGTH)
    coverage = windows.window_coverage(ledger, window)
    assert (coverage.frames, coverage.groups, coverage.tasks, coverage.missing, coverage.pending) == (1, 3, 2, 1, 2)
    assert not coverage.complete

    by = worker(ledger)
    for held in claims.claim_window(ledger, by, window, max_attempts=1, limit=1):
        assessments.complete(ledger, held, answer(held, start_call(ledger, held)), CallOutcome("ok"))
    with transaction(ledger) as connection:
        connection.execute(text("DELETE FROM risk_assessment"))
    assert windows.window_coverage(ledger, window).unanswered == 1


def test_a_window_of_thousands_of_groups_is_written(ledger: Engine) -> None:
    many = [
        task
        for second in range(6)
        for task in tasks_from_detection(detection_result("sim-1", NOW + timedelta(seconds=second), groups=1000))
    ]
    with transaction(ledger) as connection:
        assert frames.insert_tasks(connection, many, lane=Lane.WINDOW, reason="made by a test")
    assert claims.count_states(ledger) == {"pending": 6000}


def test_what_the_database_cannot_hold_is_not_worth_another_try(ledger: Engine) -> None:
    with pytest.raises(StatementRefusedError) as caught, transaction(ledger) as connection:
        connection.execute(text("INSERT INTO camera (id, kind) VALUES ('a', 'no such kind')"))
    assert not caught.value.retriable


@pytest.mark.parametrize(
    "statement", ["SELECT no_such_column FROM camera", "SELECT * FROM no_such_table", "CREATE ROLE x"]
)
def test_no_message_is_to_blame_for_a_database_that_does_not_fit(ledger: Engine, statement: str) -> None:
    def refuse(part: Sequence[int]) -> None:
        with transaction(ledger) as connection:
            connection.execute(text("CREATE ROLE beginner"))
            connection.execute(text("SET LOCAL ROLE beginner"))
            connection.execute(text(statement))

    with pytest.raises(UnfitLedgerError, match="db migrate") as caught:
        without_refused([1, 2], refuse, lambda item, error: pytest.fail("a message was set aside"))
    assert not caught.value.retriable


def test_unpublished_answers_are_found_until_they_are_on_the_topic(ledger: Engine) -> None:
    by = worker(ledger)
    [held] = claim(ledger, by, tasks(1))
    record = answer(held, start_call(ledger, held))
    assessments.complete(ledger, held, record, CallOutcome("ok"))
    found = assessments.unpublished(ledger, older_than=0, limit=10)
    assert found == [record]
    assessments.mark_published(ledger, found)
    assert assessments.unpublished(ledger, older_than=0, limit=10) == []
