"""One refused item must not take the others with it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.errors import DangerousDrivingError, LedgerError, StatementRefusedError
from dangerous_driving.messaging.refusal import without_refused


@given(items=st.lists(st.booleans(), min_size=1, max_size=40))
def test_the_right_ones_are_written_in_order_and_each_wrong_one_is_told(items: list[bool]) -> None:
    numbered = list(enumerate(items))
    written: list[int] = []
    refused: list[int] = []

    def work(part: Sequence[tuple[int, bool]]) -> int:
        if not all(right for _, right in part):
            raise StatementRefusedError("no")
        written.extend(number for number, _ in part)
        return len(part)

    def tell(item: tuple[int, bool], error: DangerousDrivingError) -> None:
        refused.append(item[0])

    batch = list(numbered)
    counts = without_refused(batch, work, tell)
    assert batch == [(number, right) for number, right in numbered if right]  # what is tried again
    assert written == [number for number, right in numbered if right]
    assert refused == [number for number, right in numbered if not right]
    assert sum(counts) == len(written)


def test_a_database_that_does_not_answer_refuses_nothing() -> None:
    def work(part: Sequence[int]) -> None:
        raise LedgerError("away")

    with pytest.raises(LedgerError):
        without_refused([1, 2], work, lambda item, error: pytest.fail("refused"))
