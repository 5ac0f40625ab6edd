"""Dagster on Kubernetes: its instance file, and the Job that dagster-k8s makes of a run by it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import kubernetes_validate
import pytest
from dagster import QueuedRunCoordinator
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster_k8s import K8sRunLauncher, client
from kubernetes.client import ApiClient

from tests.conftest import REPOSITORY
from tests.deployment.rendering import KUBERNETES, Manifest, containers, pod_templates, render
from tests.deployment.runs import INSTANCE, instance, launch, sections

SHARED = ("storage", "run_monitoring", "run_retries", "freshness", "retention", "telemetry", "nux", "run_coordinator")


def test_the_instance_differs_from_a_machines_only_in_what_is_kubernetes_own() -> None:
    machine, cluster = sections(REPOSITORY / "dagster_home" / "dagster.yaml"), sections(INSTANCE)
    for name in ("poll_interval_seconds", "start_timeout_seconds"):
        del machine["run_monitoring"][name], cluster["run_monitoring"][name]
    del (
        machine["run_coordinator"]["config"]["max_concurrent_runs"],
        cluster["run_coordinator"]["config"]["max_concurrent_runs"],
    )
    for section in SHARED:
        assert cluster[section] == machine[section], section
    assert cluster.keys() - {*SHARED} == {"run_launcher", "compute_logs"}
    assert machine.keys() - {*SHARED} == {"run_launcher", "code_servers"}


def test_the_workspace_asks_the_code_location_where_it_listens() -> None:
    [location] = sections(KUBERNETES / "base" / "dagster-workspace.yaml")["load_from"]
    [service] = [
        item
        for item in render(KUBERNETES / "base")
        if item["kind"] == "Service" and item["metadata"]["name"] == location["grpc_server"]["host"]
    ]
    [port] = service["spec"]["ports"]
    [code] = pod_templates(render(KUBERNETES / "base"))["dangerous-driving-dagster-code"]["containers"]
    assert location["grpc_server"]["port"] == port["port"] == int(code["command"][code["command"].index("--port") + 1])


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manifest]:
    """What the launcher of the instance file would send to Kubernetes for a run."""
    monkeypatch.setattr("dagster_k8s.launcher.load_kubernetes_config", lambda **_: None)  # outside of a cluster
    with instance(tmp_path) as opened:
        launcher = opened.run_launcher
        assert isinstance(launcher, K8sRunLauncher)
        launcher._api_client = MagicMock()
        launch(opened, "city/dangerous-driving:7")
        body = launcher._api_client.create_namespaced_job_with_retries.call_args.kwargs["body"]
        yield ApiClient().sanitize_for_serialization(body)


def test_dagster_loads_every_part_that_the_instance_names(tmp_path: Path) -> None:
    with instance(tmp_path) as opened:
        assert isinstance(opened.compute_log_manager, NoOpComputeLogManager)
        assert isinstance(opened.run_coordinator, QueuedRunCoordinator)
        assert opened.get_concurrency_config().run_queue_config
        assert opened.run_monitoring_enabled


def test_a_run_becomes_a_job_that_kubernetes_takes(job: Manifest) -> None:
    kubernetes_validate.validate(job, "1.37", strict=True)
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == "city/dangerous-driving:7", "that of the code location"
    # the image's own entry point is our command line
    assert container["command"] == ["/usr/bin/env"]
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert json.loads(container["args"][3])["__class__"] == "ExecuteRunArgs"


def test_a_runs_pod_is_as_unprivileged_as_all_others(job: Manifest) -> None:
    service = pod_templates(render(KUBERNETES / "base"))["dangerous-driving-dagster-code"]
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [like] = service["containers"]
    assert container["securityContext"] == like["securityContext"]
    expected = {name: value for name, value in service["securityContext"].items() if name != "fsGroupChangePolicy"}
    assert pod["securityContext"] == expected
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "dangerous-driving-run"
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "dangerous-driving"


def test_a_runs_pod_has_the_volumes_and_secrets_of_the_others(job: Manifest) -> None:
    manifests = render(KUBERNETES / "base")
    [like] = pod_templates(manifests)["dangerous-driving-dagster-code"]["containers"]
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {mount["mountPath"] for mount in like["volumeMounts"] if mount["name"] != "instance"}
    known = {item["metadata"]["name"] for item in manifests if item["kind"] == "ConfigMap"}
    assert {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume} <= known
    used = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    used |= {source["secretRef"]["name"] for source in container["envFrom"]}
    assert used == {"dangerous-driving-keys", "dangerous-driving-environment", "dangerous-driving-dagster"}
    accounts = {item["metadata"]["name"] for item in manifests if item["kind"] == "ServiceAccount"}
    assert pod["serviceAccountName"] in accounts


def test_the_role_is_what_the_client_asks_for() -> None:
    """Each call of dagster-k8s' client that the launcher can come to is allowed, and nothing beyond."""
    [role] = [item for item in render(KUBERNETES / "base") if item["kind"] == "Role"]
    allowed = {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    source = inspect.getsource(client.DagsterKubernetesClient)
    calls = {
        "create_namespaced_job(": ("create", "jobs"),
        "list_namespaced_job(": ("list", "jobs"),
        "delete_namespaced_job(": ("delete", "jobs"),
        "read_namespaced_job_status(": ("get", "jobs/status"),
        "read_namespaced_pod(": ("get", "pods"),
        "list_namespaced_pod(": ("list", "pods"),
        "delete_namespaced_pod(": ("delete", "pods"),
        "read_namespaced_pod_log(": ("get", "pods/log"),
        "list_namespaced_event(": ("list", "events"),
    }
    for call, right in calls.items():
        assert (call in source) == (right in allowed), call
    assert allowed == set(calls.values())
    assert {f"{name}(" for name in re.findall(r"_api\.(\w+)\(", source)} == calls.keys()


def test_every_container_of_dagster_reads_the_instance_file() -> None:
    for name, pod in pod_templates(render(KUBERNETES / "base")).items():
        if "dagster" not in name:
            continue
        for container in containers(pod):
            mounts: dict[str, Any] = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert mounts["/var/lib/dangerous-driving/dagster/dagster.yaml"]["subPath"] == "dagster.yaml"
            assert mounts["/var/lib/dangerous-driving/dagster"]["name"] == "dagster-home", "writable: dbt's manifest"
