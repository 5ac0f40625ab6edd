"""Asset checks: what must hold of a window after its run.

One step reads the ledger and the store once and judges all checks for every window of the run. Its results carry their
partition themselves: Dagster gives a check of a run over several partitions none.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from sqlalchemy import Engine

from dangerous_driving.assessment.windows import Window
from dangerous_driving.defs.assets import RISK_ASSESSMENTS
from dangerous_driving.defs.partitions import partition_key, window_of_key
from dangerous_driving.defs.preview import knowingly
from dangerous_driving.defs.resources import DatabaseResource, ObjectStoreResource
from dangerous_driving.ledger.window_quality import WindowQuality, window_quality
from dangerous_driving.ledger.windows import WindowCoverage, window_coverage
from dangerous_driving.objects import ObjectStore
from dangerous_driving.settings import WindowsSettings

NOTHING_FORGOTTEN = "nothing_forgotten"
#: name -> what it holds
CHECKS = {
    NOTHING_FORGOTTEN: "Every traffic group of the window has a task, and every task an answer or the cause of its failure.",
    "no_orphans": "No answer without its task, no task without its frame, no picture that is named and not in the store.",
    "answers_valid": "Levels, confidences and risk types are of the agreed form.",
    "failed_share": "Few groups failed (`windows.max_failed_share`).",
    "latency_p95": "Answers came fast enough (`windows.max_latency_p95`, of the LLM's answer).",
    "key_spread": "The keys were used evenly (`windows.max_key_share` times the mean at most).",
}
#: Calls in a window below which uneven use of keys says nothing.
FEWEST_CALLS = 50


@knowingly()
def window_checks(settings: WindowsSettings, partitions: dg.MultiPartitionsDefinition) -> dg.AssetChecksDefinition:
    """All checks of the windows that a run has materialised."""
    # without partitions of their own, one window's result would hide another's
    specs = [
        dg.AssetCheckSpec(name, asset=RISK_ASSESSMENTS, description=text, partitions_def=partitions)
        for name, text in CHECKS.items()
    ]

    @dg.multi_asset_check(name="risk_assessments_checks", specs=specs, can_subset=True)
    def risk_assessments_checks(
        context: dg.AssetCheckExecutionContext, database: DatabaseResource, object_store: ObjectStoreResource
    ) -> Any:
        selected = {key.name for key in context.op_execution_context.selected_asset_check_keys}
        for key in partition_keys_of(context, partitions):
            window = window_of_key(key, settings.length)
            for evaluation in window_evaluations(database.engine, object_store.store, window, settings):
                if evaluation.check_name in selected:
                    yield evaluation

    return risk_assessments_checks


def partition_keys_of(context: dg.AssetCheckExecutionContext, partitions: dg.MultiPartitionsDefinition) -> list[str]:
    """The run's partitions: checks have no context of their own for a range of them."""
    execution = context.op_execution_context
    if execution.has_partition_key:
        return [str(execution.partition_key)]
    return [
        str(key)
        for key in partitions.get_partition_keys_in_range(
            execution.partition_key_range, dynamic_partitions_store=execution.instance
        )
    ]


def window_evaluations(
    engine: Engine, store: ObjectStore, window: Window, settings: WindowsSettings
) -> Iterator[dg.AssetCheckEvaluation]:
    """The results of all checks for one window, by what the ledger and the store hold now."""
    coverage, quality = window_coverage(engine, window), window_quality(engine, store, window)
    for result in (forgotten_result(coverage), *quality_results(quality, settings)):
        yield dg.AssetCheckEvaluation(
            asset_key=RISK_ASSESSMENTS,
            check_name=str(result.check_name),
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
            partition=str(partition_key(window)),
        )


def forgotten_result(coverage: WindowCoverage) -> dg.AssetCheckResult:
    """Pass or fail by what the ledger holds, read after the run and not taken from its report."""
    forgotten = {
        "groups without a task": coverage.missing,
        "tasks pending": coverage.pending,
        "tasks claimed": coverage.claimed,
        "tasks without a current answer": coverage.unanswered,
    }
    found = ", ".join(f"{count} {what}" for what, count in forgotten.items() if count)
    return dg.AssetCheckResult(
        check_name=NOTHING_FORGOTTEN,
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


def quality_results(quality: WindowQuality, settings: WindowsSettings) -> list[dg.AssetCheckResult]:
    """The other checks. What is wrong with the data is an error, what is unusual a warning."""
    error, warn = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
    orphans = {
        "answers without a task": (len(quality.results_without_task), quality.results_without_task),
        "tasks without a frame": (len(quality.tasks_without_frame), quality.tasks_without_frame),
        "pictures that are not in the store": (quality.objects_missing_count, quality.objects_missing),
    }
    found = ", ".join(f"{count} {what}" for what, (count, _) in orphans.items() if count)
    calls = sum(quality.calls_by_key.values())
    p95 = quality.latency_p95
    return [
        dg.AssetCheckResult(
            check_name="no_orphans",
            passed=not found,
            severity=error,
            description=found or "no orphans",
            metadata={what: dg.MetadataValue.json(names) for what, (_, names) in orphans.items()},
        ),
        dg.AssetCheckResult(
            check_name="answers_valid",
            passed=not quality.invalid,
            severity=error,
            description=f"{len(quality.invalid)} answers are not of the agreed form"
            if quality.invalid
            else "all valid",
            metadata={"invalid": dg.MetadataValue.json(quality.invalid), "answers": quality.answers},
        ),
        dg.AssetCheckResult(
            check_name="failed_share",
            passed=quality.failed_share <= settings.max_failed_share,
            severity=warn,
            description=f"{quality.failed} of {quality.tasks} groups failed",
            metadata={"failed_share": quality.failed_share},
        ),
        dg.AssetCheckResult(
            check_name="latency_p95",
            passed=p95 is None or p95 <= settings.max_latency_p95,
            severity=warn,
            description="no answers" if p95 is None else f"P95 {p95:.2f} s",
            metadata={} if p95 is None else {"latency_p95_seconds": p95},
        ),
        dg.AssetCheckResult(
            check_name="key_spread",
            passed=calls < FEWEST_CALLS or quality.key_share <= settings.max_key_share,
            severity=warn,
            description=f"{calls} calls on {len(quality.calls_by_key)} keys, the most used {quality.key_share:.2f} x the mean",
            metadata={"calls_by_key": dg.MetadataValue.json(quality.calls_by_key)},
        ),
    ]
