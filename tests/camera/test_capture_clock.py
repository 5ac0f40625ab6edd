"""Capture times rise whatever the wall clock does, and stay close to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.camera.capture_clock import CORRECTION, CaptureClock

START = datetime(2026, 11, 1, tzinfo=UTC)


class Clocks:
    """A monotonic clock, and a wall clock that is `off` by so much."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.off = timedelta()
        self.stamps = CaptureClock(lambda: START + timedelta(seconds=self.passed) + self.off, lambda: self.passed)

    def stamp(self, after: float = 0.0, step: float = 0.0) -> datetime:
        self.passed += after
        self.off += timedelta(seconds=step)
        return self.stamps.stamp()


def test_without_a_jump_it_is_the_wall_clock_in_milliseconds() -> None:
    clocks = Clocks()
    assert clocks.stamp() == START
    assert clocks.stamp(1.2345) == START + timedelta(milliseconds=1234)


def test_two_frames_in_one_millisecond_differ() -> None:
    clocks = Clocks()
    first, second, third = clocks.stamp(), clocks.stamp(), clocks.stamp(0.0001)
    assert first < second < third
    assert clocks.stamp(0.5) == START + timedelta(milliseconds=500)


def test_a_small_step_back_is_made_up_for_with_intervals_nearly_right() -> None:
    clocks = Clocks()
    before = clocks.stamp()
    stamps = [clocks.stamp(1.8, step=-20.0 if number == 0 else 0.0) for number in range(130)]
    gaps = [late - early for early, late in zip([before, *stamps], stamps, strict=False)]
    assert min(gaps) >= timedelta(seconds=1.6)
    assert max(gaps) <= timedelta(seconds=1.9)
    assert stamps[50] > START + timedelta(seconds=51 * 1.8 - 20)
    # 20 s are made up for within 200 s
    assert stamps[-1] == START + timedelta(seconds=clocks.passed - 20)


def test_a_large_step_back_is_taken_over_at_once() -> None:
    clocks = Clocks()
    clocks.stamp()
    assert clocks.stamp(1.0, step=-3600.0) == START + timedelta(seconds=1.0 - 3600.0)
    assert clocks.stamp(1.0) == START + timedelta(seconds=2.0 - 3600.0)


def test_after_a_large_step_back_no_stamp_comes_again_that_was_given_away() -> None:
    clocks = Clocks()
    given = []
    for number in range(4000):
        stamp = clocks.stamp(0.001)
        if number % 2:
            clocks.stamps.given(stamp)
            given.append(stamp)
    again = [clocks.stamp(0.001, step=-100.0 if number == 0 else 0.0) for number in range(3)]
    assert again[0] < given[0]  # taken over
    clocks.passed += 96.0 + 1.0  # among those of before
    among = [clocks.stamp(0.001) for _ in range(1500)]
    assert given[0] < among[0] < given[-1]
    assert not set(among) & set(given)
    assert sorted(set(among)) == among


def test_a_step_forward_is_taken_over_at_once() -> None:
    clocks = Clocks()
    clocks.stamp()
    assert clocks.stamp(1.0, step=3600.0) == START + timedelta(seconds=3601)


moves = st.lists(st.tuples(st.floats(0, 5), st.floats(-200, 200)), max_size=40)


@given(moves)
def test_stamps_rise_but_at_a_correction_and_are_never_far_from_the_wall_clock(
    steps: list[tuple[float, float]],
) -> None:
    clocks = Clocks()
    last = clocks.stamp()
    for after, step in steps:
        stamp = clocks.stamp(after, step)
        wall = START + timedelta(seconds=clocks.passed) + clocks.off
        assert stamp - wall <= CORRECTION + timedelta(milliseconds=45)  # of frames within one millisecond
        assert wall - stamp < timedelta(milliseconds=1)
        if stamp <= last:
            assert last + timedelta(seconds=after) - wall > CORRECTION
        last = stamp
