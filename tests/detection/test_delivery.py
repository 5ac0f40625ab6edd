"""Who does without broker and store is told of every frame, once."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from dangerous_driving.camera.frame import Frame
from dangerous_driving.contracts import DetectionResult
from dangerous_driving.detection.delivery import Receipt, ResultDelivery
from dangerous_driving.detection.replay import Replay
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging.spool import Spool
from tests.detection.test_service import PAIR, SETTINGS, DictStore, wait_for

START = datetime(2026, 11, 1, tzinfo=UTC)
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
FRAMES = 100


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class NoReceipt:
    """A message that is under way for ever."""

    def on_done(self, callback: Callable[[BrokerError | None], None]) -> None:
        """Never called back."""


class Taker:
    """Keeps what it is offered of camera a."""

    def __init__(self) -> None:
        self.offered: list[DetectionResult] = []

    def takes(self, camera_id: str) -> bool:
        return camera_id == "a"

    def offer(self, result: DetectionResult) -> None:
        self.offered.append(result)


def deliver(delivery: ResultDelivery, number: int, camera_id: str = "a") -> None:
    captured_at = START + timedelta(milliseconds=number)
    delivery.deliver(Frame(camera_id, PICTURE, captured_at, 1), scene_of(PAIR, 64, 48, SETTINGS), 0.0)


def test_each_frame_is_told_once_while_broker_and_store_are_away_and_not_again_when_it_is_replayed(
    tmp_path: Path,
) -> None:
    store, clock = DictStore(), Clock()
    taker = Taker()
    told = taker.offered
    tried: list[DetectionResult] = []
    replayed: list[DetectionResult] = []

    def publish(result: DetectionResult) -> Receipt:
        tried.append(result)
        return NoReceipt()

    spool = Spool(tmp_path, 10**9)
    delivery = ResultDelivery(SETTINGS, store, publish, model="fake", spool=spool, taker=taker, clock=clock)
    for number in range(FRAMES):
        if number == FRAMES // 2:
            store.fails = lambda _: True
        deliver(delivery, number)
        clock.now += 0.2
    times = [START + timedelta(milliseconds=number) for number in range(FRAMES)]
    assert [result.timestamp for result in told] == times
    assert len(tried) < FRAMES / 2  # the others did not come so far
    assert not any(group.group_image_base64 for result in tried for group in result.traffic_groups)

    store.fails = lambda _: False
    replay = Replay(spool, store, replayed.append, retry=0.05, rate=10_000)
    replay.start()
    wait_for(lambda: not len(spool))
    replay.stop(10)
    spool.close()
    assert len(replayed) > FRAMES / 2
    assert [result.timestamp for result in told] == times
    for result in told:
        (group,) = result.traffic_groups
        assert group.group_image_base64 is not None
        assert group.group_image_url is not None
        assert base64.b64decode(group.group_image_base64) == store.get(store.key(group.group_image_url))


def test_frames_of_a_camera_that_is_not_taken_are_not_offered() -> None:
    taker, published = Taker(), list[DetectionResult]()
    delivery = ResultDelivery(SETTINGS, DictStore(), published.append, model="fake", taker=taker)
    deliver(delivery, 0, "b")
    deliver(delivery, 1, "a")
    assert [result.camera_id for result in taker.offered] == ["a"]
    assert [result.camera_id for result in published] == ["b", "a"]
