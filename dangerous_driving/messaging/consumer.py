"""Receiving messages: typed, with a named acknowledgement policy; what cannot be read goes to ``dead-letter``."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, Generic, Self

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.partitioner.default import murmur2

from dangerous_driving.contracts import MessageT, require_key
from dangerous_driving.errors import BrokerError, ContractError
from dangerous_driving.messaging.connection import broker_errors, milliseconds, opening
from dangerous_driving.messaging.dead_letter import dead_letter
from dangerous_driving.messaging.producer import Delivery, Producer
from dangerous_driving.messaging.topics import MAX_DEAD_LETTER_BYTES, Topic, describe
from dangerous_driving.messaging.watermark import LowWaterMark
from dangerous_driving.observability import tracing
from dangerous_driving.observability.metrics import KAFKA_CONSUMED, KAFKA_DEAD_LETTERED
from dangerous_driving.settings import KafkaSettings

log = structlog.get_logger(__name__)

#: s; the broker is told this often that a member lives, or three times per session time-out if that is more often
HEARTBEAT_INTERVAL_MAX = 3.0

#: s; how long a poll that meets an outage rests at most
OUTAGE_PAUSE = 0.5

#: s between two attempts to commit what could not be committed, and how long each may hold up a poll
COMMIT_AGAIN_PAUSE = 1.0
COMMIT_AGAIN_TIMEOUT = 1.0

#: s between two looks for the topics' metadata
METADATA_PAUSE = 0.01
METADATA_ASK = 0.5

# Errors that the client recovers from by itself. An "invalid request" is the embedded broker's answer to a member that
# is late while the group changes; the client then joins again.
_PASSING = (kafka_errors.RetriableError, kafka_errors.InvalidRequestError)


class AckPolicy(StrEnum):
    """When a message counts as dealt with."""

    AFTER_EFFECT = "after_effect"
    """Members of a group share the partitions. An offset is committed only when the service says so, which is after
    the durable effect of everything it was handed. After a crash or a change in the group messages come again: the
    effect must be idempotent. A group without an offset starts at the earliest message."""

    BROADCAST = "broadcast"
    """No group: every consumer gets every message that is sent after it opened, and nothing is ever committed. For
    bridges to browsers, which have no use for what was sent while they were away."""


@dataclass(frozen=True, slots=True)
class Received(Generic[MessageT]):
    """One message and where it lay."""

    topic: Topic
    partition: int
    offset: int
    key: str | None
    message: MessageT
    value: bytes = field(default=b"", repr=False, compare=False)  # the message as it lay there


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one partition: the offset of the next message that is handed out, and the one after its last message."""

    position: int
    end: int


class Consumer(Generic[MessageT]):
    """Reads several topics, each with its type of message. For one thread at a time.

    ``name`` is the service's: its group is ``kafka.group_prefix`` + "." + name, and dead letters carry it. Messages of
    a partition come in order. A message that breaks its contract is sent to ``dead-letter``, with the reason, and is
    passed over once the broker has it there. ``dead_letters`` is the producer for that; without one the consumer opens
    its own when it first needs it.

    Opening raises ``BrokerError`` when no broker answers within ``kafka.request_timeout``, or a topic is missing.
    Later outages are ridden out: ``poll`` then hands out nothing until the broker is back.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: Mapping[Topic, type[MessageT]],
        *,
        name: str,
        policy: AckPolicy,
        dead_letters: Producer | None = None,
    ) -> None:
        self._kafka = kafka
        self._topics = dict(topics)
        self._policy = policy
        self._group = f"{kafka.group_prefix}.{name}"
        self._dead_letters = dead_letters
        self._own_dead_letters: Producer | None = None
        self._paused = False
        self._commit_again_at = 0.0
        # the group's listener runs on the client's I/O thread
        self._lock = threading.Lock()
        self._marks: dict[TopicPartition, LowWaterMark] = {}  # what was handed out, and what is done of it
        self._to_commit: dict[TopicPartition, int] = {}  # what the service is done with and the broker does not know
        for topic in self._topics:  # from 0 on, so that the first one is a rise
            KAFKA_DEAD_LETTERED.labels(topic=topic.value)
        partitions = self._partitions()
        with opening(kafka, self._group) as options:
            self._client = KafkaConsumer(**options, **self._options())
        try:
            self._follow(partitions)
        except BaseException:
            self.close()
            raise

    def _options(self) -> dict[str, Any]:
        kafka = self._kafka
        return {
            "group_id": None if self._policy is AckPolicy.BROADCAST else self._group,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            # only the partitions that move stop for a moment when a member comes or goes
            "partition_assignment_strategy": (_assignor(kafka.assignment_delay),),
            "session_timeout_ms": milliseconds(kafka.session_timeout),
            "heartbeat_interval_ms": milliseconds(min(HEARTBEAT_INTERVAL_MAX, kafka.session_timeout / 3)),
            "fetch_max_wait_ms": milliseconds(kafka.fetch_wait),
            "max_partition_fetch_bytes": MAX_DEAD_LETTER_BYTES,
            # tasks of the Flink job's open and broken transactions are not handed out (`tasks.guarantee`: exactly-once)
            "isolation_level": "read_committed" if Topic.ASSESSMENT_TASKS in self._topics else "read_uncommitted",
            "metrics_enabled": False,  # the client's own bookkeeping, read by nobody
        }

    def _partitions(self) -> list[TopicPartition]:
        # The admin client is asked, not the consumer: its time-outs hold, and its question makes no topic. Brokers
        # that make topics would make a missing one with settings of their own when the consumer follows it.
        found = describe(self._kafka)
        missing = sorted(topic.value for topic in self._topics if topic not in found)
        if missing:
            raise BrokerError(f"no topic {', '.join(missing)} on the broker; run 'dangerous-driving topics apply'")
        return [
            TopicPartition(topic.value, partition)
            for topic in self._topics
            for partition in range(found[topic].partitions)
        ]

    def _follow(self, partitions: list[TopicPartition]) -> None:
        with broker_errors(self._kafka, "cannot connect"):
            if self._policy is AckPolicy.AFTER_EFFECT:
                self._client.subscribe([topic.value for topic in self._topics], listener=_AssignmentListener(self))
                self._await_metadata()
                return
            self._client.assign(partitions)
            self._client.seek_to_end(*partitions)
            for partition in partitions:  # now, not at the first poll: what is sent from here on is to be seen
                if self._client.position(partition, timeout_ms=milliseconds(self._kafka.request_timeout)) is None:
                    raise BrokerError(
                        f"the end of {partition.topic}[{partition.partition}] could not be read within"
                        f" {self._kafka.request_timeout:g} s; check that the broker is well"
                    )

    def _await_metadata(self) -> None:
        # A member that leads its group before it knows the topics' partitions hands out none of them, and kafka-python
        # 3.0.12 then may keep that empty assignment for ever: a real broker answers a join sooner than the metadata.
        cluster = self._client._cluster  # noqa: SLF001
        deadline = time.monotonic() + self._kafka.request_timeout
        asked_at = 0.0
        while unknown := [topic.value for topic in self._topics if not cluster.partitions_for_topic(topic.value)]:
            if time.monotonic() - asked_at > METADATA_ASK:  # a broker that has just come back may not know them yet
                asked_at = time.monotonic()
                cluster.request_update()
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"the partitions of {', '.join(unknown)} could not be read within {self._kafka.request_timeout:g} s;"
                    f" check that a broker answers at kafka.bootstrap_servers = {self._kafka.bootstrap_servers}"
                )
            time.sleep(METADATA_PAUSE)

    @property
    def group(self) -> str:
        """The consumer group, which is also the name on dead letters."""
        return self._group

    def poll(self, timeout: float, max_records: int) -> list[Received[MessageT]]:
        """Wait up to ``timeout`` s for messages and take at most ``max_records``; those of a partition are in order.

        While the group changes it hands out nothing and lasts until that is over, at most ``kafka.session_timeout``.

        Call it at least every few minutes, also while paused: the group takes a silent member's partitions away.

        Raises:
            BrokerError: the broker refuses this client, or a dead letter could not be delivered; all messages of this
                poll come again in the latter case.
        """
        batches = self._fetch(timeout, max_records)
        try:
            received = self._read(record for records in batches.values() for record in records)
        except BrokerError:
            self._step_back({partition: records[0].offset for partition, records in batches.items()})
            raise
        if (
            self._policy is AckPolicy.AFTER_EFFECT
        ):  # else nothing is ever finished, and all offsets would be kept for ever
            self._hand_out(batches, received)
        for topic, count in Counter(item.topic for item in received).items():
            KAFKA_CONSUMED.labels(topic=topic.value).inc(count)
        self._commit_left_over()
        return received

    def _hand_out(self, batches: Mapping[TopicPartition, list[Any]], received: Iterable[Received[MessageT]]) -> None:
        offsets: dict[TopicPartition, list[int]] = {partition: [] for partition in batches}
        for item in received:
            offsets[TopicPartition(item.topic.value, item.partition)].append(item.offset)
        with self._lock:
            for partition, records in batches.items():
                mark = self._marks.setdefault(partition, LowWaterMark())
                mark.hand_out(offsets[partition], records[-1].offset + 1)

    def _commit_left_over(self) -> None:
        # of a change in the group or an outage. It must not raise: the messages of this poll are not handed out yet
        if not self._to_commit or time.monotonic() < self._commit_again_at:
            return
        self._commit_again_at = time.monotonic() + COMMIT_AGAIN_PAUSE
        try:
            self._commit_done(min(COMMIT_AGAIN_TIMEOUT, self._kafka.request_timeout))
        except BrokerError as error:
            log.warning("commit put off", group=self._group, reason=str(error))

    def _fetch(self, timeout: float, max_records: int) -> dict[TopicPartition, list[Any]]:
        try:
            with broker_errors(self._kafka, "cannot receive"):
                if self._policy is AckPolicy.AFTER_EFFECT:
                    self._settle()
                batches: dict[TopicPartition, list[Any]] = self._client.poll(
                    milliseconds(timeout), max_records=max_records
                )
        except BrokerError as error:
            if not isinstance(error.__cause__, _PASSING):
                raise
            log.warning("nothing received", group=self._group, error=str(error.__cause__))
            time.sleep(min(timeout, OUTAGE_PAUSE))
            return {}
        return batches

    def _settle(self) -> None:
        # kafka-python forgets a join that ends between two polls and begins another one, which makes all other members
        # join again, too: short polls with work between them can keep a group joining for ever. So a join that has
        # begun is seen to its end. Only the coordinator can be asked for that without waiting for messages as well.
        coordinator = self._client._coordinator  # noqa: SLF001
        deadline = time.monotonic() + self._kafka.session_timeout
        while coordinator.need_rejoin() and not coordinator.coordinator_unknown():
            if (left := deadline - time.monotonic()) <= 0:
                return
            coordinator.poll(timeout_ms=milliseconds(left))

    def _read(self, records: Iterable[Any]) -> list[Received[MessageT]]:
        received: list[Received[MessageT]] = []
        set_aside: list[Delivery] = []
        tracer = tracing.current()
        for record in records:
            topic = Topic(record.topic)
            value = record.value or b""
            key = None if record.key is None else record.key.decode(errors="replace")
            try:
                message = self._topics[topic].from_json(value)
                require_key(message, key)
            except ContractError as error:
                # a broken dead letter lies where it belongs; setting it aside again would never end
                self._report(topic, record.partition, record.offset, str(error), error.field)
                if topic is not Topic.DEAD_LETTER:
                    set_aside.append(
                        self._set_aside(
                            topic, record.partition, record.offset, record.key, value, str(error), error.field
                        )
                    )
            else:
                received.append(Received(topic, record.partition, record.offset, key, message, value))
                if tracer is not None:
                    tracer.received(message, record.headers, datetime.now(UTC))
        for delivery in set_aside:
            delivery.result()
        return received

    def set_aside(self, item: Received[Any], reason: str, field: str = "") -> None:
        """Send a message that was handed out, and cannot be used, to ``dead-letter``; returns once the broker has it.

        It is the service that then counts it as dealt with.

        Raises:
            BrokerError: it is not there.
        """
        self._report(item.topic, item.partition, item.offset, reason, field)
        key = None if item.key is None else item.key.encode()
        value = item.value or item.message.to_json()
        self._set_aside(item.topic, item.partition, item.offset, key, value, reason, field).result()

    def _report(self, topic: Topic, partition: int, offset: int, reason: str, field: str) -> None:
        log.warning(
            "message set aside", topic=topic.value, partition=partition, offset=offset, field=field, reason=reason
        )
        KAFKA_DEAD_LETTERED.labels(topic=topic.value).inc()

    def _set_aside(
        self, topic: Topic, partition: int, offset: int, key: bytes | None, value: bytes, reason: str, field: str
    ) -> Delivery:
        letter = dead_letter(
            topic, partition, offset, key=key, value=value, group=self._group, reason=reason, field=field
        )
        return self._dead_letter_producer().send(Topic.DEAD_LETTER, letter, key=topic.value)

    def _dead_letter_producer(self) -> Producer:
        if self._dead_letters is None:
            self._dead_letters = self._own_dead_letters = Producer(self._kafka, f"{self._group}.dead-letter")
        return self._dead_letters

    def _step_back(self, first_offsets: Mapping[TopicPartition, int]) -> None:
        assigned = self._client.assignment()
        for partition, offset in first_offsets.items():
            if partition in assigned:
                self._client.seek(partition, offset)

    def commit(self, done: Iterable[Received[Any]] | None = None) -> bool:
        """Say that these messages (default: all handed out so far) have had their durable effect; free if nothing is new.

        Work may finish in any order: of each partition only what is done without a gap is committed, so that a message
        still in work comes again after a crash.

        Returns:
            False while the group is changing. What stays with this member is then committed by one of the next polls;
            what goes to another one comes again there.

        Raises:
            BrokerError: the broker did not take it in time; the messages may come again.
            ValueError: the policy is ``BROADCAST``, which has nothing to commit.
        """
        if self._policy is AckPolicy.BROADCAST:
            raise ValueError("a broadcast consumer commits nothing")
        with self._lock:
            if done is None:
                for mark in self._marks.values():
                    mark.finish_all()
            else:
                for item in done:
                    given = self._marks.get(TopicPartition(item.topic.value, item.partition))
                    if given is not None:  # else another member has the partition now
                        given.finish([item.offset])
            for partition, mark in self._marks.items():
                if (position := mark.take()) is not None:
                    self._to_commit[partition] = position
        return not self._to_commit or self._commit_done(self._kafka.request_timeout)

    def _commit_done(self, timeout: float) -> bool:
        with self._lock:
            done = dict(self._to_commit)
        try:
            with broker_errors(self._kafka, f"cannot commit for group {self._group}"):
                self._client.commit(
                    {partition: OffsetAndMetadata(offset) for partition, offset in done.items()},
                    timeout_ms=milliseconds(timeout),
                )
        except BrokerError as error:
            if isinstance(error.__cause__, kafka_errors.CommitFailedError | kafka_errors.RebalanceInProgressError):
                log.info("commit put off, the group is changing", group=self._group)
                return False
            raise
        with self._lock:
            for partition, offset in done.items():
                if self._to_commit.get(partition) == offset:
                    del self._to_commit[partition]
        return True

    def lag(self) -> dict[tuple[Topic, int], int]:
        """Messages that each assigned partition holds beyond what was handed out (the metric: see `lag.LagMeter`).

        One request per broker, so not for every poll.

        Raises:
            BrokerError: the broker did not answer in time.
        """
        return {partition: max(0, standing.end - standing.position) for partition, standing in self.standing().items()}

    def standing(self) -> dict[tuple[Topic, int], Standing]:
        """How far each assigned partition is handed out, and how far it goes.

        One request per broker, so not for every poll.

        Raises:
            BrokerError: the broker did not answer in time.
        """
        timeout = milliseconds(self._kafka.request_timeout)
        with broker_errors(self._kafka, "cannot read the lag"):
            assigned = sorted(self._client.assignment())
            ends = self._client.end_offsets(assigned, timeout_ms=timeout) if assigned else {}
            found: dict[tuple[Topic, int], Standing] = {}
            for partition in assigned:
                # not known yet: nothing of it was handed out
                position = self._client.position(partition, timeout_ms=timeout) or 0
                found[Topic(partition.topic), partition.partition] = Standing(position, ends[partition])
        return found

    def reads(self, topic: Topic, key: str) -> bool:
        """Whether messages with this key on this topic come to this consumer now, by the rule of Kafka's producers."""
        partitions = sorted(self._client._cluster.partitions_for_topic(topic.value) or ())  # noqa: SLF001
        if not partitions:
            return False
        partition = partitions[(murmur2(key.encode()) & 0x7FFF_FFFF) % len(partitions)]
        return TopicPartition(topic.value, partition) in self._client.assignment()

    def pause(self) -> None:
        """Hand out nothing until ``resume``, while ``poll`` keeps this member in its group: for back-pressure."""
        self._paused = True
        self._client.pause(*self._client.assignment())

    def resume(self) -> None:
        """Go on where ``pause`` stopped."""
        self._paused = False
        self._client.resume(*self._client.assignment())

    @property
    def paused(self) -> bool:
        """Whether ``pause`` is in force."""
        return self._paused

    @property
    def assignment(self) -> frozenset[tuple[Topic, int]]:
        """The partitions that this consumer reads now; empty until its group has made room for it."""
        return frozenset((Topic(partition.topic), partition.partition) for partition in self._client.assignment())

    def _gained(self, partitions: Iterable[TopicPartition]) -> None:
        if self._paused:
            self._client.pause(*partitions)

    def _gave_up(self, partitions: Iterable[TopicPartition]) -> None:
        # committing them now would undo what their next reader commits
        with self._lock:
            for partition in partitions:
                self._marks.pop(partition, None)
                self._to_commit.pop(partition, None)

    def close(self) -> None:
        """Leave the group, so that others take over at once; commits nothing. At most ``kafka.request_timeout``."""
        try:
            self._client.close(autocommit=False, timeout_ms=milliseconds(self._kafka.request_timeout))
        except kafka_errors.KafkaError as error:
            log.warning("consumer did not leave its group cleanly", group=self._group, error=str(error))
        if self._own_dead_letters is not None:
            self._own_dead_letters.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _AssignmentListener(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Tells a consumer which partitions it gained and gave up."""

    def __init__(self, consumer: Consumer[Any]) -> None:
        self._consumer = consumer

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._consumer._gained(assigned)  # noqa: SLF001 - a part of the consumer

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._consumer._gave_up(revoked)  # noqa: SLF001

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._consumer._gave_up(lost)  # noqa: SLF001


def _assignor(delay: float) -> type[CooperativeStickyAssignor]:
    # the client wants a class without arguments
    class Assignor(CooperativeStickyAssignor):  # type: ignore[misc] # kafka-python has no types
        def assign(self, cluster: Any, members: Any) -> Any:
            time.sleep(delay)
            return super().assign(cluster, members)

    return Assignor if delay else CooperativeStickyAssignor
