"""A Flink of this machine alone: one job manager and task managers as processes, from the environment .venv-flink.

That environment holds apache-flink from PyPI, with all of Flink inside; the Kafka connector comes from Maven Central
(`pom.xml`). ``make flink-environment`` builds both. A task manager can be killed (-9), its Python workers with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dangerous_driving.ports import free_ports
from infra.kafka.cluster import ClusterError, copy_jars, spawn

REPOSITORY = Path(__file__).resolve().parents[2]
POM = Path(__file__).with_name("pom.xml")
PYTHON = REPOSITORY / ".venv-flink" / "bin" / "python"
START_TIMEOUT = 240.0


def connector() -> Path:
    """The folder of the Kafka connector, fetched through Maven where it is not there yet.

    Raises:
        ClusterError: Maven is missing or failed.
    """
    folder = REPOSITORY / ".cache" / "flink" / "jars-4.0.1-2.0"
    if not folder.is_dir():
        copy_jars(POM, folder)
    return folder


def flink_home() -> Path:
    """Where PyFlink keeps Flink.

    Raises:
        ClusterError: the environment is missing.
    """
    found = sorted(PYTHON.parents[1].glob("lib/python*/site-packages/pyflink/bin/taskmanager.sh"))
    if not found:
        raise ClusterError("Flink has an environment of its own: make flink-environment")
    return found[0].parents[1]


class FlinkCluster:
    """One job manager, `task_managers` task managers of `slots` slots each."""

    def __init__(self, folder: Path, *, task_managers: int = 2, slots: int = 2) -> None:
        self._folder = folder.resolve()
        self._slots = slots
        self._count = task_managers
        self._home = flink_home()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.rest_port, self._rpc_port = free_ports(2)

    @property
    def target(self) -> str:
        """Where jobs are submitted."""
        return f"127.0.0.1:{self.rest_port}"

    def start(self) -> Self:
        """Start all and wait for the slots.

        Raises:
            ClusterError: a process ended, or it took too long.
        """
        self._write_configuration()
        self._spawn("jobmanager", "jobmanager.sh")
        for number in range(1, self._count + 1):
            self.start_task_manager(number)
        self.wait_for_slots(self._count * self._slots)
        return self

    def _write_configuration(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "conf"
        shutil.copytree(self._home / "conf", configuration)
        original = (configuration / "config.yaml").read_text(encoding="utf-8")
        [options] = [line.strip() for line in original.splitlines() if line.strip().startswith("all: --add-exports")]
        (configuration / "config.yaml").write_text(
            "\n".join(
                [
                    f"env.java.opts.{options}",
                    f"env.log.dir: {self._folder / 'log'}",
                    f"env.pid.dir: {self._folder}",
                    "jobmanager.rpc.address: 127.0.0.1",
                    f"jobmanager.rpc.port: {self._rpc_port}",
                    "jobmanager.bind-host: 127.0.0.1",
                    "jobmanager.memory.process.size: 900m",
                    "taskmanager.host: 127.0.0.1",
                    "taskmanager.bind-host: 127.0.0.1",
                    "taskmanager.memory.process.size: 1400m",
                    f"taskmanager.numberOfTaskSlots: {self._slots}",
                    "rest.address: 127.0.0.1",
                    "rest.bind-address: 127.0.0.1",
                    f"rest.port: {self.rest_port}",
                    # a killed task manager is noticed in seconds, not in the default's 50
                    "heartbeat.interval: 2000",
                    "heartbeat.timeout: 10000",
                    f"io.tmp.dirs: {self._folder / 'tmp'}",
                    "",
                ]
            ),
            encoding="utf-8",
        )
        (self._folder / "tmp").mkdir()

    def _spawn(self, name: str, script: str) -> None:
        self._processes[name] = spawn(
            [str(self._home / "bin" / script), "start-foreground"],
            self._folder / f"{name}.log",
            leashed=True,
            environment=os.environ | {"FLINK_CONF_DIR": str(self._folder / "conf"), "FLINK_HOME": str(self._home)},
        )

    def start_task_manager(self, number: int) -> None:
        """Start one; it offers its slots by itself."""
        self._spawn(f"taskmanager-{number}", "taskmanager.sh")

    def kill_task_manager(self, number: int) -> None:
        """End one and its Python workers at once, as the loss of its machine does."""
        self._end(f"taskmanager-{number}")

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ask(self, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> Any:
        """A question to Flink's REST interface."""
        request = urllib.request.Request(
            f"http://{self.target}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or b"null")

    def wait_for_slots(self, count: int) -> None:
        """Wait until so many slots are there.

        Raises:
            ClusterError: a process ended, or it took too long.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise ClusterError(f"{name} ended with {process.returncode}: {self._last_words(name)}")
            try:
                if self.ask("/overview")["slots-total"] >= count:
                    return
            except (OSError, urllib.error.URLError):
                pass  # not up yet
            if time.monotonic() > deadline:
                raise ClusterError(f"Flink did not come up within {START_TIMEOUT:g} s; see {self._folder}")
            time.sleep(0.5)

    def submit(self, *arguments: str) -> str:
        """Submit the job with these arguments (see `tasks/flink_job.py`); returns its id.

        Raises:
            ClusterError: it was refused.
        """
        ended = subprocess.run(
            [
                str(PYTHON), "-m", "dangerous_driving.tasks.flink_job", "--target", self.target,
                "--jars", str(connector()), *arguments,
            ],
            env=os.environ | {"FLINK_CONF_DIR": str(self._folder / "conf")},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if ended.returncode or not ended.stdout.strip():
            raise ClusterError(f"the job was refused: {ended.stdout[-2000:]} {ended.stderr[-3000:]}")
        return ended.stdout.strip().splitlines()[-1].split()[1]

    def job(self, job_id: str) -> tuple[str, int]:
        """State of the job, and how often it was started anew."""
        overview = self.ask(f"/jobs/{job_id}")
        metrics = self.ask(f"/jobs/{job_id}/metrics?get=numRestarts")
        return str(overview["state"]), int(float(metrics[0]["value"])) if metrics else 0

    def checkpoints(self, job_id: str) -> int:
        """Completed checkpoints so far."""
        return int(self.ask(f"/jobs/{job_id}/checkpoints")["counts"]["completed"])

    def cancel(self, job_id: str) -> None:
        """End the job at once."""
        self.ask(f"/jobs/{job_id}?mode=cancel", method="PATCH")

    def _last_words(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-2000:]

    def close(self) -> None:
        """End all processes."""
        for name in list(self._processes):
            self._end(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
