"""Schedulers that are killed (-9) again and again while the endpoint has faults: every task ends, and every request is a row.

    python -m benchmarks.scheduler_kills --seconds 300 --kills 10 --schedulers 4      # make proof-schedulers

A real broker (librdkafka's, in a process of its own), a real PostgreSQL, `dangerous-driving assess` processes as they run in
production, and the simulated endpoint with 2 % 5xx, 1 % hangs and 1 % garbage. Exit code 1 if anything does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from pydantic import SecretStr
from sqlalchemy import Engine, text

from benchmarks.endpoint import secrets_of
from benchmarks.figures import machine
from benchmarks.key_pool import ROOT, Endpoint, Scale, endpoint
from dangerous_driving.ledger.database import open_engine, transaction
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.messaging import Producer, apply, embedded_kafka_settings
from dangerous_driving.objects import open_store
from dangerous_driving.settings import DatabaseSettings, KafkaSettings, ObjectsSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.service import TasksService

FAULTS = {"break": 0.02, "hang": 0.01, "garbage": 0.01}
WINDOW = 3600
CAMERAS = 8


@dataclass
class Proof:
    """What was seen. ``broken`` names what does not hold."""

    tasks: int = 0
    kills: int = 0
    states: dict[str, int] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    rate_limited: int = 0
    twice: int = 0
    refused: int = 0  # answers that came after their claim had gone to another worker
    assessments: int = 0
    broken: list[str] = field(default_factory=list)


class Run:
    """All that runs, and what it is told."""

    def __init__(self, folder: Path, stack: ExitStack, schedulers: int) -> None:
        self.folder, self.wanted = folder, schedulers
        server = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        self.database = DatabaseSettings(url=SecretStr(server.create_database("proof")))
        self.engine: Engine = open_engine(self.database)
        stack.callback(self.engine.dispose)
        migrate(self.engine)
        self.kafka = stack.enter_context(broker(folder))
        apply(self.kafka)
        self.endpoint: Endpoint = stack.enter_context(endpoint(10, Scale(60.0, 300, 0, 0, 0)))
        self.objects = ObjectsSettings(folder=folder / "objects")
        self.settings = self._write_settings()
        self.processes: list[subprocess.Popen[bytes]] = []
        stack.callback(self._end)

    def _write_settings(self) -> Path:
        values: dict[str, Any] = {
            "database": {"url": self.database.url.get_secret_value()},
            "kafka": json.loads(self.kafka.model_dump_json(exclude_defaults=True)),
            "objects": {"folder": str(self.objects.folder)},
            "llm": {"base_url": self.endpoint.url, "model": "simulated-vl", "timeout": 8.0},
            "keys": {"secrets": secrets_of(10)},
            "assessment": {"heartbeat_interval": 1.0, "worker_timeout": 5.0},
            "windows": {"length": WINDOW},
        }
        path = self.folder / "settings.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def start(self) -> None:
        number = len(list(self.folder.glob("assess-*.log")))
        with (self.folder / f"assess-{number}.log").open("wb") as output:
            command = [sys.executable, "-m", "dangerous_driving.cli", "assess", "--config", str(self.settings)]
            self.processes.append(subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output))

    def kill_one(self) -> None:
        victim = self.processes.pop(random.randrange(len(self.processes)))  # noqa: S311
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        self.start()

    def rows(self, query: str) -> list[Any]:
        with transaction(self.engine) as connection:
            return list(connection.execute(text(query)).all())

    def finish_windows(self) -> None:
        command = [
            sys.executable,
            "-m",
            "dangerous_driving.cli",
            "windows",
            "run",
            "--open-too",
            "--config",
            str(self.settings),
        ]
        with (self.folder / "windows.log").open("ab") as output:
            subprocess.run(command, cwd=ROOT, check=False, stdout=output, stderr=output, timeout=540)

    def why_windows_wait(self) -> str:
        """What window runs said of their windows, the last lines."""
        log = self.folder / "windows.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        told = [line for line in lines if any(word in line for word in ("given_up", "not_completed", "; ", "Error"))]
        return "\n".join(told[-8:])

    def _end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = []


@contextmanager
def broker(folder: Path) -> Iterator[KafkaSettings]:
    address = folder / "broker.address"
    process = subprocess.Popen(
        [sys.executable, "-m", "dangerous_driving.cli", "broker", "--address-file", str(address)], cwd=ROOT
    )
    try:
        until(address.exists, 60)
        yield embedded_kafka_settings(address.read_text().strip())
    finally:
        process.terminate()
        process.wait(timeout=30)


def until(condition: Callable[[], object], seconds: float, *, pause: float = 0.2) -> bool:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(pause)
    return True


def feed(run: Run, rate: float, stop: threading.Event, proof: Proof) -> None:
    """Frames of some cameras, at an even rate, as the tasks service records and sends them."""
    store = open_store(run.objects)
    done, jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))
    assert done
    url = store.put("groups/picture.jpg", bytes(jpeg), "image/jpeg")
    with Producer(run.kafka, "proof") as producer:
        service = TasksService(run.engine, None, producer, store=store, window_length=WINDOW, delivery_timeout=30)  # type: ignore[arg-type]
        started, number = time.monotonic(), 0
        while not stop.is_set():
            number += 1
            time.sleep(max(started + number * 2 / rate - time.monotonic(), 0))
            frame = detection_result(f"sim-{number % CAMERAS}", datetime.now(UTC), groups=2, priority=random.random())  # noqa: S311
            groups = tuple(group.model_copy(update={"group_image_url": url}) for group in frame.traffic_groups)
            proof.tasks += len(service.handle([frame.model_copy(update={"traffic_groups": groups})]))


def prove(folder: Path, *, seconds: float, kills: int, schedulers: int, rate: float, progress: bool = True) -> Proof:
    """Run it, and look at what is left."""
    proof, stop = Proof(), threading.Event()
    with ExitStack() as stack:
        run = Run(folder, stack, schedulers)
        for fault, amount in FAULTS.items():
            run.endpoint.fault(fault, amount=amount)
        for _ in range(schedulers):
            run.start()
        until(lambda: len(run.rows("SELECT 1 FROM worker WHERE stopped_at IS NULL")) >= schedulers, 120)
        feeding = threading.Thread(target=feed, args=(run, rate, stop, proof))
        feeding.start()
        try:
            for number in range(kills):
                time.sleep(seconds / (kills + 1))
                run.kill_one()
                proof.kills += 1
                if progress:
                    states = dict(run.rows("SELECT state, count(*) FROM assessment_task GROUP BY 1"))
                    print(f"killed {number + 1} of {kills}; tasks {states}", flush=True)
            time.sleep(seconds / (kills + 1))
        finally:
            stop.set()
            feeding.join()
        open_realtime = (
            "SELECT 1 FROM assessment_task WHERE state = 'claimed' OR (state = 'pending' AND lane = 'realtime') LIMIT 1"
        )
        until(lambda: not run.rows(open_realtime), 60)
        for _ in range(4):  # as Dagster tries a window again whose run was given up
            run.finish_windows()
            if not run.rows("SELECT 1 FROM assessment_task WHERE state IN ('pending', 'claimed') LIMIT 1"):
                break
        until(lambda: not run.rows("SELECT 1 FROM llm_call WHERE status = 'started' LIMIT 1"), 30)
        examine(run, proof)
    return proof


def examine(run: Run, proof: Proof) -> None:
    """What the ledger says against what the endpoint counted."""
    proof.states = dict(run.rows("SELECT state, count(*) FROM assessment_task GROUP BY 1"))
    if proof.states.get("pending") or proof.states.get("claimed"):
        for row in run.rows(
            "SELECT state, lane, reason, count(*) FROM assessment_task WHERE state IN ('pending', 'claimed') GROUP BY 1, 2, 3"
        ):
            print("left:", *row, flush=True)
        print(run.why_windows_wait(), flush=True)
    proof.causes = dict(
        run.rows("SELECT failure_code, count(*) FROM assessment_task WHERE state = 'failed' GROUP BY 1")
    )
    proof.calls = dict(run.rows("SELECT status, count(*) FROM llm_call GROUP BY 1"))
    proof.assessments = len(run.rows("SELECT 1 FROM risk_assessment WHERE is_current"))
    # tasks that were paid for twice: two calls that ended well
    proof.twice = len(run.rows("SELECT task_id FROM llm_call WHERE status = 'ok' GROUP BY 1 HAVING count(*) > 1"))
    proof.refused = len(
        run.rows(
            "SELECT 1 FROM llm_call c WHERE status = 'ok' AND NOT EXISTS (SELECT 1 FROM risk_assessment r WHERE r.call_id = c.call_id)"
        )
    )
    state = run.endpoint.state()
    proof.requests, proof.rate_limited = state["requests"], state["rate_limited"]
    calls = Counter(proof.calls)
    rows = calls.total()
    # a call that was lost with its process, or cancelled, may or may not have left
    unsure = calls["lost"] + calls["cancelled"]
    ended = proof.states.get("assessed", 0) + proof.states.get("failed", 0)
    for holds, otherwise in (
        (sum(proof.states.values()) == proof.tasks == ended, f"of {proof.tasks} tasks {ended} ended"),
        (proof.states.get("assessed", 0) == proof.assessments, "an assessed task has not exactly one assessment"),
        (proof.twice == 0, f"{proof.twice} tasks were answered twice"),
        (rows - unsure <= proof.requests <= rows, f"{proof.requests} requests, {rows} rows of which {unsure} unsure"),
        (calls["started"] == 0, f"{calls['started']} calls are left open"),
    ):
        if not holds:
            proof.broken.append(otherwise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--schedulers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=20.0, help="tasks per second")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        proof = prove(
            Path(folder),
            seconds=given.seconds,
            kills=given.kills,
            schedulers=given.schedulers,
            rate=given.rate,
        )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"commit {commit.stdout.strip()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}")
    print(f"{given.schedulers} schedulers, {proof.kills} killed in {given.seconds:g} s, faults {FAULTS}")
    for name in ("tasks", "states", "causes", "assessments", "twice", "refused", "calls", "requests", "rate_limited"):
        print(f"{name:14}{getattr(proof, name)}")
    print("holds" if not proof.broken else "DOES NOT HOLD: " + "; ".join(proof.broken))
    sys.exit(bool(proof.broken))


if __name__ == "__main__":
    main()
