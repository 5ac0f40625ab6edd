"""The real daemon and webserver on a real PostgreSQL: windows are assessed by themselves, also after everything was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import dagster as dg
import numpy as np
import psycopg
import pytest
from sqlalchemy import Engine, text

from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.defs.partitions import partition_key
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.objects import open_store
from dangerous_driving.objects.keys import group_key
from dangerous_driving.settings import DatabaseSettings, load
from dangerous_driving.simulation.llm import serving
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # s
LENGTH = 60

FoundT = TypeVar("FoundT")


def wait_for(what: str, look: Callable[[], FoundT | None], log: Path, *, patience: float = PATIENCE) -> FoundT:
    """What `look` finds, as soon as it finds something; else the end of the daemon's log."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what} did not happen; the daemon's log ends with:\n{log.read_text()[-4000:]}")


class Platform:
    """A Dagster instance with its processes, on the ledger under test."""

    def __init__(self, home: Path, ledger: Engine, instance: dg.DagsterInstance) -> None:
        self.home, self.ledger, self.instance = home, ledger, instance
        self.log = home / "daemon.log"
        self.store = open_store(load().objects)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *command, "-m", "dangerous_driving.definitions"],
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that all that belongs to it can be killed
            )

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        process = self.start("dagster._daemon", "run")
        try:
            yield process
        finally:
            stop(process)

    @contextmanager
    def webserver(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process = self.start("dagster_webserver", "--host", "127.0.0.1", "--port", str(port))
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for("the webserver's start", lambda: answers(f"{url}/server_info"), self.log)
            yield url
        finally:
            stop(process)

    def capture(self, camera_id: str, at: datetime, *, groups: int, picture: bytes = b"") -> Window:
        """A frame with pictures in the store, left to the window lane."""
        result = detection_result(camera_id, at, groups=groups)
        picture = picture or cv2.imencode(".jpg", np.full((120, 160, 3), 90, np.uint8))[1].tobytes()
        found = []
        for group in result.traffic_groups:
            key = group_key(camera_id, at, result.message_id, group.group_index)
            found.append(group.model_copy(update={"group_image_url": self.store.put(key, picture, "image/jpeg")}))
        result = result.model_copy(update={"traffic_groups": tuple(found)})
        record_detections(self.ledger, Partitions(), [result], tasks_from_detection(result), window_length=LENGTH)
        return window_of(camera_id, at, LENGTH)

    def runs(self, job: str) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs(filters=dg.RunsFilter(job_name=job)))

    def run_of(self, window: Window, *statuses: dg.DagsterRunStatus) -> dg.DagsterRun | None:
        """A run that holds the window: alone, or in a range of cameras that were captured together."""
        key = str(partition_key(window))
        found = [run for run in self.runs("assess_window") if key in partitions_of(run)]
        return next((run for run in found if run.status in statuses), None)

    def scalar(self, statement: str) -> Any:
        with transaction(self.ledger) as connection:
            return connection.scalar(text(statement))


def partitions_of(run: dg.DagsterRun) -> list[str]:
    """The first and the last partition of a run."""
    tags = ("dagster/partition", "dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    return [run.tags[tag] for tag in tags if tag in run.tags]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it with all that it started; a code server can outlive its parent for a while."""
    process.terminate()
    try:
        process.wait(90)
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def processes_of(session: int) -> list[int]:
    """All processes of the session that `start` made: daemon, code server, runs, and what they started."""
    found = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


@pytest.fixture
def llm() -> Iterator[str]:
    with serving(speed=20.0) as url:
        yield url


@pytest.fixture
def platform(
    postgres_server: EmbeddedPostgres,
    database: DatabaseSettings,
    ledger: Engine,
    llm: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Platform]:
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", home)
    name = f"dagster_{uuid.uuid4().hex[:12]}"
    for variable, value in {
        "DAGSTER_HOME": str(home),
        "DAGSTER_POSTGRES_URL": postgres_server.create_database(name),
        "DAGSTER_MAX_CONCURRENT_RUNS": "2",
        "DD_DATABASE__URL": database.url.get_secret_value(),
        "DD_OBJECTS__FOLDER": str(tmp_path / "objects"),
        "DD_LLM__BASE_URL": llm,
        "DD_LLM__MODEL": "simulated-vl",
        "DD_KEYS__SECRETS": '["sk-simulated-1", "sk-simulated-2"]',
        # no broker: the window lane goes on without one
        "DD_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "DD_KAFKA__REQUEST_TIMEOUT": "0.5",
        "DD_ASSESSMENT__WORKER_TIMEOUT": "3",
        "DD_ASSESSMENT__HEARTBEAT_INTERVAL": "0.5",
        "DD_WINDOWS__LENGTH": str(LENGTH),
        "DD_WINDOWS__LATENESS": "0",
        "DD_WINDOWS__SENSOR_INTERVAL": "1",
        "DD_WINDOWS__RETRY_DELAY": "0",
    }.items():
        monkeypatch.setenv(variable, value)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield Platform(home, ledger, instance)
    postgres_server.drop_database(name)


LAUNCH = """
mutation Launch($location: String!) {
  launchRun(executionParams: {selector: {
    jobName: "build_marts", repositoryName: "__repository__", repositoryLocationName: $location
  }}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""


def test_the_sensor_runs_closed_windows_and_the_marts_follow(platform: Platform) -> None:
    at = datetime.now(UTC) - timedelta(minutes=10)
    windows = [platform.capture(camera_id, at, groups=3) for camera_id in ("north-1", "south-2")]
    with platform.daemon(), platform.webserver() as url:
        for window in windows:
            ended = partial(platform.run_of, window, dg.DagsterRunStatus.SUCCESS)
            wait_for(f"a run of {window}", ended, platform.log)
        launched = post(f"{url}/graphql", {"query": LAUNCH, "variables": {"location": "dangerous_driving.definitions"}})
        assert launched["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", launched
        wait_for(
            "the marts' build",
            lambda: [run for run in platform.runs("build_marts") if run.status is dg.DagsterRunStatus.SUCCESS],
            platform.log,
        )
    assert 1 <= len(platform.runs("assess_window")) <= 2  # both windows share a run, unless a tick came in between
    assert platform.scalar("SELECT count(*) FROM risk_assessment WHERE is_current AND lane = 'window'") == 6
    assert platform.scalar("SELECT sum(groups_assessed) FROM marts.camera_hourly_risk") == 6
    with psycopg.connect(os.environ["DAGSTER_POSTGRES_URL"]) as connection:
        checks = connection.execute(
            "SELECT partition, execution_status FROM asset_check_executions WHERE check_name = 'nothing_forgotten' ORDER BY 1"
        ).fetchall()
    assert checks == sorted((str(partition_key(window)), "SUCCEEDED") for window in windows)


def test_a_run_killed_with_everything_around_it_is_run_again_and_asks_nothing_twice(
    platform: Platform, llm: str
) -> None:
    faults = f"{llm.removesuffix('/v1')}/admin/faults"
    window = platform.capture("north-1", datetime.now(UTC) - timedelta(minutes=10), groups=4)
    answered = "SELECT count(*) FROM risk_assessment"
    # the second half of the answers hangs until the kill
    post(faults, {"action": "hang", "amount": 0.5})
    with platform.daemon() as daemon:
        wait_for("a running window", lambda: platform.run_of(window, dg.DagsterRunStatus.STARTED), platform.log)
        wait_for("the calls of all groups", lambda: platform.scalar("SELECT count(*) = 4 FROM llm_call"), platform.log)
        for pid in processes_of(daemon.pid):
            os.kill(pid, signal.SIGKILL)
    done_before = platform.scalar(answered)
    post(faults, {"action": "restore"})
    with platform.daemon():
        again = wait_for("another run", lambda: platform.run_of(window, dg.DagsterRunStatus.SUCCESS), platform.log)
    assert again.tags["dangerous_driving/attempt"] == "2"
    assert platform.run_of(window, dg.DagsterRunStatus.FAILURE) is not None
    assert platform.scalar(answered) == 4
    assert platform.scalar("SELECT count(*) FROM llm_call") == 4 + (4 - done_before)
    assert platform.scalar("SELECT count(*) FROM llm_call WHERE status = 'lost'") == 4 - done_before
