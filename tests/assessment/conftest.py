"""A lane on a real ledger, asking the simulated endpoint over HTTP."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from dangerous_driving.assessment.assessor import Assessor
from dangerous_driving.assessment.keys import load_keys, open_pool
from dangerous_driving.assessment.opening import open_assessor
from dangerous_driving.contracts import DetectionResult, Lane, Message, RiskAssessmentResult
from dangerous_driving.errors import BrokerError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.messaging import Topic
from dangerous_driving.objects import FolderStore
from dangerous_driving.settings import AssessmentSettings, DatabaseSettings, KeysSettings, LlmSettings, Settings
from dangerous_driving.simulation.llm import serving
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

LENGTH = 60


class Receipt:
    def __init__(self, error: BrokerError | None) -> None:
        self._error = error

    def result(self, timeout: float) -> None:
        if self._error:
            raise self._error


@dataclass
class Sent:
    """A producer that keeps what it is given; ``away`` makes it refuse receipts."""

    results: list[RiskAssessmentResult] = field(default_factory=list)
    away: bool = False

    def send(self, topic: Topic, message: Message, key: str) -> Receipt:
        assert topic is Topic.RISK_ASSESSMENT_RESULTS
        assert isinstance(message, RiskAssessmentResult)
        assert key == message.camera_id
        if not self.away:
            self.results.append(message)
        return Receipt(BrokerError("no broker answered; check kafka.bootstrap_servers") if self.away else None)


@dataclass
class Bench:
    """All that a lane needs, and views on what it did."""

    engine: Engine
    settings: Settings
    store: FolderStore
    sent: Sent
    address: str

    @asynccontextmanager
    async def assessor(self) -> AsyncIterator[Assessor]:
        pool = open_pool(self.settings.keys, self.engine)
        try:
            async with open_assessor(
                self.settings, service="test", engine=self.engine, store=self.store, pool=pool, producer=self.sent
            ) as assessor:
                yield assessor
        finally:
            await pool.close()

    def record(
        self, captured_at: datetime, *, groups: int = 1, camera_id: str = "sim-1", lane: Lane = Lane.REALTIME
    ) -> DetectionResult:
        """A frame with pictures in the store and tasks in the ledger."""
        result = detection_result(camera_id, captured_at, groups=groups)
        stored = tuple(
            group.model_copy(
                update={
                    "group_image_url": self.store.put(
                        f"groups/{result.message_id}_group{group.group_index}.jpg", picture(), "image/jpeg"
                    )
                }
            )
            for group in result.traffic_groups
        )
        result = result.model_copy(update={"traffic_groups": stored})
        tasks = tasks_from_detection(result)
        record_detections(self.engine, Partitions(), [result], tasks, window_length=LENGTH, lane=lane)
        return result

    def fault(self, action: str, *, key: str | None = None, amount: float = 1.0) -> None:
        order = json.dumps({"action": action, "key": key, "amount": amount}).encode()
        request = urllib.request.Request(
            self.address.removesuffix("/v1") + "/admin/faults", order, {"content-type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=5).close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with transaction(self.engine) as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    @property
    def key_hashes(self) -> list[str]:
        return [key.key_hash for key in load_keys(self.settings.keys)]


def picture() -> bytes:
    done, encoded = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))
    assert done
    return bytes(encoded)


@pytest.fixture
def bench(ledger: Engine, database: DatabaseSettings, tmp_path: Path) -> Iterator[Bench]:
    keys = KeysSettings(secrets=tuple(SecretStr(f"sk-simulated-{number}") for number in range(3)))
    with serving(keys=load_keys(keys), speed=20) as address:
        settings = Settings(
            node="test",
            database=database,
            keys=keys,
            llm=LlmSettings(base_url=address, model="simulated-vl", timeout=5, price_input=1, price_output=2),
            assessment=AssessmentSettings(heartbeat_interval=0.2, worker_timeout=2),
        )
        yield Bench(ledger, settings, FolderStore(tmp_path / "objects"), Sent(), address)


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


class Batches:
    """A consumer that hands out what it is given and counts commits."""

    def __init__(self) -> None:
        self._waiting: list[list[Any]] = []
        self._lock = threading.Lock()
        self.commits = 0
        self.set_asides: list[tuple[Any, str, str]] = []
        self.on_commit: Callable[[], None] = lambda: None
        self.on_set_aside: Callable[[], None] = lambda: None

    def offer(self, received: list[Any]) -> None:
        with self._lock:
            self._waiting.append(received)

    def poll(self, timeout: float, max_records: int) -> list[Any]:
        with self._lock:
            if self._waiting:
                return self._waiting.pop(0)
        threading.Event().wait(min(timeout, 0.02))
        return []

    def set_aside(self, item: Any, reason: str, field: str = "") -> None:
        self.on_set_aside()
        self.set_asides.append((item, reason, field))

    def commit(self) -> bool:
        self.commits += 1
        self.on_commit()
        return True


@pytest.fixture
def batches() -> Batches:
    return Batches()
