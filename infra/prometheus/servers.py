"""Prometheus and Alertmanager on this machine, without Docker and without root, with the rules of this folder.

For tests and proofs all durations of the rules can be divided by a factor: the ``for:``, the ranges of rates, the intervals of
scrapes and evaluations and Alertmanager's waits. Thresholds stay as they are. Needs Debian's ``prometheus`` and
``prometheus-alertmanager``.

From the command line: the two beside a running demo, until Ctrl-C (``python -m infra.prometheus.servers --data-dir data/demo``).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

import yaml

from dangerous_driving.ports import free_ports
from infra.kafka.cluster import spawn

HERE = Path(__file__).parent
RULES = ("rules/recording.yml", "rules/alerts.yml")
START_TIMEOUT = 60.0  # s
STOP_TIMEOUT = 10.0

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(?:\d+(?:ms|[smhdw]))+")
_PART = re.compile(r"(\d+)(ms|[smhdw])")
#: Settings that are durations, in rules and in both configurations.
_TIMES = frozenset(
    {
        "for", "interval", "scrape_interval", "scrape_timeout", "evaluation_interval", "refresh_interval", "group_wait",
        "group_interval", "repeat_interval",
    }
)  # fmt: skip


class MonitoringError(Exception):
    """Prometheus or Alertmanager cannot be had here, or did not start."""


def missing() -> str | None:
    """Which of the programs is not installed; None: all are."""
    needed = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")
    lacking = [program for program in needed if shutil.which(program) is None]
    if not lacking:
        return None
    return f"{', '.join(lacking)}: not installed; on Debian: apt-get install prometheus prometheus-alertmanager"


def shortened(content: Any, factor: float) -> Any:
    """Rules or configuration with all durations divided by the factor (1 s at least, and whole seconds)."""
    if isinstance(content, dict):
        return {
            key: _divided(value, factor)
            if key in _TIMES and isinstance(value, str)
            else re.sub(r"\[([0-9a-z]+)\]", lambda found: f"[{_divided(str(found[1]), factor)}]", value)
            if key == "expr"
            else shortened(value, factor)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [shortened(item, factor) for item in content]
    return content


def _divided(duration: str, factor: float) -> str:
    if not _DURATION.fullmatch(duration):
        raise ValueError(f"{duration!r} is no duration")
    seconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(duration))
    return f"{max(1, math.ceil(seconds / factor))}s" if seconds else "0s"


class Monitoring:
    """Both servers, within a block.

    Args:
        folder: of configuration, data and logs.
        targets: where the services write their addresses (``observability.targets_folder``).
        webhook: whom Alertmanager tells.
        factor: by which all durations are divided.
        prometheus_port: None: a free one.

    Raises:
        MonitoringError: a program is missing, or did not start.
    """

    def __init__(
        self, folder: Path, targets: Path, webhook: str, *, factor: float = 1.0, prometheus_port: int | None = None
    ) -> None:
        if (lacking := missing()) is not None:
            raise MonitoringError(lacking)
        self._folder = folder.resolve()
        self._factor = factor
        self._processes: list[subprocess.Popen[bytes]] = []
        port, alertmanager_port = free_ports(2)
        self._port = prometheus_port or port
        self.url = f"http://127.0.0.1:{self._port}"
        self.alertmanager_url = f"http://127.0.0.1:{alertmanager_port}"
        self._alertmanager = f"127.0.0.1:{alertmanager_port}"
        self._write(targets.resolve(), webhook)

    def _write(self, targets: Path, webhook: str) -> None:
        (self._folder / "rules").mkdir(parents=True, exist_ok=True)
        for name in RULES:
            rules = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
            (self._folder / name).write_text(yaml.safe_dump(shortened(rules, self._factor)), encoding="utf-8")
        configuration = yaml.safe_load((HERE / "prometheus.yml").read_text(encoding="utf-8"))
        configuration["scrape_configs"][0]["file_sd_configs"][0]["files"] = [f"{targets}/*.json"]
        configuration["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [self._alertmanager]
        self._config("prometheus.yml", configuration)
        told = yaml.safe_load((HERE / "alertmanager.yml").read_text(encoding="utf-8"))
        told["receivers"][0]["webhook_configs"][0]["url"] = webhook
        self._config("alertmanager.yml", told)

    def _config(self, name: str, content: Any) -> None:
        (self._folder / name).write_text(yaml.safe_dump(shortened(content, self._factor)), encoding="utf-8")

    def __enter__(self) -> Self:
        self._spawn(
            "prometheus-alertmanager", f"--config.file={self._folder}/alertmanager.yml",
            f"--storage.path={self._folder}/alertmanager", f"--web.listen-address={self._alertmanager}",
            "--cluster.listen-address=", "--log.level=warn",
        )  # fmt: skip
        self._spawn(
            "prometheus", f"--config.file={self._folder}/prometheus.yml", f"--storage.tsdb.path={self._folder}/prometheus",
            f"--web.listen-address=127.0.0.1:{self._port}", "--enable-feature=exemplar-storage", "--log.level=warn",
        )  # fmt: skip
        try:
            for address in (self.alertmanager_url, self.url):
                self._await(f"{address}/-/ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _spawn(self, *command: str) -> None:
        self._processes.append(spawn(command, self._folder / f"{command[0]}.log", leashed=True))

    def _await(self, address: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            for process in self._processes:
                if process.poll() is not None:
                    raise MonitoringError(f"a server ended with {process.returncode}: {self._last_words()}")
            try:
                with urllib.request.urlopen(address, timeout=2):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise MonitoringError(
                        f"{address} does not answer after {START_TIMEOUT:g} s: {self._last_words()}"
                    ) from None
            time.sleep(0.05)

    def _last_words(self) -> str:
        return " | ".join(
            log.read_text(encoding="utf-8", errors="replace")[-600:] for log in sorted(self._folder.glob("*.log"))
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers now: a list of ``{"metric": labels, "value": [time, text]}``."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def exemplars(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """The exemplars of the last seconds, by series."""
        now = time.time()
        found: list[dict[str, Any]] = self._get("query_exemplars", query=expression, start=now - seconds, end=now)
        return found

    def targets(self) -> dict[str, str]:
        """The state (``up``, ``down``, ``unknown``) of each service that was found."""
        active = self._get("targets", state="active")["activeTargets"]
        return {target["labels"].get("service", target["scrapeUrl"]): target["health"] for target in active}

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or fire: ``{"labels": …, "state": …}``."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return found

    def _get(self, what: str, **parameters: object) -> Any:
        address = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]


def main() -> int:
    """Both servers beside a running demo, until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="of the demo")
    parser.add_argument("--port", type=int, default=9090, help="of Prometheus")
    parser.add_argument("--webhook", default="http://127.0.0.1:9099/alerts", help="see infra.prometheus.receiver")
    parser.add_argument("--factor", type=float, default=15.0, help="divides all durations: a demo is short")
    asked = parser.parse_args()
    try:
        with Monitoring(
            asked.data_dir / "prometheus", asked.data_dir / "targets", asked.webhook,
            factor=asked.factor, prometheus_port=asked.port,
        ) as monitoring:  # fmt: skip
            print(f"prometheus: {monitoring.url}\nalertmanager: {monitoring.alertmanager_url}", flush=True)
            try:
                signal.pause()
            except KeyboardInterrupt:
                return 0
    except MonitoringError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
