"""One thread per camera that keeps its newest frame, reconnects, and says whether the camera works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from dangerous_driving.camera.capture_clock import CaptureClock
from dangerous_driving.camera.frame import Frame
from dangerous_driving.camera.picture import Flaw, PictureWatch
from dangerous_driving.camera.source import OpenSource, Source, open_source
from dangerous_driving.camera.status import Backoff, CameraHealth, CameraState, CameraStatus
from dangerous_driving.contracts import in_utc_milliseconds
from dangerous_driving.errors import DangerousDrivingError, SourceError
from dangerous_driving.observability.metrics import CAMERA_RECONNECTS, CAMERA_UP, FRAMES_READ, FRAMES_SKIPPED
from dangerous_driving.settings import CameraSettings, CameraSpec

log = structlog.get_logger(__name__)

#: s; a recording that is this far behind its pace goes on from where it is instead of rushing after it
MAX_LAG = 1.0

#: s; an older picture is not kept for the time when one is wanted
FRESH = 0.25

#: s between two signs of life of a recording whose frame nobody has taken yet
TOLD_EVERY = 0.5


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class CameraReader:
    """Reads one camera in a thread of its own. Whatever befalls its source stays here.

    Only frames that someone will take are converted to pictures (a third of the cost of a frame): the last one before
    `take`'s ``wanted_at`` and all after it. The newest one is kept. A recording with ``pace: fast`` is read differently:
    each of its frames waits until it was taken, so that none is passed over.

    Args:
        spec: the camera.
        settings: time-outs and back-off.
        on_status: called for each change of state, in order, from this thread or from the one that calls `check`.
        on_frame: called when there is a frame to take.
        source_opener: opens the source; `open_source` for real ones.
        clock: monotonic seconds.
        now: the wall clock, UTC.
    """

    def __init__(
        self,
        spec: CameraSpec,
        settings: CameraSettings,
        *,
        on_status: Callable[[CameraStatus], None] = lambda _: None,
        on_frame: Callable[[], None] = lambda: None,
        source_opener: OpenSource = open_source,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.spec = spec
        self._settings = settings
        self._on_status, self._on_frame = on_status, on_frame
        self._open = source_opener
        self._clock, self._now = clock, now
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera-{spec.id}", daemon=True)
        self._newest: Frame | None = None
        self._ready_since: float | None = None
        self._newest_lock = threading.Lock()
        self._taken = threading.Event()
        self._wanted_at = clock()
        self._health = CameraHealth(settings.offline_after, started_at=self._wanted_at)
        self._health_lock = threading.RLock()  # who is told may stop the reader
        self._backoff = Backoff(settings.backoff_initial, settings.backoff_max, spec.id)
        self._sequence = 0
        self._stamps = CaptureClock(now, clock, spec.id)

    def start(self) -> None:
        """Begin to read."""
        CAMERA_UP.labels(camera_id=self.spec.id).set(0)
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end; does not wait for it (see `join`). Nothing more is told of the camera after this.

        The thread may be inside a read for a while yet, and another reader of the same camera at work meanwhile.
        """
        with self._health_lock:
            if not self._stop.is_set():
                CAMERA_UP.labels(camera_id=self.spec.id).set(0)
            self._stop.set()
        self._taken.set()

    def join(self, timeout: float) -> bool:
        """Wait until the thread has ended, at most so many s; False when it has not.

        It is then inside a read, which ends with ``camera.read_timeout``; the thread does not keep a process alive.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def ready_since(self) -> float | None:
        """Since when `take` has a frame (time of `clock`; newer ones may have replaced it), None when it has none."""
        return self._ready_since

    @property
    def state(self) -> CameraState | None:
        """None until the first frame or the first failure."""
        return self._health.state

    def take(self, wanted_at: float) -> Frame | None:
        """The newest frame since the last call, if there is one; the next is wanted at that time of `clock`."""
        with self._newest_lock:
            frame, self._newest, self._ready_since = self._newest, None, None
            if frame is not None:
                self._wanted_at = wanted_at
                self._stamps.given(frame.captured_at)
        self._taken.set()
        return frame

    def want(self, wanted_at: float) -> None:
        """The next frame is wanted at that time of `clock` already."""
        with self._newest_lock:
            self._wanted_at = min(self._wanted_at, wanted_at)

    def check(self) -> None:
        """Notice silence. Called from outside now and then, since a thread that waits for a frame cannot."""
        self._note(lambda health: health.check(self._clock()))

    def tell_again(self) -> None:
        """Tell the state as if it had changed, for whoever may have heard another one of somebody else."""
        with self._health_lock:
            if not self._stop.is_set() and self._health.state is not None:
                self._tell(CameraStatus(self.spec.id, self._health.state, self._health.reason, self._told_at()))

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and self._read_source():
                pass
        except Exception as error:
            # an error of ours: this camera is lost until a restart, and says so; the others go on
            reason = f"the reader failed ({type(error).__name__}: {error})"
            self._note(lambda health: health.ended(reason))
            log.exception("reader_failed", camera_id=self.spec.id)
            raise

    def _read_source(self) -> bool:
        """Open the source and read it until it ends. Returns whether to open it again; waits before, if it failed."""
        try:
            source = self._open(self.spec, self._settings)
            try:
                frames = self._play(source)
            finally:
                source.close()
        except SourceError as error:
            return self._failed(str(error))
        if self._stop.is_set():
            return False
        self._backoff.reset()
        if not self.spec.loop:
            log.info("source_ended", camera_id=self.spec.id, frames=frames)
            self._note(lambda health: health.ended(f"{self.spec.shown_source} was played to its end"))
        return self.spec.loop

    def _failed(self, reason: str) -> bool:
        if self._stop.is_set():
            return False
        now = self._clock()
        delay = self._backoff.next_delay()
        self._note(lambda health: health.failed(now, reason))
        CAMERA_RECONNECTS.labels(camera_id=self.spec.id).inc()
        log.warning("source_lost", camera_id=self.spec.id, reason=reason, retry_in=round(delay, 2))
        return not self._stop.wait(delay)

    def _play(self, source: Source) -> int:
        """Read to the end. Returns how many frames there were.

        Raises:
            SourceError: the source is lost, or held no frame.
        """
        period = source.period
        fast = period is not None and self.spec.pace == "fast"
        interval = self.spec.frame_interval or self._settings.frame_interval
        watch = PictureWatch(
            self._settings.frozen_after, self._settings.blind_after, gap=interval / 2, stills=source.stills
        )
        if period is not None:
            self._health.offline_after = max(self._settings.offline_after, 3 * period)
        frames = 0
        began = due = grabbed_at = self._clock()
        while not self._stop.is_set() and source.grab():
            previous, grabbed_at = grabbed_at, self._clock()
            frames += 1
            gap = period if period is not None else grabbed_at - previous
            handed_on = self._grabbed(source, watch, grabbed_at, gap, wanted=fast)
            if grabbed_at - began > self._settings.offline_after:
                self._backoff.reset()  # a source that only answers to die again keeps its long waits
            if fast:
                if handed_on:
                    self._wait_until_taken()
            elif period is not None:
                due += period
                now = self._clock()
                if now - due > MAX_LAG:
                    due = now
                elif self._stop.wait(max(0.0, due - now)):
                    break
        if frames == 0 and not self._stop.is_set():
            raise SourceError(f"{self.spec.shown_source} holds no frame that can be decoded")
        return frames

    def _grabbed(self, source: Source, watch: PictureWatch, grabbed_at: float, gap: float, *, wanted: bool) -> bool:
        """A frame was read. Returns whether it was handed on, which it is in any case when it is `wanted` and not frozen."""
        captured_at = self._stamps.stamp()
        self._sequence += 1
        FRAMES_READ.labels(camera_id=self.spec.id).inc()
        self._note(lambda health: health.frame(grabbed_at))
        # when the one after this would come too late, this is the newest one at the time it is wanted; of a slow stream
        # the one after is waited for, since this one would be old by then
        if grabbed_at + min(gap, FRESH) < self._wanted_at and not wanted:
            return False
        image = source.retrieve()
        flaw = watch.look(image, grabbed_at)
        self._note(lambda health: health.looked(flaw))
        if flaw is Flaw.FROZEN:  # what it shows was looked at when it was new
            FRAMES_SKIPPED.labels(camera_id=self.spec.id, reason="frozen").inc()
            with self._newest_lock:
                self._wanted_at = grabbed_at + (self.spec.frame_interval or self._settings.frame_interval)
            return False
        frame = Frame(self.spec.id, image, captured_at, self._sequence)
        with self._newest_lock:
            # one before it was taken while this one was decoded: kept, it would be an interval old when the next is due;
            # where decoding takes longer than the interval, that time has come already
            if self._clock() + min(gap, FRESH) < self._wanted_at and not wanted:
                return False
            self._taken.clear()
            self._newest = frame
            if self._ready_since is None:
                self._ready_since = grabbed_at
        self._on_frame()
        return True

    def _wait_until_taken(self) -> None:
        while not self._stop.is_set() and not self._taken.wait(TOLD_EVERY):
            self._note(lambda health: health.frame(self._clock()))  # it is not the source that is silent

    def _note(self, change: Callable[[CameraHealth], bool]) -> None:
        with self._health_lock:  # held while telling, so that changes are told in order
            if self._stop.is_set() or not change(self._health) or self._health.state is None:
                return
            status = CameraStatus(self.spec.id, self._health.state, self._health.reason, self._told_at())
            CAMERA_UP.labels(camera_id=self.spec.id).set(status.state is not CameraState.OFFLINE)
            log.info("camera_status", camera_id=self.spec.id, state=status.state.value, reason=status.reason)
            self._tell(status)

    def _told_at(self) -> datetime:
        return in_utc_milliseconds(self._now())

    def _tell(self, status: CameraStatus) -> None:
        try:
            self._on_status(status)
        except DangerousDrivingError as error:
            log.warning("camera_status_not_told", camera_id=self.spec.id, reason=str(error))
