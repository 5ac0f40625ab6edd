"""`dangerous-driving drift …`: what the drift watch says of cameras, and what a person says to it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dangerous_driving.commands.alerts import ConfigOption, DataDirOption, opened
from dangerous_driving.errors import ConfigError

app = typer.Typer(help="Whether cameras show what they have shown in the weeks before.")
out = Console()
err = Console(stderr=True)

COLOURS = {"too_little": "dim", "stable": "green", "moderate": "yellow", "drifted": "red"}
DayOption = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A day (UTC) that is over; default: yesterday.")
]


@app.command()
def check(day: DayOption = None, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Hold a day against the weeks before it, as Dagster does every night; the exit code is 1 if a camera drifted."""
    from dangerous_driving.evaluation.drift import State
    from dangerous_driving.evaluation.drift_watch import watch_day

    today = datetime.now(UTC).date()
    wanted = day.date() if day else today - timedelta(days=1)
    if wanted >= today:
        raise ConfigError("--day", f"{wanted} is not over", "name a day before today (UTC)")
    with opened(config, data_dir, "drift check") as (settings, engine), err.status("reading the ledger") as status:
        found = watch_day(engine, wanted, settings.monitoring, on_progress=status.update)
    _print([(camera.camera_id, score) for camera in found for score in camera.scores])
    for camera in found:
        if camera.state is State.DRIFTED:
            out.print(f"[red]{camera.camera_id}[/]: {escape(camera.message)}", highlight=False, soft_wrap=True)
    judged = sum(camera.state is not State.TOO_LITTLE for camera in found)
    out.print(f"{wanted}: {judged} of {len(found)} cameras could be judged", highlight=False)
    if any(camera.state is State.DRIFTED for camera in found):
        raise typer.Exit(1)


@app.command()
def show(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """What was said of each camera's newest day."""
    from dangerous_driving.ledger.drift import latest_scores

    with opened(config, data_dir, "drift show") as (_, engine):
        rows = latest_scores(engine)
    _print([(f"{row.camera_id} {row.day}", row) for row in rows])
    if not rows:
        out.print("the watch has not run yet (dangerous-driving drift check)")


@app.command()
def accept(
    camera: Annotated[str, typer.Argument(help="The camera's id.")],
    by: Annotated[str, typer.Option("--by", help="Who says so.")],
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day (UTC) that counts; default: today.")
    ] = None,
    note: Annotated[str, typer.Option(help="Why: turned, moved, new weights, a new road.")] = "",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Say that a camera is meant to show what it shows since a day: its weeks begin anew, and its drift is over."""
    from dangerous_driving.ledger.cameras import camera_states
    from dangerous_driving.ledger.drift import DRIFT_INCIDENT
    from dangerous_driving.ledger.drift import accept as accept_camera
    from dangerous_driving.ledger.incidents import end

    first = since.date() if since else datetime.now(UTC).date()
    with opened(config, data_dir, "drift accept") as (settings, engine):
        known = {state.id for state in camera_states(engine)}
        if camera not in known:
            raise ConfigError("camera", f"there is no camera {camera!r}", "see: dangerous-driving cameras list")
        accept_camera(engine, camera, first, by=by, note=note)
        end(engine, DRIFT_INCIDENT, camera)
    out.print(
        f"{camera} is compared with what it shows from {first} on; it can be judged after "
        f"{settings.monitoring.drift_days} days",
        highlight=False,
    )


class Judged(Protocol):
    """A verdict, fresh or kept."""

    @property
    def variable(self) -> str:
        """Which."""

    @property
    def state(self) -> str:
        """The verdict."""

    @property
    def psi(self) -> float | None:
        """Population stability index."""

    @property
    def usual(self) -> float | None:
        """The index above which a day is unusual."""

    @property
    def count(self) -> int:
        """Of the day."""

    @property
    def baseline_days(self) -> int:
        """Days that it was held against."""


def _print(rows: Sequence[tuple[str, Judged]]) -> None:
    table = Table("camera", "variable", "state", "PSI", "usual up to", "counts", "days before")
    for name, row in rows:
        table.add_row(
            escape(name),
            row.variable,
            f"[{COLOURS[row.state]}]{row.state}[/]",
            "" if row.psi is None else f"{row.psi:.3f}",
            "" if row.usual is None else f"{row.usual:.3f}",
            str(row.count),
            str(row.baseline_days),
        )
    if rows:
        out.print(table)
