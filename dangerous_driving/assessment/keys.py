"""API keys as the settings give them, and the pool over them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog
import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from sqlalchemy import Engine

from dangerous_driving.assessment import key_pool
from dangerous_driving.assessment.key_pool import (
    Budget,
    KeyPool,
    KeyUsage,
    MemoryStorage,
    Policy,
    PostgresStorage,
    Storage,
)
from dangerous_driving.errors import (
    ConfigError,
    KeyRejectedError,
    LlmError,
    LlmRequestError,
    LlmTimeoutError,
    LlmUnavailableError,
    RateLimitedError,
)
from dangerous_driving.observability.metrics import API_KEY_STATUS, API_KEY_USED, KEY_WAIT, LLM_CALLS
from dangerous_driving.settings import KeysSettings

log = structlog.get_logger(__name__)

FILE_SETTING, SECRETS_SETTING = "keys.file", "keys.secrets"
FORM = "its form is that of infra/config/api_keys.example.yaml"
STATES = ("available", "in_use", "cooling", "disabled")
#: How requests fail; the metric's other values of ``status`` are ok, cancelled and unsent.
CALL_ERRORS = (KeyRejectedError, RateLimitedError, LlmTimeoutError, LlmUnavailableError, LlmRequestError, LlmError)


@dataclass(frozen=True)
class Key:
    """One configured key. Its secret is never part of a log, a table or a page; its hash stands for it."""

    secret: SecretStr
    qps_limit: int
    rpm_limit: int
    label: str = ""

    @property
    def key_hash(self) -> str:
        """``key_hash_`` and twelve hexadecimal digits."""
        return key_pool.key_hash(self.secret.get_secret_value())

    @property
    def as_pool_key(self) -> key_pool.Key:
        """What the pool needs to know of it."""
        return key_pool.Key(self.key_hash, self.qps_limit, self.rpm_limit, self.label)


class _Entry(BaseModel):
    """A key in the file; limits that it does not give are those of the settings."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    secret: SecretStr
    label: str = ""
    qps_limit: int | None = Field(default=None, gt=0)
    rpm_limit: int | None = Field(default=None, gt=0)


class _File(BaseModel):
    """What the key file holds."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[_Entry] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(
                FILE_SETTING, f"{path} cannot be read ({error.strerror})", "name a readable file"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(FILE_SETTING, f"{path} is not UTF-8 text", FORM) from error
        except yaml.YAMLError as error:
            # the parser's message quotes the line, and with it a secret
            line = getattr(getattr(error, "problem_mark", None), "line", None)
            where = "" if line is None else f" (line {line + 1})"
            raise ConfigError(FILE_SETTING, f"{path} is not valid YAML{where}", FORM) from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ConfigError(FILE_SETTING, f"{path}: {place}: {first['msg']}", FORM) from None


def load_keys(settings: KeysSettings) -> tuple[Key, ...]:
    """The configured keys, those of the settings before those of the file; none when neither gives any.

    Raises:
        ConfigError: the file is missing or malformed, or a key is blank, unusable or given twice. No text of it
            carries a key.
    """
    given = [(SECRETS_SETTING, number, _Entry(secret=secret)) for number, secret in enumerate(settings.secrets, 1)]
    if settings.file is not None:
        given += [(FILE_SETTING, number, entry) for number, entry in enumerate(_File.read(settings.file).keys, 1)]
    keys: dict[str, Key] = {}
    for setting, number, entry in given:
        secret = SecretStr(entry.secret.get_secret_value().strip())
        if problem := _problem(secret.get_secret_value()):
            raise ConfigError(setting, f"key {number} {problem}", "give the key as the provider shows it")
        key = Key(secret, entry.qps_limit or settings.qps_limit, entry.rpm_limit or settings.rpm_limit, entry.label)
        if key.key_hash in keys:
            raise ConfigError(setting, f"key {number} ({key.key_hash}) is given twice", "give each key once")
        keys[key.key_hash] = key
    return tuple(keys.values())


def configured_hashes(settings: KeysSettings) -> frozenset[str]:
    """The hashes of the configured keys; raises as :func:`load_keys` does."""
    return frozenset(key.key_hash for key in load_keys(settings))


def policy_of(settings: KeysSettings) -> Policy:
    """The pool's rules as configured."""
    return Policy(
        window_margin=settings.window_margin,
        cooling_initial=settings.cooling_initial,
        cooling_max=settings.cooling_max,
        breaker_failures=settings.breaker_failures,
        realtime_reserve=settings.realtime_reserve,
        recovery=settings.recovery,
        lease=settings.lease,
        lane_weights={lane: weight for lane, weight in settings.lane_weights.items()},  # noqa: C416 - to plain text keys
        budgets={lane: Budget(budget.calls, budget.cost) for lane, budget in settings.budgets.items()},
        members=settings.processes,
    )


def open_pool(settings: KeysSettings, engine: Engine | None) -> KeyPool:
    """A pool over the configured keys, for one event loop; close it there.

    Args:
        settings: the keys and their limits.
        engine: on the ledger, which all processes share the quota through; None: this process has the keys for itself.

    Raises:
        ConfigError: no key is configured, or as :func:`load_keys`.
    """
    keys = load_keys(settings)
    if not keys:
        raise ConfigError(FILE_SETTING, "no API key is configured", "set keys.file, or DD_KEYS__SECRETS='[\"sk-…\"]'")
    policy = policy_of(settings)
    accounts = [key.as_pool_key for key in keys]
    storage: Storage = MemoryStorage(accounts, policy) if engine is None else PostgresStorage(engine, accounts, policy)
    return KeyPool({key.key_hash: key.secret for key in keys}, storage, policy=policy, observer=_Metrics())


async def follow_file(settings: KeysSettings, pool: KeyPool) -> None:
    """Take up, for ever, what changes in the key file: keys that come and go, limits and labels. A bad file changes nothing."""
    file = settings.file
    if file is None:
        return
    before = _stamp(file)
    while True:
        await asyncio.sleep(settings.refresh)
        now = _stamp(file)
        if now == before:
            continue
        before = now
        try:
            keys = await asyncio.to_thread(load_keys, settings)
        except ConfigError as error:
            log.warning("key_file_not_taken_up", reason=str(error))
            continue
        pool.apply([key.as_pool_key for key in keys], {key.key_hash: key.secret for key in keys})
        log.info("keys_taken_up", keys=len(keys))


def add_to_file(
    file: Path,
    secret: str,
    *,
    label: str,
    qps_limit: int | None,
    rpm_limit: int | None,
    settings: KeysSettings,
) -> str:
    """Add a key to the file, which is made when it is missing; returns the key's hash.

    Raises:
        ConfigError: the key is unusable or there already, or the file is malformed.
    """
    secret = secret.strip()
    if problem := _problem(secret):
        raise ConfigError("key", f"it {problem}", "give the key as the provider shows it")
    name = key_pool.key_hash(secret)
    if name in configured_hashes(settings.model_copy(update={"file": file if file.exists() else None})):
        raise ConfigError("key", f"{name} is there already", "see: dangerous-driving keys list")
    entry = {"secret": secret, "label": label, "qps_limit": qps_limit, "rpm_limit": rpm_limit}
    given: dict[str, object] = {field: value for field, value in entry.items() if value not in {None, ""}}
    entries = _entries(file) if file.exists() else []
    _write(file, [*entries, given])
    return name


def remove_from_file(file: Path, key_hash: str) -> None:
    """Take a key out of the file.

    Raises:
        ConfigError: it is not there, or is the last one: a file without keys is refused.
    """
    entries = _entries(file)
    kept = [entry for entry in entries if key_pool.key_hash(str(entry["secret"]).strip()) != key_hash]
    if len(kept) == len(entries):
        raise ConfigError(
            FILE_SETTING, f"{key_hash} is not in {file}", "it comes from DD_KEYS__SECRETS: take it out there"
        )
    if not kept:
        raise ConfigError(FILE_SETTING, f"{key_hash} is the last key in {file}", "disable it, or add another first")
    _write(file, kept)


def _entries(file: Path) -> list[dict[str, object]]:
    _File.read(file)  # says what is wrong with it
    entries: list[dict[str, object]] = yaml.safe_load(file.read_text(encoding="utf-8"))["keys"]
    return entries


def _write(file: Path, entries: list[dict[str, object]]) -> None:
    """Whole or not at all, readable by its owner alone."""
    text = "# Written by dangerous-driving keys; its form is that of infra/config/api_keys.example.yaml\n"
    text += yaml.safe_dump({"keys": entries}, sort_keys=False, allow_unicode=True)
    beside = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.touch(mode=0o600)
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        raise ConfigError(
            FILE_SETTING, f"{file} cannot be written ({error.strerror})", "name a writable file"
        ) from error


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None  # it is just being replaced, or gone: reading it will tell
    return found.st_mtime_ns, found.st_size


class _Metrics:
    """What the pool tells, as metrics."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def waited(self, lane: str, seconds: float) -> None:
        KEY_WAIT.labels(lane).observe(seconds)

    def ended(self, key_hash: str, status: str) -> None:
        LLM_CALLS.labels(key_hash, status).inc()
        # one line for every call: who asks has bound the ids of task, camera and call
        log.info("llm_call", key_id=key_hash, status=status)

    def stands(self, usages: Iterable[KeyUsage]) -> None:
        usages = list(usages)
        keys = {item.key_hash for item in usages}
        for key_hash in keys - self._shown:
            for status in ("ok", *(error.code for error in CALL_ERRORS)):
                LLM_CALLS.labels(key_hash, status)  # from 0 on, so that the first failure is a rise
        for key_hash in self._shown - keys:  # taken out of the file: neither in order nor out of it
            API_KEY_STATUS.remove_by_labels({"key_id": key_hash})
            API_KEY_USED.remove_by_labels({"key_id": key_hash})
        self._shown = keys
        for item in usages:
            for state in STATES:
                API_KEY_STATUS.labels(item.key_hash, state).set(float(item.status == state))
            API_KEY_USED.labels(item.key_hash, "second").set(item.used_second)
            API_KEY_USED.labels(item.key_hash, "minute").set(item.used_minute)


def _problem(secret: str) -> str:
    if not secret:
        return "is blank"
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        return "has characters that cannot be sent in a header"
    return ""
