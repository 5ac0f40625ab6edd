"""The same content is never run twice, a failed one is run again after a rest, and the queue stays bounded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.windows import Window
from dangerous_driving.defs.launches import KnownRun, RunState, plan, rest, run_key
from dangerous_driving.ledger.windows import MAX_ATTEMPTS, DueWindow

NOW = datetime(2025, 10, 20, 10, 30, tzinfo=UTC)
DELAY = 30.0


def due(number: int, *, version: int = 1, attempts: int = 0) -> DueWindow:
    return DueWindow(Window(f"cam-{number}", NOW - timedelta(hours=1), 60), version, attempts)


def failed(*, ago: float) -> KnownRun:
    return KnownRun(RunState.FAILED, NOW - timedelta(seconds=ago))


def test_a_window_without_a_run_is_launched() -> None:
    assert plan([due(1)], {}, now=NOW, retry_delay=DELAY, room=5).start == [due(1)]


def test_the_key_changes_with_content_and_attempt_only() -> None:
    assert run_key(due(1)) == run_key(due(1)) == "cam-1|2025-10-20-09:30@1.0"
    assert len({run_key(due(1)), run_key(due(1, version=2)), run_key(due(1, attempts=1)), run_key(due(2))}) == 4


def test_a_window_with_a_run_under_way_or_just_done_is_left_alone() -> None:
    states = [RunState.WAITING, RunState.RUNNING, RunState.SUCCEEDED]
    windows = [due(number) for number in range(3)]
    runs = {run_key(window): KnownRun(state, NOW) for window, state in zip(windows, states, strict=True)}
    launches = plan(windows, runs, now=NOW, retry_delay=DELAY, room=5)
    assert (launches.start, launches.failed, launches.busy) == ([], [], 2)


def test_a_failed_window_rests_then_runs_again_under_another_key() -> None:
    key = run_key(due(1))
    resting = plan([due(1)], {key: failed(ago=DELAY - 1)}, now=NOW, retry_delay=DELAY, room=5)
    assert (resting.start, resting.resting) == ([], 1)
    again = plan([due(1)], {key: failed(ago=DELAY + 1)}, now=NOW, retry_delay=DELAY, room=5)
    assert again.failed == [due(1)]
    assert [run_key(window) for window in again.start] == [run_key(due(1, attempts=1))]


def test_each_rest_is_longer_than_the_one_before() -> None:
    rests = [rest(attempts, DELAY) for attempts in range(MAX_ATTEMPTS)]
    assert rests == sorted(set(rests))
    assert rests[0] == timedelta(seconds=DELAY)


def test_a_run_that_never_got_an_end_is_not_waited_for() -> None:
    launches = plan([due(1)], {run_key(due(1)): KnownRun(RunState.FAILED)}, now=NOW, retry_delay=DELAY, room=5)
    assert launches.start == [due(1, attempts=1)]


def test_the_last_attempt_is_counted_and_not_repeated() -> None:
    last = due(1, attempts=MAX_ATTEMPTS - 1)
    launches = plan([last], {run_key(last): failed(ago=1e6)}, now=NOW, retry_delay=DELAY, room=5)
    assert (launches.start, launches.failed, launches.given_up) == ([], [last], 1)


def test_a_failed_window_without_room_keeps_its_attempt() -> None:
    launches = plan([due(1)], {run_key(due(1)): failed(ago=1e6)}, now=NOW, retry_delay=DELAY, room=0)
    assert (launches.start, launches.failed, launches.left) == ([], [], 1)


@given(
    states=st.lists(st.sampled_from([None, *RunState]), max_size=30),
    room=st.integers(min_value=0, max_value=10),
)
def test_never_more_in_the_queue_than_there_is_room_and_nobody_is_skipped(
    states: list[RunState | None], room: int
) -> None:
    windows = [due(number) for number in range(len(states))]
    runs = {
        run_key(window): KnownRun(state, NOW - timedelta(days=1))
        for window, state in zip(windows, states, strict=True)
        if state
    }
    launches = plan(windows, runs, now=NOW, retry_delay=DELAY, room=room)
    waiting = states.count(RunState.WAITING)
    assert len(launches.start) == min(max(room - waiting, 0), states.count(None) + states.count(RunState.FAILED))
    started = {window.window for window in launches.start}
    open_ones = [
        window.window for window, state in zip(windows, states, strict=True) if state in {None, RunState.FAILED}
    ]
    assert started == set(open_ones[: len(started)])  # the oldest first
    assert {window.window for window in launches.failed} <= started
