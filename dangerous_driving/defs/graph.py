"""All that Dagster knows: assets, checks, jobs, sensors, schedules and resources, for given settings."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg

from dangerous_driving.defs.assets import content_sensor, ledger_assets
from dangerous_driving.defs.checks import window_checks
from dangerous_driving.defs.dbt import dbt_resource, ledger_models
from dangerous_driving.defs.evaluation import evaluation_assets
from dangerous_driving.defs.incidents import endpoint_sensor, failed_runs_sensor
from dangerous_driving.defs.jobs import evaluation_job, marts_job, operations_jobs, window_job
from dangerous_driving.defs.monitoring import detection_drift_asset, detector_evaluation_asset
from dangerous_driving.defs.monitoring_jobs import monitoring_jobs, monitoring_schedules
from dangerous_driving.defs.partitions import window_partitions
from dangerous_driving.defs.reports import alert_digest_asset, camera_inventory_asset
from dangerous_driving.defs.resources import window_resources
from dangerous_driving.defs.retention import retention_asset
from dangerous_driving.defs.risk_assessments import risk_assessments_asset
from dangerous_driving.defs.schedules import all_schedules
from dangerous_driving.defs.sensors import closed_windows_sensor
from dangerous_driving.defs.shadows import shadow_assessments_asset, shadow_sensor
from dangerous_driving.settings import Settings


def definitions_of(settings: Settings) -> dg.Definitions:
    """All assets, checks, jobs, sensors, schedules and resources for these settings."""
    now = datetime.now(UTC)
    partitions = window_partitions(settings.windows, now)
    models = ledger_models(settings)
    operations, monitoring = operations_jobs(), monitoring_jobs()
    return dg.Definitions(
        assets=[
            *ledger_assets(settings.operations),
            risk_assessments_asset(settings, partitions),
            models,
            retention_asset(settings),
            alert_digest_asset(settings, now),
            camera_inventory_asset(),
            *evaluation_assets(settings),
            detector_evaluation_asset(settings),
            detection_drift_asset(settings, now),
            shadow_assessments_asset(settings),
        ],
        asset_checks=[window_checks(settings.windows, partitions)],
        jobs=[window_job(), marts_job(models), evaluation_job(), *operations, *monitoring],
        sensors=[
            closed_windows_sensor(settings, partitions),
            failed_runs_sensor(settings),
            endpoint_sensor(settings),
            content_sensor(settings.operations),
            shadow_sensor(settings),
        ],
        schedules=[*all_schedules(settings, operations), *monitoring_schedules(settings, monitoring)],
        resources={**window_resources(), "dbt": dbt_resource(settings)},
        # a run has one or two steps: a process for each would double its time
        executor=dg.in_process_executor,
    )
