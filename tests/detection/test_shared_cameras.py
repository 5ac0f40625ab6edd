"""Two `detect` processes on one ledger: they divide the cameras, and one takes over those of the other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from sqlalchemy import Engine, text

from dangerous_driving.camera.sharing import Detector, owner_of
from dangerous_driving.ledger.database import transaction
from dangerous_driving.messaging import EmbeddedBroker, apply, embedded_kafka_settings
from dangerous_driving.ports import free_port
from dangerous_driving.settings import DatabaseSettings, KafkaSettings
from tests.conftest import missing_component
from tests.detection.conftest import WriteOnnx

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]

PATIENCE = 60.0  # s until a condition counts as never met

CAMERAS = {f"camera-{number:02d}" for number in range(16)}
REFRESH, TAKEOVER_AFTER = 0.3, 2.0


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def kafka() -> Iterator[KafkaSettings]:
    try:
        import confluent_kafka  # noqa: F401
    except ImportError:
        missing_component("the embedded broker needs the package confluent-kafka")
    with EmbeddedBroker() as broker:
        settings = embedded_kafka_settings(broker.bootstrap_servers)
        apply(settings)
        yield settings


class Detect:
    """The command, as a supervisor runs it on one machine."""

    def __init__(self, node: str, folder: Path, shared: dict[str, object]) -> None:
        self.node, self.port = node, free_port()
        self.config, self.log = folder / f"{node}.yaml", folder / f"{node}.log"
        self.config.write_text(
            yaml.safe_dump(
                shared
                | {
                    "node": node,
                    "spool": {"folder": str(folder / f"spool of {node}")},
                    "assessment": {"inline_folder": str(folder / f"inline of {node}")},
                    "observability": {"port": self.port},
                }
            )
        )

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dangerous_driving.cli", "detect", "--config", str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if not name.startswith("DD_")},
            )
        try:
            yield process
        except BaseException as error:
            error.add_note(f"{self.node}, exit code {process.poll()}, said:\n{self.log.read_text()[-8000:]}")
            raise
        finally:
            process.kill()
            process.wait()

    def reads(self) -> set[str]:
        """The cameras that give it frames."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                return set(re.findall(r'^camera_up\{camera_id="(.+)"\} 1', answer.read().decode(), re.MULTILINE))
        except OSError:
            return set()


def test_detectors_share_cameras_and_take_over_those_of_one_that_died(
    tmp_path: Path, ledger: Engine, database: DatabaseSettings, kafka: KafkaSettings, write_onnx: WriteOnnx
) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        picture = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"pictures/{number}.png"), picture)
    shared: dict[str, object] = {
        # short: a process that is stopped in the middle of a transaction keeps its locks for twice as long
        "database": {"url": database.url.get_secret_value(), "statement_timeout": 5.0},
        "kafka": kafka.model_dump(mode="json"),
        "objects": {"folder": str(tmp_path / "objects")},
        "detection": {"weights": str(write_onnx(np.zeros((8, 10), np.float32))), "threads": 1},
        "camera": {
            "cameras": [{"id": camera_id, "source": str(tmp_path / "pictures")} for camera_id in sorted(CAMERAS)],
            "frame_interval": 1.0,
            "refresh": REFRESH,
            "takeover_after": TAKEOVER_AFTER,
        },
    }
    one, two = Detect("one", tmp_path, shared), Detect("two", tmp_path, shared)

    def shared_out() -> bool:
        """Each camera is read by one of them, and each of them reads some."""
        of_one, of_two = one.reads(), two.reads()
        return bool(of_one and of_two) and of_one ^ of_two == CAMERAS

    def online() -> bool:
        with transaction(ledger) as connection:
            return set(connection.scalars(text("SELECT id FROM camera WHERE status = 'online'"))) == CAMERAS

    def members() -> set[str]:
        with transaction(ledger) as connection:
            return set(connection.scalars(text("SELECT node FROM detector")))

    def owner(camera_id: str) -> str | None:
        with transaction(ledger) as connection:
            rows = connection.execute(text("SELECT name, node, cameras FROM detector")).all()
        found = owner_of(camera_id, [Detector(name, node, frozenset(known)) for name, node, known in rows])
        return found.node if found else None

    def looks_of_one(count: int) -> None:
        seen = set()

        def looked() -> bool:
            with transaction(ledger) as connection:
                seen.add(connection.scalar(text("SELECT seen_at FROM detector WHERE node = 'one'")))
            return len(seen) > count

        eventually(looked, "one goes on looking")

    with one.running():
        eventually(lambda: one.reads() == CAMERAS, "one alone reads all")
        with two.running() as process:
            eventually(shared_out, "two share")
            process.send_signal(signal.SIGKILL)
            process.wait()
            eventually(lambda: one.reads() == CAMERAS, "one takes over what the dead one read")
            eventually(online, "every state is its new reader's")
        with two.running() as process:
            eventually(shared_out, "two share again")
            eventually(online, "no state of who let go is left")
            process.send_signal(signal.SIGSTOP)  # for so long that it is given up, as one that the ledger does not hear
            eventually(lambda: one.reads() == CAMERAS, "one takes over what the silent one read")
            looks_of_one(3)  # by then it has said all that it has to say
            with transaction(ledger) as connection:  # as of cameras that let only one in, and two still holds them
                own = {"ids": [camera_id for camera_id in CAMERAS if owner(camera_id) == "two"]}
                connection.execute(text("UPDATE camera SET status = 'offline' WHERE id = ANY(:ids)"), own)
            process.send_signal(signal.SIGCONT)
            eventually(shared_out, "two share when it is back")
            eventually(online, "who reads a camera has the last word on it")
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            assert members() == {"one"}  # so it is handed over at the next look, and not when time is up
            eventually(lambda: one.reads() == CAMERAS, "one takes over what was handed over")
            eventually(online, "every state is its new reader's")
