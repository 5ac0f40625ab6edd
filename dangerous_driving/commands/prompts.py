"""`dangerous-driving prompts …`: evaluate prompts, put a better one into use, go back."""

from __future__ import annotations

import asyncio
import getpass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from dangerous_driving.commands.cases import ConfigOption, DataDirOption, opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from dangerous_driving.evaluation.promotion import Ruling
    from dangerous_driving.evaluation.run import Evaluated
    from dangerous_driving.objects import ObjectStore
    from dangerous_driving.settings import Settings

app = typer.Typer(help="Prompts: evaluated on cases, and promoted when the gate lets them through.")
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

VersionArgument = Annotated[str, typer.Argument(help="Prompt version.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who does it (default: your login).")]
NoteOption = Annotated[str, typer.Option("--note", help="Kept with it.")]


@app.command("list")
def list_(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """All prompts, which one is in use, and how it came to be."""
    from dangerous_driving.assessment.champion import current_version
    from dangerous_driving.assessment.prompt import available_versions, load_prompt
    from dangerous_driving.ledger.promotions import promotions

    with opened(config, data_dir) as (settings, engine, _):
        llm = settings.llm
        in_use = current_version(llm, engine)
        history = promotions(engine, limit=20)
        challengers = settings.evaluation.challengers
        table = Table("prompt", "", "what it is")
        for version in available_versions(llm.prompt_folder):
            role = "in use" if version == in_use else "challenger" if version in challengers else ""
            table.add_row(version, role, load_prompt(version, folder=llm.prompt_folder).description)
    out.print(table)
    if history:
        changes = Table("when (UTC)", "", "prompt", "before", "by", "decision", "note")
        for change in history:
            changes.add_row(
                f"{change.promoted_at:%Y-%m-%d %H:%M}",
                change.kind.replace("_", " "),
                change.prompt_version,
                change.previous,
                change.promoted_by,
                "" if change.decision_id is None else str(change.decision_id),
                change.note,
            )
        out.print(changes)


@app.command()
def evaluate(
    versions: Annotated[
        list[str] | None, typer.Argument(help="Prompt versions (default: the one in use and its challengers).")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Default: llm.model.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Ask about all cases, at the pace of the evaluation lane. Broken off, it goes on where it was."""
    from dangerous_driving.assessment.champion import current_version
    from dangerous_driving.evaluation.run import refresh_set, require_set

    with opened(config, data_dir) as (settings, engine, store):
        refresh_set(engine, store, settings)
        newest = require_set(engine)
        wanted = versions or list(
            dict.fromkeys((current_version(settings.llm, engine), *settings.evaluation.challengers))
        )
        out.print(f"case set {newest.version}: {newest.cases} cases, {newest.held_out} of them held out")
        found = asyncio.run(_evaluate(settings, engine, store, wanted, model or settings.llm.model, newest.version))
    table = Table(
        "prompt", "cases", "answered", "recall high", "recall dangerous", "precision dangerous", "level right", "report"
    )
    for one in found:
        figures = one.held_out
        if figures is None:
            err.print(f"{one.asking.key.run}: {one.asking.stopped}", markup=False)
            continue
        table.add_row(
            one.asking.key.prompt_version,
            str(figures.cases),
            f"{figures.coverage:.1%}",
            *(
                _share(figures.estimates[name].value)
                for name in ("recall_high", "recall_dangerous", "precision_dangerous", "accuracy")
            ),
            one.report_url or "",
        )
    out.print(table)
    if any(one.held_out is None for one in found):
        raise typer.Exit(1)


@app.command()
def promote(
    version: VersionArgument,
    accept_no_evidence: Annotated[
        bool, typer.Option("--accept-no-evidence", help="Also where it is shown to be neither better nor worse.")
    ] = False,
    by: ByOption = None,
    note: NoteOption = "",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Put a prompt into use, unless it is significantly worse. Running services take it up within seconds."""
    from dangerous_driving.evaluation import promotion

    with opened(config, data_dir) as (settings, engine, store):
        ruling = promotion.promote(
            settings,
            engine,
            store,
            version,
            by=by or getpass.getuser(),
            accepts_no_evidence=accept_no_evidence,
            note=note,
        )
    _show([ruling])


@app.command()
def gate(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Judge the configured challengers as the nightly job does, and promote one that is better (evaluation.promote_better)."""
    from dangerous_driving.evaluation.promotion import nightly_rulings

    with opened(config, data_dir) as (settings, engine, store):
        _show(nightly_rulings(settings, engine, store))


@app.command()
def rollback(
    by: ByOption = None, note: NoteOption = "", config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Put the prompt before the one in use back."""
    from dangerous_driving.evaluation.promotion import roll_back

    with opened(config, data_dir) as (settings, engine, _):
        made = roll_back(settings, engine, by=by or getpass.getuser(), note=note)
    out.print(f"{made.prompt_version} is in use again, in place of {made.previous}")


@app.command()
def runs(
    limit: Annotated[int, typer.Option(min=1, help="Rows at most.")] = 20,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Evaluations, the newest first."""
    from dangerous_driving.ledger.evaluation_runs import list_runs

    with opened(config, data_dir) as (_, engine, _store):
        found = list_runs(engine, limit=limit)
    table = Table(
        Column("run", overflow="fold"),
        "state",
        "begun (UTC)",
        "cases",
        "recall high",
        "level right",
        Column("report", overflow="fold"),
    )
    for row in found:
        figures = {item["metric"]: item["value"] for item in row.figures if item["split"] == "held_out"}
        table.add_row(
            row.key.run,
            row.state,
            f"{row.started_at:%Y-%m-%d %H:%M}",
            str(figures.get("cases", "")),
            _share(figures.get("recall_high")),
            _share(figures.get("accuracy")),
            row.report_url or "",
        )
    out.print(table)


async def _evaluate(
    settings: Settings, engine: Engine, store: ObjectStore, versions: Sequence[str], model: str, set_version: int
) -> list[Evaluated]:
    from dangerous_driving.assessment.keys import open_pool
    from dangerous_driving.evaluation.run import evaluate_prompt

    pool = open_pool(settings.keys, engine)
    found = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=err) as progress:
            for version in versions:
                bar = progress.add_task(version)
                found.append(
                    await evaluate_prompt(
                        settings,
                        prompt_version=version,
                        model=model,
                        set_version=set_version,
                        engine=engine,
                        store=store,
                        pool=pool,
                        on_progress=lambda done, wanted, bar=bar: progress.update(bar, completed=done, total=wanted),  # type: ignore[misc]
                    )
                )
    finally:
        await pool.close()
    return found


def _show(rulings: Sequence[Ruling]) -> None:
    for ruling in rulings:
        out.print(ruling.statistics, markup=False, highlight=False)
        out.print(f"{ruling.outcome}\nReport: {ruling.report_url}", markup=False, highlight=False)
    if not rulings:
        out.print("no challenger is configured (evaluation.challengers)")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
