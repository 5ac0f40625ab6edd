"""A broker and a store that go away while cameras are watched: every frame arrives, in order, and once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from dangerous_driving.camera.frame import Frame
from dangerous_driving.contracts import DetectionResult
from dangerous_driving.detection.delivery import Receipt, ResultDelivery
from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.replay import Replay
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.errors import ObjectStoreError
from dangerous_driving.messaging import AckPolicy, Consumer, Producer, Topic, apply, embedded_kafka_settings
from dangerous_driving.messaging.spool import Spool
from dangerous_driving.objects import open_store
from dangerous_driving.objects.store import ObjectStore
from dangerous_driving.settings import DetectionSettings, KafkaSettings, ObjectsSettings
from tests.conftest import missing_component

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

START = datetime(2026, 11, 1, tzinfo=UTC)
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
PAIR = [Detection("car", 0.9, (10.0, 10.0, 30.0, 30.0)), Detection("person", 0.8, (24.0, 10.0, 32.0, 30.0))]
SETTINGS = DetectionSettings(group_distance=1000)


def wait_for(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@contextmanager
def broker_process(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], KafkaSettings]]:
    """A real broker that can be stopped for a while, and keeps its address and messages over that."""
    pytest.importorskip("confluent_kafka") if not os.environ.get("CI") else None
    address = folder / "broker.address"
    process = subprocess.Popen(
        [sys.executable, "-m", "dangerous_driving.cli", "broker", "--address-file", str(address)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (address.exists() and address.read_text().strip()):
            if process.poll() is not None or time.monotonic() > deadline:
                missing_component("the embedded broker did not start")
            time.sleep(0.05)
        kafka = embedded_kafka_settings(address.read_text().strip()).model_copy(
            update={"request_timeout": 1.0, "delivery_timeout": 2.0}
        )
        apply(kafka)
        yield process, kafka
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


class Store:
    """A store that can be away."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self.away = store, False

    def put(self, key: str, data: bytes, content_type: str) -> str:
        if self.away:
            raise ObjectStoreError("the store is away")
        return self._store.put(key, data, content_type)

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def list(self, prefix: str) -> Iterator[str]:
        return self._store.list(prefix)

    def url(self, key: str) -> str:
        return self._store.url(key)

    def key(self, url: str) -> str:
        return self._store.key(url)


def test_every_frame_arrives_in_order_over_outages_of_the_broker_and_of_the_store(tmp_path: Path) -> None:
    store = Store(open_store(ObjectsSettings(folder=tmp_path / "objects")))
    arrived: list[DetectionResult] = []
    sent: list[str] = []
    with broker_process(tmp_path) as (process, kafka), Producer(kafka, "test") as producer:

        def publish(result: DetectionResult) -> Receipt:
            return producer.send(Topic.DETECTION_RESULTS, result, key=result.camera_id)

        spool = Spool(tmp_path / "spool", 10**9)
        delivery = ResultDelivery(SETTINGS, store, publish, model="fake", spool=spool)
        replay = Replay(spool, store, publish, retry=0.1)
        replay.start()

        def capture(count: int) -> None:
            for _ in range(count):
                captured_at = START + timedelta(milliseconds=len(sent))
                frame = Frame("cam", PICTURE, captured_at, len(sent) + 1)
                scene = scene_of(PAIR, 64, 48, SETTINGS)
                delivery.deliver(frame, scene, 0.0)
                sent.append(captured_at.isoformat())

        capture(10)
        delivery.flush()
        process.send_signal(signal.SIGSTOP)  # the broker is away
        capture(5)
        wait_for(lambda: spool.holds("cam"))
        capture(20)
        assert len(spool) >= 20
        store.away = True  # and now the store too
        capture(10)
        process.send_signal(signal.SIGCONT)
        capture(5)
        time.sleep(0)
        assert spool.holds("cam")
        store.away = False
        wait_for(lambda: not spool.holds("cam"))
        capture(10)
        delivery.flush()
        replay.stop(10)
        spool.close()
        with Consumer(
            kafka, {Topic.DETECTION_RESULTS: DetectionResult}, name="tasks", policy=AckPolicy.AFTER_EFFECT
        ) as consumer:
            deadline = time.monotonic() + 60
            while len({result.message_id for result in arrived}) < len(sent) and time.monotonic() < deadline:
                arrived += [received.message for received in consumer.poll(0.5, 500)]
    first_seen = list(dict.fromkeys(result.timestamp.isoformat() for result in arrived))
    assert sorted(first_seen) == sent  # nothing is lost
    held_back = first_seen[15:]
    assert held_back == sorted(held_back)  # what waited, and all after it, is in order
    stored = [key for key in store.list("frames/") if key.endswith(".json")]
    assert len(stored) == len(sent)
    for result in arrived:
        assert result.raw_frame_url is not None
        assert store.get(store.key(result.raw_frame_url))


def test_what_waits_is_sent_by_the_next_process(tmp_path: Path) -> None:
    store = Store(open_store(ObjectsSettings(folder=tmp_path / "objects")))
    store.away = True
    published: list[DetectionResult] = []
    first = Spool(tmp_path / "spool", 10**9)
    delivery = ResultDelivery(SETTINGS, store, published.append, model="fake", spool=first)
    for number in range(3):
        frame = Frame("cam", PICTURE, START + timedelta(seconds=number), number + 1)
        delivery.deliver(frame, scene_of(PAIR, 64, 48, SETTINGS), 0.0)
    first.close()
    assert published == []

    store.away = False
    second = Spool(tmp_path / "spool", 10**9)
    replay = Replay(second, store, published.append, retry=0.05)
    replay.start()
    wait_for(lambda: not len(second))
    replay.stop(10)
    second.close()
    assert [result.timestamp for result in published] == [START + timedelta(seconds=number) for number in range(3)]
    assert len([key for key in store.list("frames/") if key.endswith(".jpg")]) == 3
    assert len(list(store.list("groups/"))) == 3
