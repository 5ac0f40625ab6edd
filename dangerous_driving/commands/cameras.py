"""`dangerous-driving cameras …`: cameras that are added, changed and removed while everything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from dangerous_driving.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dangerous_driving.settings import CameraSpec, Settings

app = typer.Typer(help="Cameras: of the settings, and of the ledger's table.")
out = Console()

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]
CameraArgument = Annotated[str, typer.Argument(help="The camera's id.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="FIELD=YAML, such as frame_interval=0.5 or ignore='[[[0, 0], [1, 0], [1, 0.2]]]'."),
]


@contextmanager
def _opened(config: Path | None) -> Iterator[tuple[Settings, Engine]]:
    from dangerous_driving import settings as settings_module
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.schema import require_current

    settings = settings_module.load(config)
    engine = open_engine(settings.database, application="cameras")
    try:
        require_current(engine)
        yield settings, engine
    finally:
        engine.dispose()


def camera_spec(camera_id: str, *, fields: list[str], before: Mapping[str, Any]) -> CameraSpec:
    """A camera as written on the command line: what was there before, changed by FIELD=YAML.

    Raises:
        ConfigError: a field is unknown or out of range; names it.
    """
    import yaml

    from dangerous_driving.settings import CameraSpec

    values: dict[str, Any] = {**before, "id": camera_id}
    for field in fields:
        key, equals, text = field.partition("=")
        if not equals:
            raise ConfigError("--set", f"{field!r} is no FIELD=VALUE", "write for example --set frame_interval=0.5")
        try:
            values[key] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: the 30th of February
            raise ConfigError(f"--set {key}", f"{text!r} is not valid YAML", "mend it") from error
    try:
        return CameraSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        known = ", ".join(CameraSpec.model_fields)
        raise ConfigError(f"--set {field}", first["msg"], f"the fields are {known}") from error


@app.command("list")
def list_cameras(config: ConfigOption = None) -> None:
    """All cameras ever seen, with their state and the detector that reads them; sources without credentials."""
    from sqlalchemy import select

    from dangerous_driving.camera.sharing import owner_of, shown_names
    from dangerous_driving.ledger.database import transaction
    from dangerous_driving.ledger.detectors import live_detectors
    from dangerous_driving.ledger.tables import Camera

    with _opened(config) as (settings, engine), transaction(engine) as connection:
        rows = connection.execute(
            select(
                Camera.id, Camera.name, Camera.kind, Camera.source, Camera.status, Camera.status_reason, Camera.enabled,
                Camera.spec.is_not(None),
            ).order_by(Camera.id)
        ).all()  # fmt: skip
        detectors = live_detectors(connection)
    table = Table("id", "name", "kind", "source", "state", "read by", "kept in")
    names = shown_names(detectors)
    of_settings = {camera.id for camera in settings.camera.cameras}
    for camera_id, name, kind, source, status, reason, enabled, in_table in rows:
        reader = owner_of(camera_id, detectors)
        read_by = names[reader.name] if reader else ""
        elsewhere = f"settings of {read_by}" if read_by else "settings of no living detect, or nowhere (was removed)"
        kept_in = "table" if in_table else "settings" if camera_id in of_settings else elsewhere
        state = status + (f" ({reason})" if reason else "") if enabled else "disabled"
        table.add_row(camera_id, name, kind, source, state, read_by, kept_in)
    out.print(table)


@app.command()
def add(
    camera_id: CameraArgument,
    source: Annotated[
        str, typer.Argument(help="File, folder, URL (with ${NAME} for a password), device number, simulated:…")
    ],
    name: Annotated[str, typer.Option(help="What people call it.")] = "",
    fields: SetOption = None,
    config: ConfigOption = None,
) -> None:
    """Add a camera to the table, or change it there. Running detection services take it up within camera.refresh s."""
    from dangerous_driving.ledger.cameras import put_camera

    spec = camera_spec(camera_id, fields=fields or [], before={"source": source, "name": name})
    with _opened(config) as (settings, engine):
        put_camera(engine, spec, frame_interval=settings.camera.frame_interval)
    out.print(f"camera {spec.id} is in the table: {spec.shown_source}", highlight=False)


@app.command("set")
def set_(
    camera_id: CameraArgument,
    fields: Annotated[list[str], typer.Argument(help="FIELD=YAML, such as frame_interval=0.5 or name='North gate'.")],
    config: ConfigOption = None,
) -> None:
    """Change some fields of a camera of the table; the others stay."""
    from dangerous_driving.ledger.cameras import kept_values, put_camera

    with _opened(config) as (settings, engine):
        spec = camera_spec(camera_id, fields=fields, before=kept_values(engine, camera_id))
        put_camera(engine, spec, frame_interval=settings.camera.frame_interval, enable=False)
    out.print(f"camera {spec.id} is changed: {', '.join(field.partition('=')[0] for field in fields)}", highlight=False)


@app.command()
def remove(camera_id: CameraArgument, config: ConfigOption = None) -> None:
    """Take a camera out of the table; what it saw stays."""
    from dangerous_driving.ledger.cameras import remove_camera

    with _opened(config) as (_, engine):
        remove_camera(engine, camera_id)
    out.print(f"camera {camera_id} is no longer in the table")


@app.command()
def enable(camera_id: CameraArgument, config: ConfigOption = None) -> None:
    """Switch a camera of the table on."""
    from dangerous_driving.ledger.cameras import set_enabled

    with _opened(config) as (_, engine):
        set_enabled(engine, camera_id, True)
    out.print(f"camera {camera_id} is enabled")


@app.command()
def disable(camera_id: CameraArgument, config: ConfigOption = None) -> None:
    """Switch a camera of the table off."""
    from dangerous_driving.ledger.cameras import set_enabled

    with _opened(config) as (_, engine):
        set_enabled(engine, camera_id, False)
    out.print(f"camera {camera_id} is disabled")


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="What a camera's source would be.")], config: ConfigOption = None
) -> None:
    """Open a source and read one frame."""
    from dangerous_driving import settings as settings_module
    from dangerous_driving.camera.source import probe
    from dangerous_driving.services import open_camera

    spec = settings_module.camera_of_argument(source, "source", camera_id="check")
    info = probe(spec, settings_module.load(config).camera, setting="source", source_opener=open_camera)
    rate = f", {info.fps:g} frames/s" if info.fps else ""
    out.print(f"{spec.shown_source}: {spec.kind}, {info.width} x {info.height} px{rate}", highlight=False)
