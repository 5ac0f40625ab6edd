"""The window lane: Dagster runs against the plain assessor, a backlog against its quota, the sensor's tick.

    python -m benchmarks.windows [--quick] [--only tick]

PostgreSQL is the embedded one, the LLM the simulated one with its real latencies. Dagster runs are processes of their own
(start-up included), as in production. ``--quick`` takes a fifth of the groups.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import dagster as dg
import numpy as np
from pydantic import SecretStr
from sqlalchemy import Engine, text

from benchmarks.figures import Figure, tell
from dangerous_driving.assessment.keys import load_keys, open_pool
from dangerous_driving.assessment.opening import open_assessor
from dangerous_driving.assessment.window_run import assess_claims
from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.contracts import Lane, Message
from dangerous_driving.defs.partitions import CAMERA, WINDOW, partition_key, window_partitions
from dangerous_driving.defs.resources import DatabaseResource
from dangerous_driving.defs.sensors import closed_windows_sensor
from dangerous_driving.errors import BrokerError
from dangerous_driving.ledger.claims import claim_window
from dangerous_driving.ledger.database import open_engine, transaction
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions, migrate
from dangerous_driving.messaging import Topic
from dangerous_driving.messaging.seam import Receipt
from dangerous_driving.objects import open_store
from dangerous_driving.settings import KeysSettings, Settings, load
from dangerous_driving.simulation.llm import serving
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

LENGTH = 3600
KEYS, CAMERAS, PER_RUN = 10, 50, 25
FULL, QUICK = 3000, 600
#: Times those groups wait after the outage: at the full quota some minutes' work, so that a run's start is part of it, not most of it.
BACKLOG = 3
GROUPS_PER_FRAME = 10
#: An hour that has closed.
CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
TICKS = 20


class Nobody:
    """Takes results to nowhere: no broker is part of what is compared."""

    def send(self, topic: Topic, message: Message, key: str) -> Receipt:  # the seam
        raise BrokerError("none here")


@contextmanager
def platform(folder: Path, keys: int, rpm_limit: int) -> Iterator[tuple[Settings, Engine]]:
    """Ledger, store and endpoint, named by the environment, so that Dagster's processes find them too."""
    secrets = [f"sk-simulated-{number}" for number in range(keys)]
    wanted = KeysSettings(secrets=tuple(SecretStr(secret) for secret in secrets), rpm_limit=rpm_limit)
    with EmbeddedPostgres(folder / "postgres") as server, serving(keys=load_keys(wanted)) as address:
        home = folder / "dagster"
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        os.environ |= {
            "DAGSTER_HOME": str(home),
            "DD_DATABASE__URL": server.create_database("ledger"),
            "DD_OBJECTS__FOLDER": str(folder / "objects"),
            "DD_LLM__BASE_URL": address,
            "DD_LLM__MODEL": "simulated-vl",
            "DD_KEYS__SECRETS": "[" + ", ".join(f'"{secret}"' for secret in secrets) + "]",
            "DD_KEYS__RPM_LIMIT": str(rpm_limit),
            "DD_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
            # nobody listens there, and looking for a broker is no part of what is compared
            "DD_KAFKA__REQUEST_TIMEOUT": "0.1",
            "DD_WINDOWS__LENGTH": str(LENGTH),
            "DD_WINDOWS__LATENESS": "0",
        }
        settings = load()
        engine = open_engine(settings.database)
        migrate(engine)
        yield settings, engine
        engine.dispose()


def capture(engine: Engine, settings: Settings, start: datetime, cameras: int, groups: int) -> list[Window]:
    """So many groups, spread over the cameras' windows that begin at `start`; their pictures are one and the same."""
    url = open_store(settings.objects).put(
        "groups/crop.jpg", cv2.imencode(".jpg", np.full((120, 160, 3), 90, np.uint8))[1].tobytes(), "image/jpeg"
    )
    partitions, frames = Partitions(), groups // GROUPS_PER_FRAME
    for number in range(frames):
        at = start + timedelta(seconds=1 + number // cameras)
        result = detection_result(f"cam-{number % cameras:02d}", at, groups=GROUPS_PER_FRAME)
        found = tuple(group.model_copy(update={"group_image_url": url}) for group in result.traffic_groups)
        result = result.model_copy(update={"traffic_groups": found})
        record_detections(
            engine, partitions, [result], tasks_from_detection(result), window_length=LENGTH, lane=Lane.WINDOW
        )
    return [window_of(f"cam-{number:02d}", start, LENGTH) for number in range(cameras)]


async def plainly(settings: Settings, engine: Engine, windows: list[Window]) -> float:
    """Seconds in which the plain assessor answers all groups, its own start included; no Dagster, no windows' care."""
    began = time.monotonic()
    pool = open_pool(settings.keys, engine)
    async with open_assessor(
        settings, service="plain", engine=engine, store=open_store(settings.objects), pool=pool, producer=Nobody()
    ) as assessor:
        claims = [
            claim
            for window in windows
            for claim in claim_window(engine, assessor.worker, window, max_attempts=3, limit=100_000)
        ]
        await assess_claims(assessor, claims, Lane.WINDOW, asyncio.Semaphore(settings.assessment.max_in_flight))
    await pool.close()
    return time.monotonic() - began


def dagster_run(windows: list[Window]) -> subprocess.Popen[bytes]:
    """A run on the windows in a process of its own."""
    first, last = str(partition_key(windows[0])), str(partition_key(windows[-1]))
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    if first == last:
        tags = {"dagster/partition": first}
    program = f"""
import warnings; warnings.simplefilter("ignore")
import dagster as dg
from dangerous_driving.definitions import definitions
job = definitions().resolve_job_def("assess_window")
with dg.DagsterInstance.get() as instance:
    assert job.execute_in_process(instance=instance, tags={tags!r}).success
"""
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait(runs: list[subprocess.Popen[bytes]]) -> None:
    for run in runs:
        _, errors = run.communicate()
        if run.returncode:
            raise SystemExit(f"a run failed: {errors.decode()[-3000:]}")


def count(engine: Engine, query: str) -> int:
    with transaction(engine) as connection:
        return int(connection.scalar(text(query)) or 0)


def last_answer(engine: Engine) -> datetime:
    with transaction(engine) as connection:
        at: datetime = connection.execute(text("SELECT max(assessed_at) FROM risk_assessment")).scalar_one()
    return at


def lanes(groups: int) -> list[Figure]:
    """Runs against the plain assessor, then a backlog of all cameras against the quota."""
    figures = []
    with tempfile.TemporaryDirectory() as folder, platform(Path(folder), KEYS, 300) as (settings, engine):
        with dg.DagsterInstance.get() as instance:
            instance.add_dynamic_partitions(CAMERA, [f"cam-{number:02d}" for number in range(CAMERAS)])
        warm = capture(engine, settings, CLOSED - timedelta(hours=5), 1, GROUPS_PER_FRAME)
        began = time.monotonic()
        wait([dagster_run(warm)])  # dbt's manifest is made by the first process
        print(f"first run of {GROUPS_PER_FRAME} groups: {time.monotonic() - began:.1f} s", flush=True)
        began = time.monotonic()
        wait([dagster_run(warm)])
        overhead = time.monotonic() - began
        figures.append(Figure("a run on a window that is complete (overhead)", overhead, "s"))

        plain = capture(engine, settings, CLOSED - timedelta(hours=2), PER_RUN, groups)
        time.sleep(61)  # the keys' minute is free again
        alone = asyncio.run(plainly(settings, engine, plain))
        print(f"plain assessor: {groups} groups in {alone:.1f} s", flush=True)
        windows = capture(engine, settings, CLOSED - timedelta(hours=1), PER_RUN, groups)
        time.sleep(61)
        began = time.monotonic()
        wait([dagster_run(windows)])
        run = time.monotonic() - began
        ratio = alone / run
        figures.append(
            Figure(
                f"groups/s of one run over {PER_RUN} windows against the plain assessor", groups / run, "groups/s",
                groups / alone, ratio, ">= 0.9", ratio >= 0.9, f"{groups} groups, start-up included",
            )
        )  # fmt: skip
        waiting = BACKLOG * groups
        backlog = capture(engine, settings, CLOSED, CAMERAS, waiting)
        time.sleep(61)
        closed = datetime.now(UTC)
        wait([dagster_run(backlog[:PER_RUN]), dagster_run(backlog[PER_RUN:])])
        # the runs still check their windows then
        took = (last_answer(engine) - closed).total_seconds()
        # of a key's minute the lanes below realtime leave a part; a minute's start may be a burst of none
        quota = waiting / (KEYS * 300 / 60 * (1 - settings.keys.realtime_reserve))
        figures.append(
            Figure(
                f"backlog of {CAMERAS} cameras: close to complete, against its quota", took, "s", quota, took / quota,
                "<= 1.1", took / quota <= 1.1, f"{waiting} groups, two runs at a time, start-up included; quota of the window lane",
            )
        )  # fmt: skip
        answered = count(engine, "SELECT count(*) FROM risk_assessment WHERE is_current")
        refused = count(engine, "SELECT count(*) FROM llm_call WHERE http_status = 429")
        assert answered == (2 + BACKLOG) * groups + GROUPS_PER_FRAME, answered
        figures.append(Figure("answers 429", refused, "calls", target="0", met=refused == 0))
    return figures


def ticks() -> list[Figure]:
    """The sensor's tick as the ledger grows, and listing all partitions of 50 cameras x 90 days."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder, platform(Path(folder), 1, 300) as (settings, engine):
        hourly = settings.windows
        partitions = window_partitions(hourly, datetime.now(UTC))
        sensor = closed_windows_sensor(settings, partitions)
        first = None
        with dg.DagsterInstance.get() as instance:
            for days in (1, 30, 89):
                with transaction(engine) as connection:
                    connection.execute(
                        text(_WINDOWS), {"cameras": CAMERAS, "hours": days * 24, "length": LENGTH, "now": CLOSED}
                    )
                    connection.execute(text("ANALYZE camera_window"))
                taken = []
                for _ in range(TICKS):
                    began = time.monotonic()
                    with dg.build_sensor_context(
                        instance=instance, resources={"database": DatabaseResource()}
                    ) as context:
                        asked = sensor(context)
                    taken.append(time.monotonic() - began)
                    assert isinstance(asked, dg.SensorResult)
                tick = statistics.median(taken)
                first = first or tick
                figures.append(
                    Figure(
                        f"sensor tick, {CAMERAS} cameras x {days} days", tick, "s", first, tick / first, "< 1 s",
                        tick < 1, f"{CAMERAS} windows due",
                    )
                )  # fmt: skip
            instance.add_dynamic_partitions(CAMERA, [f"cam-{number:02d}" for number in range(CAMERAS)])
            began = time.monotonic()
            keys = partitions.get_partition_keys(dynamic_partitions_store=instance)
            figures.append(Figure(f"listing {len(keys)} partitions", time.monotonic() - began, "s"))
            span = partitions.get_partitions_def_for_dimension(WINDOW)
            figures.append(Figure("windows of one camera", len(span.get_partition_keys()), "partitions"))
    return figures


_WINDOWS = """
INSERT INTO camera_window (camera_id, window_start, length, version, assessed_version, run_key)
SELECT 'cam-' || lpad(c::text, 2, '0'), CAST(:now AS timestamptz) - make_interval(hours => h), :length, 1,
       CASE WHEN h = 0 THEN 0 ELSE 1 END, NULL
FROM generate_series(0, :cameras - 1) AS c, generate_series(0, :hours - 1) AS h
ON CONFLICT (camera_id, window_start, length) DO UPDATE SET assessed_version = EXCLUDED.assessed_version
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the groups")
    parser.add_argument("--only", choices=("lanes", "tick"), help="a part")
    asked = parser.parse_args()
    figures: list[Figure] = []
    if asked.only != "lanes":
        figures += ticks()
    if asked.only != "tick":
        figures += lanes(QUICK if asked.quick else FULL)
    tell("windows", figures)


if __name__ == "__main__":
    main()
