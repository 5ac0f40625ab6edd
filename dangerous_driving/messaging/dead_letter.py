"""The topic of what could not be used: writing a letter, looking through them, sending one's content again."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from kafka import KafkaConsumer, TopicPartition

from dangerous_driving.contracts import DeadLetter
from dangerous_driving.errors import BrokerError, ConfigError, ContractError
from dangerous_driving.messaging.connection import broker_errors, milliseconds, opening
from dangerous_driving.messaging.producer import Position, Producer
from dangerous_driving.messaging.topics import MAX_DEAD_LETTER_BYTES, Topic, describe
from dangerous_driving.settings import KafkaSettings

#: bytes of a message that a letter keeps: base64 and the rest must fit into the topic. A topic made by
#: ``topics apply`` takes no message that is larger.
MAX_KEPT_BYTES = (MAX_DEAD_LETTER_BYTES - 64 * 1024) * 3 // 4
#: characters; a reason may quote what was sent
MAX_REASON = 2000


@dataclass(frozen=True)
class StoredLetter:
    """A letter and where it lies on the topic; ``letter`` is None if it is broken itself."""

    partition: int
    offset: int
    letter: DeadLetter | None
    problem: str = ""

    @property
    def name(self) -> str:
        """By which a person names it: the offset, with the partition before it where that is not the only one."""
        return f"{self.partition}:{self.offset}" if self.partition else str(self.offset)


def dead_letter(
    topic: Topic, partition: int, offset: int, *, key: bytes | None, value: bytes, group: str, reason: str, field: str
) -> DeadLetter:
    """A letter about a message, with its bytes as they were (of an oversized one the beginning)."""
    return DeadLetter(
        source_topic=topic.value,
        source_partition=partition,
        source_offset=offset,
        consumer_group=group,
        reason=reason[:MAX_REASON],
        field=field[:MAX_REASON],
        failed_at=datetime.now(UTC),
        key_base64=None if key is None else base64.b64encode(key[:MAX_REASON]).decode(),
        value_base64=base64.b64encode(value[:MAX_KEPT_BYTES]).decode(),
        value_bytes=len(value) if len(value) > MAX_KEPT_BYTES else None,
    )


def content(letter: DeadLetter) -> bytes:
    """The bytes of the message that the letter is about.

    Raises:
        ContractError: they are no base64.
    """
    try:
        return base64.b64decode(letter.value_base64, validate=True)
    except ValueError as error:
        raise ContractError("DeadLetter", "valueBase64", "no base64") from error


def read_letters(kafka: KafkaSettings) -> Iterator[StoredLetter]:
    """All letters on the topic, oldest first, up to the newest of this moment.

    Raises:
        BrokerError: no broker answered in time, or the topic is missing.
    """
    if Topic.DEAD_LETTER not in (found := describe(kafka)):
        raise BrokerError(f"no topic {Topic.DEAD_LETTER} on the broker; run 'dangerous-driving topics apply'")
    places = [TopicPartition(Topic.DEAD_LETTER.value, number) for number in range(found[Topic.DEAD_LETTER].partitions)]
    timeout = milliseconds(kafka.request_timeout)
    with opening(kafka, "dangerous-driving-dead-letter") as options:
        client = KafkaConsumer(
            **options, group_id=None, enable_auto_commit=False, max_partition_fetch_bytes=MAX_DEAD_LETTER_BYTES
        )
    try:
        with broker_errors(kafka, "cannot read the dead letters"):
            client.assign(places)
            begins = client.beginning_offsets(places, timeout_ms=timeout)
            ends = client.end_offsets(places, timeout_ms=timeout)
            for place in places:
                client.seek(place, begins[place])
            open_places = {place for place in places if begins[place] < ends[place]}
            while open_places:
                batches = client.poll(timeout, max_records=500)
                if not batches:
                    raise BrokerError(
                        f"the dead letters up to offset {max(ends.values())} did not come within"
                        f" {kafka.request_timeout:g} s; check that the brokers are well"
                    )
                for place, records in batches.items():
                    yield from (
                        _stored(place.partition, record.offset, record.value)
                        for record in records
                        if record.offset < ends[place]
                    )
                open_places = {
                    place for place in open_places if (client.position(place, timeout_ms=timeout) or 0) < ends[place]
                }
    finally:
        client.close(autocommit=False)


def _stored(partition: int, offset: int, value: bytes | None) -> StoredLetter:
    try:
        return StoredLetter(partition, offset, DeadLetter.from_json(value or b""))
    except ContractError as error:
        return StoredLetter(partition, offset, None, str(error))


def replay(kafka: KafkaSettings, letters: Iterable[StoredLetter]) -> list[Position]:
    """Send the messages again, each to the topic and with the key that it had; returns where they lie now.

    Every reader of that topic gets them; ids derive from the content, so one that had it already changes nothing. A letter
    stays on the topic until its retention ends.

    Raises:
        ConfigError: a letter cannot be sent again.
        BrokerError: not all are there.
    """
    outgoing: list[tuple[Topic, bytes, bytes | None]] = []
    for stored in letters:
        letter = stored.letter
        if letter is None:
            raise ConfigError(f"letter {stored.name}", f"it cannot be read ({stored.problem})", "leave it out")
        if letter.value_bytes is not None:
            raise ConfigError(
                f"letter {stored.name}",
                f"only its beginning is kept of {letter.value_bytes} bytes",
                f"read the whole from {letter.source_topic}[{letter.source_partition}] at {letter.source_offset}",
            )
        key = None if letter.key_base64 is None else base64.b64decode(letter.key_base64)
        outgoing.append((Topic(letter.source_topic), content(letter), key))
    with Producer(kafka, "dangerous-driving-replay") as producer:
        deliveries = [producer.send_bytes(topic, value, key) for topic, value, key in outgoing]
        return [delivery.result() for delivery in deliveries]
