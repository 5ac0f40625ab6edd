"""The topics, their table, how they come into being, and how far a group is behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import TypeVar

from kafka import KafkaAdminClient, KafkaProducer, OffsetSpec, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging.connection import broker_error, broker_errors, milliseconds, opening
from dangerous_driving.settings import KafkaSettings


class Topic(StrEnum):
    """Every topic of the platform, by its name on the broker."""

    DETECTION_RESULTS = "detection-results"
    ASSESSMENT_TASKS = "assessment-tasks"
    RISK_ASSESSMENT_RESULTS = "risk-assessment-results"
    ALERTS = "alerts"
    DEAD_LETTER = "dead-letter"


#: s before a question is put again
RETRY_PAUSE = 0.2

Answer = TypeVar("Answer")

#: What is set for the embedded broker, and for no other that is still in use.
EMBEDDED_API_VERSION = (2, 3)

#: bytes; Kafka's own default, which leaves room for a group's picture in a message
MAX_MESSAGE_BYTES = 1024 * 1024
#: bytes; a dead letter carries a whole message in base64, which is a third longer
MAX_DEAD_LETTER_BYTES = 2 * MAX_MESSAGE_BYTES

_RETENTION = {
    Topic.DETECTION_RESULTS: timedelta(hours=1),
    Topic.ASSESSMENT_TASKS: timedelta(hours=1),
    Topic.RISK_ASSESSMENT_RESULTS: timedelta(hours=24),
    Topic.ALERTS: timedelta(hours=24),
    Topic.DEAD_LETTER: timedelta(days=7),
}


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One line of the topic table."""

    topic: Topic
    partitions: int
    replication: int
    retention: timedelta
    min_insync_replicas: int
    max_message_bytes: int

    @property
    def configuration(self) -> dict[str, str]:
        """The topic's settings under the names that Kafka gives them."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention // timedelta(milliseconds=1)),
            "min.insync.replicas": str(self.min_insync_replicas),
            "max.message.bytes": str(self.max_message_bytes),
        }


def topic_table(kafka: KafkaSettings) -> tuple[TopicSpec, ...]:
    """The topic table of docs/kafka.md, with partitions and replication of these settings."""
    return tuple(
        TopicSpec(
            topic=topic,
            # one partition keeps dead letters in the order in which they were set aside; there are few
            partitions=1 if topic is Topic.DEAD_LETTER else kafka.partitions,
            replication=kafka.replication,
            retention=_RETENTION[topic],
            min_insync_replicas=kafka.min_insync_replicas,
            max_message_bytes=MAX_DEAD_LETTER_BYTES if topic is Topic.DEAD_LETTER else MAX_MESSAGE_BYTES,
        )
        for topic in Topic
    )


class Outcome(StrEnum):
    """What ``apply`` found or did."""

    CREATED = "created"
    CHANGED = "changed"
    EXISTED = "existed"


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the broker has it."""

    topic: Topic
    partitions: int
    replication: int
    in_sync: int = 0  # replicas of the partition that has the fewest
    configuration: Mapping[str, str] = field(default_factory=dict)  # of the settings in the table; none if not told


@dataclass(frozen=True, slots=True)
class AppliedTopic:
    """What became of one topic; ``state`` may differ from the table where the broker decides for itself."""

    outcome: Outcome
    state: TopicState
    changes: tuple[str, ...] = ()  # in words


def apply(kafka: KafkaSettings, *, add_partitions: bool = False) -> list[AppliedTopic]:
    """Create the topics that are missing and set what differs from the table, in its order.

    Settings of existing topics are changed. Partitions are only added when asked for, since a camera's messages then go to
    another partition and may overtake those before; replicas are left to Kafka's own tools.

    The embedded broker cannot be told to create a topic: it makes one, with a partition count of its own, as soon as a
    client asks about it.

    Raises:
        BrokerError: no broker answered in time, or it refused.
    """
    with _admin(kafka) as admin, broker_errors(kafka, "cannot create the topics"):
        existing = set(_patiently(kafka, admin.list_topics))
        missing = [spec for spec in topic_table(kafka) if spec.topic not in existing]
        if missing:
            try:
                _create(kafka, admin, missing)
            except (kafka_errors.UnknownBrokerIdError, kafka_errors.UnsupportedVersionError):
                # no controller, or one that does not know the request: the embedded broker
                _create_by_asking(kafka, [spec.topic for spec in missing])
            admin.wait_for_topics([spec.topic.value for spec in missing], milliseconds(kafka.request_timeout))
        created = {spec.topic for spec in missing}
        before = _patiently(kafka, lambda: _states(kafka, admin))
        changes = {
            spec.topic: tuple(_change(kafka, admin, spec, state, add_partitions=add_partitions))
            for spec in topic_table(kafka)
            if spec.topic not in created and (state := before.get(spec.topic)) is not None
        }
        states = _patiently(kafka, lambda: _states(kafka, admin))
    return [
        AppliedTopic(
            Outcome.CREATED if topic in created else Outcome.CHANGED if changes.get(topic) else Outcome.EXISTED,
            states[topic],
            changes.get(topic, ()),
        )
        for topic in Topic
        if topic in states
    ]


def _change(
    kafka: KafkaSettings, admin: KafkaAdminClient, spec: TopicSpec, state: TopicState, *, add_partitions: bool
) -> Iterator[str]:
    different = {
        name: value
        for name, value in spec.configuration.items()
        if state.configuration and state.configuration.get(name) != value
    }
    if different:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, spec.topic.value, different)])
        yield from (f"{name} {state.configuration.get(name)} -> {value}" for name, value in different.items())
    if add_partitions and spec.topic is not Topic.DEAD_LETTER and state.partitions < spec.partitions:
        admin.create_partitions({spec.topic.value: spec.partitions}, timeout_ms=milliseconds(kafka.request_timeout))
        yield f"partitions {state.partitions} -> {spec.partitions}"


def describe(kafka: KafkaSettings) -> dict[Topic, TopicState]:
    """The topics of the table that the broker has.

    Raises:
        BrokerError: no broker answered in time, or it refused.
    """
    with _admin(kafka) as admin, broker_errors(kafka, "cannot read the topics"):
        return _patiently(kafka, lambda: _states(kafka, admin))


def check(kafka: KafkaSettings) -> list[str]:
    """What differs from the table, one sentence with its remedy each; empty when all is well.

    Raises:
        BrokerError: no broker answered in time, or it refused.
    """
    return list(_differences(topic_table(kafka), describe(kafka)))


def _differences(table: Iterable[TopicSpec], states: Mapping[Topic, TopicState]) -> Iterator[str]:
    for spec in table:
        state = states.get(spec.topic)
        if state is None:
            yield f"topic {spec.topic} is missing: run 'dangerous-driving topics apply'"
        elif state.partitions < spec.partitions and spec.topic is not Topic.DEAD_LETTER:
            yield (
                f"topic {spec.topic} has {state.partitions} partitions, kafka.partitions is {spec.partitions}:"
                " run 'dangerous-driving topics apply --add-partitions' while no message is under way, or lower the setting"
            )
        elif state.replication < spec.replication:
            yield (
                f"topic {spec.topic} is kept {state.replication} times, kafka.replication is {spec.replication}:"
                " reassign its partitions with Kafka's own tools, or lower the setting"
            )
        else:
            for name, value in spec.configuration.items():
                found = state.configuration.get(name)
                if state.configuration and found != value:
                    yield f"topic {spec.topic} has {name} = {found}, wanted is {value}: run 'dangerous-driving topics apply'"
            if 0 < state.in_sync < spec.min_insync_replicas:
                yield (
                    f"topic {spec.topic} has a partition with {state.in_sync} replicas in sync, {spec.min_insync_replicas} are"
                    " needed to write: look for brokers that are down"
                )


def group_lag(kafka: KafkaSettings, group: str, *, follows: Collection[Topic] = ()) -> dict[tuple[Topic, int], int]:
    """How many messages of each partition the group has not committed yet.

    Counted for the topics that it `follows` and those it has ever committed. A partition of such a topic without a committed
    offset counts from its earliest message, where a consumer would begin.

    Raises:
        BrokerError: no broker answered in time, or it refused.
    """
    with _admin(kafka) as admin:
        return lag_of(kafka, admin, group, follows=follows)


def lag_of(
    kafka: KafkaSettings, admin: KafkaAdminClient, group: str, *, follows: Collection[Topic] = ()
) -> dict[tuple[Topic, int], int]:
    """`group_lag` by a client that is open already.

    Raises:
        BrokerError: no broker answered in time, or it refused.
    """
    with broker_errors(kafka, f"cannot read the offsets of group {group}"):
        partitions = [
            TopicPartition(state.topic.value, partition)
            for state in _patiently(kafka, lambda: _states(kafka, admin)).values()
            for partition in range(state.partitions)
        ]
        if not partitions:
            return {}
        committed = {
            partition: position.offset
            for partition, position in _patiently(
                kafka,
                lambda: admin.list_group_offsets({group: partitions})[group],
                before_again=partial(_forget_coordinators, admin),
            ).items()
            if position.offset >= 0  # -1: nothing committed
        }
        followed = {partition.topic for partition in committed} | {topic.value for topic in follows}
        partitions = [partition for partition in partitions if partition.topic in followed]
        if not partitions:
            return {}
        ends = _patiently(kafka, lambda: admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST)))
        begins = _patiently(kafka, lambda: admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST)))
    return {
        (Topic(partition.topic), partition.partition): max(
            0, ends[partition].offset - max(committed.get(partition, 0), begins[partition].offset)
        )
        for partition in partitions
    }


def _patiently(
    kafka: KafkaSettings, ask: Callable[[], Answer], *, before_again: Callable[[], None] = lambda: None
) -> Answer:
    """Ask again within ``kafka.request_timeout`` after an error that passes by itself.

    kafka-python's admin client asks any broker it knows and does not turn to another when that one is down; and a new
    cluster makes the topic of the offsets when it is first asked for a group, and refuses until it is there.
    """
    deadline = time.monotonic() + kafka.request_timeout
    while True:
        try:
            return ask()
        except kafka_errors.RetriableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_PAUSE)
            before_again()


def _forget_coordinators(admin: KafkaAdminClient) -> None:
    # kafka-python 3.0.12 asks only once which broker is a group's coordinator, and goes on asking that one when it is dead
    admin._manager.cluster._coordinators.clear()  # noqa: SLF001


def open_admin(kafka: KafkaSettings, client_id: str) -> KafkaAdminClient:
    """A client for questions about topics and groups; to be closed.

    Raises:
        BrokerError: no broker answered in time.
    """
    with opening(kafka, client_id) as options:
        return KafkaAdminClient(**options)


@contextmanager
def _admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    admin = open_admin(kafka, "dangerous-driving-topics")
    try:
        yield admin
    finally:
        admin.close()


def _states(kafka: KafkaSettings, admin: KafkaAdminClient) -> dict[Topic, TopicState]:
    names = {topic.value for topic in Topic}
    found = [topic for topic in admin.describe_topics() if topic["name"] in names]
    configurations = _configurations(kafka, admin, [topic["name"] for topic in found])
    return {
        Topic(topic["name"]): TopicState(
            topic=Topic(topic["name"]),
            partitions=len(topic["partitions"]),
            replication=min((len(partition["replica_nodes"]) for partition in topic["partitions"]), default=0),
            in_sync=min((len(partition["isr_nodes"]) for partition in topic["partitions"]), default=0),
            configuration=configurations.get(topic["name"], {}),
        )
        for topic in found
    }


def _configurations(kafka: KafkaSettings, admin: KafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    # the embedded broker has no settings, and hangs up on one who asks for them
    if not names or (kafka.api_version is not None and tuple(kafka.api_version) <= EMBEDDED_API_VERSION):
        return {}
    wanted = list(topic_table(kafka)[0].configuration)
    answer = admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in names], config_filter="all"
    )
    return {
        name: {key: str(entry["value"]) for key, entry in entries.items()}
        for name, entries in answer.get("topic", {}).items()
    }


def _create(kafka: KafkaSettings, admin: KafkaAdminClient, specs: Iterable[TopicSpec]) -> None:
    answer = admin.create_topics(
        {
            spec.topic.value: {
                "num_partitions": spec.partitions,
                "replication_factor": spec.replication,
                "configs": spec.configuration,
            }
            for spec in specs
        },
        timeout_ms=milliseconds(kafka.request_timeout),
        raise_errors=False,
    )
    for topic in answer["topics"]:
        error = kafka_errors.for_code(topic["error_code"])
        # another process may have created it in the meantime
        if error not in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
            raise broker_error(
                kafka, f"cannot create topic {topic['name']}", error(topic.get("error_message") or "refused")
            )


def _create_by_asking(kafka: KafkaSettings, topics: Iterable[Topic]) -> None:
    with opening(kafka, "dangerous-driving-topics") as options:
        producer = KafkaProducer(**options, max_block_ms=milliseconds(kafka.request_timeout), enable_idempotence=False)
    try:
        for topic in topics:
            if not producer.partitions_for(topic.value):
                raise BrokerError(f"cannot create topic {topic}: the broker does not make topics; create it by hand")
    finally:
        producer.close(0)
