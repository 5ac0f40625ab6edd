"""The jobs: one window's run, and the dbt models."""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from dangerous_driving.defs.assets import RISK_ASSESSMENTS

#: Tag by which `dagster_home/dagster.yaml` limits runs.
LANE_TAG = "dangerous_driving/lane"

WINDOW_JOB = "assess_window"
MARTS_JOB = "build_marts"


def window_job() -> UnresolvedAssetJobDefinition:
    """One camera's window, with its checks. Retried by the sensor, which knows the window's content, not by the instance."""
    return dg.define_asset_job(
        WINDOW_JOB,
        selection=dg.AssetSelection.assets(RISK_ASSESSMENTS),
        tags={LANE_TAG: "window"},
        description="Assess every group of a camera's window and check that none was forgotten.",
    )


def marts_job(models: dg.AssetsDefinition) -> UnresolvedAssetJobDefinition:
    """All dbt models with their tests."""
    return dg.define_asset_job(
        MARTS_JOB,
        selection=dg.AssetSelection.assets(models),
        # goes before the windows that wait in the queue, and is tried again when a row changed under it
        tags={LANE_TAG: "marts", "dagster/priority": "10", "dagster/max_retries": "2"},
        description="Build and test all dbt models.",
    )
