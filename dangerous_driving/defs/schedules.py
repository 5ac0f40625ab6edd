"""Schedules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from dangerous_driving.defs.jobs import DETECTOR_JOB, DIGEST_JOB, DRIFT_JOB, INVENTORY_JOB, MARTS_JOB, RETENTION_JOB
from dangerous_driving.settings import Settings

RUNNING = dg.DefaultScheduleStatus.RUNNING


def all_schedules(
    settings: Settings, jobs: Sequence[UnresolvedAssetJobDefinition]
) -> list[dg.ScheduleDefinition | dg.UnresolvedPartitionedAssetScheduleDefinition]:
    """What Dagster does by the clock, in UTC.

    The dbt models are on a schedule (``windows.marts_cron``), not on an automation condition: each build reads the whole
    ledger, and "any upstream partition is new" would hold all the time while 50 cameras' windows come in one after
    another. Five minutes past the hour the windows of the hour before have landed.
    """
    [digest] = [job for job in jobs if job.name == DIGEST_JOB]
    return [
        dg.ScheduleDefinition(
            name="marts",
            job_name=MARTS_JOB,
            cron_schedule=settings.windows.marts_cron,
            execution_timezone="UTC",
            default_status=RUNNING,
            description="Build the dbt models.",
        ),
        dg.ScheduleDefinition(
            name="retention",
            job_name=RETENTION_JOB,
            cron_schedule=settings.operations.retention_cron,
            execution_timezone="UTC",
            default_status=RUNNING,
            description="Drop what is older than windows.retention_days.",
        ),
        dg.ScheduleDefinition(
            name="camera_inventory",
            job_name=INVENTORY_JOB,
            cron_schedule=settings.operations.inventory_cron,
            execution_timezone="UTC",
            default_status=RUNNING,
            description="Look at the list of cameras.",
        ),
        dg.build_schedule_from_partitioned_job(
            digest,
            name="alert_digest",
            hour_of_day=settings.operations.digest_hour,
            minute_of_hour=0,
            default_status=RUNNING,
            description="Write the digest of the day before.",
        ),
    ]


def monitoring_schedules(
    settings: Settings, jobs: Sequence[UnresolvedAssetJobDefinition]
) -> list[dg.ScheduleDefinition]:
    """The detector's evaluation, where there are labelled folders, and the drift watch of the day before."""
    by_name = {job.name: job for job in jobs}

    @dg.schedule(
        name="detector_evaluation",
        job=by_name[DETECTOR_JOB],
        cron_schedule=settings.monitoring.detector_cron,
        execution_timezone="UTC",
        default_status=RUNNING,
        description="Evaluate the detector, if monitoring.labelled_folders are set.",
    )
    def detector_evaluation() -> dg.RunRequest | dg.SkipReason:
        if not settings.monitoring.labelled_folders:
            return dg.SkipReason("no labelled folder is set (monitoring.labelled_folders)")
        return dg.RunRequest()

    @dg.schedule(
        name="detection_drift",
        job=by_name[DRIFT_JOB],
        cron_schedule=settings.monitoring.drift_cron,
        execution_timezone="UTC",
        default_status=RUNNING,
        description="Hold the day before against the weeks before it.",
    )
    def detection_drift(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        day = f"{context.scheduled_execution_time - timedelta(days=1):%Y-%m-%d}"
        return dg.RunRequest(run_key=day, partition_key=day)

    return [detector_evaluation, detection_drift]
