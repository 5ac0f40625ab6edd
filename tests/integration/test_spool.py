"""A broker and a store that go away while cameras are watched: every frame arrives, in order of capture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from dangerous_driving.camera.frame import Frame
from dangerous_driving.contracts import AssessmentTask, DetectionResult, message_id_of
from dangerous_driving.detection.delivery import ResultDelivery
from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.publishing import Receipt
from dangerous_driving.detection.replay import Replay
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.errors import ObjectStoreError
from dangerous_driving.messaging import AckPolicy, Consumer, Producer, Topic, apply, embedded_kafka_settings
from dangerous_driving.messaging.spool import Spool, SpooledFrame
from dangerous_driving.objects import open_store
from dangerous_driving.objects.store import ObjectStore
from dangerous_driving.settings import DetectionSettings, KafkaSettings, ObjectsSettings
from dangerous_driving.tasks.reimport import reimport
from dangerous_driving.tasks.service import TasksService
from tests.conftest import missing_component

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]

ROOM = 10**9
START = datetime(2026, 11, 1, tzinfo=UTC)
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
PAIR = [Detection("car", 0.9, (10.0, 10.0, 30.0, 30.0)), Detection("person", 0.8, (24.0, 10.0, 32.0, 30.0))]
SETTINGS = DetectionSettings(group_distance=1000)
CAMERAS = ("a", "b", "c")


def wait_for(condition: Callable[[], object], *, seconds: float = 90) -> None:
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


class WatchedSpool(Spool):
    """Remembers what it was given."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        super().__init__(folder, max_bytes)
        self.given: set[str] = set()

    def put(self, frame: SpooledFrame) -> None:
        self.given.add(message_id_of(frame.camera_id, frame.captured_at))
        super().put(frame)


def deliver(delivery: ResultDelivery, camera_id: str, captured_at: datetime) -> str:
    delivery.deliver(Frame(camera_id, PICTURE, captured_at, 1), scene_of(PAIR, 64, 48, SETTINGS), 0.0)
    return message_id_of(camera_id, captured_at)


def publisher(producer: Producer, published: set[str]) -> Callable[[DetectionResult], Receipt]:
    """Sends results, and remembers which."""

    def publish(result: DetectionResult) -> Receipt:
        published.add(result.message_id)
        return producer.send(Topic.DETECTION_RESULTS, result, key=result.camera_id)

    return publish


def topic_content(kafka: KafkaSettings, expected: set[str]) -> list[DetectionResult]:
    """All messages, once those that are expected have come."""
    arrived: list[DetectionResult] = []
    topics = {Topic.DETECTION_RESULTS: DetectionResult}
    with Consumer(kafka, topics, name="look", policy=AckPolicy.AFTER_EFFECT) as consumer:

        def complete() -> bool:
            arrived.extend(received.message for received in consumer.poll(0.5, 500))
            return expected <= {result.message_id for result in arrived}

        wait_for(complete)
    return arrived


def first_times(results: list[DetectionResult], camera_id: str, ids: set[str]) -> list[datetime]:
    """When those frames of the camera were captured, in the order in which they first arrived."""
    return list(
        dict.fromkeys(
            result.timestamp for result in results if result.camera_id == camera_id and result.message_id in ids
        )
    )


def test_every_frame_arrives_in_order_over_outages_of_the_broker_and_of_the_store(tmp_path: Path) -> None:
    store = Store(open_store(ObjectsSettings(folder=tmp_path / "objects")))
    sent: list[str] = []
    with broker_process(tmp_path) as (process, kafka), Producer(kafka, "test") as producer:
        straight: set[str] = set()
        replayed: set[str] = set()
        spool = WatchedSpool(tmp_path / "spool", ROOM)
        delivery = ResultDelivery(SETTINGS, store, publisher(producer, straight), model="fake", spool=spool)
        replay = Replay(spool, store, publisher(producer, replayed), retry=0.2, answered=lambda: delivery.answered_at)
        replay.start()

        def capture(count: int) -> set[str]:
            given = set()
            for _ in range(count):
                for camera_id in CAMERAS:
                    captured_at = START + timedelta(milliseconds=len(sent))
                    given.add(deliver(delivery, camera_id, captured_at))
                    sent.append(message_id_of(camera_id, captured_at))
            return given

        before = capture(5)
        delivery.flush()
        assert not before & spool.given

        process.send_signal(signal.SIGSTOP)  # the broker is away

        def all_wait() -> bool:
            return capture(1) <= spool.given

        wait_for(all_wait)
        capture(6)
        store.away = True  # and now the store too
        capture(4)
        process.send_signal(signal.SIGCONT)  # the broker is back, but pictures come first
        both_away = capture(3)
        assert both_away <= spool.given

        store.away = False

        def live_again() -> bool:
            return not capture(1) & spool.given

        wait_for(live_again)  # while the rest of the backlog is sent beside
        wait_for(lambda: not len(spool))
        after = capture(3)
        delivery.flush()
        replay.stop(10)
        spool.close()
        assert not after & spool.given
        arrived = topic_content(kafka, set(sent))

    assert {result.message_id for result in arrived} == set(sent)
    for camera_id in CAMERAS:
        waited = first_times(arrived, camera_id, replayed - straight)
        assert len(waited) > 10
        assert waited == sorted(waited)
        live = first_times(arrived, camera_id, straight - replayed)
        assert live == sorted(live)
    stored = [DetectionResult.from_json(store.get(key)) for key in store.list("frames/") if key.endswith(".json")]
    assert {result.message_id for result in stored} == set(sent)
    assert {result.message_id: result for result in arrived} == {result.message_id: result for result in stored}
    for result in arrived:
        for url in (result.raw_frame_url, *(group.group_image_url for group in result.traffic_groups)):
            assert url is not None
            assert store.get(store.key(url))


def test_what_waits_is_sent_by_the_next_process(tmp_path: Path) -> None:
    store = Store(open_store(ObjectsSettings(folder=tmp_path / "objects")))
    store.away = True
    published: list[DetectionResult] = []
    first = Spool(tmp_path / "spool", ROOM)
    delivery = ResultDelivery(SETTINGS, store, published.append, model="fake", spool=first)
    for number in range(3):
        deliver(delivery, "cam", START + timedelta(seconds=number))
    first.close()
    assert published == []

    store.away = False
    second = Spool(tmp_path / "spool", ROOM)
    replay = Replay(second, store, published.append, retry=0.05)
    replay.start()
    wait_for(lambda: not len(second))
    replay.stop(10)
    second.close()
    assert [result.timestamp for result in published] == [START + timedelta(seconds=number) for number in range(3)]
    assert len([key for key in store.list("frames/") if key.endswith(".jpg")]) == 3
    assert len(list(store.list("groups/"))) == 3


SITE = """
import sys
from pathlib import Path
import structlog
from dangerous_driving.settings import KafkaSettings
from tests.integration.test_spool import site
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
site(Path(sys.argv[1]), int(sys.argv[2]), KafkaSettings.model_validate_json(sys.argv[3]))
"""


def numbered(number: int) -> tuple[str, datetime]:
    """Camera and capture time of the n-th frame of a site."""
    return CAMERAS[number % len(CAMERAS)], START + timedelta(milliseconds=number)


def site(folder: Path, first: int, kafka: KafkaSettings) -> None:
    """A camera site; says which frame it has dealt with, and how many wait. Ends with its standard input, or by a kill."""
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    store = open_store(ObjectsSettings(folder=folder / "objects"))
    with Producer(kafka, "site") as producer:
        publish = publisher(producer, set())
        spool = Spool(folder / "spool", ROOM)
        delivery = ResultDelivery(SETTINGS, store, publish, model="fake", spool=spool)
        replay = Replay(spool, store, publish, retry=0.2, answered=lambda: delivery.answered_at)
        replay.start()
        number = first
        while not stop.wait(0.02):
            deliver(delivery, *numbered(number))
            sys.stdout.write(json.dumps([number, len(spool), delivery.in_hand]) + "\n")
            sys.stdout.flush()
            number += 1
        delivery.stop_waiting()
        delivery.flush()
        replay.stop(5)
        spool.close()


class Site:
    """Such a process, with what it says."""

    def __init__(self, folder: Path, first: int, kafka: KafkaSettings) -> None:
        self.first = first
        self.said: list[tuple[int, int, int]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", SITE, str(folder), str(first), kafka.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            number, waiting, in_hand = json.loads(line)
            self.said.append((number, waiting, in_hand))

    @property
    def waiting(self) -> int:
        """Frames in its spool."""
        return self.said[-1][1] if self.said else 0

    @property
    def in_hand(self) -> int:
        """Results that neither broker nor spool has."""
        return self.said[-1][2]

    @property
    def last(self) -> int:
        """The last frame that it has dealt with."""
        return self.said[-1][0]

    def end(self, *, kill: bool) -> None:
        if self.process.poll() is not None:
            return
        if kill:
            self.process.kill()
        else:
            assert self.process.stdin is not None
            self.process.stdin.close()
        self.process.wait(60)
        self._listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def test_a_killed_site_leaves_no_more_to_import_than_what_it_had_in_its_hands(tmp_path: Path, ledger: Engine) -> None:
    sites: list[Site] = []
    with broker_process(tmp_path) as (process, kafka):
        try:
            sites.append(Site(tmp_path, 0, kafka))
            wait_for(lambda: sites[0].said)
            process.send_signal(signal.SIGSTOP)
            wait_for(lambda: sites[0].waiting > 300 and not sites[0].in_hand)  # the producer has given up what it held
            sites[0].end(kill=True)  # while it spools
            sites.append(Site(tmp_path, sites[0].last + 2, kafka))
            wait_for(lambda: sites[1].waiting > sites[0].waiting + 200)
            most = sites[1].waiting
            process.send_signal(signal.SIGCONT)
            wait_for(lambda: 0 < sites[1].waiting < most - 100)
            sites[1].end(kill=True)  # while it sends what waited
            sites.append(Site(tmp_path, sites[1].last + 2, kafka))
            wait_for(lambda: sites[2].said and sites[2].waiting == 0)
            sites[2].end(kill=False)
        finally:
            for one in sites:
                one.end(kill=True)
        assert not list((tmp_path / "spool").glob("*.spool"))

        dealt_with = {message_id_of(*numbered(number)) for one in sites for number, _, _ in one.said}
        # a kill may come between the store and the spool, or before the receipt of what went straight out
        in_hand = {message_id_of(*numbered(sites[0].last + 1))} | {
            message_id_of(*numbered(number)) for number in range(sites[1].last - 100, sites[1].last + 2)
        }
        arrived = {result.message_id for result in topic_content(kafka, dealt_with - in_hand)}
        store = open_store(ObjectsSettings(folder=tmp_path / "objects"))
        record(ledger, kafka, store, arrived)
    stored = {DetectionResult.from_json(store.get(key)).message_id for key in store.list("frames/") if ".json" in key}
    assert dealt_with <= stored
    assert stored - arrived <= in_hand
    found = reimport(ledger, store, window_length=60)
    assert (found.found, found.written) == (len(stored), len(stored - arrived))


def record(ledger: Engine, kafka: KafkaSettings, store: ObjectStore, arrived: set[str]) -> None:
    """Have the tasks service bring what is on the topic into the ledger."""
    stop = threading.Event()
    missing = set(arrived)

    class Recorder(TasksService):
        def handle(self, results: Sequence[DetectionResult]) -> list[AssessmentTask]:
            tasks = super().handle(results)
            missing.difference_update(result.message_id for result in results)
            if not missing:
                stop.set()
            return tasks

    with (
        Producer(kafka, "tasks") as producer,
        Consumer(
            kafka, {Topic.DETECTION_RESULTS: DetectionResult}, name="tasks", policy=AckPolicy.AFTER_EFFECT
        ) as consumer,
    ):
        Recorder(ledger, consumer, producer, store=store, window_length=60, delivery_timeout=10).run(stop)
