"""A frame's way out: who does without broker and store is told of it once; what is too large is in nobody's way."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from dangerous_driving.camera.frame import Frame
from dangerous_driving.contracts import DetectionResult
from dangerous_driving.detection.delivery import ResultDelivery
from dangerous_driving.detection.publishing import Receipt
from dangerous_driving.detection.replay import Replay
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.errors import BrokerError, MessageTooLargeError
from dangerous_driving.messaging.spool import Spool
from dangerous_driving.settings import DetectionSettings
from tests.detection.test_service import PAIR, SETTINGS, DictStore, metric, wait_for

START = datetime(2026, 11, 1, tzinfo=UTC)
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
FRAMES = 100
WITH_PICTURES = DetectionSettings(group_distance=1000.0, publish_images=True)


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


class Ended:
    """A message whose end is known."""

    def __init__(self, error: BrokerError | None) -> None:
        self._error = error

    def on_done(self, callback: Callable[[BrokerError | None], None]) -> None:
        callback(self._error)


class StrictBroker:
    """Finds some results too large; the client may notice that at once, or the broker later."""

    def __init__(self, too_large: Callable[[DetectionResult], bool], *, at_once: bool) -> None:
        self._too_large, self._at_once = too_large, at_once
        self.asked: list[DetectionResult] = []
        self.taken: list[DetectionResult] = []

    def publish(self, result: DetectionResult) -> Receipt:
        self.asked.append(result)
        if not self._too_large(result):
            self.taken.append(result)
            return Ended(None)
        error = MessageTooLargeError("it is too large")
        if self._at_once:
            raise error
        return Ended(error)


def carries_pictures(result: DetectionResult) -> bool:
    return any(group.group_image_base64 for group in result.traffic_groups)


def of_camera_a(result: DetectionResult) -> bool:
    return result.camera_id == "a"


def unpublished(camera_id: str) -> float:
    return metric("detection_results_unpublished_total", camera_id=camera_id)


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


at_once_or_later = pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])


@at_once_or_later
def test_a_result_that_is_too_large_goes_again_without_its_pictures_which_the_store_has(at_once: bool) -> None:
    store, broker, before = DictStore(), StrictBroker(carries_pictures, at_once=at_once), unpublished("a")
    delivery = ResultDelivery(WITH_PICTURES, store, broker.publish, model="fake", clock=Clock())
    deliver(delivery, 0)
    deliver(delivery, 1)
    delivery.flush()
    assert [result.timestamp for result in broker.taken] == [START, START + timedelta(milliseconds=1)]
    for result in broker.taken:
        (group,) = result.traffic_groups
        assert group.group_image_url is not None
        assert store.get(store.key(group.group_image_url))
    assert unpublished("a") == before


@at_once_or_later
def test_a_result_that_no_broker_takes_is_counted_and_the_next_cameras_result_is_published(at_once: bool) -> None:
    broker, before, before_b = StrictBroker(of_camera_a, at_once=at_once), unpublished("a"), unpublished("b")
    delivery = ResultDelivery(WITH_PICTURES, DictStore(), broker.publish, model="fake", clock=Clock())
    deliver(delivery, 0, "a")
    deliver(delivery, 0, "b")
    delivery.flush()
    assert [result.camera_id for result in broker.asked] == ["a", "a", "b"]  # once with pictures, once without
    assert [result.camera_id for result in broker.taken] == ["b"]
    assert (unpublished("a") - before, unpublished("b") - before_b) == (1, 0)


@at_once_or_later
def test_a_result_that_no_broker_takes_does_not_wait_in_the_spool_and_sends_no_other_frame_there(
    tmp_path: Path, at_once: bool
) -> None:
    broker, clock, before = StrictBroker(of_camera_a, at_once=at_once), Clock(), unpublished("a")
    spool = Spool(tmp_path, 10**9)
    delivery = ResultDelivery(SETTINGS, DictStore(), broker.publish, model="fake", spool=spool, clock=clock)
    for number in range(3):
        deliver(delivery, number, "a")
        deliver(delivery, number, "b")
        clock.now += 0.1
    delivery.flush()
    assert [result.camera_id for result in broker.asked] == ["a", "b"] * 3
    assert (len(spool), unpublished("a") - before) == (0, 3)
    spool.close()


def test_a_result_that_waits_for_its_receipt_in_the_spool_leaves_it_when_no_broker_takes_it(tmp_path: Path) -> None:
    answers: list[Callable[[BrokerError | None], None]] = []

    class Later:
        def on_done(self, callback: Callable[[BrokerError | None], None]) -> None:
            answers.append(callback)

    clock, before = Clock(), unpublished("a")
    spool = Spool(tmp_path, 10**9)
    delivery = ResultDelivery(SETTINGS, DictStore(), lambda _: Later(), model="fake", spool=spool, clock=clock)
    deliver(delivery, 0)
    clock.now += 10.0
    deliver(delivery, 1, "b")
    assert spool.holds("a")
    answers[0](MessageTooLargeError("it is too large"))
    wait_for(lambda: not spool.holds("a"))
    assert unpublished("a") - before == 1
    answers[1](None)
    delivery.flush()
    spool.close()
