"""Jobs and schedules of what watches over the models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from dangerous_driving.defs.jobs import LANE_TAG
from dangerous_driving.defs.schedules import RUNNING
from dangerous_driving.settings import Settings

DETECTOR_JOB = "evaluate_detector"
DRIFT_JOB = "watch_drift"
SHADOW_JOB = "assess_shadows"


def monitoring_jobs() -> list[UnresolvedAssetJobDefinition]:
    """One asset each, with its check."""
    return [
        dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(asset),
            tags={LANE_TAG: "operations"},
            description=description,
        )
        for name, asset, description in (
            (DETECTOR_JOB, "detector_evaluation", "Evaluate the detector on labelled pictures."),
            (DRIFT_JOB, "detection_drift", "Hold a day of every camera against its weeks before."),
            (SHADOW_JOB, "shadow_assessments", "Let challengers assess a share of the windows that have completed."),
        )
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
