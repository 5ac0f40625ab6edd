"""The manifests: valid, hardened, and of one piece with the program that they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dangerous_driving import settings
from dangerous_driving.messaging.topics import Topic
from infra.kubernetes import rules
from tests.deployment.commands import SECRET, SERVICES, VERSION, refused, variables_of
from tests.deployment.rendering import (
    COMPONENTS,
    KUBERNETES,
    Manifest,
    containers,
    pod_templates,
    render,
    render_with,
    settings_of,
)

BASE, EXAMPLE = KUBERNETES / "base", KUBERNETES / "overlays" / "example"
FOLDERS = [BASE, EXAMPLE]
#: Oldest and newest release that the manifests are held against; their schemas ship with kubernetes-validate.
RELEASES = ["1.30", "1.37"]
#: Kinds of operators; `make proof-deployment` holds them against the definitions of those.
FOREIGN = {"monitoring.coreos.com", "keda.sh", "kafka.strimzi.io", "postgresql.cnpg.io"}
EVERYWHERE, SCRATCH = "0.0.0.0", "/tmp"  # noqa: S104, S108  # of a pod
UNPRIVILEGED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def is_foreign(manifest: Manifest) -> bool:
    return manifest["apiVersion"].split("/")[0] in FOREIGN


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_object_is_one_that_kubernetes_knows(folder: Path, release: str) -> None:
    manifests = render(folder)
    assert len(manifests) > 30
    for manifest in manifests:
        kubernetes_validate.validate(manifest, release, strict=True)


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_goes_with_the_base(component: str, tmp_path: Path) -> None:
    base = {(item["kind"], item["metadata"]["name"]) for item in render(BASE)}
    manifests = render_with([component], tmp_path)
    added = [item for item in manifests if (item["kind"], item["metadata"]["name"]) not in base]
    assert added
    for manifest in manifests:
        if not is_foreign(manifest):
            kubernetes_validate.validate(manifest, RELEASES[-1], strict=True)
    for manifest in added:
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def test_all_components_go_together(tmp_path: Path) -> None:
    manifests = render_with(COMPONENTS, tmp_path)
    names = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in manifests]
    assert len(names) == len(set(names))
    [tasks] = [
        item
        for item in manifests
        if item["metadata"]["name"] == "dangerous-driving-tasks" and item["kind"] == "Deployment"
    ]
    assert "replicas" not in tasks["spec"], "KEDA sets it"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_container_is_unprivileged(folder: Path) -> None:
    for name, pod in pod_templates(render(folder)).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == 10001, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(pod):
            assert container["securityContext"] == UNPRIVILEGED, (name, container["name"])
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, (name, container["name"])
            assert "memory" in container["resources"]["limits"], (name, container["name"])


def test_only_dagsters_page_and_daemon_may_ask_kubernetes() -> None:
    may = {name for name, pod in pod_templates(render(BASE)).items() if pod["automountServiceAccountToken"]}
    assert may == {"dangerous-driving-dagster-webserver", "dangerous-driving-dagster-daemon"}


@pytest.mark.parametrize(
    ("folder", "image"), [(BASE, f"dangerous-driving:{VERSION}"), (EXAMPLE, "city/dangerous-driving:0.1.0-yolo11n")]
)
def test_all_run_one_image_and_dagsters_runs_too(folder: Path, image: str) -> None:
    pods = pod_templates(render(folder))
    assert {container["image"] for pod in pods.values() for container in containers(pod)} == {image}
    [code] = pods["dangerous-driving-dagster-code"]["containers"]
    assert {"name": "DAGSTER_CURRENT_IMAGE", "value": image} in code["env"]


def test_every_service_of_the_installation_is_there() -> None:
    started = {
        container["args"][0]
        for pod in pod_templates(render(BASE)).values()
        for container in pod["containers"]
        if "command" not in container
    }
    assert started >= SERVICES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_command_exists(folder: Path) -> None:
    for name, pod in pod_templates(render(folder)).items():
        for container in containers(pod):
            command = container.get("command", ["dangerous-driving"]) + container.get("args", [])
            assert refused(command) is None, (name, refused(command))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_settings_are_accepted_with_the_variables_of_the_pods(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = render(folder)
    file = tmp_path / "settings.yaml"
    file.write_text(settings_of(manifests))
    names = {
        variable["name"]
        for pod in pod_templates(manifests).values()
        for container in containers(pod)
        for variable in container.get("env", ())
    } | documented_variables()
    assert names >= {"DD_NODE", "DD_DATABASE__URL", "DD_REALTIME__TOKEN_SECRET", "DAGSTER_POSTGRES_URL"}
    for name in names:
        monkeypatch.setenv(name, "postgresql://a:b@c/d" if name.endswith("URL") else "x" * 40)
    loaded = settings.load(file)
    assert loaded.node == "x" * 40
    assert loaded.objects.kind == "s3", "pods share no folder"


def loaded_from(manifests: tuple[Manifest, ...], folder: Path) -> settings.Settings:
    """What services read of these manifests' settings."""
    file = folder / "settings.yaml"
    file.write_text(settings_of(manifests))
    return settings.load(file)


def documented_variables() -> set[str]:
    """The variables that docs/deployment.md puts into the Secrets."""
    return variables_of(KUBERNETES.parents[1] / "docs" / "deployment.md")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_probes_ask_where_the_settings_listen(folder: Path, tmp_path: Path) -> None:
    manifests = render(folder)
    loaded = loaded_from(manifests, tmp_path)
    assert loaded.observability.host == loaded.realtime.host == EVERYWHERE
    probed = 0
    for name, pod in pod_templates(manifests).items():
        [container] = pod["containers"]
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
        if "http" not in ports:
            assert name == "dangerous-driving-migrate" or "dagster" in name
            continue
        probed += 1
        assert ports == {
            "http": loaded.realtime.port if container["args"] == ["realtime"] else loaded.observability.port
        }
        paths = {
            kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")
        }
        assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        assert {container[kind]["httpGet"]["port"] for kind in paths} == {"http"}
        assert pod["terminationGracePeriodSeconds"] >= 60
    assert probed == len(SERVICES)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_the_settings_write_lies_on_a_volume(folder: Path, tmp_path: Path) -> None:
    manifests = render(folder)
    loaded = loaded_from(manifests, tmp_path)
    assert loaded.spool.folder is not None
    assert loaded.keys.file is not None
    for name, pod in pod_templates(manifests).items():
        [container] = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        for path in (loaded.spool.folder, loaded.assessment.inline_folder, loaded.assessment.switch_file):
            assert mounts["/var/lib/dangerous-driving"] == "state", name
            assert path.is_relative_to("/var/lib/dangerous-driving"), name
        assert str(loaded.keys.file.parent) in mounts, name
        assert SCRATCH in mounts, name
        if container.get("args") in (["detect"], ["realtime"], ["notify"]):
            assert str(loaded.camera.secrets_folder) in mounts, name
        declared = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for each in containers(pod) for mount in each["volumeMounts"]} <= declared, name
    [detect] = [item for item in manifests if item["kind"] == "StatefulSet"]
    [claim] = detect["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "state"
    assert gibibytes(claim["spec"]["resources"]["requests"]["storage"]) > loaded.spool.max_bytes / 2**30


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_everyone_but_detect_waits_for_the_schema() -> None:
    waiting = {
        pod["labels"]["app.kubernetes.io/name"]
        for pod in pod_templates(render(BASE)).values()
        if any(container["name"] == "wait-for-schema" for container in pod.get("initContainers", ()))
    }
    assert waiting == SERVICES - {"detect", "redis-feed"}, "those two do without the ledger"


def test_services_policies_and_budgets_find_their_pods() -> None:
    manifests = render(BASE)
    labels = [pod["labels"] for pod in pod_templates(manifests).values()]
    ports = [
        {
            "labels": pod["labels"],
            "ports": {p["name"]: p["containerPort"] for c in pod["containers"] for p in c.get("ports", ())},
        }
        for pod in pod_templates(manifests).values()
    ]
    seen = set()
    for item in manifests:
        selector = {
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }.get(item["kind"])
        if selector is None:
            continue
        seen.add(item["kind"])
        wanted = selector(item["spec"])
        assert any(wanted.items() <= have.items() for have in labels), item["metadata"]["name"]
        if item["kind"] == "Service":
            for port in item["spec"]["ports"]:
                assert any(
                    wanted.items() <= pod["labels"].items() and port["targetPort"] in pod["ports"] for pod in ports
                ), item["metadata"]["name"]
        if item["kind"] == "NetworkPolicy":
            for rule in item["spec"].get("ingress", ()):
                opened = {port["port"] for port in rule["ports"]}
                reachable = {
                    p for pod in ports if wanted.items() <= pod["labels"].items() for p in pod["ports"].values()
                }
                assert opened <= reachable, item["metadata"]["name"]
    assert seen == {"Service", "PodDisruptionBudget", "NetworkPolicy"}


def test_no_secret_stands_in_a_manifest() -> None:
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        for document in yaml.safe_load_all(text):
            assert not (isinstance(document, dict) and document.get("kind") == "Secret"), path.name
        assert not SECRET.search(text), path.name
    for pod in pod_templates(render(EXAMPLE)).values():
        for container in containers(pod):
            for variable in container.get("env", ()):
                assert ("value" in variable) == (variable["name"] == "DAGSTER_CURRENT_IMAGE"), variable["name"]


def test_the_operators_rules_are_those_of_prometheus() -> None:
    assert rules.OUTPUT.read_text(encoding="utf-8") == rules.prometheus_rule(), "python -m infra.kubernetes.rules"


def test_the_page_is_closed_where_it_asks_for_no_token(tmp_path: Path) -> None:
    manifests = render_with(["ingress"], tmp_path)
    [ingress] = [item for item in manifests if item["kind"] == "Ingress"]
    [rule] = ingress["spec"]["rules"]
    closed = {
        path["path"]
        for path in rule["http"]["paths"]
        if path["backend"]["service"]["name"] != "dangerous-driving-realtime"
    }
    assert closed == {"/metrics", "/healthz", "/readyz"}
    [nobody] = [
        item
        for item in manifests
        if item["metadata"]["name"] == "dangerous-driving-nobody" and item["kind"] == "Service"
    ]
    assert not any(
        nobody["spec"]["selector"].items() <= pod["labels"].items() for pod in pod_templates(manifests).values()
    )


def test_the_user_of_the_brokers_has_the_rights_of_the_documentation(tmp_path: Path) -> None:
    [user] = [item for item in render_with(["kafka-strimzi"], tmp_path) if item["kind"] == "KafkaUser"]
    topics = [acl for acl in user["spec"]["authorization"]["acls"] if acl["resource"]["type"] == "topic"]
    assert {acl["resource"]["name"] for acl in topics} == {topic.value for topic in Topic}
    wanted: list[Any] = ["Read", "Write", "Describe", "DescribeConfigs", "Create", "Alter", "AlterConfigs"]
    assert all(acl["operations"] == wanted for acl in topics)


def test_scaling_follows_a_metric_and_stops_at_the_partitions(tmp_path: Path) -> None:
    [scaled] = [item for item in render_with(["keda"], tmp_path) if item["kind"] == "ScaledObject"]
    assert scaled["spec"]["maxReplicaCount"] == settings.KafkaSettings().partitions
    assert scaled["spec"]["scaleTargetRef"]["name"] in pod_templates(render(BASE))
