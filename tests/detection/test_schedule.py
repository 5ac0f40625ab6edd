from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.detection.schedule import Schedule, batch_limit

ALWAYS = 0.0  # a camera that has had a frame all along


def schedule(count: int, interval: float = 1.8) -> tuple[Schedule, list[str], list[float]]:
    made, names = Schedule(), [f"cam-{number}" for number in range(count)]
    return made, names, [made.add(name, interval, 0.0) for name in names]


def test_first_frames_are_spread_over_the_interval() -> None:
    _, _, due = schedule(10, interval=1.0)
    assert due[0] == 0.0
    assert all(0 <= time < 1 for time in due)
    gaps = [later - earlier for earlier, later in zip(sorted(due), [*sorted(due)[1:], 1.0], strict=True)]
    assert max(gaps) < 0.2


def test_a_camera_is_served_once_per_interval_whatever_the_jitter() -> None:
    made, _, _ = schedule(1)
    assert made.next_batch(0.0, ["cam-0"], 8) == ["cam-0"]
    assert made.served("cam-0", 0.3, ALWAYS) == (1.8, 0)
    assert made.next_batch(1.7, ["cam-0"], 8) == []
    assert made.next_batch(1.8, ["cam-0"], 8) == ["cam-0"]
    assert made.next_due(1.7) == 1.8


def test_a_camera_without_a_frame_is_not_served_and_not_counted_as_skipped() -> None:
    made, _, _ = schedule(1, interval=2.0)
    assert made.next_batch(7.0, [], 8) == []
    assert made.served("cam-0", 7.5, 7.4) == (8.5, 0)


def test_who_is_late_misses_intervals_instead_of_catching_up() -> None:
    made, _, _ = schedule(1, interval=2.0)
    assert made.served("cam-0", 7.0, ALWAYS) == (8.0, 3)


def test_frames_missed_under_a_lasting_small_delay_are_counted() -> None:
    made, _, _ = schedule(1, interval=2.0)
    skipped = sum(made.served("cam-0", 3.0 * number, ALWAYS)[1] for number in range(21))
    assert skipped in {9, 10}  # 60 s hold 30 intervals, 20 were served; one is made up for by the times of the first


def test_the_camera_that_is_latest_in_its_own_intervals_comes_first() -> None:
    made = Schedule()
    for name, interval in (("slow", 10.0), ("quick", 1.0), ("middle", 4.0)):
        made.add(name, interval, 0.0)
        made.served(name, 20.0, ALWAYS)
    assert made.next_batch(40.0, ["slow", "middle", "quick"], 8) == ["quick", "middle", "slow"]
    assert made.next_batch(40.0, ["slow", "middle", "quick"], 2) == ["quick", "middle"]
    assert made.next_batch(40.0, ["slow", "middle", "quick"], 0) == []


@given(st.integers(2, 30), st.integers(1, 8), st.floats(0.05, 3.0))
def test_under_overload_every_camera_gets_its_share(count: int, limit: int, seconds: float) -> None:
    made, names, _ = schedule(count)
    served: Counter[str] = Counter()
    now = 0.0
    for _ in range(20 * count):
        for name in made.next_batch(now, names, limit):
            made.served(name, now, ALWAYS)
            served[name] += 1
        now += seconds
    counts = [served[name] for name in names]
    assert max(counts) - min(counts) <= 2


def test_a_batch_is_as_large_as_the_delay_allows() -> None:
    assert batch_limit(8, 0.2, None) == 1
    assert batch_limit(8, 0.2, 0.05) == 4
    assert batch_limit(8, 0.2, 0.001) == 8
    assert batch_limit(8, 0.2, 1.0) == 1
