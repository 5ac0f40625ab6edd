"""Logs arrive whole: a demo's services log, a real rsyslog ships, a real OpenSearch holds every line once.

``make proof-logs``. OpenSearch comes from Maven Central (its own distribution, without a JDK), rsyslog from Debian. OpenSearch starts
after the shipper and is killed (-9) once on the way; then every line of the services must be found, none twice, and a call of the
ledger must be found by its task with the key and how it ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dangerous_driving.ports import free_port
from infra.kafka.cluster import ClusterError, copy_jars, spawn
from proofs.alert_rules import wait_for
from proofs.traffic import say

REPOSITORY = Path(__file__).resolve().parents[1]
LOGS = REPOSITORY / "infra/logs"
POM = LOGS / "pom.xml"
CACHE = REPOSITORY / ".cache" / "opensearch"
#: s; a JVM on two busy cores
PATIENCE = 180.0
#: Nobody's own: OpenSearch does not run as root.
USER = "nobody"


class OpenSearch:
    """One node in a folder; it can be killed and started again on its data."""

    def __init__(self, folder: Path) -> None:
        digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
        archive = CACHE / digest
        if not archive.is_dir():
            copy_jars(POM, archive)
        (found,) = archive.glob("opensearch-*.zip")
        with zipfile.ZipFile(found) as content:
            content.extractall(folder)
        (self._home,) = [path for path in folder.iterdir() if path.is_dir()]
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = folder / "opensearch.log"
        configuration = {
            "cluster.name": "logs", "discovery.type": "single-node", "http.port": self._port, "network.host": "127.0.0.1",
            "transport.port": free_port(), "path.data": str(folder / "data"), "path.logs": str(folder / "logs"),
            "cluster.routing.allocation.disk.threshold_enabled": False,
        }  # fmt: skip
        text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in configuration.items())
        (self._home / "config/opensearch.yml").write_text(text, encoding="utf-8")
        for name in ("data", "logs"):
            (folder / name).mkdir()
        for script in (self._home / "bin").iterdir():
            script.chmod(0o755)
        for part in [folder, *folder.rglob("*")]:
            shutil.chown(part, USER)
        for parent in folder.parents:
            if parent.stat().st_uid == os.getuid() and parent.is_relative_to("/tmp"):  # noqa: S108  # the scratch folder of this run
                parent.chmod(parent.stat().st_mode | 0o011)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        java = str(Path(shutil.which("java") or "/usr/bin/java").resolve().parents[1])
        self._process = spawn(
            ["setpriv", f"--reuid={USER}", "--regid=nogroup", "--clear-groups", str(self._home / "bin/opensearch")],
            self._log,
            leashed=False,
            environment=os.environ
            | {"OPENSEARCH_JAVA_HOME": java, "OPENSEARCH_JAVA_OPTS": "-Xms512m -Xmx512m", "HOME": "/tmp"},  # noqa: S108
        )

    def up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"OpenSearch ended: {self._log.read_text(errors='replace')[-1500:]}")
        try:
            return bool(self.ask("GET", "/_cluster/health")["status"] in {"yellow", "green"})
        except OSError:
            return False

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def count(self, query: dict[str, Any] | None = None) -> int:
        try:
            self.ask("POST", "/dangerous-driving-*/_refresh")
            return int(self.ask("POST", "/dangerous-driving-*/_count", {"query": query or {"match_all": {}}})["count"])
        except OSError:
            return -1


@contextmanager
def shipper(folder: Path, logs: Path, port: int) -> Iterator[None]:
    """rsyslog with the project's configuration, paths and port set for this run."""
    work = folder / "rsyslog"
    work.mkdir()
    text = (LOGS / "rsyslog.conf").read_text(encoding="utf-8")
    for written, here in (
        ("/var/lib/dangerous-driving/rsyslog", str(work)),
        ("/var/log/dangerous-driving", str(logs)),
        ('serverport="9200"', f'serverport="{port}"'),
        ('action.resumeInterval="5"', 'action.resumeInterval="1"'),
    ):
        assert written in text
        text = text.replace(written, here)
    file = folder / "rsyslog.conf"
    file.write_text(text, encoding="utf-8")
    process = spawn(
        ["rsyslogd", "-n", "-f", str(file), "-i", str(folder / "rsyslog.pid")], folder / "rsyslog.log", leashed=True
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def lines_of(logs: Path) -> list[str]:
    return [
        line
        for file in sorted(logs.glob("*.log"))
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]


def command(*arguments: str, settings: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dangerous_driving.cli", *arguments], capture_output=True, text=True, check=False,
        timeout=400, env=os.environ | ({"DD_CONFIG": str(settings)} if settings else {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def prove(folder: Path, seconds: float) -> list[str]:
    search = OpenSearch(folder / "search")
    data = folder / "demo"
    logs = data / "logs"
    with ExitStack() as stack:
        stack.callback(search.kill)
        say(f"a demo of {seconds:g} s, whose services log")
        command(
            "demo", "--no-dagster", "--seconds", str(seconds), "--data-dir", str(data), "--port", str(free_port()),
        )  # fmt: skip
        say(f"{len(lines_of(logs))} lines; the shipper starts, OpenSearch later")
        stack.enter_context(shipper(folder, logs, int(search.url.rpartition(":")[2])))
        time.sleep(3)
        search.start()
        wait_for(search.up, "OpenSearch", PATIENCE)
        template = json.loads((LOGS / "index-template.json").read_text(encoding="utf-8"))
        search.ask("PUT", "/_index_template/dangerous-driving", template)
        wait_for(lambda: search.count() > 0, "the first lines", PATIENCE)
        say("OpenSearch is killed")
        search.kill()
        with (logs / "assess.log").open("a", encoding="utf-8") as more:  # what comes while it is away
            for number in range(100):
                more.write(json.dumps({"event": "while_away", "service": "proof", "task_id": f"away-{number}"}) + "\n")
        lines = lines_of(logs)
        search.start()
        wait_for(search.up, "OpenSearch", PATIENCE)
        wait_for(lambda: search.count() >= len(set(lines)), f"{len(set(lines))} lines", PATIENCE)
        time.sleep(5)  # one that came twice would be there by now
        there = search.count()
        told = command("calls", "--since", "1d", "--status", "ok", "--json", "--limit", "1", "--data-dir", str(data))
        if not told.strip():
            raise RuntimeError("the demo made no call, so there is none to look for: give it more --seconds")
        call = json.loads(told)
        query = {"bool": {"filter": [{"term": {"event": "llm_call"}}, {"term": {"task_id": call["task_id"]}}]}}
        hits = search.ask("POST", "/dangerous-driving-*/_search", {"query": query})["hits"]["hits"]
        of_call = [hit["_source"] for hit in hits if hit["_source"].get("call_id") == call["call_id"]]
        mapping = search.ask("GET", "/dangerous-driving-*/_mapping")
        kinds = {index["mappings"]["properties"]["task_id"]["type"] for index in mapping.values()}
        version = search.ask("GET", "/")["version"]["number"]
    found = [
        f"OpenSearch {version}, {len(lines)} lines, {len(set(lines))} different ones: {there} documents",
        f"call {call['call_id']}: " + "; ".join(f"{hit['status']} on {hit['key_id']}" for hit in of_call),
        f"in the ledger: {call['status']} on {call['key_hash']}",
    ]
    assert there == len(set(lines)), found
    assert kinds == {"keyword"}
    assert len(of_call) == 1, hits
    assert (of_call[0]["key_id"], of_call[0]["status"], of_call[0]["camera_id"]) == (
        call["key_hash"], "ok", call["camera_id"],
    )  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the demo")
    parser.add_argument("--record", type=Path, help="where the result is kept")
    asked = parser.parse_args(arguments)
    for program in ("rsyslogd", "java", "mvn", "setpriv"):
        if shutil.which(program) is None:
            print(f"error: {program} is missing; on Debian: make system-packages", file=sys.stderr)
            return 3
    try:
        with TemporaryDirectory(prefix="logs-") as scratch:
            found = prove(Path(scratch), asked.seconds)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print("\n".join([*found, "held: every line once, and the call by its task"]))
    if asked.record:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        asked.record.write_text(
            "# Logs arrive whole\n\n"
            "`make proof-logs` runs a demo, ships its services' logs with a real rsyslog (`infra/logs/rsyslog.conf`) to a real OpenSearch\n"
            "that starts later and is killed (-9) once, with lines written meanwhile; then counts, and looks for a call of the ledger.\n\n"
            "```console\n$ make proof-logs\n"
            + "\n".join(found)
            + "\nheld: every line once, and the call by its task\n```\n\n"
            f"Commit {commit}, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()}, Python"
            f" {platform.python_version()}.\n",
            encoding="utf-8",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
