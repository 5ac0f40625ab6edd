"""Silence is only what was listened to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.alerts.hearing import Hearing
from dangerous_driving.messaging.consumer import Standing

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(second: int) -> datetime:
    return NOON + timedelta(seconds=second)


def test_nothing_is_known_without_partitions_and_all_is_where_nothing_waits() -> None:
    hearing: Hearing[int] = Hearing()
    assert hearing.heard_until({}, at=at(0)) is None
    assert hearing.heard_until({0: Standing(5, 5)}, at=at(1)) == at(1)


def test_a_time_is_known_once_what_was_there_then_is_worked_on_also_under_steady_traffic() -> None:
    hearing: Hearing[int] = Hearing()
    assert hearing.heard_until({0: Standing(0, 300), 1: Standing(7, 7)}, at=at(0)) is None
    assert hearing.heard_until({0: Standing(299, 320), 1: Standing(7, 8)}, at=at(1)) is None
    assert hearing.heard_until({0: Standing(300, 340), 1: Standing(7, 9)}, at=at(2)) == at(0)
    assert hearing.heard_until({0: Standing(340, 360), 1: Standing(9, 10)}, at=at(3)) == at(2)


def test_a_partition_that_is_new_is_listened_to_first() -> None:
    hearing: Hearing[int] = Hearing()
    assert hearing.heard_until({0: Standing(5, 5)}, at=at(0)) == at(0)
    assert hearing.heard_until({0: Standing(5, 5), 1: Standing(0, 1)}, at=at(1)) is None
    assert hearing.heard_until({0: Standing(5, 5), 1: Standing(1, 1)}, at=at(2)) == at(2)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40))
def test_what_is_known_was_handed_out_whole(steps: list[tuple[int, int]]) -> None:
    """`steps`: messages that arrive, and that are handed out, in each second."""
    hearing: Hearing[int] = Hearing()
    position, end, ends = 0, 0, {}
    for second, (arrived, handed_out) in enumerate(steps):
        end += arrived
        ends[at(second)] = end
        known = hearing.heard_until({0: Standing(position, end)}, at=at(second))
        assert known is None or ends[known] <= position
        position = min(end, position + handed_out)
