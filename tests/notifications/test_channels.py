"""Each way to a receiver, against a real server: what arrives, and what every kind of failure becomes."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import SecretStr

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import ConfigError, DeliveryError, RefusedError
from dangerous_driving.notifications.mail import EmailChannel
from dangerous_driving.notifications.mqtt import MqttChannel
from dangerous_driving.notifications.opening import open_channel
from dangerous_driving.notifications.rendering import Item, Renderer
from dangerous_driving.notifications.signature import verified
from dangerous_driving.notifications.webhook import WebhookChannel
from dangerous_driving.ports import free_port
from dangerous_driving.settings.notifications import EmailReceiver, MqttReceiver, WebhookReceiver
from tests.notifications.conftest import SECRET, Mailbox, MqttBroker, WebhookServer, alert

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning"),  # the test server's
]

ITEM = Item("id-1", "ring", RiskLevel.HIGH, alert())
DIGEST = Item("id-2", "digest", RiskLevel.HIGH, None)


def webhook_receiver(url: str, **values: Any) -> WebhookReceiver:
    return WebhookReceiver.model_validate(
        {"name": "desk", "kind": "webhook", "url": url, "secret": SECRET, "timeout": 0.5} | values
    )


def send(channel: Any, receiver: Any, item: Item = ITEM, **more: Any) -> None:
    now = datetime.now(UTC)
    members = (ITEM,) if item is DIGEST else ()
    channel.deliver(item, Renderer(receiver).render(item, at=now, members=members), **more)


# webhook


def test_a_webhook_gets_the_alert_with_a_signature_that_is_genuine(webhook: WebhookServer) -> None:
    receiver = webhook_receiver(webhook.url, headers={"Authorization": "Bearer t"})
    with WebhookChannel(receiver, webhook.url, SECRET) as channel:
        send(channel, receiver)
    ((headers, body),) = webhook.requests
    assert verified(SECRET, headers, body, now=datetime.now(UTC))
    assert (headers["webhook-id"], headers["authorization"]) == ("id-1", "Bearer t")
    assert json.loads(body)["data"]["alert"]["alertId"] == "alert-0"


@pytest.mark.parametrize("status", [400, 401, 404, 410, 301])
def test_a_status_that_will_not_change_is_a_refusal(webhook: WebhookServer, status: int) -> None:
    """A redirect too: it could lead the message to somebody else."""
    webhook.answers.append((status, {"Location": "http://127.0.0.1:1/elsewhere"}))
    receiver = webhook_receiver(webhook.url)
    with WebhookChannel(receiver, webhook.url, SECRET) as channel, pytest.raises(RefusedError, match=str(status)):
        send(channel, receiver)


@pytest.mark.parametrize(
    ("answer", "retry_after"),
    [(500, None), (408, None), ((429, {"Retry-After": "7"}), 7.0), ((503, {"Retry-After": "nonsense"}), None),
     ((503, {"Retry-After": "99999999"}), 3600.0), ((503, {"Retry-After": "Sun, 01 Mar 2020 12:00:00 GMT"}), 0.0)],
)  # fmt: skip
def test_a_receiver_that_is_busy_says_when_to_come_again(
    webhook: WebhookServer, answer: Any, retry_after: float | None
) -> None:
    webhook.answers.append(answer)
    receiver = webhook_receiver(webhook.url)
    with WebhookChannel(receiver, webhook.url, SECRET) as channel, pytest.raises(DeliveryError) as error:
        send(channel, receiver)
    assert not isinstance(error.value, RefusedError)
    assert error.value.retry_after == retry_after


def test_a_webhook_that_is_away_or_silent_is_told_without_its_address(webhook: WebhookServer) -> None:
    away = f"http://127.0.0.1:{free_port()}/s3cret"
    receiver = webhook_receiver(away)
    with WebhookChannel(receiver, away, SECRET) as channel, pytest.raises(DeliveryError) as error:
        send(channel, receiver)
    assert "s3cret" not in str(error.value)
    webhook.silent.set()
    receiver = webhook_receiver(webhook.url)
    with WebhookChannel(receiver, webhook.url, SECRET) as channel, pytest.raises(DeliveryError, match="Timeout"):
        send(channel, receiver)


def test_secrets_come_from_the_environment(webhook: WebhookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = webhook_receiver("${HOOK_URL}", secret="${HOOK_KEY}")
    with pytest.raises(ConfigError, match="HOOK_URL"):
        open_channel(receiver, None)
    monkeypatch.setenv("DD_SECRET_HOOK_URL", webhook.url)
    monkeypatch.setenv("DD_SECRET_HOOK_KEY", "too short")
    with pytest.raises(ConfigError, match="desk: secret"):
        open_channel(receiver, None)
    monkeypatch.setenv("DD_SECRET_HOOK_KEY", SECRET)
    channel = open_channel(receiver, None)
    assert "204" in channel.check()
    channel.close()


# e-mail


def email_receiver(port: int, **values: Any) -> EmailReceiver:
    return EmailReceiver(
        **{
            "name": "mail", "kind": "email", "host": "127.0.0.1", "port": port, "security": "none", "username": "dd",
            "password": SecretStr("open sesame"), "sender": "dd@city.example",
            "recipients": ("ada@city.example", "bob@city.example"), "timeout": 5,
        } | values
    )  # fmt: skip


def opened_mail(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=default)
    assert isinstance(message, EmailMessage)
    return message


def test_an_e_mail_arrives_in_two_forms_with_the_picture_in_it(mailbox: Mailbox) -> None:
    receiver = email_receiver(mailbox.port)
    channel = EmailChannel(receiver, "open sesame")
    assert "lets in" in channel.check()
    now = datetime.now(UTC)
    rendered = Renderer(receiver).render(ITEM, at=now, picture_id="group@dangerous-driving")
    channel.deliver(ITEM, rendered, b"\xff\xd8jpeg")
    (envelope,) = mailbox.messages
    assert envelope.rcpt_tos == ["ada@city.example", "bob@city.example"]
    message = opened_mail(envelope.content)
    assert message["Subject"] == "HIGH alert: pedestrian_conflict, Camera crossing"
    assert message["Message-ID"] == "<id-1@city.example>"
    kinds = [part.get_content_type() for part in message.walk()]
    assert kinds == ["multipart/alternative", "text/plain", "multipart/related", "text/html", "image/jpeg"]
    html = message.get_body(("html",))
    assert html is not None
    assert "cid:group@dangerous-driving" in html.get_content()


def test_one_recipient_that_is_refused_does_not_keep_the_others_from_it(mailbox: Mailbox) -> None:
    mailbox.refuse.add("bob@city.example")
    receiver = email_receiver(mailbox.port)
    send(EmailChannel(receiver, "open sesame"), receiver)
    assert [envelope.rcpt_tos for envelope in mailbox.messages] == [["ada@city.example"]]
    mailbox.refuse.add("ada@city.example")
    with pytest.raises(RefusedError, match="550"):
        send(EmailChannel(receiver, "open sesame"), receiver)


def test_a_mail_server_that_is_busy_away_or_lets_nobody_in_is_tried_again(mailbox: Mailbox) -> None:
    receiver = email_receiver(mailbox.port)
    with pytest.raises(DeliveryError, match="user and password") as error:
        send(EmailChannel(receiver, "wrong"), receiver)
    assert not isinstance(error.value, RefusedError)
    with pytest.raises(DeliveryError, match="STARTTLS"):
        send(EmailChannel(email_receiver(mailbox.port, security="starttls"), "open sesame"), receiver)
    mailbox.busy = True
    with pytest.raises(DeliveryError, match="451") as busy:
        send(EmailChannel(receiver, "open sesame"), receiver)
    assert not isinstance(busy.value, RefusedError)
    with pytest.raises(DeliveryError, match="did not answer"):
        send(EmailChannel(email_receiver(free_port()), "open sesame"), receiver)


# MQTT


def mqtt_receiver(port: int, **values: Any) -> MqttReceiver:
    return MqttReceiver(
        **{
            "name": "wall", "kind": "mqtt", "host": "127.0.0.1", "port": port, "username": "dd",
            "password": SecretStr("open sesame"), "timeout": 5,
        } | values
    )  # fmt: skip


@contextmanager
def listening(port: int, topic: str) -> Iterator[queue.Queue[tuple[str, Any]]]:
    heard: queue.Queue[tuple[str, Any]] = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("dd", "open sesame")
    client.on_message = lambda _client, _data, message: heard.put((message.topic, json.loads(message.payload)))
    client.on_subscribe = lambda *_: heard.put(("", "subscribed"))
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe(topic, qos=1)
    assert heard.get(timeout=60) == ("", "subscribed")
    try:
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def test_an_mqtt_broker_gets_alerts_by_camera_and_digests_by_themselves(mqtt_broker: MqttBroker) -> None:
    receiver = mqtt_receiver(mqtt_broker.port)
    with mqtt_broker.start(), listening(mqtt_broker.port, "dangerous-driving/#") as heard:
        channel = MqttChannel(receiver, "open sesame")
        send(channel, receiver)
        send(channel, receiver, DIGEST)
        topic, content = heard.get(timeout=60)
        assert (topic, content["id"]) == ("dangerous-driving/alerts/crossing", "id-1")
        topic, content = heard.get(timeout=60)
        assert (topic, content["data"]["notifications"][0]["id"]) == ("dangerous-driving/digests", "id-1")
        channel.close()


def test_a_broker_that_was_away_gets_messages_again_over_the_same_channel(mqtt_broker: MqttBroker) -> None:
    receiver = mqtt_receiver(mqtt_broker.port, retain=True)
    channel = MqttChannel(receiver, "open sesame")
    with pytest.raises(DeliveryError, match="did not answer"):
        send(channel, receiver)
    with mqtt_broker.start():
        send(channel, receiver)
    deadline = time.monotonic() + 20
    while True:  # the client needs a moment to notice that the broker is gone
        try:
            send(channel, receiver)
        except DeliveryError:
            break
        assert time.monotonic() < deadline
    with mqtt_broker.start():
        send(channel, receiver)
        with listening(mqtt_broker.port, "dangerous-driving/#") as heard:
            assert heard.get(timeout=60)[1]["id"] == "id-1"  # retained
    channel.close()


def test_a_broker_that_lets_nobody_in_is_told(mqtt_broker: MqttBroker) -> None:
    receiver = mqtt_receiver(mqtt_broker.port)
    with mqtt_broker.start():
        assert "lets in" in MqttChannel(receiver, "open sesame").check()
        with pytest.raises(DeliveryError, match="check user and password"):
            send(MqttChannel(receiver, "wrong"), receiver)
