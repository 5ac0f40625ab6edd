"""A bridge on a free port, fed by the test instead of a broker."""

from __future__ import annotations

import asyncio
import io
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine
from websockets.sync.client import ClientConnection, connect

from dangerous_driving.alerts.inputs import Sighting
from dangerous_driving.alerts.lifecycle import Lifecycle
from dangerous_driving.contracts import (
    Alert,
    AlertBasis,
    DetectedObject,
    DetectionResult,
    Message,
    RiskAssessment,
    RiskAssessmentResult,
    RiskLevel,
    Stage,
    TrafficGroup,
    message_id_of,
    task_id_of,
)
from dangerous_driving.errors import BrokerError
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.messaging import Received, Topic
from dangerous_driving.objects import FolderStore
from dangerous_driving.objects.keys import frame_key, group_key
from dangerous_driving.realtime.service import Bridge
from dangerous_driving.settings import AlertsSettings, LlmSettings, RealtimeSettings, Settings
from tests.realtime.pages import browser, context, watched

__all__ = ["browser", "context", "watched"]

LIFECYCLE = Lifecycle(AlertsSettings())
#: s; far more than anything here takes
PATIENCE = 60.0


def wait_for(condition: Callable[[], Any], what: str = "a condition") -> Any:
    """Wait until it holds; returns what it gave."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.02)
    return value


class FedConsumer:
    """Hands out what the test feeds; `broken` makes the next poll fail as a broker that went away."""

    def __init__(self, feed: queue.Queue[Message | BaseException]) -> None:
        self._feed = feed

    def poll(self, timeout: float, max_records: int) -> list[Received[Any]]:
        try:
            item = self._feed.get(timeout=timeout)
        except queue.Empty:
            return []
        if isinstance(item, BaseException):
            raise item
        return [Received(Topic.ALERTS, 0, 0, None, item)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Receipt:
    def result(self, timeout: float) -> None:
        return None


@dataclass
class CollectingProducer:
    """Keeps what is sent."""

    sent: list[Alert] = field(default_factory=list)

    def send(self, topic: Topic, message: Message, key: str) -> Receipt:
        assert topic is Topic.ALERTS
        assert isinstance(message, Alert)
        self.sent.append(message)
        return Receipt()


@dataclass
class RunningBridge:
    """A bridge and all that surrounds it."""

    settings: Settings
    engine: Engine
    store: FolderStore
    producer: CollectingProducer = field(default_factory=CollectingProducer)
    port: int = 0
    opened: int = 0
    failure: BaseException | None = None
    _feed: queue.Queue[Message | BaseException] = field(default_factory=queue.Queue)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> Self:
        ready = threading.Event()

        def on_ready(port: int) -> None:
            self.port = port
            ready.set()

        def open_consumer() -> FedConsumer:
            self.opened += 1
            return FedConsumer(self._feed)

        def work() -> None:
            bridge = Bridge(self.settings, self.engine, self.store, self.producer, open_consumer)
            try:
                asyncio.run(bridge.serve(self._stop, on_ready))
            except BaseException as error:  # noqa: BLE001 - the test shows it
                self.failure = error
                ready.set()

        self._thread = threading.Thread(target=work)
        self._thread.start()
        assert ready.wait(PATIENCE)
        if self.failure:
            raise self.failure
        wait_for(lambda: self.opened, "the reader")
        return self

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive()

    def restart(self) -> None:
        """As after a crash: on the same port, with an empty memory."""
        self.stop()
        self._stop = threading.Event()
        realtime = self.settings.realtime.model_copy(update={"port": self.port})
        self.settings = self.settings.model_copy(update={"realtime": realtime})
        self.start()

    def feed(self, message: Message | BrokerError) -> None:
        self._feed.put(message)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def http(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE)

    @contextmanager
    def socket(self, query: str = "", **options: Any) -> Iterator[Listener]:
        address = f"ws://127.0.0.1:{self.port}/ws{query}"
        with connect(address, open_timeout=PATIENCE, close_timeout=1, **options) as connection:
            yield Listener(connection)

    # what happens on the road

    def decide(self, *sightings: Sighting, publish: bool = True) -> list[Alert]:
        """Advance the lifecycle in the ledger, as the alerts service does, and bring the changes as the topic does."""
        changes = ledger_alerts.advance(self.engine, LIFECYCLE, sightings)
        alerts = [change.after.alert for change in changes]
        for alert in alerts if publish else []:
            self.feed(alert)
        return alerts


class Listener:
    """A client on the socket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def receive(self) -> tuple[str, dict[str, Any]]:
        message = json.loads(self.connection.recv(timeout=PATIENCE))
        assert set(message) == {"type", "data"}
        return message["type"], message["data"]

    def next(self, kind: str) -> dict[str, Any]:
        """The next message of this type; others are passed over."""
        while True:
            received, data = self.receive()
            if received == kind:
                return data

    def send(self, kind: str, **data: Any) -> None:
        self.connection.send(json.dumps({"type": kind, "data": data}))

    def settle(self) -> list[tuple[str, dict[str, Any]]]:
        """Everything up to the answer of a ping: all that was sent before is there then."""
        nonce = f"{time.monotonic_ns()}"
        self.send("ping", nonce=nonce)
        seen: list[tuple[str, dict[str, Any]]] = []
        while not seen or seen[-1][1].get("nonce") != nonce:
            seen.append(self.receive())
        return seen[:-1]


BridgeFactory = Callable[..., RunningBridge]


@pytest.fixture
def start_bridge(ledger: Engine, tmp_path: Path) -> Iterator[BridgeFactory]:
    """Start bridges on one ledger and store; settings of `realtime` may be given."""
    started: list[RunningBridge] = []

    def start(**realtime: Any) -> RunningBridge:
        options: dict[str, Any] = {"port": 0, "open_access": "token" not in realtime} | realtime
        if isinstance(options.get("token"), str):
            options["token"] = SecretStr(options["token"])
        settings = Settings(
            realtime=RealtimeSettings(**options), llm=LlmSettings(model="simulated-vl", base_url="http://127.0.0.1:1")
        )
        started.append(RunningBridge(settings, ledger, FolderStore(tmp_path / "objects")))
        return started[-1].start()

    yield start
    for bridge in started:
        bridge.stop()


@pytest.fixture
def bridge(start_bridge: BridgeFactory) -> RunningBridge:
    """A bridge with open access."""
    return start_bridge()


# messages


def moment(seconds_ago: float = 0) -> datetime:
    now = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def jpeg(width: int = 320, height: int = 180, shade: int = 90) -> bytes:
    picture = np.full((height, width, 3), shade, np.uint8)
    cv2.line(picture, (0, height), (width, 0), (200, 200, 200), 3)
    encoded, data = cv2.imencode(".jpg", picture)
    assert encoded
    return io.BytesIO(data.tobytes()).getvalue()


def a_frame(camera: str = "north", at: datetime | None = None, store: FolderStore | None = None) -> DetectionResult:
    """Two cars and a person, the person close to one car; with pictures if there is a store."""
    at = at or moment()
    message_id = message_id_of(camera, at)
    frame_url = group_url = None
    if store is not None:
        frame_url = store.put(frame_key(camera, at, message_id), jpeg(1280, 720), "image/jpeg")
        group_url = store.put(group_key(camera, at, message_id, 1), jpeg(shade=140), "image/jpeg")
    objects = (
        DetectedObject(object_id=1, class_name="car", confidence=0.9, bbox=(300, 300, 560, 480)),
        DetectedObject(object_id=2, class_name="person", confidence=0.8, bbox=(540, 300, 600, 470)),
        DetectedObject(object_id=3, class_name="car", confidence=0.7, bbox=(900, 250, 1100, 380)),
    )
    return DetectionResult(
        message_id=message_id,
        camera_id=camera,
        timestamp=at,
        image_width=1280,
        image_height=720,
        raw_frame_url=frame_url,
        detected_objects=objects,
        traffic_groups=(
            TrafficGroup(
                group_index=1,
                object_count=2,
                bbox=(300, 300, 600, 480),
                classes=("car", "person"),
                group_image_url=group_url,
                group_image_base64="QUJD",
                priority=0.92,
            ),
        ),
    )


def an_answer(
    frame: DetectionResult, level: RiskLevel = RiskLevel.HIGH, stage: Stage = Stage.FINAL
) -> RiskAssessmentResult:
    group = frame.traffic_groups[0]
    entry = RiskAssessment(
        group_index=1,
        risk_level=level,
        risk_types=("pedestrian_conflict",) if stage is Stage.FINAL else (),
        group_bbox=group.bbox,
    )
    return RiskAssessmentResult(
        message_id=f"{frame.message_id}{stage}",
        request_id=frame.message_id,
        camera_id=frame.camera_id,
        timestamp=moment(),
        results=(entry,),
        has_dangerous_driving=True,
        max_risk_level=level,
        task_id=task_id_of(frame.message_id, 1),
        stage=stage,
        captured_at=frame.timestamp,
    )


def a_sighting(
    frame: DetectionResult,
    level: RiskLevel = RiskLevel.HIGH,
    kind: AlertBasis = AlertBasis.FINAL,
    description: str = "A person steps in front of a moving car",
) -> Sighting:
    group = frame.traffic_groups[0]
    return Sighting(
        kind=kind,
        at=moment(),
        camera_id=frame.camera_id,
        task_id=task_id_of(frame.message_id, 1),
        request_id=frame.message_id,
        captured_at=frame.timestamp,
        level=level,
        bbox=group.bbox,
        risk_types=("pedestrian_conflict",) if kind is AlertBasis.FINAL else (),
        description=description if kind is AlertBasis.FINAL else "",
        group_image_url=group.group_image_url,
    )
