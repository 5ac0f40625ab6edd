"""Up to where offsets are committed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.messaging.watermark import LowWaterMark


def test_only_what_is_done_without_a_gap_is_committed() -> None:
    mark = LowWaterMark()
    assert mark.take() is None
    mark.hand_out([4, 5, 7], end=9)  # 6 and 8 were set aside
    mark.finish([5])
    assert mark.take() == 4
    mark.finish([4])
    assert mark.take() == 7
    assert mark.take() is None
    mark.finish([7])
    assert mark.take() == 9


def test_what_needs_no_work_is_committed_at_once() -> None:
    mark = LowWaterMark()
    mark.hand_out([], end=3)
    assert mark.take() == 3


def test_a_commit_never_goes_back_when_messages_come_again() -> None:
    mark = LowWaterMark()
    mark.hand_out([0, 1], end=2)
    mark.finish_all()
    assert mark.take() == 2
    mark.hand_out([0, 1], end=2)
    assert mark.take() is None


@given(batches=st.lists(st.lists(st.booleans(), max_size=6), max_size=8), data=st.data())
def test_in_whatever_order_work_ends_nothing_undone_is_passed(batches: list[list[bool]], data: st.DataObject) -> None:
    mark, offset = LowWaterMark(), 0
    undone: set[int] = set()
    for batch in batches:
        handed = [offset + index for index, readable in enumerate(batch) if readable]
        offset += len(batch)
        mark.hand_out(handed, end=offset)
        undone |= set(handed)
        done = {number for number in sorted(undone) if data.draw(st.booleans())}
        mark.finish(done)
        undone -= done
        position = mark.take()
        assert position is None or position == min(undone, default=offset)
    mark.finish(undone)
    last = mark.take()
    assert last is None or last == offset
