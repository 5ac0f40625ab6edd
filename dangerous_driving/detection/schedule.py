"""Which cameras' frames go into the next inference (pure; times are seconds of one monotonic clock)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: 1 / golden ratio: its multiples modulo 1 lie evenly however many there are, so that cameras take turns
_TURN = 0.6180339887498949


@dataclass(slots=True)
class _Place:
    interval: float
    due: float
    served_at: float
    lost: float = 0.0  # s of delay in all


class Schedule:
    """One frame per camera and interval.

    A camera that is served in time keeps its times, whatever the jitter. One that is served late is due again half an
    interval later at the earliest: frames are skipped, they never queue up or come in bursts. The camera that was
    served the most of its own intervals ago comes first, so that each misses the same share.
    """

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._added = 0

    def add(self, camera_id: str, interval: float, now: float) -> float:
        """Take a camera in. Returns when its first frame is due, within one interval."""
        due = now + interval * (self._added * _TURN % 1)
        self._added += 1
        self._places[camera_id] = _Place(interval, due, served_at=due - interval)
        return due

    def remove(self, camera_id: str) -> None:
        """Let a camera go."""
        del self._places[camera_id]

    def change(self, camera_id: str, interval: float, now: float) -> float:
        """Another interval from the next frame on. Returns when that is due, within the new interval."""
        place = self._places[camera_id]
        place.interval = interval
        place.due = min(place.due, now + interval)
        return place.due

    def next_batch(self, now: float, ready: Iterable[str], limit: int) -> list[str]:
        """Cameras whose next frame is due, the latest in terms of their intervals first, at most `limit`.

        Args:
            now: time.
            ready: cameras that have a frame.
            limit: how many at most.
        """
        places = ((camera_id, self._places[camera_id]) for camera_id in ready)
        # of those served together last time, the one that lost most so far: else their names would always decide
        late = [
            ((place.served_at - now) / place.interval, -place.lost / place.interval, camera_id)
            for camera_id, place in places
            if place.due <= now
        ]
        return [camera_id for *_, camera_id in sorted(late)[: max(0, limit)]]

    def served(self, camera_id: str, now: float, ready_since: float) -> tuple[float, int]:
        """A camera's frame is taken.

        Args:
            camera_id: the camera.
            now: time.
            ready_since: since when it had a frame.

        Returns:
            When its next one is due, and how many further frames it has missed by then although it had any.
        """
        place = self._places[camera_id]
        earliest = place.interval / 2
        in_time = max(place.due + place.interval, ready_since + earliest)
        place.due = max(place.due + place.interval, now + earliest)
        place.served_at = now
        skipped_before = int(place.lost / place.interval)
        place.lost += max(0.0, place.due - in_time)
        return place.due, int(place.lost / place.interval) - skipped_before

    def next_due(self, now: float) -> float | None:
        """The first time after `now` at which a camera becomes due."""
        return min((place.due for place in self._places.values() if place.due > now), default=None)


def batch_limit(batch_size: int, batch_delay: float, seconds_per_frame: float | None) -> int:
    """How many frames may go into one inference, so that the first does not wait longer than allowed for the last.

    Args:
        batch_size: at most.
        batch_delay: s that an inference may take.
        seconds_per_frame: s that a frame took of late; None: not known yet.
    """
    if seconds_per_frame is None or seconds_per_frame <= 0:
        return 1
    return max(1, min(batch_size, int(batch_delay / seconds_per_frame)))
