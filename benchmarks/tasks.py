"""Tasks from detection results, ledger included, against a bare consume-transform-produce loop of the same client.

    python -m benchmarks.tasks [--quick] [--messages 20000]

Both read the same messages from the same three Apache Kafka brokers, in turn, several times; the ledger is a real
PostgreSQL on the same machine. The bare loop is kafka-python alone: poll, read the JSON, derive the tasks, write their
JSON, send with acks=all, wait, commit. The profile says where the service's time goes.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata
from pydantic import SecretStr

from benchmarks.figures import Figure, tell
from dangerous_driving.contracts import DetectionResult
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.messaging import AckPolicy, Consumer, Producer, Topic, apply
from dangerous_driving.objects import open_store
from dangerous_driving.settings import DatabaseSettings, KafkaSettings, ObjectsSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks import service as tasks_service
from dangerous_driving.tasks.derivation import tasks_from_detection
from dangerous_driving.tasks.service import TasksService
from infra.kafka.cluster import KafkaCluster

CAMERAS = 50
INTERVAL = 1.8
GROUPS = 2
START = datetime(2026, 11, 1, tzinfo=UTC)


def fill(kafka: KafkaSettings, count: int) -> None:
    """Put so many detection results of 50 cameras on the topic."""
    with Producer(kafka.model_copy(update={"max_unacknowledged": 10 * count}), "fill") as producer:
        for number in range(count):
            camera = f"cam-{number % CAMERAS:02d}"
            at = START + timedelta(seconds=INTERVAL * (number // CAMERAS))
            producer.send(Topic.DETECTION_RESULTS, detection_result(camera, at, groups=GROUPS), key=camera)
        producer.flush(600)


def bare(kafka: KafkaSettings, count: int, group: str, batch: int) -> float:
    """Messages per second of kafka-python alone."""
    servers = kafka.bootstrap_servers.split(",")
    consumer = KafkaConsumer(
        bootstrap_servers=servers, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    consumer.subscribe([Topic.DETECTION_RESULTS.value])
    producer = KafkaProducer(
        bootstrap_servers=servers, acks="all", enable_idempotence=True, linger_ms=10, batch_size=kafka.batch_bytes,
        compression_type="lz4",
    )  # fmt: skip
    done, begun = 0, 0.0
    try:
        while done < count:
            batches = consumer.poll(500, max_records=batch)
            if not batches:
                continue
            begun = begun or time.perf_counter()  # joining the group is not what is measured
            sent = []
            for records in batches.values():
                for record in records:
                    result = DetectionResult.from_json(record.value)
                    sent += [
                        producer.send(Topic.ASSESSMENT_TASKS.value, task.to_json(), key=task.camera_id.encode())
                        for task in tasks_from_detection(result)
                    ]
                    done += 1
            for future in sent:
                future.get(60)
            consumer.commit(
                {partition: OffsetAndMetadata(records[-1].offset + 1) for partition, records in batches.items()}
            )
        return count / (time.perf_counter() - begun)
    finally:
        consumer.close()
        producer.close()


class Clock:
    """Adds up wall time and the main thread's processor time by stage."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def timed(self, name: str, call: Any) -> Any:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                self.wall[name] = self.wall.get(name, 0) + time.perf_counter() - wall
                self.cpu[name] = self.cpu.get(name, 0) + time.thread_time() - cpu

        return wrapper


class CountingConsumer(Consumer[DetectionResult]):
    """Ends the run once all messages are committed; the time runs from the first ones, as in the bare loop."""

    count, done, begun, ended = 0, 0, 0.0, 0.0
    stop: threading.Event

    def poll(self, timeout: float, max_records: int) -> Any:
        received = super().poll(timeout, max_records)
        if received:
            self.begun = self.begun or time.perf_counter()
            self.done += len(received)
        return received

    def commit(self, *arguments: Any) -> bool:
        committed = super().commit(*arguments)
        if self.done >= self.count and not self._to_commit:
            self.ended = time.perf_counter()
            self.stop.set()
        return committed


@contextmanager
def profiled(clock: Clock, consumer: CountingConsumer, producer: Producer) -> Iterator[None]:
    with (
        mock.patch.object(consumer, "poll", clock.timed("poll and read JSON", consumer.poll)),
        mock.patch.object(consumer, "commit", clock.timed("commit offsets", consumer.commit)),
        mock.patch.object(tasks_service, "tasks_from_detection", clock.timed("derive tasks", tasks_from_detection)),
        mock.patch.object(tasks_service, "record_detections", clock.timed("ledger transaction", record_detections)),
        mock.patch.object(producer, "send", clock.timed("write JSON and send", producer.send)),
    ):
        yield


def ours(kafka: KafkaSettings, server: EmbeddedPostgres, count: int, name: str) -> tuple[float, Clock]:
    """Messages per second of the tasks service, and where its time went."""
    engine = open_engine(DatabaseSettings(url=SecretStr(server.create_database(name, template="template_ledger"))))
    clock, stop = Clock(), threading.Event()
    settings = kafka.model_copy(update={"group_prefix": name})
    try:
        with (
            Producer(settings, "tasks") as producer,
            CountingConsumer(
                settings, {Topic.DETECTION_RESULTS: DetectionResult}, name="tasks", policy=AckPolicy.AFTER_EFFECT
            ) as consumer,
        ):
            consumer.count, consumer.stop = count, stop
            service = TasksService(
                engine,
                consumer,
                producer,
                store=open_store(ObjectsSettings()),  # no message carries a picture
                window_length=3600,
                delivery_timeout=kafka.delivery_timeout,
            )
            with profiled(clock, consumer, producer):
                service.run(stop)
            clock.wall["all"] = consumer.ended - consumer.begun
        return count / clock.wall["all"], clock
    finally:
        engine.dispose()
        server.drop_database(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer messages and rounds: under three minutes")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    count, rounds = (6_000, 2) if asked.quick else (asked.messages, asked.rounds)
    with tempfile.TemporaryDirectory() as scratch, KafkaCluster(Path(scratch) / "kafka") as cluster:
        print("starting three brokers and PostgreSQL …", flush=True)
        cluster.start()
        kafka = KafkaSettings(bootstrap_servers=cluster.bootstrap_servers)
        apply(kafka)
        with EmbeddedPostgres(Path(scratch) / "postgres") as server:
            template = open_engine(DatabaseSettings(url=SecretStr(server.create_database("template_ledger"))))
            migrate(template)
            template.dispose()
            fill(kafka, count)
            bares, services, clock = [], [], Clock()
            for number in range(rounds):
                bares.append(bare(kafka, count, f"bare-{number}", TasksService.BATCH))
                print(f"round {number + 1} of {rounds}: bare {bares[-1]:.0f} messages/s", flush=True)
                rate, clock = ours(kafka, server, count, f"ours_{number}")
                services.append(rate)
                print(f"round {number + 1} of {rounds}: tasks service {rate:.0f} messages/s", flush=True)
    total = clock.wall.pop("all")
    print(f"\nprofile of the last round of the tasks service, µs per message ({GROUPS} tasks each)")
    print(f"{'stage':26} {'wall':>8} {'main thread':>12}")
    for name, wall in sorted(clock.wall.items(), key=lambda item: -item[1]):
        print(f"{name:26} {wall / count * 1e6:8.0f} {clock.cpu[name] / count * 1e6:12.0f}")
    rest = total - sum(clock.wall.values())
    print(f"{'receipts, and the rest':26} {rest / count * 1e6:8.0f}")
    print(f"{'all':26} {total / count * 1e6:8.0f}", flush=True)
    ratio = median(mine / other for mine, other in zip(services, bares, strict=True))
    tell(
        "tasks",
        [
            Figure(
                "task generation, ledger included", median(services), "messages/s", median(bares), ratio, ">= 0.5",
                ratio >= 0.5, f"  {count} messages, {rounds} rounds",
            )
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
