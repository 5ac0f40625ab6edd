"""Receivers as the settings describe them, ready to be sent to."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from dangerous_driving.camera.secrets import with_secrets
from dangerous_driving.notifications.mail import EmailChannel
from dangerous_driving.notifications.mqtt import MqttChannel
from dangerous_driving.notifications.rendering import Renderer
from dangerous_driving.notifications.service import Channel, Post
from dangerous_driving.notifications.webhook import WebhookChannel
from dangerous_driving.settings import Settings
from dangerous_driving.settings.notifications import AnyReceiver, EmailReceiver, WebhookReceiver


def open_posts(settings: Settings) -> list[Post]:
    """All receivers.

    Raises:
        ConfigError: a secret is missing or has not the right form, or a template is unusable; names the receiver.
    """
    notifications = settings.notifications
    return [
        Post(
            receiver,
            open_channel(receiver, settings.camera.secrets_folder, node=settings.node),
            Renderer(receiver, page_url=notifications.page_url),
        )
        for receiver in notifications.receivers
    ]


def open_channel(receiver: AnyReceiver, secrets_folder: Path | None, *, node: str = "") -> Channel:
    """The way to one receiver; nothing is connected yet.

    Raises:
        ConfigError: a secret is missing or has not the right form.
    """
    if isinstance(receiver, WebhookReceiver):
        return WebhookChannel(receiver, _secret(receiver.url, secrets_folder), _secret(receiver.secret, secrets_folder))
    password = _secret(receiver.password, secrets_folder) if receiver.password else None
    if isinstance(receiver, EmailReceiver):
        return EmailChannel(receiver, password)
    return MqttChannel(receiver, password, node=node)


def _secret(value: SecretStr, folder: Path | None) -> str:
    return with_secrets(value.get_secret_value(), folder)
