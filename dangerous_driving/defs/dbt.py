"""The dbt project in the asset graph: where it lies, its manifest, its connection to the ledger."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets

from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.database import engine_url
from dangerous_driving.settings import DatabaseSettings, Settings

#: s for `dbt parse`, which opens no connection.
PARSE_TIMEOUT = 120.0

PACKAGE = Path(__file__).resolve().parents[1]
PROJECT_FILE = "dbt_project.yml"


class LedgerTranslator(DagsterDbtTranslator):
    """Models are grouped by layer. Sources name the asset they stand for themselves (``meta.dagster.asset_key``)."""

    def get_asset_spec(self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None) -> dg.AssetSpec:
        """The asset of a model or source: ``models/staging/…`` belongs to the group ``staging``."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        node = self.get_resource_props(manifest, unique_id)
        if node["resource_type"] != "model":
            return spec
        return spec.replace_attributes(key=dg.AssetKey(node["name"]), group_name=node["fqn"][1])


def ledger_models(settings: Settings) -> dg.AssetsDefinition:
    """All dbt models as assets, their tests as checks.

    Raises:
        ConfigError: there is no dbt project, or it cannot be parsed.
    """
    project, database = locate_project(settings.windows.dbt_project), settings.database
    target = state_folder(project)

    @dbt_assets(
        manifest=prepare_manifest(project, target, database),
        dagster_dbt_translator=LedgerTranslator(),
        name="ledger_models",
    )
    def models(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
        with environment(dbt_environment(database, target)):
            build = dbt.cli(["build"], context=context)
            yield from build.stream()
        # kept after a failure, which leaves the generator by an exception: there are the compiled queries
        shutil.rmtree(build.target_path)

    return models


def dbt_resource(settings: Settings) -> DbtCliResource:
    """The dbt command on the project, of the environment that this Python runs in."""
    project = locate_project(settings.windows.dbt_project)
    return DbtCliResource(project_dir=str(project), profiles_dir=str(project), dbt_executable=dbt_executable())


def locate_project(setting: Path | None) -> Path:
    """The folder of the dbt project: ``windows.dbt_project``, else the checkout's, else the one inside the package.

    Raises:
        ConfigError: there is none.
    """
    candidates = [setting] if setting else [PACKAGE.parent / "dbt_project", PACKAGE / "_dbt_project"]
    for candidate in candidates:
        if (candidate / PROJECT_FILE).is_file():
            return candidate.resolve()
    raise ConfigError(
        "windows.dbt_project",
        f"no {PROJECT_FILE} in {' or '.join(str(candidate) for candidate in candidates)}",
        "name the folder of the dbt project",
    )


def state_folder(project: Path) -> Path:
    """A writable folder for what dbt makes: ``$DAGSTER_HOME/dbt``, else the project's ``target``, else a temporary one."""
    home = os.environ.get("DAGSTER_HOME")  # Dagster's own variable, so no setting of this package
    if home:
        folder = Path(home) / "dbt"
    elif os.access(project, os.W_OK):
        folder = project / "target"
    else:
        folder = Path(tempfile.gettempdir()) / f"dangerous-driving-dbt-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def prepare_manifest(project: Path, target: Path, database: DatabaseSettings) -> dict[str, Any]:
    """The project's manifest, made by ``dbt parse`` in `target` when it is missing or the project has changed.

    Several processes may ask at once (webserver, daemon, runs): one parses, the others wait.

    Raises:
        ConfigError: dbt cannot parse the project; its message is in the text.
    """
    manifest, stamp = target / "manifest.json", target / "manifest.sha256"
    wanted = fingerprint(project, database)
    with (target / "manifest.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        current = stamp.read_text(encoding="utf-8") if stamp.is_file() and manifest.is_file() else None
        if current != wanted:
            _parse(project, target, database)
            stamp.write_text(wanted, encoding="utf-8")
        parsed: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        return parsed


def fingerprint(project: Path, database: DatabaseSettings) -> str:
    """A hash of all that the manifest depends on: the project's files, dbt's version, the database's name."""
    digest = hashlib.sha256(f"{version('dbt-core')} {engine_url(database).database} {project}".encode())
    written_by_dbt = {"target", "logs"}
    for path in sorted(project.rglob("*")):
        relative = path.relative_to(project)
        if path.is_file() and relative.parts[0] not in written_by_dbt:
            digest.update(f"{relative}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _parse(project: Path, target: Path, database: DatabaseSettings) -> None:
    command = [dbt_executable(), "--quiet", "--no-use-colors", "parse", "--project-dir", str(project)]
    try:
        done = subprocess.run(  # noqa: S603  # our own dbt, no shell
            [*command, "--profiles-dir", str(project)],
            env=os.environ | dbt_environment(database, target),
            capture_output=True,
            text=True,
            timeout=PARSE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            "windows.dbt_project", f"dbt parse took longer than {PARSE_TIMEOUT:.0f} s", "look at the machine's load"
        ) from error
    if done.returncode:
        raise ConfigError(
            "windows.dbt_project", f"dbt cannot parse {project}: {done.stdout.strip()}", "mend the project"
        )


def dbt_executable() -> str:
    """The ``dbt`` beside this Python, whether or not its environment is activated.

    Raises:
        ConfigError: it is not there.
    """
    path = Path(sys.executable).with_name("dbt")
    if not path.is_file():
        raise ConfigError("dbt", f"there is no {path}", "install dbt-core and dbt-postgres into this environment")
    return str(path)


def dbt_environment(database: DatabaseSettings, target: Path) -> dict[str, str]:
    """The variables of ``profiles.yml`` from ``database.url``, and where dbt writes; a socket's folder is a host, too."""
    url = engine_url(database)
    host = url.host or url.query.get("host") or "localhost"
    sslmode = url.query.get("sslmode", "prefer")
    return {
        "DBT_POSTGRES_HOST": host if isinstance(host, str) else host[0],
        "DBT_POSTGRES_PORT": str(url.port or 5432),
        "DBT_POSTGRES_USER": url.username or "postgres",
        "DBT_ENV_SECRET_POSTGRES_PASSWORD": url.password or "",
        "DBT_POSTGRES_DATABASE": url.database or "",
        "DBT_POSTGRES_SSLMODE": sslmode if isinstance(sslmode, str) else sslmode[0],
        "DBT_TARGET_PATH": str(target),
        "DBT_LOG_PATH": str(target / "logs"),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "1",
    }


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables in this process within the block: dagster-dbt hands its own environment on to dbt."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
