"""`dangerous-driving keys …`: API keys that come, go, rest and return while everything runs. Secrets are never shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dangerous_driving.errors import ConfigError, LlmError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dangerous_driving.assessment.keys import Key
    from dangerous_driving.settings import Settings

app = typer.Typer(help="API keys: shown by hash, shared by all processes.")
out = Console()

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]
KeyArgument = Annotated[str, typer.Argument(help="A key's hash (its beginning is enough) or label.")]
DEFAULT_FILE = Path("infra/config/api_keys.yaml")


def _settings(config: Path | None) -> Settings:
    from dangerous_driving import settings

    return settings.load(config)


@contextmanager
def _ledger(settings: Settings) -> Iterator[Engine]:
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.schema import require_current

    engine = open_engine(settings.database, application="keys")
    try:
        require_current(engine)
        yield engine
    finally:
        engine.dispose()


def _one(settings: Settings, wanted: str) -> Key:
    from dangerous_driving.assessment.keys import load_keys

    found = [
        key
        for key in load_keys(settings.keys)
        if wanted == key.label or key.key_hash.removeprefix("key_hash_").startswith(wanted.removeprefix("key_hash_"))
    ]
    if len(found) != 1:
        problem = "no configured key has" if not found else f"{len(found)} keys have"
        raise ConfigError("key", f"{problem} the hash or label {wanted!r}", "see: dangerous-driving keys list")
    return found[0]


@app.command("list")
def list_keys(config: ConfigOption = None) -> None:
    """Every configured key with its state, as all processes have it."""
    from dangerous_driving.assessment.key_pool import key_usage
    from dangerous_driving.assessment.keys import load_keys, policy_of

    settings = _settings(config)
    configured = load_keys(settings.keys)
    with _ledger(settings) as engine:
        known = {usage.key_hash: usage for usage in key_usage(engine, policy_of(settings.keys))}
    table = Table("key", "label", "state", "second", "minute", "why")
    for key in configured:
        usage = known.get(key.key_hash)
        if usage is None:
            table.add_row(key.key_hash, key.label, "not used yet", f"0/{key.qps_limit}", f"0/{key.rpm_limit}", "")
            continue
        state = f"cooling {usage.cooling_for:.0f} s" if usage.cooling_for else usage.status
        table.add_row(
            key.key_hash,
            key.label,
            state,
            f"{usage.used_second}/{usage.qps_limit}",
            f"{usage.used_minute}/{usage.rpm_limit}",
            usage.reason,
        )
    for key_hash in known.keys() - {key.key_hash for key in configured}:
        table.add_row(key_hash, known[key_hash].label, "removed", "", "", "known, but no longer configured")
    out.print(table)


@app.command()
def add(
    label: Annotated[str, typer.Option(help="Shown beside the hash.")] = "",
    qps_limit: Annotated[int | None, typer.Option(min=1, help="Requests a second; default keys.qps_limit.")] = None,
    rpm_limit: Annotated[int | None, typer.Option(min=1, help="Requests a minute; default keys.rpm_limit.")] = None,
    environment: Annotated[
        str | None, typer.Option("--env", help="Variable that holds the key; default: asked for, or standard input.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Add a key to the key file. Running services take it up within keys.refresh seconds."""
    from dangerous_driving.assessment.keys import add_to_file

    settings = _settings(config)
    if environment is not None:
        secret = os.environ.get(environment, "")
        if not secret:
            raise ConfigError("--env", f"the variable {environment} is not set", "export it, or leave --env out")
    else:
        secret = typer.prompt("key", hide_input=True, err=True)
    file = settings.keys.file or DEFAULT_FILE
    added = add_to_file(file, secret, label=label, qps_limit=qps_limit, rpm_limit=rpm_limit, settings=settings.keys)
    out.print(f"{added} is in {file}", highlight=False)
    if settings.keys.file is None:
        out.print(f"set keys.file to {file}, so that it is read", highlight=False)


@app.command()
def remove(key: KeyArgument, config: ConfigOption = None) -> None:
    """Remove a key from the key file. Calls under way on it end as they would have."""
    from dangerous_driving.assessment.keys import remove_from_file

    settings = _settings(config)
    found = _one(settings, key)
    if settings.keys.file is None:
        raise ConfigError("keys.file", "the keys come from DD_KEYS__SECRETS", "take the key out there")
    remove_from_file(settings.keys.file, found.key_hash)
    out.print(f"{found.key_hash} is out of {settings.keys.file}", highlight=False)


@app.command()
def enable(key: KeyArgument, config: ConfigOption = None) -> None:
    """Use a key again, with a clean slate; all processes follow at once."""
    _set(config, key, enabled=True, reason="")


@app.command()
def disable(
    key: KeyArgument,
    reason: Annotated[str, typer.Option(help="Shown in keys list.")] = "disabled by a person",
    config: ConfigOption = None,
) -> None:
    """Use a key no more until it is enabled; all processes follow at once."""
    _set(config, key, enabled=False, reason=reason)


def _set(config: Path | None, wanted: str, *, enabled: bool, reason: str) -> None:
    from dangerous_driving.assessment.key_pool import set_key_enabled

    settings = _settings(config)
    key = _one(settings, wanted)
    with _ledger(settings) as engine:
        set_key_enabled(engine, key.as_pool_key, enabled=enabled, reason=reason)
    out.print(f"{key.key_hash} is {'enabled' if enabled else f'disabled: {reason}'}", highlight=False)


@app.command("test")
def try_keys(config: ConfigOption = None) -> None:
    """Ask the endpoint with each key, as cheaply as it allows. Exit code 1 if it does not take one."""
    import asyncio

    from dangerous_driving.assessment.keys import load_keys
    from dangerous_driving.assessment.llm import LlmClient

    settings = _settings(config)
    keys = load_keys(settings.keys)
    if not keys:
        raise ConfigError("keys.file", "no API key is configured", "run: dangerous-driving keys add")

    async def probe() -> dict[str, str]:
        client = LlmClient(settings.llm)
        failed: dict[str, str] = {}
        try:
            for key in keys:
                try:
                    await client.probe(key.secret)
                except LlmError as error:
                    failed[key.key_hash] = str(error)
        finally:
            await client.close()
        return failed

    failed = asyncio.run(probe())
    table = Table("key", "label", "endpoint says")
    for key in keys:
        table.add_row(key.key_hash, key.label, failed.get(key.key_hash, "accepted"))
    out.print(table)
    if failed:
        raise typer.Exit(1)


@app.command()
def stats(
    hours: Annotated[float, typer.Option(min=0.01, help="How far back.")] = 24.0, config: ConfigOption = None
) -> None:
    """What each key did: calls by outcome, tokens, money, latency; and what lanes with a budget have spent today."""
    from dangerous_driving.ledger.spending import key_spending, lane_spending

    settings = _settings(config)
    with _ledger(settings) as engine:
        rows = key_spending(engine, hours=hours)
        lanes = lane_spending(engine)
    table = Table("key", "calls", "ok", "429", "failed", "cancelled", "tokens in", "out", "money", "P95 s")
    for row in rows:
        table.add_row(
            row.key_hash, str(row.calls), str(row.ok), str(row.rate_limited), str(row.failed), str(row.cancelled),
            str(row.input_tokens), str(row.output_tokens), f"{row.cost:.4g}", f"{row.p95:.2f}" if row.p95 else "-",
        )  # fmt: skip
    out.print(table)
    for lane, budget in settings.keys.budgets.items():
        calls, cost = lanes.get(lane, (0, 0.0))
        limits = [f"{budget.calls} calls"] * (budget.calls is not None) + [f"{budget.cost:g}"] * (
            budget.cost is not None
        )
        out.print(
            f"lane {lane} today: {calls} calls, {cost:.4g} of money, budget {' and '.join(limits)}", highlight=False
        )
