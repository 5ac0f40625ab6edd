"""Groups: messages come again until they are committed, members share partitions and hand them over."""

from __future__ import annotations

import threading
from typing import Self

import pytest
from kafka.errors import KafkaTimeoutError

from dangerous_driving.contracts import DetectionResult
from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging import AckPolicy, Consumer, LagMeter, Producer, Topic, group_lag
from dangerous_driving.observability.metrics import KAFKA_CONSUMER_LAG
from dangerous_driving.settings import KafkaSettings
from tests.messaging.conftest import PATIENCE, frame, numbers, receive, wait_until

pytestmark = pytest.mark.integration

FRAMES: dict[Topic, type[DetectionResult]] = {Topic.DETECTION_RESULTS: DetectionResult}


def member(kafka: KafkaSettings) -> Consumer[DetectionResult]:
    return Consumer(kafka, FRAMES, name="tasks", policy=AckPolicy.AFTER_EFFECT)


def send(producer: Producer, camera_id: str, first: int, last: int) -> None:
    for number in range(first, last + 1):
        producer.send(Topic.DETECTION_RESULTS, frame(camera_id, number), key=camera_id)
    producer.flush()


def test_messages_come_again_until_they_are_committed(kafka: KafkaSettings, producer: Producer, camera: str) -> None:
    send(producer, camera, 0, 4)
    with member(kafka) as first:  # no offset yet: from the earliest on
        assert numbers(receive(first, camera, 5), camera) == [0, 1, 2, 3, 4]
    with member(kafka) as second:  # the first did not commit
        assert numbers(receive(second, camera, 5), camera) == [0, 1, 2, 3, 4]
        assert second.commit()
        assert second.commit()  # nothing new
    send(producer, camera, 5, 6)
    with member(kafka) as third:
        assert numbers(receive(third, camera, 2), camera) == [5, 6]


def test_a_commit_that_fails_costs_no_message_and_is_made_good(
    kafka: KafkaSettings, producer: Producer, camera: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise KafkaTimeoutError("the coordinator is away")

    send(producer, camera, 0, 2)
    with member(kafka) as first:
        assert numbers(receive(first, camera, 3), camera) == [0, 1, 2]
        with monkeypatch.context() as outage:
            outage.setattr(first._client, "commit", away)
            with pytest.raises(BrokerError):
                first.commit()
            send(producer, camera, 3, 5)
            # the polls try to commit in vain, and must hand out all the same
            assert numbers(receive(first, camera, 3), camera) == [3, 4, 5]
        wait_until(lambda: not first.poll(0.2, 10) and not first._to_commit, "the commit of the first ones")
    with member(kafka) as second:  # 3 to 5 were handed out, but nobody said that they are done
        assert numbers(receive(second, camera, 3), camera) == [3, 4, 5]


def test_a_commit_covers_only_what_was_handed_out(kafka: KafkaSettings, producer: Producer, camera: str) -> None:
    send(producer, camera, 0, 9)
    with member(kafka) as first:
        handed_out: list[int] = []

        def some_came() -> bool:
            handed_out.extend(numbers(first.poll(0.2, 4), camera))
            return bool(handed_out)

        wait_until(some_came, "the first messages")
        assert len(handed_out) <= 4
        assert first.commit()
    with member(kafka) as second:
        rest = numbers(receive(second, camera, 10 - len(handed_out)), camera)
    assert handed_out + rest == list(range(10))


def told() -> dict[tuple[str, ...], float]:
    """What the metric says, by group, topic and partition."""
    return {
        tuple(sample.labels[name] for name in ("group", "topic", "partition")): sample.value
        for metric in KAFKA_CONSUMER_LAG.collect()
        for sample in metric.samples
    }


class Worker:
    """A member at work in a thread of its own: notes what it is handed of its test's cameras, and commits all."""

    def __init__(self, kafka: KafkaSettings, cameras: str) -> None:
        self.consumer = member(kafka)
        self.cameras = cameras
        self.seen: set[tuple[str, int]] = set()
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with self.consumer:
                while not self._stop.is_set():
                    for item in self.consumer.poll(0.2, 100):
                        if item.message.camera_id.startswith(self.cameras):  # other tests send to these topics too
                            self.seen.add((item.message.camera_id, int(item.message.message_id[-5:])))
                    self.consumer.commit()  # while the group changes, too: it must not raise
        except BaseException as error:
            self.error = error
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert self.error is None
        assert not self._thread.is_alive()


def test_members_share_the_partitions_and_a_leaving_one_hands_over(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    cameras = [f"{camera}-{index}" for index in range(12)]
    partitions = frozenset((Topic.DETECTION_RESULTS, number) for number in range(kafka.partitions))

    def send_from_all(first: int, last: int) -> set[tuple[str, int]]:
        for camera_id in cameras:
            send(producer, camera_id, first, last)
        return {(camera_id, number) for camera_id in cameras for number in range(first, last + 1)}

    with Worker(kafka, camera) as stays:
        wait_until(lambda: stays.consumer.assignment == partitions, "all partitions on the only member")
        sent = send_from_all(0, 2)
        with Worker(kafka, camera) as leaves:
            sent |= send_from_all(3, 5)
            wait_until(
                lambda: (
                    bool(leaves.consumer.assignment)
                    and not stays.consumer.assignment & leaves.consumer.assignment
                    and stays.consumer.assignment | leaves.consumer.assignment == partitions
                ),
                "partitions on both members",
            )
            sent |= send_from_all(6, 8)
            wait_until(lambda: stays.seen | leaves.seen >= sent, "every message on one of the members")
            assert leaves.seen
            for camera_id in cameras:  # each knows which keys come to it
                came = (camera_id, 8) in leaves.seen
                assert leaves.consumer.reads(Topic.DETECTION_RESULTS, camera_id) is came
                assert stays.consumer.reads(Topic.DETECTION_RESULTS, camera_id) is not came
            assert not stays.consumer.reads(Topic.ALERTS, camera)
        sent |= send_from_all(9, 11)
        wait_until(lambda: stays.consumer.assignment == partitions, "all partitions on the member that stayed")
        wait_until(lambda: stays.seen | leaves.seen >= sent, "every message")
        wait_until(lambda: sum(group_lag(kafka, stays.consumer.group).values()) == 0, "the last commit")


def test_lag_is_what_was_not_handed_out_and_group_lag_what_was_not_committed(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    with member(kafka) as consumer:
        send(producer, camera, 0, 0)
        receive(consumer, camera, 1)
        wait_until(lambda: not consumer.poll(0.2, 500) and sum(consumer.lag().values()) == 0, "the end of the topic")
        assert group_lag(kafka, consumer.group) == {}  # has never committed
        consumer.commit()
        send(producer, camera, 1, 25)
        lags = consumer.lag()
        [(topic, partition)] = [place for place, lag in lags.items() if lag]
        assert lags[topic, partition] == 25
        assert group_lag(kafka, consumer.group)[topic, partition] == 25
        place = (consumer.group, "detection-results", str(partition))
        with LagMeter(kafka.model_copy(update={"lag_interval": 0.1}), consumer):
            wait_until(lambda: told().get(place) == 25, "the metric")
        assert place not in told()  # a stopped service lags no more
        receive(consumer, camera, 25)
        assert consumer.lag()[topic, partition] == 0
        assert group_lag(kafka, consumer.group)[topic, partition] == 25
        wait_until(consumer.commit, "the commit")
        assert group_lag(kafka, consumer.group)[topic, partition] == 0
        assert len(group_lag(kafka, consumer.group)) == kafka.partitions


def test_a_paused_consumer_hands_out_nothing_keeps_its_partitions_and_goes_on_where_it_stopped(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    with member(kafka) as consumer:
        send(producer, camera, 0, 2)
        receive(consumer, camera, 3)
        assigned = consumer.assignment
        consumer.pause()
        assert consumer.paused
        send(producer, camera, 3, 8)
        wait_until(lambda: sum(consumer.lag().values()) >= 6, "the lag of the paused consumer")
        for _ in range(5):
            assert consumer.poll(0.2, 500) == []
        assert consumer.assignment == assigned
        consumer.resume()
        assert numbers(receive(consumer, camera, 6), camera) == [3, 4, 5, 6, 7, 8]


def test_partitions_that_a_paused_consumer_gains_are_paused_too(
    kafka: KafkaSettings, producer: Producer, camera: str
) -> None:
    send(producer, camera, 0, 2)
    with member(kafka) as consumer:
        consumer.pause()

        def joined() -> bool:
            assert consumer.poll(0.2, 500) == []
            return bool(consumer.assignment)

        wait_until(joined, "partitions")
        assert consumer.poll(0.5, 500) == []
        consumer.resume()
        assert numbers(receive(consumer, camera, 3), camera) == [0, 1, 2]
