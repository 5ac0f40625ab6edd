"""How a demo stands: counts from the ledger, the log and Dagster, as a table and as a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
from rich.table import Table
from sqlalchemy import Engine, text

from dangerous_driving.demo.parts import Part
from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger.database import transaction


@dataclass(frozen=True)
class Status:
    """One look."""

    frames: int = 0
    groups: int = 0
    tasks: dict[str, int] = field(default_factory=dict)  # by state
    levels: dict[str, int] = field(default_factory=dict)  # current assessments
    calls: dict[str, int] = field(default_factory=dict)  # by status
    alerts: dict[str, int] = field(default_factory=dict)  # by state
    keys: dict[str, int] = field(default_factory=dict)  # by state
    windows_complete: int = 0
    windows_open: int = 0
    cameras: dict[str, int] = field(default_factory=dict)  # by status
    unpublished: int = 0  # answers and alerts not yet on their topic
    lag: dict[str, int] = field(default_factory=dict)  # by consumer group
    runs: dict[str, int] = field(default_factory=dict)  # of Dagster, by status
    checks: dict[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Tasks without an end."""
        return self.tasks.get("pending", 0) + self.tasks.get("claimed", 0)

    @property
    def drained(self) -> bool:
        """Nothing is under way any more, and no window is left."""
        return not (self.waiting or sum(self.lag.values()) or self.windows_open or self.unpublished)


QUERIES = {
    "tasks": "SELECT state, count(*) FROM assessment_task GROUP BY 1",
    "levels": "SELECT risk_level, count(*) FROM risk_assessment WHERE is_current GROUP BY 1",
    "calls": "SELECT status, count(*) FROM llm_call GROUP BY 1",
    "alerts": "SELECT state, count(*) FROM alert GROUP BY 1",
    "keys": "SELECT state, count(*) FROM api_key GROUP BY 1",
    "cameras": "SELECT status, count(*) FROM camera GROUP BY 1",
}


def look(engine: Engine, *, window_length: int, lag: dict[str, int], dagster_url: str | None = None) -> Status:
    """Ask the ledger (and Dagster's database, if there is one)."""
    with transaction(engine) as connection:
        counted = {name: dict(connection.execute(text(query)).tuples().all()) for name, query in QUERIES.items()}
        frames, groups = connection.execute(
            text("SELECT count(*), coalesce(sum(jsonb_array_length(traffic_groups)), 0) FROM frame")
        ).one()
        complete, not_complete = connection.execute(
            text(
                "SELECT count(*) FILTER (WHERE assessed_version >= version), "
                "count(*) FILTER (WHERE assessed_version < version) FROM camera_window WHERE length = :length"
            ),
            {"length": window_length},
        ).one()
        unpublished = connection.scalar(
            text(
                "SELECT (SELECT count(*) FROM risk_assessment WHERE published_at IS NULL AND run = 'live') + "
                "(SELECT count(*) FROM alert WHERE published_version < version)"
            )
        )
    runs, checks = dagster_counts(dagster_url) if dagster_url else ({}, {})
    return Status(
        frames=frames,
        groups=groups,
        windows_complete=complete,
        windows_open=not_complete,
        unpublished=unpublished or 0,
        lag=lag,
        runs=runs,
        checks=checks,
        **counted,
    )


def dagster_counts(url: str) -> tuple[dict[str, int], dict[str, int]]:
    """Runs and window checks by status, read from Dagster's tables (importing Dagster takes seconds)."""
    try:
        return _dagster_counts(url)
    except psycopg.Error as error:
        raise LedgerError(f"Dagster's database did not answer ({error})") from error


def _dagster_counts(url: str) -> tuple[dict[str, int], dict[str, int]]:
    with psycopg.connect(url, connect_timeout=5) as connection:
        if connection.execute("SELECT to_regclass('asset_check_executions')").fetchone() == (None,):
            return {}, {}  # Dagster has not made its tables yet
        runs = connection.execute("SELECT status, count(*) FROM runs GROUP BY 1").fetchall()
        # dbt's tests are checks too; a killed run leaves its check planned for ever, so only those with an outcome count
        checks = connection.execute(
            "SELECT execution_status, count(*) FROM asset_check_executions "
            "WHERE check_name = 'nothing_forgotten' AND execution_status IN ('SUCCEEDED', 'FAILED') GROUP BY 1"
        ).fetchall()
    return dict(runs), dict(checks)


def counts(values: dict[str, int]) -> str:
    """``3 high, 2 low``; a dash for nothing."""
    return ", ".join(f"{count} {name}" for name, count in sorted(values.items()) if count) or "-"


def table(status: Status, parts: Sequence[Part], *, title: str, addresses: dict[str, str]) -> Table:
    """The status as a table for the terminal."""
    shown = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold cyan", no_wrap=True)
    shown.add_column()
    for name, value in rows(status).items():
        shown.add_row(name, value)
    states = [
        f"{part.name}{f' (restarted {part.restarts}x)' if part.restarts else ''}" for part in parts if part.running()
    ]
    shown.add_row("running", ", ".join(states) or "-")
    for name, address in addresses.items():
        shown.add_row(name, address)
    return shown


def rows(status: Status) -> dict[str, str]:
    """The status as named lines."""
    lines = {
        "cameras": counts(status.cameras),
        "frames": str(status.frames),
        "groups": str(status.groups),
        "tasks": counts(status.tasks),
        "risk levels": counts(status.levels),
        "calls": counts(status.calls),
        "alerts": counts(status.alerts),
        "keys": counts(status.keys),
        "lag": counts(status.lag) if any(status.lag.values()) else "0",
        "windows": f"{status.windows_complete} complete, {status.windows_open} open",
    }
    if status.runs:
        lines["dagster runs"] = counts({name.lower(): count for name, count in status.runs.items()})
        lines["window checks"] = counts({name.lower(): count for name, count in status.checks.items()})
    return lines
