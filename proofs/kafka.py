"""That nothing is lost or doubled: processes and brokers killed under load, on three real Apache Kafka brokers.

    python -m proofs.kafka [kills] [broker] [outage] [fuzz] [--quick]

``make proof-kafka`` runs all four. Each prints what it does and what holds; the exit code is 1 if something does not.
A short version of each runs in `make test` (tests/integration/test_kafka_cluster.py).
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import yaml
from pydantic import SecretStr
from sqlalchemy import Engine

from benchmarks.figures import machine
from dangerous_driving.contracts import DetectionResult, message_id_of
from dangerous_driving.errors import BrokerError
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.messaging import AckPolicy, Consumer, Producer, Topic, apply, describe, group_lag
from dangerous_driving.settings import DatabaseSettings, KafkaSettings
from dangerous_driving.simulation.messages import detection_result
from infra.kafka.cluster import KafkaCluster
from proofs.traffic import START, Sending, Verdict, committed, compare, count_frames, percentile, say, tasks_on_topic

REPOSITORY = Path(__file__).resolve().parents[1]
#: s without any progress after which a proof gives up
PATIENCE = 180.0


class Generator:
    """The tasks service as a process of its own."""

    def __init__(self, folder: Path, kafka: KafkaSettings, database: DatabaseSettings) -> None:
        self._log = folder / "tasks.log"
        self._config = folder / "settings.yaml"
        self._config.write_text(
            yaml.safe_dump(
                {
                    "kafka": kafka.model_dump(mode="json", exclude_defaults=True),
                    "database": {"url": database.url.get_secret_value()},
                }
            ),
            encoding="utf-8",
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dangerous_driving.cli", "tasks", "--config", str(self._config), "--leash"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        assert self.process is not None
        self.process.kill()
        self._reap()

    def wait_ready(self) -> None:
        """Until this process, and not one before it, serves."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while not any(
            '"event": "started"' in line and f'"pid": {self.process.pid}' in line
            for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the tasks service does not start: {self.last_words}")
            time.sleep(0.1)

    def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self._reap()

    def _reap(self) -> int:
        assert self.process is not None
        assert self.process.stdin is not None
        code = self.process.wait(60)
        self.process.stdin.close()
        return code

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.kill()  # one that has ended by itself is reaped alike

    @property
    def last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]


def kills(
    verdict: Verdict,
    folder: Path,
    cluster: KafkaCluster,
    server: EmbeddedPostgres,
    *,
    count: int,
    cameras: int,
    kills: int,
) -> None:
    """Kill the generator again and again, and one broker, while results come in."""
    say(f"kills: {count} detection results of {cameras} cameras, the generator killed {kills} times, broker 2 once")
    with (
        work_place(cluster, server, "kills") as (kafka, database, engine),
        Generator(folder, kafka, database) as generator,
    ):
        sending = Sending(kafka, count, cameras)
        sending.start()
        begun = time.monotonic()
        steps: list[tuple[int, str]] = [(count * number // (kills + 1), "generator") for number in range(1, kills + 1)]
        steps += [(count * 35 // 100, "broker down"), (count * 65 // 100, "broker back")]
        for at, step in sorted(steps):
            wait_for_frames(engine, at, generator)
            done = count_frames(engine)
            if step == "generator":
                generator.kill()
                generator.start()
                say(f"{done:7d} frames in the ledger: generator killed -9, and started again")
            elif step == "broker down":
                cluster.kill(2)
                say(f"{done:7d} frames in the ledger: broker 2 killed -9")
            else:
                cluster.start(2)
                say(f"{done:7d} frames in the ledger: broker 2 is back")
        sending.join(600)
        if sending.sent.error is not None:
            raise sending.sent.error
        wait_for_frames(engine, count, generator)
        wait_until_committed(kafka, f"{kafka.group_prefix}.tasks")
        say(f"done after {time.monotonic() - begun:.0f} s; reading the topic")
        generator.wait_ready()
        verdict.that(generator.stop() == 0, "the generator ends cleanly on SIGTERM")
        compare(verdict, engine, tasks_on_topic(kafka), sending.sent)


def wait_for_frames(engine: Engine, wanted: int, generator: Generator) -> None:
    seen, since, told = -1, time.monotonic(), time.monotonic()
    while (done := count_frames(engine)) < wanted:
        if done != seen:
            seen, since = done, time.monotonic()
        if time.monotonic() - told > 15:
            told = time.monotonic()
            say(f"{done:7d} frames in the ledger")
        if time.monotonic() - since > PATIENCE:
            raise TimeoutError(f"no progress beyond {done} frames for {PATIENCE:g} s: {generator.last_words}")
        time.sleep(0.1)


def wait_until_committed(kafka: KafkaSettings, group: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while sum(group_lag(kafka, group, follows=[Topic.DETECTION_RESULTS]).values()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"group {group} does not catch up")
        time.sleep(0.5)


@dataclass(frozen=True)
class Failure:
    """What happens to a broker, and what is said of it."""

    name: str
    down: str
    up: str


BROKER_FAILURES = (Failure("killed -9", "kill", "start"), Failure("cut off (frozen)", "cut_off", "reconnect"))


def broker_down(
    verdict: Verdict,
    cluster: KafkaCluster,
    server: EmbeddedPostgres,
    failure: Failure,
    *,
    seconds: float,
    rate: float,
    limit: float,
) -> None:
    """Producer and consumer go on while one broker of three is away."""
    say(f"broker: broker 1 {failure.name} for {seconds:g} s, {rate:g} messages/s of 50 cameras")
    with work_place(cluster, server, "broker") as (kafka, _, _):
        sent_at: dict[str, float] = {}
        acknowledged: dict[str, float] = {}
        received: dict[str, float] = {}
        again, refused = 0, 0
        stop = threading.Event()
        order: dict[str, list[str]] = {}

        def consume() -> None:
            nonlocal again
            with Consumer(
                kafka, {Topic.DETECTION_RESULTS: DetectionResult}, name="effect", policy=AckPolicy.AFTER_EFFECT
            ) as consumer:
                while not stop.is_set():
                    for item in consumer.poll(0.2, 500):
                        name = item.message.message_id
                        again += name in received
                        if name not in received:
                            received[name] = time.monotonic()
                            order.setdefault(item.message.camera_id, []).append(name)
                    try:
                        consumer.commit()
                    except BrokerError as error:
                        say(f"commit put off: {str(error)[:100]}")

        consuming = threading.Thread(target=consume, name="consume", daemon=True)
        consuming.start()
        expected: dict[str, list[str]] = {}
        with Producer(kafka, "cameras") as producer:
            begun = time.monotonic()
            down = up = False
            number = 0
            while time.monotonic() - begun < 5 + 2 * seconds:
                if not down and time.monotonic() - begun > 5:
                    down = True
                    getattr(cluster, failure.down)(1)
                    say(f"broker 1 {failure.name}")
                if down and not up and time.monotonic() - begun > 5 + seconds:
                    up = True
                    # in a thread: a real broker starts beside the work, too
                    threading.Thread(target=getattr(cluster, failure.up), args=(1,)).start()
                    say("broker 1 comes back")
                camera = f"cam-{number % 50:02d}"
                result = detection_result(camera, START + timedelta(milliseconds=number), groups=1)
                name = result.message_id
                delivery = producer.send(Topic.DETECTION_RESULTS, result, key=camera)
                sent_at[name] = time.monotonic()
                expected.setdefault(camera, []).append(name)

                def note(error: BrokerError | None, name: str = name) -> None:
                    nonlocal refused
                    refused += error is not None
                    acknowledged[name] = time.monotonic()

                delivery.on_done(note)
                number += 1
                time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            producer.flush(60)
        deadline = time.monotonic() + 60
        while len(received) < len(sent_at) and time.monotonic() < deadline:
            time.sleep(0.1)
        stop.set()
        consuming.join(60)
        on_topic = [DetectionResult.from_json(value).message_id for value in committed(kafka, Topic.DETECTION_RESULTS)]
        mine = [name for name in on_topic if name in sent_at]
        to_ack = [acknowledged[name] - at for name, at in sent_at.items()]
        to_receive = [received[name] - at for name, at in sent_at.items() if name in received]
        verdict.that(refused == 0, f"{failure.name}: {len(sent_at)} messages sent, {refused} refused")
        verdict.that(
            max(to_ack) <= limit,
            f"{failure.name}: longest wait for a receipt {max(to_ack):.1f} s (P99 {percentile(to_ack, 0.99):.1f} s, "
            f"median {percentile(to_ack, 0.5) * 1000:.0f} ms), limit {limit:g} s",
        )
        verdict.that(
            max(to_receive) <= limit,
            f"{failure.name}: longest way from sender to consumer {max(to_receive):.1f} s "
            f"(P99 {percentile(to_receive, 0.99):.1f} s), limit {limit:g} s",
        )
        verdict.that(
            len(mine) == len(set(mine)) == len(sent_at),
            f"{failure.name}: {len(set(mine))} of {len(sent_at)} on the topic, {len(mine) - len(set(mine))} doubled",
        )
        verdict.that(
            received.keys() == sent_at.keys() and order == expected,
            f"{failure.name}: {len(received)} taken effect once each, in order per camera ({again} were handed out again)",
        )
        cluster.wait()


def all_down(
    verdict: Verdict, folder: Path, cluster: KafkaCluster, server: EmbeddedPostgres, *, seconds: float, cameras: int
) -> None:
    """All brokers away: detection results wait in the spool and arrive in order."""
    import numpy as np

    from dangerous_driving.camera.frame import Frame
    from dangerous_driving.detection.delivery import ResultDelivery
    from dangerous_driving.detection.engine import Detection
    from dangerous_driving.detection.publishing import Receipt
    from dangerous_driving.detection.replay import Replay
    from dangerous_driving.detection.scene import scene_of
    from dangerous_driving.messaging.spool import Spool
    from dangerous_driving.objects import open_store
    from dangerous_driving.settings import DetectionSettings, ObjectsSettings

    say(f"outage: all brokers killed -9 for {seconds:g} s, {cameras} cameras at 1.8 s")
    settings = DetectionSettings(group_distance=1000)
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    pair = [Detection("car", 0.9, (10.0, 10.0, 30.0, 30.0)), Detection("person", 0.8, (24.0, 10.0, 32.0, 30.0))]
    store = open_store(ObjectsSettings(folder=folder / "objects"))
    with work_place(cluster, server, "outage") as (kafka, _, _), Producer(kafka, "detect") as producer:
        straight: set[str] = set()
        replayed: set[str] = set()

        def publisher(published: set[str]) -> object:
            def publish(result: DetectionResult) -> Receipt:
                published.add(result.message_id)
                return producer.send(Topic.DETECTION_RESULTS, result, key=result.camera_id)

            return publish

        spool = Spool(folder / "spool", 10**9)
        delivery = ResultDelivery(settings, store, publisher(straight), model="simulated", spool=spool)  # type: ignore[arg-type]
        replay = Replay(spool, store, publisher(replayed), retry=1.0, answered=lambda: delivery.answered_at)  # type: ignore[arg-type]
        replay.start()
        sent: list[str] = []
        begun = time.monotonic()
        most = 0
        phase = "before"
        number = 0
        starting: threading.Thread | None = None
        while True:
            elapsed = time.monotonic() - begun
            if phase == "before" and elapsed > 5:
                phase = "down"
                for broker in cluster.brokers:
                    cluster.kill(broker.node)
                say("all brokers killed -9")
            if phase == "down" and elapsed > 5 + seconds:
                phase = "up"
                say(f"{len(spool)} frames wait in the spool; the brokers start")
                starting = threading.Thread(target=cluster.start)
                starting.start()
            if phase == "up" and starting is not None and not starting.is_alive() and not len(spool):
                break
            if elapsed > 5 + seconds + 2 * PATIENCE:
                break
            at = START + timedelta(milliseconds=number)
            camera = f"cam-{number % cameras:02d}"
            delivery.deliver(Frame(camera, picture, at, 1), scene_of(pair, 64, 48, settings), 0.0)
            sent.append(message_id_of(camera, at))
            most = max(most, len(spool))
            number += 1
            time.sleep(max(0.0, begun + number * 1.8 / cameras - time.monotonic()))
        delivery.flush()
        replay.stop(30)
        left = len(spool)
        spool.close()
        arrived = [DetectionResult.from_json(value) for value in committed(kafka, Topic.DETECTION_RESULTS)]
        mine = [result for result in arrived if result.message_id in set(sent)]
        ids = {result.message_id for result in mine}
        verdict.that(
            left == 0 and ids == set(sent), f"{len(ids)} of {len(sent)} frames arrived, {left} left in the spool"
        )
        waited = replayed - straight
        verdict.that(most > 0 and len(replayed) > 0, f"up to {most} frames waited, {len(replayed)} went by the spool")
        for name, of in (("from the spool", waited), ("straight", straight - replayed)):
            wrong = 0
            for camera in {result.camera_id for result in mine}:
                times = list(dict.fromkeys(r.timestamp for r in mine if r.camera_id == camera and r.message_id in of))
                wrong += sum(later < earlier for earlier, later in itertools.pairwise(times))
            verdict.that(wrong == 0, f"order per camera of the {len(of)} frames {name}: {wrong} out of order")


@contextmanager
def work_place(
    cluster: KafkaCluster, server: EmbeddedPostgres, name: str
) -> Iterator[tuple[KafkaSettings, DatabaseSettings, Engine]]:
    """Empty topics, a group of its own and an empty ledger."""
    from kafka import KafkaAdminClient

    kafka = KafkaSettings(
        bootstrap_servers=cluster.bootstrap_servers,
        request_timeout=5.0,
        group_prefix=f"proof-{name}",
    )
    admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers.split(","))
    try:
        present = sorted(set(admin.list_topics()) & {topic.value for topic in Topic})
        if present:
            admin.delete_topics(present)
            while set(admin.list_topics()) & set(present):
                time.sleep(0.2)
    finally:
        admin.close()
    apply(kafka)
    for broker in cluster.brokers:
        # one that has just come back may not know them yet; it may also have named the old ones to `apply`, which then made none
        while len(describe(kafka.model_copy(update={"bootstrap_servers": broker.address}))) < len(Topic):
            time.sleep(0.2)
            apply(kafka)
    address = server.create_database(f"proof_{name}_{os.getpid()}_{time.monotonic_ns()}")
    database = DatabaseSettings(url=SecretStr(address))
    engine = open_engine(database)
    try:
        migrate(engine)
        yield kafka, database, engine
    finally:
        engine.dispose()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["kills", "broker", "outage", "fuzz", []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="small counts, to try the proof itself")
    parser.add_argument("--messages", type=int, default=None, help="of kills and fuzz")
    asked = parser.parse_args(arguments)
    parts = asked.parts or ["kills", "broker", "outage", "fuzz"]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=REPOSITORY
    ).stdout.strip()
    say(f"proof of messaging and tasks · commit {commit} · {', '.join(f'{k} {v}' for k, v in machine().items())}")
    verdict = Verdict()
    with (
        tempfile.TemporaryDirectory(prefix="proof-kafka-") as scratch,
        KafkaCluster(Path(scratch) / "kafka") as cluster,
    ):
        folder = Path(scratch)
        cluster.start()
        say(f"three brokers of Apache Kafka at {cluster.bootstrap_servers}")
        with EmbeddedPostgres(folder / "postgres") as server:
            if "kills" in parts:
                count = asked.messages or (4000 if asked.quick else 100_000)
                kills(verdict, folder, cluster, server, count=count, cameras=50, kills=2 if asked.quick else 10)
            if "broker" in parts:
                for failure in BROKER_FAILURES:
                    broker_down(
                        verdict, cluster, server, failure, seconds=12 if asked.quick else 30, rate=100, limit=10
                    )
            if "outage" in parts:
                all_down(verdict, folder, cluster, server, seconds=10 if asked.quick else 60, cameras=50)
            if "fuzz" in parts:
                from proofs.fuzz import fuzz

                with (
                    work_place(cluster, server, "fuzz") as (kafka, database, engine),
                    Generator(folder, kafka, database) as generator,
                ):
                    count = asked.messages or (500 if asked.quick else 10_000)
                    fuzz(verdict, kafka, engine, generator, count=count)
    say("every statement holds" if verdict.holds else "NOT every statement holds")
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main())
