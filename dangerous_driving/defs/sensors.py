"""The sensor of the window lane."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg

from dangerous_driving.contracts import Lane
from dangerous_driving.defs.incidents import held_back, tell
from dangerous_driving.defs.jobs import WINDOW_JOB
from dangerous_driving.defs.launches import KnownRun, Launches, RunState, batches, plan, run_key
from dangerous_driving.defs.partitions import CAMERA, WINDOW, partition_key
from dangerous_driving.defs.resources import DatabaseResource
from dangerous_driving.ledger.incidents import Incident
from dangerous_driving.ledger.windows import (
    MAX_ATTEMPTS,
    DueWindow,
    due_windows,
    fail_window,
    launch_windows,
    take_over_windows,
)
from dangerous_driving.settings import Settings

#: Due windows a tick looks at for each it may launch, so that windows which rest after a failure hold up no others.
LOOK_AHEAD = 10

RUN_KEY_TAG = "dagster/run_key"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
STATES = {
    dg.DagsterRunStatus.NOT_STARTED: RunState.WAITING,
    dg.DagsterRunStatus.QUEUED: RunState.WAITING,
    dg.DagsterRunStatus.SUCCESS: RunState.SUCCEEDED,
    dg.DagsterRunStatus.FAILURE: RunState.FAILED,
    dg.DagsterRunStatus.CANCELED: RunState.FAILED,
}


def closed_windows_sensor(settings: Settings, partitions: dg.MultiPartitionsDefinition) -> dg.SensorDefinition:
    """Launches runs on the closed windows whose content is not completed; one look at the ledger per tick."""
    windows = partitions.get_partitions_def_for_dimension(WINDOW)
    assert isinstance(windows, dg.TimeWindowPartitionsDefinition)  # noqa: S101  # made by window_partitions
    wanted = settings.windows

    @dg.sensor(
        name="closed_windows",
        job_name=WINDOW_JOB,
        minimum_interval_seconds=wanted.sensor_interval,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Windows whose end lies `windows.lateness` back and that hold content no run has completed.",
    )
    def closed_windows(
        context: dg.SensorEvaluationContext, database: DatabaseResource
    ) -> dg.SensorResult | dg.SkipReason:
        held = held_back(database.engine, settings, Lane.WINDOW)
        if held:
            return dg.SkipReason(f"held back: {held}")
        now = datetime.now(UTC)
        if taken := take_over_windows(database.engine, length=wanted.length, now=now, lateness=wanted.lateness):
            context.log.info("%d windows of another length are taken over by windows of %d s", taken, wanted.length)
        room = wanted.runs_per_tick * wanted.windows_per_run
        due = due_windows(
            database.engine,
            now=now,
            lateness=wanted.lateness,
            length=wanted.length,
            limit=room * LOOK_AHEAD,
            since=windows.start,  # what lies before has no partition
        )
        launches = plan(
            due,
            newest_runs(context.instance, {window.run_key for window in due if window.run_key}),
            now=now,
            retry_delay=wanted.retry_delay,
            room=room,
        )
        for window in launches.failed:
            fail_window(database.engine, window.window, window.version)
        if launches.given_up:
            context.log.error("%d windows failed too often and are left to a person", launches.given_up)
            tell(
                database.engine,
                settings.operations,
                Incident(
                    "windows_given_up",
                    ", ".join(sorted({window.window.camera_id for window in launches.failed})),
                    f"{launches.given_up} windows failed {MAX_ATTEMPTS} times; look at their runs, then materialise them",
                ),
            )
        if not launches.start:
            return dg.SkipReason(skip_reason(launches))
        known = context.instance.get_dynamic_partitions(CAMERA)
        missing = sorted({window.window.camera_id for window in launches.start}.difference(known))
        runs = batches(launches.start, [*known, *missing], wanted.windows_per_run)[: wanted.runs_per_tick]
        launch_windows(database.engine, [(window, run_key(batch)) for batch in runs for window in batch])
        return dg.SensorResult(
            run_requests=[run_request(batch) for batch in runs],
            dynamic_partitions_requests=[dg.AddDynamicPartitionsRequest(CAMERA, missing)] if missing else [],
        )

    return closed_windows


def newest_runs(instance: dg.DagsterInstance, keys: Collection[str]) -> Mapping[str, KnownRun]:
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


def run_request(batch: Sequence[DueWindow]) -> dg.RunRequest:
    """The run on a rectangle of windows."""
    tags = {
        "dangerous_driving/windows": str(len(batch)),
        "dangerous_driving/attempt": str(max(due.attempts for due in batch) + 1),
    }
    if len(batch) == 1:
        return dg.RunRequest(run_key=run_key(batch), partition_key=partition_key(batch[0].window), tags=tags)
    return dg.RunRequest(
        run_key=run_key(batch),
        tags=tags | {RANGE_START_TAG: partition_key(batch[0].window), RANGE_END_TAG: partition_key(batch[-1].window)},
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
