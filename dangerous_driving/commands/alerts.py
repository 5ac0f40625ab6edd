"""`dangerous-driving alerts …`: the service, and what an operator sets from a terminal: snoozes and quiet hours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dangerous_driving.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dangerous_driving.settings import Settings
    from dangerous_driving.settings.alerts import QuietHours

app = typer.Typer(invoke_without_command=True)
out = Console()

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Data folder of a demo; its database is started when it is not running."),
]
CameraArgument = Annotated[str, typer.Argument(help="The camera's id, or '*' for all cameras.")]
ByOption = Annotated[str, typer.Option("--by", help="Who says so.")]

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_HOURS = re.compile(r"(\d{1,2}:\d{2})-(\d{1,2}:\d{2})")
LONGEST = timedelta(days=365)


@contextmanager
def opened(config: Path | None, data_dir: Path | None, application: str) -> Iterator[tuple[Settings, Engine]]:
    """Settings and ledger of a command."""
    from dangerous_driving import settings as settings_module
    from dangerous_driving.demo.data_folder import opened_settings
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.schema import require_current

    with opened_settings(settings_module.load(config), data_dir) as settings:
        engine = open_engine(settings.database, application=application)
        try:
            require_current(engine)
            yield settings, engine
        finally:
            engine.dispose()


def duration(text: str) -> timedelta:
    """``90m``, ``1h30m``, ``2d`` or ``45s``.

    Raises:
        ConfigError: it is none of these, nothing, or more than a year.
    """
    match = _DURATION.fullmatch(text)
    if match is None or not text or len(text) > 20:  # noqa: PLR2004
        raise ConfigError("--for", f"{text!r} is no duration", "write for example 30m, 1h30m or 2d")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    found = timedelta(days=min(days, 9999), hours=hours, minutes=minutes, seconds=seconds)
    if not timedelta(0) < found <= LONGEST:
        raise ConfigError("--for", f"{text!r} is not between a second and a year", "write for example 30m")
    return found


def quiet_hours_of(texts: list[str], days: str | None) -> list[QuietHours]:
    """Quiet hours as written on the command line: ``22:00-06:00``, and days such as ``mon,tue``.

    Raises:
        ConfigError: a time or day is none.
    """
    from dangerous_driving.settings.alerts import QuietHours

    found = []
    for text in texts:
        match = _HOURS.fullmatch(text)
        try:
            if match is None:
                raise ConfigError("HOURS", f"{text!r} are no hours", "write for example 22:00-06:00")
            values = {
                "begin": match[1],
                "end": match[2],
                "days": [day for day in (days or "").lower().split(",") if day],
            }
            found.append(QuietHours.model_validate(values))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "--days" if "days" in first["loc"] else "HOURS"
            remedy = "days are mon,tue,wed,thu,fri,sat,sun" if where == "--days" else "write for example 22:00-06:00"
            raise ConfigError(where, first["msg"].removeprefix("Value error, "), remedy) from error
    return found


def known_camera(camera_id: str) -> str:
    """The id, or ``*``.

    Raises:
        ConfigError: no camera can have this id.
    """
    from dangerous_driving.alerts.quiet import ALL_CAMERAS
    from dangerous_driving.contracts import CAMERA_ID_PATTERN

    if camera_id != ALL_CAMERAS and not CAMERA_ID_PATTERN.fullmatch(camera_id):
        raise ConfigError(
            "CAMERA", f"{camera_id!r} is no camera id", "see: dangerous-driving cameras list; '*' means all"
        )
    return camera_id


@app.callback()
def alerts(
    context: typer.Context,
    config: ConfigOption = None,
    leash: Annotated[bool, typer.Option("--leash", hidden=True, help="End with standard input.")] = False,
) -> None:
    """Open, continue and close alerts from results (without a command: the service)."""
    if context.invoked_subcommand is not None:
        context.obj = config
        return
    from dangerous_driving import services
    from dangerous_driving import settings as settings_module

    services.alerts(settings_module.load(config), leash=leash)


@app.command("list")
def list_(
    context: typer.Context,
    camera: Annotated[str | None, typer.Option(help="Only of this camera.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest first.")] = 20,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """The newest alerts."""
    from dangerous_driving.ledger.alerts import AlertFilter, list_alerts

    with opened(config or context.obj, data_dir, "alerts") as (_, engine):
        found = list_alerts(engine, AlertFilter(camera_id=camera), limit=limit)
    table = Table("opened", "camera", "level", "state", "kinds", "verdict", "id")
    for alert in found:
        state = alert.state.value + (" (simulated)" if alert.simulated else "")
        types = escape(", ".join(alert.risk_types))
        table.add_row(
            f"{alert.opened_at:%Y-%m-%d %H:%M:%S}", alert.camera_id, alert.peak_level.value, state, types,
            alert.verdict.value if alert.verdict else "", alert.alert_id,
        )  # fmt: skip
    out.print(table)


@app.command()
def snooze(
    context: typer.Context,
    camera_id: CameraArgument,
    for_: Annotated[str | None, typer.Option("--for", help="How long: 30m, 2h, 1d.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Until when (UTC).")] = None,
    end: Annotated[bool, typer.Option("--end", help="End the snooze now.")] = False,
    note: Annotated[str, typer.Option(help="Why.")] = "",
    by: ByOption = "command line",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Hold the notifications of a camera for a while; alerts open as ever, and what they tell comes at the end."""
    from dangerous_driving.ledger import quiet

    camera = known_camera(camera_id)
    if sum((for_ is not None, until is not None, end)) != 1:
        raise ConfigError("snooze", "it needs one of --for, --until and --end", "write for example --for 30m")
    now = datetime.now(UTC)
    last = now + duration(for_) if for_ is not None else until.replace(tzinfo=UTC) if until is not None else None
    if last is not None and not now < last <= now + LONGEST:
        raise ConfigError("--until", f"{last:%Y-%m-%d %H:%M} UTC is not within the next year", "name a later time")
    with opened(config or context.obj, data_dir, "alerts") as (settings, engine):
        quiet.snooze(engine, settings.alerts, camera, last, by=by, note=note, now=now)
    out.print(
        f"{_named(camera)}: notifications are held until {last:%Y-%m-%d %H:%M:%S} UTC"
        if last
        else f"{_named(camera)}: the snooze is over",
        highlight=False,
    )


@app.command("quiet-hours")
def quiet_hours(
    context: typer.Context,
    camera_id: CameraArgument,
    hours: Annotated[list[str] | None, typer.Argument(help="FROM-TO in alerts.time_zone, such as 22:00-06:00.")] = None,
    days: Annotated[str | None, typer.Option(help="Days on which they begin: mon,tue,… (default: every day).")] = None,
    none: Annotated[bool, typer.Option("--none", help="Take the camera's own quiet hours away.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Set a camera's own quiet hours, beside those of the settings."""
    from dangerous_driving.ledger import quiet

    camera = known_camera(camera_id)
    if bool(hours) == none:
        raise ConfigError(
            "quiet-hours", "it needs hours or --none", "write for example: alerts quiet-hours gate 22:00-06:00"
        )
    wanted = quiet_hours_of(hours or [], days)
    with opened(config or context.obj, data_dir, "alerts") as (settings, engine):
        quiet.set_quiet_hours(engine, settings.alerts, camera, wanted, now=datetime.now(UTC))
        zone = settings.alerts.time_zone
    shown = ", ".join(_hours(item) for item in wanted)
    out.print(
        f"{_named(camera)}: " + (f"quiet {shown} ({zone})" if wanted else "no quiet hours of its own"), highlight=False
    )


@app.command("quiet")
def show_quiet(context: typer.Context, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show quiet hours and snoozes, and who is quiet now."""
    from dangerous_driving.ledger.quiet import read_quiet

    with opened(config or context.obj, data_dir, "alerts") as (settings, engine):
        kept = read_quiet(engine)
    now = datetime.now(UTC)
    table = Table("camera", "quiet hours", "snoozed until (UTC)", "by", "note")
    for item in settings.alerts.quiet_hours:
        table.add_row(", ".join(item.cameras) or "*", _hours(item), "", "settings", "")
    for camera_id, own in sorted(kept.items()):
        snoozed = own.snoozed_until if own.snoozed_until and own.snoozed_until > now else None
        table.add_row(
            camera_id, ", ".join(_hours(item) for item in own.hours),
            f"{snoozed:%Y-%m-%d %H:%M:%S}" if snoozed else "",
            escape(own.snoozed_by) if snoozed else "", escape(own.note) if snoozed else "",
        )  # fmt: skip
    out.print(table)
    out.print(f"times of quiet hours are of {settings.alerts.time_zone}", highlight=False)


def _hours(item: QuietHours) -> str:
    return f"{item.begin:%H:%M}-{item.end:%H:%M}" + (f" {','.join(item.days)}" if item.days else "")


def _named(camera_id: str) -> str:
    return "all cameras" if camera_id == "*" else f"camera {camera_id}"
