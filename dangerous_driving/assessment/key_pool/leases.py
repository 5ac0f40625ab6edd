"""A process' lease: slots on keys that it has taken ahead and may use without asking anybody. Pure.

A slot is good from its instant on for a moment (:attr:`Policy.validity`), then it goes back. So a lease needs no renewal, and
that of a dead process expires by itself: its slots lie in the windows as if they had been used, and age out of them.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from math import inf

from dangerous_driving.assessment.key_pool.health import URGENT_LANES, Grant, Policy, Request

#: Slots are taken for this many times the requests that are expected, so that a rate can rise.
HEADROOM = 1.25


class Lease:
    """The slots in hand, and how many will be needed.

    Args:
        policy: the pool's settings.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._slots: list[tuple[float, int, Grant]] = []
        self._count = 0
        self._asked: dict[bool, deque[float]] = {True: deque(), False: deque()}

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def keys(self) -> set[str]:
        """Those that there are slots on."""
        return {slot.key_hash for _, _, slot in self._slots}

    def put(self, slots: Iterable[Grant]) -> None:
        """Take slots in hand."""
        for slot in slots:
            self._count += 1
            insort(self._slots, (slot.reserved_at, self._count, slot))

    def take(self, request: Request, now: float) -> Grant | None:
        """A slot that the request may use now. Realtime may use one of the lower lanes; the reverse would eat the reserve."""
        for index, (at, _, slot) in enumerate(self._slots):
            if at > now:
                return None
            if _fits(slot, request):
                del self._slots[index]
                return slot
        return None

    def waits(self, requests: Sequence[Request], now: float) -> list[float]:
        """For each request, in order, the seconds until a slot of its own; `inf` where there is none in hand."""
        left = [slot for at, _, slot in self._slots if at > now]
        waits = []
        for request in requests:
            slot = next((slot for slot in left if _fits(slot, request)), None)
            if slot is None:
                waits.append(inf)
            else:
                left.remove(slot)
                waits.append(slot.reserved_at - now)
        return waits

    def give_back(self, now: float) -> list[Grant]:
        """Those that are no longer good."""
        old = [slot for at, _, slot in self._slots if at + self._policy.validity < now]
        if old:
            self._slots = [entry for entry in self._slots if entry[0] + self._policy.validity >= now]
        return old

    def drop(self, key_hash: str | None = None) -> list[Grant]:
        """Those of a key that is out of use, or all."""
        dropped = [slot for _, _, slot in self._slots if key_hash in {None, slot.key_hash}]
        self._slots = [entry for entry in self._slots if entry[2] not in dropped]
        return dropped

    def used(self, *, urgent: bool, now: float) -> None:
        """A request was given a key: the measure of what will be asked."""
        asked = self._asked[urgent]
        asked.append(now)
        while asked and asked[0] < now - self._policy.second:
            asked.popleft()

    def expected(self, *, urgent: bool, now: float) -> int:
        """Requests that will be asked within the length of a lease, less the slots in hand."""
        asked = self._asked[urgent]
        while asked and asked[0] < now - self._policy.second:
            asked.popleft()
        wanted = int(len(asked) * HEADROOM * self._policy.lease / self._policy.second)
        return max(wanted - sum((slot.lane in URGENT_LANES) is urgent for _, _, slot in self._slots), 0)


def _fits(slot: Grant, request: Request) -> bool:
    return slot.key_hash not in request.exclude and (request.urgent or slot.lane not in URGENT_LANES)
