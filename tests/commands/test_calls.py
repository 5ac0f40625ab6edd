"""`dangerous-driving calls …` against a real ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
import yaml
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from dangerous_driving.commands.calls import begin_of, calls
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import DatabaseSettings
from tests.realtime.test_operations_rest import a_call

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def settings_file(database: DatabaseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "260")
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"database": {"url": database.url.get_secret_value()}}), encoding="utf-8")
    return file


def ask(settings_file: Path, *arguments: str) -> Result:
    app = typer.Typer()
    app.command()(calls)
    return CliRunner().invoke(app, [*arguments, "--config", str(settings_file)])


@pytest.mark.integration
def test_calls_are_found_by_task_camera_and_time(settings_file: Path, ledger: Engine) -> None:
    for number in range(3):
        a_call(ledger, number)
    a_call(ledger, 3, camera="south", status="timeout")
    a_call(ledger, 4, begun=datetime.now(UTC) - timedelta(days=3))
    of_task = ask(settings_file, "--task", "task1").stdout
    assert "task1" in of_task
    assert "task2" not in of_task
    assert "0.40 s" in of_task
    assert "1.20 s" in of_task
    assert "900+40" in of_task
    of_camera = ask(settings_file, "--camera", "north", "--since", "1h").stdout
    assert [f"task{number}" in of_camera for number in range(5)] == [True, True, True, False, False]
    assert "3 calls" in of_camera
    assert "task4" in ask(settings_file, "--task", "task4").stdout  # however long ago
    assert "timeout" in ask(settings_file, "--status", "timeout").stdout
    assert "there are older ones" in ask(settings_file, "--limit", "2").stdout
    lines = ask(settings_file, "--camera", "south", "--json").stdout.splitlines()
    (call,) = [json.loads(line) for line in lines]
    assert (call["task_id"], call["status"], call["key_hash"]) == ("task3", "timeout", "key_hash_1")


def test_a_time_may_be_told_as_a_span_or_as_itself() -> None:
    assert begin_of("90m", now=NOW) == NOW - timedelta(minutes=90)
    assert begin_of("2026-02-28T08:00", now=NOW) == datetime(2026, 2, 28, 8, tzinfo=UTC)
    assert begin_of("2026-02-28T08:00+01:00", now=NOW) == datetime(2026, 2, 28, 7, tzinfo=UTC)
    assert begin_of(None, now=NOW) == NOW - timedelta(days=1)
    with pytest.raises(ConfigError, match="--since"):
        begin_of("yesterday", now=NOW)
