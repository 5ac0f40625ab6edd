"""`dangerous-driving shadow …`: a challenger assesses a share of the live groups beside the champion; nobody is alerted."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from dangerous_driving.commands.alerts import ConfigOption, DataDirOption, opened
from dangerous_driving.errors import ConfigError

app = typer.Typer(help="Challengers that assess a share of the live groups, without alerting.")
out = Console()

PromptArgument = Annotated[str, typer.Argument(help="The challenger's prompt version.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Its model; default: llm.model.")]


@app.command()
def start(
    prompt: PromptArgument,
    model: ModelOption = None,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the groups, chosen by a hash of their ids.")] = 0.1,
    by: Annotated[str, typer.Option("--by", help="Who says so.")] = "",
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let a challenger assess a share of the groups of each window that completes from now on."""
    from dangerous_driving.assessment.champion import current_version
    from dangerous_driving.assessment.prompt import load_prompt
    from dangerous_driving.ledger.shadows import start_shadow

    if share <= 0:
        raise ConfigError("--share", "is nothing", "give a share above 0, such as 0.1")
    with opened(config, data_dir, "shadow start") as (settings, engine):
        load_prompt(prompt, folder=settings.llm.prompt_folder)
        wanted = model or settings.llm.model
        if (prompt, wanted) == (current_version(settings.llm, engine), settings.llm.model):
            raise ConfigError("prompt", f"{prompt} with {wanted} is what assesses live", "name another prompt or model")
        challenger = start_shadow(engine, prompt, wanted, share, by=by)
    out.print(
        f"{challenger.run} assesses {share:.0%} of the groups of windows that end after "
        f"{challenger.since:%Y-%m-%d %H:%M:%S} UTC",
        highlight=False,
    )


@app.command()
def stop(
    prompt: PromptArgument, model: ModelOption = None, config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """End a challenger; what it has said stays."""
    from dangerous_driving.assessment.shadow import shadow_run
    from dangerous_driving.ledger.shadows import end_shadow

    with opened(config, data_dir, "shadow stop") as (settings, engine):
        run = shadow_run(prompt, model or settings.llm.model)
        if not end_shadow(engine, run):
            raise ConfigError("prompt", f"{run} does not assess now", "see: dangerous-driving shadow list")
    out.print(f"{run} has ended", highlight=False)


@app.command("list")
def list_(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """All challengers that assess or have assessed in the shadow."""
    from dangerous_driving.ledger.shadows import challengers, report

    with opened(config, data_dir, "shadow list") as (_, engine):
        reports = [report(engine, challenger) for challenger in challengers(engine)]
    table = Table("prompt", "model", "share", "since (UTC)", "state", "windows", "groups answered", "failed")
    for one in reports:
        who = one.challenger
        table.add_row(
            who.prompt_version,
            who.model,
            f"{who.share:.0%}",
            f"{who.since:%Y-%m-%d %H:%M}",
            "assesses" if who.ended_at is None else f"ended {who.ended_at:%Y-%m-%d %H:%M}",
            str(one.windows),
            str(one.states.get("assessed", 0)),
            str(one.states.get("failed", 0)),
        )
    out.print(table if reports else "no challenger has assessed in the shadow")


@app.command()
def report(
    prompt: PromptArgument, model: ModelOption = None, config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """What a challenger said, beside what the champion said of the same groups."""
    from dangerous_driving.assessment.shadow import shadow_run
    from dangerous_driving.evaluation.shadow_report import markdown
    from dangerous_driving.ledger import shadows

    with opened(config, data_dir, "shadow report") as (settings, engine):
        run = shadow_run(prompt, model or settings.llm.model)
        found = next((one for one in shadows.challengers(engine) if one.run == run), None)
        if found is None:
            raise ConfigError("prompt", f"{run} has never assessed", "see: dangerous-driving shadow list")
        page = markdown(shadows.report(engine, found))
    out.print(Markdown(page))
