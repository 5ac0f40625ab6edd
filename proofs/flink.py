"""The Flink job with one task manager killed (-9), in both guarantees; and the delay that each adds.

    python -m proofs.flink [--quick]

``make proof-flink`` runs it: three Apache Kafka brokers, one Flink job manager and two task managers on this machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kafka import KafkaConsumer

from benchmarks.figures import machine
from dangerous_driving.contracts import AssessmentTask
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.messaging import Producer, Topic
from dangerous_driving.settings import KafkaSettings
from dangerous_driving.simulation.messages import detection_result
from infra.flink.cluster import FlinkCluster
from infra.kafka.cluster import KafkaCluster
from proofs.kafka import REPOSITORY, Generator, work_place
from proofs.traffic import Sending, Verdict, percentile, same_on_topic, say, tasks_on_topic

#: s without progress after which the proof gives up
PATIENCE = 240.0


class Watch(threading.Thread):
    """Reads committed tasks as a scheduler would, and notes when each was first seen."""

    def __init__(self, kafka: KafkaSettings) -> None:
        super().__init__(name="watch", daemon=True)
        self.seen: dict[str, float] = {}
        self.error: BaseException | None = None
        self._kafka = kafka
        self._stop_reading = threading.Event()

    def run(self) -> None:
        consumer = KafkaConsumer(
            Topic.ASSESSMENT_TASKS.value, bootstrap_servers=self._kafka.bootstrap_servers.split(","), group_id=None,
            auto_offset_reset="earliest", isolation_level="read_committed", enable_auto_commit=False,
            fetch_max_wait_ms=50,
        )  # fmt: skip
        try:
            while not self._stop_reading.is_set():
                for records in consumer.poll(100, max_records=2000).values():
                    now = time.monotonic()
                    for record in records:
                        self.seen.setdefault(AssessmentTask.from_json(record.value).task_id, now)
        except BaseException as error:
            self.error = error
            raise
        finally:
            consumer.close()

    def end(self) -> None:
        self._stop_reading.set()
        self.join(30)


def same_set(
    verdict: Verdict, folder: Path, kafka: KafkaSettings, guarantee: str, *, count: int, cameras: int, interval: float
) -> None:
    """All tasks of the input, with a task manager killed under way; then the delay under a light load."""
    say(f"{guarantee}: {count} detection results of {cameras} cameras, a checkpoint every {interval:g} s")
    # one slot each, so that the one that is killed is at work
    with FlinkCluster(folder / f"flink-{guarantee}", slots=1) as flink:
        flink.start()
        watch = Watch(kafka)
        watch.start()
        # half of the input comes after the kill: it cannot be dealt with without the one that was killed
        sending = Sending(kafka, count, cameras, hold_at=count // 2)
        sending.start()
        job = flink.submit(
            "--bootstrap-servers", kafka.bootstrap_servers, "--group", f"{kafka.group_prefix}.tasks-flink",
            "--guarantee", guarantee, "--checkpoint-interval", str(interval),
            "--checkpoints", str(folder / f"checkpoints-{guarantee}"), "--parallelism", "2",
        )  # fmt: skip
        say(f"job {job} runs")
        begun = time.monotonic()
        killed = False
        last, since, told = -1, time.monotonic(), time.monotonic()
        while not (sending.sent.tasks and not sending.is_alive() and sending.sent.tasks <= watch.seen.keys()):
            seen = len(watch.seen)
            if watch.error or sending.sent.error:
                raise RuntimeError("watching or sending failed") from (watch.error or sending.sent.error)
            if seen != last:
                last, since = seen, time.monotonic()
            if not killed and seen > count // 4:
                killed = True
                flink.kill_task_manager(1)
                say(f"{seen} tasks seen, {flink.checkpoints(job)} checkpoints: task manager 1 killed -9")
                sending.go_on.set()
                flink.start_task_manager(1)
            if time.monotonic() - told > 15:
                told = time.monotonic()
                say(f"{seen} tasks seen, {flink.checkpoints(job)} checkpoints, job {flink.job(job)}")
            if time.monotonic() - since > PATIENCE:
                verdict.that(False, f"{guarantee}: no progress beyond {seen} tasks for {PATIENCE:g} s")
                return
            time.sleep(0.2)
        say(f"all tasks seen after {time.monotonic() - begun:.0f} s")
        # Flink's REST interface fetches metrics every ten seconds only: a quick job is over before its restart is told
        until = time.monotonic() + 60
        while (stands := flink.job(job)) and not stands[1] and time.monotonic() < until:
            time.sleep(1)
        state, restarts = stands
        verdict.that(
            killed and restarts >= 1 and state == "RUNNING",
            f"{guarantee}: a task manager was killed, the job was started anew {restarts} times and is {state}",
        )
        found = tasks_on_topic(kafka)
        same_on_topic(verdict, found, sending.sent)
        if guarantee == "exactly-once":
            verdict.that(found.again == 0, f"{guarantee}: {found.again} tasks came twice")
        delays(verdict, kafka, watch, guarantee, seconds=4 * interval)
        flink.cancel(job)
        watch.end()


def delays(verdict: Verdict, kafka: KafkaSettings, watch: Watch, name: str, *, seconds: float) -> None:
    """How long after a detection result was sent its task can be read, at 20 results/s."""
    sent: dict[str, float] = {}
    begun = time.monotonic()
    with Producer(kafka, "cameras") as producer:
        number = 0
        while time.monotonic() - begun < seconds:
            camera = f"live-{number % 20:02d}"
            at = datetime.now(UTC) + timedelta(milliseconds=number % 20)
            result = detection_result(camera, at, groups=1)
            producer.send(Topic.DETECTION_RESULTS, result, key=camera)
            sent[f"{result.message_id}_group1"] = time.monotonic()
            number += 1
            time.sleep(max(0.0, begun + number / 20 - time.monotonic()))
        producer.flush()
    deadline = time.monotonic() + PATIENCE
    while not sent.keys() <= watch.seen.keys() and time.monotonic() < deadline:
        time.sleep(0.1)
    took = [watch.seen[task] - at for task, at in sent.items() if task in watch.seen]
    verdict.that(
        len(took) == len(sent),
        f"delay, {name}: median {percentile(took, 0.5):.2f} s, P95 {percentile(took, 0.95):.2f} s, "
        f"longest {max(took):.2f} s ({len(took)} of {len(sent)} tasks at 20/s)",
    )


def python_delay(verdict: Verdict, folder: Path, kafka: KafkaSettings, database: object, *, seconds: float) -> None:
    """The same measure of the Python service, ledger included."""
    watch = Watch(kafka)
    watch.start()
    with Generator(folder, kafka, database) as generator:  # type: ignore[arg-type]
        generator.wait_ready()
        delays(verdict, kafka, watch, "tasks service (Python, ledger included)", seconds=seconds)
    watch.end()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small counts, to try the proof itself")
    parser.add_argument("--messages", type=int, default=None)
    asked = parser.parse_args(arguments)
    count = asked.messages or (5_000 if asked.quick else 100_000)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=REPOSITORY
    ).stdout.strip()
    say(f"proof of the Flink job · commit {commit} · {', '.join(f'{k} {v}' for k, v in machine().items())}")
    verdict = Verdict()
    with (
        tempfile.TemporaryDirectory(prefix="proof-flink-") as scratch,
        KafkaCluster(Path(scratch) / "kafka") as cluster,
    ):
        folder = Path(scratch)
        cluster.start()
        say("three brokers of Apache Kafka are up")
        with EmbeddedPostgres(folder / "postgres") as server:
            for guarantee in ("at-least-once", "exactly-once"):
                with work_place(cluster, server, guarantee.replace("-", "_")) as (kafka, _, _):
                    same_set(
                        verdict, folder, kafka, guarantee, count=count, cameras=50,
                        interval=5.0 if asked.quick else 10.0,
                    )  # fmt: skip
            with work_place(cluster, server, "python") as (kafka, database, _):
                python_delay(verdict, folder, kafka, database, seconds=20)
    say("every statement holds" if verdict.holds else "NOT every statement holds")
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main())
