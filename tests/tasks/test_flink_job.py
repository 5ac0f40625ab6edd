"""What the Flink job is told, and what it makes of a message; the job itself runs in `make proof-flink`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from dangerous_driving.contracts import AssessmentTask, DetectionResult
from dangerous_driving.errors import ConfigError
from dangerous_driving.messaging.topics import MAX_DEAD_LETTER_BYTES, MAX_MESSAGE_BYTES
from dangerous_driving.settings import KafkaSettings, Settings
from dangerous_driving.settings.tasks import Generator, Guarantee, TasksSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import MAX_TASK_BYTES, tasks_from_detection
from dangerous_driving.tasks.flink_job import (
    LOGIN_VARIABLE,
    arguments,
    configuration,
    sink,
    source,
    table,
    tasks_of,
)
from infra.flink.connection import SHADED, login
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


def with_picture(url: str | None, size: int) -> DetectionResult:
    """A frame of two groups; the first one's picture comes inside, the second one has none."""
    result = detection_result("sim-1", AT, groups=2)
    first, second = result.traffic_groups
    first = first.model_copy(update={"group_image_url": url, "group_image_base64": "A" * size})
    return result.model_copy(update={"traffic_groups": (first, second)})


def made_of(result: DetectionResult) -> list[AssessmentTask]:
    return [AssessmentTask.from_json(value) for _, value in tasks_of(b"sim-1", result.to_json())]


def test_a_task_that_the_topic_would_not_take_goes_without_the_picture_that_its_url_names() -> None:
    result = with_picture("mem://1", MAX_TASK_BYTES)
    first, second = tasks_from_detection(result)
    assert made_of(result) == [first.model_copy(update={"group_image_base64": None}), second]


def test_a_task_that_is_too_large_even_so_is_left_out_and_the_frames_others_are_made() -> None:
    result = with_picture(None, MAX_TASK_BYTES)
    assert made_of(result) == tasks_from_detection(result)[1:]


def test_a_picture_that_the_topic_takes_stays_in_its_task() -> None:
    result = with_picture("mem://1", MAX_TASK_BYTES - 4000)
    assert made_of(result) == tasks_from_detection(result)


def flink(guarantee: Guarantee = Guarantee.AT_LEAST_ONCE, **kafka: Any) -> Settings:
    tasks = TasksSettings(generator=Generator.FLINK, guarantee=guarantee, checkpoints=Path("/tmp/c"))  # noqa: S108
    return Settings(tasks=tasks, kafka=KafkaSettings(**kafka))


SASL: dict[str, Any] = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_username": "platform",
    "sasl_password": SecretStr('it\'s "so" \\ secret'),
}


def test_the_producer_takes_every_task_that_is_made_and_compresses_as_the_settings_say() -> None:
    options = sink(arguments([*job_arguments(flink(compression="gzip")), "--jars", "."]), None)
    assert options["properties.compression.type"] == "gzip"
    assert int(options["properties.max.request.size"]) == MAX_DEAD_LETTER_BYTES
    assert MAX_TASK_BYTES < MAX_MESSAGE_BYTES - 1024


def test_the_job_reaches_the_brokers_as_every_other_client_does(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    settings = flink(**SASL, ssl_cafile=tmp_path / "ca.pem")
    asked = arguments([*job_arguments(settings), "--jars", "."])
    secret = login(settings.kafka)
    for options in (source(asked, secret), sink(asked, secret)):
        assert options["properties.security.protocol"] == "SASL_SSL"
        assert options["properties.sasl.mechanism"] == "SCRAM-SHA-512"
        assert options["properties.ssl.truststore.type"] == "PEM"
        assert options["properties.ssl.truststore.location"] == str(tmp_path / "ca.pem")
        assert options["properties.sasl.jaas.config"] == (
            f'{SHADED}.scram.ScramLoginModule required username="platform" password="it\'s \\"so\\" \\\\ secret";'
        )
    assert not any("secret" in argument for argument in job_arguments(settings))


def test_without_a_login_the_job_has_none() -> None:
    options = source(arguments([*job_arguments(flink()), "--jars", "."]), login(flink().kafka))
    assert options["properties.security.protocol"] == "PLAINTEXT"
    assert not any("sasl" in name or "ssl" in name for name in options)


@pytest.mark.parametrize(
    ("kafka", "setting"),
    [
        (SASL | {"sasl_mechanism": "OAUTHBEARER"}, "kafka.sasl_mechanism"),
        (SASL | {"sasl_username": None}, "kafka.sasl_username"),
        ({"security_protocol": "SSL", "ssl_cafile": Path("/nowhere/ca.pem")}, "kafka.ssl_cafile"),
        ({"compression": "zstd"}, "kafka.compression"),
    ],
    ids=["mechanism", "no user", "no file", "codec"],
)
def test_what_the_job_cannot_do_is_refused_by_the_name_of_the_setting(kafka: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError) as refused:
        job_arguments(flink(**kafka))
    assert refused.value.setting == setting
    assert refused.value.remedy


def test_an_option_may_hold_any_character() -> None:
    assert table("t", {"a": "it's {x}"}) == "CREATE TABLE t (`key` BYTES, `value` BYTES) WITH ('a' = 'it''s {x}')"


def test_a_signal_that_ends_what_was_started_ends_the_job_and_the_password_is_no_argument(tmp_path: Path) -> None:
    told = tmp_path / "told"
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$$" "${LOGIN_VARIABLE}" "$@" >{told}.new\nmv {told}.new {told}\nexec sleep 60\n'
    )
    stand_in.chmod(0o755)
    (tmp_path / "settings.yaml").write_text(
        "tasks: {generator: flink}\n"
        "kafka: {security_protocol: SASL_PLAINTEXT, sasl_mechanism: PLAIN, sasl_username: me, sasl_password: geheim}\n"
    )
    started = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import signal, sys; from pathlib import Path; from infra.flink import job\n"
                # what a shell starts has its signals at their defaults; pytest's children inherit what other tests left
                "signal.signal(signal.SIGTERM, signal.SIG_DFL); signal.pthread_sigmask(signal.SIG_SETMASK, ())\n"
                f"job.PYTHON = Path({str(stand_in)!r}); job.flink_home = lambda: None; job.connector = lambda: Path('.')\n"
                f"sys.exit(job.main(['--config', {str(tmp_path / 'settings.yaml')!r}]))"
            ),
        ],
        cwd=Path(__file__).resolve().parents[2],
    )
    job = None
    try:
        deadline = time.monotonic() + 60
        while not told.exists():
            assert started.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        number, secret, *given = told.read_text().splitlines()
        job = int(number)
        started.send_signal(signal.SIGTERM)
        started.wait(30)
        with pytest.raises(ProcessLookupError):
            os.kill(job, 0)
    finally:
        started.kill()
        started.wait()
        if job is not None:
            with suppress(ProcessLookupError):
                os.kill(job, signal.SIGKILL)
    assert "geheim" in secret
    assert not any("geheim" in argument for argument in given)


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
