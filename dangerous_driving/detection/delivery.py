"""One frame's way out: pictures and result into the object store, then the result to the broker."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from dangerous_driving.camera.frame import Frame
from dangerous_driving.camera.reader import utc_now
from dangerous_driving.contracts import DetectionMetadata, DetectionResult, message_id_of
from dangerous_driving.detection.crops import JPEG, crop, encode_jpeg
from dangerous_driving.detection.publishing import Publish, slimmer_if_too_large
from dangerous_driving.detection.scene import GroupPicture, Scene, detection_result
from dangerous_driving.errors import BrokerError, InferenceError, ObjectStoreError, SpoolError
from dangerous_driving.messaging.spool import Spool, SpooledFrame, SpooledObject
from dangerous_driving.objects.keys import detection_key, frame_key, group_key
from dangerous_driving.objects.store import ObjectStore
from dangerous_driving.observability.metrics import (
    DETECTIONS_UNPUBLISHED,
    FRAMES_DETECTED,
    FRAMES_SKIPPED,
)
from dangerous_driving.observability.stages import frame_detected
from dangerous_driving.settings import DetectionSettings

log = structlog.get_logger(__name__)

JSON = "application/json"

STORE_ATTEMPTS = 3
STORE_RETRY_DELAY = 0.3  # s, doubled each time
STORE_PATIENCE = 20.0  # s; an attempt that fails later than this after a frame's first is its last

#: s without an attempt after the broker refused a message: asking a broker that is away can block for seconds.
PUBLISH_PAUSE = 3.0
#: s without a receipt after which the broker is taken to be away. The producer gives a message up much later, and one
#: whose request was out when the broker froze, not before that has answered (kafka-python 3.0.12).
STALL = 5.0
#: s for acknowledgements that are still out when the service stops.
FLUSH_TIMEOUT = 5.0


class FrameTaker(Protocol):
    """Who does without broker and store: the inline lane."""

    def takes(self, camera_id: str) -> bool:
        """Whether it wants this camera's frames now."""

    def offer(self, result: DetectionResult) -> None:
        """Take a frame's result, with its crops; must neither wait nor raise."""


class ResultDelivery:
    """Stores the pictures, then the result (so that a stored result implies its pictures), then publishes it.

    Without a spool the stored result is the durable record: what the broker did not take is counted, logged and imported
    by ``dangerous-driving reimport``; a frame that cannot be stored is dropped, counted and logged.

    With a spool both wait there: the result alone when the broker did not take it, the pictures too when the store did
    not. While broker or store seem to be away, frames go there at once, and one at a time is tried on the direct way;
    when that goes, all do again, beside `Replay`, which sends what waited (there the order is explained). A result without
    a receipt after `STALL` is kept in the spool too, until it has one or `Replay` has sent it. So a process that is
    killed loses no frame; the results of its last moments, which only the producer's memory and the store had, are
    imported by ``reimport``.

    A result that is too large goes again without its pictures. One that is too large even then waits nowhere, since the
    broker will never take it: it is counted and logged.

    Args:
        settings: crops, JPEG.
        store: for pictures and results.
        publish: sends a result (topic ``detection-results``, keyed by camera).
        model: name of the weights, for the result.
        node: this machine's name in results.
        spool: where what cannot be sent waits; None: nowhere.
        taker: offered each frame that it takes, once, before storing and sending are tried.
        clock: monotonic seconds.
        now: the wall clock, UTC.
    """

    def __init__(
        self,
        settings: DetectionSettings,
        store: ObjectStore,
        publish: Publish,
        *,
        model: str,
        node: str = "",
        spool: Spool | None = None,
        taker: FrameTaker | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings, self._store, self._publish = settings, store, slimmer_if_too_large(publish)
        self._model, self._node, self._spool, self._taker = model, node, spool, taker
        self._clock, self._now = clock, now
        self._stopping = threading.Event()
        self._publish_from = clock()
        self._way = _Way(clock)
        self._answered_at = 0.0
        # for results that come back: the producer's thread, which says so, must not wait for the disk
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="spool-keeper")
        self._receipts = threading.Condition()
        self._undelivered: dict[str, _Sent] = {}  # by message id, the oldest first

    def deliver(self, frame: Frame, scene: Scene, seconds: float) -> None:
        """Store and publish one frame; called from several threads, for one camera in the order of capture.

        Args:
            frame: the picture as it may leave the site (privacy masks are applied).
            scene: what is in it.
            seconds: from its capture until the detections were known.
        """
        try:
            result, with_crops, objects = self._prepared(frame, scene, seconds)
        except InferenceError as error:
            frame_lost(frame, "inference", error)
            return
        if self._taker is not None and self._taker.takes(frame.camera_id):
            self._taker.offer(with_crops())
        attempt: _Attempt | None = _Attempt(self._clock())
        if self._spool is not None:
            self._keep_stalled()
            attempt = self._way.begin()
        if attempt is None:
            self._keep(result, objects)
            return
        give_up = self._clock() + STORE_PATIENCE
        try:
            for item in objects:
                self._put(item, give_up)
        except ObjectStoreError as error:
            if self._spool is None or not error.retriable:
                self._way.end(attempt)
                frame_lost(frame, "store", error)
            else:
                self._way.failed(attempt, "store", error)
                self._keep(result, objects)
            return
        FRAMES_DETECTED.labels(camera_id=frame.camera_id).inc()
        self._send(result, attempt)

    @property
    def answered_at(self) -> float:
        """When the broker last acknowledged a result (s of the clock); 0.0: never."""
        return self._answered_at

    @property
    def in_hand(self) -> int:
        """How many stored results this process alone would publish: no receipt has come, and the spool has them not."""
        with self._receipts:
            return sum(not sent.kept for sent in self._undelivered.values())

    def _prepared(
        self, frame: Frame, scene: Scene, seconds: float
    ) -> tuple[DetectionResult, Callable[[], DetectionResult], list[SpooledObject]]:
        """The result as it is published, the same with crops, and what has to be stored: the stored result comes last."""
        settings = self._settings
        address = (frame.camera_id, frame.captured_at, message_id_of(frame.camera_id, frame.captured_at))
        crops = [
            encode_jpeg(crop(frame.image, group.bbox, settings.crop_margin), settings.jpeg_quality)
            for group in scene.groups
        ]
        keys = [group_key(*address, index) for index in range(1, len(crops) + 1)]
        metadata = DetectionMetadata(
            detection_latency=round(seconds, 4), yolo_model=self._model, processing_node=self._node
        )
        picture = frame_key(*address)

        def message(pictures: list[GroupPicture]) -> DetectionResult:
            return detection_result(
                frame, scene, frame_url=self._store.url(picture), pictures=pictures, metadata=metadata
            )

        stored = message([GroupPicture(self._store.url(key)) for key in keys])
        objects = [
            SpooledObject(picture, JPEG, encode_jpeg(frame.image, settings.jpeg_quality)),
            *(SpooledObject(key, JPEG, data) for key, data in zip(keys, crops, strict=True)),
            SpooledObject(detection_key(*address), JSON, stored.to_json()),
        ]

        def with_crops() -> DetectionResult:  # never stored: the store has the pictures themselves
            return message(
                [
                    GroupPicture(self._store.url(key), base64.b64encode(data).decode())
                    for key, data in zip(keys, crops, strict=True)
                ]
            )

        return with_crops() if settings.publish_images else stored, with_crops, objects

    def _keep(self, result: DetectionResult, objects: Sequence[SpooledObject] = ()) -> None:
        """Put what is left to do into the spool; what fails there too is counted and logged."""
        assert self._spool is not None  # noqa: S101  # looked at before
        try:
            self._spool.put(_waiting(result, objects))
        except SpoolError as error:
            if objects:
                FRAMES_SKIPPED.labels(camera_id=result.camera_id, reason="spool").inc()
            else:
                DETECTIONS_UNPUBLISHED.labels(camera_id=result.camera_id).inc()
            log.error(  # noqa: TRY400  # the trace says no more
                "frame_lost" if objects else "detection_result_unpublished",
                camera_id=result.camera_id,
                captured_at=result.timestamp.isoformat(),
                why="spool",
                reason=str(error),
            )

    def _keep_stalled(self) -> None:
        now = self._clock()
        stalled: list[_Sent] = []
        with self._receipts:
            for sent in self._undelivered.values():
                if now - sent.attempt.began < STALL:
                    break
                if not sent.kept:
                    sent.kept = True
                    stalled.append(sent)
        for sent in stalled:
            self._keep(sent.result)
            self._way.failed(sent.attempt, "broker", BrokerError(f"no receipt within {STALL:g} s"), over=False)

    def _put(self, item: SpooledObject, give_up: float) -> None:
        # with a spool a frame that waits for the store is in nobody's way there, but is here
        attempts = STORE_ATTEMPTS if self._spool is None else 1
        attempt = 1
        while True:
            try:
                self._store.put(item.key, item.data, item.content_type)
            except ObjectStoreError as error:
                if not error.retriable or attempt >= attempts or self._clock() > give_up:
                    raise
                log.warning("store_retried", key=item.key, attempt=attempt, reason=str(error))
            else:
                return
            self._stopping.wait(STORE_RETRY_DELAY * 2 ** (attempt - 1))
            attempt += 1

    def _send(self, result: DetectionResult, attempt: _Attempt) -> None:
        if self._spool is None and self._clock() < self._publish_from:
            DETECTIONS_UNPUBLISHED.labels(camera_id=result.camera_id).inc()
            return
        sent = _Sent(result, attempt)
        if attempt.alone:  # it will probably fail, and shall outlive a kill until then
            sent.kept = True
            self._keep(result)
        with self._receipts:
            self._undelivered[result.message_id] = sent
        try:
            receipt = self._publish(result)
        except BrokerError as error:
            if error.retriable:  # else it is this message, and the broker may be there
                self._publish_from = self._clock() + PUBLISH_PAUSE
            self._delivered(sent, error)
            return
        if receipt is None:
            self._delivered(sent, None)
        else:
            receipt.on_done(lambda error: self._delivered(sent, error))

    def _delivered(self, sent: _Sent, error: BrokerError | None) -> None:
        result = sent.result
        over = error is None or not error.retriable  # to wait in the spool would not change it
        if error is None:
            self._answered_at = self._clock()
            self._way.worked()
            frame_detected(result, known_after=result.metadata.detection_latency or 0.0, at=self._now())
        elif self._spool is not None and not over:
            self._way.failed(sent.attempt, "broker", error)
        else:
            self._way.end(sent.attempt)
            log.warning(
                "detection_result_unpublished",
                camera_id=result.camera_id,
                message_id=result.message_id,
                reason=str(error),
            )
            DETECTIONS_UNPUBLISHED.labels(camera_id=result.camera_id).inc()
        if self._spool is None or (over and not sent.kept):
            self._settled(result)
            return
        try:
            self._keeper.submit(self._keep_or_remove, sent, over)
        except RuntimeError:  # the process ends, and `flush` has kept what was out
            self._settled(result)

    def _keep_or_remove(self, sent: _Sent, over: bool) -> None:
        assert self._spool is not None  # noqa: S101  # looked at before
        if over:
            self._spool.done(_waiting(sent.result))
        elif not sent.kept:
            self._keep(sent.result)
        self._settled(sent.result)

    def _settled(self, result: DetectionResult) -> None:
        with self._receipts:
            self._undelivered.pop(result.message_id, None)
            self._receipts.notify_all()

    def stop_waiting(self) -> None:
        """The service stops: attempts that fail from now on are not waited for."""
        self._stopping.set()

    def flush(self) -> None:
        """Wait for receipts that are out, at most a few s; what has none by then goes to the spool, if there is one."""
        with self._receipts:
            self._receipts.wait_for(lambda: not self._undelivered, FLUSH_TIMEOUT)
            left = list(self._undelivered.values())
            unkept = [sent for sent in left if not sent.kept]
            for sent in unkept:
                sent.kept = True
        if left:
            log.warning("detection_results_unacknowledged", count=len(left), spooled=self._spool is not None)
        if self._spool is not None:
            for sent in unkept:
                self._keep(sent.result)  # it may arrive yet, and then comes twice, under the same id


def _waiting(result: DetectionResult, objects: Sequence[SpooledObject] = ()) -> SpooledFrame:
    priority = max((group.priority for group in result.traffic_groups), default=None)
    return SpooledFrame(result.camera_id, result.timestamp, priority, result.to_json(), tuple(objects))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One frame on the direct way. ``alone``: the only one, while broker or store are taken to be away."""

    began: float
    alone: bool = False


@dataclass(slots=True)
class _Sent:
    """A result without a receipt. ``kept``: the spool has it too."""

    result: DetectionResult
    attempt: _Attempt
    kept: bool = False


class _Way:
    """Whether frames go straight to store and broker; while those are away, one at a time does, to find out.

    After the first failure the next frame tries at once, so that a single failure holds up nothing; then there is
    `PUBLISH_PAUSE` between attempts. Called from several threads.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._away = False
        self._tried_at: float | None = None  # when the attempt began that is under way
        self._try_from = 0.0
        self._worked_at = 0.0

    def begin(self) -> _Attempt | None:
        """An attempt, which has to end in some way; None: this frame is to wait in the spool."""
        now = self._clock()
        with self._lock:
            if not self._away:
                return _Attempt(now)
            under_way = self._tried_at is not None and now - self._tried_at < STALL
            if under_way or now < self._try_from:
                return None
            self._tried_at = now
            return _Attempt(now, alone=True)

    def end(self, attempt: _Attempt) -> None:
        """It says nothing of broker and store."""
        with self._lock:
            if attempt.alone:
                self._tried_at = None

    def worked(self) -> None:
        """Both have answered."""
        with self._lock:
            was_away, self._away, self._tried_at = self._away, False, None
            self._worked_at = self._clock()
        if was_away:
            log.info("spooling_ended")

    def failed(self, attempt: _Attempt, part: str, error: Exception, *, over: bool = True) -> None:
        """The part (store, broker) did not answer. ``over``: and will not; else it may yet."""
        with self._lock:
            if attempt.alone and over:
                self._tried_at = None
            if attempt.began < self._worked_at:
                return  # other frames were taken since: it is this one, or an outage that is over
            was_away, self._away = self._away, True
            self._try_from = self._clock() + (PUBLISH_PAUSE if was_away else 0.0)
        if not was_away:
            log.warning("spooling_began", why=part, reason=str(error))


def frame_lost(frame: Frame, reason: str, error: Exception) -> None:
    """Count and log a frame that is given up.

    Args:
        frame: the frame.
        reason: label of the metric.
        error: why.
    """
    FRAMES_SKIPPED.labels(camera_id=frame.camera_id, reason=reason).inc()
    log.error(
        "frame_lost",
        camera_id=frame.camera_id,
        captured_at=frame.captured_at.isoformat(),
        why=reason,
        reason=str(error),
    )
