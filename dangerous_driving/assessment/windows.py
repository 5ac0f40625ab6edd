"""Windows: a camera's ``[start, start + length)`` by capture time in UTC. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, order=True)
class Window:
    """One camera's window. ``start`` is in UTC, ``length`` in seconds."""

    camera_id: str
    start: datetime
    length: int

    @property
    def end(self) -> datetime:
        """The first instant after the window."""
        return self.start + timedelta(seconds=self.length)

    def __contains__(self, captured_at: datetime) -> bool:
        return self.start <= captured_at < self.end

    def closed(self, now: datetime, lateness: float) -> bool:
        """Whether `now` lies at least `lateness` seconds after the window's end."""
        return now >= self.end + timedelta(seconds=lateness)


def window_start(captured_at: datetime, length: int) -> datetime:
    """The start of the window of `length` seconds that `captured_at` falls into; windows count from 1970 in UTC."""
    seconds = int(captured_at.astimezone(UTC).timestamp() // length) * length
    return datetime.fromtimestamp(seconds, tz=UTC)


def window_of(camera_id: str, captured_at: datetime, length: int) -> Window:
    """The camera's window that `captured_at` falls into."""
    return Window(camera_id, window_start(captured_at, length), length)
