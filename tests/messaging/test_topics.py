"""The topic table, and how it comes to be on a broker."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from dangerous_driving.contracts import DetectionResult
from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging import (
    AckPolicy,
    Consumer,
    EmbeddedBroker,
    Outcome,
    Topic,
    apply,
    check,
    describe,
    embedded_kafka_settings,
    group_lag,
    topic_table,
)
from dangerous_driving.messaging.topics import open_admin
from dangerous_driving.settings import KafkaSettings
from infra.kafka.cluster import ClusterError, KafkaCluster
from tests.conftest import missing_component
from tests.messaging.conftest import wait_until


def test_the_table_is_that_of_the_design() -> None:
    table = {spec.topic: spec for spec in topic_table(KafkaSettings())}
    assert {topic: (spec.partitions, spec.retention) for topic, spec in table.items()} == {
        Topic.DETECTION_RESULTS: (16, timedelta(hours=1)),
        Topic.ASSESSMENT_TASKS: (16, timedelta(hours=1)),
        Topic.RISK_ASSESSMENT_RESULTS: (16, timedelta(hours=24)),
        Topic.ALERTS: (16, timedelta(hours=24)),
        Topic.DEAD_LETTER: (1, timedelta(days=7)),
    }
    assert {spec.replication for spec in table.values()} == {3}
    assert table[Topic.ALERTS].configuration == {
        "cleanup.policy": "delete",
        "retention.ms": "86400000",
        "min.insync.replicas": "2",
        "max.message.bytes": "1048576",
    }


def test_a_dead_letter_has_room_for_the_largest_message_in_base64() -> None:
    table = {spec.topic: spec.max_message_bytes for spec in topic_table(KafkaSettings())}
    assert table[Topic.DEAD_LETTER] > max(table.values()) / 2 * 4 / 3


@pytest.mark.integration
def test_topics_are_created_once_and_found_the_second_time() -> None:
    with EmbeddedBroker() as embedded:
        kafka = embedded_kafka_settings(embedded.bootstrap_servers)
        assert len(check(kafka)) == len(Topic)
        assert all("topics apply" in problem for problem in check(kafka))
        with pytest.raises(BrokerError, match="topics apply"):
            Consumer(kafka, {Topic.ALERTS: DetectionResult}, name="x", policy=AckPolicy.BROADCAST)
        assert len(check(kafka)) == len(Topic)  # a consumer that asks in vain makes none

        applied = apply(kafka)
        assert [topic.state.topic for topic in applied] == list(Topic)
        assert {topic.outcome for topic in applied} == {Outcome.CREATED}
        again = apply(kafka)
        assert {topic.outcome for topic in again} == {Outcome.EXISTED}
        assert [topic.state for topic in again] == [topic.state for topic in applied]
        assert check(kafka) == []


@pytest.mark.integration
def test_what_differs_from_the_table_is_named(broker: KafkaSettings) -> None:
    problems = check(broker.model_copy(update={"partitions": 1000}))
    assert len(problems) == len(Topic) - 1
    assert "detection-results" in problems[0]
    assert "kafka.partitions" in problems[0]
    assert len(check(broker.model_copy(update={"replication": 9}))) == len(Topic)


@pytest.mark.integration
def test_a_group_that_never_was_has_no_lag(kafka: KafkaSettings) -> None:
    assert group_lag(kafka, "nobody") == {}


@pytest.mark.integration
def test_what_differs_on_existing_topics_is_named_and_set(kafka_cluster: KafkaCluster) -> None:
    kafka = KafkaSettings(bootstrap_servers=kafka_cluster.bootstrap_servers)
    apply(kafka)
    admin = open_admin(kafka, "test")
    try:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "alerts", {"retention.ms": "1000"})])
    finally:
        admin.close()
    # the controller has it at once, each broker a moment later
    wait_until(lambda: all(check(kafka) for _ in range(8)), "all brokers tell the change, whichever is asked")
    [problem] = check(kafka)
    assert "topic alerts has retention.ms = 1000, wanted is 86400000" in problem
    changed = {line.state.topic: line.changes for line in apply(kafka) if line.outcome is Outcome.CHANGED}
    assert changed == {Topic.ALERTS: ("retention.ms 1000 -> 86400000",)}
    wait_until(lambda: not any(check(kafka) for _ in range(8)), "the brokers tell that it is as wanted")
    assert {line.outcome for line in apply(kafka)} == {Outcome.EXISTED}
    state = describe(kafka)[Topic.ALERTS]
    assert (state.partitions, state.replication) == (16, 3)
    assert state.configuration["min.insync.replicas"] == "2"


@pytest.mark.integration
def test_partitions_are_added_only_when_asked_for(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path, brokers=1) as cluster:
        try:
            cluster.start()
        except ClusterError as error:
            missing_component(f"no Apache Kafka: {error}")
        few = KafkaSettings(
            bootstrap_servers=cluster.bootstrap_servers, partitions=2, replication=1, min_insync_replicas=1
        )
        apply(few)
        more = few.model_copy(update={"partitions": 3})
        assert "--add-partitions" in check(more)[0]
        apply(more)
        assert describe(more)[Topic.ALERTS].partitions == 2
        apply(more, add_partitions=True)
        assert {topic: state.partitions for topic, state in describe(more).items()} == {
            topic: 1 if topic is Topic.DEAD_LETTER else 3 for topic in Topic
        }
        assert check(more) == []
