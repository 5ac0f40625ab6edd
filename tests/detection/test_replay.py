"""What waits is sent in order of capture; what one frame is refused holds up nobody else."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from dangerous_driving.contracts import DetectionResult, TrafficGroup, message_id_of
from dangerous_driving.detection.publishing import Publish
from dangerous_driving.detection.replay import Replay
from dangerous_driving.errors import BrokerError, MessageTooLargeError, ObjectStoreError
from dangerous_driving.messaging.spool import Spool, SpooledFrame, SpooledObject
from dangerous_driving.objects.folder import FolderStore
from tests.detection.test_service import PATIENCE, metric

START = datetime(2026, 11, 1, tzinfo=UTC)
RATE = 1e6  # tests do not wait for a pace


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.005)


def frame(number: int, camera_id: str = "a", *, picture: bool = False) -> SpooledFrame:
    captured_at = START + timedelta(milliseconds=number)
    result = DetectionResult(
        message_id=message_id_of(camera_id, captured_at),
        camera_id=camera_id,
        timestamp=captured_at,
        image_width=64,
        image_height=48,
        detected_objects=(),
        traffic_groups=(),
    )
    objects = (SpooledObject(f"frames/{camera_id}/{number}.jpg", "image/jpeg", b"x" * 20_000),) if picture else ()
    return SpooledFrame(camera_id, captured_at, None, result.to_json(), objects)


class Broker:
    """Acknowledges at once, unless told otherwise."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []
        self.asked: list[tuple[str, int]] = []
        self.refuses: Callable[[str, int], bool] = lambda _camera, _number: False

    def publish(self, result: DetectionResult) -> None:
        what = (result.camera_id, (result.timestamp - START) // timedelta(milliseconds=1))
        self.asked.append(what)
        if self.refuses(*what):
            raise BrokerError("the broker does not take it")
        self.taken.append(what)

    def of(self, camera_id: str) -> list[int]:
        return [number for camera, number in self.taken if camera == camera_id]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", 10**9)
    yield opened
    opened.close()


@contextmanager
def replaying(spool: Spool, tmp_path: Path, publish: Publish, **options: object) -> Iterator[Replay]:
    store = options.pop("store", None) or FolderStore(tmp_path / "objects")
    replay = Replay(spool, store, publish, retry=0.02, rate=RATE, **options)  # type: ignore[arg-type]
    replay.start()
    try:
        yield replay
    finally:
        replay.stop(10)


def test_each_camera_is_sent_in_the_order_of_capture(spool: Spool, tmp_path: Path) -> None:
    broker = Broker()
    for number in (4, 1, 3, 0, 2):
        for camera_id in "abc":
            spool.put(frame(number, camera_id))
    with replaying(spool, tmp_path, broker.publish):
        wait_for(lambda: not len(spool))
    assert {camera_id: broker.of(camera_id) for camera_id in "abc"} == {key: [0, 1, 2, 3, 4] for key in "abc"}


def test_a_frame_that_is_refused_holds_up_its_own_camera_only(spool: Spool, tmp_path: Path) -> None:
    broker = Broker()
    broker.refuses = lambda camera_id, number: (camera_id, number) == ("a", 0)
    for number in range(3):
        for camera_id in "abc":
            spool.put(frame(number, camera_id))
    with replaying(spool, tmp_path, broker.publish):
        wait_for(lambda: len(spool) == 3)
        assert (broker.of("a"), broker.of("b"), broker.of("c")) == ([], [0, 1, 2], [0, 1, 2])
        broker.refuses = lambda *_: False
        wait_for(lambda: not len(spool))
    assert broker.of("a") == [0, 1, 2]


def test_a_frame_that_is_refused_while_live_ones_are_taken_is_set_aside_in_the_end(
    spool: Spool, tmp_path: Path
) -> None:
    broker = Broker()
    broker.refuses = lambda _, number: number == 0
    for number in range(3):
        spool.put(frame(number))
    with replaying(spool, tmp_path, broker.publish, answered=time.monotonic, give_up=0.1):
        wait_for(lambda: not len(spool))
    assert broker.of("a") == [1, 2]
    assert len(list((tmp_path / "spool").glob("*.bad"))) == 1


def test_a_frame_that_no_broker_takes_is_set_aside_at_once_with_the_cause(spool: Spool, tmp_path: Path) -> None:
    sent: list[datetime] = []

    def publish(result: DetectionResult) -> None:
        if result.timestamp == START:
            raise MessageTooLargeError("it is larger than any topic takes")
        sent.append(result.timestamp)

    before = metric("spool_dropped_frames_total", camera_id="a", reason="refused")
    for number in range(3):
        spool.put(frame(number))
    with structlog.testing.capture_logs() as logs, replaying(spool, tmp_path, publish):
        wait_for(lambda: not len(spool))
    assert sent == [START + timedelta(milliseconds=number) for number in (1, 2)]
    assert metric("spool_dropped_frames_total", camera_id="a", reason="refused") == before + 1
    [told] = [line for line in logs if line["event"] == "spooled_frame_set_aside"]
    assert told["reason"] == "it is larger than any topic takes"


def test_a_frame_that_is_too_large_with_its_pictures_goes_without_them(spool: Spool, tmp_path: Path) -> None:
    sent: list[DetectionResult] = []

    def publish(result: DetectionResult) -> None:
        if any(group.group_image_base64 for group in result.traffic_groups):
            raise MessageTooLargeError("it is too large")
        sent.append(result)

    group = TrafficGroup(
        group_index=1, object_count=2, bbox=(0, 0, 9, 9), classes=("car",), group_image_url="mem://1",
        group_image_base64="AAAA",
    )  # fmt: skip
    plain = frame(0)
    result = DetectionResult.from_json(plain.result).model_copy(update={"traffic_groups": (group,)})
    spool.put(dataclasses.replace(plain, result=result.to_json()))
    with replaying(spool, tmp_path, publish):
        wait_for(lambda: not len(spool))
    assert [item.group_image_url for item in sent[0].traffic_groups] == ["mem://1"]
    assert not list((tmp_path / "spool").glob("*.bad"))


def test_nothing_is_given_up_while_the_broker_is_away(spool: Spool, tmp_path: Path) -> None:
    broker = Broker()
    broker.refuses = lambda *_: True
    for camera_id in "abc":
        spool.put(frame(0, camera_id))
    with replaying(spool, tmp_path, broker.publish, give_up=0.0):
        wait_for(lambda: len(broker.asked) > 12)
        assert len(spool) == 3
        assert {camera_id for camera_id, _ in broker.asked} == set("abc")  # each is tried in its turn
        broker.refuses = lambda *_: False
        wait_for(lambda: not len(spool))


def test_while_the_broker_is_away_pictures_leave_the_spool_for_the_store(spool: Spool, tmp_path: Path) -> None:
    broker = Broker()
    broker.refuses = lambda *_: True
    spool.put(frame(0, picture=True))
    used = spool.bytes_used
    store = FolderStore(tmp_path / "objects")
    with replaying(spool, tmp_path, broker.publish, store=store):
        wait_for(lambda: spool.bytes_used < used)
        assert len(store.get("frames/a/0.jpg")) == 20_000
        broker.refuses = lambda *_: False
        wait_for(lambda: not len(spool))
    assert broker.of("a") == [0]


def test_nothing_is_published_before_it_is_stored(spool: Spool, tmp_path: Path) -> None:
    broker = Broker()
    tried = threading.Semaphore(0)

    class Away(FolderStore):
        def put(self, key: str, data: bytes, content_type: str) -> str:
            tried.release()
            raise ObjectStoreError("the store is away")

    spool.put(frame(0, picture=True))
    with replaying(spool, tmp_path, broker.publish, store=Away(tmp_path / "objects")):
        for _ in range(3):
            assert tried.acquire(timeout=30)
    assert (broker.asked, len(spool)) == ([], 1)
