"""Challengers in the shadow: windows that the live lanes have completed, assessed again for a share of their groups."""

from collections.abc import Iterator, Sequence

import dagster as dg

from dangerous_driving.assessment.backfill_run import BackfillPlan
from dangerous_driving.assessment.champion import current_version
from dangerous_driving.contracts import Lane
from dangerous_driving.defs.incidents import held_back
from dangerous_driving.defs.monitoring_jobs import SHADOW_JOB
from dangerous_driving.defs.resources import AssessorResource, DatabaseResource
from dangerous_driving.errors import ConfigError, UnavailableError
from dangerous_driving.evaluation.shadow_report import markdown
from dangerous_driving.ledger import shadows
from dangerous_driving.ledger.shadows import Challenger, ShadowWindowDue
from dangerous_driving.settings import Settings

SHADOW_ASSESSMENTS = dg.AssetKey("shadow_assessments")
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def shadow_assessments_asset(settings: Settings) -> dg.AssetsDefinition:
    """What challengers say of a share of the live groups; no result leaves the ledger."""

    @dg.asset(
        key=SHADOW_ASSESSMENTS,
        deps=["risk_assessments"],
        group_name="monitoring",
        kinds={"postgres", "openai"},
        output_required=False,  # without a challenger there is nothing to make
        metadata={"dagster/table_name": "public.risk_assessment"},
        description=(
            "Challengers in the shadow (`dangerous-driving shadow start`): of each window that the live lanes completed, a "
            "share of the groups is assessed again with the challenger's prompt and model, paid from the evaluation lane. "
            "The answers stand under a run of their own; they alert nobody and never become current."
        ),
    )
    def shadow_assessments(
        context: dg.AssetExecutionContext, database: DatabaseResource, assessor: AssessorResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        engine = database.engine
        in_use = current_version(settings.llm, engine), settings.llm.model
        for challenger in shadows.challengers(engine, active=True):
            if (challenger.prompt_version, challenger.model) == in_use:
                context.log.info("%s assesses live now: its shadow ends", challenger.run)
                shadows.end_shadow(engine, challenger.run)
        due = shadows.due_windows(engine, length=settings.windows.length, limit=settings.monitoring.shadow_windows)
        taken = []
        for challenger in shadows.challengers(engine, active=True):
            mine = [item for item in due if item.run == challenger.run]
            if mine:
                context.log.info("%s: %d windows", challenger.run, len(mine))
                problems = assess(database, assessor, challenger, mine)
                taken.append((challenger, len(mine), problems))
        if taken:
            yield dg.MaterializeResult(metadata=shadow_metadata(database, taken))

    return shadow_assessments


def assess(
    database: DatabaseResource, assessor: AssessorResource, challenger: Challenger, due: Sequence[ShadowWindowDue]
) -> list[str]:
    """Let a challenger assess windows and note each; returns what went wrong.

    One whose prompt cannot be used (its file is gone, say) has an attempt at these windows behind it, as one whose model is
    unknown has, so that it is given up in the end and holds up no other.

    Raises:
        ConfigError: what hinders every challenger: no key, or a part that does not answer.
    """
    plan = BackfillPlan(challenger.run, challenger.prompt_version, challenger.model, share=challenger.share)
    try:
        reports = assessor.backfill([item.window for item in due], plan)
    except UnavailableError:
        raise
    except ConfigError as error:
        if error.setting.startswith("keys."):
            raise
        found: list[str | None] = [str(error)] * len(due)
    else:
        found = [report.problem for report in reports]
    problems = []
    for item, problem in zip(due, found, strict=True):
        shadows.note_window(database.engine, item, problem)
        if problem:
            problems.append(f"{item.window.camera_id} {item.window.start:%Y-%m-%d %H:%M}: {problem}")
    return problems


def shadow_metadata(
    database: DatabaseResource, taken: Sequence[tuple[Challenger, int, list[str]]]
) -> dict[str, dg.MetadataValue]:
    """Each challenger's page."""
    pages = [markdown(shadows.report(database.engine, challenger)) for challenger, _, _ in taken]
    return {
        "challengers": dg.MetadataValue.md("\n\n".join(pages)),
        "windows": dg.MetadataValue.int(sum(count for _, count, _ in taken)),
        "problems": dg.MetadataValue.json([problem for _, _, problems in taken for problem in problems]),
    }


def shadow_sensor(settings: Settings) -> dg.SensorDefinition:
    """Starts a run where a challenger has windows to assess; one at a time."""

    @dg.sensor(
        name="shadow_windows",
        job_name=SHADOW_JOB,
        minimum_interval_seconds=settings.monitoring.shadow_interval,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Windows that the live lanes completed and that challengers in the shadow have not assessed.",
    )
    def shadow_windows(
        context: dg.SensorEvaluationContext, database: DatabaseResource
    ) -> dg.RunRequest | dg.SkipReason:
        if not shadows.challengers(database.engine, active=True):
            return dg.SkipReason("no challenger assesses in the shadow")
        held = held_back(database.engine, settings, Lane.EVALUATION)
        if held:
            return dg.SkipReason(f"held back: {held}")
        if context.instance.get_runs_count(dg.RunsFilter(job_name=SHADOW_JOB, statuses=UNFINISHED)):
            return dg.SkipReason("a run is under way")
        due = shadows.due_windows(database.engine, length=settings.windows.length, limit=1)
        return dg.RunRequest() if due else dg.SkipReason("challengers have assessed all completed windows")

    return shadow_windows
