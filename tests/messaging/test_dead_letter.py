"""A message that cannot be read is kept, with the reason, and stops nobody."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from dangerous_driving.contracts import DeadLetter, DetectionResult, Message
from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging import AckPolicy, Consumer, Delivery, Producer, Received, Topic
from dangerous_driving.settings import KafkaSettings
from tests.messaging.conftest import frame, numbers, receive, wait_until

pytestmark = pytest.mark.integration

FRAMES: dict[Topic, type[DetectionResult]] = {Topic.DETECTION_RESULTS: DetectionResult}
LETTERS: dict[Topic, type[DeadLetter]] = {Topic.DEAD_LETTER: DeadLetter}


def about(camera_id: str, group: str, received: list[Received[DeadLetter]]) -> list[DeadLetter]:
    key = base64.b64encode(camera_id.encode()).decode()
    letters = [item.message for item in received]
    return [letter for letter in letters if (letter.consumer_group, letter.key_base64) == (group, key)]


def letters_of(consumer: Consumer[DeadLetter], group: str, camera_id: str, count: int) -> list[DeadLetter]:
    """The group's dead letters about messages with this key: a new group meets those of other tests, too."""
    letters: list[DeadLetter] = []

    def enough() -> bool:
        letters.extend(about(camera_id, group, consumer.poll(0.2, 100)))
        return len(letters) >= count

    wait_until(enough, f"{count} dead letters")
    return letters


def without(message: Message, field: str) -> bytes:
    fields: dict[str, Any] = json.loads(message.to_json())
    del fields[field]
    return json.dumps(fields).encode()


def test_a_bad_message_is_set_aside_whole_with_its_field_and_the_consumer_goes_on(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    bad = without(frame(camera, 1), "imageWidth")
    with (
        Consumer(kafka, FRAMES, name="tasks", policy=AckPolicy.BROADCAST) as consumer,
        Consumer(kafka, LETTERS, name="reader", policy=AckPolicy.BROADCAST) as reader,
    ):
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 0), key=camera)
        position = producer.send_bytes(Topic.DETECTION_RESULTS, bad, camera.encode()).result()
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 2), key=camera)
        assert numbers(receive(consumer, camera, 2), camera) == [0, 2]
        [letter] = letters_of(reader, consumer.group, camera, 1)
    assert letter.field == "imageWidth"
    assert "imageWidth" in letter.reason
    assert base64.b64decode(letter.value_base64) == bad
    assert letter.key_base64 is not None
    assert base64.b64decode(letter.key_base64) == camera.encode()
    assert (letter.source_topic, letter.source_partition, letter.source_offset) == (
        "detection-results",
        position.partition,
        position.offset,
    )


@pytest.mark.parametrize("bad", [b"", b"not json", b"\xff\xfe", b"[]", b"null"], ids=repr)
def test_whatever_the_bytes_are_they_are_set_aside(
    kafka: KafkaSettings, producer: Producer, camera: str, bad: bytes
) -> None:
    with (
        Consumer(kafka, FRAMES, name="tasks", policy=AckPolicy.BROADCAST) as consumer,
        Consumer(kafka, LETTERS, name="reader", policy=AckPolicy.BROADCAST) as reader,
    ):
        producer.send_bytes(Topic.DETECTION_RESULTS, bad, None)
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 1), key=camera)
        receive(consumer, camera, 1)
        letters: list[DeadLetter] = []

        def came() -> bool:
            consumer.poll(0.1, 100)  # the bad one lies in another partition and may come later
            found = (item.message for item in reader.poll(0.1, 100))
            letters.extend(letter for letter in found if letter.consumer_group == consumer.group)
            return bool(letters)

        wait_until(came, "the dead letter")
    assert base64.b64decode(letters[0].value_base64) == bad
    assert letters[0].key_base64 is None


def test_a_bad_message_is_passed_over_for_good_once_committed(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    with Consumer(kafka, LETTERS, name="reader", policy=AckPolicy.BROADCAST) as reader:
        with Consumer(kafka, FRAMES, name="tasks", policy=AckPolicy.AFTER_EFFECT) as consumer:
            producer.send_bytes(Topic.DETECTION_RESULTS, without(frame(camera, 0), "timestamp"), camera.encode())
            producer.send(Topic.DETECTION_RESULTS, frame(camera, 1), key=camera)
            receive(consumer, camera, 1)
            wait_until(consumer.commit, "the commit")
            fields = [letter.field for letter in letters_of(reader, consumer.group, camera, 1)]
        assert "timestamp" in fields
        with Consumer(kafka, FRAMES, name="tasks", policy=AckPolicy.AFTER_EFFECT) as consumer:
            producer.send(Topic.DETECTION_RESULTS, frame(camera, 2), key=camera)
            assert numbers(receive(consumer, camera, 1), camera) == [2]
            assert about(camera, consumer.group, reader.poll(0.5, 500)) == []


class LossyProducer(Producer):
    """Cannot deliver its first message."""

    lost = False

    def send(self, topic: Topic, message: Message, key: str) -> Delivery:
        if not self.lost:
            self.lost = True
            raise BrokerError("dead-letter is away")
        return super().send(topic, message, key)


def test_nothing_is_passed_over_while_the_dead_letter_cannot_be_delivered(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    with (
        LossyProducer(kafka, "lossy") as lossy,
        Consumer(kafka, FRAMES, name="tasks", policy=AckPolicy.BROADCAST, dead_letters=lossy) as consumer,
        Consumer(kafka, LETTERS, name="reader", policy=AckPolicy.BROADCAST) as reader,
    ):
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 0), key=camera)
        producer.send_bytes(Topic.DETECTION_RESULTS, without(frame(camera, 1), "timestamp"), camera.encode())
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 2), key=camera)
        producer.flush()
        received: list[Received[DetectionResult]] = []

        def failed() -> bool:
            try:
                received.extend(consumer.poll(0.2, 100))
            except BrokerError:
                return True
            return False

        wait_until(failed, "the dead letter that cannot be delivered")
        handed_out = numbers(received, camera)
        handed_out += numbers(receive(consumer, camera, 2 - len(handed_out)), camera)
        assert handed_out == [0, 2]
        assert [letter.field for letter in letters_of(reader, consumer.group, camera, 1)] == ["timestamp"]


def test_a_broken_dead_letter_is_not_set_aside_again(kafka: KafkaSettings, producer: Producer) -> None:
    with Consumer(kafka, LETTERS, name="reader", policy=AckPolicy.BROADCAST) as reader:
        producer.send_bytes(Topic.DEAD_LETTER, b"not a letter", None).result()
        for _ in range(10):
            assert [item for item in reader.poll(0.1, 100) if item.message.consumer_group == reader.group] == []
        assert sum(reader.lag().values()) == 0
