"""The realtime lane takes the most urgent tasks first, and loses none of the others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.admission import ClaimQueue, admit
from dangerous_driving.contracts import AssessmentTask
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def task(priority: float, age: float) -> AssessmentTask:
    [made] = tasks_from_detection(detection_result("sim-1", NOW - timedelta(seconds=age), groups=1, priority=priority))
    return made


TASKS = st.lists(
    st.builds(task, priority=st.floats(0, 1), age=st.floats(0, 30).map(lambda age: round(age, 3))),
    max_size=30,
    unique_by=lambda made: made.task_id,
)


@given(tasks=TASKS, room=st.integers(-2, 20))
def test_no_task_is_lost_and_none_is_taken_twice(tasks: list[AssessmentTask], room: int) -> None:
    admission = admit(tasks, now=NOW, deadline=10, room=room)
    parts = [*admission.admitted, *admission.too_late, *admission.no_room]
    assert sorted(item.task_id for item in parts) == sorted(item.task_id for item in tasks)
    assert len(admission.admitted) <= max(room, 0)


@given(tasks=TASKS, room=st.integers(0, 20))
def test_what_is_left_for_want_of_room_is_never_more_urgent(tasks: list[AssessmentTask], room: int) -> None:
    admission = admit(tasks, now=NOW, deadline=10, room=room)
    if admission.admitted and admission.no_room:
        assert min(item.priority for item in admission.admitted) >= max(item.priority for item in admission.no_room)


def test_what_would_come_too_late_is_not_admitted() -> None:
    fresh, late = task(0.1, age=9), task(0.9, age=11)
    admission = admit([late, fresh], now=NOW, deadline=10, room=5)
    assert (admission.admitted, admission.too_late) == ((fresh,), (late,))


@given(tasks=TASKS)
def test_the_queue_hands_out_by_priority_then_freshness(tasks: list[AssessmentTask]) -> None:
    queue = ClaimQueue()
    for number, item in enumerate(tasks):
        queue.push(Claim(item, token=number, worker=1))
    out = [queue.pop().task for _ in range(len(queue))]
    assert out == sorted(tasks, key=lambda item: (-item.priority, -item.timestamp.timestamp()))
    with pytest.raises(IndexError):
        queue.pop()


@given(tasks=TASKS)
def test_late_claims_are_taken_out_of_the_queue_and_the_rest_keeps_its_order(tasks: list[AssessmentTask]) -> None:
    queue = ClaimQueue()
    for number, item in enumerate(tasks):
        queue.push(Claim(item, token=number, worker=1))
    limit = NOW - timedelta(seconds=10)
    late = queue.take_captured_before(limit)
    assert all(claim.task.timestamp < limit for claim in late)
    rest = [queue.pop().task for _ in range(len(queue))]
    assert all(item.timestamp >= limit for item in rest)
    assert len(rest) + len(late) == len(tasks)
    assert [item.priority for item in rest] == sorted((item.priority for item in rest), reverse=True)
