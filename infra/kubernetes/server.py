"""A real Kubernetes API server on this machine, without nodes: what it takes, a cluster takes.

etcd, kube-apiserver and kube-controller-manager are built once from their Go modules (15 minutes on two cores, 4 GB of the Go
toolchain's caches) and started on free ports. Pods are admitted and stay pending: no scheduler and no kubelet run here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

from dangerous_driving.ports import free_ports
from infra.kafka.cluster import spawn

CACHE = Path(__file__).resolve().parents[2] / ".cache"
KUBERNETES, STAGING, ETCD = "v1.36.3", "v0.36.3", "v3.6.5"
START_TIMEOUT = 120.0  # s
#: Definitions of the optional components' operators: Go module and folder within.
DEFINITIONS = {
    "github.com/kedacore/keda/v2@v2.16.1": "config/crd/bases",
    "github.com/cloudnative-pg/cloudnative-pg@v1.27.0": "config/crd/bases",
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": "example/prometheus-operator-crd",
}


class ServerError(Exception):
    """The API server cannot be had here, or did not start."""


def _go(*arguments: str, cwd: Path) -> str:
    environment = os.environ | {"GOFLAGS": "-mod=mod"}
    done = subprocess.run(["go", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"go {arguments[0]}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _module(name: str, requirement: str, scratch: Path) -> Path:
    folder = scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    go = _go("env", "GOVERSION", cwd=folder).strip().removeprefix("go")
    (folder / "go.mod").write_text(f"module {name}\n\ngo {go}\n\nrequire {requirement}\n", encoding="utf-8")
    return folder


def download(module: str, scratch: Path) -> Path:
    """A Go module's folder, as the toolchain keeps it."""
    scratch.mkdir(parents=True, exist_ok=True)
    return Path(json.loads(_go("mod", "download", "-json", module, cwd=scratch))["Dir"])


def build() -> dict[str, Path]:
    """The programs, built where they are not there yet.

    Raises:
        ServerError: there is no Go, or a build failed.
    """
    if shutil.which("go") is None:
        raise ServerError("Kubernetes is built with Go, which is not on PATH")
    binaries = CACHE / "bin"
    programs = {name: binaries / f"{name}-{KUBERNETES}" for name in ("kube-apiserver", "kube-controller-manager")}
    programs["etcd"] = binaries / f"etcd-{ETCD}"
    if all(path.exists() for path in programs.values()):
        return programs
    binaries.mkdir(parents=True, exist_ok=True)
    scratch = CACHE / "kubernetes"
    if not programs["etcd"].exists():
        folder = _module("etcd", f"go.etcd.io/etcd/server/v3 {ETCD}", scratch)
        _go(
            "build", "-trimpath", "-ldflags=-s -w", "-o", str(programs["etcd"]), "go.etcd.io/etcd/server/v3", cwd=folder
        )
    folder = _module("kubernetes", f"k8s.io/kubernetes {KUBERNETES}", scratch)
    # Kubernetes' own go.mod names its parts by folders of its repository, which its module does not hold
    content = (download(f"k8s.io/kubernetes@{KUBERNETES}", scratch) / "go.mod").read_text(encoding="utf-8")
    parts = [line.split()[0] for line in content.splitlines() if " => ./staging/" in line]
    _go("mod", "edit", *[f"-replace={part}={part}@{STAGING}" for part in parts], cwd=folder)
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    version = "k8s.io/component-base/version"
    stamps = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
    flags = "-s -w " + " ".join(f"-X {version}.{name}={value}" for name, value in stamps.items())
    for name in ("kube-apiserver", "kube-controller-manager"):
        if not programs[name].exists():
            _go(
                "build",
                "-trimpath",
                f"-ldflags={flags}",
                "-o",
                str(programs[name]),
                f"k8s.io/kubernetes/cmd/{name}",
                cwd=folder,
            )
    return programs


class ApiServer:
    """``with ApiServer(folder) as server: server.kubectl("get", "pods")``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.config = folder / "kubeconfig"

    def __enter__(self) -> Self:
        programs = build()
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start(programs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, programs: dict[str, Path]) -> None:
        client, peer, port = free_ports(3)
        key, certificate = self._folder / "accounts.key", self._folder / "accounts.crt"
        subject = ["-subj", "/CN=accounts", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject], check=True, capture_output=True
        )
        token = os.urandom(16).hex()
        tokens = self._folder / "tokens.csv"
        tokens.write_text(f'{token},administrator,1,"system:masters"\n', encoding="utf-8")
        store = f"http://127.0.0.1:{client}"
        self._spawn(
            programs["etcd"],
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={store}",
            f"--advertise-client-urls={store}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
        )
        self._spawn(
            programs["kube-apiserver"],
            f"--etcd-servers={store}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self._folder / 'certificates'}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={certificate}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
        )
        self.address = f"https://127.0.0.1:{port}"
        self.write_config(self.config, token)
        deadline = time.monotonic() + START_TIMEOUT
        while subprocess.run(self._command("get", "--raw", "/readyz"), capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise ServerError(f"kube-apiserver does not answer; its log is in {self._folder}")
            time.sleep(1)
        self._spawn(
            programs["kube-controller-manager"],
            f"--kubeconfig={self.config}",
            f"--service-account-private-key-file={key}",
            "--use-service-account-credentials=false",
            "--secure-port=0",
            "--leader-elect=false",
        )

    def _spawn(self, program: Path, *arguments: str) -> None:
        log = self._folder / f"{program.name}.log"
        self._processes.append(spawn([str(program), *arguments], log, leashed=True))

    def write_config(self, path: Path, token: str) -> None:
        """A kubeconfig for whoever has the token."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": self.address, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "here", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        }
        path.write_text(json.dumps(content), encoding="utf-8")
        path.chmod(0o600)

    def _command(self, *arguments: str) -> list[str]:
        return ["kubectl", f"--kubeconfig={self.config}", *arguments]

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """What kubectl prints.

        Raises:
            ServerError: it refused; with its words.
        """
        done = subprocess.run(self._command(*arguments), input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()[-3000:]}")
        return done.stdout
