"""Looks at each outside part that the settings name and says what is wrong and what to do."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import text

from dangerous_driving.assessment.keys import Key, load_keys
from dangerous_driving.assessment.llm import LlmClient
from dangerous_driving.assessment.prompt import load_frame_prompt, load_prompt
from dangerous_driving.errors import (
    DangerousDrivingError,
    KeyRejectedError,
    LlmError,
    RateLimitedError,
    UnavailableError,
)
from dangerous_driving.ledger.database import open_engine, transaction
from dangerous_driving.ledger.schema import require_current
from dangerous_driving.messaging import check as check_topics
from dangerous_driving.objects import open_store
from dangerous_driving.settings import LlmSettings, Settings
from dangerous_driving.settings.notifications import AnyReceiver


@dataclass(frozen=True)
class Finding:
    """The state of one part; ``text`` says what was seen, or what is wrong and the remedy."""

    part: str
    ok: bool
    text: str


def examine(settings: Settings) -> list[Finding]:
    """Look at database, broker, object store, prompt, endpoint and keys, each with the time-outs of its settings."""
    parts: dict[str, Callable[[Settings], str]] = {
        "database": database,
        "broker": broker,
        "object store": object_store,
        "weights": weights,
        "prompt": prompts,
    }
    if settings.redis.url is not None:
        parts["redis"] = redis
    findings = [_finding(part, lambda look=look: look(settings)) for part, look in parts.items()]  # type: ignore[misc]
    return [*findings, *receivers(settings), *endpoint_and_keys(settings)]


def _finding(part: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(part, True, look())
    except DangerousDrivingError as error:
        return Finding(part, False, str(error))


def prompts(settings: Settings) -> str:
    """Read the prompt, and the one for several groups where calls are shared."""
    version, folder = settings.llm.prompt_version, settings.llm.prompt_folder
    found = [load_prompt(version, folder=folder)]
    if settings.assessment.coalesce_groups > 1:
        found.append(load_frame_prompt(version, folder=folder))
    return f"version {' and '.join(prompt.version for prompt in found)}"


def database(settings: Settings) -> str:
    """Connect, and compare the schema."""
    engine = open_engine(settings.database, application="doctor")
    try:
        require_current(engine)
        with transaction(engine) as connection:
            version = connection.scalar(text("SHOW server_version"))
    finally:
        engine.dispose()
    return f"PostgreSQL {version}, schema is current"


def broker(settings: Settings) -> str:
    """Connect, and compare the topics with the table."""
    differences = check_topics(settings.kafka)
    if differences:
        raise DangerousDrivingError("; ".join(differences))
    return f"{settings.kafka.bootstrap_servers}, topics as wanted"


def object_store(settings: Settings) -> str:
    """Write and read back an object."""
    store = open_store(settings.objects)
    content = uuid.uuid4().bytes
    store.put("doctor/probe", content, "application/octet-stream")
    if store.get("doctor/probe") != content:
        raise DangerousDrivingError("what was written reads back differently; check the store's versioning and caches")
    return f"{store.url('doctor/probe')} written and read"


def weights(settings: Settings) -> str:
    """Load the weights, if any are set."""
    if settings.detection.weights is None:
        return "none set (only `detect` needs them)"
    from dangerous_driving.detection.engine import open_engine as open_detector

    return f"{open_detector(settings.detection).model_name} on engine {settings.detection.engine}"


def redis(settings: Settings) -> str:
    """Ask the server of the big screens' feed."""
    from dangerous_driving.alerts.redis_feed import check

    return check(settings.redis)


def receivers(settings: Settings) -> list[Finding]:
    """Reach each receiver of notifications, without a message (``notifications test`` sends one)."""
    return [
        _finding(f"receiver {receiver.name}", lambda receiver=receiver: _receiver(settings, receiver))  # type: ignore[misc]
        for receiver in settings.notifications.receivers
    ]


def _receiver(settings: Settings, receiver: AnyReceiver) -> str:
    from dangerous_driving.notifications.opening import open_channel
    from dangerous_driving.notifications.rendering import Renderer

    Renderer(receiver)
    channel = open_channel(receiver, settings.camera.secrets_folder, node=settings.node)
    try:
        return channel.check()
    finally:
        channel.close()


def endpoint_and_keys(settings: Settings) -> list[Finding]:
    """Try each key once; what is wrong with the endpoint itself is said once."""
    try:
        keys = load_keys(settings.keys)
    except DangerousDrivingError as error:
        return [Finding("keys", False, str(error))]
    if not keys:
        return [Finding("keys", False, "no API key is configured; set keys.file or DD_KEYS__SECRETS")]
    try:
        rejected = rejected_keys(settings.llm, keys)
    except UnavailableError as error:
        return [Finding("endpoint", False, str(error))]
    address = f"{settings.llm.base_url}, model {settings.llm.model}" + (
        " (SIMULATED)" if settings.llm.simulated else ""
    )
    return [
        Finding("endpoint", True, address),
        *(
            Finding(f"key {key.key_hash}", False, f"{rejected[key.key_hash]}; replace or remove it (keys.file)")
            if key.key_hash in rejected
            else Finding(f"key {key.key_hash}", True, "accepted")
            for key in keys
        ),
    ]


def rejected_keys(llm: LlmSettings, keys: Sequence[Key]) -> dict[str, KeyRejectedError]:
    """Ask the endpoint with each key; returns those it does not accept, by hash.

    Raises:
        UnavailableError: the endpoint itself does not answer as it should; names llm.base_url.
    """
    return asyncio.run(_rejected(llm, keys))


async def _rejected(llm: LlmSettings, keys: Sequence[Key]) -> dict[str, KeyRejectedError]:
    client = LlmClient(llm)
    rejected: dict[str, KeyRejectedError] = {}
    try:
        for key in keys:
            try:
                await client.probe(key.secret)
            except KeyRejectedError as error:
                rejected[key.key_hash] = error
            except RateLimitedError:
                continue  # it is known there, and busy
            except LlmError as error:
                raise UnavailableError(
                    "llm.base_url",
                    f"{llm.base_url} does not answer as an LLM endpoint ({error})",
                    "check the address and the network",
                ) from error
    finally:
        await client.close()
    return rejected
