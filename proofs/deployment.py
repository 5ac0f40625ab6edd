"""Deployment as far as it can be run without a container engine and without nodes.

``make proof-deployment``, as root on Debian, or one part of it (``ARGS="image"``, ``services``, ``cluster``):

image     the Dockerfile's steps on a Debian made by debootstrap; what the image holds, and what its user may
services  all services and Dagster of compose.yaml as processes of that image, each with its command, its volumes and a read-only root,
          on a real PostgreSQL and real Apache Kafka, with a simulated camera and a simulated LLM; then SIGTERM
cluster   every rendered manifest on a real Kubernetes API server with its controllers, and a run by Dagster's launcher
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import yaml

from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ports import free_ports
from infra.image.local import ImageError, LocalImage, Mount
from infra.kafka.cluster import ClusterError, KafkaCluster, spawn
from infra.kubernetes.server import CACHE, DEFINITIONS, ApiServer, ServerError, download
from proofs.alert_rules import wait_for
from tests.deployment.rendering import COMPONENTS, KUBERNETES, Manifest, load_compose, render, render_with

REPOSITORY = Path(__file__).resolve().parents[1]
TAG = "dangerous-driving:0.1.0"
PARTS = ("image", "services", "cluster")
SETTINGS = "/etc/dangerous-driving"
#: s; a machine of two busy cores
PATIENCE = 300.0
#: Of the Compose file, what other parts of this proof stand for.
FOREIGN = {"postgres", "kafka", "prometheus", "alertmanager", "grafana", "notify", "redis-feed"}

lines: list[str] = []
failed = False


def tell(line: str) -> None:
    stamped = f"{datetime.now(UTC):%H:%M:%S}  {line}"
    lines.append(stamped)
    print(stamped, flush=True)


def check(statement: str, holds: bool) -> None:
    global failed  # noqa: PLW0603  # the exit code
    failed |= not holds
    tell(f"{'holds' if holds else 'FAILS'}  {statement}")


def output(image: LocalImage, arguments: Sequence[str], mounts: Sequence[Mount], **variables: str) -> tuple[int, str]:
    done = subprocess.run(
        image.command(arguments, mounts), env=image.environment(variables), capture_output=True, text=True, check=False
    )
    return done.returncode, (done.stdout + done.stderr).strip()


def prove_image(image: LocalImage, scratch: Path) -> None:
    steps = [line for line in image.log.splitlines() if " STEP " in line or line.startswith("STEP ")]
    tell(f"{len(steps)} steps of the Dockerfile done, image {image.tag}")
    size = sum(path.lstat().st_size for path in image.root.rglob("*") if not path.is_symlink()) / 1e6
    tell(f"its root is {size:.0f} MB")
    (scratch / "settings.yaml").write_text("observability: {port: 9100}\n", encoding="utf-8")
    (scratch / "settings.yaml").chmod(0o444)
    settings = [Mount(scratch, SETTINGS, read_only=True)]
    code, text = output(image, [*image.entry_point(), *image.config["Cmd"]], settings)
    check(f"without arguments it says: {text.splitlines()[0]}", code == 0 and "Usage: dangerous-driving" in text)
    code, text = output(image, [*image.entry_point(), "config", "check"], settings)
    check("config check reads the settings file that is mounted read-only", code == 0 and "port: 9100" in text)
    _, text = output(image, ["id"], settings)
    check(text, text.startswith("uid=10001"))
    _, text = output(image, ["sh", "-c", "grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/self/status"], settings)
    check(
        "no capability, no new privileges: " + " ".join(text.split()),
        text.count("0000000000000000") == 3 and "NoNewPrivs:\t1" in text,
    )
    _, text = output(image, ["sh", "-c", "touch /etc/dangerous-driving/x; touch /opt/venv/x; touch /x"], settings)
    check("nothing can be written into settings, program and root", text.count("Read-only file system") == 3)
    tools = ("pip", "gcc", "git", "curl")
    _, text = output(image, ["sh", "-c", f"command -v {' '.join(tools)}; python -m pip --version"], settings)
    check(f"neither {' nor '.join(tools)} is there", text == "/opt/venv/bin/python: No module named pip")
    _, text = output(image, ["sh", "-c", "python -c 'import ultralytics, torch'"], settings)
    check("no ultralytics", "No module named 'ultralytics'" in text)
    written = list((image.root / "root").rglob("pip*")) + list((image.root / "var/lib/apt/lists").glob("*Packages*"))
    check("no cache of pip or apt stayed", not written)


class Stage:
    """The services of the Compose file as processes of the image, on servers of this machine."""

    def __init__(self, image: LocalImage, scratch: Path, stack: ExitStack) -> None:
        self.image, self._scratch, self._stack = image, scratch, stack
        checkout = scratch / "checkout"
        for name in ("infra/compose", "infra/prometheus", "infra/grafana", "dagster_home"):
            shutil.copytree(REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("site"))
        subprocess.run([checkout / "infra/compose/prepare.sh"], check=True, capture_output=True)
        project = load_compose(checkout / "infra/compose/compose.yaml")
        self.services = {name: item for name, item in project["services"].items() if name not in FOREIGN}
        self._volumes = scratch / "volumes"
        server = EmbeddedPostgres(scratch / "postgres")
        stack.enter_context(server)
        self.ledger = server.create_database("dangerous_driving")
        dagster = server.create_database("dagster")
        with psycopg.connect(self.ledger) as connection:
            socket = Path(connection.info.host)
        for folder in (socket, *socket.parents):
            if folder.is_relative_to(scratch) or folder == socket:
                folder.chmod(folder.stat().st_mode | 0o011)
        self._socket = Mount(socket, "/var/run/postgres", read_only=False)
        cluster = stack.enter_context(KafkaCluster(scratch / "kafka"))
        cluster.start()
        self.llm, *ports = free_ports(len(self.services) + 1)
        self.ports = dict(zip(self.services, ports, strict=True))
        inside = {str(socket): "/var/run/postgres"}
        self._variables = {
            "DD_DATABASE__URL": self.ledger.replace(*next(iter(inside.items()))),
            "DAGSTER_POSTGRES_URL": dagster.replace(*next(iter(inside.items()))),
            "DD_KAFKA__BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
            "DD_LLM__BASE_URL": f"http://127.0.0.1:{self.llm}/v1",
            "DD_LLM__MODEL": "simulated-vl",
            "DD_DETECTION__WEIGHTS": self._weights(),
            "DD_CAMERA__CAMERAS": json.dumps([{"id": "sim-01", "source": "simulated:tailgating"}]),
        }
        self.hosts = scratch / "hosts"
        self.hosts.write_text("127.0.0.1 localhost dagster-code\n", encoding="utf-8")

    def _weights(self) -> str:
        [found] = self.image.root.glob("opt/venv/lib/python*/site-packages/dangerous_driving/simulation/weights/*.onnx")
        return f"/{found.relative_to(self.image.root)}"

    def command(self, name: str) -> list[str]:
        service = self.services[name]
        return list((service.get("entrypoint") or self.image.entry_point()) + (service.get("command") or []))

    def mounts(self, name: str) -> list[Mount]:
        found = [self._socket, Mount(self.hosts, "/etc/hosts", read_only=True)]
        for volume in self.services[name]["volumes"]:
            source = Path(volume["source"])
            if volume["type"] == "volume":
                source = self._volumes / volume["source"]
                if not source.exists():  # as engines do: owner and mode are those of the image's folder
                    source.mkdir(parents=True)
                    user, group, mode = self.image.owner_of(volume["target"])
                    os.chown(source, user, group)
                    source.chmod(mode)
            found.append(Mount(source, volume["target"], read_only=bool(volume.get("read_only"))))
        return found

    def variables(self, name: str) -> dict[str, str]:
        service = self.services[name]
        own = {"DD_NODE": service.get("hostname", name), "DD_OBSERVABILITY__PORT": str(self.ports[name])}
        if name == "realtime":
            own["DD_REALTIME__PORT"] = str(self.ports[name])
        return dict(service["environment"]) | self._variables | own

    def once(self, name: str, arguments: Sequence[str] | None = None, **more: str) -> tuple[int, str]:
        return output(self.image, arguments or self.command(name), self.mounts(name), **(self.variables(name) | more))

    def start(self, name: str, arguments: Sequence[str] | None = None) -> subprocess.Popen[bytes]:
        log = self._scratch / f"{name if arguments is None else arguments[-1]}.log"
        command = self.image.command(arguments or self.command(name), self.mounts(name))
        process = spawn(command, log, leashed=False, environment=self.image.environment(self.variables(name)))
        self._stack.callback(_end, process)
        return process

    def is_healthy(self, name: str) -> bool:
        _, *test = self.services[name]["healthcheck"]["test"]
        return (
            self.once(
                name,
                [
                    part.replace(":9100/", f":{self.ports[name]}/").replace(":8080/", f":{self.ports[name]}/")
                    for part in test
                ],
            )[0]
            == 0
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def prove_services(image: LocalImage, scratch: Path) -> None:
    with ExitStack() as stack:
        stage = Stage(image, scratch, stack)
        tell("PostgreSQL and three brokers of Apache Kafka run")
        code, text = stage.once("topics")
        check(f"topics apply: exit code {code}", code == 0)
        code, text = stage.once("migrate")
        check(f"db migrate: {text.splitlines()[-1]}", code == 0)
        code, text = stage.once(
            "assess",
            [*image.entry_point(), "keys", "add", "--label", "proof", "--env", "PROOF_KEY"],
            PROOF_KEY="sk-" + os.urandom(8).hex(),
        )
        check("keys add writes the key file onto its volume", code == 0)
        stage.start("assess", [*image.entry_point(), "simulate", "llm", "--speed", "10", "--port", str(stage.llm)])
        processes = {name: stage.start(name) for name in stage.services if name not in {"topics", "migrate"}}
        for name in processes:
            _becomes(f"{name}: healthy by the check of the Compose file", lambda name=name: stage.is_healthy(name))  # type: ignore[misc]

        def answers() -> int:
            with psycopg.connect(stage.ledger) as connection:
                row = connection.execute("SELECT count(*) FROM risk_assessment").fetchone()
            return int(row[0]) if row else 0

        _becomes("groups of the simulated camera are assessed", lambda: answers() >= 5)
        alive = [name for name, process in processes.items() if process.poll() is None]
        check(f"all {len(processes)} live", len(alive) == len(processes))
        begun = time.monotonic()
        for name in ("dagster-webserver", "dagster-daemon", *processes):
            processes[name].send_signal(signal.SIGTERM) if processes[name].poll() is None else None
        for name, process in processes.items():
            grace = {"1m0s": 60.0, "3m0s": 180.0}[stage.services[name]["stop_grace_period"]]
            try:
                code = process.wait(max(grace - (time.monotonic() - begun), 0.1))
                check(
                    f"{name}: ends {time.monotonic() - begun:.0f} s after SIGTERM at the latest, exit code {code}",
                    code in {0, -15, 143},
                )
            except subprocess.TimeoutExpired:
                check(f"{name}: ends within {grace:.0f} s of SIGTERM", False)
        tell(f"{answers()} groups were assessed")


def _becomes(statement: str, condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    try:
        wait_for(condition, statement, PATIENCE)
    except TimeoutError:
        check(statement, False)
    else:
        check(f"{statement} ({time.monotonic() - begun:.0f} s)", True)


def prove_cluster(scratch: Path) -> None:
    with ApiServer(scratch / "server") as server:
        tell(
            f"Kubernetes {json.loads(server.kubectl('version', '-o', 'json'))['serverVersion']['gitVersion']}, without nodes"
        )
        for module, folder in DEFINITIONS.items():
            server.kubectl("apply", "--server-side", "-f", str(download(module, CACHE / "kubernetes") / folder))
            tell(f"definitions of {module}")
        example = render(KUBERNETES / "overlays" / "example")
        printed = server.kubectl("apply", "--server-side", "-f", "-", given=_yaml(example))
        check(
            f"overlays/example: {len(printed.splitlines())} objects applied, {len(example)} rendered",
            len(printed.splitlines()) == len(example),
        )
        wanted = {
            item["metadata"]["name"]: item["spec"].get("replicas", 1)
            for item in example
            if item["kind"] in {"Deployment", "StatefulSet", "Job"}
        }

        def pods() -> list[Manifest]:
            items: list[Manifest] = json.loads(server.kubectl("get", "pods", "-n", "dangerous-driving", "-o", "json"))[
                "items"
            ]
            return items

        _becomes(
            f"the controllers make {sum(wanted.values())} pods, which the profile `restricted` lets in",
            lambda: len(pods()) == sum(wanted.values()),
        )
        claims = server.kubectl("get", "pvc", "-n", "dangerous-driving", "-o", "name").split()
        check(f"volumes of detect: {' '.join(claims)}", len(claims) == wanted["dangerous-driving-detect"])
        bad = yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "x", "namespace": "dangerous-driving"},
                "spec": {"containers": [{"name": "x", "image": "x"}]},
            }
        )
        refused = _refusal(lambda: server.kubectl("create", "-f", "-", given=bad))
        check("a pod without these restrictions is refused", "violates PodSecurity" in refused)
        refused = _refusal(
            lambda: server.kubectl("apply", "--server-side", "-f", "-", given=_yaml(_with_new_image(example)))
        )
        check(
            "a Job of a new image is refused until the old one is deleted, as the documentation says",
            "field is immutable" in refused,
        )
        for component in COMPONENTS:
            with TemporaryDirectory() as folder:
                manifests = [item for item in render_with([component], Path(folder)) if item["kind"] != "Job"]
            if component == "kafka-strimzi":
                tell("kafka-strimzi: not applied, Strimzi's definitions could not be had")
                continue
            printed = server.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=_yaml(manifests))
            check(f"component {component}: applied", len(printed.splitlines()) == len(manifests))
        _prove_launcher(server, scratch)


def _prove_launcher(server: ApiServer, scratch: Path) -> None:
    from dagster._core.launcher.base import WorkerStatus

    from tests.deployment.runs import instance, launch

    warnings.filterwarnings("ignore", message="Unverified HTTPS request")
    token = server.kubectl("create", "token", "dangerous-driving-dagster", "-n", "dangerous-driving").strip()
    config = scratch / "launcher"
    server.write_config(config, token)
    account = "--as=system:serviceaccount:dangerous-driving:dangerous-driving-dagster"
    for verb, resource, may in (
        ("create", "jobs", True),
        ("get", "secrets", False),
        ("create", "pods", False),
        ("delete", "deployments", False),
    ):
        asked = partial(server.kubectl, "auth", "can-i", verb, resource, account, "-n", "dangerous-driving")
        said = _refusal(asked)  # "no" is an exit code, and no word of an error
        check(
            f"Dagster's account may {'' if may else 'not '}{verb} {resource}",
            said == "" if may else said.endswith(": "),
        )
    home = scratch / "dagster"
    home.mkdir()
    with instance(home, load_incluster_config=False, kubeconfig_file=str(config)) as opened:
        run = launch(opened, TAG)
        [job] = json.loads(
            server.kubectl("get", "jobs", "-n", "dangerous-driving", "-l", "dagster/job=windows", "-o", "json")
        )["items"]
        check(f"the launcher makes the Job {job['metadata']['name'][:20]}… with the rights of that account", True)

        def pod() -> bool:
            found = server.kubectl(
                "get", "pods", "-n", "dangerous-driving", "-l", "dagster/job=windows", "-o", "name"
            ).split()
            return len(found) == 1

        _becomes("its pod is let in", pod)
        found = opened.get_run_by_id(run.run_id)
        assert found
        health = opened.run_launcher.check_run_worker_health(found)
        check(f"the launcher sees its state: {health.status.value}", health.status is WorkerStatus.RUNNING)
        debug = opened.run_launcher.get_run_worker_debug_info(found)
        check("and why it waits", "Debug information" in (debug or "") or "pending" in (debug or "").lower())
        check("and ends it", bool(opened.run_launcher.terminate(run.run_id)))
        left = server.kubectl(
            "get", "jobs", "-n", "dangerous-driving", "-l", "dagster/job=windows", "-o", "name"
        ).split()
        check("no Job is left", not left)


def _with_new_image(manifests: Sequence[Manifest]) -> list[Manifest]:
    jobs = json.dumps([item for item in manifests if item["kind"] == "Job"])
    changed: list[Manifest] = json.loads(jobs.replace("0.1.0-yolo11n", "0.2.0"))
    return changed


def _yaml(manifests: Sequence[Any]) -> str:
    return yaml.safe_dump_all(manifests)


def _refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except ServerError as error:
        return str(error)
    return ""


HEAD = """# Containers

`make proof-deployment` runs what of the image, the Compose file and the manifests can be run without a container engine and without
nodes: the Dockerfile's steps on a Debian made by debootstrap; all services and Dagster of `infra/compose/compose.yaml` as processes of that
image, with its commands, volumes and health checks, a read-only root and no capability, on a real PostgreSQL and real Apache Kafka; every
manifest on a real Kubernetes API server with its controllers, and a run by Dagster's launcher there. What was not run stands in
[deployment.md](../deployment.md#what-was-tried).
"""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored by a script's background job, and Dagster does so with SIGTERM then
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--mirror", default="", help="Debian's archive for debootstrap; default: its own")
    parser.add_argument("--record", type=Path, help="write what was seen into this file")
    arguments = parser.parse_args()
    parts = arguments.parts or [*PARTS]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    tell(
        f"commit {commit}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    )
    with TemporaryDirectory(prefix="deployment-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        scratch.chmod(0o755)
        try:
            if {"image", "services"} & {*parts}:
                image = LocalImage(TAG, mirror=arguments.mirror)
                stack.callback(image.close)
                (scratch / "settings").mkdir()
                if "image" in parts:
                    prove_image(image, scratch / "settings")
                if "services" in parts:
                    prove_services(image, scratch)
            if "cluster" in parts:
                prove_cluster(scratch)
        except (ImageError, ServerError, ClusterError) as error:
            check(str(error), False)
    tell("NOT every statement holds" if failed else "every statement holds")
    if arguments.record and len(parts) == len(PARTS):  # a part alone is no record
        arguments.record.write_text(HEAD + "\n```text\n" + "\n".join(lines) + "\n```\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
