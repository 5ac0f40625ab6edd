"""`dangerous-driving windows`: the window lane without Dagster, and what backfills brought."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dangerous_driving.settings import Settings

app = typer.Typer(help="Camera x time windows, the window lane without Dagster.")

out = Console()

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]
LeashOption = Annotated[bool, typer.Option("--leash", hidden=True, help="End with standard input.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Data folder of a demo; its database is started when it is not running."),
]


def load_settings(path: Path | None) -> Settings:
    """The settings, read when a command runs."""
    from dangerous_driving import settings

    return settings.load(path)


@app.command("run")
def run(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    open_too: Annotated[bool, typer.Option("--open-too", help="Also windows that are not closed yet.")] = False,
    leash: LeashOption = False,
) -> None:
    """Assess what is left in closed windows, as Dagster's runs do."""
    from dangerous_driving import services
    from dangerous_driving.demo.data_folder import opened_settings

    with opened_settings(load_settings(config), data_dir) as settings:
        reports = services.run_windows(settings, open_too=open_too, leash=leash)
    for report in reports:
        out.print(
            f"{report.window.camera_id} {report.window.start:%Y-%m-%d %H:%M}: {report.groups} groups, "
            f"{report.assessed} assessed now, {report.already} before, {sum(report.failed.values())} failed"
            + (f"; {report.error}" if report.error else ""),
            highlight=False,
        )
    out.print(f"{len(reports)} windows")
    if not all(report.complete for report in reports):
        raise typer.Exit(1)


@app.command("compare")
def compare(
    backfill: Annotated[str, typer.Argument(help="Name of a backfill.")],
    other: Annotated[str, typer.Option(help="Another backfill.")] = "live",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    show: Annotated[int, typer.Option(help="Groups printed at most.")] = 20,
) -> None:
    """Show the groups that a backfill judged otherwise than the live lanes, and how often by level."""
    from dangerous_driving.demo.data_folder import opened_settings
    from dangerous_driving.ledger import backfills
    from dangerous_driving.ledger.database import open_engine

    with opened_settings(load_settings(config), data_dir) as settings:
        engine = open_engine(settings.database, application="compare")
        pairs = backfills.compare(engine, backfill, other=other, only_different=False)
        engine.dispose()
    counts: dict[tuple[str, str], int] = {}
    for pair in pairs:
        counts[pair.level, pair.other_level] = counts.get((pair.level, pair.other_level), 0) + 1
    table = Table(other, backfill, "groups")
    for (level, again), count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(level, again, str(count))
    out.print(table)
    different = [pair for pair in pairs if pair.level != pair.other_level]
    for pair in different[:show]:
        out.print(f"{pair.task_id}: {pair.level} -> {pair.other_level}", highlight=False)
    out.print(f"{len(pairs)} groups with both answers, {len(different)} differ")


@app.command("make-current")
def make_current(
    backfill: Annotated[str, typer.Argument(help="Name of a backfill, or live for the way back.")],
    since: Annotated[datetime, typer.Option(help="First window (UTC).")],
    until: Annotated[datetime, typer.Option(help="End of the last window (UTC).")],
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera (repeat for more).")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a backfill's answers the current ones in a span of windows."""
    from dangerous_driving.demo.data_folder import opened_settings
    from dangerous_driving.ledger import backfills
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.windows import windows_between

    changed = 0
    with opened_settings(load_settings(config), data_dir) as settings:
        engine = open_engine(settings.database, application="make-current")
        windows = windows_between(
            engine,
            since.replace(tzinfo=UTC),
            until.replace(tzinfo=UTC),
            length=settings.windows.length,
            cameras=camera or (),
        )
        for window in windows:
            changed += backfills.make_current(engine, backfill, window)
        engine.dispose()
    out.print(f"{changed} answers of {backfill} are current now, in {len(windows)} windows")
