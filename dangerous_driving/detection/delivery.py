"""One frame's way out: pictures and result into the object store, then the result to the broker."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import structlog

from dangerous_driving.camera.frame import Frame
from dangerous_driving.camera.reader import utc_now
from dangerous_driving.contracts import DetectionMetadata, DetectionResult, message_id_of
from dangerous_driving.detection.crops import JPEG, crop, encode_jpeg
from dangerous_driving.detection.scene import GroupPicture, Scene, detection_result
from dangerous_driving.errors import BrokerError, InferenceError, ObjectStoreError, SpoolError
from dangerous_driving.messaging.spool import Spool, SpooledFrame, SpooledObject
from dangerous_driving.objects.keys import detection_key, frame_key, group_key
from dangerous_driving.objects.store import ObjectStore
from dangerous_driving.observability.metrics import (
    DETECTIONS_UNPUBLISHED,
    FRAMES_DETECTED,
    FRAMES_SKIPPED,
    STAGE_SECONDS,
)
from dangerous_driving.settings import DetectionSettings

log = structlog.get_logger(__name__)

JSON = "application/json"

STORE_ATTEMPTS = 3
STORE_RETRY_DELAY = 0.3  # s, doubled each time
STORE_PATIENCE = 20.0  # s; an attempt that fails later than this after a frame's first is its last

#: s without an attempt after the broker refused a message: asking a broker that is away can block for seconds.
PUBLISH_PAUSE = 3.0
#: s for acknowledgements that are still out when the service stops.
FLUSH_TIMEOUT = 5.0


class Receipt(Protocol):
    """A message under way to the broker."""

    def on_done(self, callback: Callable[[BrokerError | None], None], /) -> None:
        """Call back, from any thread, with None when it is acknowledged, else with the error."""


Publish = Callable[[DetectionResult], Receipt | None]
"""Hands a result to the broker without waiting for it; raises ``BrokerError``. None: nothing to wait for."""


class ResultDelivery:
    """Stores the pictures, then the result (so that a stored result implies its pictures), then publishes it.

    Without a spool the stored result is the durable record: what the broker did not take is counted, logged and imported
    by ``dangerous-driving reimport``; a frame that cannot be stored is dropped, counted and logged.

    With a spool both wait there: the result alone when the broker did not take it, the pictures too when the store did
    not. While frames of a camera wait, newer ones of it wait behind them, so that they reach the topic in order; `Replay`
    sends them as soon as that is possible.

    Args:
        settings: crops, JPEG.
        store: for pictures and results.
        publish: sends a result (topic ``detection-results``, keyed by camera).
        model: name of the weights, for the result.
        node: this machine's name in results.
        spool: where what cannot be sent waits; None: nowhere.
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
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings, self._store, self._publish = settings, store, publish
        self._model, self._node, self._spool = model, node, spool
        self._clock, self._now = clock, now
        self._stopping = threading.Event()
        self._publish_from = clock()
        self._receipts = threading.Condition()
        self._undelivered = 0

    def deliver(self, frame: Frame, scene: Scene, seconds: float) -> None:
        """Store and publish one frame; called from several threads, for one camera in the order of capture.

        Args:
            frame: the picture as it may leave the site (privacy masks are applied).
            scene: what is in it.
            seconds: from its capture until the detections were known.
        """
        try:
            result, objects = self._prepared(frame, scene, seconds)
        except InferenceError as error:
            frame_lost(frame, "inference", error)
            return
        if self._spool is not None and self._spool.holds(frame.camera_id):
            self._keep(result, objects)
            return
        give_up = self._clock() + STORE_PATIENCE
        try:
            for item in objects:
                self._put(item, give_up)
        except ObjectStoreError as error:
            if self._spool is None or not error.retriable:
                frame_lost(frame, "store", error)
            else:
                log.warning("frame_spooled", camera_id=frame.camera_id, why="store", reason=str(error))
                self._keep(result, objects)
            return
        FRAMES_DETECTED.labels(camera_id=frame.camera_id).inc()
        self._send(result)

    def _prepared(self, frame: Frame, scene: Scene, seconds: float) -> tuple[DetectionResult, list[SpooledObject]]:
        """The result as it is published, and what has to be stored before: the stored result comes last."""
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
        if not settings.publish_images:
            return stored, objects
        # in messages only: the store has the pictures themselves
        encoded = [
            GroupPicture(self._store.url(key), base64.b64encode(data).decode())
            for key, data in zip(keys, crops, strict=True)
        ]
        return message(encoded), objects

    def _keep(self, result: DetectionResult, objects: Sequence[SpooledObject] = ()) -> None:
        """Put what is left to do into the spool; if that fails too, it is lost, counted and logged."""
        assert self._spool is not None  # noqa: S101  # looked at before
        priority = max((group.priority for group in result.traffic_groups), default=None)
        try:
            self._spool.put(
                SpooledFrame(result.camera_id, result.timestamp, priority, result.to_json(), tuple(objects))
            )
        except SpoolError as error:
            FRAMES_SKIPPED.labels(camera_id=result.camera_id, reason="spool").inc()
            log.error(  # noqa: TRY400  # the trace says no more
                "frame_lost",
                camera_id=result.camera_id,
                captured_at=result.timestamp.isoformat(),
                why="spool",
                reason=str(error),
            )

    def _put(self, item: SpooledObject, give_up: float) -> None:
        attempt = 1
        while True:
            try:
                self._store.put(item.key, item.data, item.content_type)
            except ObjectStoreError as error:
                if not error.retriable or attempt >= STORE_ATTEMPTS or self._clock() > give_up:
                    raise
                log.warning("store_retried", key=item.key, attempt=attempt, reason=str(error))
            else:
                return
            self._stopping.wait(STORE_RETRY_DELAY * 2 ** (attempt - 1))
            attempt += 1

    def _send(self, result: DetectionResult) -> None:
        if self._clock() < self._publish_from:
            self._unpublished(result)
            return
        with self._receipts:
            self._undelivered += 1
        try:
            receipt = self._publish(result)
        except BrokerError as error:
            self._publish_from = self._clock() + PUBLISH_PAUSE
            self._delivered(result, error)
            return
        if receipt is None:
            self._delivered(result, None)
        else:
            receipt.on_done(lambda error: self._delivered(result, error))

    def _delivered(self, result: DetectionResult, error: BrokerError | None) -> None:
        if error is None:
            STAGE_SECONDS.labels(stage="detected").observe((self._now() - result.timestamp).total_seconds())
        else:
            log.warning(
                "detection_result_unpublished",
                camera_id=result.camera_id,
                message_id=result.message_id,
                reason=str(error),
            )
            self._unpublished(result)
        with self._receipts:
            self._undelivered -= 1
            self._receipts.notify_all()

    def _unpublished(self, result: DetectionResult) -> None:
        if self._spool is not None:
            self._keep(result)
        else:
            DETECTIONS_UNPUBLISHED.labels(camera_id=result.camera_id).inc()

    def stop_waiting(self) -> None:
        """The service stops: attempts that fail from now on are not waited for."""
        self._stopping.set()

    def flush(self) -> None:
        """Wait for receipts that are out, at most a few s."""
        with self._receipts:
            if not self._receipts.wait_for(lambda: self._undelivered == 0, FLUSH_TIMEOUT):
                log.warning("detection_results_unacknowledged", count=self._undelivered)


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
