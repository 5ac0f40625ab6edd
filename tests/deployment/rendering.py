"""What infra/kubernetes and infra/compose come to, as the tools that are used with them see it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY, missing_component

KUBERNETES = REPOSITORY / "infra" / "kubernetes"
COMPOSE = REPOSITORY / "infra" / "compose"
COMPONENTS = sorted(path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml"))
#: Used where there is no kubectl, which has it built in; the Go toolchain builds it.
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.1"

Manifest = dict[str, Any]


@cache
def render(folder: Path) -> tuple[Manifest, ...]:
    """All objects of a kustomization."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", str(folder)]
    elif shutil.which("go"):
        command = ["go", "run", KUSTOMIZE, "build", str(folder)]
    else:
        missing_component("no kubectl and no Go: manifests cannot be rendered")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def render_with(components: list[str], scratch: Path) -> tuple[Manifest, ...]:
    """The base with optional components, as an overlay would have them."""
    copied = scratch / "kubernetes"
    if not copied.exists():
        shutil.copytree(KUBERNETES, copied, ignore=shutil.ignore_patterns("__pycache__"))
    overlay = copied / "overlays" / "-".join(components)
    overlay.mkdir()
    content = {"resources": ["../../base"], "components": [f"../../components/{name}" for name in components]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return render(overlay)


def pod_templates(manifests: tuple[Manifest, ...]) -> dict[str, Manifest]:
    """Each workload's pod specification by the workload's name, with its labels under ``labels``."""
    return {
        item["metadata"]["name"]: {
            **item["spec"]["template"]["spec"],
            "labels": item["spec"]["template"]["metadata"]["labels"],
        }
        for item in manifests
        if item["kind"] in {"Deployment", "StatefulSet", "Job"}
    }


def containers(pod: Manifest) -> Iterator[Manifest]:
    """All containers of a pod, those that run before included."""
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def settings_of(manifests: tuple[Manifest, ...]) -> str:
    """The settings file that the pods read."""
    [found] = [item for item in manifests if item["metadata"]["name"] == "dangerous-driving-settings"]
    return str(found["data"]["settings.yaml"])


def load_compose(file: Path) -> Manifest:
    """The Compose file as compose-go, which docker compose reads files with, loads it; all profiles on."""
    if not shutil.which("go"):
        missing_component("no Go: the Compose file cannot be loaded by its reference implementation")
    done = subprocess.run(
        ["go", "run", ".", str(file)],
        cwd=COMPOSE / "schema",
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    project: Manifest = json.loads(done.stdout)
    return project
