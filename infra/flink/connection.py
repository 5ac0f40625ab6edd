"""The settings of the message log under the names that Java's Kafka clients give them."""

from __future__ import annotations

from dangerous_driving.errors import ConfigError
from dangerous_driving.messaging.connection import client_options
from dangerous_driving.settings import KafkaSettings

#: The connector brings Kafka's classes under names of its own.
SHADED = "org.apache.flink.kafka.shaded.org.apache.kafka.common.security"
LOGIN_MODULES = {
    "PLAIN": f"{SHADED}.plain.PlainLoginModule",
    "SCRAM-SHA-256": f"{SHADED}.scram.ScramLoginModule",
    "SCRAM-SHA-512": f"{SHADED}.scram.ScramLoginModule",
}


def compression(kafka: KafkaSettings) -> str:
    """The codec of the tasks.

    Raises:
        ConfigError: Flink can neither write nor read it.
    """
    if kafka.compression == "zstd":
        raise ConfigError(
            "kafka.compression",
            "Flink's Kafka connector comes without zstd",
            "set lz4, snappy, gzip or none, or tasks.generator: python",
        )
    return kafka.compression


def client_properties(kafka: KafkaSettings) -> dict[str, str]:
    """How the brokers are reached; what is secret is left to `login`.

    Raises:
        ConfigError: a setting is missing, or does not exist for the job.
    """
    client_options(kafka, "tasks-flink")  # refuses what is missing
    properties: dict[str, str] = {"security.protocol": kafka.security_protocol}
    if kafka.security_protocol.startswith("SASL_"):
        mechanism = str(kafka.sasl_mechanism)
        if mechanism not in LOGIN_MODULES:
            raise ConfigError(
                "kafka.sasl_mechanism",
                f"the Flink job does not know {mechanism}",
                f"set {', '.join(LOGIN_MODULES)}, or tasks.generator: python",
            )
        properties["sasl.mechanism"] = mechanism
    if kafka.security_protocol.endswith("SSL") and kafka.ssl_cafile is not None:
        if not kafka.ssl_cafile.is_file():  # Flink would begin anew for ever
            raise ConfigError("kafka.ssl_cafile", f"there is no file {kafka.ssl_cafile}", "name a file in PEM form")
        properties |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(kafka.ssl_cafile.resolve())}
    return properties


def login(kafka: KafkaSettings) -> str | None:
    """The value of ``sasl.jaas.config``, with user and password; None without SASL."""
    if not kafka.security_protocol.startswith("SASL_") or kafka.sasl_password is None:
        return None
    module = LOGIN_MODULES[str(kafka.sasl_mechanism)]
    user, password = _quoted(str(kafka.sasl_username)), _quoted(kafka.sasl_password.get_secret_value())
    return f"{module} required username={user} password={password};"


def _quoted(text: str) -> str:
    # as Java's StreamTokenizer reads it
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escaped)
    return f'"{text}"'
