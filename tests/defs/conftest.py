"""A ledger with windows, and what the definitions need to load."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest
from sqlalchemy import Engine

from dangerous_driving.assessment.window_run import WindowReport
from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.contracts import Lane
from dangerous_driving.defs.resources import (
    AssessorResource,
    DatabaseResource,
    KafkaResource,
    KeyPoolResource,
    ObjectStoreResource,
)
from dangerous_driving.ledger import assessments, claims
from dangerous_driving.ledger.assessments import AssessmentRecord, CallOutcome
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.ledger.windows import complete_window, start_window, window_coverage
from dangerous_driving.settings import DatabaseSettings, Settings, load
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

with warnings.catch_warnings():
    # dagster-dbt brings sqlglot with a parser that sqlglot itself now warns of, once, when it is imported
    warnings.simplefilter("ignore", DeprecationWarning)
    import dagster_dbt  # noqa: F401

    from dangerous_driving.defs import dbt

LENGTH = 60  # s
PROJECT = Path(__file__).resolve().parents[2] / "dbt_project"

#: Warnings of Dagster about itself, which nothing here can change.
OF_DAGSTER = (
    "ignore:The `__fields__` attribute is deprecated",
    "ignore:InitResourceContext.dagster_run is deprecated",
    "ignore:AssetExecutionContext.(op|run_id|run_tags|job_name) is deprecated",  # by dagster-dbt
    "ignore:Non-compliant tag keys like .'dagster/partition/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for warning in OF_DAGSTER:
                item.add_marker(pytest.mark.filterwarnings(warning))


@dataclass(frozen=True)
class Ledger:
    """Writes frames of cameras into the ledger under test."""

    engine: Engine

    def capture(self, camera_id: str, at: datetime, *, groups: int = 2) -> Window:
        """A frame with this many groups of two objects or more; returns its window."""
        result = detection_result(camera_id, at, groups=groups)
        record_detections(
            self.engine, Partitions(), [result], tasks_from_detection(result), window_length=LENGTH, lane=Lane.WINDOW
        )
        return window_of(camera_id, at, LENGTH)


class LedgerAssessor(AssessorResource):
    """Answers ``level`` for every group without a call; leaves the last ``keep_back`` groups of each window pending."""

    level: str = "low"
    keep_back: int = 0

    def assess(self, windows: Sequence[Window], *, run_id: str) -> list[WindowReport]:
        return [self._assess_one(window, run_id) for window in windows]

    def _assess_one(self, window: Window, run_id: str) -> WindowReport:
        engine: Engine = cast("DatabaseResource", self.database).engine
        version = start_window(engine, window, run_id)
        before = window_coverage(engine, window)
        worker = claims.start_worker(engine, service="test", node="here", pid=1)
        wanted = before.pending - self.keep_back
        held = claims.claim_window(engine, worker, window, max_attempts=3, limit=wanted) if wanted > 0 else []
        for claim in held:
            call_id = assessments.start_call(
                engine, claim, run="live", lane="window", key_hash="key_1", model="simulated-vl", prompt_version="v1"
            )
            assessments.complete(engine, claim, answer(claim, call_id, level=self.level), CallOutcome("ok"))
        after = window_coverage(engine, window)
        if after.complete:
            complete_window(engine, window, version)
        return WindowReport(
            window=window,
            frames=after.frames,
            groups=after.groups,
            assessed=len(held),
            already=before.assessed,
            failed=after.failed,
            pending=after.pending,
            levels=after.levels,
            calls=len(held),
            cost=0.5 * len(held),
            latency_p50=1.2 if after.assessed else None,
            latency_p95=1.2 if after.assessed else None,
            complete=after.complete,
        )


def resources(**assessor: Any) -> dict[str, object]:
    """What the definitions ask for, with an assessor that asks nobody."""
    database, store = DatabaseResource(), ObjectStoreResource()
    return {
        "database": database,
        "object_store": store,
        "assessor": LedgerAssessor(
            database=database, object_store=store, kafka=KafkaResource(), key_pool=KeyPoolResource(), **assessor
        ),
    }


def answer(held: Claim, call_id: str, *, level: str) -> AssessmentRecord:
    task = held.task
    return AssessmentRecord(
        captured_at=task.timestamp, task_id=task.task_id, run="live", message_id=task.request_id,
        camera_id=task.camera_id, group_index=task.group_index, group_bbox=list(task.group_metadata.bbox),
        risk_level=level, confidence=0.9, risk_types=["tailgating"], description="", trigger_object_ids=[],
        danger_object_count=0, lane="window", prompt_version="v1", model="simulated-vl", key_hash="key_1",
        call_id=call_id, retry_count=0, first_token_latency=0.4, latency=1.2, input_tokens=10, output_tokens=5,
        cost=0.5, reused_from=None, raw_answer="{}", node="here", assessed_at=datetime.now(UTC),
    )  # fmt: skip


@pytest.fixture
def frames(ledger: Engine) -> Ledger:
    return Ledger(ledger)


@pytest.fixture
def settings(database: DatabaseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Minute windows on the ledger under test, as every process of this test reads them; no broker."""
    monkeypatch.setenv("DD_OBJECTS__FOLDER", str(tmp_path / "objects"))
    monkeypatch.setenv("DD_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("DD_KAFKA__REQUEST_TIMEOUT", "0.2")
    monkeypatch.setenv("DD_DATABASE__URL", database.url.get_secret_value())
    monkeypatch.setenv("DD_WINDOWS__LENGTH", str(LENGTH))
    monkeypatch.setenv("DD_WINDOWS__LATENESS", "5")
    monkeypatch.setenv("DD_WINDOWS__RUNS_PER_TICK", "3")
    monkeypatch.setenv("DD_WINDOWS__WINDOWS_PER_RUN", "1")
    monkeypatch.setenv("DD_WINDOWS__RETRY_DELAY", "0")
    return load()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    # not an ephemeral one: Dagster validates a sensor's partition keys only against an instance it can open again
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def an_hour_ago() -> datetime:
    return datetime.now(UTC).replace(second=10, microsecond=0) - timedelta(hours=1)


def build(database: DatabaseSettings, target: Path, *arguments: str) -> None:
    """Models and tests, as the Dagster asset builds them, with the same environment."""
    call(database, target, "build", *arguments)


def run(database: DatabaseSettings, target: Path, *arguments: str, schema: str = "marts") -> None:
    """The models alone."""
    call(database, target, "run", *arguments, schema=schema)


def call(database: DatabaseSettings, target: Path, command: str, *arguments: str, schema: str = "marts") -> None:
    done = subprocess.run(
        [dbt.dbt_executable(), command, "--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT), *arguments],
        env=os.environ | dbt.dbt_environment(database, target) | {"DBT_POSTGRES_SCHEMA": schema},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
