"""How every client of the message log is configured, and what its errors become."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import errors as kafka_errors
from kafka.codec import has_lz4, has_snappy, has_zstd
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket

from dangerous_driving.errors import BrokerError, ConfigError, MessageTooLargeError
from dangerous_driving.settings import KafkaSettings

#: s; after an outage a client tries again at least this often (kafka-python's own default is 30 s)
RECONNECT_BACKOFF_MAX = 2.0

#: s between two log records of the same text from kafka-python
LOG_INTERVAL = 10.0

_CODECS = {"lz4": has_lz4, "snappy": has_snappy, "zstd": has_zstd}


class _Sparingly(logging.Filter):
    """Lets one record of a text pass per ``LOG_INTERVAL``: in an outage each client writes ten lines a second."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)  # the template, of which the client has a limited number
        now = time.monotonic()
        if now - self._passed.get(text, -LOG_INTERVAL) < LOG_INTERVAL:
            return False
        self._passed[text] = now
        return True


for _name in (
    "cluster",
    "consumer.fetcher",
    "coordinator",
    "net.connection",
    "net.manager",
    "net.selector",
    "net.transport",
):
    logging.getLogger(f"kafka.{_name}").addFilter(_Sparingly())
# this one writes its whole configuration, password included, at level debug
logging.getLogger("kafka.admin.client").setLevel(logging.INFO)


class _TidySocket(KafkaNetSocket):  # type: ignore[misc] # kafka-python has no types
    """Closes a socket whose connection was refused, which kafka-python leaves to the garbage collector."""

    SCHEMES = ("tidy",)

    async def sock_connect(self, net: Any, sock: socket.socket, address: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, address, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


class _TidyNetClient(KafkaNetClient):  # type: ignore[misc] # kafka-python has no types
    """Closes the sockets of connections that still had something to send: kafka-python 3.0.12 leaves that to a loop which it ends."""

    def close(self, node_id: Any = None) -> None:
        transports = [held.transport for held in list(self._manager._conns.values())]  # noqa: SLF001
        sockets = [transport._sock for transport in transports if transport is not None]  # noqa: SLF001
        super().close(node_id=node_id)
        if node_id is None:
            for left in sockets:
                if left is not None:
                    left.close()


def milliseconds(seconds: float) -> int:
    """Settings are in seconds, kafka-python wants whole milliseconds."""
    return round(seconds * 1000)


def client_options(kafka: KafkaSettings, client_id: str) -> dict[str, Any]:
    """The keyword arguments that producer, consumer and admin client of kafka-python have in common.

    Raises:
        ConfigError: SASL is asked for, but how and as whom is not said.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "client_id": client_id,
        "api_version": kafka.api_version,
        "bootstrap_timeout_ms": milliseconds(kafka.request_timeout),
        "request_timeout_ms": milliseconds(kafka.request_timeout),
        "reconnect_backoff_max_ms": milliseconds(RECONNECT_BACKOFF_MAX),
        "security_protocol": kafka.security_protocol,
        # no proxy: the scheme is how kafka-python chooses the class of its sockets
        "proxy_url": f"{_TidySocket.SCHEMES[0]}://",
    }
    if kafka.ssl_cafile is not None:
        options["ssl_cafile"] = str(kafka.ssl_cafile)
    if kafka.security_protocol.startswith("SASL_"):
        for name in ("sasl_mechanism", "sasl_username", "sasl_password"):
            if getattr(kafka, name) is None:
                raise ConfigError(f"kafka.{name}", f"missing for {kafka.security_protocol}", "set it")
        assert kafka.sasl_password is not None  # noqa: S101 - for the type checker, the loop has looked
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password.get_secret_value(),
        }
    return options


def compression_type(kafka: KafkaSettings) -> str | None:
    """What kafka-python calls the codec.

    Raises:
        ConfigError: the package of that codec is not installed.
    """
    if kafka.compression == "none":
        return None
    installed = _CODECS.get(kafka.compression)
    if installed is not None and not installed():
        raise ConfigError(
            "kafka.compression",
            f"the Python package for {kafka.compression} is missing",
            "install it, or choose lz4, gzip or none",
        )
    return kafka.compression


@contextmanager
def opening(kafka: KafkaSettings, client_id: str) -> Iterator[dict[str, Any]]:
    """The options to open one client with, for the time of its constructor.

    A constructor that fails leaves its I/O thread and sockets behind, since nobody holds the half-made client; a
    service that retries every few seconds would gather them. So its network layer is kept at hand and closed here.

    Raises:
        BrokerError: no broker answered in time, or it refused.
        ConfigError: the settings contradict each other.
    """
    networks: list[_TidyNetClient] = []

    def network(**options: Any) -> _TidyNetClient:
        networks.append(_TidyNetClient(**options))
        return networks[-1]

    opened = False
    try:
        with broker_errors(kafka, "cannot connect"):
            yield client_options(kafka, client_id) | {"kafka_client": network}
        opened = True
    finally:
        if not opened:
            for half_made in networks:
                half_made.close()


@contextmanager
def broker_errors(kafka: KafkaSettings, action: str) -> Iterator[None]:
    """Turn what kafka-python raises into the errors of this package; ``action`` says what did not work."""
    try:
        yield
    except kafka_errors.KafkaConfigurationError as error:
        raise ConfigError("kafka", str(error), "change these settings") from error
    except (kafka_errors.KafkaError, OSError) as error:
        raise broker_error(kafka, action, error) from error


def broker_error(kafka: KafkaSettings, action: str, error: BaseException) -> BrokerError:
    """One error of the message log, with the remedy that fits it."""
    too_large = isinstance(error, kafka_errors.MessageSizeTooLargeError | kafka_errors.RecordListTooLargeError)
    kind = MessageTooLargeError if too_large else BrokerError
    return kind(f"{action}: {_description(error)}; {_remedy(kafka, error)}")


def _description(error: BaseException) -> str:
    # kafka-python's texts begin with the class, some say nothing else
    text = str(error).strip()
    return text if text.startswith(type(error).__name__) else f"{type(error).__name__}: {text}".rstrip(": ")


def _remedy(kafka: KafkaSettings, error: BaseException) -> str:
    for kinds, remedy in _REMEDIES:
        if isinstance(error, kinds):
            return remedy.format(kafka=kafka)
    # while it connects, kafka-python does not tell a refused user from a broker that is away
    user = " kafka.sasl_username and kafka.sasl_password," if kafka.security_protocol.startswith("SASL_") else ""
    return (
        f"check that a broker answers at kafka.bootstrap_servers = {kafka.bootstrap_servers} with"
        f" kafka.security_protocol = {kafka.security_protocol},{user} and that kafka.api_version suits it"
        " (unset for Apache Kafka, [2, 3] for the embedded broker)"
    )


_REMEDIES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    (
        (kafka_errors.UnknownTopicOrPartitionError, kafka_errors.InvalidTopicError),
        "create the topics with 'dangerous-driving topics apply'",
    ),
    (
        (kafka_errors.AuthorizationError, kafka_errors.SaslAuthenticationFailedError),
        "check kafka.sasl_username, kafka.sasl_password and what the broker allows this user",
    ),
    (
        (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError),
        "send pictures as URLs (detection.publish_images: false) or raise the topic's max.message.bytes",
    ),
    (
        (kafka_errors.NotEnoughReplicasError, kafka_errors.NotEnoughReplicasAfterAppendError),
        "fewer than kafka.min_insync_replicas = {kafka.min_insync_replicas} brokers are up: start the others",
    ),
    (
        (kafka_errors.InvalidReplicationFactorError,),
        "kafka.replication = {kafka.replication} is more than there are brokers: lower it or start more",
    ),
    (
        (kafka_errors.UnsupportedVersionError,),
        "the broker is too old for this request: leave kafka.api_version unset, or use a newer broker",
    ),
)
