"""One message that cannot be used must not stop the others of its batch. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from dangerous_driving.errors import DangerousDrivingError, MessageTooLargeError, StatementRefusedError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def without_refused(
    items: list[ItemT],
    work: Callable[[Sequence[ItemT]], ResultT],
    refused: Callable[[ItemT, DangerousDrivingError], None],
) -> list[ResultT]:
    """Do `work` on all items, in their order; where one is refused, on halves, until each refused item is alone.

    Args:
        items: a batch. What is refused is taken out of it, so that a batch that is tried again tells of each once.
        work: idempotent on any part of it; StatementRefusedError or MessageTooLargeError mean that an item in it
            cannot be written or sent.
        refused: told of each such item with the reason. What it raises ends the call, with the item still in the batch.

    Returns:
        What `work` returned for the parts, in order.
    """

    def part_by_part(part: Sequence[ItemT]) -> list[ResultT]:
        try:
            return [work(part)]
        except (StatementRefusedError, MessageTooLargeError) as error:
            if len(part) == 1:
                refused(part[0], error)
                items.remove(part[0])
                return []
        middle = len(part) // 2
        return [*part_by_part(part[:middle]), *part_by_part(part[middle:])]

    return part_by_part(tuple(items)) if items else []
