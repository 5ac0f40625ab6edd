"""Which tasks the realtime lane takes: the riskiest and freshest first, none that would come too late. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dangerous_driving.contracts import AssessmentTask
from dangerous_driving.ledger.claims import Claim


@dataclass(frozen=True)
class Admission:
    """What to claim now, and what stays pending for the window lane with which reason."""

    admitted: tuple[AssessmentTask, ...]
    too_late: tuple[AssessmentTask, ...]
    no_room: tuple[AssessmentTask, ...]


def admit(tasks: Sequence[AssessmentTask], *, now: datetime, deadline: float, room: int) -> Admission:
    """Split a batch of tasks.

    Args:
        tasks: as they came.
        now: the time.
        deadline: s after capture from which an alert would come too late.
        room: how many claimed tasks the queue still takes.
    """
    oldest = now - timedelta(seconds=deadline)
    fresh = sorted((task for task in tasks if task.timestamp >= oldest), key=urgency)
    late = tuple(task for task in tasks if task.timestamp < oldest)
    return Admission(tuple(fresh[: max(room, 0)]), late, tuple(fresh[max(room, 0) :]))


def urgency(task: AssessmentTask) -> tuple[float, float]:
    """Sorts the most urgent task first: by priority, then by freshness."""
    return -task.priority, -task.timestamp.timestamp()


class ClaimQueue:
    """Claimed tasks that wait for a key, most urgent first."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, float], int, Claim]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, claim: Claim) -> None:
        """Add a claim."""
        self._count += 1  # ties keep their order, and claims need no order of their own
        heapq.heappush(self._heap, (urgency(claim.task), self._count, claim))

    def pop(self) -> Claim:
        """Take the most urgent claim. Raises IndexError when there is none."""
        return heapq.heappop(self._heap)[2]

    def take_captured_before(self, instant: datetime) -> list[Claim]:
        """Take out all claims whose frame is older than that: they have become too late."""
        late = [entry[2] for entry in self._heap if entry[2].task.timestamp < instant]
        if late:
            self._heap = [entry for entry in self._heap if entry[2].task.timestamp >= instant]
            heapq.heapify(self._heap)
        return late

    @property
    def tokens(self) -> set[int]:
        """The tokens of all claims in it."""
        return {entry[2].token for entry in self._heap}

    def drain(self) -> list[Claim]:
        """Take all claims out."""
        claims = [entry[2] for entry in self._heap]
        self._heap.clear()
        return claims
