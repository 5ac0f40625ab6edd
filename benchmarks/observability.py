"""What metrics and logs cost on the hot path: their share of a task's processor time.

A task goes the way that it goes in production: `tasks` records it and sends it, `assess` claims it, calls a simulated LLM (in
another process) and publishes, `alerts` applies both results, the bridge hands the alert on. All of it runs in this process, on
a real PostgreSQL, with senders that keep what they are given: the share is larger than with a real broker's client.

Two measurements of the same run. First, every call to a metric or a logger is noted, and the very same calls are made again in a
loop: their processor time per task, by that of a whole task. Second, the same tasks by turns with metrics and logs on and off
(loggers that filter everything, metrics that do nothing); processor times of tasks vary, so this one is the check, not the figure.

    python -m benchmarks.observability [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging as std_logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import structlog
from prometheus_client import Counter, Gauge, Histogram
from pydantic import SecretStr
from structlog.contextvars import bound_contextvars, get_contextvars

from benchmarks.figures import Figure, tell
from dangerous_driving.alerts.service import AlertsService
from dangerous_driving.assessment.assessor import Assessor
from dangerous_driving.assessment.keys import open_pool
from dangerous_driving.assessment.opening import open_assessor
from dangerous_driving.contracts import Lane, Message
from dangerous_driving.ledger.claims import claim_tasks
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import Partitions, migrate
from dangerous_driving.messaging import Topic
from dangerous_driving.objects import FolderStore, open_store
from dangerous_driving.observability import logging
from dangerous_driving.observability.stages import Stage, tasks_reached
from dangerous_driving.realtime.hub import Hub
from dangerous_driving.settings import DatabaseSettings, KeysSettings, LlmSettings, Settings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.service import TasksService

TARGET = 0.02
LENGTH = 60
LEVELS = ("debug", "info", "warning", "error", "exception")


class Receipt:
    def result(self, timeout: float) -> None:
        return None


class Kept:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def send(self, topic: Topic, message: Message, key: str) -> Receipt:
        self.messages.append(message)
        return Receipt()


class Group:
    """A consumer of which only its existence is asked."""

    assignment: frozenset[tuple[Topic, int]] = frozenset()


class Way:
    """The services of one task, in their order."""

    def __init__(self, settings: Settings, assessor: Assessor, sent: Kept, picture_url: str) -> None:
        self._settings, self._assessor, self._sent, self._url = settings, assessor, sent, picture_url
        self._engine = assessor.engine
        self._partitions = Partitions()
        self._tasks = TasksService(
            self._engine,
            Group(),  # type: ignore[arg-type]
            Kept(),
            store=open_store(settings.objects),
            window_length=LENGTH,
            delivery_timeout=5,
        )
        self._alerts = AlertsService(self._engine, Group(), Kept(), settings)  # type: ignore[arg-type]
        self._hub = Hub(client_queue=200)
        self._hub.connect()
        self._number = 0

    async def batch(self, count: int) -> None:
        """So many tasks, claimed together and assessed side by side."""
        frames = []
        for _ in range(count):
            self._number += 1
            captured = datetime.now(UTC) - timedelta(milliseconds=300 + self._number % 50)
            frame = detection_result(f"sim-{self._number:06d}", captured, groups=1)
            groups = tuple(group.model_copy(update={"group_image_url": self._url}) for group in frame.traffic_groups)
            frames.append(frame.model_copy(update={"traffic_groups": groups}))
        tasks = await asyncio.to_thread(self._tasks.handle, frames)
        claims = await asyncio.to_thread(
            claim_tasks, self._engine, self._partitions, self._assessor.worker, tasks, [],
            deferred_reason="", window_length=LENGTH,
        )  # fmt: skip
        tasks_reached(Stage.CLAIMED, [claim.task for claim in claims])
        await asyncio.gather(*(self._assessor.assess(claim, Lane.REALTIME) for claim in claims))
        results, self._sent.messages = self._sent.messages, []
        changes = await asyncio.to_thread(self._alerts.handle, results)
        self._hub.receive(change.after.alert for change in changes)
        self._hub.receive(frames)


@dataclass(frozen=True)
class Noted:
    """A call that was made, to be made again with the ids that were bound then."""

    name: str
    bound: dict[str, Any]
    again: Callable[[], Any]


def seconds_of(calls: list[Noted]) -> float:
    """Processor time of making them once; what binding the ids again costs is not theirs."""

    def again() -> None:
        for call in calls:
            with bound_contextvars(**call.bound):
                call.again()

    def nothing() -> None:
        for call in calls:
            with bound_contextvars(**call.bound):
                pass

    def best(loop: Callable[[], None]) -> float:
        loop()
        took = []
        for _ in range(7):
            began = time.process_time()
            for _ in range(20):
                loop()
            took.append((time.process_time() - began) / 20)
        return statistics.median(took)

    return best(again) - best(nothing)


@contextmanager
def noted(calls: list[Noted]) -> Iterator[None]:
    """Every call to a metric or a logger within the block, as something that can be called again."""
    before: list[tuple[Any, str, Any]] = []

    def wrap(owner: Any, name: str, original: Any) -> None:
        before.append((owner, name, original))

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(Noted(name, dict(get_contextvars()), lambda: original(self, *args, **kwargs)))
            return original(self, *args, **kwargs)

        setattr(owner, name, call)

    for kind, names in ((Counter, ("inc",)), (Gauge, ("set",)), (Histogram, ("observe",))):
        for name in names:
            wrap(kind, name, getattr(kind, name))
    # looking the labelled child up is part of the cost
    from prometheus_client.metrics import MetricWrapperBase

    wrap(MetricWrapperBase, "labels", MetricWrapperBase.labels)
    logger = structlog.get_config()["wrapper_class"]
    for name in LEVELS:
        wrap(logger, name, getattr(logger, name))
    try:
        yield
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)


@contextmanager
def silent() -> Iterator[None]:
    """Without metrics and logs."""
    from prometheus_client.metrics import MetricWrapperBase

    before = [(kind, name, getattr(kind, name)) for kind, name in (
        (Counter, "inc"), (Gauge, "set"), (Histogram, "observe"), (MetricWrapperBase, "labels"),
    )]  # fmt: skip
    logger = structlog.get_config()["wrapper_class"]
    before += [(logger, name, getattr(logger, name)) for name in LEVELS]
    for owner, name, _ in before:
        nothing = (lambda self, *_args, **_kwargs: self) if name == "labels" else (lambda *_args, **_kwargs: None)
        setattr(owner, name, nothing)
    try:
        yield
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)


@contextmanager
def endpoint() -> Iterator[str]:
    """The simulated LLM in a process of its own; quick, since its waiting costs nothing here."""
    code = (
        "import sys\nfrom dangerous_driving.simulation.llm import serving\n"
        "with serving(keys=(), speed=40) as url:\n    print(url, flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        while not (line := process.stdout.readline().strip()).startswith("http"):
            assert process.poll() is None
        yield line
    finally:
        process.stdin.close()
        process.wait(10)


async def measure(settings: Settings, folder: Path, *, batches: int, size: int) -> dict[str, Any]:
    engine = open_engine(settings.database)
    migrate(engine)
    store = FolderStore(folder)
    done, jpeg = cv2.imencode(".jpg", np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8))
    assert done
    url = store.put("groups/picture.jpg", bytes(jpeg), "image/jpeg")
    pool, sent = open_pool(settings.keys, engine), Kept()
    calls: list[Noted] = []
    on: list[float] = []
    off: list[float] = []
    try:
        async with open_assessor(
            settings, service="assess", engine=engine, store=store, pool=pool, producer=sent
        ) as assessor:
            way = Way(settings, assessor, sent, url)
            for _ in range(3):
                await way.batch(size)
            for turn in range(batches):
                # by turns, each first in half of the pairs
                for mode in ("on", "off") if turn % 2 else ("off", "on"):
                    with silent() if mode == "off" else contextlib.nullcontext():
                        began = time.process_time()
                        await way.batch(size)
                        (on if mode == "on" else off).append((time.process_time() - began) / size)
            with noted(calls):
                await way.batch(size)
    finally:
        await pool.close()
        engine.dispose()
    logged = [call for call in calls if call.name in LEVELS]
    counted = [call for call in calls if call.name not in LEVELS]
    return {
        "on": on, "off": off, "logs": seconds_of(logged) / size, "metrics": seconds_of(counted) / size,
        "lines": len(logged) / size, "counts": len(counted) / size,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    batches, size = (6, 20) if quick else (30, 40)
    shown = sys.stdout
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        server = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        settings = Settings(
            node="benchmark",
            database=DatabaseSettings(url=SecretStr(server.create_database("ledger"))),
            keys=KeysSettings(
                secrets=tuple(SecretStr(f"sk-simulated-{n}") for n in range(10)), rpm_limit=100_000, qps_limit=1000
            ),
            llm=LlmSettings(base_url=stack.enter_context(endpoint()), model="simulated-vl"),
        )
        # JSON lines as in production, into a file as a container's output is
        sys.stdout = stack.enter_context((folder / "log").open("w", encoding="utf-8"))
        stack.callback(lambda: setattr(sys, "stdout", shown))
        logging.configure(level="info", service="benchmark", node="here")
        found = asyncio.run(measure(settings, folder, batches=batches, size=size))
        sys.stdout.flush()
        sys.stdout = shown
        for handler in std_logging.getLogger().handlers[:]:
            std_logging.getLogger().removeHandler(handler)
    task = statistics.median(found["off"])
    with_them = statistics.median(found["on"])
    told = found["metrics"] + found["logs"]
    share = told / task
    tell(
        "observability",
        [
            Figure(
                "metrics and logs of one task, CPU", told * 1e6, "µs", task * 1e6, share, "< 0.02", share < TARGET,
            ),
            Figure(
                "of it metrics", found["metrics"] * 1e6, "µs", task * 1e6, found["metrics"] / task,
                note=f"  {found['counts']:.0f} calls a task",
            ),
            Figure(
                "of it logs", found["logs"] * 1e6, "µs", task * 1e6, found["logs"] / task,
                note=f"  {found['lines']:.1f} lines a task",
            ),
            Figure(
                "one task, CPU: with by without them", with_them * 1e6, "µs", task * 1e6, with_them / task, "< 1.02",
                None, f"  medians of {len(found['on'])} batches of {size} by turns",
            ),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
