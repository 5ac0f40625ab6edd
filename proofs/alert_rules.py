"""Every alert rule is seen to fire and to resolve: a demo, a real Prometheus and Alertmanager, and one fault after the other.

``make dashboards``. The answers come from the simulated LLM, the cameras are simulated but for one, the faults are real: the
endpoint becomes slow, fails, refuses all keys; processes are frozen; a stream breaks off. All durations of the rules are divided
by a factor (20), else the run would take hours; thresholds are as in ``infra/prometheus/rules/alerts.yml``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import yaml

from dangerous_driving.assessment.key_pool import set_key_enabled
from dangerous_driving.assessment.keys import load_keys
from dangerous_driving.contracts import DetectionResult
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.messaging import Producer, Topic
from dangerous_driving.ports import free_port
from dangerous_driving.settings import Settings, load
from dangerous_driving.simulation.orders import order
from infra.prometheus.receiver import Notice, Receiver
from infra.prometheus.servers import HERE, Monitoring, MonitoringError
from proofs.traffic import say

#: s until a fault's alert must have come, and until its end must have
PATIENCE = 240.0
START_SECONDS = 300.0
#: Calls of the realtime lane in the day's budget that the demo starts with: some seconds' worth.
SMALL_BUDGET = 60
#: Messages that are put before a frozen service: more than the 1,000 that are allowed.
FLOOD = 1500
CAMERA = "stream-05"
#: What the fault is about: an alert of the same rule about something else does not count.
ABOUT = {
    "BudgetNearlySpent": {"lane": "realtime"},
    "ConsumerLag": {"group": "dangerous-driving.tasks"},
    "ServiceDown": {"service": "tasks"},
    "MessagesSetAside": {"topic": "detection-results"},
    "CameraOffline": {"camera_id": CAMERA},
    "IncidentOpen": {"kind": "window_lane_held"},
}


@dataclass(frozen=True)
class Seen:
    """One rule's alert: what was done, and the seconds until it was told of it, and of its end."""

    rule: str
    fault: str
    fired: float | None
    resolved: float | None


class Stream:
    """A camera that streams MJPEG over HTTP: pictures of the demo's own cameras in rotation. It can be switched off."""

    def __init__(self, pictures: Sequence[bytes], port: int = 0) -> None:
        ending = self._ending = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                number = 0
                with contextlib.suppress(OSError):
                    while not ending.wait(0.1):
                        number += 1
                        jpeg = pictures[number % len(pictures)]
                        head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
                        self.wfile.write(head + jpeg + b"\r\n")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Requests are no news."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def off(self) -> None:
        """No more pictures, and nobody listens."""
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()


class Demo:
    """A running demo, with Dagster, whose parts can be frozen and restarted."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], page: str) -> None:
        self.folder, self.page = folder, page
        self._process = process
        self._frozen: list[psutil.Process] = []

    @property
    def settings(self) -> Settings:
        """What its services read."""
        return load(self.folder / "settings.yaml")

    @property
    def llm(self) -> str:
        """The simulated endpoint."""
        return self.settings.llm.base_url

    def parts(self, word: str) -> list[psutil.Process]:
        """The processes with this argument, Dagster's beneath their leash included."""
        found = []
        if not self.alive():
            return []
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in child.cmdline():
                    found.append(child)
        return found

    def freeze(self, word: str) -> None:
        """Have a part hang: it holds its connections and does nothing."""
        self._frozen = self.parts(word)
        for part in self._frozen:
            part.suspend()

    def thaw(self) -> None:
        """Let it go on."""
        for part in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                part.resume()
        self._frozen = []

    def budget(self, calls: int, *, restart: Sequence[str]) -> None:
        """Give the realtime lane another budget, as an operator does: in the settings, then these services start again."""
        file = self.folder / "settings.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        content["keys"]["budgets"] = {"realtime": {"calls": calls}}
        file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
        for word in restart:
            for part in self.parts(word):
                part.terminate()

    def command(self, *arguments: str) -> str:
        """A command of this project on the demo's settings."""
        done = subprocess.run(
            [sys.executable, "-m", "dangerous_driving.cli", *arguments],
            capture_output=True, text=True, check=True, timeout=PATIENCE,
            env=os.environ | {"DD_CONFIG": str(self.folder / "settings.yaml")},
        )  # fmt: skip
        return done.stdout

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None


@contextmanager
def demo(folder: Path, cameras: int, patience: float, *, dagster: bool) -> Iterator[Demo]:
    """A demo within the block; its log lies beside its folder."""
    page = free_port()
    command = [
        sys.executable, "-m", "dangerous_driving.cli", "demo", "--data-dir", str(folder), "--port", str(page),
        *(("--dagster-port", str(free_port())) if dagster else ("--no-dagster",)),
        "--cameras", str(cameras), "--seconds", "36000",
    ]  # fmt: skip
    environment = os.environ | {
        "DD_KEYS__BUDGETS": f'{{"realtime": {{"calls": {SMALL_BUDGET}}}}}',
        "DD_OBSERVABILITY__EXPORTER_INTERVAL": "1",
        "DD_KAFKA__LAG_INTERVAL": "2",
    }
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    running = Demo(folder, process, f"http://127.0.0.1:{page}/")
    try:
        wait_for(lambda: not running.alive() or (folder / "targets/detect.json").exists(), "the demo's start", patience)
        if not running.alive():
            raise RuntimeError(f"the demo did not start: {log.read_text(encoding='utf-8', errors='replace')[-600:]}")
        yield running
    finally:
        running.thaw()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Proof:
    """Provokes faults one after the other, and notes when the webhook was told."""

    def __init__(self, running: Demo, receiver: Receiver, monitoring: Monitoring) -> None:
        self._demo, self._receiver, self._monitoring = running, receiver, monitoring
        self.seen: list[Seen] = []

    def budget(self) -> None:
        """It is small from the start, and used up by what the cameras see."""
        with self._watched("budget used to 80 %", "BudgetNearlySpent", silence=False):
            pass
        # in between it was raised
        self._end(lambda: self._demo.budget(1_000_000, restart=("assess", "exporter")))

    def slow(self) -> None:
        """Whole answers take ten times as long: 12 s instead of 1.2 (median)."""
        with self._watched("slow LLM (x 10)", "LlmSlow", "AssessmentLate"):
            order(self._demo.llm, "slow", 10.0, None)
        self._end(lambda: order(self._demo.llm, "restore", 1.0, None))

    def errors(self) -> None:
        """A tenth of the calls is answered with 503."""
        with self._watched("10 % errors (HTTP 503)", "LlmErrors"):
            order(self._demo.llm, "break", 0.1, None)
        self._end(lambda: order(self._demo.llm, "restore", 1.0, None))

    def dead_keys(self) -> None:
        """The endpoint answers 401 to all keys."""
        with self._watched("dead keys (HTTP 401 to all)", "NoHealthyKey", "IncidentOpen"):
            order(self._demo.llm, "revoke", 401, None)
        self._end(self._revive_keys)

    def _revive_keys(self) -> None:
        order(self._demo.llm, "restore", 1.0, None)
        settings = self._demo.settings
        engine = open_engine(settings.database, application="proof")
        try:
            for key in load_keys(settings.keys):  # what `keys enable` does
                set_key_enabled(engine, key.as_pool_key, enabled=True, reason="enabled by the proof")
        finally:
            engine.dispose()

    def hanging_service(self) -> None:
        """`tasks` is frozen, and 1,500 results that it has had already are put before it."""
        with self._watched("lag (`tasks` frozen, 1,500 messages)", "ConsumerLag", "ServiceDown"):
            self._demo.freeze("tasks")
            self._flood()
        self._end(self._demo.thaw)

    def _flood(self) -> None:
        files = sorted((self._demo.folder / "objects").rglob("frames/**/*.json"))
        results = [DetectionResult.from_json(file.read_bytes()) for file in files[:50]]
        few = sorted(results, key=lambda result: len(result.traffic_groups))[:10]
        with self._producer() as producer:
            for number in range(FLOOD):
                result = few[number % len(few)]
                producer.send(Topic.DETECTION_RESULTS, result, key=result.camera_id)
            producer.flush()

    def junk(self) -> None:
        """A message that is no detection result."""
        with self._watched("a message that is none", "MessagesSetAside"), self._producer() as producer:
            producer.send_bytes(Topic.DETECTION_RESULTS, b'{"no": "detection result"}', b"nobody").result()
        self._end(lambda: None)

    def _producer(self) -> Producer:
        return Producer(self._demo.settings.kafka, "proof")

    def camera_off(self) -> None:
        """A camera that streams over HTTP is switched off."""
        pictures = [
            file.read_bytes() for file in sorted((self._demo.folder / "objects").rglob("frames/**/*.jpg"))[-20:]
        ]
        stream = Stream(pictures)
        self._demo.command("cameras", "add", CAMERA, f"http://127.0.0.1:{stream.port}/live")
        wait_for(lambda: "online" in self._state(), f"{CAMERA} to be online", 60)
        with self._watched("camera off", "CameraOffline"):
            stream.off()
        again: list[Stream] = []
        self._end(lambda: again.append(Stream(pictures, stream.port)))
        self._demo.command("cameras", "remove", CAMERA)
        for one in again:
            one.off()

    def _state(self) -> str:
        from sqlalchemy import text

        engine = open_engine(self._demo.settings.database, application="proof")
        try:
            with engine.connect() as connection:
                return connection.scalar(text("SELECT status FROM camera WHERE id = :id"), {"id": CAMERA}) or ""
        finally:
            engine.dispose()

    def overdue(self) -> None:
        """Dagster's daemon, which starts the windows' runs, is frozen; then it goes on, and the runbook's command helps."""
        self._catch_up()  # on a busy machine Dagster may be behind already
        with self._watched("window overdue (Dagster's daemon frozen)", "WindowOverdue"):
            self._demo.freeze("dagster._daemon")

        def mend() -> None:
            self._demo.thaw()
            self._catch_up()

        self._end(mend)

    def _catch_up(self) -> None:
        self._demo.command("windows", "run")

    @contextmanager
    def _watched(self, fault: str, *rules: str, silence: bool = True) -> Iterator[None]:
        """Once none of the rules has a reason (`silence`), do the fault within the block, then wait for the rules' alerts."""
        if silence:
            wait_for(
                lambda: not ({item["labels"]["alertname"] for item in self._about()} & set(rules)), "silence", PATIENCE
            )
        say(f"fault: {fault}")
        self._fault = fault
        began = time.monotonic()
        yield
        self._fired: dict[str, float | None] = {}
        for rule in rules:
            notice = self._await(rule, "firing", began)
            self._fired[rule] = None if notice is None else notice.at - began
            say(f"  {rule} " + ("did not come" if notice is None else f"came after {notice.at - began:.1f} s"))

    def _end(self, mend: Callable[[], object]) -> None:
        """End the fault, then wait until the webhook was told that it is over."""
        began = time.monotonic()
        mend()
        for rule, fired in self._fired.items():
            notice = None if fired is None else self._await(rule, "resolved", began)
            resolved = None if notice is None else notice.at - began
            say(f"  {rule} " + ("did not resolve" if resolved is None else f"resolved after {resolved:.1f} s"))
            self.seen.append(Seen(rule, self._fault, fired, resolved))

    def _about(self) -> list[dict[str, Any]]:
        """Alerts that are pending or fire, about what the faults are about."""
        return [
            alert
            for alert in self._monitoring.alerts()
            if ABOUT.get(alert["labels"]["alertname"], {}).items() <= alert["labels"].items()
        ]

    def firing(self) -> set[str]:
        """Names of the rules that fire."""
        return {alert["labels"]["alertname"] for alert in self._about() if alert["state"] == "firing"}

    def _await(self, rule: str, status: str, since: float) -> Notice | None:
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0 and self._demo.alive():
            if (
                notice := self._receiver.wait(rule, status, since=since, timeout=min(left, 5.0), labels=ABOUT.get(rule))
            ) is not None:
                return notice
        return None


#: In this order; each ends before the next begins.
FAULTS: dict[str, Callable[[Proof], None]] = {
    "budget": Proof.budget,
    "slow": Proof.slow,
    "errors": Proof.errors,
    "keys": Proof.dead_keys,
    "lag": Proof.hanging_service,
    "junk": Proof.junk,
    "camera": Proof.camera_off,
    "window": Proof.overdue,
}
#: A run of none of these does without, and starts sooner.
NEED_DAGSTER = {"keys", "window"}


def wait_for(condition: Callable[[], Any], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"in vain waited {seconds:g} s for {what}")
        time.sleep(0.25)


HEAD = ("rule", "fault provoked", "at the webhook after", "resolved after", "commit, UTC, load")


def rows_of(seen: Sequence[Seen]) -> dict[str, tuple[str, ...]]:
    """The table's cells by rule."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout

    def after(seconds: float | None) -> str:
        return "**not seen**" if seconds is None else f"{seconds:.1f} s"

    run = f"{commit.strip()}, {datetime.now(UTC):%Y-%m-%d %H:%M}, {os.getloadavg()[1]:.0f}"
    return {item.rule: (f"`{item.rule}`", item.fault, after(item.fired), after(item.resolved), run) for item in seen}


def recorded(file: Path) -> dict[str, tuple[str, ...]]:
    """The rows of earlier runs."""
    if not file.exists():
        return {}
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in file.read_text().splitlines()]
    return {row[0].strip("`"): row for row in cells if len(row) == len(HEAD) and row[0].startswith("`")}


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """As Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *rows))


def record(file: Path, rows: dict[str, tuple[str, ...]], factor: float) -> None:
    """Keep what was seen; rules that this run was not about keep the row that they have."""
    kept = recorded(file) | rows
    text = f"""\
# Every alert rule fires and resolves

`make dashboards` starts a demo (no Docker; simulated cameras, simulated LLM, Dagster), a real Prometheus and Alertmanager, and
provokes the faults below one after the other: the endpoint becomes slow, fails, refuses all keys; processes are frozen; a stream
breaks off. Seconds count from the moment at which the fault was done (or mended) until a webhook was told. The demo starts with a
budget of {SMALL_BUDGET} calls for the realtime lane, so that first time is how long the cameras took to use it up; then it is raised.
`make dashboards ARGS="--only slow"` provokes one of them, and renews its rows alone.

All durations (the rules' `for:` and ranges, scrapes, evaluations, Alertmanager's waits) are divided by {factor:g}; thresholds are those
of `infra/prometheus/rules/alerts.yml`. `make test` runs the unit tests of all rules (promtool) and two of them end to end.

{table(kept.values())}

{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}; load: average of five minutes.
"""
    file.write_text(text, encoding="utf-8")


def main() -> int:
    """The command line; the exit code is 1 when a rule was not seen to fire and to resolve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS), help="these faults alone")
    parser.add_argument("--factor", type=float, default=20.0, help="by which durations are divided")
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--record", type=Path, help="where the result is kept")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the demo and the servers end with this
    rules = yaml.safe_load((HERE / "rules/alerts.yml").read_text(encoding="utf-8"))
    wanted = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    with tempfile.TemporaryDirectory(prefix="alert-rules-") as scratch, ExitStack() as stack:
        folder = Path(scratch) / "demo"
        receiver = stack.enter_context(Receiver())
        try:
            monitoring = stack.enter_context(
                Monitoring(Path(scratch) / "monitoring", folder / "targets", receiver.url, factor=asked.factor)
            )
        except MonitoringError as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
        dagster = bool(NEED_DAGSTER & set(asked.only))
        say(f"starting a demo {'with' if dagster else 'without'} Dagster")
        running = stack.enter_context(demo(folder, asked.cameras, START_SECONDS, dagster=dagster))
        say("it runs")
        if "budget" not in asked.only:
            running.budget(1_000_000, restart=("assess", "exporter"))
        proof = Proof(running, receiver, monitoring)
        for name in asked.only:
            FAULTS[name](proof)
            if asked.record:  # fault by fault: a run that is cut off has seen something, too
                record(asked.record, rows_of(proof.seen), asked.factor)
        # what was mended stays so: not only away because the series that told it was
        time.sleep(5)
        firing = {item.rule for item in proof.seen} & proof.firing()
        if firing:
            print(f"still firing: {', '.join(sorted(firing))}")
        if not running.alive():
            say(folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace")[-2000:])
    rows = rows_of(proof.seen)
    print(table(rows.values()))
    complete = not firing and all(item.fired is not None and item.resolved is not None for item in proof.seen)
    if asked.only == list(FAULTS) and (unseen := wanted - rows.keys()):
        complete = False
        print(f"no fault for: {', '.join(sorted(unseen))}")
    print("held: each rule fired and resolved" if complete else "NOT held")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
