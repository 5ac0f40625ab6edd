"""The assets: what the services write (external), and the assessed windows."""

from datetime import UTC, datetime

import dagster as dg

from dangerous_driving.assessment.window_run import WindowReport, is_assessable
from dangerous_driving.assessment.windows import Window
from dangerous_driving.defs.partitions import window_of_key
from dangerous_driving.defs.resources import AssessorResource
from dangerous_driving.settings import Settings

RISK_ASSESSMENTS = dg.AssetKey("risk_assessments")

#: Tables of the ledger that the services write; Dagster shows them and builds on them, but does not make them.
LEDGER_ASSETS = (
    dg.AssetSpec(
        "cameras",
        group_name="ledger",
        kinds={"postgres"},
        metadata={"dagster/table_name": "public.camera"},
        description="One row per camera ever seen, with its status.",
    ),
    dg.AssetSpec(
        "frames",
        group_name="ledger",
        kinds={"postgres"},
        metadata={"dagster/table_name": "public.frame"},
        description=(
            "One row per published frame: its detections and traffic groups. Written by the tasks service from the topic "
            "`detection-results`; the pictures lie in the object store under `frames/` and `groups/`."
        ),
    ),
    dg.AssetSpec(
        "assessment_tasks",
        deps=["frames"],
        group_name="ledger",
        kinds={"postgres"},
        metadata={"dagster/table_name": "public.assessment_task"},
        description=(
            "One row per traffic group of at least two objects: the queue of record. The realtime lane takes what its "
            "deadline and the quota allow; what it leaves is pending until the window's run."
        ),
    ),
    dg.AssetSpec(
        "llm_calls",
        group_name="ledger",
        kinds={"postgres"},
        metadata={"dagster/table_name": "public.llm_call"},
        description="One row per request to the LLM endpoint, of every lane, written before the request leaves.",
    ),
)


def risk_assessments_asset(settings: Settings, partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """The window lane: one partition is a camera's window, and its run leaves no group without an answer or a cause."""
    windows = settings.windows

    @dg.asset(
        key=RISK_ASSESSMENTS,
        partitions_def=partitions,
        deps=["frames", "assessment_tasks"],
        group_name="assessment",
        kinds={"postgres", "openai"},
        metadata={"dagster/table_name": "public.risk_assessment"},
        description=(
            "Every traffic group of a camera's window, assessed. A run asks only for the groups that have no answer yet: "
            "it can be killed and run again at any time."
        ),
    )
    def risk_assessments(context: dg.AssetExecutionContext, assessor: AssessorResource) -> dg.MaterializeResult[None]:
        window = window_of_key(context.partition_key, windows.length)
        refusal = is_assessable(window, now=datetime.now(UTC), lateness=windows.lateness)
        if refusal:
            raise dg.Failure(f"{refusal}; run it after that", allow_retries=False)
        report = assessor.assess(window, run_id=context.run.run_id)
        metadata = report_metadata(report, settings)
        if not report.complete:
            raise dg.Failure(
                f"{report.pending} of {report.groups} groups have no answer yet; they stay pending, and the next run "
                "takes them up",
                metadata=metadata,
            )
        return dg.MaterializeResult(metadata=metadata)

    return risk_assessments


def report_metadata(report: WindowReport, settings: Settings) -> dict[str, dg.MetadataValue]:
    """What people want to see of a window's run; latencies in seconds, cost in money."""
    failed = sum(report.failed.values())
    metadata: dict[str, dg.MetadataValue] = {
        "summary": dg.MetadataValue.md(_summary(report, failed)),
        "dagster/row_count": dg.MetadataValue.int(sum(report.levels.values())),
        "frames": dg.MetadataValue.int(report.frames),
        "groups": dg.MetadataValue.int(report.groups),
        "assessed_by_this_run": dg.MetadataValue.int(report.assessed),
        "assessed_before": dg.MetadataValue.int(report.already),
        "pending": dg.MetadataValue.int(report.pending),
        "levels": dg.MetadataValue.json(report.levels),
        "failed": dg.MetadataValue.int(failed),
        "failed_by_cause": dg.MetadataValue.json(report.failed),
        "calls": dg.MetadataValue.int(report.calls),
        "cost": dg.MetadataValue.float(report.cost),
        "pictures": dg.MetadataValue.path(_pictures(report.window)),
    }
    if report.latency_p50 is not None and report.latency_p95 is not None:
        metadata["latency_p50_seconds"] = dg.MetadataValue.float(report.latency_p50)
        metadata["latency_p95_seconds"] = dg.MetadataValue.float(report.latency_p95)
    if settings.realtime.port:
        host, port = settings.realtime.host, settings.realtime.port
        metadata["page"] = dg.MetadataValue.url(f"http://{host}:{port}/?camera={report.window.camera_id}")
    return metadata


def _summary(report: WindowReport, failed: int) -> str:
    if not report.frames:
        return "No frames in this window: nothing to assess."
    levels = ", ".join(f"{count} {level}" for level, count in sorted(report.levels.items())) or "no answer"
    failures = f"; {failed} failed" if failed else ""
    return f"{report.groups} groups in {report.frames} frames: {levels}{failures}."


def _pictures(window: Window) -> str:
    """Where the object store has the window's pictures (the hour in which it starts)."""
    return f"groups/{window.camera_id}/{window.start:%Y/%m/%d/%H}/"
