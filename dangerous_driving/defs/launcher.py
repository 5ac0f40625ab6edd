"""The run launcher of single machines: Dagster's own, and it notices when a run's process has been killed.

Dagster's default launcher starts each run as a child of the code server and relies on that server to report a dead
child. When the server is killed as well (the whole machine, a whole demo), the run would stay "started" for ever and its
window would never be due again. With this launcher the daemon's run monitoring finds such runs and fails them, and the
sensor launches the window anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dagster import DagsterRun, DefaultRunLauncher
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.events import DagsterEventType
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value
from typing_extensions import override

#: s until a code server counts as silent.
ASK_TIMEOUT = 10


class WatchfulRunLauncher(DefaultRunLauncher):
    """Starts runs as children of the code server, and knows whether a run's process lives."""

    @property
    @override
    def supports_check_run_worker_health(self) -> bool:
        return True

    @override
    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the run's process lives: its code server says so, or the process is there without its server."""
        server = _code_server(run)
        if server is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "no code server is noted on this run")
        known = _asks(server, run.run_id)
        if known:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if not server.socket:
            # on another machine: only what a server says counts, and a silent one may come back
            status = WorkerStatus.RUNNING if known is None else WorkerStatus.FAILED
            return CheckRunHealthResult(
                status, "its code server does not answer" if known is None else "its process ended"
            )
        process = self._process(run.run_id)
        if process is not None and _is_alive(process):
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"process {process} outlived its code server")
        return CheckRunHealthResult(WorkerStatus.FAILED, "its process was killed together with its code server")

    def _process(self, run_id: str) -> int | None:
        """The process id that the run's process wrote to the event log when it started."""
        for entry in reversed(self._instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT)):
            event = entry.dagster_event
            pid = event.engine_event_data.metadata.get("pid") if event else None
            if pid is not None:
                return int(str(pid.value))
        return None


def _code_server(run: DagsterRun) -> DagsterGrpcClient | None:
    tag = run.tags.get(GRPC_INFO_TAG)
    if tag is None:
        return None
    address: dict[str, Any] = json.loads(tag)
    return DagsterGrpcClient(
        host=address.get("host") or "localhost",
        port=address.get("port"),
        socket=address.get("socket"),
        use_ssl=bool(address.get("use_ssl", False)),
    )


def _asks(server: DagsterGrpcClient, run_id: str) -> bool | None:
    """Whether the server has the run's process; None when the server does not answer."""
    try:
        answer = server.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=ASK_TIMEOUT)
    except DagsterUserCodeUnreachableError:
        return None
    return bool(deserialize_value(answer, CanCancelExecutionResult).can_cancel)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # another user's: the number was given to a new process
    command = Path(f"/proc/{pid}/cmdline")
    # likewise, unless it is a child that Python's multiprocessing spawned; a zombie's is empty
    return b"multiprocessing" in command.read_bytes() if command.exists() else True
