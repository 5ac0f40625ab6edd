"""The pages of Dagster as partitions grow: ``risk_assessments`` of 50 cameras over one day and over 90.

    python -m benchmarks.partitions

A webserver and a daemon of their own on the embedded PostgreSQL. Every partition has a materialisation: one is reported
through Dagster, the others are copies of its rows, since reporting 108,000 would take most of an hour. Measured are the
query with which the asset's page asks for all partitions, the page itself in Chromium until its matrix names the cameras,
and a backfill of four cameras x 24 windows, from the request to the first run that works.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import psycopg
from playwright.sync_api import sync_playwright
from rich.progress import track

from benchmarks.figures import Figure, tell
from dangerous_driving.defs.partitions import CAMERA, window_partitions
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.settings import load
from dangerous_driving.simulation.llm import serving

REPOSITORY = Path(__file__).resolve().parents[1]
CAMERAS = [f"cam-{number:02d}" for number in range(50)]
DAYS = (1, 90)
ASSET = "risk_assessments"
LOCATION = "dangerous_driving.definitions"
PATIENCE = 600.0  # s
BATCH = 5000

#: What the asset's page asks for its matrix of partitions.
HEALTH = """
query Health($asset: AssetKeyInput!) {
  assetNodeOrError(assetKey: $asset) { ... on AssetNode {
    partitionKeysByDimension { name type partitionKeys }
    assetPartitionStatuses { ... on MultiPartitionStatuses {
      primaryDimensionName
      ranges {
        primaryDimStartKey primaryDimEndKey
        secondaryDim {
          ... on TimePartitionStatuses { ranges { status startKey endKey } }
          ... on DefaultPartitionStatuses { materializedPartitions }
        }
      }
    } }
  } }
}
"""
BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) { __typename ... on PythonError { message } }
}
"""


@contextmanager
def instance(folder: Path, days: int) -> Iterator[tuple[dg.DagsterInstance, str]]:
    """A Dagster instance on PostgreSQL, and the address of its database; everything is named by the environment."""
    home = folder / "dagster"
    home.mkdir()
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", home)
    # so many whole days lie before this hour
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=days)
    with EmbeddedPostgres(folder / "postgres") as server, serving() as address:
        storage = server.create_database("dagster")
        os.environ |= {
            "DAGSTER_HOME": str(home),
            "DAGSTER_POSTGRES_URL": storage,
            "DAGSTER_MAX_CONCURRENT_RUNS": "1",
            "DD_DATABASE__URL": server.create_database("ledger"),
            "DD_OBJECTS__FOLDER": str(folder / "objects"),
            "DD_LLM__BASE_URL": address,
            "DD_LLM__MODEL": "simulated-vl",
            "DD_KEYS__SECRETS": '["sk-simulated-1"]',
            "DD_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "DD_KAFKA__REQUEST_TIMEOUT": "0.5",
            "DD_WINDOWS__LENGTH": "3600",
            "DD_WINDOWS__START": start.strftime("%Y-%m-%dT%H:%M"),
        }
        engine = open_engine(load().database)
        migrate(engine)
        engine.dispose()
        with dg.DagsterInstance.get() as opened:
            yield opened, storage


def fill(opened: dg.DagsterInstance, storage: str) -> list[str]:
    """A materialisation of every partition; returns their keys."""
    opened.add_dynamic_partitions(CAMERA, CAMERAS)
    keys = window_partitions(load().windows, datetime.now(UTC)).get_partition_keys(dynamic_partitions_store=opened)
    opened.report_runless_asset_event(dg.AssetMaterialization(ASSET, partition=keys[0]))
    with psycopg.connect(storage) as connection:
        model = connection.execute(
            "SELECT id FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION' AND partition = %s",
            (keys[0],),
        ).fetchone()
        if model is None:
            raise SystemExit("the reported materialisation is not in the event log")
        cameras, windows = zip(*(key.split("|") for key in keys[1:]), strict=True)
        for begin in track(range(0, len(cameras), BATCH), description="materialisations", transient=True):
            connection.execute(
                _COPIES,
                {
                    "model": model[0], "camera": list(cameras[begin : begin + BATCH]),
                    "window": list(windows[begin : begin + BATCH]), "key": keys[0],
                    "model_camera": keys[0].split("|")[0], "model_window": keys[0].split("|")[1],
                },
            )  # fmt: skip
    with psycopg.connect(storage, autocommit=True) as connection:
        connection.execute("ANALYZE")
        [found] = connection.execute("SELECT count(DISTINCT partition) FROM event_logs").fetchone() or (0,)
    if found != len(keys):
        raise SystemExit(f"{found} partitions are materialised, {len(keys)} were wanted")
    return [str(key) for key in keys]


#: Rows of an event are its own and one for each of its tags; both name the partition.
_COPIES = """
WITH partitions AS (
  SELECT c AS camera, w AS win, c || '|' || w AS key FROM unnest(%(camera)s::text[], %(window)s::text[]) AS t(c, w)
), copied AS (
  INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
  SELECT e.run_id,
         replace(replace(replace(e.event, %(key)s, p.key), '"' || %(model_camera)s || '"', '"' || p.camera || '"'),
                 '"' || %(model_window)s || '"', '"' || p.win || '"'),
         e.dagster_event_type, e.timestamp, e.step_key, e.asset_key, p.key
  FROM event_logs e CROSS JOIN partitions p WHERE e.id = %(model)s
  RETURNING id, partition
)
INSERT INTO asset_event_tags (event_id, asset_key, key, value, event_timestamp)
SELECT c.id, t.asset_key, t.key,
       CASE t.value WHEN %(key)s THEN c.partition WHEN %(model_camera)s THEN split_part(c.partition, '|', 1)
                    WHEN %(model_window)s THEN split_part(c.partition, '|', 2) ELSE t.value END,
       t.event_timestamp
FROM copied c CROSS JOIN asset_event_tags t WHERE t.event_id = %(model)s
"""


@contextmanager
def process(folder: Path, *command: str) -> Iterator[None]:
    """One of Dagster's services, until the end of the block."""
    with (folder / "dagster.log").open("ab") as log:
        started = subprocess.Popen([sys.executable, "-m", *command, "-m", LOCATION], stdout=log, stderr=log)
    try:
        yield
    finally:
        started.terminate()
        started.wait(120)


def until(what: str, look: Callable[[], bool]) -> float:
    """Seconds until it is so."""
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"in vain waited for {what}")
        time.sleep(0.1)
    return time.monotonic() - began


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def ask(url: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{url}/graphql", json={"query": query, "variables": variables}, timeout=PATIENCE).json()
    if answer.get("errors"):
        raise SystemExit(f"GraphQL: {answer['errors']}")
    data: dict[str, Any] = answer["data"]
    return data


def health(url: str) -> float:
    began = time.monotonic()
    found = ask(url, HEALTH, {"asset": {"path": [ASSET]}})["assetNodeOrError"]
    took = time.monotonic() - began
    if not found["assetPartitionStatuses"]["ranges"]:
        raise SystemExit("the page would show no materialised partition")
    return took


def page(url: str) -> float:
    """Seconds until the matrix of partitions names the cameras."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": 1500, "height": 950})
        began = time.monotonic()
        shown.goto(f"{url}/assets/{ASSET}?view=partitions", wait_until="domcontentloaded", timeout=PATIENCE * 1000)
        shown.get_by_text(CAMERAS[0], exact=True).first.wait_for(timeout=PATIENCE * 1000)
        took = time.monotonic() - began
        browser.close()
    return took


def backfill(url: str, opened: dg.DagsterInstance, keys: list[str]) -> tuple[float, float]:
    """Seconds that the request takes, and until the first run works."""
    wanted = [key for camera in CAMERAS[:4] for key in [k for k in keys if k.startswith(f"{camera}|")][-24:]]
    params = {"assetSelection": [{"path": [ASSET]}], "partitionNames": wanted}
    began = time.monotonic()
    answer = ask(url, BACKFILL, {"params": params})["launchPartitionBackfill"]
    requested = time.monotonic() - began
    if answer["__typename"] != "LaunchBackfillSuccess":
        raise SystemExit(f"GraphQL: {answer}")
    working = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS])
    until("a run of the backfill", lambda: bool(opened.get_runs(working, limit=1)))
    return requested, time.monotonic() - began


def measured(days: int) -> dict[str, tuple[float, str]]:
    with tempfile.TemporaryDirectory() as place, instance(Path(place), days) as (opened, storage):
        folder = Path(place)
        keys = fill(opened, storage)
        print(f"{days} days: {len(keys)} partitions, all materialised", flush=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with process(folder, "dagster_webserver", "--host", "127.0.0.1", "--port", str(port)):
            until("the webserver", lambda: answers(f"{url}/server_info"))
            found = {"partitions": (float(len(keys)), "")}
            found["asset page: query of all partitions, first"] = (health(url), "s")
            found["asset page: query of all partitions, again"] = (health(url), "s")
            found["asset page in Chromium until its matrix is there"] = (page(url), "s")
            with process(folder, "dagster._daemon", "run"):
                requested, works = backfill(url, opened, keys)
            found["backfill of 4 cameras x 24 windows: request"] = (requested, "s")
            found["backfill of 4 cameras x 24 windows: first run works"] = (works, "s")
    return found


def main() -> None:
    few, many = (measured(days) for days in DAYS)
    tell(
        "partitions",
        [
            Figure(name, value, unit, few[name][0], value / few[name][0], note=f"{DAYS[1]} days against {DAYS[0]}")
            for name, (value, unit) in many.items()
        ],
    )


if __name__ == "__main__":
    main()
