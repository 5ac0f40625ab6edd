"""How far a consumer group is behind, as a metric: measured beside the work, which never waits for it."""

from __future__ import annotations

import threading
from collections.abc import Collection
from types import TracebackType
from typing import Protocol, Self

import structlog
from kafka import KafkaAdminClient

from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging.topics import Topic, lag_of, open_admin
from dangerous_driving.observability.metrics import KAFKA_CONSUMER_LAG
from dangerous_driving.settings import KafkaSettings

log = structlog.get_logger(__name__)


class Member(Protocol):
    """Of a group; `consumer.Consumer` is the real one."""

    @property
    def group(self) -> str:
        """Its name."""

    @property
    def assignment(self) -> frozenset[tuple[Topic, int]]:
        """The partitions that this member reads."""


class LagMeter:
    """Sets ``kafka_consumer_lag`` of a member's partitions every ``kafka.lag_interval`` s, in a thread of its own.

    The lag is what the group has not committed. Each member tells that of its own partitions, so that the sum over all
    processes of a service is the lag of its group. While no broker answers the last value stands.
    """

    def __init__(self, kafka: KafkaSettings, member: Member) -> None:
        self._kafka = kafka
        self._member = member
        self._stop = threading.Event()
        self._told: set[tuple[Topic, int]] = set()
        self._thread = threading.Thread(target=self._run, name="lag", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(self._kafka.request_timeout)
        self._forget(self._told)

    def _run(self) -> None:
        admin: KafkaAdminClient | None = None
        while not self._stop.is_set():
            try:
                admin = admin or open_admin(self._kafka, f"{self._member.group}.lag")
                self._tell(admin)
            except BrokerError as error:
                log.warning("lag_not_measured", group=self._member.group, reason=str(error))
                if admin is not None:
                    admin.close()
                    admin = None
            self._stop.wait(self._kafka.lag_interval)
        if admin is not None:
            admin.close()

    def _tell(self, admin: KafkaAdminClient) -> None:
        assigned = self._member.assignment
        lags = lag_of(self._kafka, admin, self._member.group, follows={topic for topic, _ in assigned})
        assigned &= self._member.assignment  # what another member has meanwhile is that one's to tell
        for (topic, partition), lag in lags.items():
            if (topic, partition) in assigned:
                KAFKA_CONSUMER_LAG.labels(group=self._member.group, topic=topic.value, partition=str(partition)).set(
                    lag
                )
        self._forget(self._told - assigned)
        self._told = set(assigned & lags.keys())

    def _forget(self, places: Collection[tuple[Topic, int]]) -> None:
        for topic, partition in places:
            KAFKA_CONSUMER_LAG.remove(self._member.group, topic.value, str(partition))
