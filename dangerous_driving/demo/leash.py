"""Runs a foreign program that must not outlive the demo: ``python -m dangerous_driving.demo.leash PROGRAM ARGS…``.

It ends the program when standard input ends (the demo holds the other side of that pipe, also when it is killed),
passes SIGTERM on, and ends with the program's exit code. The program gives way to the demo's own services, on which the
two seconds to an alert depend.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

NICENESS = 5

GRACE = 15.0  # s between SIGTERM and SIGKILL


def main(argv: list[str]) -> int:
    """Run the program until it ends or the leash is pulled."""
    os.nice(NICENESS)
    # a script's background job ignores SIGINT, and Dagster does with SIGTERM what it does with SIGINT
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # its own group, so that what it starts is ended with it
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    _give_way(process.pid)

    def end() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        _kill_group(process.pid)

    def watch() -> None:
        while os.read(0, 4096):  # the file, not sys.stdin: its lock would break the interpreter's end
            pass
        end()

    threading.Thread(target=watch, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=end, daemon=True).start())
    code = process.wait()
    _kill_group(process.pid)
    return code


def _give_way(leader: int) -> None:
    # where Linux groups processes by session (autogroup), niceness counts within a group only; the group has its own
    with contextlib.suppress(OSError):  # no such file, or none that may be written: niceness is all there is
        Path(f"/proc/{leader}/autogroup").write_text(f"{NICENESS}\n", encoding="ascii")


def _kill_group(leader: int) -> None:
    # whatever the program left behind
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
