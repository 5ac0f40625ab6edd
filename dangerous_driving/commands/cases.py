"""`dangerous-driving cases …`: scenes whose true level is known, for the evaluation of prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dangerous_driving.objects import ObjectStore
    from dangerous_driving.settings import Settings

app = typer.Typer(help="Scenes whose true level is known, for the evaluation of prompts and models.")
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Data folder of a demo; its database is started when it is not running."),
]
SourceOption = Annotated[
    Literal["operator", "simulated", "imported"] | None, typer.Option("--source", help="Only those from there.")
]


@contextmanager
def opened(config: Path | None, data_dir: Path | None) -> Iterator[tuple[Settings, Engine, ObjectStore]]:
    """Settings, ledger and object store, within the block."""
    from dangerous_driving import settings as settings_module
    from dangerous_driving.demo.data_folder import opened_settings
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.schema import require_current
    from dangerous_driving.objects import open_store

    with opened_settings(settings_module.load(config), data_dir) as settings:
        engine = open_engine(settings.database, application="evaluation command")
        try:
            require_current(engine)
            yield settings, engine, open_store(settings.objects)
        finally:
            engine.dispose()


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Pictures in folders none, low, medium, high, or with cases.jsonl.")],
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Import what is right, and tell the rest.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Add labelled pictures. A picture that is there already gets one more label; contradictions are kept and counted."""
    from dangerous_driving.evaluation.labelled_folder import keep, read_folder
    from dangerous_driving.ledger.evaluation_cases import add_cases

    found = read_folder(folder, now=datetime.now(UTC))
    for problem in found.problems if skip_bad else ():
        err.print(f"left out: {problem}", markup=False)
    if not skip_bad:
        found.require_whole()
    with opened(config, data_dir) as (_, engine, store), err.status(f"{len(found.cases)} pictures …"):
        new = add_cases(engine, keep(store, found.cases))
    disagreeing = sum(one.item.truth is None for one in found.cases)
    out.print(
        f"{len(found.cases)} cases, {new} of them new"
        + (f", {disagreeing} with labels that contradict each other" if disagreeing else "")
        + (f"; {len(found.problems)} left out" if found.problems else "")
    )
    if found.problems:
        raise typer.Exit(1)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    source: SourceOption = None,
    split: Annotated[
        Literal["train", "held_out"] | None,
        typer.Option("--split", help="Only that side; train is for those who write prompts."),
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write cases with pictures and all labels into a folder that `import` reads."""
    from dangerous_driving.evaluation.cases import CaseSource, split_of
    from dangerous_driving.evaluation.labelled_folder import write_folder
    from dangerous_driving.ledger.evaluation_cases import list_cases

    with opened(config, data_dir) as (settings, engine, store), err.status("…"):
        share = settings.evaluation.held_out_share
        items = [
            item
            for item in list_cases(engine, source=None if source is None else CaseSource(source))
            if split is None or split_of(item.case.cluster, held_out_share=share) == split
        ]
        count = write_folder(folder, items, store)
    out.print(f"{count} cases in {folder}")


@app.command("list")
def list_(
    source: SourceOption = None,
    camera: Annotated[str | None, typer.Option("--camera", help="Only those of this camera.")] = None,
    disagreements: Annotated[
        bool, typer.Option("--disagreements", help="Only those whose labels contradict each other.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows at most.")] = 50,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """The cases with their truth, and how many there are of each level."""
    from dangerous_driving.evaluation.cases import CaseSource, split_of
    from dangerous_driving.evaluation.report import truth_words
    from dangerous_driving.ledger.evaluation_cases import list_cases

    with opened(config, data_dir) as (settings, engine, _):
        share = settings.evaluation.held_out_share
        items = [
            item
            for item in list_cases(engine, source=None if source is None else CaseSource(source), camera_id=camera)
            if not disagreements or item.truth is None
        ]
    table = Table("case", "source", "camera", "captured (UTC)", "level", "types", "split", "said by")
    for item in items[:limit]:
        truth, task = item.truth, item.case.task
        table.add_row(
            item.case.case_id,
            item.case.source.value,
            task.camera_id,
            f"{task.timestamp:%Y-%m-%d %H:%M:%S}",
            "contradicting" if truth is None else truth_words(truth),
            ", ".join((truth and truth.risk_types) or ()),
            split_of(item.case.cluster, held_out_share=share).value,
            ", ".join(sorted({label.by for label in item.labels})),
        )
    out.print(table)
    counted = Counter("contradicting" if item.truth is None else truth_words(item.truth) for item in items)
    out.print(f"{len(items)} cases: " + ", ".join(f"{count} {name}" for name, count in sorted(counted.items())))


@app.command()
def collect(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Take in what operators have said of alerts since the last time; the nightly job does it, too."""
    from dangerous_driving.evaluation.collection import collect_verdicts

    with opened(config, data_dir) as (settings, engine, store):
        found = collect_verdicts(engine, store, open_level=settings.alerts.open_level)
    out.print(f"{found.labels} new verdicts, {found.cases} new cases")
    if found.without_picture:
        err.print(f"without a picture, not taken in: {', '.join(found.without_picture[:10])}", markup=False)
