"""Schedules."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from dangerous_driving.defs.jobs import DIGEST_JOB, EVALUATION_JOB, INVENTORY_JOB, MARTS_JOB, RETENTION_JOB
from dangerous_driving.settings import Settings

RUNNING = dg.DefaultScheduleStatus.RUNNING


def all_schedules(
    settings: Settings, jobs: Sequence[UnresolvedAssetJobDefinition]
) -> list[dg.ScheduleDefinition | dg.UnresolvedPartitionedAssetScheduleDefinition]:
    """What Dagster does by the clock, in UTC.

    The dbt models are on a schedule (``windows.marts_cron``), not on an automation condition: each build looks for
    changes in the whole ledger, and "any upstream partition is new" would hold all the time while 50 cameras' windows come in one after
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
        dg.ScheduleDefinition(
            name="evaluation",
            job_name=EVALUATION_JOB,
            cron_schedule=settings.evaluation.cron,
            execution_timezone="UTC",
            default_status=RUNNING,
            description="Evaluate the prompt in use and its challengers.",
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
