"""The key pool against the theoretical quota, and against what others use, on the same simulated endpoint.

    python -m benchmarks.key_pool            # all parts, about 18 minutes
    python -m benchmarks.key_pool --quick    # a scaled minute of 10 s, under three minutes
    python -m benchmarks.key_pool --parts quota,lanes    # some parts; the table is made of all parts measured so far

Client, endpoint and database share this machine's cores, at high priority where that is allowed. LiteLLM runs in an environment of its own (`make benchmark-litellm`) and is
left out, with a line that says so, where that is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from benchmarks.endpoint import secrets_of
from benchmarks.figures import Figure, tell
from dangerous_driving.assessment.key_pool import key_hash
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.settings import DatabaseSettings

ROOT = Path(__file__).resolve().parents[1]
LITELLM = ROOT / ".venv-litellm" / "bin" / "python"
PARTS_FOLDER = ROOT / "build" / "key_pool"
QPS = 10
STRATEGIES = ("usage-based-routing-v2", "least-busy", "simple-shuffle")
PLAIN = ("round-robin", "exclusive", "single")


@dataclass(frozen=True)
class Scale:
    """How long things take: for real, or with a scaled minute."""

    minute: float
    rpm: int
    quota_seconds: float
    contender_seconds: float
    load_seconds: float


# four whole minutes: the pool's margin makes a minute's burst longer, and what is left of one at the end would be cut off
FULL = Scale(60.0, 300, 240.0, 65.0, 15.0)
QUICK = Scale(10.0, 50, 12.0, 11.0, 5.0)


def theoretical(keys: int, seconds: float, scale: Scale) -> int:
    """The most that exact sliding windows take in so many seconds: each minute's requests as early as the second allows."""
    total, begins = 0, 0.0
    while begins < seconds:
        total += min(scale.rpm, QPS * (int(seconds - begins) + 1))
        begins += scale.minute
    return keys * total


class Endpoint:
    """A running `benchmarks.endpoint`."""

    def __init__(self, address: str) -> None:
        self.url = f"{address}/v1"
        self._admin = f"{address}/admin"

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._admin}/state", timeout=20) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found

    def fault(self, action: str, key: str | None = None, amount: float = 1.0) -> None:
        order = json.dumps({"action": action, "key": key, "amount": amount}).encode()
        urllib.request.urlopen(f"{self._admin}/faults", order, timeout=20).close()  # noqa: S310

    def taken(self) -> int:
        """Requests that counted for a limit."""
        state = self.state()
        rejected = sum(key["rejected"] for key in state["keys"])
        return int(state["requests"] - state["rate_limited"] - rejected - state["unknown_keys"])


@contextmanager
def endpoint(keys: int, scale: Scale) -> Iterator[Endpoint]:
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [
            sys.executable, "-m", "benchmarks.endpoint", "--keys", str(keys), "--port-file", str(port_file),
            "--minute", str(scale.minute), "--rpm", str(scale.rpm),
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
        try:
            while not port_file.exists():
                time.sleep(0.05)
            yield Endpoint(f"http://127.0.0.1:{port_file.read_text()}")
        finally:
            # it keeps nothing, and a SIGTERM that is blocked or ignored here would be so there, too
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def database() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "data") as server:
        url = server.create_database("benchmark")
        engine = open_engine(DatabaseSettings(url=SecretStr(url)))
        migrate(engine)
        engine.dispose()
        yield url


def start(kind: str, at: Endpoint, scale: Scale, keys: int, seconds: float, **more: object) -> subprocess.Popen[str]:
    """A calling process of this kind; it begins within three seconds."""
    litellm = kind in STRATEGIES
    command = (
        [str(LITELLM), "benchmarks/litellm_caller.py"] if litellm else [sys.executable, "-m", "benchmarks.callers"]
    )
    options: dict[str, object] = {"url": at.url, "keys": keys, "seconds": seconds, "rpm": scale.rpm, **more}
    if not litellm:
        options["minute"] = scale.minute
    for name, value in options.items():
        command[len(command) :] = [f"--{name.replace('_', '-')}", str(value)]
    place = 2 if litellm else 3
    command.insert(place, kind)
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=900)
    lines = output.strip().splitlines()
    if not lines:
        raise RuntimeError(f"a caller ended with {process.returncode} and told nothing")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def soon(seconds: float = 8.0) -> float:
    """When processes that are started now begin together: they take seconds to import, LiteLLM many."""
    return time.time() + seconds


# -- the parts: each returns plain values, kept in a file


def quota(scale: Scale, progress: str) -> dict[str, Any]:
    """A backlog, side by side: 10 keys and 1 key in one process each, four processes that share 10 keys, the ideal limiter.

    All of it needs about one of this machine's two cores.
    """
    found: dict[str, Any] = {}
    seconds = scale.quota_seconds
    with ExitStack() as stack:
        url = stack.enter_context(database())
        names = {"10": 10, "1": 1, "gcra": 10, "shared": 10}
        places = {name: stack.enter_context(endpoint(keys, scale)) for name, keys in names.items()}
        at = soon(12)
        calls = {
            "10": [start("own", places["10"], scale, 10, seconds, start_at=at, workers=160)],
            "1": [start("own", places["1"], scale, 1, seconds, start_at=at, workers=30)],
            "gcra": [start("gcra", places["gcra"], scale, 10, seconds, start_at=at, workers=160)],
            "shared": [
                start("own", places["shared"], scale, 10, seconds, start_at=at, workers=40, database=url)
                for _ in range(4)
            ],
        }
        for name, processes in calls.items():
            counts = [finish(process) for process in processes]
            state = places[name].state()
            found[name] = {"counts": counts, "taken": places[name].taken(), "limited": state["rate_limited"],
                           "endpoint_pause": state["delays"][0], "theory": theoretical(names[name], seconds, scale),
                           "longest_pause": max(count["longest_pause"] for count in counts)}  # fmt: skip
    print(f"{progress} quota: 1 key, 10 keys, four processes, the ideal limiter", flush=True)
    return found


def quota50(scale: Scale, progress: str) -> dict[str, Any]:
    """50 keys, two processes through PostgreSQL: one alone has not the processor time for 250 streams a second."""
    with database() as url, endpoint(50, scale) as fifty:
        at = soon()
        calls = [
            start("own", fifty, scale, 50, scale.quota_seconds, start_at=at, workers=400, database=url)
            for _ in range(2)
        ]
        counts = [finish(call) for call in calls]
        print(f"{progress} quota, 50 keys", flush=True)
        return {"counts": counts, "taken": fifty.taken(), "limited": fifty.state()["rate_limited"],
                "endpoint_pause": fifty.state()["delays"][0],
                "theory": theoretical(50, scale.quota_seconds, scale)}  # fmt: skip


def lanes(scale: Scale, progress: str) -> dict[str, Any]:
    """A backlog of the window lane in one process and a realtime task twice a second in another; beside it, keys that fail.

    At 70 % of the quota, one of ten keys is revoked and one throttled to a third in mid-run.
    """
    seconds = scale.contender_seconds
    revoked, throttled = (key_hash(secret) for secret in secrets_of(10)[:2])
    with database() as url, endpoint(10, scale) as where, endpoint(10, scale) as failing:
        at = soon(10)
        window = start("own", where, scale, 10, seconds, start_at=at, workers=120, lane="window", database=url)
        realtime = start("own", where, scale, 10, seconds - 2, start_at=at + 2, mode="load", rate=2, database=url)
        rate = 0.7 * 10 * scale.rpm / scale.minute
        call = start("own", failing, scale, 10, seconds, start_at=at, mode="load", rate=rate)
        time.sleep(at - time.time() + seconds / 3)
        failing.fault("revoke", revoked)
        failing.fault("throttle", throttled, 0.33)
        found = {"realtime": finish(realtime), "window": finish(window), "limited": where.state()["rate_limited"]}
        count = finish(call)
        keys = {key["key_hash"]: key for key in failing.state()["keys"]}
        found["faults"] = {
            **count,
            "rejected": keys[revoked]["rejected"],
            "limited": failing.state()["rate_limited"],
        }
    print(f"{progress} a realtime task beside a backlog; a key revoked, a key throttled", flush=True)
    return found


def contenders(scale: Scale, progress: str) -> dict[str, Any]:
    """Each with a backlog, and each at 80 % of the quota; LiteLLM alone, since it needs a core, the others side by side."""
    found: dict[str, Any] = {}
    rounds = [("own", *PLAIN), *((kind,) for kind in STRATEGIES if LITELLM.exists())]
    rate = 0.8 * 10 * scale.rpm / scale.minute
    for kinds in rounds:
        for mode, seconds in (("backlog", scale.contender_seconds), ("load", scale.load_seconds)):
            with ExitStack() as stack:
                places = {kind: stack.enter_context(endpoint(10, scale)) for kind in kinds}
                at = soon(10)
                calls = {
                    kind: start(kind, where, scale, 10, seconds, start_at=at, mode=mode, rate=rate)
                    for kind, where in places.items()
                }
                for kind, call in calls.items():
                    count = {**finish(call), "limited": places[kind].state()["rate_limited"], "seconds": seconds}
                    if mode == "backlog":
                        found[kind] = count
                    else:
                        found[kind]["load"] = count
        print(f"{progress} {', '.join(kinds)}", flush=True)
    return found


def platform(scale: Scale, progress: str) -> dict[str, Any]:
    """The whole realtime lane at 80 % of the quota, and at light load; its minute is a real one in the quick run too."""
    found = {}
    scale = replace(FULL, contender_seconds=min(scale.contender_seconds, 30.0))
    for name, rate in (("load", 0.8 * 10 * scale.rpm / scale.minute), ("light", 2.0)):
        seconds = scale.contender_seconds if name == "load" else max(scale.contender_seconds, 15.0)
        with database() as url, endpoint(10, scale) as where:
            command = [
                sys.executable, "-m", "benchmarks.realtime_lane", "--url", where.url, "--database", url,
                "--seconds", str(seconds), "--rate", str(rate), "--minute", str(scale.minute), "--rpm", str(scale.rpm),
            ]  # fmt: skip
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            found[name] = {**finish(process), "limited": where.state()["rate_limited"]}
        print(f"{progress} the realtime lane, {name}", flush=True)
    return found


PARTS = {"quota": quota, "lanes": lanes, "platform": platform, "contenders": contenders, "quota50": quota50}


# -- the table


def figures(parts: dict[str, dict[str, Any]]) -> list[Figure]:
    """One row per target, of the parts that were measured."""
    rows: list[Figure] = []
    if "quota" in parts:
        part = parts["quota"]
        rows += _quota_rows("1 key, 1 process", part["1"])
        rows += _quota_rows("10 keys, 1 process", part["10"])
        rows += _quota_rows("10 keys, 4 processes", part["shared"])
        taken, ideal = part["shared"]["taken"], part["gcra"]["taken"]
        rows.append(Figure("4 processes with PostgreSQL against an ideal limiter", taken, "requests", ideal,
                           taken / ideal, ">= 0.97", taken / ideal >= 0.97,
                           f"GCRA in one process; its answers 429: {part['gcra']['limited']}"))  # fmt: skip
        asked = sum(count["exchanges"] for count in part["shared"]["counts"])
        rows.append(Figure("exchanges with PostgreSQL per request", asked / taken, "ratio", target="< 1",
                           met=asked < taken))  # fmt: skip
    if "quota50" in parts:
        rows += _quota_rows("50 keys, 2 processes", parts["quota50"])
    if "lanes" in parts:
        wait = parts["lanes"]["realtime"]["wait_p95"]
        rows.append(Figure("realtime waits for a key beside a backlog, P95", wait * 1000, "ms", target="< 300",
                           met=wait < 0.3))  # fmt: skip
        rows += _fault_rows(parts["lanes"]["faults"])
    if "contenders" in parts:
        rows += _contender_rows(parts["contenders"])
    if "platform" in parts:
        rows += _platform_rows(parts["platform"])
    return rows


def _quota_rows(name: str, part: dict[str, Any]) -> list[Figure]:
    share = part["taken"] / part["theory"]
    callers = max(count["longest_pause"] for count in part["counts"])
    note = f"longest pauses: endpoint {part['endpoint_pause']:.2f} s, caller {callers:.2f} s"
    return [
        Figure(f"quota used, {name}", part["taken"], "requests", part["theory"], share, ">= 0.98", share >= 0.98),
        Figure(f"answers 429, {name}", part["limited"], "answers", target="0", met=part["limited"] == 0, note=note),
    ]


def _contender_rows(part: dict[str, Any]) -> list[Figure]:
    own = part["own"]
    rows = []
    own_rate, own_added = own["answered"] / own["seconds"], own["load"]["added_p95"]
    own_cpu = own["cpu"] / own["answered"]
    for kind, other in part.items():
        if kind == "own":
            rows.append(Figure("added to the model's time at 80 % load, P95: own", own_added * 1000, "ms",
                               target="<= 10", met=own_added <= 0.010))  # fmt: skip
            continue
        rate = other["answered"] / other["seconds"]
        more, fewer = own_rate > rate, own["limited"] <= other["limited"]
        rows.append(Figure(f"answers per second against {kind}", own_rate, "1/s", rate, own_rate / max(rate, 1e-9),
                           "> 1", more, f"lost {other['lost']} (own {own['lost']})"))  # fmt: skip
        rows.append(Figure(f"answers 429 against {kind}", own["limited"], "answers", other["limited"],
                           target="fewer", met=fewer))  # fmt: skip
        added = other["load"]["added_p95"]
        if added is not None:
            lost = other["load"]["lost"]
            rows.append(Figure(f"added at 80 % load, P95, against {kind}", own_added * 1000, "ms", added * 1000,
                               own_added / max(added, 1e-9), "< 1", own_added < added,
                               f"it lost {lost} at that load" if lost else ""))  # fmt: skip
        if kind in STRATEGIES:
            cpu = other["cpu"] / max(other["answered"], 1)
            rows.append(Figure(f"processor time per answer against {kind}", own_cpu * 1000, "ms", cpu * 1000,
                               own_cpu / cpu, "< 1", own_cpu < cpu))  # fmt: skip
    return rows


def _fault_rows(part: dict[str, Any]) -> list[Figure]:
    total = part["answered"] + part["lost"]
    success = part["answered"] / total
    return [
        Figure("a key revoked and one throttled: tasks lost", part["lost"], "tasks", target="0", met=part["lost"] == 0),
        Figure("a key revoked and one throttled: success", success, "share", target="> 0.99", met=success > 0.99),
        Figure("calls on the revoked key", part["rejected"], "calls", target="1", met=part["rejected"] <= 1,
               note="those under way when the first 401 came are among them"),
    ]  # fmt: skip


def _platform_rows(part: dict[str, Any]) -> list[Figure]:
    load, light = part["load"], part["light"]
    own = load["own_p95"]
    return [
        Figure("platform's own latency at 80 % load, P95", own * 1000, "ms", target="< 50", met=own < 0.05,
               note=f"task read to call {load['to_call_p95'] * 1000:.0f}, answer to result {load['to_result_p95'] * 1000:.0f}"),
        Figure("streamed level of a dangerous group after capture, P95", light["level_p95"], "s", target="<= 1.5",
               met=light["level_p95"] <= 1.5, note=f"light load; capture lies {light['before']} s before the task"),
        *(_pause_row(name, part) for name, part in (("light load", light), ("80 % load", load))),
    ]  # fmt: skip


def _pause_row(name: str, part: dict[str, Any]) -> Figure:
    """Beside the pause that an idle process had on the machine meanwhile; what the loop itself computed is in the note."""
    pause, machine = part["longest_pause"], part.get("machine_pause")
    note = f"P99.9 {part['pause_p999'] * 1000:.0f} ms"
    if "own_pause" in part:
        note += f"; the loop's own processor time in one go: {part['own_pause'] * 1000:.0f} ms at most"
    return Figure(f"longest pause of assess' event loop, {name}", pause * 1000, "ms", machine and machine * 1000,
                  pause / machine if machine else None, "<= 50", pause <= 0.05, note)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default="", help=f"of {','.join(PARTS)}")
    given = parser.parse_args(arguments)
    scale, folder = (QUICK, PARTS_FOLDER / "quick") if given.quick else (FULL, PARTS_FOLDER / "full")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):
        os.nice(-15)  # other work on the machine shall not be measured; what is compared runs at the same priority
    wanted = (
        given.parts.split(",") if given.parts else [name for name in PARTS if not (given.quick and name == "quota50")]
    )
    if "contenders" in wanted and not LITELLM.exists():
        print("LiteLLM is left out: its environment is missing (make benchmark-litellm)")
    for number, name in enumerate(wanted, 1):
        values = PARTS[name](scale, f"[{number}/{len(wanted)}]")
        (folder / f"{name}.json").write_text(json.dumps(values, indent=1))
    parts = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in PARTS if (folder / f"{name}.json").exists()
    }
    tell("key_pool_quick" if given.quick else "key_pool", figures(parts))


if __name__ == "__main__":
    main()
