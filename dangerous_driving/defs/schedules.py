"""Schedules."""

from __future__ import annotations

import dagster as dg

from dangerous_driving.defs.jobs import MARTS_JOB
from dangerous_driving.settings import WindowsSettings


def marts_schedule(settings: WindowsSettings) -> dg.ScheduleDefinition:
    """The dbt models by ``windows.marts_cron``: not after every window, since each build reads the whole ledger."""
    return dg.ScheduleDefinition(
        name="marts",
        job_name=MARTS_JOB,
        cron_schedule=settings.marts_cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Build the dbt models.",
    )
