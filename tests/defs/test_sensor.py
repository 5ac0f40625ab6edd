"""`closed_windows` on a real ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from sqlalchemy import Engine, event

from dangerous_driving.defs.jobs import WINDOW_JOB
from dangerous_driving.defs.partitions import CAMERA, partition_key, window_partitions
from dangerous_driving.defs.resources import DatabaseResource
from dangerous_driving.defs.sensors import RANGE_END_TAG, RANGE_START_TAG, RUN_KEY_TAG, closed_windows_sensor
from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger.windows import MAX_ATTEMPTS
from dangerous_driving.settings import Settings
from tests.defs.conftest import Ledger

pytestmark = pytest.mark.integration


class Sensor:
    """Evaluates ticks and plays the daemon: what a tick asks for, it makes."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, database: DatabaseResource) -> None:
        partitions = window_partitions(settings.windows, datetime.now(UTC))
        self.sensor = closed_windows_sensor(settings, partitions)
        self.instance, self.database = instance, database

        @dg.asset(name="risk_assessments", partitions_def=partitions)
        def stand_in() -> None: ...

        self.repository = dg.Definitions(
            assets=[stand_in],
            jobs=[dg.define_asset_job(WINDOW_JOB, selection="risk_assessments")],
            sensors=[self.sensor],
            resources={"database": database},
        ).get_repository_def()

    def tick(self) -> tuple[Sequence[dg.RunRequest], str | None]:
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            repository_def=self.repository,
            resources={"database": self.database},
        ) as context:
            result = self.sensor.evaluate_tick(context)
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys or []))
        return result.run_requests or [], result.skip_message

    def run(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
        self.instance.create_run_for_job(
            self.repository.get_job(WINDOW_JOB),
            tags={**request.tags, RUN_KEY_TAG: str(request.run_key)},
            status=status,
        )


@pytest.fixture
def sensor(settings: Settings, instance: dg.DagsterInstance) -> Sensor:
    return Sensor(settings, instance, DatabaseResource())


def keys(requests: Sequence[dg.RunRequest]) -> list[str]:
    return [str(request.run_key) for request in requests]


def test_an_empty_ledger_is_skipped_with_the_reason(sensor: Sensor) -> None:
    assert sensor.tick() == ([], "no closed window has content to assess")


def test_a_closed_window_is_launched_and_its_camera_becomes_a_partition(
    sensor: Sensor, frames: Ledger, an_hour_ago: datetime
) -> None:
    window = frames.capture("north-1", an_hour_ago)
    [request], _ = sensor.tick()
    assert request.partition_key == partition_key(window)
    assert sensor.instance.get_dynamic_partitions(CAMERA) == ["north-1"]


def test_an_open_window_waits(sensor: Sensor, frames: Ledger) -> None:
    frames.capture("north-1", datetime.now(UTC))
    assert sensor.tick()[0] == []


def test_the_key_is_stable_until_there_is_new_content(sensor: Sensor, frames: Ledger, an_hour_ago: datetime) -> None:
    frames.capture("north-1", an_hour_ago)
    before, again = keys(sensor.tick()[0]), keys(sensor.tick()[0])
    frames.capture("north-1", an_hour_ago + timedelta(seconds=5))
    after = keys(sensor.tick()[0])
    assert before == again
    assert len(after) == 1
    assert after != before


def test_what_has_a_run_is_not_asked_for_again(sensor: Sensor, frames: Ledger, an_hour_ago: datetime) -> None:
    frames.capture("north-1", an_hour_ago)
    [request], _ = sensor.tick()
    sensor.run(request, dg.DagsterRunStatus.STARTED)
    assert sensor.tick() == ([], "closed windows: 1 queued or running")


@pytest.mark.parametrize("ending", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
def test_a_failed_or_canceled_run_is_followed_by_another_until_it_failed_too_often(
    sensor: Sensor, frames: Ledger, an_hour_ago: datetime, ending: dg.DagsterRunStatus
) -> None:
    frames.capture("north-1", an_hour_ago)
    seen = []
    for _ in range(MAX_ATTEMPTS):
        [request], _ = sensor.tick()
        seen.append(request.run_key)
        sensor.run(request, ending)
    assert len(set(seen)) == MAX_ATTEMPTS
    assert sensor.tick() == ([], "closed windows: 1 left to a person")
    assert sensor.tick() == ([], "no closed window has content to assess")


def test_a_tick_is_bounded_oldest_first_and_the_queue_with_it(
    sensor: Sensor, frames: Ledger, an_hour_ago: datetime, settings: Settings
) -> None:
    windows = [frames.capture("north-1", an_hour_ago + timedelta(minutes=minute)) for minute in range(5)]
    room = settings.windows.runs_per_tick
    requests, _ = sensor.tick()
    assert [request.partition_key for request in requests] == [partition_key(window) for window in windows[:room]]
    for request in requests:
        sensor.run(request, dg.DagsterRunStatus.NOT_STARTED)
    assert sensor.tick() == ([], f"closed windows: {room} queued or running, {5 - room} waiting for room in the queue")


def test_windows_that_close_together_share_a_run_and_none_is_in_two(
    settings: Settings, instance: dg.DagsterInstance, frames: Ledger, an_hour_ago: datetime
) -> None:
    several = settings.windows.model_copy(update={"windows_per_run": 4})
    sensor = Sensor(settings.model_copy(update={"windows": several}), instance, DatabaseResource())
    windows = [
        frames.capture(camera_id, an_hour_ago + timedelta(minutes=minute))
        for minute in range(2)
        for camera_id in ("north-1", "south-2", "west-3")
    ]
    requests, _ = sensor.tick()
    ranges = [
        (request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG], request.tags["dangerous_driving/windows"])
        for request in requests
    ]
    of = [str(partition_key(window)) for window in windows]
    assert ranges == [(of[0], of[2], "3"), (of[3], of[5], "3")]
    sensor.run(requests[0], dg.DagsterRunStatus.STARTED)
    again, _ = sensor.tick()
    # the second was never made: it is asked for again, under the same key
    assert keys(again) == keys(requests[1:])
    late = frames.capture("south-2", an_hour_ago + timedelta(seconds=20))
    sensor.run(again[0], dg.DagsterRunStatus.STARTED)
    assert sensor.tick()[0] == []  # it waits for the run that has its window
    for record in instance.get_run_records():
        instance.handle_run_event(record.dagster_run.run_id, ended(record.dagster_run))
    [request] = [request for request in sensor.tick()[0] if request.partition_key == partition_key(late)]
    assert request.tags["dangerous_driving/attempt"] == "1"  # new content is no failure


def ended(run: dg.DagsterRun) -> dg.DagsterEvent:
    return dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_SUCCESS.value, job_name=run.job_name)


def test_a_tick_asks_the_ledger_once(sensor: Sensor, frames: Ledger, an_hour_ago: datetime) -> None:
    for minute in range(3):
        frames.capture("north-1", an_hour_ago + timedelta(minutes=minute))
    statements: list[str] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "camera_window" in statement and statement.startswith("SELECT"):
            statements.append(statement)

    try:
        sensor.tick()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(statements) == 1


def test_after_a_change_of_the_length_what_was_left_is_launched_in_windows_of_the_new_one(
    settings: Settings, instance: dg.DagsterInstance, frames: Ledger, an_hour_ago: datetime
) -> None:
    at = an_hour_ago.replace(minute=an_hour_ago.minute // 5 * 5)
    old = frames.capture("north-1", at)
    five_minutes = settings.windows.model_copy(update={"length": 300})
    before, after = (
        Sensor(changed, instance, DatabaseResource())
        for changed in (settings, settings.model_copy(update={"windows": five_minutes}))
    )
    [request], _ = before.tick()
    before.run(request, dg.DagsterRunStatus.FAILURE)
    [again], _ = after.tick()
    assert again.partition_key == request.partition_key == partition_key(old)  # both begin at once
    assert again.run_key != request.run_key  # Dagster would make no second run of a key
    after.run(again, dg.DagsterRunStatus.STARTED)
    assert after.tick() == ([], "closed windows: 1 queued or running")


def test_windows_before_the_first_partition_hold_up_no_others(
    settings: Settings, instance: dg.DagsterInstance, frames: Ledger, an_hour_ago: datetime
) -> None:
    begun = settings.windows.model_copy(update={"start": an_hour_ago})
    sensor = Sensor(settings.model_copy(update={"windows": begun}), instance, DatabaseResource())
    frames.capture("north-1", an_hour_ago - timedelta(minutes=5))
    window = frames.capture("north-1", an_hour_ago)
    assert [request.partition_key for request in sensor.tick()[0]] == [partition_key(window)]


def test_a_database_that_does_not_answer_fails_the_tick(sensor: Sensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_DATABASE__URL", "postgresql://nobody@127.0.0.1:1/nowhere")
    with pytest.raises(dg.DagsterError) as failure:
        sensor.tick()
    assert isinstance(failure.value.__cause__, LedgerError)
