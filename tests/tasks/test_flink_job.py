"""What the Flink job is told, and what it makes of a message; the job itself runs in `make proof-flink`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dangerous_driving.contracts import AssessmentTask
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import Settings
from dangerous_driving.settings.tasks import Generator, Guarantee, TasksSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection
from dangerous_driving.tasks.flink_job import arguments, configuration, tasks_of
from infra.flink.job import job_arguments

AT = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_message_makes_the_tasks_that_the_service_makes() -> None:
    result = detection_result("sim-1", AT, groups=3)
    made = list(tasks_of(b"sim-1", result.to_json()))
    assert [key for key, _ in made] == [b"sim-1"] * 3
    assert [AssessmentTask.from_json(value) for _, value in made] == tasks_from_detection(result)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"sim-1", b"no json"),
        (None, None),
        (b"another", detection_result("sim-1", AT).to_json()),
        (b"sim-1", detection_result("sim-1", datetime.now(UTC) + timedelta(days=3)).to_json()),
    ],
    ids=["bytes", "nothing", "key", "future"],
)
def test_what_the_service_sets_aside_makes_no_task(key: bytes | None, value: bytes | None) -> None:
    assert list(tasks_of(key, value)) == []


def flink(guarantee: Guarantee) -> Settings:
    return Settings(tasks=TasksSettings(generator=Generator.FLINK, guarantee=guarantee, checkpoints=Path("/tmp/c")))  # noqa: S108


@pytest.mark.parametrize(
    ("guarantee", "mode"), [(Guarantee.EXACTLY_ONCE, "EXACTLY_ONCE"), (Guarantee.AT_LEAST_ONCE, "AT_LEAST_ONCE")]
)
def test_the_guarantee_is_a_setting(guarantee: Guarantee, mode: str, tmp_path: Path) -> None:
    asked = arguments([*job_arguments(flink(guarantee)), "--jars", str(tmp_path)])
    settings = configuration(asked, tmp_path)
    assert settings["execution.checkpointing.mode"] == mode
    assert settings["execution.checkpointing.interval"] == "10000 ms"
    assert settings["python.executable"] == settings["python.client.executable"] == sys.executable


def test_a_cluster_is_brought_what_calls_python(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "flink-python-9.jar").touch()
    given = [*job_arguments(flink(Guarantee.AT_LEAST_ONCE)), "--jars", str(tmp_path)]
    assert "flink-python" not in configuration(arguments(given), tmp_path)["pipeline.jars"]
    remote = configuration(arguments([*given, "--target", "flink:8081"]), tmp_path)
    assert "flink-python-9.jar" in remote["pipeline.jars"]
    assert (remote["rest.address"], remote["rest.port"]) == ("flink", "8081")


def test_never_both() -> None:
    with pytest.raises(ConfigError, match=r"tasks\.generator"):
        job_arguments(Settings())
