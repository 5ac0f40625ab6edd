"""Settings as the client wants them, and its errors as this package has them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from kafka import errors as kafka_errors
from pydantic import SecretStr

from dangerous_driving.errors import BrokerError, ConfigError
from dangerous_driving.messaging import connection
from dangerous_driving.settings import KafkaSettings

SASL: dict[str, Any] = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_username": "platform",
    "sasl_password": SecretStr("geheim"),
}


def test_all_addresses_and_time_outs_reach_the_client() -> None:
    options = connection.client_options(KafkaSettings(bootstrap_servers="a:1, b:2", request_timeout=2.5), "me")
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert options["request_timeout_ms"] == options["bootstrap_timeout_ms"] == 2500
    assert "sasl_plain_password" not in options


def test_credentials_reach_the_client_when_asked_for() -> None:
    options = connection.client_options(KafkaSettings(**SASL, ssl_cafile=Path("/ca.pem")), "me")
    assert options["security_protocol"] == "SASL_SSL"
    assert options["sasl_plain_username"] == "platform"
    assert options["sasl_plain_password"] == "geheim"
    assert options["ssl_cafile"] == "/ca.pem"


@pytest.mark.parametrize("missing", ["sasl_mechanism", "sasl_username", "sasl_password"])
def test_missing_credentials_are_named(missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"kafka\.{missing}"):
        connection.client_options(KafkaSettings(**SASL | {missing: None}), "me")


def test_a_codec_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection._CODECS, "snappy", lambda: False)
    with pytest.raises(ConfigError, match=r"kafka\.compression"):
        connection.compression_type(KafkaSettings(compression="snappy"))


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (kafka_errors.UnknownTopicOrPartitionError("x"), "topics apply"),
        (kafka_errors.TopicAuthorizationFailedError("x"), "kafka.sasl_username"),
        (kafka_errors.NotEnoughReplicasError(), "kafka.min_insync_replicas = 2"),
        (kafka_errors.InvalidReplicationFactorError(), "kafka.replication = 3"),
        (kafka_errors.KafkaTimeoutError("x"), "kafka.bootstrap_servers = 127.0.0.1:9092"),
        (ConnectionRefusedError("x"), "kafka.bootstrap_servers = 127.0.0.1:9092"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_foreign_error_becomes_a_broker_error_with_its_remedy(error: Exception, remedy: str) -> None:
    with (
        pytest.raises(BrokerError, match="cannot do it") as caught,
        connection.broker_errors(KafkaSettings(), "cannot do it"),
    ):
        raise error
    assert remedy in str(caught.value)
    assert caught.value.__cause__ is error


def test_where_a_user_is_needed_a_failed_connection_may_be_the_user_s() -> None:
    kafka = KafkaSettings(
        security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="edge", sasl_password=SecretStr("hunter2")
    )
    with (
        pytest.raises(BrokerError, match=r"kafka\.sasl_username and kafka\.sasl_password") as caught,
        connection.broker_errors(kafka, "cannot connect"),
    ):
        raise kafka_errors.KafkaConnectionError("Unable to bootstrap")
    assert "hunter2" not in str(caught.value)


def test_contradicting_settings_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="kafka"), connection.broker_errors(KafkaSettings(), "cannot do it"):
        raise kafka_errors.KafkaConfigurationError("delivery_timeout_ms")


def test_the_client_repeats_itself_seldom_and_tells_no_password(caplog: pytest.LogCaptureFixture) -> None:
    client = logging.getLogger("kafka.net.manager")
    with caplog.at_level(logging.DEBUG):
        for attempt in range(100):
            client.error("an attempt that failed: %s", attempt)
        assert len(caplog.records) == 1
    assert not logging.getLogger("kafka.admin.client").isEnabledFor(logging.DEBUG)
