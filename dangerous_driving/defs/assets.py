"""What the services write: external assets, observed from the ledger."""

from datetime import timedelta

import dagster as dg

from dangerous_driving.defs.preview import knowingly
from dangerous_driving.defs.resources import DatabaseResource
from dangerous_driving.ledger.window_quality import newest_content
from dangerous_driving.settings import OperationsSettings

RISK_ASSESSMENTS = dg.AssetKey("risk_assessments")


@knowingly()
def ledger_assets(settings: OperationsSettings) -> list[dg.AssetSpec]:
    """Tables of the ledger that the services write; Dagster shows them and builds on them, but does not make them."""
    fresh = dg.FreshnessPolicy.time_window(
        fail_window=timedelta(seconds=3 * settings.frames_fresh), warn_window=timedelta(seconds=settings.frames_fresh)
    )
    return [
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
            freshness_policy=fresh,
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
            freshness_policy=fresh,
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
    ]


def content_sensor(settings: OperationsSettings) -> dg.SensorDefinition:
    """Observes frames and tasks: an observation comes only when there is newer content, so that freshness means that."""

    @dg.sensor(
        name="ledger_content",
        target=None,
        minimum_interval_seconds=settings.observe_interval,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Observes `frames` and `assessment_tasks` when the ledger has newer ones.",
    )
    def ledger_content(
        context: dg.SensorEvaluationContext, database: DatabaseResource
    ) -> dg.SensorResult | dg.SkipReason:
        found = newest_content(database.engine)
        cursor = f"{found['newest_frame']}|{found['newest_task']}"
        before = (context.cursor or "|").split("|")
        events = [
            dg.AssetObservation(
                asset,
                metadata={
                    "newest_capture": str(found[newest]),
                    "last_hour": dg.MetadataValue.int(int(str(found[counted]))),
                    **extra,
                },
            )
            for asset, newest, counted, seen, extra in (
                ("frames", "newest_frame", "frames_last_hour", before[0], {}),
                ("assessment_tasks", "newest_task", "tasks_last_hour", before[1], {
                    "pending": dg.MetadataValue.int(int(str(found["tasks_pending"])))
                }),
            )
            if found[newest] is not None and str(found[newest]) != seen
        ]  # fmt: skip
        if not events:
            return dg.SkipReason("nothing newer in the ledger")
        return dg.SensorResult(asset_events=list(events), cursor=cursor)

    return ledger_content
