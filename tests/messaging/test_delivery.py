"""What is sent arrives: typed, in order, acknowledged, within bounds."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from kafka import KafkaAdminClient

from dangerous_driving.contracts import Alert, AlertBasis, AlertState, DetectionResult, RiskLevel
from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging import AckPolicy, Consumer, Producer, Received, Topic
from dangerous_driving.messaging.connection import opening
from dangerous_driving.settings import KafkaSettings
from tests.messaging.conftest import frame, numbers, receive, wait_until

pytestmark = pytest.mark.integration

FRAMES: dict[Topic, type[DetectionResult]] = {Topic.DETECTION_RESULTS: DetectionResult}


def broadcast(kafka: KafkaSettings) -> Consumer[DetectionResult]:
    return Consumer(kafka, FRAMES, name="bridge", policy=AckPolicy.BROADCAST)


def test_a_message_comes_back_typed_with_its_key_and_the_position_that_the_producer_was_told(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    sent = frame(camera, 7)
    with broadcast(kafka) as consumer:
        position = producer.send(Topic.DETECTION_RESULTS, sent, key=camera).result()
        [received] = receive(consumer, camera, 1)
    assert received.message == sent
    assert received.key == camera
    assert (received.topic, received.partition, received.offset) == (
        position.topic,
        position.partition,
        position.offset,
    )


def test_a_consumer_that_commits_nothing_keeps_no_account_of_what_it_handed_out(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    with broadcast(kafka) as consumer:
        for number in range(100):
            producer.send(Topic.DETECTION_RESULTS, frame(camera, number), key=camera)
        assert len(receive(consumer, camera, 100)) == 100
        assert not consumer._marks  # a bridge lives for months: an offset kept for each message would end it


def test_one_consumer_reads_several_topics_each_with_its_type(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    alert = Alert(
        alert_id="a",
        version=1,
        camera_id=camera,
        state=AlertState.OPEN,
        basis=AlertBasis.FINAL,
        risk_level=RiskLevel.HIGH,
        peak_level=RiskLevel.HIGH,
        group_bbox=(0, 0, 1, 1),
        opened_at=now,
        last_seen_at=now,
        updated_at=now,
        first_task_id="t",
        last_task_id="t",
        last_request_id="m",
    )
    both: dict[Topic, type[DetectionResult | Alert]] = {
        Topic.DETECTION_RESULTS: DetectionResult,
        Topic.ALERTS: Alert,
    }
    with Consumer[DetectionResult | Alert](kafka, both, name="bridge", policy=AckPolicy.BROADCAST) as consumer:
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 1), key=camera)
        producer.send(Topic.ALERTS, alert, key=camera)
        received: list[DetectionResult | Alert] = []

        def both_came() -> bool:
            received.extend(item.message for item in consumer.poll(0.2, 100) if item.message.camera_id == camera)
            return len(received) == 2

        wait_until(both_came, "one message of each topic")
    assert {type(message) for message in received} == {DetectionResult, Alert}


def test_messages_of_a_key_stay_in_one_partition_and_in_order(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    cameras = [f"{camera}-{index}" for index in range(5)]
    with broadcast(kafka) as consumer:
        for number in range(60):
            for camera_id in cameras:
                producer.send(Topic.DETECTION_RESULTS, frame(camera_id, number), key=camera_id)
        producer.flush()
        received: list[Received[DetectionResult]] = []

        def all_came() -> bool:
            received.extend(item for item in consumer.poll(0.2, 50) if item.message.camera_id in cameras)
            return len(received) == 60 * len(cameras)

        wait_until(all_came, "all messages")
    for camera_id in cameras:
        assert numbers(received, camera_id) == list(range(60))
        assert len({item.partition for item in received if item.message.camera_id == camera_id}) == 1


def test_a_poll_hands_out_no_more_than_asked(kafka: KafkaSettings, producer: Producer, camera: str) -> None:
    with broadcast(kafka) as consumer:
        for number in range(20):
            producer.send(Topic.DETECTION_RESULTS, frame(camera, number), key=camera)
        producer.flush()
        came: list[int] = []

        def all_came() -> bool:
            received = consumer.poll(0.2, 3)
            assert len(received) <= 3
            came.extend(numbers(received, camera))
            return len(came) == 20

        wait_until(all_came, "20 messages")
    assert came == list(range(20))


def test_a_broadcast_consumer_sees_all_new_messages_and_no_old_ones(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    producer.send(Topic.DETECTION_RESULTS, frame(camera, 0), key=camera).result()
    with broadcast(kafka) as first, broadcast(kafka) as second:
        for number in range(1, 11):
            producer.send(Topic.DETECTION_RESULTS, frame(camera, number), key=camera)
        for consumer in (first, second):
            assert numbers(receive(consumer, camera, 10), camera) == list(range(1, 11))
            with pytest.raises(ValueError, match="broadcast"):
                consumer.commit()


def test_a_producer_is_shared_by_threads(kafka: KafkaSettings, producer: Producer, camera: str) -> None:
    def send(thread: int) -> None:
        for number in range(50):
            producer.send(Topic.DETECTION_RESULTS, frame(f"{camera}-{thread}", number), key=f"{camera}-{thread}")

    with broadcast(kafka) as consumer:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(send, range(4)))
        producer.flush()
        assert (producer.unacknowledged, producer.failures) == (0, 0)
        received: list[Received[DetectionResult]] = []

        def all_came() -> bool:
            received.extend(item for item in consumer.poll(0.2, 500) if item.message.camera_id.startswith(camera))
            return len(received) == 200

        wait_until(all_came, "200 messages")
    for thread in range(4):
        assert numbers(received, f"{camera}-{thread}") == list(range(50))


def test_the_end_of_a_delivery_is_called_back(producer: Producer, camera: str) -> None:
    ended = threading.Event()
    outcomes: list[BrokerError | None] = []

    def note(outcome: BrokerError | None) -> None:
        outcomes.append(outcome)
        ended.set()

    delivery = producer.send(Topic.DETECTION_RESULTS, frame(camera, 1), key=camera)
    delivery.on_done(note)
    assert ended.wait(30)
    assert outcomes == [None]
    assert delivery.done


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4"])
def test_every_compression_arrives(
    kafka: KafkaSettings, camera: str, compression: str, request: pytest.FixtureRequest
) -> None:
    settings = kafka.model_copy(update={"compression": compression})
    with broadcast(kafka) as consumer, Producer(settings, "test") as producer:
        for number in range(30):
            producer.send(Topic.DETECTION_RESULTS, frame(camera, number), key=camera)
        assert numbers(receive(consumer, camera, 30), camera) == list(range(30))


def test_a_message_larger_than_any_topic_takes_is_refused_with_a_remedy(producer: Producer) -> None:
    with pytest.raises(BrokerError, match="publish_images"):
        producer.send_bytes(Topic.DETECTION_RESULTS, bytes(3 * 1024 * 1024), b"k")
    assert producer.unacknowledged == 0


def test_a_closed_producer_refuses(kafka: KafkaSettings, camera: str) -> None:
    producer = Producer(kafka, "test")
    producer.close()
    producer.close()
    with pytest.raises(BrokerError, match="closed"):
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 1), key=camera)


def test_a_client_that_is_closed_while_it_sends_leaves_no_socket_behind(kafka: KafkaSettings) -> None:
    with opening(kafka, "test") as options:
        client = KafkaAdminClient(**options)
    client.list_topics()
    transports = [held.transport for held in client._client._manager._conns.values() if held.transport]
    sockets = [transport._sock for transport in transports]
    assert sockets
    for transport in transports:
        transport._write_buffer.append(b"")  # as if the broker took no more for a moment
    client.close()
    assert [item.fileno() for item in sockets] == [-1] * len(sockets)
