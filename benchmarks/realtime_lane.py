"""The realtime lane as `assess` runs it, on a real ledger: what it adds of its own, and how long its event loop pauses.

Tasks come from a consumer that hands them out at an even rate; results go to a producer that notes when. Prints one line of JSON.

Pauses are those of a task that wants its turn every 5 ms. Beside the longest stand the longest that a process with nothing else to
do had on the same machine meanwhile (``machine_pause``: who else wants the cores), and the longest processor time that the loop's
thread used between two turns (``own_pause``: what the lane itself keeps the loop busy with).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import SecretStr

from benchmarks.endpoint import secrets_of
from benchmarks.measure import percentile
from dangerous_driving.assessment.keys import open_pool
from dangerous_driving.assessment.llm import LlmClient
from dangerous_driving.assessment.opening import open_assessor
from dangerous_driving.assessment.scheduler import Scheduler
from dangerous_driving.contracts import Stage
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.messaging import Topic
from dangerous_driving.messaging.consumer import Received
from dangerous_driving.objects import FolderStore
from dangerous_driving.settings import AssessmentSettings, DatabaseSettings, KeysSettings, LlmSettings, Settings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

#: s between a frame's capture and its task on the topic at light load (detection, store, broker), as benchmarks.detection saw it.
BEFORE = 0.25


class Feed:
    """A consumer that hands out tasks at an even rate and notes when."""

    def __init__(self, store: FolderStore, rate: float, seconds: float, groups: int = 1) -> None:
        self._store, self._rate, self._groups = store, rate / groups, groups
        self._started = time.monotonic()
        self._count = int(self._rate * seconds)
        self._given = 0
        done, jpeg = cv2.imencode(".jpg", np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8))
        assert done
        self._url = store.put("groups/picture.jpg", bytes(jpeg), "image/jpeg")
        self.read: dict[str, float] = {}
        self.riskiest: set[str] = set()  # of each frame

    def poll(self, timeout: float, max_records: int) -> list[Any]:
        due = self._started + self._given / self._rate
        time.sleep(min(max(due - time.monotonic(), 0), timeout))
        found = []
        while self._given < self._count and self._started + self._given / self._rate <= time.monotonic():
            found += self._frame(self._given)
            self._given += 1
        return found

    def _frame(self, number: int) -> list[Received[Any]]:
        captured = datetime.now(UTC) - timedelta(seconds=BEFORE)
        frame = detection_result(f"sim-{number % 50}", captured, groups=self._groups)
        tasks = [
            task.model_copy(update={"group_image_url": self._url, "priority": random.random()})  # noqa: S311
            for task in tasks_from_detection(frame)
        ]
        self.read |= {task.task_id: time.monotonic() for task in tasks}
        self.riskiest.add(max(tasks, key=lambda task: task.priority).task_id)
        return [Received(Topic.ASSESSMENT_TASKS, 0, number, task.camera_id, task) for task in tasks]

    def commit(self) -> bool:
        return True

    def set_aside(self, item: Received[Any], reason: str, field: str = "") -> None:
        raise AssertionError(f"{item.key} was refused: {reason}")

    @property
    def ended(self) -> bool:
        return self._given >= self._count


class Receipt:
    def result(self, timeout: float) -> None:
        return None


class Out:
    """A producer that notes when each stage of a task was published."""

    def __init__(self) -> None:
        self.at: dict[tuple[str, Stage], float] = {}

    def send(self, topic: Topic, message: Any, key: str) -> Receipt:
        self.at.setdefault((message.task_id, message.stage), time.monotonic())
        return Receipt()


async def run(given: argparse.Namespace) -> dict[str, Any]:
    sent: dict[str, float] = {}
    answered: dict[str, float] = {}
    calls = 0
    complete = LlmClient.complete

    async def timed(self: LlmClient, messages: Any, secret: Any, on_text: Any = None, **more: Any) -> Any:
        question = asyncio.current_task().get_coro().cr_frame.f_locals["attempt"].question  # type: ignore[union-attr]
        tasks = [claim.task.task_id for claim in question.claims]
        on_sent = more.pop("on_sent")

        def note() -> None:
            nonlocal calls
            calls += 1
            for task_id in tasks:
                sent.setdefault(task_id, time.monotonic())
            on_sent()

        reply = await complete(self, messages, secret, on_text, on_sent=note, **more)
        for task_id in tasks:
            answered.setdefault(task_id, time.monotonic())
        return reply

    LlmClient.complete = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(Path(folder))
        settings = Settings(
            node="benchmark",
            database=DatabaseSettings(url=SecretStr(given.database)),
            keys=KeysSettings(
                secrets=tuple(SecretStr(secret) for secret in secrets_of(10)[: given.keys]),
                qps_limit=given.qps,
                rpm_limit=given.rpm,
            ),
            llm=LlmSettings(base_url=given.url, model="simulated-vl"),
            assessment=AssessmentSettings(coalesce_groups=given.share, coalesce_after=given.share_after),
        )
        engine = open_engine(settings.database)
        migrate(engine)
        pool, out, stop = open_pool(settings.keys, engine), Out(), threading.Event()
        pauses: list[float] = []
        own: list[float] = []
        machine = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CONTROL, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        async with open_assessor(
            settings, service="assess", engine=engine, store=store, pool=pool, producer=out
        ) as assessor:
            feed = Feed(store, given.rate, given.seconds, given.groups)
            scheduler = Scheduler(assessor, feed, settings.assessment, window_length=60)
            running = asyncio.create_task(scheduler.run(stop))
            watching = asyncio.create_task(watch(pauses, own))
            ends = time.monotonic() + given.seconds + 15
            while time.monotonic() < ends and not (feed.ended and len(answered) >= len(feed.read)):
                await asyncio.sleep(0.2)
            stop.set()
            await running
            watching.cancel()
        machine_pause = float((await machine.communicate(b""))[0])
        await pool.close()
        engine.dispose()
    to_call = [sent[task] - at for task, at in feed.read.items() if task in sent]
    to_result = [out.at[task, Stage.FINAL] - at for task, at in answered.items() if (task, Stage.FINAL) in out.at]
    added = [
        sent[task] - at + out.at[task, Stage.FINAL] - answered[task]
        for task, at in feed.read.items()
        if task in sent and task in answered and (task, Stage.FINAL) in out.at
    ]
    levels = [
        out.at[task, Stage.PROVISIONAL] - at + BEFORE
        for task, at in feed.read.items()
        if (task, Stage.PROVISIONAL) in out.at
    ]
    riskiest = {
        f"riskiest_{stage.value}": [
            out.at[task, stage] - at + BEFORE
            for task, at in feed.read.items()
            if task in feed.riskiest and (task, stage) in out.at
        ]
        for stage in Stage
    }
    return {
        "tasks": len(feed.read), "answered": len(answered), "calls": calls, "before": BEFORE,
        "riskiest": len(feed.riskiest),
        "riskiest_answered": len(riskiest["riskiest_final"]),
        **{f"{name}_p{int(share * 100)}": percentile(values, share)
           for name, values in riskiest.items() for share in (0.5, 0.95)},
        "to_call_p95": percentile(to_call, 0.95), "to_result_p95": percentile(to_result, 0.95),
        "own_p50": percentile(added, 0.5), "own_p95": percentile(added, 0.95),
        "level_p50": percentile(levels, 0.5), "level_p95": percentile(levels, 0.95),
        "longest_pause": max(pauses), "pause_p999": percentile(pauses, 0.999),
        "own_pause": max(own), "own_pause_p999": percentile(own, 0.999), "machine_pause": machine_pause,
    }  # fmt: skip


async def watch(pauses: list[float], own: list[float]) -> None:
    while True:
        before, used = time.monotonic(), time.thread_time()
        await asyncio.sleep(0.005)
        pauses.append(time.monotonic() - before - 0.005)
        own.append(time.thread_time() - used)


#: A process that does nothing but wait for its turn every 5 ms, until its input ends.
CONTROL = """
import select, sys, time
longest = 0.0
while True:
    before = time.monotonic()
    if select.select([sys.stdin], [], [], 0.005)[0]:
        break
    longest = max(longest, time.monotonic() - before - 0.005)
print(longest)
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--minute", type=float, default=60.0)
    parser.add_argument("--rpm", type=int, default=300)
    parser.add_argument("--qps", type=int, default=10)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--groups", type=int, default=1, help="of each frame")
    parser.add_argument("--share", type=int, default=1, help="assessment.coalesce_groups")
    parser.add_argument("--share-after", type=float, default=0.2, help="assessment.coalesce_after")
    found = asyncio.run(run(parser.parse_args()))
    print(json.dumps(found))
