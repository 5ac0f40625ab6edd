"""Up to where the messages of a partition are dealt with, when work on them finishes in any order. Pure."""

from __future__ import annotations

from collections.abc import Iterable


class LowWaterMark:
    """The offset to commit for one partition: everything before it is done, the message at it is not."""

    def __init__(self) -> None:
        self._open: dict[int, None] = {}  # offsets in work, in rising order
        self._end: int | None = None
        self._taken: int | None = None

    def hand_out(self, offsets: Iterable[int], end: int) -> None:
        """Note messages that are in work from now on, in rising order; what lies between them needs none.

        ``end``: the offset after the last message that was read; later than ``offsets`` where that was set aside.
        """
        self._open |= dict.fromkeys(offsets)
        self._end = end

    def finish(self, offsets: Iterable[int]) -> None:
        """Note messages that are dealt with; unknown ones are passed over."""
        for offset in offsets:
            self._open.pop(offset, None)

    def finish_all(self) -> None:
        """Note that everything handed out so far is dealt with."""
        self._open.clear()

    def take(self) -> int | None:
        """The offset to commit; None if that was taken before or nothing was handed out."""
        position = next(iter(self._open), self._end)
        if position is None or position == self._taken or (self._taken is not None and position < self._taken):
            return None
        self._taken = position
        return position
