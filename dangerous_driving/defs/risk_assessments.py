"""The window lane as an asset: a partition is a camera's window, a run takes a rectangle of them."""

import base64
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import dagster as dg
from pydantic import Field

from dangerous_driving.assessment.backfill_run import BackfillPlan
from dangerous_driving.assessment.window_run import WindowReport, is_assessable
from dangerous_driving.assessment.windows import Window
from dangerous_driving.contracts import LIVE_RUN
from dangerous_driving.defs.assets import RISK_ASSESSMENTS
from dangerous_driving.defs.checks import window_evaluations
from dangerous_driving.defs.partitions import CAMERA, WINDOW, partition_key, window_of_key
from dangerous_driving.defs.preview import knowingly
from dangerous_driving.defs.resources import AssessorResource
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.cameras import known_cameras
from dangerous_driving.settings import Settings

BACKFILL_TAG = "dagster/backfill"
#: Problems that a failed run names at most.
NAMED = 10


WindowEvent = dg.MaterializeResult[None] | dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


class WindowRunConfig(dg.Config):
    """Left empty, a run assesses what has no answer. With any of the first three it assesses again, beside what is there."""

    prompt_version: str | None = Field(default=None, description="assess again with this prompt version")
    model: str | None = Field(default=None, description="assess again with this model")
    backfill: str | None = Field(
        default=None,
        description="name of the backfill, under which its answers are kept; default: of Dagster's backfill",
    )
    make_current: bool = Field(default=False, description="make the backfill's answers the current ones at its end")
    cost_limit: float | None = Field(default=None, ge=0, description="money for the whole backfill, over all windows")
    estimate_only: bool = Field(default=False, description="say what it would take, and ask nothing")

    @property
    def assesses_again(self) -> bool:
        """Whether this is a backfill, and not a run of the window lane."""
        return bool(self.prompt_version or self.model or self.backfill or self.estimate_only)


@knowingly()
def risk_assessments_asset(settings: Settings, partitions: dg.MultiPartitionsDefinition) -> dg.AssetsDefinition:
    """The window lane: its run leaves no group without an answer or a cause."""
    windows = settings.windows

    @dg.asset(
        key=RISK_ASSESSMENTS,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=windows.windows_per_run),
        deps=["frames", "assessment_tasks"],
        group_name="assessment",
        kinds={"postgres", "openai"},
        output_required=False,  # an estimate makes nothing
        metadata={"dagster/table_name": "public.risk_assessment"},
        description=(
            "Every traffic group of a camera's window, assessed. A run asks only for the groups that have no answer yet: "
            "it can be killed and run again at any time. With a prompt version or a model in its config it is a backfill: "
            "it assesses all groups again and keeps both answers."
        ),
    )
    def risk_assessments(
        context: dg.AssetExecutionContext, config: WindowRunConfig, assessor: AssessorResource
    ) -> Iterator[WindowEvent]:
        wanted = [window_of_key(key, windows.length) for key in context.partition_keys]
        refused = refusals(wanted, assessor, lateness=windows.lateness)
        allowed = [window for window in wanted if window not in refused]
        if config.assesses_again:
            plan = checked_plan(context, config, assessor)
            estimate = assessor.estimate(allowed, plan)
            context.log.info(
                "backfill %s: %d groups in %d windows, %d answered already, estimated cost of the rest: %s",
                plan.run, estimate.groups, len(allowed), estimate.answered,
                "not known yet" if estimate.cost is None else f"{estimate.cost:.4g}",
            )  # fmt: skip
            if config.estimate_only:
                yield (dg.AssetObservation(RISK_ASSESSMENTS, metadata={
                    "backfill": plan.run, "windows": len(allowed), "groups": estimate.groups,
                    "calls_to_make": estimate.calls, "spent": estimate.spent,
                    "estimated_cost": "not known yet" if estimate.cost is None else estimate.cost,
                }))  # fmt: skip
                return
            reports = assessor.backfill(allowed, plan)
        elif config.make_current or config.cost_limit is not None:
            raise dg.Failure(
                "make_current and cost_limit are of a backfill; name a prompt_version, a model or a backfill, too",
                allow_retries=False,
            )
        else:
            reports = assessor.assess(allowed, run_id=context.run.run_id)
        metadata = {report.window: report_metadata(report, settings, assessor.riskiest(report)) for report in reports}
        problems = [f"{name_of(window)}: {reason}" for window, reason in refused.items()]
        problems += [f"{name_of(report.window)}: {report.problem}" for report in reports if report.problem]
        if problems:
            # what is complete counts all the same; the step's own output would stand for every partition.
            # Yielded, since what is logged through the context is lost when the step fails
            for report in reports:
                if not report.error:
                    yield from kept(report, metadata[report.window], assessor, settings)
            raise dg.Failure(
                failure_text(problems, len(wanted)),
                metadata=_totals(reports) | {"problems": dg.MetadataValue.json(problems)},
                allow_retries=False,
            )
        for report in reports:
            context.add_asset_metadata(metadata[report.window], partition_key=str(partition_key(report.window)))
        yield dg.MaterializeResult(asset_key=RISK_ASSESSMENTS)

    return risk_assessments


def refusals(wanted: Sequence[Window], assessor: AssessorResource, *, lateness: float) -> dict[Window, str]:
    """Windows on which a run makes no sense, and why."""
    now = datetime.now(UTC)
    known = known_cameras(assessor.database.engine, {window.camera_id for window in wanted})
    refused: dict[Window, str] = {}
    for window in wanted:
        if window.camera_id not in known:
            refused[window] = f"there is no camera {window.camera_id!r}; see: dangerous-driving cameras list"
        elif reason := is_assessable(window, now=now, lateness=lateness):
            refused[window] = f"{reason}; run it after that"
    return refused


def checked_plan(
    context: dg.AssetExecutionContext, config: WindowRunConfig, assessor: AssessorResource
) -> BackfillPlan:
    """What the config asks for. A re-execution goes on with the backfill of the run it repeats.

    Raises:
        Failure: the prompt version, the model or the name cannot be used.
    """
    backfill = context.run.tags.get(BACKFILL_TAG)
    run = config.backfill or (
        f"backfill-{backfill}" if backfill else f"run-{context.run.root_run_id or context.run.run_id}"
    )
    try:
        return assessor.plan(
            run=run,
            prompt_version=config.prompt_version,
            model=config.model,
            make_current=config.make_current,
            cost_limit=config.cost_limit,
        )
    except ConfigError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def kept(
    report: WindowReport,
    metadata: dict[str, dg.MetadataValue],
    assessor: AssessorResource,
    settings: Settings,
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """What a window of a failing run has come to: its partition if it is complete, and its checks."""
    key = partition_key(report.window)
    if report.complete:
        tags = {f"dagster/partition/{name}": key.keys_by_dimension[name] for name in (CAMERA, WINDOW)}
        yield dg.AssetMaterialization(RISK_ASSESSMENTS, partition=str(key), metadata=metadata, tags=tags)
    yield from window_evaluations(
        assessor.database.engine, assessor.object_store.store, report.window, settings.windows
    )


def failure_text(problems: Sequence[str], windows: int) -> str:
    """The run's end in words."""
    if windows == 1:
        return problems[0].partition(": ")[2]
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return f"{len(problems)} of {windows} windows are not complete: {'; '.join(problems[:NAMED])}{more}"


def name_of(window: Window) -> str:
    """``north-1 2025-10-20 10:00``."""
    return f"{window.camera_id} {window.start:%Y-%m-%d %H:%M}"


def report_metadata(
    report: WindowReport, settings: Settings, sheet: bytes | None = None
) -> dict[str, dg.MetadataValue]:
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
        "expired": dg.MetadataValue.int(report.expired),
        "levels": dg.MetadataValue.json(report.levels),
        "lanes": dg.MetadataValue.json(report.lanes),
        "failed": dg.MetadataValue.int(failed),
        "failed_by_cause": dg.MetadataValue.json(report.failed),
        "calls": dg.MetadataValue.int(report.calls),
        "cost": dg.MetadataValue.float(report.cost),
        "pictures": dg.MetadataValue.path(_pictures(report.window)),
    }
    if report.run != LIVE_RUN:
        metadata["backfill"] = dg.MetadataValue.text(report.run)
    if report.latency_p50 is not None and report.latency_p95 is not None:
        metadata["latency_p50_seconds"] = dg.MetadataValue.float(report.latency_p50)
        metadata["latency_p95_seconds"] = dg.MetadataValue.float(report.latency_p95)
    if sheet is not None:
        picture = base64.b64encode(sheet).decode()
        metadata["riskiest"] = dg.MetadataValue.md(f"![riskiest crops](data:image/jpeg;base64,{picture})")
    if settings.realtime.port:
        host, port = settings.realtime.host, settings.realtime.port
        metadata["page"] = dg.MetadataValue.url(f"http://{host}:{port}/?camera={report.window.camera_id}")
    return metadata


def _totals(reports: Sequence[WindowReport]) -> dict[str, dg.MetadataValue]:
    return {
        "windows_complete": dg.MetadataValue.int(sum(report.complete for report in reports)),
        "groups": dg.MetadataValue.int(sum(report.groups for report in reports)),
        "assessed_by_this_run": dg.MetadataValue.int(sum(report.assessed for report in reports)),
        "pending": dg.MetadataValue.int(sum(report.pending for report in reports)),
    }


def _summary(report: WindowReport, failed: int) -> str:
    if not report.frames:
        return "No frames in this window: nothing to assess."
    levels = ", ".join(f"{count} {level}" for level, count in sorted(report.levels.items())) or "no answer"
    failures = f"; {failed} failed" if failed else ""
    expired = f"; {report.expired} expired" if report.expired else ""
    again = f" Assessed again as {report.run}; the current answers are untouched." if report.run != LIVE_RUN else ""
    return f"{report.groups} groups in {report.frames} frames: {levels}{failures}{expired}.{again}"


def _pictures(window: Window) -> str:
    """Where the object store has the window's pictures (the hour in which it starts)."""
    return f"groups/{window.camera_id}/{window.start:%Y/%m/%d/%H}/"
