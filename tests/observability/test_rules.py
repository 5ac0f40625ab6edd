"""Alert rules: their form, their unit tests, and two of them end to end on a real Prometheus and Alertmanager."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dangerous_driving.observability import metrics
from dangerous_driving.observability.service import ServiceProcess
from dangerous_driving.settings import ObservabilitySettings, Settings
from infra.prometheus.receiver import Receiver
from infra.prometheus.servers import HERE, Monitoring, missing, shortened
from tests.conftest import REPOSITORY, missing_component

RUNBOOKS = REPOSITORY / "docs/runbooks.md"

#: s; only a hang reaches it
PATIENCE = 60.0


@pytest.fixture
def installed() -> None:
    if (lacking := missing()) is not None:
        missing_component(lacking)


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rules_of(name: str) -> list[dict[str, Any]]:
    content = yaml.safe_load((HERE / "rules" / name).read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def eventually(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in vain waited for {what}"
        time.sleep(0.1)
    return found


@pytest.mark.usefixtures("installed")
def test_rules_and_configurations_are_what_prometheus_and_alertmanager_take() -> None:
    assert "SUCCESS" in run("promtool", "check", "rules", *sorted((HERE / "rules").glob("*.yml")))
    assert "SUCCESS" in run("promtool", "check", "config", HERE / "prometheus.yml")
    assert "SUCCESS" in run("amtool", "check-config", HERE / "alertmanager.yml")


@pytest.mark.usefixtures("installed")
def test_each_rule_fires_when_it_should_and_only_then() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", HERE / "tests/alerts.yml")


def test_no_rule_is_without_a_unit_test_that_sees_it_fire_and_one_that_sees_it_silent() -> None:
    tests = yaml.safe_load((HERE / "tests/alerts.yml").read_text())["tests"]
    looks = [look for test in tests for look in test.get("alert_rule_test", [])]
    for rule in rules_of("alerts.yml"):
        seen = [bool(look.get("exp_alerts")) for look in looks if look["alertname"] == rule["alert"]]
        assert set(seen) == {True, False}, rule["alert"]


def test_each_alert_leads_to_its_runbook() -> None:
    anchors = {f"#{title.lower()}" for title in re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)}
    found = {rule["annotations"]["runbook_url"] for rule in rules_of("alerts.yml")}
    assert found == {f"docs/runbooks.md{anchor}" for anchor in anchors}
    for rule in rules_of("alerts.yml"):
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}"


def test_rules_ask_for_nothing_that_no_service_tells() -> None:
    from prometheus_client import REGISTRY

    told = {name for collector in REGISTRY._collector_to_names for name in REGISTRY._collector_to_names[collector]}
    recorded = {rule["record"] for rule in rules_of("recording.yml")}
    for rule in (*rules_of("recording.yml"), *rules_of("alerts.yml")):
        for name in re.findall(r"[a-z0-9_]+:[a-z0-9_]+:[a-z0-9_]+", rule["expr"]):
            assert name in recorded
        expression = re.sub(r'"[^"]*"|\{[^}]*\}|[a-z0-9_]+:[a-z0-9_:]+|by \([^)]*\)', " ", rule["expr"])
        for name in re.findall(r"[a-z]+(?:_[a-z]+)+", expression):
            assert name in told | {"histogram_quantile"}, rule


def test_durations_are_divided_and_thresholds_are_not() -> None:
    rules = {
        "groups": [{"interval": "15s", "rules": [{"expr": "rate(x[5m]) > 300", "for": "2m", "labels": {"for": "2m"}}]}]
    }
    short = shortened(rules, 20)["groups"][0]
    assert short["interval"] == "1s"
    assert short["rules"][0]["expr"] == "rate(x[15s]) > 300"
    assert short["rules"][0]["for"] == "6s"
    assert shortened({"for": "1h30m"}, 60) == {"for": "90s"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service's frame, with what it tells for Prometheus; its signals stay pytest's."""
    settings = Settings(node="here", observability=ObservabilitySettings(targets_folder=tmp_path / "targets"))
    process = ServiceProcess("detect", settings)
    assert process._server is not None
    import threading

    threading.Thread(target=process._server.serve_forever, args=(0.02,), daemon=True).start()
    host, port = process._server.server_address[:2]
    process.tell_address(str(host), port)
    yield process
    process._server.shutdown()
    process._server.server_close()


@pytest.mark.integration
@pytest.mark.usefixtures("installed")
def test_a_fault_reaches_the_webhook_and_so_does_its_end(service: ServiceProcess, tmp_path: Path) -> None:
    camera = {"camera_id": "rules-north"}
    metrics.CAMERA_UP.labels(**camera).set(1)
    began = time.monotonic()
    with (
        Receiver() as receiver,
        Monitoring(tmp_path / "m", tmp_path / "targets", receiver.url, factor=60) as monitoring,
    ):
        eventually(lambda: monitoring.targets().get("detect") == "up", "a scrape")
        metrics.STAGE_SECONDS.labels(stage="level").observe(1.4, metrics.exemplar("task_id", "rules_group1"))
        metrics.CAMERA_UP.labels(**camera).set(0)
        found = receiver.wait("CameraOffline", "firing", since=began, timeout=PATIENCE, labels=camera)
        assert found is not None
        assert found.annotations["runbook_url"] == "docs/runbooks.md#cameraoffline"
        assert found.labels["severity"] == "warning"
        metrics.CAMERA_UP.labels(**camera).set(1)
        assert receiver.wait("CameraOffline", "resolved", since=began, timeout=PATIENCE, labels=camera)

        # from a slow bucket to a task; a series per bucket, and other tests of this process may have left theirs
        def tasks() -> set[str]:
            found = monitoring.exemplars('capture_to_stage_seconds_bucket{stage="level"}', 60)
            return {item["labels"]["task_id"] for series in found for item in series["exemplars"]}

        eventually(lambda: "rules_group1" in tasks(), "an exemplar")

        # the service hangs, or is killed: its file stays
        assert service._server is not None
        service._server.shutdown()
        service._server.server_close()
        down = receiver.wait("ServiceDown", "firing", since=began, timeout=PATIENCE)
        assert down is not None
        assert (down.labels["service"], down.labels["node"]) == ("detect", "here")
    metrics.CAMERA_UP.remove_by_labels(camera)
