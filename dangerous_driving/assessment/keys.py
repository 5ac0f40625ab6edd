"""API keys as the settings give them, and the pool over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
from dangerous_driving.errors import ConfigError
from dangerous_driving.observability.metrics import API_KEY_STATUS, API_KEY_USED, BUDGET_USED, KEY_WAIT, LLM_CALLS
from dangerous_driving.settings import KeysSettings

FILE_SETTING, SECRETS_SETTING = "keys.file", "keys.secrets"
FORM = "its form is that of infra/config/api_keys.example.yaml"
STATES = ("available", "in_use", "cooling", "disabled")


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
        lane_weights=settings.lane_weights,
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
    accounts = [key_pool.Key(key.key_hash, key.qps_limit, key.rpm_limit, key.label) for key in keys]
    storage: Storage = MemoryStorage(accounts, policy) if engine is None else PostgresStorage(engine, accounts, policy)
    return KeyPool({key.key_hash: key.secret for key in keys}, storage, policy=policy, observer=_Metrics())


class _Metrics:
    """What the pool tells, as metrics."""

    def waited(self, lane: str, seconds: float) -> None:
        KEY_WAIT.labels(lane).observe(seconds)

    def ended(self, key_hash: str, status: str) -> None:
        LLM_CALLS.labels(key_hash, status).inc()

    def stands(self, usages: Iterable[KeyUsage]) -> None:
        for item in usages:
            for state in STATES:
                API_KEY_STATUS.labels(item.key_hash, state).set(float(item.status == state))
            API_KEY_USED.labels(item.key_hash, "second").set(item.used_second)
            API_KEY_USED.labels(item.key_hash, "minute").set(item.used_minute)

    def spent(self, lane: str, share: float) -> None:
        BUDGET_USED.labels(lane).set(share)


def _problem(secret: str) -> str:
    if not secret:
        return "is blank"
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        return "has characters that cannot be sent in a header"
    return ""
