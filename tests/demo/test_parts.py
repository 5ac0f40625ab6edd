"""Parts are restarted when they die, given up when they die too often, and never outlive the demo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dangerous_driving.demo.parts import Part, PartFailedError, end_left_behind, environment_of, leashed


def eventually(condition: Callable[[], bool], *, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def part(tmp_path: Path, script: str, *, max_restarts: int = 2) -> Part:
    return Part(
        name="part",
        argv=[sys.executable, "-c", script],
        log=tmp_path / "part.log",
        environment=environment_of(tmp_path, tmp_path / "settings.yaml"),
        max_restarts=max_restarts,
    )


def test_a_part_that_dies_is_started_again_and_given_up_after_too_many_deaths(tmp_path: Path) -> None:
    dying = part(tmp_path, "raise SystemExit('the disk is full')", max_restarts=2)
    dying.start()

    with pytest.raises(PartFailedError, match="the disk is full"):
        eventually(lambda: dying.watch() and False)
    assert dying.restarts == 2
    dying.wait(1)


def test_a_part_that_was_asked_to_stop_is_not_started_again(tmp_path: Path) -> None:
    running = part(tmp_path, "import time; time.sleep(60)")
    running.start()
    running.terminate()
    running.wait(10)
    assert not running.running()
    assert running.watch() is False


def test_a_part_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    deaf = part(tmp_path, script)
    deaf.start()
    assert eventually(lambda: "deaf" in deaf.log.read_text())
    deaf.terminate()
    deaf.wait(0.2)
    assert not deaf.running()


SLEEPER = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"


def test_a_leashed_program_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    argv = leashed(sys.executable, "-c", SLEEPER, str(pid_file))
    # a supervisor that holds the leash and is killed without a chance to clean up
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, time; p = subprocess.Popen({argv!r}, stdin=subprocess.PIPE, start_new_session=True); time.sleep(60)",
        ]
    )
    assert eventually(lambda: pid_file.exists() and bool(pid_file.read_text()))
    pid = int(pid_file.read_text())
    supervisor.kill()
    supervisor.wait()
    assert eventually(lambda: not psutil.pid_exists(pid))


def test_a_leashed_program_ends_with_sigterm_and_its_exit_code_is_passed_on(tmp_path: Path) -> None:
    leash = subprocess.Popen(leashed(sys.executable, "-c", "raise SystemExit(7)"), stdin=subprocess.PIPE)
    assert leash.wait(20) == 7
    assert leash.stdin is not None
    leash.stdin.close()

    pid_file = tmp_path / "pid"
    leash = subprocess.Popen(leashed(sys.executable, "-c", SLEEPER, str(pid_file)), stdin=subprocess.PIPE)
    assert eventually(lambda: pid_file.exists() and bool(pid_file.read_text()))
    leash.send_signal(signal.SIGTERM)
    leash.wait(20)
    assert not psutil.pid_exists(int(pid_file.read_text()))
    assert leash.stdin is not None
    leash.stdin.close()


def test_a_leashed_program_can_be_interrupted_though_the_demo_runs_in_a_script_s_background() -> None:
    tell = "import signal; raise SystemExit(7 if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else 0)"
    leash = subprocess.Popen(
        leashed(sys.executable, "-c", tell),
        stdin=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509  # no thread runs yet
    )
    assert leash.wait(60) == 0
    assert leash.stdin is not None
    leash.stdin.close()


def test_what_a_killed_demo_of_this_folder_left_is_ended_and_nothing_else(tmp_path: Path) -> None:
    def sleeper(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", SLEEPER, str(folder / "pid")],
            env=environment_of(folder, folder / "settings.yaml"),
        )

    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.mkdir()
    others.mkdir()
    left, unrelated = sleeper(ours), sleeper(others)
    assert eventually(lambda: (ours / "pid").exists() and (others / "pid").exists())
    assert end_left_behind(ours) == 1
    left.wait(10)
    assert unrelated.poll() is None
    unrelated.kill()
    unrelated.wait()


def test_a_part_reads_the_demo_s_settings_not_the_user_s_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DD_DATABASE__URL", "postgresql://production/ledger")
    environment = environment_of(tmp_path, tmp_path / "settings.yaml", EXTRA="1")
    assert "DD_DATABASE__URL" not in environment
    assert environment["DD_CONFIG"] == str(tmp_path / "settings.yaml")
    assert environment["EXTRA"] == "1"
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
