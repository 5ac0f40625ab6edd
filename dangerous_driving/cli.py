"""The command line. Heavy imports stand inside the commands, so that --help answers at once."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text

from dangerous_driving.commands import (
    alerts as alert_commands,
)
from dangerous_driving.commands import (
    calls as call_commands,
)
from dangerous_driving.commands import (
    cameras as camera_commands,
)
from dangerous_driving.commands import (
    cases as case_commands,
)
from dangerous_driving.commands import (
    drift as drift_commands,
)
from dangerous_driving.commands import (
    keys as key_commands,
)
from dangerous_driving.commands import (
    notifications as notification_commands,
)
from dangerous_driving.commands import (
    prompts as prompt_commands,
)
from dangerous_driving.commands import (
    realtime as realtime_commands,
)
from dangerous_driving.commands import (
    shadow as shadow_commands,
)
from dangerous_driving.commands import (
    switch as switch_commands,
)
from dangerous_driving.commands import (
    topics as topic_commands,
)
from dangerous_driving.commands import (
    weights as weights_commands,
)
from dangerous_driving.commands import (
    windows as window_commands,
)
from dangerous_driving.errors import (
    BridgeError,
    BrokerError,
    ConfigError,
    DangerousDrivingError,
    DeliveryError,
    LedgerError,
    ObjectStoreError,
)

if TYPE_CHECKING:
    from dangerous_driving.settings import Settings

app = typer.Typer(
    name="dangerous-driving",
    help="Watches road cameras for dangerous driving. Start with: dangerous-driving demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
simulate = typer.Typer(help="Simulated parts, labelled as such everywhere.")
database = typer.Typer(help="The ledger's schema.")
config = typer.Typer(help="Settings.")
app.add_typer(simulate, name="simulate")
app.add_typer(camera_commands.app, name="cameras")
app.add_typer(weights_commands.app, name="weights")
app.add_typer(drift_commands.app, name="drift")
app.add_typer(shadow_commands.app, name="shadow")
app.add_typer(alert_commands.app, name="alerts")
app.add_typer(notification_commands.app, name="notifications")
app.add_typer(realtime_commands.tokens, name="token")
app.add_typer(key_commands.app, name="keys")
app.add_typer(case_commands.app, name="cases")
app.add_typer(prompt_commands.app, name="prompts")
app.add_typer(switch_commands.app, name="switch")
app.add_typer(database, name="db")
app.add_typer(topic_commands.app, name="topics")
app.add_typer(config, name="config")
app.add_typer(window_commands.app, name="windows")

out = Console()
err = Console(stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]
LeashOption = Annotated[bool, typer.Option("--leash", hidden=True, help="End with standard input.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Data folder of a demo; its database is started when it is not running."),
]


def _settings(path: Path | None) -> Settings:
    from dangerous_driving import settings

    return settings.load(path)


# the services


@app.command()
def detect(config: ConfigOption = None, leash: LeashOption = False) -> None:
    """Read cameras, find and group road users, publish them."""
    from dangerous_driving import services

    services.detect(_settings(config), settings_file=config, leash=leash)


@app.command()
def tasks(config: ConfigOption = None, leash: LeashOption = False) -> None:
    """Turn detection results into assessment tasks."""
    from dangerous_driving import services

    services.tasks(_settings(config), leash=leash)


@app.command()
def assess(config: ConfigOption = None, leash: LeashOption = False) -> None:
    """Run the realtime lane: ask the vision LLM about tasks."""
    from dangerous_driving import services

    services.assess(_settings(config), leash=leash)


@app.command()
def notify(config: ConfigOption = None, leash: LeashOption = False) -> None:
    """Tell receivers of alerts: webhooks, e-mail, MQTT."""
    from dangerous_driving import services

    services.notify(_settings(config), leash=leash)


@app.command("redis-feed")
def redis_feed(config: ConfigOption = None, leash: LeashOption = False) -> None:
    """Bring results and alerts to Redis, for big screens."""
    from dangerous_driving import services

    services.redis_feed(_settings(config), leash=leash)


@app.command()
def realtime(config: ConfigOption = None, leash: LeashOption = False) -> None:
    """Serve the operator page, WebSocket and REST."""
    from dangerous_driving import services

    services.realtime(_settings(config), leash=leash)


app.command("watch")(realtime_commands.watch)
app.command("calls")(call_commands.calls)


@app.command()
def exporter(config: ConfigOption = None, leash: LeashOption = False) -> None:
    """Tell Prometheus what the ledger and the brokers know: windows, tasks that wait, keys, budgets, lag."""
    from dangerous_driving import services

    services.exporter(_settings(config), leash=leash)


@app.command()
def broker(
    address_file: Annotated[Path, typer.Option(help="Where the broker's address is written once it listens.")],
    config: ConfigOption = None,
    leash: LeashOption = False,
) -> None:
    """Run the embedded in-memory Kafka, which forgets at its end."""
    from dangerous_driving import services

    services.broker(_settings(config), address_file, leash=leash)


@simulate.command("llm")
def simulate_llm(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8099,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    seed: Annotated[int, typer.Option(help="Same seed, same answers and latencies.")] = 0,
    speed: Annotated[float, typer.Option(help="Divides the latencies.")] = 1.0,
    config: ConfigOption = None,
    leash: LeashOption = False,
) -> None:
    """Serve an OpenAI-compatible endpoint with simulated answers, latencies, limits and faults."""
    from dangerous_driving import services

    services.simulated_llm(_settings(config), host=host, port=port, seed=seed, speed=speed, leash=leash)


@simulate.command("cases")
def simulate_cases(
    scenes: Annotated[int, typer.Option(min=1, help="Scenes, in rotation of scenarios, light and weather.")] = 48,
    frames: Annotated[int, typer.Option(min=1, max=10, help="Frames of each, 4 s apart.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the first scene.")] = 0,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Add simulated scenes, whose truth is exact, to the cases of the evaluation."""
    from rich.progress import track

    from dangerous_driving.commands.cases import opened
    from dangerous_driving.evaluation.labelled_folder import keep
    from dangerous_driving.ledger.evaluation_cases import add_cases
    from dangerous_driving.simulation.cases import scene_cases

    with opened(config, data_dir) as (_, engine, store):
        made = new = 0
        for number in track(range(scenes), description="scenes", console=err):
            found = list(scene_cases(number, frames=frames, seed=seed))
            made += len(found)
            new += add_cases(engine, keep(store, found))
    out.print(f"{made} cases from {scenes} simulated scenes, {new} of them new")


@simulate.command("scenes")
def simulate_scenes(
    folder: Annotated[Path, typer.Option("--out", help="A new folder of labelled pictures in COCO's form.")],
    scenes: Annotated[int, typer.Option(min=1, help="Scenes; 48 are one of every kind, light and weather.")] = 48,
    frames: Annotated[int, typer.Option(min=1, help="Pictures of each scene.")] = 4,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the first scene; default: far from those of the training.")
    ] = 90_000,
    width: Annotated[int, typer.Option(min=160, max=3840, help="px")] = 1280,
    height: Annotated[int, typer.Option(min=160, max=3840, help="px")] = 720,
) -> None:
    """Render labelled pictures with exact truth, to evaluate detectors on (weights evaluate)."""
    from dangerous_driving.simulation.labelled_scenes import scene_specs, write_labelled_scenes

    specs = scene_specs(scenes, seed=seed, width=width, height=height)
    for _ in track(
        write_labelled_scenes(folder, specs, frames), total=scenes * frames, description="rendering scenes", console=err
    ):
        pass
    out.print(f"{scenes * frames} labelled pictures in {folder}", highlight=False)


@simulate.command("fault")
def simulate_fault(
    action: Annotated[str, typer.Argument(help="revoke, throttle, slow, break, hang, cut, garbage, omit or restore.")],
    amount: Annotated[
        float, typer.Argument(help="Of what: see dangerous_driving/simulation/llm_endpoint.py; a share for most.")
    ] = 1.0,
    key: Annotated[str | None, typer.Option(help="Hash of a key; default: the whole endpoint.")] = None,
    url: Annotated[str, typer.Option(help="Address of the simulated LLM.")] = "http://127.0.0.1:8099",
) -> None:
    """Break the running simulated LLM, or a key of it, or restore it; prints what it counted so far."""
    from dangerous_driving.simulation.orders import order

    state = order(url, action, amount, key)
    table = Table("key", "requests", "answered", "401", "429", "5xx", "hung", "cut", "garbage", "faults")
    for item in state["keys"]:
        faults = ", ".join(f"{name} {value:g}" for name, value in item["faults"].items() if value not in {0.0, 1.0})
        numbers = ("requests", "answered", "rejected", "rate_limited", "broken", "hung", "cut", "garbage")
        table.add_row(item["key_hash"], *(str(item[name]) for name in numbers), faults)
    out.print(table)


# the stores and the log


@database.command("migrate")
def db_migrate(config: ConfigOption = None) -> None:
    """Bring the ledger's schema to the newest version."""
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.schema import migrate

    before, after = migrate(open_engine(_settings(config).database))
    out.print(f"schema {after}" + (" (already)" if before == after else f", was {before or 'empty'}"))


@config.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Read the settings and print them, secrets hidden."""
    import yaml

    settings = _settings(config)
    out.print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True), markup=False)


@config.command("reference")
def config_reference(
    section: Annotated[str | None, typer.Argument(help="Such as kafka; default: all of them.")] = None,
) -> None:
    """Print what every setting is, in Markdown: type, default, unit, and what it does."""
    from dangerous_driving.settings.reference import reference

    typer.echo(reference(section), nl=False)


@app.command()
def doctor(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Check every outside part: what is wrong, and the remedy."""
    from dangerous_driving.demo.data_folder import opened_settings
    from dangerous_driving.doctor import examine

    with opened_settings(_settings(config), data_dir) as settings:
        findings = examine(settings)
    table = Table("part", "state", "what to do", show_lines=False)
    for finding in findings:
        table.add_row(finding.part, "[green]ok[/]" if finding.ok else "[red]wrong[/]", escape(finding.text))
    out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def verify(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    days: Annotated[float | None, typer.Option(help="How far back; default: windows.retention_days.")] = None,
    grace: Annotated[
        float, typer.Option(help="Seconds of the newest frames that are left out, since they are under way.")
    ] = 30,
    show: Annotated[int, typer.Option(help="Violations printed at most.")] = 50,
) -> None:
    """Check the ledger's invariants; name each violation.

    Prints the counts by state, and each violation by id. The exit code is 1 if there is one.
    """
    from dangerous_driving.assessment.keys import configured_hashes
    from dangerous_driving.demo.data_folder import opened_settings
    from dangerous_driving.ledger import invariants
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.schema import require_current
    from dangerous_driving.objects import open_store

    now = datetime.now(UTC)
    with opened_settings(_settings(config), data_dir) as settings, err.status("checking the ledger"):
        engine = open_engine(settings.database, application="verify")
        require_current(engine)
        found = invariants.verify(
            engine,
            open_store(settings.objects),
            since=now - timedelta(days=days if days is not None else settings.windows.retention_days),
            until=now - timedelta(seconds=grace),
            window_length=settings.windows.length,
            key_hashes=configured_hashes(settings.keys),
        )
        engine.dispose()
    for name, counts in found.counts.items():
        out.print(
            f"{name}: {sum(counts.values())}" + "".join(f"  {key} {count}" for key, count in counts.items()),
            highlight=False,
        )
    for violation in found.violations[:show]:
        out.print(
            f"[red]violation[/] {escape(f'{violation.rule}: {violation.subject}: {violation.problem}')}",
            highlight=False,
            soft_wrap=True,
        )
    if found.violations:
        out.print(
            f"[red]{len(found.violations)} violations[/]" + (f", {show} shown" if len(found.violations) > show else "")
        )
        raise typer.Exit(1)
    out.print(f"no violation of {len(invariants.RULES) + 2} rules")


@app.command()
def reimport(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera (repeat for more).")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only what was captured since this day (UTC).")] = None,
) -> None:
    """Import stored detection results that the ledger lacks.

    They come from the object store; the window lane assesses them.
    """
    from dangerous_driving.demo.data_folder import opened_settings
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.objects import open_store
    from dangerous_driving.tasks.reimport import reimport as run

    with opened_settings(_settings(config), data_dir) as settings, err.status("reading the store") as status:
        done = run(
            open_engine(settings.database, application="reimport"),
            open_store(settings.objects),
            window_length=settings.windows.length,
            cameras=camera or (),
            since=since.replace(tzinfo=UTC) if since else None,
            on_progress=lambda count: status.update(f"{count} detection results looked at"),
        )
    out.print(f"{done.found} detection results in the store, {done.written} were new to the ledger")
    if done.unreadable:
        err.print(f"[red]{len(done.unreadable)} could not be read[/]: {', '.join(done.unreadable[:5])} …")
        raise typer.Exit(1)


@app.command()
def demo(
    source: Annotated[list[str] | None, typer.Option(help="File, folder or URL of a camera (repeat for more).")] = None,
    weights: Annotated[Path | None, typer.Option(help="YOLO weights in ONNX format.")] = None,
    cameras: Annotated[
        int | None, typer.Option(min=1, help="Cameras in all, sources in rotation; default: one per source.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Time of capture (SIGUSR1 ends it sooner); default: until Ctrl-C.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where all is kept; default: demo.data_dir.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the operator page; default: realtime.port.")
    ] = None,
    dagster_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Dagster's page.")] = 3000,
    dagster: Annotated[bool, typer.Option("--dagster/--no-dagster", help="With Dagster's page and daemon.")] = True,
    config: ConfigOption = None,
) -> None:
    """Run everything on this machine, nothing else needed.

    Broker, database, a simulated LLM (or your endpoint), all services and Dagster, on the embedded default.
    """
    from dangerous_driving.demo import plan, supervisor

    settings = _settings(config)
    planned = plan.make(
        settings,
        sources=source or [],
        weights=weights,
        cameras=cameras,
        seconds=seconds,
        data_dir=data_dir,
        port=port,
        dagster_port=dagster_port if dagster else None,
    )
    raise typer.Exit(supervisor.run(planned, out))


def main() -> None:
    """Entry point: errors of this package end with one sentence.

    The exit code is 2 for what a user can set right: a setting, a file, or the address of a part that does not answer (once
    a service runs it rides such outages out, so here it is one at the start); else 1.
    """
    # services set up their own logs; a command for a person speaks for itself
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    try:
        app()
    except DangerousDrivingError as error:
        err.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        user_can_mend = isinstance(
            error, ConfigError | LedgerError | BrokerError | ObjectStoreError | DeliveryError | BridgeError
        )
        sys.exit(2 if user_can_mend else 1)


if __name__ == "__main__":
    main()
