"""The code location of `workspace.yaml`. Settings are read when Dagster loads the definitions, not at import."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg

from dangerous_driving.defs.assets import LEDGER_ASSETS, risk_assessments_asset
from dangerous_driving.defs.checks import nothing_forgotten_check
from dangerous_driving.defs.dbt import dbt_resource, ledger_models
from dangerous_driving.defs.jobs import marts_job, window_job
from dangerous_driving.defs.partitions import window_partitions
from dangerous_driving.defs.resources import window_resources
from dangerous_driving.defs.schedules import marts_schedule
from dangerous_driving.defs.sensors import closed_windows_sensor
from dangerous_driving.settings import Settings, load


@dg.definitions
def definitions() -> dg.Definitions:
    """What Dagster loads, by the settings of this process (``DD_CONFIG``, ``DD_…``)."""
    return definitions_of(load())


def definitions_of(settings: Settings) -> dg.Definitions:
    """All assets, checks, jobs, sensors, schedules and resources for these settings."""
    partitions = window_partitions(settings.windows, datetime.now(UTC))
    models = ledger_models(settings)
    return dg.Definitions(
        assets=[*LEDGER_ASSETS, risk_assessments_asset(settings, partitions), models],
        asset_checks=[nothing_forgotten_check(partitions, length=settings.windows.length)],
        jobs=[window_job(), marts_job(models)],
        sensors=[closed_windows_sensor(settings.windows, partitions)],
        schedules=[marts_schedule(settings.windows)],
        resources={**window_resources(), "dbt": dbt_resource(settings)},
        # a run has one or two steps: a process for each would double its time
        executor=dg.in_process_executor,
    )
