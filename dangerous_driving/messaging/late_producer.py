"""A producer for whoever cannot wait for a broker: cameras are read, and spooled, though none answers yet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from dangerous_driving.contracts import Message
from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging.producer import Delivery, Producer
from dangerous_driving.messaging.topics import Topic
from dangerous_driving.settings import KafkaSettings

log = structlog.get_logger(__name__)

#: s between two attempts to open.
RETRY = 2.0


class LateProducer:
    """Sends as `Producer` does once a broker has answered; until then it refuses, as that does while all are away.

    Opened by ``with``: one attempt at once, the others in a thread.

    Args:
        kafka: where the brokers are.
        client_id: names the connection on the broker.
        opener: `Producer`.
        on_failure: called when it turns out that it can never be opened.

    Raises:
        ConfigError: the settings contradict each other; at the first attempt.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        client_id: str,
        *,
        opener: Callable[[KafkaSettings, str], Producer] = Producer,
        on_failure: Callable[[], None] = lambda: None,
        retry: float = RETRY,
    ) -> None:
        self._kafka, self._client_id, self._opener = kafka, client_id, opener
        self._on_failure, self._retry = on_failure, retry
        self._producer: Producer | None = None
        self._reason = ""
        self._error: Exception | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._go_on, name="producer-opens", daemon=True)

    def send(self, topic: Topic, message: Message, key: str) -> Delivery:
        """See `Producer.send`.

        Raises:
            BrokerError: as there, or no broker has answered yet.
        """
        if self._producer is None:
            raise BrokerError(f"cannot send to topic {topic}: {self._reason}")
        return self._producer.send(topic, message, key)

    def check(self) -> None:
        """Raise what told that it can never be opened."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        if not self._open():
            log.warning("no_broker_yet", reason=self._reason, retry=self._retry)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed.set()
        # an attempt that is under way ends in its thread, and closes what it opens
        if self._producer is not None:
            self._producer.close()

    def _go_on(self) -> None:
        while not self._closed.wait(self._retry):
            try:
                if self._open():
                    log.info("broker_answers")
                    return
            except Exception as error:
                # it would go on spooling for ever, with nobody told
                log.exception("producer_cannot_be_opened", reason=str(error))
                self._error = error
                self._on_failure()
                return

    def _open(self) -> bool:
        try:
            producer = self._opener(self._kafka, self._client_id)
        except BrokerError as error:
            self._reason = str(error)
            return False
        with self._lock:
            if not self._closed.is_set():
                self._producer = producer
                return True
        producer.close()
        return True
