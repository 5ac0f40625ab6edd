"""One message that cannot be used must not stop the others of its batch. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from dangerous_driving.errors import DangerousDrivingError, MessageTooLargeError, StatementRefusedError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def without_refused(
    items: Sequence[ItemT],
    work: Callable[[Sequence[ItemT]], ResultT],
    refused: Callable[[ItemT, DangerousDrivingError], None],
) -> list[ResultT]:
    """Do `work` on all items, in their order; where one is refused, on halves, until each refused item is alone.

    Args:
        items: a batch.
        work: idempotent on any part of it; StatementRefusedError or MessageTooLargeError mean that an item in it
            cannot be written or sent.
        refused: told of each such item with the reason. What it raises ends the call.

    Returns:
        What `work` returned for the parts, in order.
    """
    try:
        return [work(items)]
    except (StatementRefusedError, MessageTooLargeError) as error:
        if len(items) == 1:
            refused(items[0], error)
            return []
    middle = len(items) // 2
    return [*without_refused(items[:middle], work, refused), *without_refused(items[middle:], work, refused)]
