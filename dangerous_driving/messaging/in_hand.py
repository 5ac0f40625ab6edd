"""Batches that stay in hand until their effect is done, in services whose store may be away for long.

Acknowledgement: a batch is committed after its effect. While a store is away its batch is neither lost nor committed: the
consumer is paused but polled on, so that the group does not take its partitions away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from dangerous_driving.errors import BrokerError, DangerousDrivingError
from dangerous_driving.messaging.consumer import Received
from dangerous_driving.messaging.seam import GroupMember

log = structlog.get_logger(__name__)


class BatchesInHand:
    """The receiving side of a service that works batch by batch.

    Args:
        consumer: of what it reads.
        away: the errors of its store, or of the brokers, that are waited for.
        size: messages of a batch.
        poll: s to wait for the first message.
        backoff: s between attempts on a batch, doubled up to the second.
    """

    def __init__(
        self,
        consumer: GroupMember,
        *,
        away: tuple[type[DangerousDrivingError], ...],
        size: int = 500,
        poll: float = 0.2,
        backoff: tuple[float, float] = (0.5, 10.0),
    ) -> None:
        self._consumer = consumer
        self._away = away
        self.size = size
        self._poll = poll
        self.backoff = backoff

    def receive(self, stop: threading.Event) -> Sequence[Received[Any]]:
        """The next batch; nothing while there is none, or while the brokers do not answer."""
        try:
            return self._consumer.poll(self._poll, self.size)
        except BrokerError as error:
            log.warning("nothing_received", reason=str(error))
            stop.wait(self.backoff[0])
            return ()

    def keep(
        self, received: Sequence[Received[Any]], work: Callable[[list[Received[Any]]], None], stop: threading.Event
    ) -> bool:
        """Work on a batch until it is done; False when `stop` came first: then it comes again.

        Args:
            received: the batch.
            work: on all in the list, on which it may be tried again; it may take out what is done for good.
            stop: ends the waiting.

        Raises:
            DangerousDrivingError: one of `away` that does not pass by itself.
        """
        in_hand = list(received)
        pause, longest = self.backoff
        paused = False
        try:
            while True:
                try:
                    work(in_hand)
                except self._away as error:
                    if not error.retriable:
                        raise  # a defect: uncommitted and loud, not one more try for ever
                    log.warning("batch_waits", messages=len(in_hand), reason=str(error))
                    if stop.wait(pause):
                        return False
                    if not paused:
                        self._consumer.pause()
                        paused = True
                    in_hand += self._stay_in_group()
                    pause = min(2 * pause, longest)
                else:
                    return True
        finally:
            if paused:
                self._consumer.resume()

    def commit(self) -> None:
        """Say that all batches so far are done; where that does not arrive, the messages come again and change nothing."""
        try:
            self._consumer.commit()
        except BrokerError as error:
            log.warning("offsets_not_committed", reason=str(error))

    def _stay_in_group(self) -> Sequence[Received[Any]]:
        try:
            # what slipped through before the pause belongs to the batch, since the next commit covers it
            return self._consumer.poll(0, self.size)
        except BrokerError as error:
            log.warning("nothing_received", reason=str(error))
            return []
