from __future__ import annotations

import base64
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from dangerous_driving.camera.frame import Image
from dangerous_driving.camera.reader import utc_now
from dangerous_driving.camera.source import OpenSource, Source, open_source
from dangerous_driving.camera.status import CameraState, CameraStatus
from dangerous_driving.contracts import DetectionResult, message_id_of
from dangerous_driving.detection import delivery
from dangerous_driving.detection.delivery import ResultDelivery
from dangerous_driving.detection.engine import Detection, Engine, open_engine
from dangerous_driving.detection.publishing import Publish
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.detection.service import MAX_INFERENCE_FAILURES, DetectionService
from dangerous_driving.errors import (
    BrokerError,
    ConfigError,
    InferenceError,
    ObjectNotFoundError,
    ObjectStoreError,
    SourceError,
)
from dangerous_driving.objects.keys import detection_key, frame_key, group_key
from dangerous_driving.settings import CameraSettings, CameraSpec, DetectionSettings

PATIENCE = 60.0  # s until a condition counts as never met

SETTINGS = DetectionSettings(group_distance=1000.0)  # the pictures are small

PAIR = [Detection("car", 0.9, (10.0, 10.0, 30.0, 30.0)), Detection("person", 0.8, (24.0, 10.0, 32.0, 30.0))]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.005)


class DictStore:
    """An object store in memory that remembers the order of what was put."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.content_types: dict[str, str] = {}
        self.fails: Callable[[str], bool] = lambda _: False
        self.attempts: dict[str, int] = defaultdict(int)

    def put(self, key: str, data: bytes, content_type: str) -> str:
        self.attempts[key] += 1
        if self.fails(key):
            raise ObjectStoreError("the store is away")
        self.objects[key] = data
        self.content_types[key] = content_type
        return self.url(key)

    def get(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise ObjectNotFoundError(key) from None

    def list(self, prefix: str) -> Iterator[str]:
        return (key for key in self.objects if key.startswith(prefix))

    def url(self, key: str) -> str:
        return f"mem://{key}"

    def key(self, url: str) -> str:
        return url.removeprefix("mem://")


class GreyCamera:
    """An endless recording: the upper half of the n-th frame is grey of value n."""

    period: float | None = 0.01
    stills = False
    size: tuple[int, int] | None = None

    def __init__(self) -> None:
        self.count = 0

    def grab(self) -> bool:
        self.count += 1
        return True

    def retrieve(self) -> Image:
        picture = np.full((48, 64, 3), self.count % 256, np.uint8)
        picture[24:32], picture[32:] = 255, 0  # as much in it as in a real one
        return picture

    def close(self) -> None:
        """Nothing is held."""


class PairEngine:
    """Finds the same two road users in every picture, and notes how many came at a time."""

    model_name = "fake"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fails: Callable[[Sequence[Image]], bool] = lambda _: False

    def detect(self, images: Sequence[Image], camera_ids: Sequence[str] = ()) -> list[list[Detection]]:
        self.batches.append(len(images))
        if self.fails(images):
            raise InferenceError("the engine fails")
        return [list(PAIR) for _ in images]


class FakeDelivery:
    """Ends when the test says so."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[BrokerError | None], None]] = []

    def on_done(self, callback: Callable[[BrokerError | None], None]) -> None:
        self.callbacks.append(callback)


def cameras(*ids: str, interval: float = 0.02) -> CameraSettings:
    specs = tuple(CameraSpec(id=camera_id, source=SecretStr("fake")) for camera_id in ids)
    return CameraSettings(cameras=specs, frame_interval=interval, backoff_initial=0.01, backoff_max=0.05)


def opener(spec: CameraSpec, settings: CameraSettings) -> Source:
    if spec.id.startswith("broken"):
        raise SourceError("no route to the camera")
    return GreyCamera()


class Running:
    """A service in a thread, with what it gave."""

    def __init__(
        self,
        camera_settings: CameraSettings,
        *,
        settings: DetectionSettings = SETTINGS,
        engine: Engine | None = None,
        store: DictStore | None = None,
        publish: Publish | None = None,
        source_opener: OpenSource = opener,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.engine = engine or PairEngine()
        self.store = store or DictStore()
        self.results: list[DetectionResult] = []
        self.statuses: list[CameraStatus] = []
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.service = DetectionService(
            camera_settings,
            settings,
            self.engine,
            ResultDelivery(
                settings, self.store, publish or self.results.append, model=self.engine.model_name, node="node-1"
            ),
            on_status=self.statuses.append,
            source_opener=source_opener,
            now=now,
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.service.run(self.stop)
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            self.error = error

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


def of(running: Running, camera_id: str) -> list[DetectionResult]:
    return [result for result in running.results if result.camera_id == camera_id]


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_every_camera_gives_results_with_pictures_that_exist() -> None:
    before = metric("frames_detected_total", camera_id="a")
    with Running(cameras("a", "b")) as running:
        wait_for(lambda: len(of(running, "a")) > 3 and len(of(running, "b")) > 3)
    for result in running.results:
        address = (result.camera_id, result.timestamp, message_id_of(result.camera_id, result.timestamp))
        assert result.message_id == address[2]
        assert result.raw_frame_url == running.store.url(frame_key(*address))
        (group,) = result.traffic_groups
        assert group.group_image_url == running.store.url(group_key(*address, 1))
        for url, shape in ((result.raw_frame_url, (48, 64, 3)), (group.group_image_url, (42, 44, 3))):
            assert url is not None
            picture = cv2.imdecode(np.frombuffer(running.store.get(running.store.key(url)), np.uint8), cv2.IMREAD_COLOR)
            assert picture is not None
            assert picture.shape == shape
        assert DetectionResult.from_json(running.store.get(detection_key(*address))) == result
        assert (result.metadata.yolo_model, result.metadata.processing_node) == ("fake", "node-1")
        assert result.metadata.detection_latency is not None
    assert set(running.store.content_types.values()) == {"image/jpeg", "application/json"}
    assert metric("frames_detected_total", camera_id="a") - before == len(of(running, "a"))


def test_a_cameras_results_come_in_the_order_of_capture_without_a_double() -> None:
    class Uneven(DictStore):
        def put(self, key: str, data: bytes, content_type: str) -> str:
            if key.endswith(".json") and len(self.objects) % 2:
                time.sleep(0.03)
            return super().put(key, data, content_type)

    with Running(cameras("a", "b", "c", interval=0.005), store=Uneven()) as running:
        wait_for(lambda: len(running.results) > 60)
    for camera_id in "abc":
        times = [result.timestamp for result in of(running, camera_id)]
        assert times == sorted(set(times))


def test_the_frame_before_of_the_same_camera_raises_the_priority_of_what_came_closer() -> None:
    apart = [PAIR[0], Detection("person", 0.8, (50.0, 10.0, 58.0, 30.0))]

    class Approaching(PairEngine):
        def detect(self, images: Sequence[Image], camera_ids: Sequence[str] = ()) -> list[list[Detection]]:
            first = sum(self.batches)
            return [found if number % 2 else apart for number, found in enumerate(super().detect(images), first)]

    # the frame before counts for three intervals, which must outlast a pause of a busy machine
    with Running(cameras("a", interval=0.4), engine=Approaching()) as running:
        wait_for(lambda: len(running.results) > 3)
    alone = scene_of(PAIR, 64, 48, SETTINGS).groups[0].priority
    near = [group.priority for result in running.results for group in result.traffic_groups if group.bbox[2] == 32]
    assert near
    assert min(near) > alone


def test_the_stored_result_is_written_last_so_that_it_implies_its_pictures() -> None:
    store = DictStore()
    with Running(cameras("a"), store=store) as running:
        wait_for(lambda: len(running.results) > 3)
    order = list(store.objects)
    for key in store.list("frames/"):
        if key.endswith(".json"):
            result = DetectionResult.from_json(store.get(key))
            urls = [result.raw_frame_url, *(group.group_image_url for group in result.traffic_groups)]
            assert all(url and order.index(store.key(url)) < order.index(key) for url in urls)


def test_a_frame_whose_picture_cannot_be_stored_is_tried_again_then_dropped_and_counted_and_not_published() -> None:
    store = DictStore()
    store.fails = lambda key: key.startswith("groups/a/")
    before = metric("frames_skipped_total", camera_id="a", reason="store")
    with Running(cameras("a", "b"), store=store) as running:
        wait_for(lambda: metric("frames_skipped_total", camera_id="a", reason="store") > before)
        store.fails = lambda _: False
        wait_for(lambda: of(running, "a"))
    failed = [key for key, attempts in store.attempts.items() if attempts > 1]
    assert failed
    lost = failed[0].removesuffix("_group1.jpg").rsplit("/", 1)[1]
    assert store.attempts[failed[0]] == 3
    assert not [key for key in store.objects if lost in key and key.endswith(".json")]
    assert lost not in {result.message_id for result in running.results}
    assert of(running, "b")


def test_a_store_that_comes_back_between_attempts_loses_nothing() -> None:
    store = DictStore()
    store.fails = lambda key: store.attempts[key] == 1 and key.endswith(".json")
    before = metric("frames_skipped_total", camera_id="a", reason="store")
    with Running(cameras("a"), store=store) as running:
        wait_for(lambda: len(running.results) > 1)
    assert metric("frames_skipped_total", camera_id="a", reason="store") == before


def test_what_the_broker_refuses_is_stored_and_counted_and_it_is_not_asked_for_each_frame() -> None:
    asked: list[str] = []

    def refuse(result: DetectionResult) -> None:
        asked.append(result.message_id)
        raise BrokerError("no broker answers")

    before = metric("detection_results_unpublished_total", camera_id="a")
    with Running(cameras("a"), publish=refuse) as running:
        wait_for(lambda: len([key for key in list(running.store.objects) if key.endswith(".json")]) > 5)
    stored = [key for key in running.store.objects if key.endswith(".json")]
    assert metric("detection_results_unpublished_total", camera_id="a") - before == len(stored)
    assert len(asked) < len(stored)
    assert running.error is None


def test_a_broker_that_is_back_gets_results_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PUBLISH_PAUSE", 0.05)
    asked: list[str] = []
    published: list[str] = []

    def refuse_first(result: DetectionResult) -> None:
        asked.append(result.message_id)
        if len(asked) == 1:
            raise BrokerError("no broker answers")
        published.append(result.message_id)

    with Running(cameras("a"), publish=refuse_first):
        wait_for(lambda: len(published) > 2)


def test_a_delivery_that_fails_later_is_counted() -> None:
    delivery = FakeDelivery()
    before = metric("detection_results_unpublished_total", camera_id="a")
    with Running(cameras("a"), publish=lambda result: delivery) as running:
        wait_for(lambda: delivery.callbacks)
        running.stop.set()
        running.thread.join(0.2)
        assert running.thread.is_alive()  # it waits for what is under way
        done = 0
        while done < len(delivery.callbacks):
            delivery.callbacks[done](None if done else BrokerError("no acknowledgement"))
            done += 1
        wait_for(lambda: not running.thread.is_alive())
    assert metric("detection_results_unpublished_total", camera_id="a") - before == 1


def test_an_offline_camera_is_told_and_touches_no_other() -> None:
    with Running(cameras("broken", "good")) as running:
        wait_for(lambda: len(of(running, "good")) > 3)
        wait_for(lambda: any(status.camera_id == "broken" for status in running.statuses))
        assert metric("camera_up", camera_id="good") == 1
        assert metric("camera_up", camera_id="broken") == 0
    states = {status.camera_id: (status.state, status.reason) for status in running.statuses}
    assert states == {
        "broken": (CameraState.OFFLINE, "no route to the camera"),
        "good": (CameraState.ONLINE, ""),
    }
    assert {result.camera_id for result in running.results} == {"good"}


def test_when_detection_is_slow_frames_are_batched_and_skipped_evenly() -> None:
    class Slow(PairEngine):
        def detect(self, images: Sequence[Image], camera_ids: Sequence[str] = ()) -> list[list[Detection]]:
            time.sleep(0.02)  # whatever the number of frames
            return super().detect(images)

    ids = [f"cam-{number}" for number in range(8)]
    before = {name: metric("frames_skipped_total", camera_id=name, reason="behind") for name in ids}
    engine = Slow()
    with Running(cameras(*ids, interval=0.01), engine=engine) as running:
        wait_for(lambda: len(running.results) > 200)
    counts = [len(of(running, name)) for name in ids]
    assert max(counts) <= 1.5 * min(counts)
    assert max(engine.batches) > 1
    assert all(metric("frames_skipped_total", camera_id=name, reason="behind") > before[name] for name in ids)
    assert metric("effective_frame_interval_seconds", camera_id="cam-0") > 0.01


def test_no_more_frames_are_taken_than_the_store_can_hold() -> None:
    held = threading.Event()

    class Stuck(DictStore):
        waiting = 0

        def put(self, key: str, data: bytes, content_type: str) -> str:
            self.waiting += 1
            held.wait(PATIENCE)
            return super().put(key, data, content_type)

    store, engine = Stuck(), PairEngine()
    with Running(cameras(*(f"cam-{number}" for number in range(40)), interval=0.01), engine=engine, store=store):
        wait_for(lambda: store.waiting)
        time.sleep(0.3)
        taken = sum(engine.batches)
        held.set()
    assert taken <= 16


def test_a_picture_that_the_engine_fails_on_takes_none_of_its_batch_with_it() -> None:
    class Black(GreyCamera):
        def retrieve(self) -> Image:
            return np.zeros((48, 64, 3), np.uint8)

    class Grey(GreyCamera):
        def retrieve(self) -> Image:
            return np.full((48, 64, 3), 99, np.uint8)

    class Slow(PairEngine):
        failed: int = 0

        def detect(self, images: Sequence[Image], camera_ids: Sequence[str] = ()) -> list[list[Detection]]:
            time.sleep(0.01)  # so that several are due at a time
            self.failed = max(self.failed, len(images) * any(not image.any() for image in images))
            return super().detect(images)

    engine = Slow()
    engine.fails = lambda images: any(not image.any() for image in images)

    def open_one(spec: CameraSpec, settings: CameraSettings) -> Source:
        return Black() if spec.id == "black" else Grey()

    def dropped(camera_id: str) -> float:
        return metric("frames_skipped_total", camera_id=camera_id, reason="inference")

    before = {camera_id: dropped(camera_id) for camera_id in ("black", "a", "b")}
    # they send the same again and again, which is not what this is about
    settings = cameras("black", "a", "b", interval=0.005).model_copy(update={"frozen_after": 10**9})
    with Running(settings, engine=engine, source_opener=open_one) as running:
        # more failures than are allowed in a row
        wait_for(lambda: dropped("black") > before["black"] + MAX_INFERENCE_FAILURES and engine.failed > 1)
    assert running.error is None
    assert {camera_id: dropped(camera_id) - before[camera_id] for camera_id in "ab"} == {"a": 0, "b": 0}
    assert {result.camera_id for result in running.results} == {"a", "b"}


def test_an_engine_that_fails_on_everything_ends_the_service() -> None:
    engine = PairEngine()
    engine.fails = lambda _: True
    with Running(cameras("a", interval=0.001), engine=engine) as running:
        wait_for(lambda: not running.thread.is_alive())
    assert isinstance(running.error, InferenceError)
    assert len(engine.batches) == MAX_INFERENCE_FAILURES


def test_an_unforeseen_error_while_storing_ends_the_service() -> None:
    def broken(result: DetectionResult) -> None:
        raise ZeroDivisionError

    with Running(cameras("a"), publish=broken) as running:
        wait_for(lambda: not running.thread.is_alive())
    assert isinstance(running.error, ZeroDivisionError)


def test_crops_travel_in_the_message_only_when_they_shall() -> None:
    with Running(cameras("a"), settings=DetectionSettings(group_distance=1000.0, publish_images=True)) as running:
        wait_for(lambda: running.results)
    result = running.results[0]
    (group,) = result.traffic_groups
    assert group.group_image_base64 is not None
    assert group.group_image_url is not None
    assert base64.b64decode(group.group_image_base64) == running.store.get(running.store.key(group.group_image_url))
    key = detection_key("a", result.timestamp, result.message_id)
    assert b'"groupImageBase64":null' in running.store.get(key)


def test_without_a_camera_there_is_nothing_to_detect() -> None:
    with pytest.raises(ConfigError, match=r"^camera\.cameras \(--source\): "):
        Running(CameraSettings())


@pytest.mark.parametrize("weights", ["yolov8n.onnx", "yolov8n_dynbatch.onnx"])
def test_a_real_clip_gives_frames_with_groups(shared: Path, weights: str) -> None:
    clip = SecretStr(str(shared / "samples/clips/junction_cars_cyclist.mp4"))
    settings = CameraSettings(
        cameras=(CameraSpec(id="1", source=clip), CameraSpec(id="2", source=clip)), frame_interval=0.3
    )
    engine_settings = DetectionSettings(weights=shared / "models" / weights)
    engine = open_engine(engine_settings)
    with Running(settings, settings=engine_settings, engine=engine, source_opener=open_source) as running:
        wait_for(lambda: min(len(of(running, "1")), len(of(running, "2"))) >= 4)
    assert {(result.image_width, result.image_height) for result in running.results} == {(800, 600)}
    classes = {each.class_name for result in running.results for each in result.detected_objects}
    assert "car" in classes
    grouped = [result for result in running.results if result.traffic_groups]
    assert len(grouped) >= len(running.results) // 2
    for result in grouped:
        for group in result.traffic_groups:
            assert group.object_count >= 2
            assert 0 < group.priority <= 1
            assert group.group_image_url is not None
            assert running.store.get(running.store.key(group.group_image_url)).startswith(b"\xff\xd8")


def test_a_camera_goes_on_when_a_wrong_wall_clock_is_put_right() -> None:
    wrong = timedelta(hours=2)

    def wall() -> datetime:
        return utc_now() + wrong

    with Running(cameras("a"), now=wall) as running:
        wait_for(lambda: len(running.results) > 3)
        wrong = timedelta()
        put_right = utc_now() + timedelta(minutes=1)
        wait_for(lambda: sum(result.timestamp < put_right for result in running.results) > 3)
    ids = [result.message_id for result in running.results]
    assert len(ids) == len(set(ids))
