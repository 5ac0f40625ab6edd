"""What the ledger and the brokers know, as metrics."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import Engine, text

from dangerous_driving.assessment.keys import load_keys
from dangerous_driving.contracts import Lane
from dangerous_driving.ledger import incidents
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.incidents import Incident
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.messaging import EmbeddedBroker, Topic, apply, embedded_kafka_settings
from dangerous_driving.messaging.producer import Producer
from dangerous_driving.observability.exporter import Exporter
from dangerous_driving.settings import (
    DatabaseSettings,
    KafkaSettings,
    KeysSettings,
    Settings,
    WindowsSettings,
)
from dangerous_driving.settings.assessment import BudgetSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

pytestmark = pytest.mark.integration

LENGTH = 60
NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:9", request_timeout=0.2)


@pytest.fixture
def settings(database: DatabaseSettings) -> Settings:
    return Settings(
        database=database,
        kafka=NOWHERE,
        keys=KeysSettings(
            secrets=(SecretStr("sk-one"), SecretStr("sk-two")), budgets={"window": BudgetSettings(calls=200)}
        ),
        windows=WindowsSettings(length=LENGTH, lateness=5),
    )


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def run(ledger: Engine, statement: str, **parameters: Any) -> None:
    with transaction(ledger) as connection:
        connection.execute(text(statement), parameters)


def capture(ledger: Engine, at: datetime, *, groups: int, lane: Lane) -> None:
    result = detection_result("north", at, groups=groups)
    record_detections(ledger, Partitions(), [result], tasks_from_detection(result), window_length=LENGTH, lane=lane)


def test_tasks_that_wait_and_windows_that_nobody_completed(settings: Settings, ledger: Engine) -> None:
    exporter = Exporter(settings, ledger, {})
    exporter.look_at_ledger()
    assert value("ledger_tasks_waiting", lane="window") == 0
    assert (value("windows_due"), value("window_overdue_seconds")) == (0, 0)
    now = datetime.now(UTC)
    capture(ledger, now - timedelta(seconds=300), groups=3, lane=Lane.WINDOW)
    capture(ledger, now, groups=1, lane=Lane.REALTIME)
    exporter.look_at_ledger()
    assert value("ledger_tasks_waiting", lane="window") == 3
    assert value("ledger_tasks_waiting", lane="realtime") == 1
    oldest = value("ledger_oldest_waiting_task_seconds", lane="window")
    assert oldest is not None
    assert 299 < oldest < 330
    assert value("windows_due") == 1  # the other one is not closed yet
    overdue = value("window_overdue_seconds")
    assert overdue is not None
    assert 300 - 2 * LENGTH - 5 < overdue < 330 - 5
    assert value("window_length_seconds") == LENGTH
    run(ledger, "UPDATE assessment_task SET state = 'expired'")
    run(ledger, "UPDATE camera_window SET assessed_version = version")
    exporter.look_at_ledger()
    assert value("ledger_tasks_waiting", lane="window") == 0
    assert value("ledger_oldest_waiting_task_seconds", lane="window") == 0
    assert (value("windows_due"), value("window_overdue_seconds")) == (0, 0)


def test_keys_budgets_and_incidents(settings: Settings, ledger: Engine) -> None:
    exporter = Exporter(settings, ledger, {})
    exporter.look_at_ledger()
    assert value("api_keys", status="available") == 2  # not used yet is no fault
    one, _ = load_keys(settings.keys)
    for key_hash in (one.key_hash, "key_hash_of_one_that_was_removed"):
        run(
            ledger,
            "INSERT INTO api_key (key_hash, qps_limit, rpm_limit, state) VALUES (:key, 10, 300, 'disabled')",
            key=key_hash,
        )
    run(
        ledger,
        "INSERT INTO lane_spending (day, lane, calls) VALUES ((now() AT TIME ZONE 'UTC')::date, 'window', 170)",
    )
    incidents.record(ledger, Incident("window_lane_held", "window", "all keys are disabled"))
    exporter.look_at_ledger()
    assert (value("api_keys", status="available"), value("api_keys", status="disabled")) == (1, 1)
    assert value("llm_budget_used_ratio", lane="window") == 0.85
    assert value("incidents_open", kind="window_lane_held") == 1
    incidents.end(ledger, "window_lane_held", "window")
    exporter.look_at_ledger()
    assert value("incidents_open", kind="window_lane_held") is None


def test_an_incident_that_somebody_ends_is_told_until_then_and_the_others_for_an_hour(
    settings: Settings, ledger: Engine
) -> None:
    for kind, subject in (
        ("detection_drift", "turned"), ("detection_drift", "as before"), ("window_lane_held", "window"),
        ("run_failed", "a"), ("tasks_expired", "b"), ("windows_given_up", "c"),
    ):  # fmt: skip
        incidents.record(ledger, Incident(kind, subject, "…"))
    exporter = Exporter(settings, ledger, {})

    def told() -> dict[str, float | None]:
        exporter.look_at_ledger()
        kinds = ("detection_drift", "window_lane_held", "run_failed", "tasks_expired", "windows_given_up")
        return {kind: found for kind in kinds if (found := value("incidents_open", kind=kind)) is not None}

    assert told() == {
        "detection_drift": 2, "window_lane_held": 1, "run_failed": 1, "tasks_expired": 1, "windows_given_up": 1
    }  # fmt: skip
    run(ledger, "UPDATE incident SET last_at = now() - interval '20 hours'")
    assert told() == {"detection_drift": 2, "window_lane_held": 1}
    incidents.end(ledger, "detection_drift", "as before")
    assert told() == {"detection_drift": 1, "window_lane_held": 1}
    for kind, subject in (("detection_drift", "turned"), ("window_lane_held", "window")):
        incidents.end(ledger, kind, subject)
    assert told() == {}


def test_calls_of_window_runs_are_counted_once_each_and_those_of_services_not(
    settings: Settings, ledger: Engine
) -> None:
    exporter = Exporter(settings, ledger, {})
    number = 0

    def call(lane: str, status: str, *, ended: bool = True) -> None:
        nonlocal number
        number += 1
        now = datetime.now(UTC) - timedelta(seconds=2.5)  # what ended just now is looked at a little later
        Partitions().ensure(ledger, [now])
        run(
            ledger,
            "INSERT INTO llm_call (captured_at, call_id, task_id, camera_id, call_number, run, lane, worker, key_hash, model,"
            " prompt_version, status, started_at, finished_at) VALUES (:at, :id, :id, 'north', 1, 'live', :lane, 1, 'exported',"
            " 'simulated-vl', 'v2', :status, :begun, :ended)",
            at=now, id=f"call{number}", lane=lane, status=status, begun=now - timedelta(seconds=1.5),
            ended=now if ended else None,
        )  # fmt: skip

    def counted() -> tuple[float, float]:
        return tuple(value("llm_calls_total", key_id="exported", status=of) or 0 for of in ("ok", "timeout"))  # type: ignore[return-value]

    call("window", "ok")
    exporter.look_at_ledger()
    assert counted() == (0, 0)  # from its start on: what was before was counted before
    threading.Event().wait(0.6)
    for _ in range(3):
        call("window", "ok")
    call("evaluation", "timeout")
    call("window", "unparsable")
    call("realtime", "ok")  # its service tells it
    call("window", "started", ended=False)
    for _ in range(3):
        exporter.look_at_ledger()
    assert counted() == (4, 1)


def test_the_lag_of_a_group_is_told_while_nobody_is_in_it(settings: Settings, ledger: Engine) -> None:
    with EmbeddedBroker() as broker:
        kafka = embedded_kafka_settings(broker.bootstrap_servers)
        apply(kafka)
        with Producer(kafka, "test") as producer:
            for number in range(7):
                result = detection_result("north", datetime(2026, 3, 1, 0, 0, number, tzinfo=UTC))
                producer.send(Topic.DETECTION_RESULTS, result, key="north")
            producer.flush()
        group = "dangerous-driving.nobody"
        exporter = Exporter(
            settings.model_copy(update={"kafka": kafka}), ledger, {group: (Topic.DETECTION_RESULTS, Topic.ALERTS)}
        )
        exporter.look_at_brokers()
        assert value("kafka_group_lag", group=group, topic="detection-results") == 7
        assert value("kafka_group_lag", group=group, topic="alerts") == 0
        assert exporter._admin is not None
        exporter._admin.close()


def test_what_is_away_is_counted_and_the_last_values_stand(settings: Settings, ledger: Engine) -> None:
    away = Settings(database=DatabaseSettings(url=SecretStr("postgresql://nobody@127.0.0.1:9/x")), kafka=NOWHERE)
    from dangerous_driving.ledger.database import open_engine

    engine = open_engine(away.database, application="tests")
    exporter = Exporter(away, engine, {"g": (Topic.ALERTS,)})
    before = [value("exporter_looks_failed_total", part=part) for part in ("ledger", "brokers")]
    length = value("window_length_seconds")
    exporter.look_at_ledger()
    exporter.look_at_brokers()
    after = [value("exporter_looks_failed_total", part=part) for part in ("ledger", "brokers")]
    assert [now - then for now, then in zip(after, before, strict=True) if now is not None and then is not None] == [
        1,
        1,
    ]
    assert value("window_length_seconds") == length
    engine.dispose()
    stop = threading.Event()
    stop.set()
    Exporter(settings, ledger, {}).run(stop)  # ends at once
