"""The dbt project: where it is found, when it is parsed, and its models on an empty and a filled ledger."""

from __future__ import annotations

import os
import subprocess
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, Row, text

from dangerous_driving.defs import dbt
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.settings import DatabaseSettings
from tests.defs.conftest import Ledger

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


@pytest.mark.integration
def test_all_models_and_tests_pass_on_an_empty_and_on_a_filled_ledger(
    database: DatabaseSettings, ledger: Engine, frames: Ledger, an_hour_ago: datetime, tmp_path: Path
) -> None:
    build(database, tmp_path)
    assert hours(ledger) == []

    hour = an_hour_ago.replace(minute=0, second=0)
    fill(ledger, frames, hour)
    build(database, tmp_path)
    # 2 frames of 2 groups of 2 objects; one answer is superseded, one group is still pending
    assert hours(ledger) == [("north-1", hour, 2, 8, 4, 3, 1, 1, 2, 1, 250.0)]


@pytest.mark.integration
def test_a_row_that_breaks_an_invariant_fails_the_build(
    database: DatabaseSettings, ledger: Engine, frames: Ledger, an_hour_ago: datetime, tmp_path: Path
) -> None:
    fill(ledger, frames, an_hour_ago)
    with transaction(ledger) as connection:
        connection.execute(text("DELETE FROM risk_assessment WHERE risk_level = 'high'"))
    with pytest.raises(AssertionError, match="camera_hourly_risk_every_assessed_group_has_one_level"):
        build(database, tmp_path)


def build(database: DatabaseSettings, target: Path) -> None:
    """Run the models as the Dagster asset does, with the same environment."""
    done = subprocess.run(
        [dbt.dbt_executable(), "build", "--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)],
        env=os.environ | dbt.dbt_environment(database, target),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def fill(ledger: Engine, frames: Ledger, hour: datetime) -> None:
    for second in (10, 20):
        frames.capture("north-1", hour + timedelta(seconds=second), groups=2)
    with transaction(ledger) as connection:
        rows = connection.execute(
            text("SELECT captured_at, task_id FROM assessment_task ORDER BY captured_at, group_index")
        ).all()
        for row, level in zip(rows, ("none", "medium", "high"), strict=False):
            insert_answer(connection, row, "live", level, current=level != "none")
        insert_answer(connection, rows[0], "backfill-1", "low", current=True)


def insert_answer(connection: Connection, row: Row[Any], run: str, level: str, *, current: bool) -> None:
    values = {"captured_at": row.captured_at, "task_id": row.task_id, "run": run, "level": level, "current": current}
    connection.execute(text(ANSWER), values)
    connection.execute(text("UPDATE assessment_task SET state = 'assessed' WHERE task_id = :task_id"), values)


ANSWER = """
INSERT INTO risk_assessment (captured_at, task_id, run, message_id, camera_id, group_index, group_bbox, risk_level,
    risk_types, description, trigger_object_ids, is_current, lane, prompt_version, model, key_hash, call_id, retry_count,
    latency, input_tokens, output_tokens, cost, raw_answer, node, assessed_at)
SELECT captured_at, task_id, :run, message_id, camera_id, group_index, group_bbox, :level, '{}', '', '{}', :current,
    'window', 'v1', 'simulated-vl', 'key_1', task_id || '_call1', 0, 1.0, 10, 5, 0.0, '{}', 'here', now()
FROM assessment_task WHERE captured_at = :captured_at AND task_id = :task_id
"""


def hours(ledger: Engine) -> list[tuple[object, ...]]:
    with transaction(ledger) as connection:
        rows = connection.execute(
            text(
                "SELECT camera_id, hour_started_at, frames, road_users_seen, groups, groups_assessed, groups_open, "
                "scenes_low, dangerous_scenes, scenes_high, dangerous_scenes_per_1000_road_users "
                "FROM marts.camera_hourly_risk ORDER BY 1, 2"
            )
        )
        return [tuple(row) for row in rows]
