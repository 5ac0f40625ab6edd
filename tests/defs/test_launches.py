"""The same content is never run twice, a failed one is run again after a rest, and the queue stays bounded."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.windows import Window
from dangerous_driving.defs.launches import KnownRun, RunState, batches, plan, rest, run_key
from dangerous_driving.ledger.windows import MAX_ATTEMPTS, DueWindow

NOW = datetime(2025, 10, 20, 10, 30, tzinfo=UTC)
DELAY = 30.0


def due(number: int, *, version: int = 1, attempts: int = 0, run: str | None = None, launched: int = 1) -> DueWindow:
    return DueWindow(Window(f"cam-{number}", NOW - timedelta(hours=1), 60), version, attempts, run, launched)


def failed(*, ago: float) -> KnownRun:
    return KnownRun(RunState.FAILED, NOW - timedelta(seconds=ago))


def test_a_window_without_a_run_is_launched() -> None:
    assert plan([due(1)], {}, now=NOW, retry_delay=DELAY, room=5).start == [due(1)]


def test_the_key_changes_with_contents_and_attempts_only() -> None:
    assert run_key([due(1)]) == "cam-1|2025-10-20-09:30/60@1.0"
    assert run_key([due(1), due(2)]) == run_key([due(2), due(1)])
    others = [
        [due(1)],
        [due(1, version=2)],
        [due(1, attempts=1)],
        [replace(due(1), window=replace(due(1).window, length=300))],
        [due(2)],
        [due(1), due(2)],
        [due(1), due(2, version=2)],
    ]
    assert len({run_key(batch) for batch in others}) == len(others)


def test_a_window_with_a_run_under_way_or_just_done_is_left_alone() -> None:
    states = [RunState.WAITING, RunState.RUNNING, RunState.SUCCEEDED]
    windows = [due(number, run=f"run-{number}") for number in range(3)]
    runs = {f"run-{number}": KnownRun(state, NOW) for number, state in enumerate(states)}
    launches = plan(windows, runs, now=NOW, retry_delay=DELAY, room=5)
    assert (launches.start, launches.failed, launches.busy, launches.resting) == ([], [], 2, 1)


def test_a_window_that_a_success_left_incomplete_is_tried_again() -> None:
    window = due(1, run="r")
    runs = {"r": KnownRun(RunState.SUCCEEDED, NOW - timedelta(minutes=5))}
    assert plan([window], runs, now=NOW, retry_delay=DELAY, room=5).start == [replace(window, attempts=1)]


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED])
def test_content_that_came_after_the_launch_is_launched_at_once_and_is_no_attempt(state: RunState) -> None:
    window = due(1, version=2, run="r", launched=1)
    assert plan([window], {"r": KnownRun(state, NOW)}, now=NOW, retry_delay=DELAY, room=5).start == [window]


def test_a_run_that_was_noted_and_never_made_counts_as_none() -> None:
    window = due(1, run="lost")
    assert plan([window], {}, now=NOW, retry_delay=DELAY, room=5).start == [window]


def test_a_failed_window_rests_then_runs_again_under_another_key() -> None:
    window = due(1, run="r")
    resting = plan([window], {"r": failed(ago=DELAY - 1)}, now=NOW, retry_delay=DELAY, room=5)
    assert (resting.start, resting.resting) == ([], 1)
    again = plan([window], {"r": failed(ago=DELAY + 1)}, now=NOW, retry_delay=DELAY, room=5)
    assert again.failed == []
    assert again.start == [replace(window, attempts=1)]
    assert run_key(again.start) != run_key([window])


def test_each_rest_is_longer_than_the_one_before() -> None:
    rests = [rest(attempts, DELAY) for attempts in range(MAX_ATTEMPTS)]
    assert rests == sorted(set(rests))
    assert rests[0] == timedelta(seconds=DELAY)


def test_a_run_that_never_got_an_end_is_not_waited_for() -> None:
    launches = plan([due(1, run="r")], {"r": KnownRun(RunState.FAILED)}, now=NOW, retry_delay=DELAY, room=5)
    assert launches.start == [due(1, attempts=1, run="r")]


def test_the_last_attempt_is_counted_and_not_repeated() -> None:
    last = due(1, attempts=MAX_ATTEMPTS - 1, run="r")
    launches = plan([last], {"r": failed(ago=1e6)}, now=NOW, retry_delay=DELAY, room=5)
    assert (launches.start, launches.failed, launches.given_up) == ([], [last], 1)


def test_a_failed_window_without_room_keeps_its_attempt() -> None:
    launches = plan([due(1, run="r")], {"r": failed(ago=1e6)}, now=NOW, retry_delay=DELAY, room=0)
    assert (launches.start, launches.failed, launches.left) == ([], [], 1)


@given(
    states=st.lists(st.sampled_from([None, *RunState]), max_size=30),
    room=st.integers(min_value=0, max_value=10),
)
def test_never_more_in_the_queue_than_there_is_room_and_nobody_is_skipped(
    states: list[RunState | None], room: int
) -> None:
    windows = [due(number, run=f"run-{number}") for number in range(len(states))]
    runs = {f"run-{number}": KnownRun(state, NOW - timedelta(days=1)) for number, state in enumerate(states) if state}
    launches = plan(windows, runs, now=NOW, retry_delay=DELAY, room=room)
    waiting = states.count(RunState.WAITING)
    startable = [
        window.window
        for window, state in zip(windows, states, strict=True)
        if state in {None, RunState.FAILED, RunState.SUCCEEDED}
    ]
    assert [window.window for window in launches.start] == startable[: max(room - waiting, 0)]  # the oldest first


@given(
    places=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=40),
    size=st.integers(min_value=1, max_value=12),
    order=st.permutations(range(8)),
)
def test_runs_hold_every_window_once_and_are_rectangles_of_at_most_that_size(
    places: set[tuple[int, int]], size: int, order: list[int]
) -> None:
    cameras = [f"cam-{number}" for number in order]
    start = [
        DueWindow(Window(f"cam-{camera}", NOW + timedelta(minutes=minute), 60), 1, 0)
        for camera, minute in sorted(places, key=lambda place: (place[1], place[0]))
    ]
    runs = batches(start, cameras, size)
    assert sorted(window.window for run in runs for window in run) == sorted(window.window for window in start)
    for run in runs:
        assert len(run) <= size
        first, last = run[0].window, run[-1].window
        among = cameras[cameras.index(first.camera_id) : cameras.index(last.camera_id) + 1]
        minutes = int((last.start - first.start).total_seconds() // 60) + 1
        # what Dagster makes of the range from the first to the last partition
        ranged = {(camera, first.start + timedelta(minutes=minute)) for camera in among for minute in range(minutes)}
        assert ranged == {(window.window.camera_id, window.window.start) for window in run}


def test_what_closes_together_shares_runs() -> None:
    cameras = [f"cam-{number}" for number in range(50)]
    start = [DueWindow(Window(camera, NOW, 3600), 1, 0) for camera in cameras]
    assert [len(run) for run in batches(start, cameras, 25)] == [25, 25]


def test_a_cameras_backlog_shares_runs() -> None:
    start = [DueWindow(Window("cam-1", NOW + timedelta(minutes=minute), 60), 1, 0) for minute in range(10)]
    assert [len(run) for run in batches(start, ["cam-0", "cam-1"], 4)] == [4, 4, 2]
