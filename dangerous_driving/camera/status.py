"""Whether a camera works: a pure state machine over what its reader saw, and the times of reconnecting."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from dangerous_driving.camera.picture import Flaw


class CameraState(StrEnum):
    """online: frames come. degraded: they stopped a moment ago, or show nothing. offline: there are none, or old ones."""

    ONLINE = "online"
    DEGRADED = "degraded"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """A camera's state since ``at``; ``reason`` is a sentence for a person, empty when online, never with credentials."""

    camera_id: str
    state: CameraState
    reason: str
    at: datetime


#: A frozen picture is an old one, which is worse than none: it looks as if all were well.
_FLAWS: dict[Flaw | None, tuple[CameraState, str]] = {
    None: (CameraState.ONLINE, ""),
    Flaw.FROZEN: (CameraState.OFFLINE, "the picture is frozen: the same again and again"),
    Flaw.BLACK: (CameraState.DEGRADED, "the picture is black: is the lens covered, or the light gone?"),
    Flaw.COVERED: (CameraState.DEGRADED, "the picture shows nothing: is the lens covered, dirty or dazzled?"),
}


@dataclass(slots=True)
class CameraHealth:
    """Turns frames, failures, flaws and silence into states. Each method returns whether state or reason changed.

    Times are seconds of one monotonic clock. ``offline_after``: s without a frame until a camera is offline.
    """

    offline_after: float
    started_at: float
    state: CameraState | None = None
    reason: str = ""
    last_frame_at: float | None = None
    _failure: str = field(default="", repr=False)
    _flaw: Flaw | None = field(default=None, repr=False)

    def frame(self, now: float) -> bool:
        """A frame was read; what it shows is as it was when `looked` last."""
        self.last_frame_at = now
        self._failure = ""
        state, reason = _FLAWS[self._flaw]
        return self._become(state, reason)

    def looked(self, flaw: Flaw | None) -> bool:
        """The picture of the frame read last was looked at."""
        self._flaw = flaw
        state, reason = _FLAWS[flaw]
        return self._become(state, reason)

    def failed(self, now: float, reason: str) -> bool:
        """The source could not be opened, or is lost. That makes no camera better: one that is offline stays so."""
        self._failure, self._flaw = reason, None
        silent = self.last_frame_at is None or now - self.last_frame_at >= self.offline_after
        if silent or self.state is CameraState.OFFLINE:
            return self._become(CameraState.OFFLINE, reason)
        return self._become(CameraState.DEGRADED, reason)

    def ended(self, reason: str) -> bool:
        """The source is over and will not be opened again."""
        self.last_frame_at = None
        return self._become(CameraState.OFFLINE, reason)

    def check(self, now: float) -> bool:
        """Time has passed. The silence may have made the camera offline."""
        since = self.started_at if self.last_frame_at is None else self.last_frame_at
        if self.state is CameraState.OFFLINE or now - since < self.offline_after:
            return False
        return self._become(CameraState.OFFLINE, self._failure or f"no frame for {self.offline_after:g} s")

    def _become(self, state: CameraState, reason: str) -> bool:
        changed = state is not self.state or reason != self.reason
        self.state, self.reason = state, reason
        return changed


@dataclass(slots=True)
class Backoff:
    """Seconds until the next attempt: doubling from ``initial`` up to ``maximum``, spread by camera.

    The spread (0.75 to 1 of the time, by the camera's id) keeps cameras behind one recorder from knocking in step.
    """

    initial: float
    maximum: float
    camera_id: str
    attempts: int = 0

    def next_delay(self) -> float:
        """Seconds to wait now; the following wait is twice as long."""
        delay = min(self.maximum, self.initial * 2.0 ** min(self.attempts, 62))
        self.attempts += 1
        return delay * (0.75 + 0.25 * (zlib.crc32(self.camera_id.encode()) % 1000) / 1000)

    def reset(self) -> None:
        """The source was well for a while: the next wait is the first one again."""
        self.attempts = 0
