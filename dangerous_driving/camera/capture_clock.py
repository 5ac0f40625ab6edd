"""Capture times that rise strictly, whatever the wall clock does (pure, clocks injected)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from dangerous_driving.contracts import in_utc_milliseconds

log = structlog.get_logger(__name__)

MILLISECOND = timedelta(milliseconds=1)

#: Pace of the stamps while the wall clock catches up.
SLOWER = 0.9

WORTH_TELLING = timedelta(seconds=1)

#: A step back of the wall clock by more is a correction of a wrong clock, and taken over; a smaller one is waited out.
CORRECTION = timedelta(seconds=60)

#: Stamps of frames given away: a bit more than an hour at the default interval, in less than 200 kB a camera.
REMEMBERED = 2400


class CaptureClock:
    """Stamps the frames of one camera: UTC in whole milliseconds, each later than the one before.

    Ids derive from the stamps, so none may come twice. Times that a stream sends are not used: they begin anywhere,
    drift and jump. When the wall clock is set back a little (time servers step by seconds), the stamps go on a tenth
    slower than time until it has caught up, so that intervals stay nearly right. When it is set back by more than `CORRECTION`
    it was wrong before, and staying with it would keep every frame in the future for as long; then the new time holds at
    once. The milliseconds of the frames that were `given` away before, the last `REMEMBERED` of them, are left out then.

    Args:
        now: the wall clock, UTC.
        clock: monotonic seconds.
        camera_id: for the log.
    """

    def __init__(self, now: Callable[[], datetime], clock: Callable[[], float], camera_id: str = "") -> None:
        self._now, self._clock, self._camera_id = now, clock, camera_id
        self._last = datetime.min.replace(tzinfo=UTC)
        self._last_at = clock()
        self._behind = self._stamped = False
        self._given: deque[datetime] = deque(maxlen=REMEMBERED)
        self._used: frozenset[datetime] = frozenset()

    def given(self, stamp: datetime) -> None:
        """A frame with this stamp was given away, and its id may be in use; callable from another thread than `stamp`."""
        self._given.append(stamp)

    def stamp(self) -> datetime:
        """The time of a frame that was read now."""
        wall, at = in_utc_milliseconds(self._now()), self._clock()
        passed = timedelta(seconds=max(0.0, at - self._last_at))
        # of the stamps, if they went on with time; frames of one millisecond put them ahead by little
        ahead = self._last + passed - wall if self._stamped else timedelta()
        if ahead > WORTH_TELLING and not self._behind:
            log.warning("clock_set_back", camera_id=self._camera_id, seconds=ahead.total_seconds())
        self._behind = ahead > WORTH_TELLING
        if ahead > CORRECTION:
            stamp = wall
            self._used = frozenset(self._given.copy())
        else:
            slowed = in_utc_milliseconds(self._last + passed * SLOWER) if self._stamped else wall
            stamp = max(wall, slowed, self._last + MILLISECOND)
        while stamp in self._used:
            stamp += MILLISECOND
        self._stamped = True
        self._last, self._last_at = stamp, at
        return stamp
