"""Where a service can be scraped is told in a file, which goes with a clean end and stays after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from dangerous_driving.errors import ConfigError
from dangerous_driving.observability.targets import Target

SERVICE = """
import sys
from pathlib import Path
from dangerous_driving.observability.service import ServiceProcess
from dangerous_driving.settings import ObservabilitySettings, Settings
settings = Settings(node="here", observability=ObservabilitySettings(targets_folder=Path(sys.argv[1])))
with ServiceProcess("assess", settings) as process:
    process.ready()
    process.stop.wait()
"""


def started(folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    process = subprocess.Popen([sys.executable, "-c", SERVICE, str(folder)], stdout=subprocess.DEVNULL)
    file = folder / "assess.json"
    deadline = time.monotonic() + 60
    while not file.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, file


def test_the_file_leads_to_the_metrics_and_goes_with_a_clean_end(tmp_path: Path) -> None:
    process, file = started(tmp_path / "targets")
    try:
        (group,) = json.loads(file.read_text())
        assert group["labels"] == {"service": "assess", "node": "here"}
        with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics", timeout=10) as answer:
            assert b"capture_to_stage_seconds" in answer.read()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not file.exists()


def test_the_file_of_a_killed_service_stays_so_that_it_is_reported_down(tmp_path: Path) -> None:
    process, file = started(tmp_path)
    process.kill()
    process.wait()
    assert file.exists()


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1:9"), ("0.0.0.0", "edge-1:9"), ("::", "edge-1:9"), ("::1", "[::1]:9")],  # noqa: S104
)
def test_an_address_that_others_can_ask(host: str, shown: str, tmp_path: Path) -> None:
    Target(tmp_path, "tasks", "edge-1").write(host, 9)
    (group,) = json.loads((tmp_path / "tasks.json").read_text())
    assert group["targets"] == [shown]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"observability\.targets_folder"):
        Target(tmp_path / "file", "tasks", "here").write("127.0.0.1", 9)
