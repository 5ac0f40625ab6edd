"""Sends what waits in the spool, in order of capture, as soon as broker and store take it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from dangerous_driving.contracts import DetectionResult
from dangerous_driving.detection.delivery import Publish
from dangerous_driving.errors import BrokerError, ContractError, ObjectStoreError
from dangerous_driving.messaging.spool import Spool, SpooledFrame
from dangerous_driving.objects.store import ObjectStore
from dangerous_driving.observability.metrics import SPOOL_REPLAYED

log = structlog.get_logger(__name__)

#: Frames on their way at a time: enough to fill the producer's batches, few enough for memory.
BATCH = 32

#: s until a receipt that does not come counts as none; longer than any producer keeps a message.
RECEIPT_TIMEOUT = 120.0

#: s between looks into an empty spool.
IDLE = 0.5


class Replay:
    """A thread that empties a spool.

    A frame leaves the spool when the brokers have acknowledged it. When one is refused, those after it are sent again
    with it, so that they stay in order; receivers know them by their ids.

    Args:
        spool: what waits.
        store: for objects that are not stored yet.
        publish: sends a result.
        retry: s between attempts while broker or store are away.
        on_failure: called when the thread ends by an error of ours, so that the service does not go on without it.
    """

    def __init__(
        self,
        spool: Spool,
        store: ObjectStore,
        publish: Publish,
        *,
        retry: float,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._spool, self._store, self._publish, self._retry = spool, store, publish, retry
        self._on_failure = on_failure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-replay", daemon=True)

    def start(self) -> None:
        """Begin."""
        if len(self._spool):
            log.info("spool_found", frames=len(self._spool), bytes=self._spool.bytes_used)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End, at most after so many s; what is left waits for the next start."""
        self._stop.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._empty()
        except Exception:
            log.exception("replay_failed")
            self._on_failure()
            raise

    def _empty(self) -> None:
        troubled = False
        while not self._stop.is_set():
            frames = self._spool.oldest(BATCH)
            if not frames:
                if troubled:
                    log.info("spool_emptied")
                    troubled = False
                self._stop.wait(IDLE)
                continue
            try:
                self._send(frames)
            except (ObjectStoreError, BrokerError) as error:
                if not troubled:
                    log.warning("spool_waits", frames=len(self._spool), bytes=self._spool.bytes_used, reason=str(error))
                self._stop.wait(self._retry)
            troubled = True

    def _send(self, frames: list[SpooledFrame]) -> None:
        """Send frames in order; those up to the first that fails leave the spool.

        Raises:
            ObjectStoreError: the store is away.
            BrokerError: the broker is away, or did not acknowledge in time.
        """
        under_way: list[tuple[SpooledFrame, _Outcome]] = []
        failure: ObjectStoreError | BrokerError | None = None
        for frame in frames:
            try:
                outcome = self._begin(frame)
            except (ObjectStoreError, BrokerError) as error:
                failure = error
                break
            if outcome is not None:
                under_way.append((frame, outcome))
        for frame, outcome in under_way:
            outcome.wait()
            self._spool.done(frame)
            SPOOL_REPLAYED.labels(camera_id=frame.camera_id).inc()
        if failure is not None:
            raise failure

    def _begin(self, frame: SpooledFrame) -> _Outcome | None:
        try:
            result = DetectionResult.from_json(frame.result)
        except ContractError as error:
            self._spool.give_up(frame, str(error))
            return None
        for item in frame.objects:
            self._store.put(item.key, item.data, item.content_type)
        outcome = _Outcome()
        receipt = self._publish(result)
        if receipt is None:
            outcome.tell(None)
        else:
            receipt.on_done(outcome.tell)
        return outcome


class _Outcome:
    """How a message's delivery ended, told from another thread."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._error: BrokerError | None = None

    def tell(self, error: BrokerError | None) -> None:
        self._error = error
        self._ended.set()

    def wait(self) -> None:
        if not self._ended.wait(RECEIPT_TIMEOUT):
            raise BrokerError(f"no receipt within {RECEIPT_TIMEOUT:g} s")
        if self._error is not None:
            raise self._error
