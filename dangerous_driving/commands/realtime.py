"""`dangerous-driving watch` and `dangerous-driving token …`: the bridge from the command line."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import ConfigError

if TYPE_CHECKING:
    from dangerous_driving.contracts import Alert
    from dangerous_driving.realtime.access import Role
    from dangerous_driving.realtime.client import BridgeClient
    from dangerous_driving.settings import Settings

tokens = typer.Typer(help="Tokens for the bridge.")
out = Console(highlight=False)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]

_COLOURS = {RiskLevel.HIGH: "bold red", RiskLevel.MEDIUM: "yellow", RiskLevel.LOW: "cyan", RiskLevel.NONE: "dim"}


def watch(
    url: Annotated[
        str | None, typer.Option(help="The bridge's address (default: http://HOST:PORT of the settings).")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token (default: $DD_SECRET_BRIDGE_TOKEN, then realtime.token of the settings)."
        ),
    ] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    level: Annotated[RiskLevel, typer.Option(help="Lowest level an alert must have reached.")] = RiskLevel.LOW,
    changes: Annotated[bool, typer.Option(help="Each change of an alert, not only its first appearance.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line, as on the topic.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="File that keeps the position: a later watch goes on where this one ended.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many lines.")] = None,
    config: ConfigOption = None,
) -> None:
    """Print alerts as they come, over breaks and restarts of the bridge, until Ctrl-C."""
    from dangerous_driving import settings as settings_module
    from dangerous_driving.realtime.client import BridgeClient

    settings = settings_module.load(config)
    position = state.read_text(encoding="utf-8").strip() or None if state is not None and state.is_file() else None
    client = BridgeClient(
        url or f"http://{settings.realtime.host}:{settings.realtime.port}",
        token=_token(settings, token_file),
        cameras=camera,
        minimum_level=level,
        position=position,
    )
    with suppress(KeyboardInterrupt):
        asyncio.run(_print(client, changes=changes, as_json=json, state=state, count=count))


@tokens.command("issue")
def issue_token(
    name: Annotated[str, typer.Option(help="Whose token it is; their acts are kept under this name.")],
    role: Annotated[
        str, typer.Option(help="viewer (looks), operator (acts) or admin (reads the audit too).")
    ] = "viewer",
    hours: Annotated[float, typer.Option(help="How long it is good.")] = 12.0,
    config: ConfigOption = None,
) -> None:
    """Print a signed token; needs realtime.token_secret (DD_REALTIME__TOKEN_SECRET)."""
    from dangerous_driving import settings as settings_module
    from dangerous_driving.realtime.access import issue

    secret = settings_module.load(config).realtime.token_secret
    if secret is None:
        raise ConfigError(
            "realtime.token_secret",
            "there is none to sign with",
            "set DD_REALTIME__TOKEN_SECRET, for the bridge too; make one with: openssl rand -base64 48",
        )
    token = issue(
        secret.get_secret_value(), name=name, role=_role(role), now=datetime.now(UTC), lifetime=timedelta(hours=hours)
    )
    typer.echo(token)


def _role(name: str) -> Role:
    from dangerous_driving.realtime.access import Role

    try:
        return Role(name)
    except ValueError as error:
        raise ConfigError("--role", f"there is no role {name!r}", f"name one of {', '.join(Role)}") from error


def _token(settings: Settings, file: Path | None) -> str | None:
    from dangerous_driving.settings import secret_of_environment

    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("--token-file", f"{file} cannot be read", "name a text file with the token") from error
    of_settings = settings.realtime.token
    return secret_of_environment("BRIDGE_TOKEN") or (of_settings.get_secret_value() if of_settings else None)


async def _print(client: BridgeClient, *, changes: bool, as_json: bool, state: Path | None, count: int | None) -> None:
    printed = 0
    async with aclosing(client.alerts(changes=changes)) as alerts:
        async for alert in alerts:
            if as_json:
                typer.echo(alert.to_json().decode())
            else:
                out.print(line_of(alert), soft_wrap=True)
            if state is not None:
                _keep(state, client.position or "")
            printed += 1
            if printed == count:
                return


def line_of(alert: Alert) -> Text:
    """An alert in one line: when, where, how bad, in which state, what, and how long after its capture."""
    colour = _COLOURS[alert.risk_level]
    what = ", ".join(kind.replace("_", " ") for kind in alert.risk_types) or "dangerous scene"
    seconds = (alert.updated_at - alert.last_seen_at).total_seconds()
    # the words come from an LLM: no control character of theirs reaches the terminal
    described = "".join(
        letter if letter.isprintable() else " " for letter in f"{what}: {alert.description}".rstrip(": ")
    )
    return Text.assemble(
        (alert.opened_at.astimezone().strftime("%H:%M:%S"), "dim"),
        "  ",
        (f"{alert.risk_level.value.upper():6}", colour),
        f"  {alert.camera_id}  {alert.verdict.value if alert.verdict else alert.state.value}  ",
        described,
        (f"  {seconds:.1f} s after the frame" if alert.verdict is None and alert.version == 1 else "", "dim"),
        ("  simulated" if alert.simulated else "", "dim"),
    )


def _keep(file: Path, position: str) -> None:
    temporary = file.with_name(f"{file.name}.new")
    temporary.write_text(position + "\n", encoding="utf-8")
    temporary.replace(file)
