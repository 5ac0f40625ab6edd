"""Retention, digest, inventory, observations and incidents, on a real ledger."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from dangerous_driving.assessment.keys import configured_hashes
from dangerous_driving.contracts import Lane
from dangerous_driving.defs import retention
from dangerous_driving.defs.assets import content_sensor
from dangerous_driving.defs.incidents import endpoint_sensor, failed_runs_sensor, held_back, tell
from dangerous_driving.defs.partitions import CAMERA, window_partitions
from dangerous_driving.defs.reports import alert_digest_asset, camera_inventory_asset, digest_key
from dangerous_driving.defs.resources import DatabaseResource, ObjectStoreResource
from dangerous_driving.defs.retention import retention_asset
from dangerous_driving.defs.sensors import closed_windows_sensor
from dangerous_driving.ledger import incidents
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.digest import day_figures
from dangerous_driving.ledger.retention import cutoff, expired_partitions
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.objects import frame_key, group_key, open_store
from dangerous_driving.settings import Settings, load
from tests.defs.conftest import Ledger

pytestmark = pytest.mark.integration

TODAY = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


def scalar(ledger: Engine, query: str) -> Any:
    with transaction(ledger) as connection:
        return connection.scalar(text(query))


def materialize(
    asset: dg.AssetsDefinition,
    instance: dg.DagsterInstance,
    *,
    config: dict[str, Any] | None = None,
    day: str | None = None,
) -> dict[str, Any]:
    result = dg.materialize(
        [asset],
        instance=instance,
        resources={"database": DatabaseResource(), "object_store": ObjectStoreResource()},
        run_config={"ops": {asset.op.name: {"config": config}}} if config else None,
        partition_key=day,
        selection=[asset],
    )
    events = [*result.get_asset_materialization_events(), *result.get_asset_observation_events()]
    [event] = events
    data: Any = event.event_specific_data
    entry = data.materialization if event in result.get_asset_materialization_events() else data.asset_observation
    return {name: value.value for name, value in entry.metadata.items()}


class TestRetention:
    @pytest.fixture
    def days(self, settings: Settings, frames: Ledger, ledger: Engine) -> tuple[datetime, datetime, datetime]:
        """A frame with pictures on an expired day, on the last day that is kept, and today."""
        first = cutoff(datetime.now(UTC), settings.windows.retention_days)
        kept = datetime.combine(first, TODAY.time(), tzinfo=UTC)
        days = kept - timedelta(days=1), kept, TODAY
        store = open_store(settings.objects)
        for at in days:
            frames.capture("north-1", at)
            store.put(frame_key("north-1", at, "m"), b"x", "image/jpeg")
            store.put(group_key("north-1", at, "m", 1), b"x", "image/jpeg")
        return days

    def test_a_dry_run_shows_what_would_go_and_removes_nothing(
        self, settings: Settings, instance: dg.DagsterInstance, ledger: Engine, days: tuple[datetime, ...]
    ) -> None:
        found = materialize(retention_asset(settings), instance, config={"dry_run": True})
        assert found["days"] == [str(days[0].date())]
        assert (found["table_partitions"], found["objects"], found["tasks_expired"]) == (4, 2, {"north-1": 4})
        assert scalar(ledger, "SELECT count(*) FROM frame") == 3
        assert scalar(ledger, "SELECT count(*) FROM assessment_task WHERE state = 'expired'") == 0
        assert len(list(open_store(settings.objects).list(""))) == 6

    def test_what_is_expired_goes_and_groups_on_their_last_day_are_counted_and_told(
        self, settings: Settings, instance: dg.DagsterInstance, ledger: Engine, days: tuple[datetime, ...]
    ) -> None:
        found = materialize(retention_asset(settings), instance)
        assert (found["table_partitions"], found["objects"]) == (4, 2)
        assert expired_partitions(ledger, days[1].date()) == []
        assert scalar(ledger, "SELECT count(*) FROM frame") == 2
        assert scalar(ledger, "SELECT count(*) FROM camera_window") == 2
        states = "SELECT string_agg(state, ' ' ORDER BY captured_at) FROM assessment_task"
        assert scalar(ledger, states) == "expired expired pending pending"
        assert scalar(ledger, "SELECT count FROM incident WHERE kind = 'tasks_expired' AND subject = 'north-1'") == 4
        prefixes = {key.split("/")[4] for key in open_store(settings.objects).list("")}
        assert prefixes == {f"{day:%d}" for day in days[1:]}
        again = materialize(retention_asset(settings), instance, config={"thorough": True})
        assert (again["table_partitions"], again["objects"], again["tasks_expired"]) == (0, 0, {})

    def test_pictures_that_no_table_knows_are_found_by_a_thorough_run(
        self, settings: Settings, instance: dg.DagsterInstance, ledger: Engine
    ) -> None:
        store = open_store(settings.objects)
        store.put(frame_key("gone", TODAY - timedelta(days=400), "m"), b"x", "image/jpeg")
        assert materialize(retention_asset(settings), instance)["objects"] == 0
        assert materialize(retention_asset(settings), instance, config={"thorough": True})["objects"] == 1
        assert list(store.list("")) == []

    def test_a_camera_that_is_gone_is_no_partition_any_more(
        self, settings: Settings, instance: dg.DagsterInstance, ledger: Engine, frames: Ledger
    ) -> None:
        instance.add_dynamic_partitions(CAMERA, ["north-1", "old"])
        frames.capture("north-1", TODAY - timedelta(days=1))
        with transaction(ledger) as connection:
            connection.execute(text("INSERT INTO camera (id, enabled) VALUES ('old', false)"))
        assert materialize(retention_asset(settings), instance)["camera_partitions"] == ["old"]
        assert instance.get_dynamic_partitions(CAMERA) == ["north-1"]

    def test_old_runs_of_dagster_go_those_on_windows_with_their_windows(
        self, settings: Settings, instance: dg.DagsterInstance, ledger: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(job: str) -> str:
            made = instance.create_run_for_job(dg.job(name=job)(lambda: None), status=dg.DagsterRunStatus.SUCCESS)
            return made.run_id

        monkeypatch.setattr(retention, "RUNS_AT_A_TIME", 2)
        kept = [run("assess_window") for _ in range(3)]  # older than the others, and more than are asked for at a time
        gone = [run("build_marts") for _ in range(4)] + [run("watch_drift")]
        # as if a day were a moment
        short = settings.model_copy(update={"operations": settings.operations.model_copy(update={"event_log_days": 0})})
        assert materialize(retention_asset(short), instance)["dagster_runs"] == 5
        assert {record.dagster_run.run_id for record in instance.get_run_records()}.isdisjoint(gone)
        assert all(instance.get_run_by_id(run_id) for run_id in kept)


class TestDigest:
    def test_a_day_without_anything_says_so_and_lies_in_the_store(
        self, settings: Settings, instance: dg.DagsterInstance, ledger: Engine
    ) -> None:
        day = f"{TODAY - timedelta(days=1):%Y-%m-%d}"
        found = materialize(alert_digest_asset(settings, datetime.now(UTC)), instance, day=day)
        assert (found["alerts"], found["sent_to_webhook"]) == (0, False)
        written = open_store(settings.objects).get(digest_key(day)).decode()
        assert written.startswith(f"# Alerts of {day}\n\nNo alerts.")

    def test_alerts_are_counted_listed_and_posted(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        ledger: Engine,
        webhook: list[dict[str, Any]],
    ) -> None:
        yesterday = TODAY - timedelta(days=1)
        with transaction(ledger) as connection:
            for number, (level, verdict) in enumerate((("high", "rejected"), ("medium", None), ("high", None))):
                connection.execute(
                    text(_ALERT), {"id": f"a{number}", "level": level, "verdict": verdict, "at": yesterday}
                )
        day = f"{yesterday:%Y-%m-%d}"
        found = materialize(alert_digest_asset(load(), datetime.now(UTC)), instance, day=day)
        assert "**3 alerts**: 2 high, 1 medium. Acknowledged 0, rejected as false 1, not judged 2." in found["digest"]
        assert "| north\\_1 | 3 |" in found["digest"]
        assert found["sent_to_webhook"]
        [body] = webhook
        assert body["kind"] == "alert_digest"

    def test_calls_and_money_are_of_the_day_of_the_call_whenever_its_frame_was_captured(self, ledger: Engine) -> None:
        yesterday = TODAY - timedelta(days=1)
        last_month = TODAY - timedelta(days=30)
        midnight = TODAY.replace(hour=0)
        Partitions().ensure(ledger, [yesterday, last_month])
        with transaction(ledger) as connection:
            for name, captured, started, cost in (
                ("at once", yesterday, yesterday, 0.25),
                ("of a backfill", last_month, yesterday, 0.5),
                ("after midnight", yesterday, midnight, 8.0),
            ):
                values = {"id": name, "captured": captured, "started": started, "cost": cost}
                connection.execute(text(_CALL), values)
        assert (day_figures(ledger, yesterday.date()).calls, day_figures(ledger, yesterday.date()).cost) == (2, 0.75)
        assert (day_figures(ledger, TODAY.date()).calls, day_figures(ledger, last_month.date()).calls) == (1, 0)


class TestInventory:
    def test_cameras_are_listed_and_become_partitions(
        self, settings: Settings, instance: dg.DagsterInstance, ledger: Engine
    ) -> None:
        with transaction(ledger) as connection:
            connection.execute(text("INSERT INTO camera (id, status) VALUES ('a', 'online'), ('b', 'offline')"))
        found = materialize(camera_inventory_asset(), instance)
        assert found["by_status"] == {"online": 1, "offline": 1}
        assert "| a | live | online |" in found["cameras"]
        assert instance.get_dynamic_partitions(CAMERA) == ["a", "b"]


class TestObservations:
    def test_newer_content_is_observed_once(
        self, settings: Settings, instance: dg.DagsterInstance, frames: Ledger
    ) -> None:
        sensor = content_sensor(settings.operations)

        def tick(cursor: str | None) -> Any:
            with dg.build_sensor_context(
                instance=instance, cursor=cursor, resources={"database": DatabaseResource()}
            ) as context:
                return sensor(context)

        assert isinstance(tick(None), dg.SkipReason)
        frames.capture("north-1", datetime.now(UTC))
        seen = tick(None)
        assert [event.asset_key.to_user_string() for event in seen.asset_events] == ["frames", "assessment_tasks"]
        assert seen.asset_events[1].metadata["pending"].value == 2
        assert isinstance(tick(seen.cursor), dg.SkipReason)


class Budget:
    calls: int | None = 5
    cost: float | None = None


class TestHold:
    def spend(self, ledger: Engine, calls: int) -> None:
        with transaction(ledger) as connection:
            connection.execute(
                text("INSERT INTO lane_spending (day, lane, calls, cost) VALUES (:day, 'window', :calls, 0)"),
                {"day": datetime.now(UTC).date(), "calls": calls},
            )

    def test_a_spent_budget_holds_and_another_days_does_not(self, ledger: Engine) -> None:
        def reason(budget: Budget | None, **today: date) -> str | None:
            return incidents.hold_reason(ledger, Lane.WINDOW, budget, keys=(), **today)

        assert reason(Budget()) is None
        self.spend(ledger, 5)
        assert "has spent its budget of the day (5 calls" in str(reason(Budget()))
        assert reason(Budget(), today=date(2020, 1, 1)) is None
        assert reason(None) is None

    @pytest.mark.parametrize(
        ("states", "held"),
        [
            ({"one": "disabled", "other": "disabled"}, True),
            ({"one": "disabled", "other": "disabled", "removed": "available"}, True),
            ({"one": "disabled", "other": "cooling"}, False),
            ({"one": "disabled", "removed": "disabled"}, False),  # nobody has tried the other
            ({}, False),
        ],
    )
    def test_configured_keys_hold_when_all_are_disabled_and_rows_of_removed_ones_say_nothing(
        self, ledger: Engine, states: dict[str, str], held: bool
    ) -> None:
        for key_hash, state in states.items():
            self.know(ledger, key_hash, state)
        reason = incidents.hold_reason(ledger, Lane.WINDOW, None, keys=frozenset({"one", "other"}))
        assert reason == ("all 2 keys are disabled; enable one, or set another" if held else None)

    def know(self, ledger: Engine, key_hash: str, state: str) -> None:
        with transaction(ledger) as connection:
            connection.execute(
                text("INSERT INTO api_key (key_hash, qps_limit, rpm_limit, state) VALUES (:key, 1, 1, :state)"),
                {"key": key_hash, "state": state},
            )

    @pytest.fixture
    def key_file(self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A file with one key, which the definitions are loaded with."""
        file = tmp_path / "keys.yaml"
        file.write_text("keys: [{secret: sk-first}]")
        monkeypatch.setenv("DD_KEYS__FILE", str(file))
        monkeypatch.setenv("DD_LLM__BASE_URL", "http://127.0.0.1:9/v1")
        return file

    def test_window_runs_wait_until_a_key_is_enabled_and_it_is_told_once(
        self, key_file: Path, instance: dg.DagsterInstance, ledger: Engine, frames: Ledger, an_hour_ago: datetime
    ) -> None:
        settings = load()
        frames.capture("north-1", an_hour_ago)
        [first] = configured_hashes(settings.keys)
        self.know(ledger, first, "disabled")
        partitions = window_partitions(settings.windows, datetime.now(UTC))
        windows, endpoint = closed_windows_sensor(settings, partitions), endpoint_sensor(settings)

        def tick(sensor: dg.SensorDefinition) -> Any:
            with dg.build_sensor_context(instance=instance, resources={"database": DatabaseResource()}) as context:
                return sensor(context)

        assert "held back: all 1 keys are disabled" in tick(windows).skip_message
        messages = [tick(endpoint).skip_message for _ in range(2)]
        assert ["from now on" in message for message in messages] == [True, False]
        assert scalar(ledger, "SELECT count FROM incident WHERE kind = 'window_lane_held' AND ended_at IS NULL") == 2
        with transaction(ledger) as connection:
            connection.execute(text("UPDATE api_key SET state = 'available'"))
        assert tick(endpoint).skip_message == "window runs go on"
        assert len(tick(windows).run_requests) == 1

    def test_a_key_that_is_put_into_the_file_ends_the_hold_though_no_pool_has_seen_it(
        self, key_file: Path, ledger: Engine
    ) -> None:
        settings = load()
        [first] = configured_hashes(settings.keys)
        self.know(ledger, first, "disabled")
        assert "all 1 keys are disabled" in str(held_back(ledger, settings, Lane.WINDOW))
        key_file.write_text("keys: [{secret: sk-first}, {secret: sk-second}]")
        assert held_back(ledger, settings, Lane.WINDOW) is None
        key_file.write_text("keys: []")
        assert str(key_file) in str(held_back(ledger, settings, Lane.WINDOW))  # a run would end at once


def test_a_failed_run_is_recorded_and_posted_with_what_it_said(
    settings: Settings, instance: dg.DagsterInstance, ledger: Engine, webhook: list[dict[str, Any]]
) -> None:
    @dg.op
    def broken() -> None:
        raise dg.Failure("the store is full")

    @dg.job
    def some_job() -> None:
        broken()

    result = some_job.execute_in_process(instance=instance, raise_on_error=False)
    [failure] = [event for event in result.all_events if event.is_failure and event.is_job_event]
    with dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=failure,
        resources={"database": DatabaseResource()},
    ) as context:
        failed_runs_sensor(load())(context.for_run_failure())
    with transaction(ledger) as connection:
        [(kind, message)] = connection.execute(text("SELECT kind, message FROM incident")).all()
    assert kind == "run_failed"
    assert "the store is full" in message
    [body] = webhook
    assert "the store is full" in body["text"]


@pytest.mark.parametrize("kind", ["tasks_expired", "windows_given_up"])
def test_what_nobody_ends_is_told_again_when_it_comes_again_another_day(
    settings: Settings, ledger: Engine, webhook: list[dict[str, Any]], kind: str
) -> None:
    operations = load().operations

    def happens(count: int) -> bool:
        return tell(ledger, operations, incidents.Incident(kind, "north-1", f"{count} of them", count))

    def later(hours: int) -> None:
        with transaction(ledger) as connection:
            connection.execute(
                text(
                    "UPDATE incident SET first_at = first_at - :by, last_at = last_at - :by, ended_at = ended_at - :by"
                ),
                {"by": timedelta(hours=hours)},
            )

    assert [happens(4), happens(1)] == [True, False]  # a run that was tried again
    later(24)
    assert happens(2)
    assert [body["message"] for body in webhook] == ["4 of them", "2 of them"]
    with transaction(ledger) as connection:
        rows = connection.execute(text("SELECT count, ended_at = last_at FROM incident ORDER BY first_at")).all()
    assert [tuple(row) for row in rows] == [(5, True), (2, None)]


def test_what_lasts_until_somebody_ends_it_is_told_once_however_long_it_rests(
    settings: Settings, ledger: Engine
) -> None:
    held = incidents.Incident("window_lane_held", "window", "all 2 keys are disabled")
    assert tell(ledger, settings.operations, held)
    with transaction(ledger) as connection:
        connection.execute(text("UPDATE incident SET last_at = last_at - interval '3 days'"))
    assert not tell(ledger, settings.operations, held)


_ALERT = """
INSERT INTO alert (alert_id, version, camera_id, state, basis, risk_level, peak_level, risk_types, description, group_bbox,
                   opened_at, last_seen_at, updated_at, first_task_id, last_task_id, last_request_id, tracking, verdict)
VALUES (:id, 1, 'north_1', 'closed', 'final', :level, :level, ARRAY['tailgating'], 'close | fast', '[0, 0, 1, 1]',
        :at, :at, :at, 't', 't', 'r', '{}', :verdict)
"""

_CALL = """
INSERT INTO llm_call (captured_at, call_id, task_id, camera_id, call_number, run, lane, worker, key_hash, model, prompt_version,
                      status, started_at, finished_at, cost)
VALUES (:captured, :id, 't', 'north_1', 1, 'live', 'window', 1, 'key', 'simulated-vl', 'v2', 'ok', :started, :started, :cost)
"""


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What was posted to `operations.webhook`."""
    taken: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is the library's
            taken.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("DD_OPERATIONS__WEBHOOK", f"http://127.0.0.1:{server.server_port}/hook")
    yield taken
    server.shutdown()
    thread.join()
    server.server_close()
