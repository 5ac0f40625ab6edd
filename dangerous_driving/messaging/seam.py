"""What services need of the message log, so that their tests can do with a small fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dangerous_driving.contracts import Message
from dangerous_driving.messaging.consumer import Received, Standing
from dangerous_driving.messaging.topics import Topic


class Receipt(Protocol):
    """Of one message under way; `producer.Delivery` is the real one."""

    def result(self, timeout: float) -> object:
        """Wait for the brokers' receipt. Raises BrokerError."""


class Sender(Protocol):
    """The sending side; `producer.Producer` is the real one."""

    def send(self, topic: Topic, message: Message, key: str) -> Receipt:
        """Hand a message over without waiting. Raises BrokerError."""


class Receiver(Protocol):
    """The receiving side with commits; `consumer.Consumer` is the real one."""

    def poll(self, timeout: float, max_records: int) -> Sequence[Received[Any]]:
        """The next messages."""

    def commit(self) -> bool:
        """Commit what was handed out."""

    def set_aside(self, item: Received[Any], reason: str, field: str = "") -> None:
        """Send a message that cannot be used to ``dead-letter``. Raises BrokerError."""


class GroupMember(Receiver, Protocol):
    """A receiver that can also hold back."""

    def pause(self) -> None:
        """Hand out nothing, but stay in the group while polled."""

    def resume(self) -> None:
        """Go on."""


class InformedMember(GroupMember, Protocol):
    """A group member that knows what it reads, and how far."""

    def standing(self) -> Mapping[tuple[Topic, int], Standing]:
        """How far each partition that it reads is handed out, and how far it goes. Raises BrokerError."""

    def reads(self, topic: Topic, key: str) -> bool:
        """Whether messages with this key on this topic come to it."""
