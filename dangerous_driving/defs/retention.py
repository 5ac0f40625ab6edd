"""Retention: what is older than `windows.retention_days` goes, from tables, object store and Dagster's own storage."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice

import dagster as dg
from pydantic import Field

from dangerous_driving.defs.incidents import tell
from dangerous_driving.defs.jobs import (
    DIGEST_JOB,
    EVALUATION_JOB,
    INVENTORY_JOB,
    MARTS_JOB,
    RETENTION_JOB,
    WINDOW_JOB,
)
from dangerous_driving.defs.monitoring_jobs import DETECTOR_JOB, DRIFT_JOB, SHADOW_JOB
from dangerous_driving.defs.partitions import CAMERA
from dangerous_driving.defs.resources import DatabaseResource, ObjectStoreResource
from dangerous_driving.ledger import retention as ledger
from dangerous_driving.ledger.incidents import Incident
from dangerous_driving.objects import Kind, PrunableStore, day_prefix
from dangerous_driving.settings import Settings

#: Days before the cutoff whose pictures are looked for though the tables know nothing of them: a run may have been killed.
LOOK_BACK = 7
#: Runs of Dagster that are asked for at a time, and those of each job that one retention run deletes at most: each is
#: several statements, and what is left goes the next night.
RUNS_AT_A_TIME = 1000
RUNS_OF_A_JOB = 10_000
FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
#: Runs on windows, the sensor's and those from the page.
WINDOW_JOBS = (WINDOW_JOB, "__ASSET_JOB")
OTHER_JOBS = (
    MARTS_JOB,
    RETENTION_JOB,
    DIGEST_JOB,
    INVENTORY_JOB,
    EVALUATION_JOB,
    DETECTOR_JOB,
    DRIFT_JOB,
    SHADOW_JOB,
)


class RetentionConfig(dg.Config):
    """How a retention run is done."""

    dry_run: bool = Field(default=False, description="say what would go, and remove nothing")
    thorough: bool = Field(
        default=False, description="list the whole object store, not only the days that the tables name"
    )


def retention_asset(settings: Settings) -> dg.AssetsDefinition:
    """One run brings everything to the horizon; it can be killed and run again at any point."""

    @dg.asset(
        group_name="operations",
        kinds={"postgres"},
        output_required=False,  # a dry run makes nothing
        description=(
            "Drops the day partitions of tables and the pictures of days before `windows.retention_days`, Dagster's old "
            "runs with their event logs, and partitions of cameras that are gone. Tasks that nobody assessed become "
            "`expired` on their last day, are counted and told. With `dry_run` it shows what would go."
        ),
    )
    def retention(
        context: dg.AssetExecutionContext,
        config: RetentionConfig,
        database: DatabaseResource,
        object_store: ObjectStoreResource,
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetObservation]:
        now = datetime.now(UTC)
        before = ledger.cutoff(now, settings.windows.retention_days)
        engine, store = database.engine, object_store.store
        partitions = ledger.expired_partitions(engine, before)
        days = sorted({partition.day for partition in partitions})
        cameras = ledger.camera_ids(engine)
        if config.dry_run:
            expiring = ledger.expiring_tasks(engine, before)
        else:
            expiring = ledger.expire_tasks(engine, before)
            tell_expired(database, settings, expiring)
        # pictures first: the partition of a day says that there is something left to do
        objects = 0
        for day in sorted({*days, *(before - timedelta(days=back + 1) for back in range(LOOK_BACK))}):
            objects += remove_day(store, cameras, day, dry_run=config.dry_run)
            if day in days and not config.dry_run:
                ledger.drop_day(engine, day)
                context.log.info("dropped %s", day)
        if config.thorough:
            objects += remove_before(store, before, dry_run=config.dry_run)
        rows = {} if config.dry_run else ledger.prune_rows(engine, before)
        gone = sorted(
            set(ledger.cameras_without_content(engine)) & set(context.instance.get_dynamic_partitions(CAMERA))
        )
        runs = old_runs(context.instance, settings, now)
        if not config.dry_run:
            for camera_id in gone:
                context.instance.delete_dynamic_partition(CAMERA, camera_id)
            delete_runs(context, runs)
        metadata: dict[str, dg.MetadataValue] = {
            "before": dg.MetadataValue.text(str(before)),
            "days": dg.MetadataValue.json([str(day) for day in days]),
            "table_partitions": dg.MetadataValue.int(len(partitions)),
            "bytes": dg.MetadataValue.int(sum(partition.size for partition in partitions)),
            "objects": dg.MetadataValue.int(objects),
            "rows": dg.MetadataValue.json(rows),
            "tasks_expired": dg.MetadataValue.json(expiring),
            "dagster_runs": dg.MetadataValue.int(len(runs)),
            "camera_partitions": dg.MetadataValue.json(gone),
        }
        if config.dry_run:
            yield dg.AssetObservation("retention", metadata=metadata, description="dry run: what would go")
            return
        yield dg.MaterializeResult(metadata=metadata)

    return retention


def tell_expired(database: DatabaseResource, settings: Settings, expired: dict[str, int]) -> None:
    """Quota is a question of capacity: who has too little is told so, by camera."""
    for camera_id, count in sorted(expired.items()):
        tell(
            database.engine,
            settings.operations,
            Incident(
                "tasks_expired",
                camera_id,
                f"{count} groups of this camera were not assessed within {settings.windows.retention_days} days; "
                "add keys, raise the budget of the window lane, or lengthen the frame interval",
                count,
            ),
        )


def remove_day(store: PrunableStore, cameras: list[str], day: date, *, dry_run: bool) -> int:
    """Remove the cameras' pictures and results of one UTC day; returns how many."""
    count = 0
    for camera_id in cameras:
        for kind in Kind:
            keys = list(store.list(day_prefix(kind, camera_id, day)))
            count += len(keys) if dry_run else store.delete(keys)
    return count


def remove_before(store: PrunableStore, before: date, *, dry_run: bool) -> int:
    """Remove all pictures and results of days before that one, whoever's they are; lists the whole store."""
    count = 0
    for kind in Kind:
        # {kind}/{cameraId}/{yyyy}/{mm}/{dd}/…: the date parts sort as text
        old = [key for key in store.list(f"{kind}/") if "/".join(key.split("/")[2:5]) < f"{before:%Y/%m/%d}"]
        count += len(old) if dry_run else store.delete(old)
    return count


def old_runs(instance: dg.DagsterInstance, settings: Settings, now: datetime) -> list[str]:
    """Finished runs that go: those on windows stay as long as the windows, since they are their partitions' history."""
    kept = dict.fromkeys(WINDOW_JOBS, settings.windows.retention_days + 1)
    kept |= dict.fromkeys(OTHER_JOBS, settings.operations.event_log_days)
    return [
        run_id
        for job, days in kept.items()
        for run_id in islice(runs_before(instance, job, now - timedelta(days=days)), RUNS_OF_A_JOB)
    ]


def delete_runs(context: dg.AssetExecutionContext, runs: Sequence[str]) -> None:
    """Delete them with their event logs, and say how far it is: thousands take minutes."""
    for number, run_id in enumerate(runs, 1):
        context.instance.delete_run(run_id)
        if number % RUNS_AT_A_TIME == 0:
            context.log.info("deleted %d of %d runs of Dagster", number, len(runs))


def runs_before(instance: dg.DagsterInstance, job: str, before: datetime) -> Iterator[str]:
    """The job's finished runs that were made before that time, oldest first. Delete none while they are asked for."""
    wanted = dg.RunsFilter(job_name=job, statuses=FINISHED, created_before=before)
    last: str | None = None
    while True:
        records = instance.get_run_records(wanted, limit=RUNS_AT_A_TIME, cursor=last, ascending=True)
        yield from (record.dagster_run.run_id for record in records)
        if len(records) < RUNS_AT_A_TIME:
            return
        last = records[-1].dagster_run.run_id
