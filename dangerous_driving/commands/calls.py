"""`dangerous-driving calls`: what the endpoint was asked about a task or camera, and what came of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dangerous_driving.commands.alerts import duration, opened
from dangerous_driving.errors import ConfigError

if TYPE_CHECKING:
    from dangerous_driving.ledger.calls import Call

out = Console()

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Data folder of a demo; its database is started when it is not running."),
]
#: Where neither a time nor a task is given.
DEFAULT_SPAN = timedelta(hours=24)
#: A task has few calls, whenever they were: its day is its partition's, and the index on it finds them.
EVER = datetime(2000, 1, 1, tzinfo=UTC)


def calls(
    task: Annotated[str | None, typer.Option(help="Only about this task.")] = None,
    camera: Annotated[str | None, typer.Option(help="Only about this camera.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only since then: 90m, 2h, 1d, or a time such as 2026-03-01T08:00Z; default: 1d, or ever."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Only on this key, by its hash.")] = None,
    lane: Annotated[str | None, typer.Option(help="realtime, window, inline or evaluation.")] = None,
    status: Annotated[str | None, typer.Option(help="ok, unavailable, timeout, rate_limited, …")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with everything.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Every request to the LLM endpoint: when, about what, on which key, and how it ended."""
    from dangerous_driving.ledger.calls import CallFilter, list_calls

    wanted = CallFilter(
        since=begin_of(since, now=datetime.now(UTC), default=EVER if task else None),
        camera_id=camera,
        task_id=task,
        key_hash=key,
        lane=lane,
        status=status,
    )
    with opened(config, data_dir, "calls") as (_, engine):
        found = list_calls(engine, wanted, limit=limit + 1)
    if as_json:
        for call in found[:limit]:
            typer.echo(json.dumps(asdict(call), default=datetime.isoformat, ensure_ascii=False))
        return
    out.print(_table(found[:limit]))
    more = ", and there are older ones (--limit, --since)" if len(found) > limit else ""
    out.print(f"{len(found[:limit])} calls{more}", highlight=False)


def begin_of(text: str | None, *, now: datetime, default: datetime | None = None) -> datetime:
    """The time that is meant by ``90m``, ``2d`` or an ISO time (UTC where it names no zone).

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return default or now - DEFAULT_SPAN
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        try:
            return now - duration(text)
        except ConfigError as error:
            raise ConfigError(
                "--since", f"{text!r} is neither a duration nor a time", "write 90m, 2d or 2026-03-01T08:00"
            ) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _table(found: list[Call]) -> Table:
    table = Table(
        "began", "camera", "task", "key", "lane", "model", "ended", "level", "whole", "tokens", "cost", "error"
    )
    for call in found:
        http = "" if call.http_status is None or call.status == "ok" else f" {call.http_status}"
        tokens = "" if call.input_tokens is None else f"{call.input_tokens}+{call.output_tokens}"
        table.add_row(
            f"{call.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3], call.camera_id, call.task_id,
            call.key_hash.removeprefix("key_hash_"), call.lane, f"{escape(call.model)} {call.prompt_version}",
            call.status + http, _seconds(call.started_at, call.first_token_at),
            _seconds(call.started_at, call.finished_at), tokens,
            "" if call.cost is None else f"{call.cost:.5f}", escape(call.error or ""),
        )  # fmt: skip
    return table


def _seconds(begun: datetime, ended: datetime | None) -> str:
    return "" if ended is None else f"{(ended - begun).total_seconds():.2f} s"
