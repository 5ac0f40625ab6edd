"""Sending messages: acknowledged by all in-sync replicas, in order per key, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import structlog
from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.producer.transaction_manager import TransactionState

from dangerous_driving.contracts import Message
from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging.connection import (
    broker_error,
    broker_errors,
    compression_type,
    milliseconds,
    opening,
)
from dangerous_driving.messaging.topics import MAX_DEAD_LETTER_BYTES, Topic
from dangerous_driving.observability import tracing
from dangerous_driving.observability.metrics import KAFKA_PRODUCED
from dangerous_driving.settings import KafkaSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a message lies on the broker."""

    topic: Topic
    partition: int
    offset: int


class Delivery:
    """A message under way. It ends acknowledged by the broker, or as a ``BrokerError``."""

    def __init__(self, kafka: KafkaSettings, topic: Topic, future: Any) -> None:
        self._kafka, self._topic, self._future = kafka, topic, future

    @property
    def done(self) -> bool:
        """Whether the outcome is known; ``result`` then answers at once."""
        return bool(self._future.is_done)

    def result(self, timeout: float | None = None) -> Position:
        """Wait until the broker has the message, at most ``timeout`` s (default: ``kafka.delivery_timeout``).

        Raises:
            BrokerError: it was refused, or not acknowledged in time. In the latter case it may still arrive.
        """
        with broker_errors(self._kafka, f"no delivery to topic {self._topic}"):
            # one second more, so that the client's own verdict, which says why, comes first
            record = self._future.get(self._kafka.delivery_timeout + 1 if timeout is None else timeout)
        return Position(self._topic, record.partition, record.offset)

    def on_done(self, callback: Callable[[BrokerError | None], None]) -> None:
        """Call back with None (acknowledged) or the error, from the producer's own thread: it must not block."""

        def failed(error: BaseException) -> None:
            callback(broker_error(self._kafka, f"no delivery to topic {self._topic}", error))

        self._future.add_callback(lambda _record: callback(None))
        self._future.add_errback(failed)


class Producer:
    """Sends messages; safe to share between threads.

    Messages of one key keep their order (they lie in one partition). The broker acknowledges when all in-sync
    replicas have a message; retries write no duplicates (idempotent producer). At most ``kafka.max_unacknowledged``
    messages wait in memory, further ones are refused.

    Opening raises ``BrokerError`` when no broker answers, unless ``kafka.api_version`` is set: then the first ``send``
    to each topic does. Both end within ``kafka.request_timeout``.
    """

    def __init__(self, kafka: KafkaSettings, client_id: str) -> None:
        self._kafka = kafka
        self._state = threading.Condition()
        self._unacknowledged = 0
        self._failures = 0
        self._failures_flushed = 0
        self._last_failure: BrokerError | None = None
        self._closed = False
        with opening(kafka, client_id) as options:
            self._client = KafkaProducer(
                **options,
                acks="all",
                enable_idempotence=kafka.idempotent,
                linger_ms=milliseconds(kafka.linger),
                batch_size=kafka.batch_bytes,
                compression_type=compression_type(kafka),
                delivery_timeout_ms=milliseconds(kafka.delivery_timeout),
                # how long a send may wait for the topic's metadata
                max_block_ms=milliseconds(kafka.request_timeout),
                max_request_size=MAX_DEAD_LETTER_BYTES,
                metrics_enabled=False,  # the client's own bookkeeping, read by nobody
            )
        if kafka.idempotent:
            _asks_again_for_an_id(self._client)

    def send(self, topic: Topic, message: Message, key: str) -> Delivery:
        """Hand a message to the sending thread.

        Does not wait for the broker, except once per topic for its partitions, at most ``kafka.request_timeout``.

        Raises:
            BrokerError: the topic is unknown, or too many messages wait for the broker.
        """
        tracer = tracing.current()
        headers = None if tracer is None else tracer.headers(message)
        return self.send_bytes(topic, message.to_json(), key.encode(), headers)

    def send_bytes(
        self, topic: Topic, value: bytes, key: bytes | None, headers: list[tuple[str, bytes]] | None = None
    ) -> Delivery:
        """The same for bytes that are a message already."""
        with self._state:
            if self._closed:
                raise BrokerError(f"cannot send to topic {topic}: this producer is closed")
            if self._unacknowledged >= self._kafka.max_unacknowledged:
                raise BrokerError(
                    f"cannot send to topic {topic}: {self._unacknowledged} messages wait for the broker already; check"
                    " that it answers and keeps up, or raise kafka.max_unacknowledged"
                )
            self._unacknowledged += 1
        try:
            with broker_errors(self._kafka, f"cannot send to topic {topic}"):
                future = self._client.send(topic.value, value=value, key=key, headers=headers)
        except BrokerError as error:
            self._ended(topic, error)
            raise
        delivery = Delivery(self._kafka, topic, future)
        delivery.on_done(lambda error: self._ended(topic, error))
        return delivery

    def _ended(self, topic: Topic, error: BrokerError | None) -> None:
        KAFKA_PRODUCED.labels(topic=topic.value, outcome="failed" if error else "acknowledged").inc()
        with self._state:
            self._unacknowledged -= 1
            if error:
                self._failures += 1
                self._last_failure = error
            self._state.notify_all()

    @property
    def unacknowledged(self) -> int:
        """Messages that were sent and have no outcome yet."""
        return self._unacknowledged

    @property
    def failures(self) -> int:
        """Messages that were refused or given up since this producer was opened."""
        return self._failures

    @property
    def last_failure(self) -> BrokerError | None:
        """Why the last of them was."""
        return self._last_failure

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every message so far has an outcome, at most ``timeout`` s (default: ``kafka.delivery_timeout``).

        Raises:
            BrokerError: not all were acknowledged in time, or one failed since the last flush.
        """
        timeout = self._kafka.delivery_timeout + 1 if timeout is None else timeout
        with self._state:
            ended = self._state.wait_for(lambda: self._unacknowledged == 0, timeout)
            failed, self._failures_flushed = self._failures - self._failures_flushed, self._failures
            if not ended:
                raise BrokerError(
                    f"{self._unacknowledged} messages are not acknowledged after {timeout:g} s; check that a broker"
                    f" answers at kafka.bootstrap_servers = {self._kafka.bootstrap_servers}"
                )
            if failed:
                raise BrokerError(f"{failed} messages were not delivered; the last: {self._last_failure}")

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, at most ``timeout`` s long, and end. What is left then fails and is counted, not raised."""
        with self._state:
            if self._closed:
                return
            self._closed = True
        deadline = time.monotonic() + timeout
        with self._state:
            delivered = self._state.wait_for(lambda: self._unacknowledged == 0, timeout)
        if not delivered:
            log.warning("messages given up at close", count=self._unacknowledged)
            # close() of kafka-python waits for each batch in turn, raises when one is late and then leaves its thread
            # running; only its sender can be told to fail the rest
            sender = self._client._sender  # noqa: SLF001
            sender.force_close()
            sender.join(max(1.0, deadline - time.monotonic()))
        try:
            self._client.close(max(1.0, deadline - time.monotonic()))
        except kafka_errors.KafkaError as error:
            log.warning("producer did not close cleanly", error=str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _asks_again_for_an_id(client: KafkaProducer) -> None:
    """Have a producer live on after an outage that outlasted ``kafka.delivery_timeout``.

    When a batch that was sent before expires, kafka-python 3.0.12 gives its producer id up and waits for a new one, but
    asks for one only in its very first state, which it has left for good: nothing is ever sent again. So it is put back
    into that state.
    """
    manager = client._transaction_manager  # noqa: SLF001
    give_up_id = manager.reset_producer_id

    def reset() -> None:
        with manager._lock:  # noqa: SLF001
            give_up_id()
            manager._current_state = TransactionState.UNINITIALIZED  # noqa: SLF001

    manager.reset_producer_id = reset
