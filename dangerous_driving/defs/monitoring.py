"""What watches over the models: the detector's evaluation, and the drift of what cameras show."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import dagster as dg
from pydantic import Field

from dangerous_driving.defs.incidents import tell
from dangerous_driving.defs.partitions import first_window
from dangerous_driving.defs.resources import DatabaseResource
from dangerous_driving.detection.weights import require_file
from dangerous_driving.evaluation.coco_folder import read_labelled
from dangerous_driving.evaluation.detector import DetectorReport, evaluate_detector, markdown
from dangerous_driving.evaluation.drift import State
from dangerous_driving.evaluation.drift_watch import CameraDay, watch_day
from dangerous_driving.evaluation.group_recall import DANGER, GROUP
from dangerous_driving.ledger.cameras import stopped_cameras
from dangerous_driving.ledger.detector_quality import KnownEvaluation, evaluations, keep_report
from dangerous_driving.ledger.drift import DRIFT_INCIDENT
from dangerous_driving.ledger.incidents import Incident, end
from dangerous_driving.settings import MonitoringSettings, Settings

DETECTOR_EVALUATION, DETECTION_DRIFT = dg.AssetKey("detector_evaluation"), dg.AssetKey("detection_drift")
NOT_WORSE, CAMERAS_STABLE = "not_worse_than_other_weights", "cameras_show_what_they_showed"
DAY_FORMAT = "%Y-%m-%d"

Event = dg.MaterializeResult[None] | dg.AssetObservation


class DetectorRunConfig(dg.Config):
    """Left empty, a run evaluates ``detection.weights`` on ``monitoring.labelled_folders``."""

    weights: list[str] = Field(default=[], description="files of weights to evaluate instead, one after another")
    folders: list[str] = Field(default=[], description="labelled folders to evaluate on instead")


def detector_evaluation_asset(settings: Settings) -> dg.AssetsDefinition:
    """How good the detector is on labelled pictures; kept by weights and pictures."""

    @dg.asset(
        key=DETECTOR_EVALUATION,
        group_name="monitoring",
        kinds={"postgres", "onnx"},
        output_required=False,  # without labelled pictures there is nothing to make
        metadata={"dagster/table_name": "public.detector_score"},
        check_specs=[
            dg.AssetCheckSpec(
                NOT_WORSE,
                asset=DETECTOR_EVALUATION,
                description="mAP is not below that of other weights on the same pictures by `monitoring.max_map_loss`.",
            )
        ],
        description=(
            "COCO's average precision by class, size, light and weather, and the recall of traffic groups, of "
            "`detection.weights` on `monitoring.labelled_folders`. `dangerous-driving simulate scenes` makes such a folder."
        ),
    )
    def detector_evaluation(
        context: dg.AssetExecutionContext, config: DetectorRunConfig, database: DatabaseResource
    ) -> Iterator[Event | dg.AssetCheckResult]:
        folders = [Path(folder) for folder in config.folders] or list(settings.monitoring.labelled_folders)
        if not folders:
            context.log.warning("no labelled folder is set (monitoring.labelled_folders): nothing was evaluated")
            yield dg.AssetCheckResult(
                check_name=NOT_WORSE, passed=True, description="nothing was evaluated: no labelled folder is set"
            )
            return
        weights = [Path(file) for file in config.weights] or [require_file(settings.detection.weights)]
        reports = []
        for folder in folders:
            labelled = read_labelled(folder, settings.detection.classes)
            for file in weights:
                detection = settings.detection.model_copy(update={"weights": file})
                context.log.info("%s on %s: %d pictures", file, labelled.name, len(labelled.pictures))
                report = evaluate_detector(labelled, detection)
                keep_report(database.engine, report)
                reports.append(report)
        yield dg.MaterializeResult(metadata=detector_metadata(reports))
        yield not_worse(
            [(report, evaluations(database.engine, data_hash=report.data_hash)) for report in reports],
            settings.monitoring,
        )

    return detector_evaluation


def detector_metadata(reports: list[DetectorReport]) -> dict[str, dg.MetadataValue]:
    """The reports as tables, and the figures of the first one as numbers, so that Dagster plots them over runs."""
    first = reports[0]
    whole, groups, dangers = first.score(), first.recall(GROUP), first.recall(DANGER)
    numbers = {
        "map": whole.ap if whole else None,
        "map50": whole.ap50 if whole else None,
        "recall_of_groups": groups.recall if groups else None,
        "recall_of_dangers": dangers.recall if dangers else None,
    }
    metadata: dict[str, dg.MetadataValue] = {
        "report": dg.MetadataValue.md("\n\n".join(markdown(report) for report in reports)),
        "evaluations": dg.MetadataValue.json([report.evaluation_id for report in reports]),
    }
    return metadata | {name: dg.MetadataValue.float(value) for name, value in numbers.items() if value is not None}


def not_worse(
    found: list[tuple[DetectorReport, Sequence[KnownEvaluation]]], settings: MonitoringSettings
) -> dg.AssetCheckResult:
    """Hold each report against the best other weights on the same pictures."""
    worse = []
    for report, known in found:
        whole = report.score()
        others = [one for one in known if one.weights_hash != report.weights_hash and one.ap is not None]
        best = max(others, key=lambda one: one.ap or 0.0, default=None)
        if best is None or whole is None or whole.ap is None:
            continue
        if whole.ap < (best.ap or 0.0) - settings.max_map_loss:
            worse.append(f"{report.weights} on {report.data_set}: mAP {whole.ap:.3f}, {best.weights} had {best.ap:.3f}")
    return dg.AssetCheckResult(
        check_name=NOT_WORSE,
        passed=not worse,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(worse) or "no other weights were better",
    )


def detection_drift_asset(settings: Settings, now: datetime) -> dg.AssetsDefinition:
    """One partition per day: what cameras showed against their own weeks before."""
    days = dg.DailyPartitionsDefinition(start_date=first_window(settings.windows, now).strftime(DAY_FORMAT))

    @dg.asset(
        key=DETECTION_DRIFT,
        partitions_def=days,
        deps=["frames"],
        group_name="monitoring",
        kinds={"postgres"},
        metadata={"dagster/table_name": "public.drift_score"},
        check_specs=[
            dg.AssetCheckSpec(
                CAMERAS_STABLE,
                asset=DETECTION_DRIFT,
                description=(
                    "No camera's mix of classes, confidences, group sizes or number of road users is far from its own last "
                    "weeks (population stability index, `monitoring.drift_major`)."
                ),
            )
        ],
        description=(
            "The drift watch: each camera's day against the same hours of its own last weeks. Drift is an incident, which "
            "ends when the camera is as before, or when a person accepts it (`dangerous-driving drift accept`)."
        ),
    )
    def detection_drift(
        context: dg.AssetExecutionContext, database: DatabaseResource
    ) -> Iterator[Event | dg.AssetCheckResult]:
        day = datetime.strptime(context.partition_key, DAY_FORMAT).date()  # noqa: DTZ007  # a day, no time
        found = watch_day(
            database.engine, day, settings.monitoring, on_progress=lambda what: context.log.info("%s", what)
        )
        tell_drift(database, settings, found)
        yield dg.MaterializeResult(metadata=drift_metadata(found))
        yield cameras_stable(found)

    return detection_drift


def tell_drift(database: DatabaseResource, settings: Settings, found: list[CameraDay]) -> None:
    """Cameras that drifted become incidents; of those that are as before they end. Too little says neither.

    They end for a camera that nobody is to watch, too: it would never be seen as before.
    """
    stopped = stopped_cameras(database.engine)
    for camera in found:
        if camera.camera_id in stopped or camera.state in {State.STABLE, State.MODERATE}:
            end(database.engine, DRIFT_INCIDENT, camera.camera_id)
        elif camera.state is State.DRIFTED:
            tell(database.engine, settings.operations, Incident(DRIFT_INCIDENT, camera.camera_id, camera.message))


def drift_metadata(found: list[CameraDay]) -> dict[str, dg.MetadataValue]:
    """The verdicts as a table, the most changed camera first."""
    rows = sorted(
        ((score.psi or -1.0, camera.camera_id, score) for camera in found for score in camera.scores),
        key=lambda row: (-row[0], row[1]),
    )
    table = [
        "| camera | variable | state | PSI | usual up to | counts | days before |",
        "|---|---|---|---|---|---|---|",
    ]
    table += [
        f"| {camera_id} | {score.variable} | {score.state} | {_figure(score.psi)} | {_figure(score.usual)} "
        f"| {score.count} | {score.baseline_days} |"
        for _, camera_id, score in rows
    ]
    states = [camera.state for camera in found]
    return {
        "cameras": dg.MetadataValue.md("\n".join(table)),
        "by_state": dg.MetadataValue.json({state.value: states.count(state) for state in State}),
        "drifted": dg.MetadataValue.int(states.count(State.DRIFTED)),
    }


def cameras_stable(found: list[CameraDay]) -> dg.AssetCheckResult:
    """Warn of cameras that drifted."""
    drifted = [camera for camera in found if camera.state is State.DRIFTED]
    judged = [camera for camera in found if camera.state is not State.TOO_LITTLE]
    return dg.AssetCheckResult(
        check_name=CAMERAS_STABLE,
        passed=not drifted,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{camera.camera_id}: {camera.message}" for camera in drifted)
        or f"{len(judged)} of {len(found)} cameras could be judged, all are as before",
        metadata={"cameras_judged": len(judged), "cameras": len(found)},
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
