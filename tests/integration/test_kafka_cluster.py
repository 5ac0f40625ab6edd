"""Short versions of `make proof-kafka`, on three Apache Kafka brokers: what is killed, lost and doubled."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer

from dangerous_driving.contracts import AssessmentTask
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.messaging import AckPolicy, Consumer, Topic, apply, describe, group_lag
from dangerous_driving.messaging.topics import lag_of, open_admin
from dangerous_driving.settings import KafkaSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection
from infra.kafka.cluster import KafkaCluster
from proofs.fuzz import fuzz
from proofs.kafka import BROKER_FAILURES, Generator, all_down, broker_down, kills, work_place
from proofs.traffic import Verdict

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

#: s; a test waits for what must come, the proof measures how long it took
NO_LIMIT = 300.0


@pytest.fixture
def verdict() -> Verdict:
    return Verdict()


def held(verdict: Verdict) -> None:
    assert verdict.lines
    assert not [statement for holds, statement in verdict.lines if not holds]


def test_a_killed_generator_and_a_killed_broker_lose_and_double_no_task(
    verdict: Verdict, tmp_path: Path, kafka_cluster: KafkaCluster, postgres_server: EmbeddedPostgres
) -> None:
    kills(verdict, tmp_path, kafka_cluster, postgres_server, count=2000, cameras=20, kills=1)
    held(verdict)


def test_topics_and_lag_can_be_read_while_a_broker_is_away(kafka_cluster: KafkaCluster) -> None:
    # the dead one may hold the group's offsets: another takes them over once it is missed, after nine seconds
    kafka = KafkaSettings(bootstrap_servers=kafka_cluster.bootstrap_servers, request_timeout=40)
    apply(kafka)
    admin = open_admin(kafka, "asks again")
    assert not lag_of(kafka, admin, "nobody")
    # which one it is depends on the brokers that other tests took away: a returning one leads nothing for minutes
    theirs = coordinator(admin, "nobody")
    kafka_cluster.kill(theirs)
    try:
        # this client has been told that the dead one is the group's coordinator
        assert len(lag_of(kafka, admin, "nobody", follows=[Topic.DETECTION_RESULTS])) == kafka.partitions
        # the client that asks chooses its broker by chance: with 20 questions it has met the dead one
        for _ in range(20):
            assert len(describe(kafka)) == len(Topic)
            group_lag(kafka, "nobody", follows=[Topic.DETECTION_RESULTS])
    finally:
        admin.close()
        kafka_cluster.start(theirs)
        kafka_cluster.wait()


def coordinator(admin: KafkaAdminClient, group: str) -> int:
    node: int = admin._manager.cluster.get_coordinator(group)
    return node


@pytest.mark.parametrize("failure", BROKER_FAILURES, ids=lambda failure: failure.down)
def test_one_broker_away_loses_and_doubles_no_effect(
    verdict: Verdict, kafka_cluster: KafkaCluster, postgres_server: EmbeddedPostgres, failure: object
) -> None:
    broker_down(
        verdict, kafka_cluster, postgres_server, failure, seconds=6, rate=50, limit=NO_LIMIT  # type: ignore[arg-type]
    )  # fmt: skip
    held(verdict)


def test_with_all_brokers_away_the_spool_keeps_everything_in_order(
    verdict: Verdict, tmp_path: Path, kafka_cluster: KafkaCluster, postgres_server: EmbeddedPostgres
) -> None:
    all_down(verdict, tmp_path, kafka_cluster, postgres_server, seconds=4, cameras=20)
    held(verdict)


def test_no_message_stops_the_tasks_service_and_none_vanishes(
    verdict: Verdict, tmp_path: Path, kafka_cluster: KafkaCluster, postgres_server: EmbeddedPostgres
) -> None:
    with (
        work_place(kafka_cluster, postgres_server, "fuzz") as (kafka, database, engine),
        Generator(tmp_path, kafka, database) as generator,
    ):
        fuzz(verdict, kafka, engine, generator, count=150)
    held(verdict)


def test_tasks_of_a_broken_transaction_are_handed_to_nobody(kafka_cluster: KafkaCluster) -> None:
    kafka = KafkaSettings(bootstrap_servers=kafka_cluster.bootstrap_servers, group_prefix=f"test-{uuid.uuid4().hex}")
    apply(kafka)
    camera = f"cam-{uuid.uuid4().hex[:8]}"
    tasks = tasks_from_detection(detection_result(camera, datetime.now(UTC), groups=4))
    # as the Flink job sends them with `tasks.guarantee: exactly-once`
    job = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=f"flink-{camera}")
    job.init_transactions()
    for part, end in ((tasks[:2], job.abort_transaction), (tasks[2:], job.commit_transaction)):
        job.begin_transaction()
        for task in part:
            job.send(Topic.ASSESSMENT_TASKS.value, task.to_json(), key=camera.encode()).get(30)
        end()
    job.close()
    wanted = {task.task_id for task in tasks[2:]}
    seen: set[str] = set()
    with Consumer(
        kafka, {Topic.ASSESSMENT_TASKS: AssessmentTask}, name="assess", policy=AckPolicy.AFTER_EFFECT
    ) as consumer:
        while not wanted <= seen:  # pytest's time-out ends what never comes
            seen |= {item.message.task_id for item in consumer.poll(0.5, 500) if item.key == camera}
    assert seen == wanted
