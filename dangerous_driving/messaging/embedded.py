"""A broker for the demo and for tests, without Java, root or Docker: librdkafka's in-memory cluster.

It speaks Kafka's protocol on real sockets, so that the same producer and consumer are used as in production. What it
cannot do, as seen with librdkafka 2.16:

- It forgets everything when it stops, and listens on new ports when it starts again.
- A partition keeps its last 5 MiB (as sent, so compression counts) or 100,000 messages, whichever is less; older ones
  are gone, and a consumer that comes too late goes on with the earliest that is left. Retention times are ignored.
- Topics cannot be created by request: one appears, with four partitions, as soon as a client asks about it.
- Replication is in name only: a topic has as many replicas as there are brokers, three at most, all in this process.
- A fetch that finds nothing is held for the whole waiting time even when a message arrives meanwhile; so the waiting
  time is short here (``fetch_wait``).
- A change in a group takes the session time-out less one second, the first member of a group waits three seconds.
  In a group of several the leader must answer last, or the broker refuses the others' answers and they begin again;
  hence ``assignment_delay``.
- Transactions are accepted, but offsets committed in them are not kept. Idempotent producers work.
- kafka-python understands it at ``api_version`` (2, 3) only.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from dangerous_driving.errors import BrokerError, ConfigError
from dangerous_driving.settings import KafkaSettings

log = structlog.get_logger(__name__)

#: Partitions that the embedded broker gives every topic; it cannot be told otherwise.
EMBEDDED_PARTITIONS = 4
#: s until the in-memory cluster must have said where it listens
START_TIMEOUT = 10.0


class EmbeddedBroker:
    """An in-memory Kafka cluster in this process, between ``start`` and ``close``."""

    def __init__(self, brokers: int = 1) -> None:
        """``brokers``: how many of them listen; more than one is of use for tests of failures only."""
        self._brokers = brokers
        self._cluster: Any = None
        self._bootstrap_servers = ""

    def start(self) -> Self:
        """Start listening on free ports of the loopback interface.

        Raises:
            ConfigError: confluent-kafka, whose wheel holds the cluster, is not installed.
            BrokerError: the cluster did not come up.
        """
        try:
            from confluent_kafka import KafkaException, Producer  # an optional dependency
        except ImportError as error:
            raise ConfigError(
                "embedded broker",
                "the package confluent-kafka is missing",
                "install the extra (python -m pip install -e '.[embedded]' in the checkout), or name a broker in kafka.bootstrap_servers",
            ) from error
        # a client that is told to mock a cluster makes one and connects to it; the address it is given is not used
        self._cluster = Producer(
            {"bootstrap.servers": "127.0.0.1:1", "test.mock.num.brokers": self._brokers, "log_level": 3}
        )
        try:
            found = self._cluster.list_topics(timeout=START_TIMEOUT).brokers.values()
        except KafkaException as error:
            self.close()
            raise BrokerError(f"the embedded broker did not start ({error}); look for a limit on sockets") from error
        self._bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in found)
        return self

    @property
    def bootstrap_servers(self) -> str:
        """``host:port`` of every broker, comma-separated, once started."""
        return self._bootstrap_servers

    def close(self) -> None:
        """Stop; everything in it is forgotten. The cluster lives as long as its client, so the last reference goes."""
        self._cluster = None
        self._bootstrap_servers = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def embedded_kafka_settings(bootstrap_servers: str) -> KafkaSettings:
    """The settings that suit the embedded broker at this address (why: see the module)."""
    return KafkaSettings(
        bootstrap_servers=bootstrap_servers,
        api_version=(2, 3),
        partitions=EMBEDDED_PARTITIONS,
        replication=1,
        min_insync_replicas=1,
        session_timeout=6.0,
        fetch_wait=0.03,
        assignment_delay=0.3,
    )


def run_embedded_broker(address_file: Path, stop: threading.Event) -> None:
    """Be the broker of other processes until ``stop`` is set.

    ``address_file`` appears, whole, once clients can connect, holds the bootstrap address, and goes with the broker.

    Raises:
        ConfigError: confluent-kafka is not installed, or the file cannot be written.
        BrokerError: the cluster did not come up.
    """
    address_file.unlink(missing_ok=True)  # of a broker that was killed
    with EmbeddedBroker() as broker:
        written = address_file.with_name(f".{address_file.name}.{os.getpid()}")
        try:
            address_file.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(broker.bootstrap_servers, encoding="utf-8")
            written.replace(address_file)
        except OSError as error:
            raise ConfigError(
                "embedded broker", f"{address_file} cannot be written ({error.strerror})", "name a writable folder"
            ) from error
        log.info("embedded broker listens", address=broker.bootstrap_servers)
        stop.wait()
        address_file.unlink(missing_ok=True)
