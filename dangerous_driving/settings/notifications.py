"""Settings of what leaves the platform by itself: notifications to receivers, and the feed of the old big screens."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.settings.section import Section

#: What a receiver can be told of an alert.
Told = Literal["ring", "raised", "escalation", "withdrawn", "closed", "judged"]

SECRET_MARK = "whsec_"  # noqa: S105  # what signing secrets begin with
#: Bytes of a signing secret, as Standard Webhooks asks for.
SECRET_BYTES = range(24, 65)

MAX_PORT = 65535


class Receiver(Section):
    """What all receivers have in common."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="identity; a receiver that is renamed is a new one")
    min_level: RiskLevel = Field(default=RiskLevel.HIGH, description="told of alerts that reach this level or above")
    cameras: tuple[str, ...] = Field(default=(), description="ids of cameras; default: all")
    risk_types: tuple[str, ...] = Field(
        default=(), description="alerts of one of these, or of none yet; default: all types"
    )
    tells: tuple[Told, ...] = Field(
        default=("ring", "raised", "escalation", "withdrawn"),
        description="ring: it has reached min_level; raised: a higher one; escalation: nobody has judged it; withdrawn: "
        "what was told is taken back; closed: it is over; judged: acknowledged or rejected",
    )
    quiet: bool = Field(default=True, description="in quiet hours and snoozes, hold what rings until their end")
    rate_limit: int = Field(default=20, gt=0, description="messages in rate_window; what is more comes as one digest")
    rate_window: float = Field(default=600.0, gt=0, description="s in which rate_limit messages are sent")
    timeout: float = Field(default=10.0, gt=0, description="s for one message")
    language: Literal["en", "zh"] = Field(default="en", description="of the texts")
    template: Path | None = Field(
        default=None, description="Jinja file in place of the packaged text (webhook, mqtt: of the JSON body)"
    )

    @field_validator("tells")
    @classmethod
    def _something(cls, tells: tuple[Told, ...]) -> tuple[Told, ...]:
        if not tells:
            raise ValueError("a receiver that is told nothing; leave it out")
        return tells


class WebhookReceiver(Receiver):
    """A POST of JSON, signed as Standard Webhooks says (headers webhook-id, webhook-timestamp, webhook-signature)."""

    kind: Literal["webhook"] = Field(description="a receiver of this kind")
    url: SecretStr = Field(description="https://…, or ${NAME} where it is a secret of its own, such as a chat's hook")
    secret: SecretStr = Field(description="whsec_ and 24 to 64 random bytes in base64; or ${NAME} as in camera sources")
    headers: dict[str, SecretStr] = Field(default={}, description="further ones, such as Authorization")
    ca_file: Path | None = Field(default=None, description="certificates to trust in place of the system's")

    @field_validator("url")
    @classmethod
    def _http(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value().startswith("${"):
            return url
        parts = urlsplit(url.get_secret_value())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address that starts with http:// or https://")
        return url

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, secret: SecretStr) -> SecretStr:
        text = secret.get_secret_value()
        if "${" in text:
            return secret  # looked at when it is known
        signing_key(text)
        return secret

    @field_validator("headers")
    @classmethod
    def _one_line(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or re.search(r"[\r\n\0]", value.get_secret_value()):
                raise ValueError("a header's name is letters, digits and '-', its value one line")
        return headers


class EmailReceiver(Receiver):
    """An e-mail to some people."""

    kind: Literal["email"] = Field(description="a receiver of this kind")
    host: str = Field(min_length=1, description="of the SMTP server")
    port: int = Field(default=587, gt=0, le=MAX_PORT, description="587 with starttls, 465 with tls as a rule")
    security: Literal["starttls", "tls", "none"] = Field(default="starttls", description="none only to a local server")
    username: str | None = Field(default=None, description="where the server asks for one")
    password: SecretStr | None = Field(default=None, description="or ${NAME} as in camera sources")
    sender: str = Field(description="name@host")
    recipients: tuple[str, ...] = Field(min_length=1, description="each name@host")
    picture: bool = Field(default=True, description="send the picture of the group along")
    ca_file: Path | None = Field(default=None, description="certificates to trust in place of the system's")

    @field_validator("sender", "recipients")
    @classmethod
    def _addresses(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for address in (value,) if isinstance(value, str) else value:
            if not re.fullmatch(r"[^\s@<>,;\"]+@[^\s@<>,;\"]+", address):
                raise ValueError("an address of the form name@host")
        return value


class MqttReceiver(Receiver):
    """A message to an MQTT broker, JSON as of a webhook."""

    kind: Literal["mqtt"] = Field(description="a receiver of this kind")
    host: str = Field(min_length=1, description="of the broker")
    port: int = Field(default=1883, gt=0, le=MAX_PORT, description="1883 without TLS, 8883 with it as a rule")
    tls: bool = Field(default=False, description="encrypted")
    username: str | None = Field(default=None, description="where the broker asks for one")
    password: SecretStr | None = Field(default=None, description="or ${NAME} as in camera sources")
    topic: str = Field(default="dangerous-driving/alerts/{camera_id}", description="{camera_id} is the alert's camera")
    digest_topic: str = Field(default="dangerous-driving/digests", description="of several alerts in one message")
    qos: Literal[1, 2] = Field(default=1, description="1: at least once, 2: exactly once between here and the broker")
    retain: bool = Field(default=False, description="the broker keeps the last message for those who come later")
    ca_file: Path | None = Field(default=None, description="certificates to trust in place of the system's")

    @field_validator("topic", "digest_topic")
    @classmethod
    def _topic(cls, topic: str) -> str:
        if not topic or re.search(r"[+#\0]", topic) or re.search(r"[{}]", topic.replace("{camera_id}", "")):
            raise ValueError("a topic without '+', '#' and placeholders other than {camera_id}")
        return topic


AnyReceiver = Annotated[WebhookReceiver | EmailReceiver | MqttReceiver, Field(discriminator="kind")]


class NotificationsSettings(Section):
    """Who is told of alerts, and how (service `notify`)."""

    receivers: tuple[AnyReceiver, ...] = Field(default=(), description="names are unique")
    page_url: str = Field(default="", description="address of the operator page, for links in messages")
    backoff_initial: float = Field(default=1.0, gt=0, description="s until a failed message is tried again")
    backoff_max: float = Field(default=300.0, gt=0, description="s between attempts at most")
    give_up_after: float = Field(
        default=86_400.0,
        gt=0,
        description="s of failures until a message counts as failed; notifications retry sends it",
    )
    oldest: float = Field(default=86_400.0, gt=0, description="s; what happened before that is told to nobody")
    claim_timeout: float = Field(
        default=60.0, gt=0, description="s until another process takes over what a dead one had in hand"
    )

    @field_validator("receivers")
    @classmethod
    def _unique(cls, receivers: tuple[AnyReceiver, ...]) -> tuple[AnyReceiver, ...]:
        names = [receiver.name for receiver in receivers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"receiver used twice: {', '.join(twice)}")
        return receivers

    @model_validator(mode="after")
    def _claims_outlive_attempts(self) -> NotificationsSettings:
        slow = [receiver.name for receiver in self.receivers if receiver.timeout * 2 > self.claim_timeout]
        if slow:
            raise ValueError(f"claim_timeout must be at least twice the timeout of {', '.join(slow)}")
        return self


class RedisSettings(Section):
    """The feed for big screens of the old system (service `redis-feed`); off without an address."""

    url: SecretStr | None = Field(default=None, description="redis://[user:password@]host:port/number, or rediss://")
    prefix: str = Field(default="dangerous-driving:", description="of every key and channel")
    latest_key: str = Field(default="latest:{camera_id}", description="the newest result of a camera, JSON")
    latest_ttl: int = Field(default=300, gt=0, description="s until it is forgotten")
    channel: str = Field(
        default="camera:{camera_id}", description="each result and alert of a camera is published there"
    )
    high_alerts_key: str = Field(default="high-alerts", description="list of the newest alerts that reached high")
    high_alerts: int = Field(default=100, gt=0, description="how many of them")
    timeout: float = Field(default=5.0, gt=0, description="s to connect and to answer")

    @field_validator("url")
    @classmethod
    def _redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not re.match(r"(rediss?|unix)://", url.get_secret_value()):
            raise ValueError("an address that starts with redis:// or rediss://")
        return url


def signing_key(secret: str) -> bytes:
    """The bytes of a webhook's secret.

    Raises:
        ValueError: it is not ``whsec_`` and 24 to 64 bytes in base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_MARK), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(_KEY_FORM) from error
    if not secret.startswith(SECRET_MARK) or len(key) not in SECRET_BYTES:
        raise ValueError(_KEY_FORM)
    return key


_KEY_FORM = (
    "write whsec_ and 24 to 64 random bytes in base64 (make one with: dangerous-driving notifications make-secret)"
)
