"""Which cameras' frames go into the next inference (pure; times are seconds of one monotonic clock)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: 1 / golden ratio: its multiples modulo 1 lie evenly however many there are, so that cameras take turns
_TURN = 0.6180339887498949


@dataclass(slots=True)
class _Place:
    interval: float
    due: float


class Schedule:
    """One frame per camera and interval, on a fixed grid per camera, whoever waits longest first.

    Who cannot be served in time misses whole intervals: frames are skipped, they never queue up.
    """

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._added = 0

    def add(self, camera_id: str, interval: float, now: float) -> float:
        """Take a camera in. Returns when its first frame is due, within one interval."""
        due = now + interval * (self._added * _TURN % 1)
        self._added += 1
        self._places[camera_id] = _Place(interval, due)
        return due

    def next_batch(self, now: float, ready_since: Mapping[str, float], limit: int) -> list[str]:
        """Cameras whose next frame is due and there, the longest-waiting first, at most `limit`.

        Args:
            now: time.
            ready_since: of each camera that has a frame, since when.
            limit: how many at most.
        """
        waiting = [
            (max(self._places[camera_id].due, since), camera_id)
            for camera_id, since in ready_since.items()
            if self._places[camera_id].due <= now
        ]
        return [camera_id for _, camera_id in sorted(waiting)[:limit]]

    def served(self, camera_id: str, now: float, ready_since: float) -> tuple[float, int]:
        """A camera's frame is taken.

        Returns:
            When its next one is due, and how many intervals were missed although it had a frame.
        """
        place = self._places[camera_id]
        skipped = max(0, int((now - max(place.due, ready_since)) // place.interval))
        place.due += place.interval * max(1, 1 + int((now - place.due) // place.interval))
        return place.due, skipped

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
