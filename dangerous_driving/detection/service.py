"""The detection service: frames of all cameras -> detections and groups -> object store -> ``detection-results``."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import structlog

from dangerous_driving.camera.frame import Frame
from dangerous_driving.camera.reader import CameraReader, utc_now
from dangerous_driving.camera.relay import StatusRelay
from dangerous_driving.camera.source import OpenSource, open_source
from dangerous_driving.camera.status import CameraStatus
from dangerous_driving.detection.delivery import ResultDelivery, frame_lost
from dangerous_driving.detection.engine import Detection, Engine
from dangerous_driving.detection.priority import RoadUsers
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.detection.schedule import Schedule, batch_limit
from dangerous_driving.errors import ConfigError, InferenceError
from dangerous_driving.observability.metrics import (
    DETECTIONS,
    FRAME_INTERVAL,
    FRAMES_SKIPPED,
    INFERENCE_FRAMES,
    INFERENCE_SECONDS,
)
from dangerous_driving.settings import CameraSettings, DetectionSettings

log = structlog.get_logger(__name__)

#: Threads that encode and store; a frame's pictures are stored one after the other by one of them.
WRITERS = 4

#: Frames that are being stored or wait for it; with more, no further ones are taken from the cameras.
MAX_UNSTORED = 16

#: Inferences in a row that may fail before the service gives up: then it is not the pictures.
MAX_INFERENCE_FAILURES = 20

#: s; how long the loop sleeps at most, and so how late it notices a stop or a silent camera.
TICK = 0.2
READER_TIMEOUT = 2.0  # s for all readers to end
STATUS_TIMEOUT = 2.0  # s for the last states to be told

#: Weight of the latest inference in the running mean of seconds per frame.
SMOOTHING = 0.2


@dataclass(slots=True)
class _Camera:
    reader: CameraReader
    road_users: RoadUsers | None = None
    captured_at: datetime | None = None
    storing: bool = False


class DetectionService:
    """Takes a frame of each camera per frame interval, and sends what is in it.

    When detection or the store cannot keep up, frames are skipped, since readers keep only the newest: latency does not
    grow. A camera's results are stored and sent in the order of capture.

    Args:
        cameras: the cameras and how to read them.
        settings: inference, grouping, crops.
        engine: finds road users.
        delivery: stores and sends what was found.
        on_status: told of each camera's changes of state, from a thread of its own; it may take its time.
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
        delivery: ResultDelivery,
        *,
        on_status: Callable[[CameraStatus], None] = lambda _: None,
        source_opener: OpenSource = open_source,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        if not cameras.cameras:
            raise ConfigError("camera.cameras (--source)", "there is no camera", "name at least one")
        self._settings, self._engine = settings, engine
        self._clock, self._now = clock, now
        self._delivery = delivery
        self._wake = threading.Event()
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
                self._delivery.stop_waiting()
        finally:
            self._end_readers()
        if self._unexpected is not None:
            raise self._unexpected
        self._delivery.flush()

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
            storing = writers.submit(self._delivery.deliver, frame, scene, seconds)
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
            frame_lost(frames[0], "inference", error)
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

    def _stored(self, camera: _Camera, done: Future[None]) -> None:
        camera.storing = False
        self._unexpected = self._unexpected or done.exception()
        self._wake.set()

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
