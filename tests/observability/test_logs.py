"""Logs: one JSON object a line with the ids of what it is about, never a key; the shipper's configuration is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.assessment.conftest import Bench, bench, now  # noqa: F401  # fixtures
from tests.conftest import REPOSITORY, missing_component

LOGS = REPOSITORY / "infra/logs"

SERVICE = """
import sys, structlog
from dangerous_driving.observability import logging
logging.configure(level="info", service="assess", node="here")
import logging as std
with structlog.contextvars.bound_contextvars(task_id="t_group1", camera_id="north", request_id="t"):
    structlog.get_logger("dangerous_driving.assessment").info("llm_call", key_id="key_hash_1", status="ok")
std.getLogger("kafka").warning("%s is away", "a broker")
std.getLogger("kafka").info("not told")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("dangerous_driving.x").exception("broke")
"""


def test_each_line_is_an_object_with_the_ids_that_are_bound() -> None:
    import sys

    done = subprocess.run([sys.executable, "-c", SERVICE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    call, foreign, broken = [json.loads(line) for line in done.stdout.splitlines()]
    assert {
        "event": "llm_call", "task_id": "t_group1", "camera_id": "north", "request_id": "t", "key_id": "key_hash_1",
        "status": "ok", "service": "assess", "node": "here", "level": "info",
    }.items() <= call.items()  # fmt: skip
    assert call["timestamp"].endswith("Z")
    assert (foreign["event"], foreign["level"], foreign["service"]) == ("a broker is away", "warning", "assess")
    assert "ZeroDivisionError" in broken["exception"]


@pytest.mark.integration
async def test_every_call_is_a_line_with_the_ids_of_task_call_and_key(bench: Bench, now: Any) -> None:  # noqa: F811
    import structlog

    from tests.assessment.test_assessor import assess_all

    bench.record(now, groups=2)
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        await assess_all(bench)
    told = {
        (line["call_id"], line["task_id"], line["key_id"], line["status"], line["camera_id"], line["lane"])
        for line in lines
        if line["event"] == "llm_call"
    }
    assert told == set(
        bench.rows("SELECT call_id, task_id, key_hash, status, camera_id, lane FROM llm_call WHERE status = 'ok'")
    )
    assert len(told) == 2
    assert not [line for line in lines if "sk-simulated" in repr(line)]


def test_the_index_knows_the_ids_that_lines_carry() -> None:
    template = json.loads((LOGS / "index-template.json").read_text())
    fields = template["template"]["mappings"]["properties"]
    for name in ("task_id", "request_id", "camera_id", "call_id", "key_id", "alert_id", "lane", "event", "service"):
        assert fields[name] == {"type": "keyword"}, name
    assert fields["timestamp"] == {"type": "date"}


def test_rsyslog_takes_the_configuration(tmp_path: Path) -> None:
    if shutil.which("rsyslogd") is None or not list(Path("/usr/lib").glob("*/rsyslog/omelasticsearch.so")):
        missing_component("rsyslog is missing; on Debian: apt-get install rsyslog rsyslog-elasticsearch")
    text = (LOGS / "rsyslog.conf").read_text().replace("/var/lib/dangerous-driving/rsyslog", str(tmp_path))
    file = tmp_path / "rsyslog.conf"
    file.write_text(text)
    assert check(file) == 0
    file.write_text(text.replace("dynSearchIndex", "dynSearchIndx"))
    assert check(file) != 0


def check(file: Path) -> int:
    return subprocess.run(["rsyslogd", "-N1", "-f", str(file)], capture_output=True, timeout=60).returncode


def test_the_configuration_for_vector_hangs_together() -> None:
    content = yaml.safe_load((LOGS / "vector.yaml").read_text())
    parts = content["sources"] | content["transforms"] | content["sinks"]
    assert len(parts) == 3
    for part in (*content["transforms"].values(), *content["sinks"].values()):
        assert set(part["inputs"]) <= parts.keys()
    assert content["sinks"]["opensearch"]["bulk"]["index"].startswith("dangerous-driving-")
