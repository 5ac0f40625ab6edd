"""`dangerous-driving switch …`: which lane cameras take, changed while everything runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dangerous_driving.errors import LedgerError

app = typer.Typer(help="The lane of all cameras, or of one. Running services follow within 5 s, without a restart.")
out = Console()
err = Console(stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]
CameraOption = Annotated[
    str | None, typer.Option("--camera", help="One camera's id; default: all without an own entry.")
]


@app.command()
def realtime(camera: CameraOption = None, config: ConfigOption = None) -> None:
    """Alerts within seconds; what finds no room waits for the window lane."""
    _switch("realtime", camera, config)


@app.command()
def window(camera: CameraOption = None, config: ConfigOption = None) -> None:
    """Everything waits for the window lane: no alerts within seconds, and no quota of the realtime lane."""
    _switch("window", camera, config)


@app.command()
def inline(camera: CameraOption = None, config: ConfigOption = None) -> None:
    """`detect` asks the LLM itself, for when Kafka or PostgreSQL is away; answers are handed in when they are back."""
    _switch("inline", camera, config)


@app.command()
def reset(
    camera: Annotated[str, typer.Option("--camera", help="The camera's id.")], config: ConfigOption = None
) -> None:
    """Let a camera follow all others again."""
    _switch(None, camera, config)


@app.command()
def show(config: ConfigOption = None) -> None:
    """How the switch stands."""
    from dangerous_driving import settings as settings_module
    from dangerous_driving.assessment.switch import read_file
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.switches import read_switch

    settings = settings_module.load(config)
    positions = read_file(settings.assessment.switch_file)
    engine = open_engine(settings.database, application="switch")
    try:
        positions = positions.and_(read_switch(engine))
    except LedgerError as error:
        err.print(f"the ledger is away, this node's file alone is shown ({error})", soft_wrap=True)
    finally:
        engine.dispose()
    table = Table("camera", "lane", "since")
    entries = {name: entry for name, entry in sorted(positions.entries.items()) if entry.lane is not None}
    if "*" not in entries:
        table.add_row("all others", "realtime", "")
    for name, entry in entries.items():
        assert entry.lane is not None  # noqa: S101
        table.add_row("all others" if name == "*" else name, entry.lane.value, f"{entry.changed_at:%Y-%m-%d %H:%M:%S}")
    out.print(table)


def _switch(lane: str | None, camera: str | None, config: Path | None) -> None:
    from dangerous_driving import settings as settings_module
    from dangerous_driving.assessment.switch import ALL, Entry, Positions, read_file, write_file
    from dangerous_driving.contracts import Lane
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.switches import write_switch

    settings = settings_module.load(config)
    entry = Entry(None if lane is None else Lane(lane), datetime.now(UTC))
    change = Positions({camera or ALL: entry})
    file = settings.assessment.switch_file
    write_file(file, read_file(file).and_(change))
    engine = open_engine(settings.database, application="switch")
    try:
        write_switch(engine, change)
    except LedgerError as error:
        err.print(
            f"the ledger is away ({error}): services on this node follow {file}, those on others do not; say it there too",
            soft_wrap=True,
        )
    finally:
        engine.dispose()
    who = f"camera {camera}" if camera else "all cameras without an own entry"
    out.print(f"{who}: {lane or 'as all others'}, within 5 s", highlight=False)
