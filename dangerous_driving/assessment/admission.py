"""Which tasks the realtime lane takes: the riskiest and freshest first, none that would come too late. Pure.

**Fairness.** A camera that has just had more turns than the others that wait is lowered by :data:`TURN` of priority for each of them,
so a noisy camera cannot starve the others: its most dangerous group still comes first, its twentieth does not.

**Sharing.** A group that has had to wait for a key shows that quota is short: other groups of its frame may join its call then, so
that they cost none of their own. One whose turn comes at once is asked about alone, since an answer to several takes longer.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from dangerous_driving.contracts import AssessmentTask
from dangerous_driving.ledger.claims import Claim

#: What a turn more than the other cameras had costs, in priority.
TURN = 0.05
#: s for which a turn is remembered.
TURN_SECONDS = 10.0


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
    fresh = _fair(sorted((task for task in tasks if task.timestamp >= oldest), key=urgency))
    late = tuple(task for task in tasks if task.timestamp < oldest)
    return Admission(tuple(fresh[: max(room, 0)]), late, tuple(fresh[max(room, 0) :]))


def urgency(task: AssessmentTask) -> tuple[float, float]:
    """Sorts the most urgent task first: by priority, then by freshness."""
    return -task.priority, -task.timestamp.timestamp()


def _fair(tasks: Sequence[AssessmentTask]) -> list[AssessmentTask]:
    """In order of urgency, where the n-th of a camera counts as `n * TURN` less dangerous."""
    of_camera: Counter[str] = Counter()
    ranked = []
    for task in tasks:
        ranked.append((-task.priority + TURN * of_camera[task.camera_id], -task.timestamp.timestamp(), task))
        of_camera[task.camera_id] += 1
    return [task for *_, task in sorted(ranked, key=lambda entry: entry[:2])]


class _Entry(NamedTuple):
    """Sorts by urgency, then by the order in which they came."""

    urgency: tuple[float, float]
    number: int
    since: float
    claim: Claim


class ClaimQueue:
    """Claimed tasks that wait for a key: the most urgent first, with cameras taking turns.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of_camera: dict[str, list[_Entry]] = {}
        self._turns: deque[tuple[float, str]] = deque()
        self._turns_of: Counter[str] = Counter()
        self._count = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, claim: Claim) -> None:
        """Add a claim."""
        self._count += 1  # ties keep their order, and claims need no order of their own
        self._size += 1
        entry = _Entry(urgency(claim.task), self._count, self._clock(), claim)
        heapq.heappush(self._of_camera.setdefault(claim.task.camera_id, []), entry)

    def pop(self) -> Claim:
        """Take the claim whose turn it is. Raises IndexError when there is none."""
        return self._pop().claim

    def pop_call(self, limit: int, *, after: float) -> list[Claim]:
        """Take what the next call is about: the claim whose turn it is and, if it has waited, others of its frame.

        Args:
            limit: of claims that may share a call.
            after: s in the queue from which on a claim shares its call.

        Raises:
            IndexError: the queue is empty.
        """
        first = self._pop()
        if limit < 2 or self._clock() - first.since < after:  # noqa: PLR2004  # one shares with nobody
            return [first.claim]
        entries = self._of_camera.get(first.claim.task.camera_id, [])
        frame = first.claim.task.request_id
        others = sorted(entry for entry in entries if entry.claim.task.request_id == frame)[: limit - 1]
        joining = {entry.number for entry in others}
        self._take_entries(lambda entry: entry.number in joining)
        return [first.claim, *(entry.claim for entry in others)]

    def _pop(self) -> _Entry:
        if not self._size:
            raise IndexError("the queue is empty")
        now = self._clock()
        while self._turns and self._turns[0][0] < now - TURN_SECONDS:
            _, camera_id = self._turns.popleft()
            self._turns_of[camera_id] -= 1
        fewest = min(self._turns_of[camera_id] for camera_id in self._of_camera)

        def rank(camera_id: str) -> tuple[float, float, int]:
            (danger, freshness), number, *_ = self._of_camera[camera_id][0]
            return danger + TURN * (self._turns_of[camera_id] - fewest), freshness, number

        chosen = min(self._of_camera, key=rank)
        entry = heapq.heappop(self._of_camera[chosen])
        if not self._of_camera[chosen]:
            del self._of_camera[chosen]
        self._turns.append((now, chosen))
        self._turns_of[chosen] += 1
        self._size -= 1
        return entry

    def take_captured_before(self, instant: datetime) -> list[Claim]:
        """Take out all claims whose frame is older than that: they have become too late."""
        return self._take(lambda claim: claim.task.timestamp < instant)

    @property
    def tokens(self) -> set[int]:
        """The tokens of all claims in it."""
        return {entry.claim.token for entries in self._of_camera.values() for entry in entries}

    def take_of(self, wanted: Callable[[str], bool]) -> list[Claim]:
        """Take out all claims of the cameras that are wanted, by their id."""
        return self._take(lambda claim: wanted(claim.task.camera_id))

    def drain(self) -> list[Claim]:
        """Take all claims out."""
        return self._take(lambda _: True)

    def _take(self, wanted: Callable[[Claim], bool]) -> list[Claim]:
        return self._take_entries(lambda entry: wanted(entry.claim))

    def _take_entries(self, wanted: Callable[[_Entry], bool]) -> list[Claim]:
        taken = [entry.claim for entries in self._of_camera.values() for entry in entries if wanted(entry)]
        if taken:
            kept = [entry for entries in self._of_camera.values() for entry in entries if not wanted(entry)]
            self._of_camera, self._size = {}, len(kept)
            for entry in kept:
                heapq.heappush(self._of_camera.setdefault(entry.claim.task.camera_id, []), entry)
        return taken
