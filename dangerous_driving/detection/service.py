"""The detection service: frames of all cameras -> detections and groups -> object store -> ``detection-results``."""

from __future__ import annotations

import base64
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from dangerous_driving.camera.frame import Frame
from dangerous_driving.camera.reader import CameraReader, utc_now
from dangerous_driving.camera.relay import StatusRelay
from dangerous_driving.camera.source import OpenSource, open_source
from dangerous_driving.camera.status import CameraStatus
from dangerous_driving.contracts import DetectionMetadata, DetectionResult, message_id_of
from dangerous_driving.detection.crops import JPEG, crop, encode_jpeg
from dangerous_driving.detection.engine import Detection, Engine
from dangerous_driving.detection.priority import RoadUsers
from dangerous_driving.detection.scene import GroupPicture, Scene, detection_result, scene_of
from dangerous_driving.detection.schedule import Schedule, batch_limit
from dangerous_driving.errors import BrokerError, ConfigError, InferenceError, ObjectStoreError
from dangerous_driving.objects.keys import detection_key, frame_key, group_key
from dangerous_driving.objects.store import ObjectStore
from dangerous_driving.observability.metrics import (
    DETECTIONS,
    DETECTIONS_UNPUBLISHED,
    FRAME_INTERVAL,
    FRAMES_DETECTED,
    FRAMES_SKIPPED,
    INFERENCE_FRAMES,
    INFERENCE_SECONDS,
    STAGE_SECONDS,
)
from dangerous_driving.settings import CameraSettings, DetectionSettings

log = structlog.get_logger(__name__)

JSON = "application/json"

#: Threads that encode and store; a frame's pictures are stored one after the other by one of them.
WRITERS = 4

#: Frames that are being stored or wait for it; with more, no further ones are taken from the cameras.
MAX_UNSTORED = 16

STORE_ATTEMPTS = 3
STORE_RETRY_DELAY = 0.3  # s, doubled each time
STORE_PATIENCE = 20.0  # s; an attempt that fails later than this after a frame's first is its last

#: s without an attempt after the broker refused a message: asking a broker that is away can block for seconds.
PUBLISH_PAUSE = 3.0
#: s for acknowledgements that are still out when the service stops.
FLUSH_TIMEOUT = 5.0

#: Inferences in a row that may fail before the service gives up: then it is not the pictures.
MAX_INFERENCE_FAILURES = 20

#: s; how long the loop sleeps at most, and so how late it notices a stop or a silent camera.
TICK = 0.2
READER_TIMEOUT = 2.0  # s for all readers to end
STATUS_TIMEOUT = 2.0  # s for the last states to be told

#: Weight of the latest inference in the running mean of seconds per frame.
SMOOTHING = 0.2


class Delivery(Protocol):
    """A message under way to the broker."""

    def on_done(self, callback: Callable[[BrokerError | None], None], /) -> None:
        """Call back, from any thread, with None when it is acknowledged, else with the error."""


Publish = Callable[[DetectionResult], Delivery | None]
"""Hands a result to the broker without waiting for it; raises ``BrokerError``. None: nothing to wait for."""


@dataclass(slots=True)
class _Camera:
    reader: CameraReader
    road_users: RoadUsers | None = None
    captured_at: datetime | None = None
    storing: bool = False


class DetectionService:
    """Takes a frame of each camera per frame interval, and sends what is in it.

    The pictures and the result itself are stored first, the result last, so that a stored result implies its pictures;
    then it is published. The stored result is the durable record: what the broker did not take is counted, logged and
    imported by ``dangerous-driving reimport``. A frame that cannot be stored is dropped, counted and logged.

    When detection or the store cannot keep up, frames are skipped, since readers keep only the newest: latency does not
    grow. A camera's results are stored and sent in the order of capture.

    Args:
        cameras: the cameras and how to read them.
        settings: inference, grouping, crops.
        engine: finds road users.
        store: for pictures and results.
        publish: sends a result (topic ``detection-results``, keyed by camera).
        on_status: told of each camera's changes of state, from a thread of its own; it may take its time.
        node: this machine's name in results.
        source_opener: opens a camera's source.
        clock: monotonic seconds.
        now: the wall clock, UTC.

    Raises:
        ConfigError: there is no camera.
    """

    def __init__(
        self,
        cameras: CameraSettings,
        settings: DetectionSettings,
        engine: Engine,
        store: ObjectStore,
        publish: Publish,
        *,
        on_status: Callable[[CameraStatus], None] = lambda _: None,
        node: str = "",
        source_opener: OpenSource = open_source,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        if not cameras.cameras:
            raise ConfigError("camera.cameras (--source)", "there is no camera", "name at least one")
        self._settings, self._engine, self._store, self._publish = settings, engine, store, publish
        self._node, self._clock, self._now = node, clock, now
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._schedule = Schedule()
        self._statuses = StatusRelay(on_status)
        self._cameras: dict[str, _Camera] = {}
        for spec in cameras.cameras:
            reader = CameraReader(
                spec,
                cameras,
                on_status=self._statuses.tell,
                on_frame=self._wake.set,
                source_opener=source_opener,
                clock=clock,
                now=now,
            )
            self._cameras[spec.id] = _Camera(reader)
            self._schedule.add(spec.id, spec.frame_interval or cameras.frame_interval, clock())
        self._seconds_per_frame: float | None = None
        self._inference_failures = 0
        self._unexpected: BaseException | None = None
        self._publish_from = clock()
        self._deliveries = threading.Condition()
        self._undelivered = 0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what was detected by then is stored and sent.

        Raises:
            InferenceError: the engine fails on every picture.
        """
        self._statuses.start()
        for camera in self._cameras.values():
            camera.reader.start()
        log.info("detection_started", cameras=len(self._cameras), model=self._engine.model_name)
        try:
            with ThreadPoolExecutor(WRITERS, thread_name_prefix="store") as writers:
                while not stop.is_set():
                    self._wake.clear()
                    if not self._step(writers):
                        self._wake.wait(self._idle_time())
                for camera in self._cameras.values():
                    camera.reader.stop()
                self._stopping.set()
        finally:
            self._end_readers()
        if self._unexpected is not None:
            raise self._unexpected
        self._flush()

    def _step(self, writers: ThreadPoolExecutor) -> bool:
        """Detect what is due. Returns whether there was anything."""
        unexpected = self._unexpected or self._statuses.error
        if unexpected is not None:
            raise unexpected
        for camera in self._cameras.values():
            camera.reader.check()
        frames = self._take_due()
        for frame, detections, seconds in self._detect(frames):
            camera = self._cameras[frame.camera_id]
            scene = scene_of(detections, frame.image.shape[1], self._settings, camera.road_users)
            camera.road_users = scene.road_users
            if camera.captured_at is not None:
                interval = (frame.captured_at - camera.captured_at).total_seconds()
                FRAME_INTERVAL.labels(camera_id=frame.camera_id).set(interval)
            camera.captured_at = frame.captured_at
            DETECTIONS.labels(camera_id=frame.camera_id).inc(len(scene.objects))
            camera.storing = True
            storing = writers.submit(self._deliver, frame, scene, seconds)
            storing.add_done_callback(functools.partial(self._stored, camera))
        return bool(frames)

    def _take_due(self) -> list[Frame]:
        now = self._clock()
        # a camera whose frame is still being stored waits, so that its frames keep their order
        ready = {
            camera_id: since
            for camera_id, camera in self._cameras.items()
            if not camera.storing and (since := camera.reader.ready_since) is not None
        }
        storing = sum(camera.storing for camera in self._cameras.values())
        limit = min(
            batch_limit(self._settings.batch_size, self._settings.batch_delay, self._seconds_per_frame),
            MAX_UNSTORED - storing,
        )
        frames: list[Frame] = []
        for camera_id in self._schedule.next_batch(now, ready, limit):
            due, skipped = self._schedule.served(camera_id, now, ready[camera_id])
            if skipped:
                FRAMES_SKIPPED.labels(camera_id=camera_id, reason="behind").inc(skipped)
            frame = self._cameras[camera_id].reader.take(due)
            if frame is not None:
                frames.append(frame)
        return frames

    def _detect(self, frames: Sequence[Frame]) -> list[tuple[Frame, list[Detection], float]]:
        """Detections of each frame, with the seconds from its capture until they were known."""
        if not frames:
            return []
        began = self._clock()
        try:
            found = self._engine.detect([frame.image for frame in frames])
        except InferenceError as error:
            if len(frames) > 1:  # one of them may be the cause: the others shall not go with it
                return [answer for frame in frames for answer in self._detect([frame])]
            self._inference_failures += 1
            self._lost(frames[0], "inference", error)
            if self._inference_failures >= MAX_INFERENCE_FAILURES:
                raise
            return []
        self._inference_failures = 0
        seconds = self._clock() - began
        INFERENCE_SECONDS.observe(seconds)
        INFERENCE_FRAMES.observe(len(frames))
        each = seconds / len(frames)
        mean = self._seconds_per_frame
        self._seconds_per_frame = each if mean is None else mean + SMOOTHING * (each - mean)
        now = self._now()
        return [
            (frame, detections, max(0.0, (now - frame.captured_at).total_seconds()))
            for frame, detections in zip(frames, found, strict=True)
        ]

    def _deliver(self, frame: Frame, scene: Scene, seconds: float) -> None:
        """Store and publish one frame (in a writer's thread)."""
        try:
            result = self._store_frame(frame, scene, seconds)
        except ObjectStoreError as error:
            self._lost(frame, "store", error)
            return
        except InferenceError as error:
            self._lost(frame, "inference", error)
            return
        FRAMES_DETECTED.labels(camera_id=frame.camera_id).inc()
        self._send(result)

    def _store_frame(self, frame: Frame, scene: Scene, seconds: float) -> DetectionResult:
        settings = self._settings
        address = (frame.camera_id, frame.captured_at, message_id_of(frame.camera_id, frame.captured_at))
        give_up = self._clock() + STORE_PATIENCE
        picture = encode_jpeg(frame.image, settings.jpeg_quality)
        frame_url = self._put(frame_key(*address), picture, JPEG, give_up)
        crops = [
            encode_jpeg(crop(frame.image, group.bbox, settings.crop_margin), settings.jpeg_quality)
            for group in scene.groups
        ]
        pictures = [
            GroupPicture(self._put(group_key(*address, index), data, JPEG, give_up))
            for index, data in enumerate(crops, 1)
        ]
        metadata = DetectionMetadata(
            detection_latency=round(seconds, 4), yolo_model=self._engine.model_name, processing_node=self._node
        )
        result = detection_result(frame, scene, frame_url=frame_url, pictures=pictures, metadata=metadata)
        self._put(detection_key(*address), result.to_json(), JSON, give_up)
        if not settings.publish_images:
            return result
        # in messages only: the store has the pictures themselves
        encoded = [
            GroupPicture(there.url, base64.b64encode(data).decode())
            for there, data in zip(pictures, crops, strict=True)
        ]
        return detection_result(frame, scene, frame_url=frame_url, pictures=encoded, metadata=metadata)

    def _put(self, key: str, data: bytes, content_type: str, give_up: float) -> str:
        attempt = 1
        while True:
            try:
                return self._store.put(key, data, content_type)
            except ObjectStoreError as error:
                if not error.retriable or attempt >= STORE_ATTEMPTS or self._clock() > give_up:
                    raise
                log.warning("store_retried", key=key, attempt=attempt, reason=str(error))
            self._stopping.wait(STORE_RETRY_DELAY * 2 ** (attempt - 1))
            attempt += 1

    def _send(self, result: DetectionResult) -> None:
        if self._clock() < self._publish_from:
            DETECTIONS_UNPUBLISHED.labels(camera_id=result.camera_id).inc()
            return
        with self._deliveries:
            self._undelivered += 1
        try:
            delivery = self._publish(result)
        except BrokerError as error:
            self._publish_from = self._clock() + PUBLISH_PAUSE
            self._delivered(result, error)
            return
        if delivery is None:
            self._delivered(result, None)
        else:
            delivery.on_done(lambda error: self._delivered(result, error))

    def _delivered(self, result: DetectionResult, error: BrokerError | None) -> None:
        if error is None:
            STAGE_SECONDS.labels(stage="detected").observe((self._now() - result.timestamp).total_seconds())
        else:
            DETECTIONS_UNPUBLISHED.labels(camera_id=result.camera_id).inc()
            log.warning(
                "detection_result_unpublished",
                camera_id=result.camera_id,
                message_id=result.message_id,
                reason=str(error),
            )
        with self._deliveries:
            self._undelivered -= 1
            self._deliveries.notify_all()

    def _stored(self, camera: _Camera, done: Future[None]) -> None:
        camera.storing = False
        self._unexpected = self._unexpected or done.exception()
        self._wake.set()

    def _lost(self, frame: Frame, reason: str, error: Exception) -> None:
        FRAMES_SKIPPED.labels(camera_id=frame.camera_id, reason=reason).inc()
        log.error(
            "frame_lost",
            camera_id=frame.camera_id,
            captured_at=frame.captured_at.isoformat(),
            why=reason,
            reason=str(error),
        )

    def _idle_time(self) -> float:
        now = self._clock()
        due = self._schedule.next_due(now)
        return TICK if due is None else min(TICK, due - now)

    def _end_readers(self) -> None:
        for camera in self._cameras.values():
            camera.reader.stop()
        deadline = time.monotonic() + READER_TIMEOUT
        for camera_id, camera in self._cameras.items():
            if not camera.reader.join(max(0.0, deadline - time.monotonic())):
                log.warning("reader_still_reading", camera_id=camera_id)
        self._statuses.close(STATUS_TIMEOUT)

    def _flush(self) -> None:
        with self._deliveries:
            if not self._deliveries.wait_for(lambda: self._undelivered == 0, FLUSH_TIMEOUT):
                log.warning("detection_results_unacknowledged", count=self._undelivered)
