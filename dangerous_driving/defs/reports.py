"""Assets for people: the digest of a day's alerts, the list of cameras."""

from datetime import UTC, datetime

import dagster as dg

from dangerous_driving.alerts.digest import digest
from dangerous_driving.defs.partitions import CAMERA, first_window
from dangerous_driving.defs.resources import DatabaseResource, ObjectStoreResource
from dangerous_driving.ledger.cameras import camera_states
from dangerous_driving.ledger.digest import day_figures
from dangerous_driving.observability.webhook import post
from dangerous_driving.settings import Settings

DAY_FORMAT = "%Y-%m-%d"
#: Characters of a digest that the webhook gets; the whole of it lies in the store.
WEBHOOK_TEXT = 3000


def digest_key(day: str) -> str:
    """Where the digest of a day lies in the object store."""
    return f"reports/alerts/{day}.md"


def alert_digest_asset(settings: Settings, now: datetime) -> dg.AssetsDefinition:
    """One partition per day: a past day's digest can be written again, once more has been judged."""
    days = dg.DailyPartitionsDefinition(start_date=first_window(settings.windows, now).strftime(DAY_FORMAT))

    @dg.asset(
        partitions_def=days,
        deps=["risk_assessments"],
        group_name="operations",
        kinds={"markdown"},
        description="The alerts of a day on one page: in the object store under `reports/alerts/`, and to the webhook.",
    )
    def alert_digest(
        context: dg.AssetExecutionContext, database: DatabaseResource, object_store: ObjectStoreResource
    ) -> dg.MaterializeResult[None]:
        day = datetime.strptime(context.partition_key, DAY_FORMAT).replace(tzinfo=UTC).date()
        figures = day_figures(database.engine, day)
        written = digest(figures)
        url = object_store.store.put(
            digest_key(context.partition_key), written.encode(), "text/markdown; charset=utf-8"
        )
        sent = False
        if settings.operations.webhook is not None:
            body: dict[str, object] = {
                "text": written[:WEBHOOK_TEXT],
                "kind": "alert_digest",
                "day": str(day),
                "url": url,
            }
            sent = post(settings.operations.webhook, body, timeout=settings.operations.webhook_timeout)
        return dg.MaterializeResult(
            metadata={
                "digest": dg.MetadataValue.md(written),
                "alerts": sum(figures.by_level.values()),
                "object": url,
                "sent_to_webhook": sent,
            }
        )

    return alert_digest


def camera_inventory_asset() -> dg.AssetsDefinition:
    """All cameras with their states; each becomes a partition of the windows before its first window closes."""

    @dg.asset(
        deps=["cameras"],
        group_name="operations",
        kinds={"postgres"},
        description="The cameras as the ledger knows them. Cameras that are new become partitions of `risk_assessments`.",
    )
    def camera_inventory(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.MaterializeResult[None]:
        cameras = camera_states(database.engine)
        known = set(context.instance.get_dynamic_partitions(CAMERA))
        new = sorted(camera.id for camera in cameras if camera.enabled and camera.id not in known)
        if new:
            context.instance.add_dynamic_partitions(CAMERA, new)
        states: dict[str, int] = {}
        for camera in cameras:
            states[camera.status] = states.get(camera.status, 0) + 1
        rows = [
            f"| {camera.id} | {camera.kind} | {camera.status} | {camera.status_reason.replace('|', '/')} "
            f"| {camera.frame_interval:g} s | {camera.newest_window or ''} |"
            for camera in cameras
        ]
        table = ["| camera | kind | status | reason | interval | newest window |", "|---|---|---|---|---|---|", *rows]
        return dg.MaterializeResult(
            metadata={
                "cameras": dg.MetadataValue.md("\n".join(table)),
                "dagster/row_count": len(cameras),
                "by_status": dg.MetadataValue.json(states),
                "new_partitions": dg.MetadataValue.json(new),
            }
        )

    return camera_inventory
