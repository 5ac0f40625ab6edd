"""A run of Dagster and the launcher of the instance file of infra/kubernetes, without a code location."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import yaml
from dagster import DagsterInstance, DagsterRun
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.test_utils import create_run_for_test, environ

from tests.deployment.rendering import KUBERNETES, Manifest

INSTANCE = KUBERNETES / "base" / "dagster-instance.yaml"


def sections(file: Path) -> Manifest:
    """A YAML file's content."""
    content: Manifest = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


@contextmanager
def instance(folder: Path, **launcher: Any) -> Iterator[DagsterInstance]:
    """The instance file with SQLite in place of PostgreSQL, and what else its launcher is told."""
    content = sections(INSTANCE)
    content["run_launcher"]["config"] |= launcher
    kept = {name: section for name, section in content.items() if name != "storage"}
    (folder / "dagster.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    with (
        environ({"DAGSTER_HOME": str(folder)}),
        DagsterInstance.from_ref(InstanceRef.from_dir(str(folder))) as opened,
    ):
        yield opened


def launch(instance: DagsterInstance, image: str) -> DagsterRun:
    """Launch a run whose code location has this image; returns it."""
    origin = JobPythonOrigin(
        job_name="windows",
        repository_origin=RepositoryPythonOrigin(
            executable_path="/opt/venv/bin/python",
            code_pointer=ModuleCodePointer("dangerous_driving.definitions", "definitions", "/"),
            container_image=image,
            entry_point=["dagster"],
            container_context=None,
        ),
    )
    run: DagsterRun = create_run_for_test(instance, job_name="windows", job_code_origin=origin)
    instance.run_launcher.launch_run(LaunchRunContext(run, MagicMock()))
    return run
