"""The detection service: frames of all cameras -> detections and groups -> object store -> ``detection-results``."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from dangerous_driving.camera.frame import Frame
from dangerous_driving.camera.reader import CameraReader, utc_now
from dangerous_driving.camera.relay import StatusRelay
from dangerous_driving.camera.source import OpenSource, open_source
from dangerous_driving.camera.status import CameraState, CameraStatus
from dangerous_driving.detection.delivery import ResultDelivery, frame_lost
from dangerous_driving.detection.engine import Detection, Engine
from dangerous_driving.detection.motion import MotionGate
from dangerous_driving.detection.priority import RoadUsers
from dangerous_driving.detection.privacy import masked
from dangerous_driving.detection.scene import Scene, scene_of
from dangerous_driving.detection.schedule import Schedule, batch_limit
from dangerous_driving.errors import ConfigError, InferenceError
from dangerous_driving.observability.metrics import (
    DETECTIONS,
    FRAME_INTERVAL,
    FRAMES_SKIPPED,
    INFERENCE_FRAMES,
    INFERENCE_SECONDS,
    forget_camera,
)
from dangerous_driving.settings import CameraSettings, CameraSpec, DetectionSettings, PrivacySpec

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

#: Frame intervals after which the frame before says nothing of this one.
MAX_INTERVALS = 3.0

#: Weight of the latest inference in the running mean of seconds per frame.
SMOOTHING = 0.2


@dataclass(slots=True)
class _Camera:
    spec: CameraSpec
    reader: CameraReader
    gate: MotionGate | None
    before: _Before | None = None
    storing: bool = False


@dataclass(frozen=True, slots=True)
class _Before:
    """What is kept of a camera's last frame."""

    captured_at: datetime
    size: tuple[int, ...]
    road_users: RoadUsers


class DetectionService:
    """Takes a frame of each camera per frame interval, and sends what is in it.

    When detection or the store cannot keep up, frames are skipped, since readers keep only the newest: latency does not
    grow. A camera's results are stored and sent in the order of capture.

    Args:
        cameras: the cameras to begin with and how to read them; see `apply`.
        settings: inference, grouping, crops.
        engine: finds road users.
        delivery: stores and sends what was found.
        on_status: told of each camera's changes of state, from a thread of its own; it may take its time. When it raises a
            retriable error, it is told of that state again.
        source_opener: opens a camera's source.
        waits_for_cameras: no camera at the beginning is no error.
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
        waits_for_cameras: bool = False,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        if not cameras.cameras and not waits_for_cameras:
            raise ConfigError("camera.cameras (--source)", "there is no camera", "name at least one")
        self._camera_settings, self._settings, self._engine, self._delivery = cameras, settings, engine, delivery
        self._clock, self._now, self._open = clock, now, source_opener
        self._wake = threading.Event()
        self._schedule = Schedule()
        self._statuses = StatusRelay(on_status)
        self._cameras: dict[str, _Camera] = {}
        self._leaving: list[CameraReader] = []
        self._wanted: tuple[CameraSpec, ...] | None = cameras.cameras
        self._wanted_lock = threading.Lock()
        self._tell_again = threading.Event()
        self._worked_at = clock()
        self._seconds_per_frame: float | None = None
        self._inference_failures = 0
        self._unexpected: BaseException | None = None

    def apply(self, cameras: Sequence[CameraSpec]) -> None:
        """Have these cameras from now on; callable from any thread, while running or before.

        A camera that is as before is not touched; one whose source stays keeps its connection. Frames under way of a
        removed camera are still stored and sent.

        Raises:
            ConfigError: an id is there twice.
        """
        ids = [spec.id for spec in cameras]
        twice = sorted({camera_id for camera_id in ids if ids.count(camera_id) > 1})
        if twice:
            raise ConfigError("camera.cameras", f"camera id used twice: {', '.join(twice)}", "give each its own")
        with self._wanted_lock:
            self._wanted = tuple(cameras)
        self._wake.set()

    def tell_again(self) -> None:
        """Have `on_status` told of each camera's state once more; callable from any thread."""
        self._tell_again.set()

    def idle_for(self) -> float:
        """S since it last looked for what is due: more than a moment while an engine or a store holds it up."""
        return self._clock() - self._worked_at

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what was detected by then is stored and sent.

        Raises:
            InferenceError: the engine fails on every picture.
        """
        self._statuses.start()
        self._change_cameras()
        log.info("detection_started", cameras=len(self._cameras), model=self._engine.model_name)
        try:
            with ThreadPoolExecutor(WRITERS, thread_name_prefix="store") as writers:
                while not stop.is_set():
                    self._worked_at = self._clock()
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
        self._change_cameras()
        again = self._tell_again.is_set()
        if again:
            self._tell_again.clear()
        for camera in self._cameras.values():
            camera.reader.check()
            if again:
                camera.reader.tell_again()
        frames = self._take_due()
        for frame, detections, seconds in self._detect(frames):
            camera = self._cameras[frame.camera_id]
            height, width = frame.image.shape[:2]
            scene = scene_of(
                detections, width, height, self._settings, camera=camera.spec, previous=self._before(camera, frame)
            )
            if camera.before is not None:
                interval = (frame.captured_at - camera.before.captured_at).total_seconds()
                FRAME_INTERVAL.labels(camera_id=frame.camera_id).set(interval)
            camera.before = _Before(frame.captured_at, frame.image.shape, scene.road_users)
            DETECTIONS.labels(camera_id=frame.camera_id).inc(len(scene.objects))
            camera.storing = True
            storing = writers.submit(self._deliver, frame, detections, camera.spec.privacy, scene, seconds)
            storing.add_done_callback(functools.partial(self._stored, camera))
        return bool(frames)

    def _before(self, camera: _Camera, frame: Frame) -> RoadUsers | None:
        """The frame before, if it tells how things grew: not after a gap, nor of another size."""
        before = camera.before
        if before is None or before.size != frame.image.shape:
            return None
        gap = (frame.captured_at - before.captured_at).total_seconds()
        return before.road_users if gap <= MAX_INTERVALS * self._interval(camera.spec) else None

    def _deliver(
        self, frame: Frame, detections: Sequence[Detection], privacy: PrivacySpec, scene: Scene, seconds: float
    ) -> None:
        """In a writer's thread. Nothing but this picture leaves: masks are applied before anything is cut or stored."""
        self._delivery.deliver(replace(frame, image=masked(frame.image, detections, privacy)), scene, seconds)

    def _interval(self, spec: CameraSpec) -> float:
        return spec.frame_interval or self._camera_settings.frame_interval

    def _change_cameras(self) -> None:
        with self._wanted_lock:
            wanted, self._wanted = self._wanted, None
        if wanted is not None:
            specs = {spec.id: spec for spec in wanted}
            for camera_id in self._cameras.keys() - specs.keys():
                self._remove(camera_id)
            for spec in wanted:
                if spec.id not in self._cameras:
                    self._cameras[spec.id] = _Camera(spec, self._reader(spec), _gate(spec))
                    self._schedule.add(spec.id, self._interval(spec), self._clock())
                elif spec != self._cameras[spec.id].spec:
                    self._change(self._cameras[spec.id], spec)
        for reader in [reader for reader in self._leaving if reader.join(0)]:
            self._leaving.remove(reader)
            if reader.spec.id not in self._cameras:
                forget_camera(reader.spec.id)

    def _change(self, camera: _Camera, spec: CameraSpec) -> None:
        before, camera.spec = camera.spec, spec
        if (before.source, before.loop, before.pace) != (spec.source, spec.loop, spec.pace):
            camera.reader.stop()
            self._leaving.append(camera.reader)
            camera.reader, camera.before = self._reader(spec), None
        camera.gate = _gate(spec)
        camera.reader.want(self._schedule.change(spec.id, self._interval(spec), self._clock()))
        log.info("camera_changed", camera_id=spec.id)

    def _remove(self, camera_id: str) -> None:
        camera = self._cameras.pop(camera_id)
        camera.reader.stop()
        self._leaving.append(camera.reader)
        self._schedule.remove(camera_id)
        self._statuses.tell(CameraStatus(camera_id, CameraState.OFFLINE, "the camera was removed", self._now()))
        log.info("camera_no_longer_read", camera_id=camera_id)

    def _reader(self, spec: CameraSpec) -> CameraReader:
        reader = CameraReader(
            spec,
            self._camera_settings,
            on_status=self._statuses.tell,
            on_frame=self._wake.set,
            source_opener=self._open,
            clock=self._clock,
            now=self._now,
        )
        reader.start()
        return reader

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
            camera = self._cameras[camera_id]
            frame = camera.reader.take(due)
            if frame is None:
                continue
            if camera.before is not None and frame.captured_at <= camera.before.captured_at:
                camera.before = None  # the wall clock was put back: this frame begins anew
            if camera.gate is not None and not camera.gate.passes(frame.image, now):
                FRAMES_SKIPPED.labels(camera_id=camera_id, reason="unchanged").inc()
                continue
            frames.append(frame)
        return frames

    def _detect(self, frames: Sequence[Frame]) -> list[tuple[Frame, list[Detection], float]]:
        """Detections of each frame, with the seconds from its capture until they were known."""
        if not frames:
            return []
        began = self._clock()
        try:
            found = self._engine.detect([frame.image for frame in frames], [frame.camera_id for frame in frames])
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
        readers = [*(camera.reader for camera in self._cameras.values()), *self._leaving]
        for reader in readers:
            reader.stop()
        deadline = time.monotonic() + READER_TIMEOUT
        for reader in readers:
            if not reader.join(max(0.0, deadline - time.monotonic())):
                log.warning("reader_still_reading", camera_id=reader.spec.id)
        self._statuses.close(STATUS_TIMEOUT)


def _gate(spec: CameraSpec) -> MotionGate | None:
    return None if spec.motion_max_gap is None else MotionGate(spec.motion_max_gap)
