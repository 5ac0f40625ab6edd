"""What the topics bring, handed to the hub. The client of the log blocks, so it has a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import structlog

from dangerous_driving.contracts import Message
from dangerous_driving.errors import BrokerError, LedgerError
from dangerous_driving.messaging import Received

log = structlog.get_logger(__name__)

MessageT = TypeVar("MessageT", bound=Message)
GivenT = TypeVar("GivenT", bound=Message)


class Receiver(Protocol):
    """What is needed of a consumer; see `messaging.consumer`."""

    def poll(self, timeout: float, max_records: int) -> Sequence[Received[Any]]:
        """The next messages."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TopicReader(Generic[MessageT]):
    """Reads until it is stopped; after an outage it opens a new consumer and has the gap filled.

    A broadcast consumer sees what is sent after it opened. So each time one has opened, `missed_since` is asked, in the
    reader's thread, for what may have been missed since a time, and `fill` hands that on.
    """

    BATCH = 500
    POLL_SECONDS = 0.2
    BACKOFF_INITIAL = 0.5
    BACKOFF_MAX = 10.0
    HEALTHY_SECONDS = 15.0
    HAND_OVER_SECONDS = 30.0

    def __init__(
        self,
        open_consumer: Callable[[], Receiver],
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[Sequence[Message]], None],
        missed_since: Callable[[datetime], Sequence[MessageT]],
        fill: Callable[[Sequence[MessageT]], None],
    ) -> None:
        self._open_consumer = open_consumer
        self._loop = loop
        self._receive = receive
        self._missed_since = missed_since
        self._fill = fill
        self._last_poll: float | None = None
        self._complete_until = datetime.now(UTC)

    @property
    def healthy(self) -> bool:
        """Whether it has heard from the log a moment ago."""
        return self._last_poll is not None and time.monotonic() - self._last_poll < self.HEALTHY_SECONDS

    def run(self, stop: threading.Event) -> None:
        """Read until `stop`."""
        backoff = self.BACKOFF_INITIAL
        while not stop.is_set():
            try:
                with self._open_consumer() as consumer:
                    missed = self._missed_since(self._complete_until)
                    self._hand_over(self._fill, missed)
                    backoff = self.BACKOFF_INITIAL
                    self._read(consumer, stop)
            except (BrokerError, LedgerError) as error:
                log.warning("topics_not_read", reason=str(error))
                self._last_poll = None
                stop.wait(backoff)
                backoff = min(2 * backoff, self.BACKOFF_MAX)

    def _read(self, consumer: Receiver, stop: threading.Event) -> None:
        while not stop.is_set():
            received = consumer.poll(self.POLL_SECONDS, self.BATCH)
            self._last_poll = time.monotonic()
            messages = [item.message for item in received]
            if messages:
                self._hand_over(self._receive, messages)
            self._complete_until = datetime.now(UTC)

    def _hand_over(self, work: Callable[[Sequence[GivenT]], None], messages: Sequence[GivenT]) -> None:
        # waits until the loop has done it: a busy loop slows the reading down instead of gathering a backlog in memory
        async def on_loop() -> None:
            work(messages)

        asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(self.HAND_OVER_SECONDS)
