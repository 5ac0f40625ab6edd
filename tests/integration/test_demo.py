"""The demo as a user runs it: one command, real processes, a real page, and kills at the worst moments."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import psycopg
import pytest
from pydantic import SecretStr

from dangerous_driving.demo.parts import FOLDER_VARIABLE
from dangerous_driving.ports import free_port
from dangerous_driving.settings import DatabaseSettings
from infra.grafana import generate, queries
from infra.prometheus.servers import Monitoring
from tests.chromium import PAINTED, chromium
from tests.observability.exposition import problems, told

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

COMMAND = [sys.executable, "-m", "dangerous_driving.cli"]


def eventually(condition: Callable[[], Any], *, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.25)
    raise AssertionError("it did not come true in time")


@dataclass
class RunningDemo:
    process: subprocess.Popen[str]
    page: str
    output: Path

    def part(self, command: str) -> psutil.Process | None:
        """The living process of one service."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # also a zombie: it was killed and is not yet restarted
                if command in child.cmdline():
                    return child
        return None

    def ready(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        try:
            with urllib.request.urlopen(self.page + "readyz", timeout=2):
                return True
        except OSError:
            return False

    def wait(self, seconds: float) -> str:
        code = self.process.wait(seconds)
        said = self.output.read_text()
        assert code == 0, said
        return said


@contextmanager
def demo(folder: Path, *arguments: str, seconds: float, dagster: bool = True) -> Iterator[RunningDemo]:
    page_port, dagster_port = free_port(), free_port()
    output = folder.with_suffix(f".{time.monotonic_ns()}.log")
    with output.open("w") as log:
        process = subprocess.Popen(
            [
                *COMMAND, "demo",
                "--seconds", str(seconds), "--data-dir", str(folder), "--port", str(page_port),
                *(("--dagster-port", str(dagster_port)) if dagster else ("--no-dagster",)), *arguments,
            ],
            stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        yield RunningDemo(process, f"http://127.0.0.1:{page_port}/", output)
    except BaseException as error:
        error.add_note(f"the demo, exit code {process.poll()}, said:\n{output.read_text()}")
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def real_clips(shared: Path) -> list[str]:
    return [
        "--source", str(shared / "samples/clips/junction_cars_cyclist.mp4"),
        "--source", str(shared / "samples/clips/highway_cars.mp4"),
        "--weights", str(shared / "models/yolov8n.onnx"),
    ]  # fmt: skip


def left_running(folder: Path) -> list[str]:
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(FOLDER_VARIABLE) == str(folder):
                left.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return left


def verify(folder: Path) -> str:
    done = subprocess.run(
        [*COMMAND, "verify", "--grace", "0", "--data-dir", str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number(said: str, name: str, *, of: str = r"\d+") -> int:
    """The first number of a line of the summary, or that of a named count in it."""
    line = re.search(rf"^\s*{name}  (.*)$", said, re.MULTILINE)
    assert line, f"no line {name!r} in {said}"
    found = re.search(r"\d+" if of == r"\d+" else rf"(\d+) {of}", line.group(1))
    return int(found.group(0 if of == r"\d+" else 1)) if found else 0


@contextmanager
def ledger_of(folder: Path) -> Iterator[psycopg.Connection[Any]]:
    from dangerous_driving.ledger.embedded import EmbeddedPostgres

    server = EmbeddedPostgres(folder / "postgres")
    try:
        with psycopg.connect(server.url("dangerous_driving")) as connection:
            yield connection
    finally:
        server.close()


def look_at_the_page(address: str, picture: Path) -> None:
    """In a real browser: the cameras' frames with boxes, an alert, and nothing to complain of in the console."""
    problems: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.wait_for_selector("#alerts [data-alert]", timeout=240_000)
        page.wait_for_selector("#tiles canvas", timeout=60_000)
        tiles = page.locator("#tiles canvas")
        # the alert's camera has had a frame; that of another may still be rendered on a busy machine
        eventually(lambda: any(tiles.nth(number).evaluate(PAINTED) > 0 for number in range(tiles.count())), seconds=60)
        assert "imulated" in page.locator("body").inner_text()
        page.screenshot(path=picture)
    assert problems == []


def look_at_the_metrics(folder: Path) -> None:
    """Each service tells where it is, and there what the page about metrics says."""

    def answers() -> dict[str, str]:
        found = {}
        for file in sorted((folder / "targets").glob("*.json")):
            (group,) = json.loads(file.read_text())
            with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics", timeout=10) as answer:
                found[group["labels"]["service"]] = answer.read().decode()
        return found

    texts = answers()
    assert {"detect", "tasks", "assess", "alerts", "realtime", "exporter"} <= texts.keys()
    assert [problem for service, text in texts.items() for problem in problems(service, text)] == []
    seen = {service: told(text) for service, text in texts.items()}
    assert {"detection_total", "camera_up", "capture_to_stage_seconds"} <= seen["detect"].keys()
    assert {"llm_calls_total", "api_key_status"} <= seen["assess"].keys()
    # lag is told once a group has looked; `assess` has been killed and started again
    eventually(lambda: "kafka_consumer_lag" in told(answers()["assess"]), seconds=180)
    assert {"kafka_group_lag", "api_keys", "ledger_tasks_waiting"} <= seen["exporter"].keys()


def dashboard_queries(source: str) -> list[queries.PanelQuery]:
    found = [
        query for path in sorted(generate.FOLDER.glob("*.json")) for query in queries.panel_queries(queries.read(path))
    ]
    return [query for query in found if query.source == source]


def look_at_the_dashboards(monitoring: Monitoring) -> None:
    """What Prometheus has scraped of the running services answers every panel."""
    empty = dashboard_queries("promql")
    print(f"\n{len(empty)} queries of Prometheus")

    def all_answered() -> bool:
        for query in tuple(empty):
            expression = queries.expand_promql(query.text, timedelta(seconds=30), timedelta(minutes=2))
            if rows := queries.rows_of_promql(monitoring.query(expression)):
                print(f"{query.name}: {rows} series")
                empty.remove(query)
        return not empty

    try:
        eventually(all_answered, seconds=180)
    except AssertionError:
        raise AssertionError(f"no rows: {[(query.name, query.text) for query in empty]}") from None


def judge_an_alert(page: str, ledger_url: str) -> None:
    with psycopg.connect(ledger_url) as connection:
        row = connection.execute("SELECT alert_id FROM alert WHERE state <> 'withdrawn' LIMIT 1").fetchone()
    assert row is not None
    request = urllib.request.Request(
        f"{page}api/alerts/{row[0]}/reject",
        data=b'{"by": "test"}',
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def look_at_the_dashboards_of_the_ledger(ledger_url: str, folder: Path) -> None:
    """The marts pass their tests on the rows of the demo, and every panel of the ledger has rows."""
    from tests.defs.conftest import build

    build(DatabaseSettings(url=SecretStr(ledger_url)), folder / "dbt-test")
    since, until = datetime.now(UTC) - timedelta(days=2), datetime.now(UTC)
    asked = dashboard_queries("sql")
    print(f"\n{len(asked)} queries of the ledger")
    with psycopg.connect(ledger_url) as connection:
        cameras = [row[0] for row in connection.execute("SELECT camera_id FROM marts.dim_cameras").fetchall()]
        empty = []
        for query in asked:
            statement = queries.expand_sql(query.text, since, until, {"camera": cameras})
            rows = connection.execute(statement.encode()).fetchall()
            print(f"{query.name}: {len(rows)} rows")
            if not rows or all(value is None for row in rows for value in row):
                empty.append(query.name)
    # nothing is evaluated in a demo; tests/grafana asks these panels of a ledger in which something was
    assert {name for name in empty if not name.startswith("evaluation / ")} <= NOTHING_WRONG


#: Panels of a demo in which everything is well: every window is complete in the end; no receiver is configured.
NOTHING_WRONG = {
    "data-quality / Windows that are not complete, the oldest first",
    "safety / Capture to notification",
}


def test_a_run_with_a_killed_assessor_ends_with_every_task_assessed_once(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with demo(folder, seconds=800) as running:
        eventually(running.ready, seconds=180)
        assessor = eventually(lambda: running.part("assess"), seconds=60)
        ledger_url = running_ledger(folder)
        # in the middle: tasks are claimed, calls are under way
        eventually(lambda: count(ledger_url, "SELECT count(*) FROM llm_call WHERE status = 'started'") > 0, seconds=240)
        assessor.kill()
        eventually(lambda: running.part("assess") not in (None, assessor), seconds=120)

        with Monitoring(tmp_path / "monitoring", folder / "targets", "http://127.0.0.1:9/", factor=15) as monitoring:
            look_at_the_page(running.page, tmp_path / "page.png")
            look_at_the_metrics(folder)
            judge_an_alert(running.page, ledger_url)
            look_at_the_dashboards(monitoring)
        enough = "SELECT least((SELECT count(*) FROM frame), (SELECT count(*) FROM risk_assessment))"
        eventually(lambda: count(ledger_url, enough) > 20, seconds=240)
        running.process.send_signal(signal.SIGUSR1)  # the capture is over
        said = running.wait(700)
    assert left_running(folder) == []
    assert number(said, "frames") > 20
    assert number(said, "groups") > 20
    assert number(said, "tasks", of="assessed") > 20
    assert number(said, "tasks", of="pending") + number(said, "tasks", of="claimed") == 0
    assert number(said, "alerts") > 0
    assert number(said, "restarted", of="assess") == 1
    assert number(said, "dagster runs", of="success") >= 1
    assert number(said, "window checks", of="succeeded") >= 1
    assert number(said, "windows", of="open") == 0
    assert "no violation" in verify(folder)

    with ledger_of(folder) as ledger:
        look_at_the_dashboards_of_the_ledger(ledger_url, tmp_path)
        [(tasks, assessed)] = ledger.execute(
            "SELECT count(*), count(*) FILTER (WHERE (SELECT count(*) FROM risk_assessment r WHERE r.task_id = t.task_id"
            " AND r.is_current) = 1) FROM assessment_task t"
        ).fetchall()
        assert tasks == assessed > 0
        [(lost,)] = ledger.execute("SELECT count(*) FROM llm_call WHERE status = 'lost'").fetchall()
        assert lost > 0
        [(unpublished,)] = ledger.execute("SELECT count(*) FROM risk_assessment WHERE published_at IS NULL").fetchall()
        assert unpublished == 0


def test_after_a_kill_of_the_whole_demo_a_second_start_finishes_what_was_captured(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with demo(folder, *real_clips(shared), seconds=600, dagster=False) as running:
        eventually(running.ready, seconds=180)
        ledger_url = running_ledger(folder)
        eventually(lambda: count(ledger_url, "SELECT count(*) FROM risk_assessment") > 10, seconds=240)
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        captured = len(list((folder / "objects").rglob("frames/**/*.json")))
    with demo(folder, *real_clips(shared), seconds=5, dagster=False) as running:
        said = running.wait(700)
    assert number(said, "frames") >= captured
    assert number(said, "tasks", of="pending") + number(said, "tasks", of="claimed") == 0
    assert "no violation" in verify(folder)
    assert left_running(folder) == []


def running_ledger(folder: Path) -> str:
    """Address of the running demo's ledger, from the settings that its services read."""
    import yaml

    content = yaml.safe_load((folder / "settings.yaml").read_text())
    url: str = content["database"]["url"]
    return url


def count(url: str, query: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        found: int = row[0]
        return found


ENVIRONMENTS = {
    "an endpoint that is not there": {"DD_KEYS__SECRETS": '["sk-1"]', "DD_LLM__BASE_URL": "http://127.0.0.1:9/v1"},
    "keys without their endpoint": {"DD_KEYS__SECRETS": '["sk-1"]'},
    "a key that is blank": {"DD_KEYS__SECRETS": '[" "]', "DD_LLM__BASE_URL": "http://127.0.0.1:9/v1"},
    "a setting that is unknown": {"DD_KAFKA__BOOTSTRAP": "here:9092"},
}
BAD = {
    "an endpoint that is not there": ([], "llm.base_url"),
    "keys without their endpoint": ([], "llm.base_url"),
    "a key that is blank": ([], "keys.secrets"),
    "a setting that is unknown": ([], "kafka.bootstrap"),
    "a missing clip": (["--source", "nowhere.mp4"], "--source"),
    "a clip that is text": (["--source", "{text}"], "--source"),
    "a scene that is not rendered": (["--source", "simulated:nonsense"], "nonsense"),
    "a real picture without weights": (["--source", "{picture}"], "--weights"),
    "missing weights": (["--weights", "nowhere.onnx"], "--weights"),
    "weights of another kind": (["--weights", "{text}"], "--weights"),
    "a page's port in use": (["--port", "{port}"], "--port"),
    "dagster's port in use": (["--dagster-port", "{port}"], "--dagster-port"),
    "somebody else's folder": (["--data-dir", "{folder}"], "--data-dir"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_sentence_and_nothing_left_running(case: str, tmp_path: Path) -> None:
    text, picture = tmp_path / "text.mp4", tmp_path / "picture.png"
    text.write_text("not a video")
    cv2.imwrite(str(picture), np.zeros((48, 64, 3), np.uint8))
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        values = {
            "text": str(text),
            "picture": str(picture),
            "port": str(busy.getsockname()[1]),
            "folder": str(tmp_path),
        }
        arguments, named = BAD[case]
        defaults = {
            "--port": str(free_port()),
            "--dagster-port": str(free_port()),
            "--data-dir": str(tmp_path / "demo"),
        }
        defaults |= dict(zip(arguments[::2], (item.format(**values) for item in arguments[1::2]), strict=True))
        done = subprocess.run(
            [*COMMAND, "demo", *(item for pair in defaults.items() for item in pair)],
            capture_output=True, text=True, timeout=120, env=os.environ | ENVIRONMENTS.get(case, {}),
        )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stderr.strip().splitlines()
    assert len(said) == 1
    assert named in said[0]
    assert not (tmp_path / "demo").exists()
    assert left_running(tmp_path / "demo") == []
