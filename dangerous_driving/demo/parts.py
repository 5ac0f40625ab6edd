"""The processes of a demo: started, watched, restarted when they die, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dangerous_driving.errors import DangerousDrivingError
from dangerous_driving.settings import ENV_PREFIX, SECRET_PREFIX

#: Marks every process of a demo with its folder, so that the next start finds what a killed one left running.
FOLDER_VARIABLE = "DANGEROUS_DRIVING_DEMO_FOLDER"


class PartFailedError(DangerousDrivingError):
    """A part of the demo died more often than is tolerated, or did not become ready."""


@dataclass
class Part:
    """One process. ``restarts`` counts how often it was started again after it died."""

    name: str
    argv: Sequence[str]
    log: Path
    environment: dict[str, str]
    max_restarts: int
    ready_url: str | None = None
    restarts: int = 0
    ended: bool = False  # on purpose
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _restart_at: float = 0.0

    def start(self) -> None:
        """Start the process; its output goes to the log, its standard input is the leash."""
        self._let_go()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  # our own programs
                self.argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which ends the parts in order
            )

    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def watch(self) -> bool:
        """Restart the process if it died, with a growing pause; returns whether it did so now.

        Raises:
            PartFailedError: it died too often.
        """
        if self.ended or self.running() or self.process is None:
            return False
        if self._restart_at == 0.0:
            if self.restarts >= self.max_restarts:
                raise PartFailedError(
                    f"{self.name} died {self.restarts + 1} times (exit code {self.process.returncode}): {last_words(self.log)}"
                )
            self._restart_at = time.monotonic() + min(2.0**self.restarts * 0.5, 10.0)
        if time.monotonic() < self._restart_at:
            return False
        self._restart_at = 0.0
        self.restarts += 1
        self.start()
        return True

    def terminate(self) -> None:
        """Ask the process to stop."""
        self.ended = True
        if self.running() and self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Wait for its end; after `seconds` it is killed."""
        if self.process is None:
            return
        try:
            self.process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._let_go()

    def _let_go(self) -> None:
        if self.process is not None and self.process.stdin:
            self.process.stdin.close()


def last_words(log: Path, *, lines: int = 3) -> str:
    """The last lines of a log, for an error message."""
    try:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "(no log)"
    return " | ".join(said[-lines:])[-600:] or "(the log is empty)"


def own_command(*arguments: str) -> list[str]:
    """A command of this package in this Python, on a leash."""
    return [sys.executable, "-m", "dangerous_driving.cli", *arguments, "--leash"]


def leashed(*argv: str) -> list[str]:
    """A foreign program on a leash."""
    return [sys.executable, "-m", "dangerous_driving.demo.leash", *argv]


def environment_of(folder: Path, settings_file: Path, **more: str) -> dict[str, str]:
    """The environment of a part: the demo's settings file in place of the user's own DD_ variables, which it contains."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(ENV_PREFIX) or name.startswith(SECRET_PREFIX)  # those are no settings: sources name them
    }
    return inherited | {
        FOLDER_VARIABLE: str(folder),
        ENV_PREFIX + "CONFIG": str(settings_file),
        "PYTHONUNBUFFERED": "1",
        # the programs of this environment (dbt, dagster) come before others of the same name
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **more,
    }


def end_left_behind(folder: Path) -> int:
    """Kill what a killed demo of this folder left running; returns how many processes. Killing them loses nothing."""
    left = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(FOLDER_VARIABLE) == str(folder):
                left.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # not ours
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=5)
    return len(left)
