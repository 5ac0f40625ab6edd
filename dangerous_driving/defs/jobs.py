"""The jobs: runs on windows, the dbt models, housekeeping."""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from dangerous_driving.defs.assets import RISK_ASSESSMENTS

#: Tag by which `dagster_home/dagster.yaml` limits runs.
LANE_TAG = "dangerous_driving/lane"

WINDOW_JOB = "assess_window"
MARTS_JOB = "build_marts"
RETENTION_JOB = "apply_retention"
DIGEST_JOB = "write_digest"
INVENTORY_JOB = "list_cameras"
EVALUATION_JOB = "evaluate_prompts"


def window_job() -> UnresolvedAssetJobDefinition:
    """Windows with their checks. Retried by the sensor, which knows the window's content, not by the instance.

    Backfills from the page run in Dagster's own asset job; their tag ``dagster/backfill`` limits them.
    """
    return dg.define_asset_job(
        WINDOW_JOB,
        selection=dg.AssetSelection.assets(RISK_ASSESSMENTS),
        tags={LANE_TAG: "window"},
        description="Assess every group of closed windows and check that none was forgotten.",
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


def evaluation_job() -> UnresolvedAssetJobDefinition:
    """Cases, then champion and challengers. Not retried: what stops it (a budget, an endpoint) is better the night after."""
    return dg.define_asset_job(
        EVALUATION_JOB,
        selection=dg.AssetSelection.assets("evaluation_cases", "prompt_gate"),
        tags={LANE_TAG: "evaluation"},
        description="Evaluate the prompt in use and its challengers, and promote one that is significantly better.",
    )


def operations_jobs() -> list[UnresolvedAssetJobDefinition]:
    """Housekeeping, one asset each; tried again when the database or the store was away for a moment."""
    return [
        dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(asset),
            tags={LANE_TAG: "operations", "dagster/max_retries": "2"},
            description=description,
        )
        for name, asset, description in (
            (RETENTION_JOB, "retention", "Drop what is older than `windows.retention_days`."),
            (DIGEST_JOB, "alert_digest", "Write the digest of a day's alerts."),
            (INVENTORY_JOB, "camera_inventory", "Look at the list of cameras."),
        )
    ]
