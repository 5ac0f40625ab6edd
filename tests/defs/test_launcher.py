"""A run whose process is gone is found, and one that lives is left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher.base import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from dangerous_driving.defs.launcher import WatchfulRunLauncher


@dg.job
def nothing() -> None: ...


@pytest.fixture
def launcher(instance: dg.DagsterInstance) -> WatchfulRunLauncher:
    launcher = WatchfulRunLauncher()
    launcher.register_instance(instance)
    return launcher


def run_of(instance: dg.DagsterInstance, server: dict[str, object] | None, *, pid: int | None = None) -> dg.DagsterRun:
    tags = {GRPC_INFO_TAG: json.dumps(server)} if server else {}
    run = instance.create_run_for_job(nothing, tags=tags, status=dg.DagsterRunStatus.STARTED)
    if pid is not None:
        instance.report_engine_event("Started process for run.", run, EngineEventData.in_process(pid))
    return run


@contextmanager
def spawned() -> Iterator[int]:
    """A process as the code server starts them for runs."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=theirs.recv, daemon=True)
    process.start()
    try:
        assert process.pid
        yield process.pid
    finally:
        process.kill()
        process.join()
        ours.close()
        theirs.close()


def silent(folder: Path) -> dict[str, object]:
    return {"host": "localhost", "socket": str(folder / "nobody-listens")}


def test_monitoring_may_ask_it(launcher: WatchfulRunLauncher) -> None:
    assert launcher.supports_check_run_worker_health


def test_a_killed_process_is_found(launcher: WatchfulRunLauncher, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with spawned() as pid:
        run = run_of(instance, silent(tmp_path), pid=pid)
    assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED


def test_a_process_that_outlived_its_code_server_goes_on(
    launcher: WatchfulRunLauncher, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with spawned() as pid:
        found = launcher.check_run_worker_health(run_of(instance, silent(tmp_path), pid=pid))
    assert found.status is WorkerStatus.RUNNING


def test_another_process_that_got_the_same_number_is_not_taken_for_it(
    launcher: WatchfulRunLauncher, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run = run_of(instance, silent(tmp_path), pid=os.getpid())
    assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED


def test_a_run_that_never_named_its_process_is_dead_with_its_server(
    launcher: WatchfulRunLauncher, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    assert launcher.check_run_worker_health(run_of(instance, silent(tmp_path))).status is WorkerStatus.FAILED


def test_a_server_on_another_machine_may_come_back(launcher: WatchfulRunLauncher, instance: dg.DagsterInstance) -> None:
    run = run_of(instance, {"host": "127.0.0.1", "port": 1})
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_a_run_of_another_launcher_is_left_alone(launcher: WatchfulRunLauncher, instance: dg.DagsterInstance) -> None:
    assert launcher.check_run_worker_health(run_of(instance, None)).status is WorkerStatus.RUNNING
