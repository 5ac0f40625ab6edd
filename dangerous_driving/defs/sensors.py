"""Sensors."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg

from dangerous_driving.defs.jobs import WINDOW_JOB
from dangerous_driving.defs.launches import KnownRun, Launches, RunState, plan, run_key
from dangerous_driving.defs.partitions import CAMERA, WINDOW, partition_key
from dangerous_driving.defs.resources import DatabaseResource
from dangerous_driving.ledger.windows import DueWindow, due_windows, fail_window
from dangerous_driving.settings import WindowsSettings

#: Due windows a tick looks at for each it may launch, so that windows which rest after a failure hold up no others.
LOOK_AHEAD = 10

RUN_KEY_TAG = "dagster/run_key"
STATES = {
    dg.DagsterRunStatus.NOT_STARTED: RunState.WAITING,
    dg.DagsterRunStatus.QUEUED: RunState.WAITING,
    dg.DagsterRunStatus.SUCCESS: RunState.SUCCEEDED,
    dg.DagsterRunStatus.FAILURE: RunState.FAILED,
    dg.DagsterRunStatus.CANCELED: RunState.FAILED,
}


def closed_windows_sensor(settings: WindowsSettings, partitions: dg.MultiPartitionsDefinition) -> dg.SensorDefinition:
    """Launches the run of each closed window whose content is not completed; one ledger query per tick."""
    windows = partitions.get_partitions_def_for_dimension(WINDOW)
    assert isinstance(windows, dg.TimeWindowPartitionsDefinition)  # noqa: S101  # made by window_partitions

    @dg.sensor(
        name="closed_windows",
        job_name=WINDOW_JOB,
        minimum_interval_seconds=settings.sensor_interval,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Windows whose end lies `windows.lateness` back and that hold content no run has completed.",
    )
    def closed_windows(
        context: dg.SensorEvaluationContext, database: DatabaseResource
    ) -> dg.SensorResult | dg.SkipReason:
        now = datetime.now(UTC)
        due = due_windows(
            database.engine,
            now=now,
            lateness=settings.lateness,
            length=settings.length,
            limit=settings.runs_per_tick * LOOK_AHEAD,
            since=windows.start,  # what lies before has no partition
        )
        launches = plan(
            due,
            newest_runs(context.instance, [run_key(window) for window in due]),
            now=now,
            retry_delay=settings.retry_delay,
            room=settings.runs_per_tick,
        )
        for window in launches.failed:
            fail_window(database.engine, window.window, window.version)
        if launches.given_up:
            context.log.error("%d windows failed too often and are left to a person", launches.given_up)
        if not launches.start:
            return dg.SkipReason(skip_reason(launches))
        cameras = {window.window.camera_id for window in launches.start}
        missing = sorted(cameras.difference(context.instance.get_dynamic_partitions(CAMERA)))
        return dg.SensorResult(
            run_requests=[run_request(window) for window in launches.start],
            dynamic_partitions_requests=[dg.AddDynamicPartitionsRequest(CAMERA, missing)] if missing else [],
        )

    return closed_windows


def newest_runs(instance: dg.DagsterInstance, keys: Sequence[str]) -> Mapping[str, KnownRun]:
    """The newest run of each of these run keys, in one query to the instance."""
    if not keys:
        return {}
    records = instance.get_run_records(filters=dg.RunsFilter(tags={RUN_KEY_TAG: list(keys)}), ascending=True)
    return {
        record.dagster_run.tags[RUN_KEY_TAG]: KnownRun(
            STATES.get(record.dagster_run.status, RunState.RUNNING),
            datetime.fromtimestamp(record.end_time, tz=UTC) if record.end_time else None,
        )
        for record in records
    }


def run_request(due: DueWindow) -> dg.RunRequest:
    """The run of one window's content at one attempt."""
    return dg.RunRequest(
        run_key=run_key(due),
        partition_key=partition_key(due.window),
        tags={
            "dangerous_driving/content_version": str(due.version),
            "dangerous_driving/attempt": str(due.attempts + 1),
        },
    )


def skip_reason(launches: Launches) -> str:
    """Why a tick launches nothing."""
    reasons = [
        f"{count} {what}"
        for count, what in (
            (launches.busy, "queued or running"),
            (launches.resting, "resting after a failure"),
            (launches.left, "waiting for room in the queue"),
            (launches.given_up, "left to a person"),
        )
        if count
    ]
    return f"closed windows: {', '.join(reasons)}" if reasons else "no closed window has content to assess"
