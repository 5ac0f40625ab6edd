"""How long dbt takes on ten million assessments, whether an incremental build grows with history, how fast dashboards are.

The ledger is simulated (``ledger_rows``), the PostgreSQL is the embedded one with 2 GB of shared buffers and without fsync,
dbt is run as the Dagster job runs it, models and tests. History is filled from now backwards in steps; at each step the
marts are built from nothing, then one new hour of traffic arrives and they are built again, then nothing arrives.

    python -m benchmarks.marts                 # all: about 25 minutes
    python -m benchmarks.marts --quick         # 30,000 and 100,000 assessments: three minutes
    python -m benchmarks.marts --folder F --until 600   # goes on in F for so many seconds, and leaves it there
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from pydantic import SecretStr

from benchmarks.figures import Figure, tell
from benchmarks.ledger_rows import Traffic, fill_hours, fill_inventory
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.settings import DatabaseSettings
from infra.grafana import generate, queries

PROJECT = Path(__file__).resolve().parents[1] / "dbt_project"
CONFIGURATION = {
    "shared_buffers": "2GB", "max_wal_size": "8GB", "fsync": "off", "full_page_writes": "off", "wal_level": "minimal",
    "max_wal_senders": "0", "checkpoint_timeout": "30min", "work_mem": "64MB", "maintenance_work_mem": "512MB",
}  # fmt: skip
STEPS = (1_000_000, 2_000_000, 10_000_000)
QUICK_STEPS = (30_000, 100_000)
WRITERS = 2


class State:
    """What has been done in the folder, so that another run goes on from there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def put(self, **values: Any) -> None:
        self.values |= values
        self.path.write_text(json.dumps(self.values, indent=1))


def server_with_settings(folder: Path) -> EmbeddedPostgres:
    server = EmbeddedPostgres(folder / "postgres")
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        row = connection.execute("SELECT setting FROM pg_settings WHERE name = 'fsync'").fetchone()
        if row == ("off",):
            return server
        for name, value in CONFIGURATION.items():
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
    server.close()
    return EmbeddedPostgres(folder / "postgres")


def fill(settings: DatabaseSettings, traffic: Traffic, end: datetime, first: int, last: int, stop: float) -> int:
    """Fill hours `first` to `last` before `end`, two at a time; returns the first that is missing."""
    engine = open_engine(settings)
    fill_inventory(engine, traffic)
    numbers = iter(range(first, last))
    lock, done, begun = threading.Lock(), set(range(first)), time.monotonic()

    def work() -> None:
        while time.monotonic() < stop:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            for _ in fill_hours(engine, traffic, end - timedelta(hours=number + 1), 1):
                with lock:
                    done.add(number)
                    if len(done) % 20 == 0:
                        passed = time.monotonic() - begun
                        print(f"  {len(done)} of {last} hours, {passed:.0f} s", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(WRITERS) as writers:
        for result in [writers.submit(work) for _ in range(WRITERS)]:
            result.result()
    engine.dispose()
    return next(number for number in range(last + 1) if number not in done)


def vacuum(url: str) -> None:
    """What autovacuum does in the long run."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE) frame, assessment_task, risk_assessment, llm_call, alert, alert_event")


def build(settings: DatabaseSettings, folder: Path) -> dict[str, float]:
    """One `dbt build`: seconds of the whole command, and of each node."""
    from dangerous_driving.defs import dbt

    target = folder / "target"
    begun = time.monotonic()
    done = subprocess.run(
        [dbt.dbt_executable(), "build", "--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)],
        env=os.environ | dbt.dbt_environment(settings, target),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - begun
    if done.returncode:
        raise SystemExit(done.stdout[-3000:])
    results = json.loads((target / "run_results.json").read_text())["results"]
    return {"all": seconds} | {result["unique_id"]: result["execution_time"] for result in results}


def dashboards(url: str, hours: int, repeats: int = 3) -> Iterator[tuple[str, float]]:
    """Each SQL query of each dashboard over all the time there is: the median of its times."""
    until = datetime.now(UTC)
    since = until - timedelta(hours=hours + 2)
    with psycopg.connect(url, autocommit=True) as connection:
        for path in sorted(generate.FOLDER.glob("*.json")):
            board = queries.read(path)
            chosen = {}
            for variable in queries.variable_queries(board):
                chosen[variable.name] = [str(row[0]) for row in connection.execute(variable.text.encode()).fetchall()]
            for query in queries.panel_queries(board):
                if query.source == "sql":
                    statement = queries.expand_sql(query.text, since, until, chosen).encode()
                    times = []
                    for _ in range(repeats):
                        begun = time.monotonic()
                        found = connection.execute(statement).fetchall()
                        times.append(time.monotonic() - begun)
                    # the simulated traffic has nothing to evaluate; tests/grafana asks those panels of a ledger that has
                    assert found or query.name.startswith("evaluation / "), query.name
                    yield query.name, statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="kept, and gone on with; default: a temporary one")
    parser.add_argument("--until", type=float, default=float("inf"), help="s after which no new work is begun")
    arguments = parser.parse_args()
    stop = time.monotonic() + arguments.until
    traffic = Traffic(cameras=10, frames=70) if arguments.quick else Traffic()
    steps = QUICK_STEPS if arguments.quick else STEPS
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with server_with_settings(folder) as server:
            state = State(folder / "state.json")
            whole = measure(server, state, folder, traffic, steps, stop)
            done = tuple(step for step in steps if step in state.values["built"])
            if len(done) > 1:
                report("marts_quick" if arguments.quick else "marts", state.values, done)
            if not whole:
                print(f"stopped before {steps[-1]:,}: run it again with --folder {folder}")


def measure(
    server: EmbeddedPostgres, state: State, folder: Path, traffic: Traffic, steps: tuple[int, ...], stop: float
) -> bool:
    """All steps; False when the time was over before."""
    url = server.create_database("ledger")
    settings = DatabaseSettings(url=SecretStr(url))
    if "end" not in state.values:
        engine = open_engine(settings)
        migrate(engine)
        engine.dispose()
        state.put(end=datetime.now(UTC).replace(minute=0, second=0, microsecond=0).isoformat(), filled=0, built=[])
    end = datetime.fromisoformat(state.values["end"])
    for step in steps:
        if step in state.values["built"]:
            continue
        hours = round(step / traffic.assessments_per_hour)
        print(f"{step:,} assessments: {hours} hours", file=sys.stderr, flush=True)
        # the hours before the end, the latest first
        begun = time.monotonic()
        state.put(filled=fill(settings, traffic, end, state.values["filled"], hours, stop))
        print(f"  filled {state.values['filled']} in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        if state.values["filled"] < hours or time.monotonic() > stop:
            return False
        vacuum(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS marts CASCADE")
        found: dict[str, Any] = {"full": build(settings, folder)}
        print(f"  full: {found['full']['all']:.1f} s", file=sys.stderr, flush=True)
        engine = open_engine(settings)
        number = len(state.values["built"])
        list(fill_hours(engine, traffic, end + timedelta(hours=number), 1, written=datetime.now(UTC)))
        engine.dispose()
        found["incremental"] = build(settings, folder)
        print(f"  incremental: {found['incremental']['all']:.1f} s", file=sys.stderr, flush=True)
        found["nothing new"] = build(settings, folder)
        found["dashboards"] = dict(dashboards(url, hours))
        with psycopg.connect(url) as connection:
            found["counts"] = {
                table: connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()[0]  # type: ignore[index]
                for table in (
                    "frame",
                    "assessment_task",
                    "risk_assessment",
                    "llm_call",
                    "alert",
                    "marts.fct_assessments",
                )
            }
            found["bytes"] = connection.execute("SELECT pg_database_size('ledger')").fetchone()[0]  # type: ignore[index]
        state.put(**{str(step): found}, built=[*state.values["built"], step])
    return True


def models(times: dict[str, float]) -> float:
    """Seconds of the models alone, without tests and dbt's own start."""
    return sum(seconds for node, seconds in times.items() if node.startswith("model."))


def report(name: str, values: dict[str, Any], steps: tuple[int, ...]) -> None:
    small, large = (values[str(step)] for step in (steps[0], steps[-1]))
    last = f"{large['counts']['risk_assessment']:,} assessments"
    slowest = max(large["dashboards"], key=lambda query: large["dashboards"][query])
    figures = [
        Figure(f"dbt build from nothing, {last}", large["full"]["all"], "s", models(large["full"]), None, note="baseline: the models alone"),
        Figure(
            f"dbt build after one new hour, {last}", large["incremental"]["all"], "s", large["full"]["all"],
            large["incremental"]["all"] / large["full"]["all"], note="baseline: from nothing",
        ),
        Figure(
            f"... against {steps[0]:,} assessments", large["incremental"]["all"], "s", small["incremental"]["all"],
            large["incremental"]["all"] / small["incremental"]["all"], "<= 1.25 (flat)",
            large["incremental"]["all"] / small["incremental"]["all"] <= 1.25,
        ),
        Figure(
            "... its models alone", models(large["incremental"]), "s", models(small["incremental"]),
            models(large["incremental"]) / models(small["incremental"]),
        ),
        Figure(f"dbt build with nothing new, {last}", large["nothing new"]["all"], "s", small["nothing new"]["all"],
               large["nothing new"]["all"] / small["nothing new"]["all"]),
        Figure(
            f"slowest of {len(large['dashboards'])} dashboard queries over all of it", large["dashboards"][slowest], "s", None, None,
            "< 1 s", large["dashboards"][slowest] < 1, slowest,
        ),
    ]  # fmt: skip
    for kind in ("full", "incremental"):
        slow = sorted(large[kind].items(), key=lambda item: -item[1])[1:8]
        print(f"{kind}: " + ", ".join(f"{node.split('.')[2]} {seconds:.1f} s" for node, seconds in slow))
    print("rows: " + ", ".join(f"{table} {count:,}" for table, count in large["counts"].items()))
    print(f"database: {large['bytes'] / 1e9:.1f} GB")
    tell(name, figures)


if __name__ == "__main__":
    main()
