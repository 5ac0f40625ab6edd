"""The dbt project: where it is found and when it is parsed. Its models: test_marts.py."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from pydantic import SecretStr

from dangerous_driving.defs import dbt
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import DatabaseSettings

PROJECT = Path(__file__).resolve().parents[2] / "dbt_project"


def database_of(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=SecretStr(url))


def test_a_socket_folder_is_the_host() -> None:
    found = dbt.dbt_environment(database_of("postgresql://postgres:@/ledger?host=/run/here"), Path("/t"))
    assert (found["DBT_POSTGRES_HOST"], found["DBT_POSTGRES_DATABASE"]) == ("/run/here", "ledger")


def test_a_server_with_password_port_and_encryption() -> None:
    url = "postgresql://writer:s%40cret@db.example:6432/traffic?sslmode=require"
    found = dbt.dbt_environment(database_of(url), Path("/t"))
    assert found["DBT_POSTGRES_HOST"] == "db.example"
    assert found["DBT_POSTGRES_PORT"] == "6432"
    assert found["DBT_POSTGRES_USER"] == "writer"
    assert found["DBT_ENV_SECRET_POSTGRES_PASSWORD"] == "s@cret"
    assert found["DBT_POSTGRES_SSLMODE"] == "require"


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBT_POSTGRES_HOST", "mine")
    monkeypatch.delenv("DBT_POSTGRES_PORT", raising=False)
    with pytest.raises(RuntimeError), dbt.environment({"DBT_POSTGRES_HOST": "other", "DBT_POSTGRES_PORT": "1"}):
        raise RuntimeError
    assert (os.environ["DBT_POSTGRES_HOST"], os.environ.get("DBT_POSTGRES_PORT")) == ("mine", None)


def test_a_folder_without_a_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"windows\.dbt_project: no dbt_project\.yml in"):
        dbt.locate_project(tmp_path)


def test_an_installed_package_uses_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "dangerous_driving"
    (package / "_dbt_project").mkdir(parents=True)
    (package / "_dbt_project" / "dbt_project.yml").touch()
    monkeypatch.setattr(dbt, "PACKAGE", package)
    assert dbt.locate_project(None) == package / "_dbt_project"


def test_a_read_only_project_keeps_its_state_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert tmp_path in dbt.state_folder(PROJECT).parents


def test_the_manifest_is_parsed_when_it_is_missing_or_stale_and_not_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, target = tmp_path / "project", tmp_path / "target"
    project.mkdir()
    target.mkdir()
    (project / "dbt_project.yml").write_text("name: one")
    parses: list[int] = []

    def parse(*_: object) -> None:
        parses.append(1)
        (target / "manifest.json").write_text('{"nodes": {}}')

    monkeypatch.setattr(dbt, "_parse", parse)
    database = database_of("postgresql://h/one")
    for _ in range(2):
        assert dbt.prepare_manifest(project, target, database) == {"nodes": {}}
    assert len(parses) == 1
    (project / "model.sql").write_text("select 1")
    dbt.prepare_manifest(project, target, database)
    assert len(parses) == 2
    (target / "manifest.json").unlink()
    dbt.prepare_manifest(project, target, database)
    assert len(parses) == 3


def test_a_broken_project_is_an_error_that_tells_where(tmp_path: Path) -> None:
    (tmp_path / "dbt_project.yml").write_text("name: broken\nprofile: nowhere\n")
    with pytest.raises(ConfigError, match=r"windows\.dbt_project: dbt cannot parse"):
        dbt.prepare_manifest(tmp_path, tmp_path, database_of("postgresql://h/one"))
