"""How well boxes were found: COCO's average precision by class, size and circumstances, and the recall of groups (pure).

Average precision is that of the COCO benchmark (Lin et al., Microsoft COCO, 2014; https://cocodataset.org/#detection-eval):
precision averaged over 101 recall levels and the IoU thresholds 0.50, 0.55, …, 0.95, the 100 most confident boxes of a
picture and class. It is computed by faster-coco-eval, a maintained implementation; the reference one agrees with it
(tests/evaluation/test_detection_scores.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dangerous_driving.detection.agreement import iou
from dangerous_driving.detection.engine import Detection
from dangerous_driving.evaluation.labels import Box, LabelledPicture, LabelledSet

ALL = "all"
#: COCO's sizes by area: below 32 x 32 px, below 96 x 96 px, above.
SIZES = (ALL, "small", "medium", "large")
AREAS = {ALL: (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MAX_DETECTIONS = 100
#: IoU from which a box counts as found where one threshold is asked for (PASCAL VOC's).
MATCH_IOU = 0.5

#: Positions of IoU 0.50 and 0.75 among COCO's thresholds.
_IOU_50, _IOU_75 = 0, 5
#: What COCO's tables write where there is nothing to average.
_NOTHING = -1.0

Found = Sequence[Sequence[Detection]]


@dataclass(frozen=True, slots=True)
class DetectorScore:
    """One cell of the table; ``all`` stands for every class, size, light or weather.

    Attributes:
        class_name: or ``all``: then averages are means over the classes.
        size: of the true object, by COCO's bounds (px of the picture as it is).
        light: of the picture.
        weather: of the picture.
        pictures: that were looked at.
        objects: true ones.
        ap: average precision over IoU 0.50 to 0.95; None where there is no such object.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ar: average recall over the same IoU, at 100 boxes a picture.
        recall: share of the true objects found at the detector's own confidence and IoU 0.50.
        precision: share of its boxes that are right, likewise; None by size, since a wrong box has a size of its own.
    """

    class_name: str
    size: str
    light: str
    weather: str
    pictures: int
    objects: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ar: float | None
    recall: float | None
    precision: float | None


def detector_scores(labelled: LabelledSet, found: Found, *, confidence: float) -> list[DetectorScore]:
    """All cells: classes x sizes, for all pictures, by light and by weather.

    Args:
        labelled: the truth.
        found: of each picture, with confidences down to nearly 0, so that the whole curve of precision is seen.
        confidence: that the detector is run with, for ``recall`` and ``precision``.
    """
    matched = [
        match(picture, [thing for thing in things if thing.confidence >= confidence])
        for picture, things in zip(labelled.pictures, found, strict=True)
    ]
    scores: list[DetectorScore] = []
    for light, weather, chosen in _slices(labelled):
        averages = coco_averages(labelled, found, chosen)
        for class_index, class_name in enumerate((ALL, *labelled.classes)):
            names = labelled.classes if class_name == ALL else (class_name,)
            for size_index, size in enumerate(SIZES):
                mine = [matched[index] for index in chosen]
                hits = [hit for one in mine for name, area, hit in one.truths if name in names and _within(area, size)]
                right = [good for one in mine for name, good in one.boxes if name in names]
                ap, ap50, ap75, ar = averages[:, class_index, size_index]
                scores.append(
                    DetectorScore(
                        class_name, size, light, weather, len(chosen), len(hits),
                        _told(ap), _told(ap50), _told(ap75), _told(ar),
                        _share(hits), _share(right) if size == ALL else None,
                    )
                )  # fmt: skip
    return scores


def _slices(labelled: LabelledSet) -> Iterator[tuple[str, str, list[int]]]:
    everything = list(range(len(labelled.pictures)))
    yield ALL, ALL, everything
    for light in labelled.lights():
        yield light, ALL, [index for index in everything if labelled.pictures[index].light == light]
    for weather in labelled.weathers():
        yield ALL, weather, [index for index in everything if labelled.pictures[index].weather == weather]


def _within(area: float, size: str) -> bool:
    # as COCO has it: both bounds belong to the size
    return AREAS[size][0] <= area <= AREAS[size][1]


def _told(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def coco_averages(labelled: LabelledSet, found: Found, chosen: Sequence[int]) -> NDArray[np.float64]:
    """COCO's averages of some pictures.

    Args:
        labelled: the truth.
        found: of each of its pictures.
        chosen: indices of the pictures that count.

    Returns:
        4 x (1 + classes) x sizes: AP, AP50, AP75 and AR; the first class is the mean over all. NaN: no such object.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    numbers = {name: number for number, name in enumerate(labelled.classes, 1)}
    truth, boxes = coco_form(labelled, found, chosen)
    silent: Callable[..., None] = lambda *_: None  # noqa: E731
    of_truth: Any = COCO(truth, print_function=silent)
    if not boxes:
        return _averages_of_nothing(labelled, chosen)
    of_boxes: Any = of_truth.loadRes(boxes)
    evaluation: Any = COCOeval_faster(of_truth, of_boxes, "bbox", print_function=silent)
    evaluation.params.catIds = list(numbers.values())
    evaluation.params.areaRng = [list(AREAS[size]) for size in SIZES]
    evaluation.params.areaRngLbl = list(SIZES)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    # IoU x recall levels x classes x sizes, IoU x classes x sizes
    precision = np.asarray(evaluation.eval["precision"])[..., -1]
    recall = np.asarray(evaluation.eval["recall"])[..., -1]
    return np.stack(
        [
            _with_mean(precision),
            _with_mean(precision[_IOU_50 : _IOU_50 + 1]),
            _with_mean(precision[_IOU_75 : _IOU_75 + 1]),
            _with_mean(recall[:, None]),
        ]
    )


def _with_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU x recall levels x classes x sizes -> (mean of all, then each class) x sizes; NaN where there is nothing."""
    by_class = np.where(values > _NOTHING, values, np.nan)
    with np.errstate(invalid="ignore"):
        counted = ~np.isnan(by_class)
        sums, counts = np.nansum(by_class, axis=(0, 1)), counted.sum(axis=(0, 1))
        each = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        mean = np.where(counts.sum(axis=0) > 0, sums.sum(axis=0) / np.maximum(counts.sum(axis=0), 1), np.nan)
    return np.concatenate([mean[None], each])


def _averages_of_nothing(labelled: LabelledSet, chosen: Sequence[int]) -> NDArray[np.float64]:
    """No box at all: 0 for every class and size of which there are objects."""
    averages = np.full((4, 1 + len(labelled.classes), len(SIZES)), np.nan)
    for index in chosen:
        for thing in labelled.pictures[index].objects:
            if thing.crowd or thing.class_name not in labelled.classes:
                continue
            for size_index, size in enumerate(SIZES):
                if _within(_area(thing.bbox), size):
                    averages[:, [0, 1 + labelled.classes.index(thing.class_name)], size_index] = 0.0
    return averages


def coco_form(
    labelled: LabelledSet, found: Found, chosen: Sequence[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth and boxes in COCO's form; pictures, classes and labels are numbered from 1 (0 means "no match" there)."""
    numbers = {name: number for number, name in enumerate(labelled.classes, 1)}
    images, annotations, boxes = [], [], []
    for index in chosen:
        picture = labelled.pictures[index]
        images.append(
            {"id": index + 1, "file_name": picture.file.name, "width": picture.width, "height": picture.height}
        )
        annotations += [
            {
                "image_id": index + 1,
                "category_id": numbers[thing.class_name],
                "bbox": _xywh(thing.bbox),
                "area": _area(thing.bbox),
                "iscrowd": int(thing.crowd),
            }
            for thing in picture.objects
            if thing.class_name in numbers
        ]
        boxes += [
            {
                "image_id": index + 1,
                "category_id": numbers[thing.class_name],
                "bbox": _xywh(thing.bbox),
                "score": thing.confidence,
            }
            for thing in found[index]
            if thing.class_name in numbers
        ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, boxes


def _xywh(box: Box) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


@dataclass(frozen=True, slots=True)
class Matched:
    """``truths``: class, area and whether it was found, of each true object; ``boxes``: class and whether it is right."""

    truths: tuple[tuple[str, float, bool], ...]
    boxes: tuple[tuple[str, bool], ...]


def match(picture: LabelledPicture, found: Sequence[Detection]) -> Matched:
    """Give each box, the most confident first, the true object of its class that it overlaps most, each only once.

    A box that meets no object but lies in a crowd counts neither way, as in COCO.
    """
    truths = [thing for thing in picture.objects if not thing.crowd]
    crowds = [thing for thing in picture.objects if thing.crowd]
    left = set(range(len(truths)))
    boxes = []
    for box in sorted(found, key=lambda thing: -thing.confidence):
        overlaps = {
            index: iou(box.bbox, truths[index].bbox) for index in left if truths[index].class_name == box.class_name
        }
        best = max(sorted(overlaps), key=lambda index: overlaps[index], default=None)
        if best is not None and overlaps[best] >= MATCH_IOU:
            left.remove(best)
            boxes.append((box.class_name, True))
        elif not any(
            thing.class_name == box.class_name and _inside(box.bbox, thing.bbox) >= MATCH_IOU for thing in crowds
        ):
            boxes.append((box.class_name, False))
    told = ((thing.class_name, _area(thing.bbox), index not in left) for index, thing in enumerate(truths))
    return Matched(tuple(told), tuple(boxes))


def _inside(box: Box, area: Box) -> float:
    """Share of a box that lies in an area."""
    width = min(box[2], area[2]) - max(box[0], area[0])
    height = min(box[3], area[3]) - max(box[1], area[1])
    own = _area(box)
    return max(0.0, width) * max(0.0, height) / own if own > 0 else 0.0
