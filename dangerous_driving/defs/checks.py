"""Asset checks: what must hold of a window after its run."""

import warnings

import dagster as dg

from dangerous_driving.defs.assets import RISK_ASSESSMENTS
from dangerous_driving.defs.partitions import window_of_key
from dangerous_driving.defs.resources import DatabaseResource
from dangerous_driving.ledger.windows import WindowCoverage, window_coverage


def nothing_forgotten_check(partitions: dg.MultiPartitionsDefinition, *, length: int) -> dg.AssetChecksDefinition:
    """The check of the partition that the run materialised; `length` of a window in seconds."""
    with warnings.catch_warnings():
        # partitioned checks are marked as preview in this Dagster version; without, a window's result would hide another's
        warnings.simplefilter("ignore", dg.PreviewWarning)

        @dg.asset_check(
            asset=RISK_ASSESSMENTS,
            name="nothing_forgotten",
            partitions_def=partitions,
            description="Every traffic group of the window has a task, and every task an answer or the cause of its failure.",
        )
        def nothing_forgotten(
            context: dg.AssetCheckExecutionContext, database: DatabaseResource
        ) -> dg.AssetCheckResult:
            window = window_of_key(context.partition_key, length)
            return check_result(window_coverage(database.engine, window))

    return nothing_forgotten


def check_result(coverage: WindowCoverage) -> dg.AssetCheckResult:
    """Pass or fail by what the ledger holds, read after the run and not taken from its report."""
    forgotten = {
        "groups without a task": coverage.missing,
        "tasks pending": coverage.pending,
        "tasks claimed": coverage.claimed,
        "tasks without a current answer": coverage.unanswered,
    }
    found = ", ".join(f"{count} {what}" for what, count in forgotten.items() if count)
    return dg.AssetCheckResult(
        passed=coverage.complete,
        severity=dg.AssetCheckSeverity.ERROR,
        description=found or "every group is assessed, failed with a cause, or expired",
        metadata={
            "frames": coverage.frames,
            "groups": coverage.groups,
            "tasks": coverage.tasks,
            "assessed": coverage.assessed,
            "expired": coverage.expired,
            "failed_by_cause": dg.MetadataValue.json(coverage.failed),
            "levels": dg.MetadataValue.json(coverage.levels),
            "forgotten": dg.MetadataValue.json(forgotten),
        },
    )
