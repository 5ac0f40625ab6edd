"""infra/config/settings.example.yaml: it loads, and holds no secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from dangerous_driving import settings
from dangerous_driving.camera.secrets import placeholders, with_secrets
from dangerous_driving.messaging.connection import client_options
from dangerous_driving.settings import LlmSettings, Settings
from dangerous_driving.settings.notifications import WebhookReceiver

EXAMPLE = Path(__file__).parents[1] / "infra" / "config" / "settings.example.yaml"
SECRETS = {
    "DD_DATABASE__URL": "postgresql://dangerous_driving:secret@127.0.0.1:5432/dangerous_driving",
    "DD_KAFKA__SASL_PASSWORD": "secret",
    "DD_OBJECTS__ACCESS_KEY": "secret",
    "DD_OBJECTS__SECRET_KEY": "secret",
    "DD_REALTIME__TOKEN_SECRET": "s" * 64,
    "DD_SECRET_GATE_PASSWORD": "p@ss",
    "DD_SECRET_HOOK_SECRET": "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return settings.load(EXAMPLE)


def secrets_of(value: Any) -> list[str]:
    if isinstance(value, BaseModel):
        return [found for name in type(value).model_fields for found in secrets_of(getattr(value, name))]
    if isinstance(value, tuple | list):
        return [found for item in value for found in secrets_of(item)]
    return [value.get_secret_value()] if isinstance(value, SecretStr) else []


def test_the_example_loads_with_the_variables_that_it_names(example: Settings) -> None:
    assert set(re.findall(r"^#   (DD_\w+)", EXAMPLE.read_text(), re.MULTILINE)) == set(SECRETS)
    assert client_options(example.kafka, "test")["sasl_plain_password"] == "secret"
    [camera] = example.camera.cameras
    assert with_secrets(camera.source.get_secret_value(), None) == "rtsp://operator:p%40ss@10.0.0.12/stream"
    [receiver] = example.notifications.receivers
    assert isinstance(receiver, WebhookReceiver)
    assert placeholders(receiver.secret.get_secret_value()) == ["HOOK_SECRET"]


def test_the_example_names_an_endpoint_of_its_own(example: Settings) -> None:
    assert example.llm.base_url != LlmSettings().base_url


def test_no_secret_stands_in_the_example() -> None:
    loaded = settings.load(EXAMPLE)
    defaults = set(secrets_of(Settings()))
    without_placeholder = [text for text in secrets_of(loaded) if text not in defaults and not placeholders(text)]
    assert without_placeholder == ["https://control.city.example/hook"]  # an address may be a secret; this one is none


def test_what_the_example_keeps_lies_in_absolute_places(example: Settings) -> None:
    kept = [
        example.spool.folder, example.objects.folder, example.keys.file, example.assessment.switch_file,
        example.assessment.inline_folder, example.observability.targets_folder, example.detection.weights,
    ]  # fmt: skip
    assert all(path is not None and path.is_absolute() for path in kept)
