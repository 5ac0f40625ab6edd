"""Runs a detector over labelled pictures and says how good it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.engine import Detection, Engine, open_engine
from dangerous_driving.detection.weights import require_file
from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.coco_folder import REMEDY, SETTING
from dangerous_driving.evaluation.detection_scores import ALL, SIZES, DetectorScore, detector_scores
from dangerous_driving.evaluation.group_recall import DANGER, GROUP, GroupRecall, group_recalls
from dangerous_driving.evaluation.labels import LabelledPicture, LabelledSet
from dangerous_driving.settings import DetectionSettings

#: Confidence down to which boxes are asked for: the curve of precision needs those that the platform drops, too. The
#: value and the number of boxes are those with which ultralytics validates.
FLOOR, MOST_BOXES = 0.001, 300
#: Pictures in one inference.
BATCH = 8
#: Objects of a class below which its average says little, and the table says so.
FEW = 30


@dataclass(frozen=True)
class DetectorReport:
    """How good some weights are on some pictures.

    Attributes:
        evaluation_id: follows from weights, pictures and settings: the same evaluation again has the same id.
        weights: file name.
        weights_hash: SHA-256 of the file.
        data_set: name of the labelled set.
        data_hash: its fingerprint.
        simulated: whether its pictures are rendered.
        pictures: how many.
        settings: the detector's, as it runs.
        scores: by class, size, light and weather.
        groups: recall of groups and dangers.
    """

    evaluation_id: str
    weights: str
    weights_hash: str
    data_set: str
    data_hash: str
    simulated: bool
    pictures: int
    settings: DetectionSettings
    scores: tuple[DetectorScore, ...]
    groups: tuple[GroupRecall, ...]

    def score(
        self, class_name: str = ALL, size: str = ALL, light: str = ALL, weather: str = ALL
    ) -> DetectorScore | None:
        """One cell of the table, if it is there."""
        key = (class_name, size, light, weather)
        return next((one for one in self.scores if (one.class_name, one.size, one.light, one.weather) == key), None)

    def recall(self, kind: str, risk_type: str = ALL, light: str = ALL, weather: str = ALL) -> GroupRecall | None:
        """One recall, if it is there."""
        key = (kind, risk_type, light, weather)
        return next((one for one in self.groups if (one.kind, one.risk_type, one.light, one.weather) == key), None)


def evaluate_detector(
    labelled: LabelledSet,
    settings: DetectionSettings,
    *,
    engine: Engine | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> DetectorReport:
    """Run the detector that the settings name over all pictures.

    Args:
        labelled: from :func:`~dangerous_driving.evaluation.coco_folder.read_labelled`.
        settings: weights, engine, confidence and distance of groups, as the platform runs them.
        engine: instead of the one that the settings name; it has to answer down to a confidence of `FLOOR`.
        on_progress: told how many pictures are done.

    Raises:
        ConfigError: the weights cannot be used, or a picture cannot be read or is of another size than its labels say.
        InferenceError: the runtime failed.
    """
    weights = require_file(settings.weights)
    down_to = settings.model_copy(update={"confidence": FLOOR, "max_detections": MOST_BOXES, "tracker": "none"})
    detector = engine or open_engine(down_to)
    found: list[list[Detection]] = []
    for batch in _batches(labelled.pictures):
        answers = detector.detect([read_picture(picture) for picture in batch])
        found += [[thing for thing in things if thing.class_name in labelled.classes] for things in answers]
        on_progress(len(found))
    weights_hash = hashlib.sha256(weights.read_bytes()).hexdigest()
    return DetectorReport(
        evaluation_id_of(weights_hash, labelled, settings),
        weights.name,
        weights_hash,
        labelled.name,
        labelled.fingerprint,
        labelled.simulated,
        len(labelled.pictures),
        settings,
        tuple(detector_scores(labelled, found, confidence=settings.confidence)),
        tuple(group_recalls(labelled, found, settings)),
    )


def evaluation_id_of(weights_hash: str, labelled: LabelledSet, settings: DetectionSettings) -> str:
    """The id of the evaluation of these weights on these pictures, as the settings run them."""
    matters = settings.model_dump(
        mode="json", include={"engine", "input_size", "confidence", "iou", "classes", "group_distance"}
    )
    text = f"{weights_hash} {labelled.name} {labelled.fingerprint} {sorted(matters.items())}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _batches(pictures: Sequence[LabelledPicture]) -> Iterator[Sequence[LabelledPicture]]:
    for start in range(0, len(pictures), BATCH):
        yield pictures[start : start + BATCH]


def read_picture(picture: LabelledPicture) -> Image:
    """Height x width x 3, BGR.

    Raises:
        ConfigError: it cannot be read, or is of another size than its labels say.
    """
    image = cv2.imread(str(picture.file), cv2.IMREAD_COLOR)
    if image is None:
        raise ConfigError(SETTING, f"{picture.file} is no picture", "replace it, or take it out of the labels")
    height, width = image.shape[:2]
    if (width, height) != (picture.width, picture.height):
        raise ConfigError(
            SETTING,
            f"{picture.file} is {width} x {height} px, its labels are for {picture.width} x {picture.height}",
            REMEDY,
        )
    return np.asarray(image, dtype=np.uint8)


def markdown(report: DetectorReport) -> str:
    """The report as tables: by class, size, light and weather, and the recall of groups."""
    whole = report.score()
    simulated = ", simulated pictures" if report.simulated else ""
    lines = [
        (
            f"**{report.weights}** (sha256 {report.weights_hash[:12]}) on **{report.data_set}**: {report.pictures} pictures"
            f"{simulated}, {whole.objects if whole else 0} road users. AP is COCO's, over IoU 0.50 to 0.95; precision and "
            f"recall are at the detector's confidence of {report.settings.confidence:g} and IoU 0.50."
        ),
        "",
        "| what | road users | AP | AP50 | AP75 | AR | precision | recall |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(_what(score), score) for score in report.scores if _shown(score)]
    lines += ["", "| groups | light, weather | there | found | recall | 95 % interval |", "|---|---|---|---|---|---|"]
    for one in report.groups:
        if one.kind == DANGER and one.risk_type != ALL and (one.light, one.weather) != (ALL, ALL):
            continue
        name = "groups of the true boxes" if one.kind == GROUP else f"dangerous: {one.risk_type}"
        place = ", ".join(part for part in (one.light, one.weather) if part != ALL) or ALL
        interval = "" if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"
        lines.append(f"| {name} | {place} | {one.groups} | {one.found} | {_figure(one.recall)} | {interval} |")
    return "\n".join(lines)


def _shown(score: DetectorScore) -> bool:
    """One dimension at a time: the whole cube is in the ledger."""
    particular = [value != ALL for value in (score.class_name, score.size, score.light, score.weather)]
    return sum(particular) <= 1 and (score.objects > 0 or not any(particular))


def _what(score: DetectorScore) -> str:
    particular = [value for value in (score.class_name, score.light, score.weather) if value != ALL]
    if score.size != ALL:
        return (
            f"{score.size} ({'< 32²' if score.size == SIZES[1] else '< 96²' if score.size == SIZES[2] else '> 96²'} px)"
        )
    return particular[0] if particular else "all"


def _row(what: str, score: DetectorScore) -> str:
    few = " (few)" if score.objects < FEW else ""
    values = (score.ap, score.ap50, score.ap75, score.ar, score.precision, score.recall)
    return f"| {what} | {score.objects}{few} | {' | '.join(_figure(value) for value in values)} |"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
