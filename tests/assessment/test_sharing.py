"""Which groups share a call, and what of it is each one's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.admission import ClaimQueue
from dangerous_driving.assessment.llm import Reply
from dangerous_driving.assessment.sharing import by_frame, shares
from dangerous_driving.contracts import LIVE_RUN, AssessmentTask
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def tasks_of(camera_id: str, age: int, groups: int) -> list[AssessmentTask]:
    return tasks_from_detection(detection_result(camera_id, NOW - timedelta(seconds=age), groups=groups))


@st.composite
def claims(draw: st.DrawFn) -> list[Claim]:
    """Some groups of some frames of three cameras, with priorities of their own, in any order."""
    frames = draw(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 4)), unique=True, max_size=6))
    tasks = [task for camera, age in frames for task in tasks_of(camera, age, draw(st.integers(1, 5)))]
    ranked = [task.model_copy(update={"priority": draw(st.floats(0, 1))}) for task in tasks]
    return [Claim(task, number, 1) for number, task in enumerate(draw(st.permutations(ranked)))]


def frames_of(part: list[Claim]) -> set[str]:
    return {claim.task.request_id for claim in part}


@given(held=claims(), limit=st.integers(1, 5))
def test_parts_are_of_one_frame_within_the_limit_and_none_is_lost(held: list[Claim], limit: int) -> None:
    parts = by_frame(held, limit)
    assert sorted(claim.token for part in parts for claim in part) == sorted(claim.token for claim in held)
    for part in parts:
        assert len(part) <= limit
        assert len(frames_of(part)) == 1
        assert part[0].task.priority == max(claim.task.priority for claim in part)
    # no more calls than the limit makes necessary
    for frame in frames_of(held):
        groups = sum(claim.task.request_id == frame for claim in held)
        assert sum(frames_of(part) == {frame} for part in parts) == -(-groups // limit)


def test_claims_of_a_backfill_stay_alone() -> None:
    live, other, *again = (Claim(task, n, 1) for n, task in enumerate(tasks_of("a", 0, 4)))
    backfill = [Claim(claim.task, claim.token, 1, run="better") for claim in again]
    assert {claim.run for claim in (live, other)} == {LIVE_RUN}
    assert [len(part) for part in by_frame([live, *backfill, other], 4)] == [2, 1, 1]


@given(tokens=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), count=st.integers(1, 8))
def test_the_shares_of_a_reply_add_up_to_it_and_are_as_even_as_whole_tokens_allow(
    tokens: tuple[int, int], count: int
) -> None:
    reply = Reply("text", *tokens, 0.4, 1.2, "m")
    parts = shares(reply, count)
    for name, total in (("input_tokens", tokens[0]), ("output_tokens", tokens[1])):
        values = [getattr(part, name) for part in parts]
        assert (len(values), sum(values)) == (count, total)
        assert max(values) - min(values) <= 1
    assert {(part.text, part.latency) for part in parts} == {("text", 1.2)}


@given(held=claims(), limit=st.integers(1, 5), waits=st.lists(st.floats(0, 1), min_size=40, max_size=40))
def test_only_what_has_waited_shares_its_call_and_with_the_rest_of_its_frame(
    held: list[Claim], limit: int, waits: list[float]
) -> None:
    clock = [0.0]
    queue, since = ClaimQueue(lambda: clock[0]), {}
    for claim, wait in zip(held, waits, strict=False):
        clock[0] += wait
        queue.push(claim)
        since[claim.token] = clock[0]
    out: list[int] = []
    while len(queue):
        left = {claim.token for claim in held} - set(out)
        calls = queue.pop_call(limit, after=2.0)
        first = calls[0]
        frame = [claim for claim in held if claim.token in left and claim.task.request_id == first.task.request_id]
        waited = clock[0] - since[first.token] >= 2.0
        assert len(calls) == (min(limit, len(frame)) if waited else 1)
        assert len(frames_of(calls)) == 1
        others = [claim.task.priority for claim in calls[1:]]
        assert others == sorted(others, reverse=True)
        out += [claim.token for claim in calls]
    assert sorted(out) == sorted(claim.token for claim in held)


def test_a_shared_call_is_one_turn_of_its_camera() -> None:
    queue = ClaimQueue(lambda: 0.0)
    for number, task in enumerate((*tasks_of("a", 0, 3), *tasks_of("b", 0, 2), *tasks_of("b", 1, 2))):
        queue.push(Claim(task.model_copy(update={"priority": 0.5}), number, 1))
    order = [queue.pop_call(3, after=0.0)[0].task.camera_id for _ in range(3)]
    assert sorted(order[:2]) == ["a", "b"]
    assert order[2] == "b"
