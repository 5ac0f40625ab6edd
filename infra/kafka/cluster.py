"""Three Apache Kafka brokers on this machine, without Docker and without root: for tests, proofs and development.

Each broker is a process of its own, broker and controller in one (KRaft), replicated as in production: a message is
acknowledged once two of three have it. Brokers can be stopped, killed (-9), and cut off: a cut-off broker is frozen with
SIGSTOP, so that its peers and clients see what they see of a pulled cable (open connections, no answer).

The version stands in ``pom.xml``; the jars come from Maven Central into ``.cache/kafka``. Needs ``java`` (17 or newer)
and, the first time, ``mvn``.

From the command line (``make kafka`` is ``run``)::

    python -m infra.kafka.cluster run          # start, make the topics, stop at Ctrl-C
    python -m infra.kafka.cluster kill 2       # from another terminal; then: start 2
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dangerous_driving.ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
POM = Path(__file__).with_name("pom.xml")
CACHE = REPOSITORY / ".cache" / "kafka"
FOLDER = CACHE / "cluster"

#: The first broker's port of ``make kafka``; Kafka's own default, so that the default settings find it.
PORT = 9092
BROKERS = 3
#: s; three JVMs on two busy cores
START_TIMEOUT = 240.0
STOP_TIMEOUT = 30.0

LOGGING = """status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
"""

PROPERTIES = """process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
# as in production: what is acknowledged is on two of three brokers
default.replication.factor={replication}
min.insync.replicas={insync}
offsets.topic.replication.factor={replication}
transaction.state.log.replication.factor={replication}
transaction.state.log.min.isr={insync}
share.coordinator.state.topic.replication.factor={replication}
share.coordinator.state.topic.min.isr={insync}
auto.create.topics.enable=false
# a dead broker's partitions get another leader after this time; Kafka's default of 9 s leaves no room below 10 s
broker.session.timeout.ms=5000
broker.heartbeat.interval.ms=1000
# a small machine: few internal partitions, no waiting for more members
offsets.topic.num.partitions=8
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=2
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
log.segment.bytes=67108864
"""


class ClusterError(Exception):
    """The cluster cannot be had, or does not come up; the text says what is missing and where the log is."""


def jars() -> Path:
    """The folder of Kafka's jars, fetched through Maven where it is not there yet.

    Raises:
        ClusterError: Java or Maven is missing, or Maven failed.
    """
    if shutil.which("java") is None:
        raise ClusterError(
            "Apache Kafka needs Java 17 or newer on PATH; on Debian: apt-get install default-jre-headless"
        )
    folder = CACHE / f"jars-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"
    if not folder.is_dir():
        copy_jars(POM, folder)
    return folder


def copy_jars(pom: Path, folder: Path) -> None:
    """Have Maven copy a project's dependencies into a folder, whole or not at all.

    Raises:
        ClusterError: Maven is missing or failed.
    """
    if shutil.which("mvn") is None:
        raise ClusterError(
            f"the jars of {pom} are fetched with Maven, which is not on PATH; on Debian: apt-get install maven"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fetched = Path(scratch) / "jars"
        ended = subprocess.run(
            ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise ClusterError(f"Maven could not fetch the jars of {pom}: {ended.stdout[-1000:]}{ended.stderr[-1000:]}")
        try:
            fetched.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise


# The kernel ends a leashed process with the THREAD that started it; so one thread, which lives as long as this process,
# starts them all.
_starter = ThreadPoolExecutor(1, thread_name_prefix="starter")


def spawn(
    command: Sequence[str], log: Path, *, leashed: bool, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own; leashed: it ends with this process, even if that is killed."""
    leash = ["setpriv", "--pdeathsig", "KILL"] if leashed and shutil.which("setpriv") else []
    with log.open("ab") as output:
        return _starter.submit(
            subprocess.Popen,
            [*leash, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        ).result()


@dataclass(frozen=True)
class Broker:
    """One broker: its number (from 1), ports and folder."""

    node: int
    port: int
    controller: int
    folder: Path

    @property
    def address(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def properties(self) -> Path:
        """Its configuration, by which its process is recognised, too."""
        return self.folder / "server.properties"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / "broker.log"

    @property
    def pid(self) -> int | None:
        """Of its process, if that runs; a number that another program has meanwhile is not taken for it."""
        try:
            pid = int((self.folder / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError, IndexError):
            return None
        return pid if str(self.properties).encode() in command and state != "Z" else None


class KafkaCluster:
    """Brokers with their data in one folder; between ``start`` and ``close``, or over several processes' lives.

    Args:
        folder: of configuration, data and logs; a cluster that was there before goes on with its data.
        first_port: brokers listen on this port and the following ones; None: on free ports.
        brokers: how many.
        leashed: they end with the thread that started them, even if that is killed.
        heap: of each JVM.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_port: int | None = None,
        brokers: int = BROKERS,
        leashed: bool = True,
        heap: str = "384m",
    ) -> None:
        self._folder = folder.resolve()
        self._leashed = leashed
        self._heap = heap
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        described = self._folder / "cluster.json"
        if not described.exists():
            ports = (
                free_ports(2 * brokers) if first_port is None else [first_port + index for index in range(2 * brokers)]
            )
            self._folder.mkdir(parents=True, exist_ok=True)
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A", 1)
            described.write_text(json.dumps({"id": cluster_id, "ports": ports}), encoding="utf-8")
        content = json.loads(described.read_text(encoding="utf-8"))
        self._id: str = content["id"]
        ports = content["ports"]
        count = len(ports) // 2
        self.brokers = tuple(
            Broker(index + 1, ports[index], ports[count + index], self._folder / f"broker-{index + 1}")
            for index in range(count)
        )

    @property
    def bootstrap_servers(self) -> str:
        """Of all brokers, comma-separated."""
        return ",".join(broker.address for broker in self.brokers)

    def start(self, *nodes: int) -> Self:
        """Start these brokers (default: all) and wait until every running broker answers and is in the cluster.

        Raises:
            ClusterError: a component is missing, or a broker ended or did not come up; names its log.
        """
        libraries = jars()
        chosen = [broker for broker in self.brokers if not nodes or broker.node in nodes]
        fresh = [broker for broker in chosen if not (broker.folder / "data" / "meta.properties").exists()]
        formatting = [self._format(broker, libraries) for broker in fresh]
        for broker, process in zip(fresh, formatting, strict=True):
            output, _ = process.communicate(timeout=START_TIMEOUT)
            if process.returncode:
                raise ClusterError(f"broker {broker.node} could not be set up: {output.decode()[-2000:]}")
        for broker in chosen:
            if broker.pid is None:
                self._spawn(broker, libraries)
        self.wait()
        return self

    def _format(self, broker: Broker, libraries: Path) -> subprocess.Popen[bytes]:
        broker.folder.mkdir(parents=True, exist_ok=True)
        replication = min(3, len(self.brokers))
        broker.properties.write_text(
            PROPERTIES.format(
                node=broker.node,
                voters=",".join(f"{other.node}@127.0.0.1:{other.controller}" for other in self.brokers),
                port=broker.port,
                controller=broker.controller,
                data=broker.folder / "data",
                replication=replication,
                insync=max(1, replication - 1),
            ),
            encoding="utf-8",
        )
        (broker.folder / "log4j2.properties").write_text(LOGGING, encoding="utf-8")
        return subprocess.Popen(
            [
                *self._java(broker, libraries, "128m"),
                "kafka.tools.StorageTool",
                "format",
                "--cluster-id",
                self._id,
                "--config",
                str(broker.properties),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _java(self, broker: Broker, libraries: Path, heap: str) -> list[str]:
        return [
            "java", f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={broker.folder / 'log4j2.properties'}", "-cp", f"{libraries}/*",
        ]  # fmt: skip

    def _spawn(self, broker: Broker, libraries: Path) -> None:
        process = spawn(
            [*self._java(broker, libraries, self._heap), "kafka.Kafka", str(broker.properties)],
            broker.log,
            leashed=self._leashed,
        )
        (broker.folder / "pid").write_text(str(process.pid))
        self._processes[broker.node] = process

    def wait(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until every running broker is a member of the cluster.

        Raises:
            ClusterError: a broker ended, or it took too long.
        """
        deadline = time.monotonic() + timeout
        while True:
            # a process that was just forked has not its own command line yet
            running = [broker for broker in self.brokers if broker.pid is not None or broker.node in self._processes]
            for node, process in list(self._processes.items()):
                if process.poll() is not None:
                    del self._processes[node]
                    raise ClusterError(f"broker {node} ended with {process.returncode}: {self._last_words(node)}")
            if running and self._members(running) >= {broker.node for broker in running}:
                return
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"not all of brokers {[broker.node for broker in running]} came up within {timeout:g} s; "
                    f"see {self._folder}/broker-*/broker.log: {self._last_words(running[0].node if running else 1)}"
                )
            time.sleep(0.2)

    def _members(self, running: Sequence[Broker]) -> set[int]:
        from kafka import KafkaAdminClient
        from kafka.errors import KafkaError

        found: set[int] = set()
        for broker in running:
            try:
                with socket.create_connection(("127.0.0.1", broker.port), timeout=1):
                    pass
                admin = KafkaAdminClient(
                    bootstrap_servers=[broker.address], request_timeout_ms=3000, bootstrap_timeout_ms=3000
                )
            except (OSError, KafkaError):
                return set()
            try:
                members = {member["broker_id"] for member in admin.describe_cluster()["brokers"]}
            except KafkaError:
                return set()
            finally:
                admin.close()
            # what every one of them knows, not only the first
            found = members if not found else found & members
        return found

    def _last_words(self, node: int) -> str:
        try:
            return self._broker(node).log.read_text(encoding="utf-8", errors="replace")[-1500:]
        except OSError:
            return "it wrote no log"

    def _broker(self, node: int) -> Broker:
        for broker in self.brokers:
            if broker.node == node:
                return broker
        raise ClusterError(f"there is no broker {node}: they are numbered 1 to {len(self.brokers)}")

    def kill(self, node: int) -> None:
        """End a broker at once, as a power cut does."""
        self._signal(node, signal.SIGKILL)
        self._gone(node)

    def stop(self, node: int) -> None:
        """Have a broker hand its partitions over and end."""
        self._signal(node, signal.SIGTERM)
        self._gone(node)

    def cut_off(self, node: int) -> None:
        """Freeze a broker: its connections stay open, nothing answers."""
        self._signal(node, signal.SIGSTOP)

    def reconnect(self, node: int) -> None:
        """Let a frozen broker go on, as if nothing had been."""
        self._signal(node, signal.SIGCONT)

    def _signal(self, node: int, number: signal.Signals) -> None:
        pid = self._broker(node).pid
        if pid is not None:
            os.kill(pid, number)

    def _gone(self, node: int) -> None:
        process = self._processes.pop(node, None)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._broker(node).pid is not None:
            if time.monotonic() > deadline:
                self._signal(node, signal.SIGKILL)
            time.sleep(0.05)
        if process is not None:
            process.wait()

    def close(self) -> None:
        """End all brokers at once; their data stays in the folder."""
        for broker in self.brokers:
            self._signal(broker.node, signal.SIGCONT)
            self._signal(broker.node, signal.SIGKILL)
        for broker in self.brokers:
            self._gone(broker.node)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _run(cluster: KafkaCluster) -> None:
    print(f"starting {len(cluster.brokers)} brokers …", flush=True)
    with cluster:
        cluster.start()
        from dangerous_driving.messaging import apply
        from dangerous_driving.settings import KafkaSettings

        for topic in apply(KafkaSettings(bootstrap_servers=cluster.bootstrap_servers)):
            print(f"  topic {topic.state.topic} {topic.outcome}: {topic.state.partitions} partitions")
        print(f"kafka.bootstrap_servers: {cluster.bootstrap_servers}   (Ctrl-C ends it; the data stays)", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopping", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="configuration, data and logs")
    parser.add_argument("--port", type=int, default=PORT, help="of the first broker; the controllers' follow")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "jars": "fetch what is needed and print where it lies",
        "run": "start all, make the topics, stop at Ctrl-C",
        "status": "which brokers run",
    }.items():
        commands.add_parser(name, help=text)
    for name, text in {
        "start": "start these brokers, or all; they stay when this command ends",
        "stop": "have these brokers, or all, hand over and end",
        "kill": "end these brokers, or all, at once",
        "cut-off": "freeze these brokers, or all",
        "reconnect": "let these brokers, or all, go on",
    }.items():
        commands.add_parser(name, help=text).add_argument("nodes", nargs="*", type=int, help="1, 2, 3")
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "jars":
            print(jars())
            return 0
        cluster = KafkaCluster(asked.folder, first_port=asked.port, leashed=asked.command == "run")
        if asked.command == "run":
            _run(cluster)
        elif asked.command == "start":
            cluster.start(*asked.nodes)
        elif asked.command != "status":
            act = {
                "stop": cluster.stop, "kill": cluster.kill,
                "cut-off": cluster.cut_off, "reconnect": cluster.reconnect,
            }[asked.command]  # fmt: skip
            for node in asked.nodes or [broker.node for broker in cluster.brokers]:
                act(node)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    for broker in cluster.brokers:
        print(
            f"broker {broker.node}  {broker.address}  " + (f"runs, pid {broker.pid}" if broker.pid else "does not run")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
