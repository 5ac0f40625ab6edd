"""Windows cover time without gaps or overlaps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.windows import Window, window_of, window_start

LENGTHS = st.sampled_from([60, 300, 900, 3600, 21600, 86400])
TIMES = st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001  # made aware by the strategy
    max_value=datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-3, minutes=-30))]),
)


@given(at=TIMES, length=LENGTHS)
def test_every_instant_lies_in_exactly_one_window(at: datetime, length: int) -> None:
    window = window_of("sim-1", at, length)
    assert at in window
    assert at not in Window("sim-1", window.end, length)
    assert at not in Window("sim-1", window.start - timedelta(seconds=length), length)
    assert window_start(window.start, length) == window.start
    assert window_start(window.end, length) == window.end


@given(at=TIMES, length=LENGTHS)
def test_windows_start_at_round_times_in_utc(at: datetime, length: int) -> None:
    start = window_start(at, length)
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    assert start.utcoffset() == timedelta(0)
    assert (start - midnight).total_seconds() % length == 0


def test_a_window_closes_its_lateness_after_its_end() -> None:
    window = Window("sim-1", datetime(2026, 1, 1, 12, tzinfo=UTC), 60)
    assert not window.closed(window.end + timedelta(seconds=4), lateness=5)
    assert window.closed(window.end + timedelta(seconds=5), lateness=5)
