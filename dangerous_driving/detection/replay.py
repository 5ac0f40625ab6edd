"""Sends what waits in the spool as soon as broker and store take it, beside the live frames.

**Order.** The frames of a camera that waited go out in the order of capture, each when the one before it was
acknowledged. Live frames do not wait behind them: they go straight out, in order among themselves, as soon as broker and
store answer. For every consumer goes by the capture time and not by the place on the topic: alerts join a late sighting
to its scene without moving it back, and ring for nothing older than ``alerts.live_age``; tasks derive from each frame
alone, and old ones are left to the window lane; the page passes over a frame older than the one it shows. Whereas live
frames behind a backlog come too late for all of them: measured with 50 cameras after ten minutes without a broker, live
frames were up to 11 s late, and with a store that takes 30 ms a picture the backlog grew for ever.

**Pace.** At most `RATE` frames a second, since a partition is read in order: a backlog that is thrown onto the topic
at once is in the way of the live frames there too.

**Refusals.** While broker or store are away, one frame is tried every ``retry`` s. A frame that is refused while others
are acknowledged holds up its own camera's backlog only, and is set aside after `GIVE_UP`; one that is too large even without
its pictures, at once.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from dangerous_driving.contracts import DetectionResult
from dangerous_driving.detection.publishing import Publish, slimmer_if_too_large
from dangerous_driving.errors import BrokerError, ContractError, ObjectStoreError, SpoolError
from dangerous_driving.messaging.spool import Spool, SpooledFrame, SpooledName
from dangerous_driving.objects.store import ObjectStore
from dangerous_driving.observability.metrics import FRAMES_DETECTED, SPOOL_REPLAYED

log = structlog.get_logger(__name__)

#: Frames per s: three times what 50 cameras give live, so that ten minutes without a broker are sent in three, and a
#: consumer's lag stays small.
RATE = 100.0

#: Cameras whose frame is on its way at a time.
MAX_UNDER_WAY = 64

#: Frames that are being stored at a time, as many as live ones.
STORERS = 4

#: s until a receipt that does not come counts as none; longer than a producer tries by default.
RECEIPT_TIMEOUT = 45.0

#: s for which a frame may be refused while others are acknowledged; the broker keeps detection results no longer.
GIVE_UP = 3600.0

#: s between looks at the spool while there is nothing to do.
IDLE = 0.2


@dataclass(slots=True)
class _Trouble:
    """A frame that failed."""

    name: SpooledName
    failed_at: float
    refused_since: float | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    name: SpooledName
    frame: SpooledFrame | None  # None: there was nothing to send any more
    error: BrokerError | ObjectStoreError | None = None


class Replay:
    """A thread that empties a spool; a frame leaves it when the broker has acknowledged it.

    Args:
        spool: what waits.
        store: for objects that are not stored yet.
        publish: sends a result.
        retry: s between attempts while broker or store are away.
        answered: when (monotonic, s) the broker last acknowledged a live frame; without it, only what the spool sent
            tells a refused frame from a broker that is away.
        on_failure: called when the thread ends by an error of ours, so that the service does not go on without it.
        rate: frames per s at most.
        give_up: s; see `GIVE_UP`.
    """

    def __init__(
        self,
        spool: Spool,
        store: ObjectStore,
        publish: Publish,
        *,
        retry: float,
        answered: Callable[[], float] = lambda: 0.0,
        on_failure: Callable[[], None] = lambda: None,
        rate: float = RATE,
        give_up: float = GIVE_UP,
    ) -> None:
        self._spool, self._store, self._retry = spool, store, retry
        self._publish = slimmer_if_too_large(publish)
        self._live_answered, self._on_failure = answered, on_failure
        self._interval, self._give_up = 1 / rate, give_up
        self._stop = threading.Event()
        self._outcomes: queue.SimpleQueue[_Outcome | BaseException | None] = queue.SimpleQueue()
        self._under_way: dict[str, tuple[SpooledName, float]] = {}
        self._troubles: dict[str, _Trouble] = {}  # of a camera's oldest frame
        self._away = False
        self._next = 0.0  # when the next frame may start
        self._answered_at = 0.0
        self._busy_since: float | None = None
        self._sent = 0
        self._thread = threading.Thread(target=self._run, name="spool-replay", daemon=True)

    def start(self) -> None:
        """Begin."""
        if len(self._spool):
            log.info("spool_found", frames=len(self._spool), bytes=self._spool.bytes_used)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End, at most after so many s; what is not acknowledged by then waits for the next start."""
        self._stop.set()
        self._outcomes.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        storers = ThreadPoolExecutor(STORERS, thread_name_prefix="spool-store")
        try:
            while not self._stop.is_set():
                self._begin(storers)
                self._end(self._pause())
        except BaseException:
            log.exception("replay_failed")
            self._on_failure()
            raise
        finally:
            storers.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + RECEIPT_TIMEOUT  # `stop` waits as long as it wants to
        while self._under_way and time.monotonic() < deadline:
            self._end(deadline - time.monotonic())

    def _pause(self) -> float:
        # what ends wakes it; only the next frame's turn comes by itself
        pause = self._next - time.monotonic()
        return pause if len(self._spool) and 0 < pause < IDLE else IDLE

    # a frame starts

    def _begin(self, storers: ThreadPoolExecutor) -> None:
        now = time.monotonic()
        self._tell(now)
        for camera_id, (name, since) in list(self._under_way.items()):
            if now - since > RECEIPT_TIMEOUT:
                self._failed(name, None, BrokerError(f"no receipt within {RECEIPT_TIMEOUT:g} s"))
                del self._under_way[camera_id]
        if now < self._next or not len(self._spool):
            return
        most = 1 if self._away else MAX_UNDER_WAY
        for name in sorted(self._spool.heads(), key=self._turn):
            if len(self._under_way) >= most or now < self._next:
                return
            trouble = self._trouble(name)
            if name.camera_id in self._under_way or (
                trouble is not None and not self._away and now < trouble.failed_at + self._retry
            ):
                continue
            self._under_way[name.camera_id] = (name, now)
            self._next = max(self._next, now - IDLE) + self._interval
            storers.submit(self._send, name).add_done_callback(functools.partial(self._left, name))

    def _turn(self, name: SpooledName) -> tuple[float, SpooledName]:
        # what failed last comes last, so that a frame which nobody takes is not the only one ever tried
        trouble = self._trouble(name)
        return (0.0 if trouble is None else trouble.failed_at, name)

    def _trouble(self, name: SpooledName) -> _Trouble | None:
        trouble = self._troubles.get(name.camera_id)
        return trouble if trouble is not None and trouble.name == name else None

    def _send(self, name: SpooledName) -> None:
        frame = self._spool.read(name)
        if frame is None:
            self._outcomes.put(_Outcome(name, None))
            return
        try:
            result = DetectionResult.from_json(frame.result)
        except ContractError as error:
            self._spool.give_up(frame, str(error))
            self._outcomes.put(_Outcome(name, None))
            return
        try:
            if frame.objects:
                for item in frame.objects:
                    self._store.put(item.key, item.data, item.content_type)
                FRAMES_DETECTED.labels(camera_id=frame.camera_id).inc()
                frame = self._without_objects(frame)
            receipt = self._publish(result)
        except (ObjectStoreError, BrokerError) as error:
            self._outcomes.put(_Outcome(name, frame, error))
            return
        if receipt is None:
            self._outcomes.put(_Outcome(name, frame))
        else:
            sent = frame
            receipt.on_done(lambda error: self._outcomes.put(_Outcome(name, sent, error)))

    def _without_objects(self, frame: SpooledFrame) -> SpooledFrame:
        # with a broker that answers, the frame will be gone in a moment
        if self._away:
            try:
                self._spool.stored(frame)
            except SpoolError as error:
                log.warning("spooled_pictures_not_removed", camera_id=frame.camera_id, reason=str(error))
        return frame

    def _left(self, name: SpooledName, sending: Future[None]) -> None:
        if sending.cancelled():
            self._outcomes.put(_Outcome(name, None))
        elif (error := sending.exception()) is not None:
            self._outcomes.put(error)

    # a frame ends

    def _end(self, timeout: float) -> None:
        """Take in what has ended, after waiting so many s for the first."""
        try:
            outcome = self._outcomes.get(timeout=max(0.0, timeout))
            while True:
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is not None:
                    self._ended(outcome)
                outcome = self._outcomes.get_nowait()
        except queue.Empty:
            return

    def _ended(self, outcome: _Outcome) -> None:
        name, frame = outcome.name, outcome.frame
        if self._under_way.get(name.camera_id, (None,))[0] == name:
            del self._under_way[name.camera_id]
        if outcome.error is not None:
            self._failed(name, frame, outcome.error)
            return
        self._troubles.pop(name.camera_id, None)
        if frame is None:
            return
        self._answered_at = time.monotonic()
        self._away = False
        self._spool.done(frame)
        self._sent += 1
        SPOOL_REPLAYED.labels(camera_id=name.camera_id).inc()

    def _failed(self, name: SpooledName, frame: SpooledFrame | None, error: BrokerError | ObjectStoreError) -> None:
        if frame is not None and not error.retriable:
            self._troubles.pop(name.camera_id, None)
            self._spool.give_up(frame, str(error))
            return
        now = time.monotonic()
        before = self._trouble(name)
        trouble = self._troubles[name.camera_id] = _Trouble(name, now)
        if before is not None and max(self._answered_at, self._live_answered()) > before.failed_at:
            # others were acknowledged meanwhile: it is this frame, or its partition
            trouble.refused_since = before.failed_at if before.refused_since is None else before.refused_since
            if frame is not None and now - trouble.refused_since > self._give_up:
                del self._troubles[name.camera_id]
                self._spool.give_up(frame, str(error))
            return
        if not self._away:
            log.warning(
                "spool_waits",
                frames=len(self._spool),
                bytes=self._spool.bytes_used,
                retry=self._retry,
                reason=str(error),
            )
        self._away = True
        self._next = max(self._next, now + self._retry)

    def _tell(self, now: float) -> None:
        waiting = len(self._spool)
        if waiting and self._busy_since is None:
            self._busy_since, self._sent = now, 0
        elif not waiting and self._busy_since is not None:
            log.info("spool_emptied", sent=self._sent, seconds=round(now - self._busy_since, 1))
            self._busy_since = None
