"""COCO's figures, held against its reference implementation, and what it does not have: recall of groups."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dangerous_driving.detection.engine import Detection
from dangerous_driving.evaluation.detection_scores import (
    ALL,
    AREAS,
    SIZES,
    DetectorScore,
    detector_scores,
    match,
)
from dangerous_driving.evaluation.group_recall import DANGER, GROUP, group_recalls, wilson
from dangerous_driving.evaluation.labels import Box, LabelledPicture, LabelledSet, TrueGroup, TrueObject
from dangerous_driving.settings import DetectionSettings

CLASSES = ("person", "car", "bus")


def picture(*objects: TrueObject, light: str = "day", weather: str = "dry", **more: Any) -> LabelledPicture:
    return LabelledPicture("p.jpg", Path("p.jpg"), 1280, 720, objects, light, weather, **more)


def labelled(*pictures: LabelledPicture) -> LabelledSet:
    return LabelledSet("set", pictures, CLASSES, simulated=False)


def random_box(random: np.random.Generator, side: float) -> Box:
    x, y = random.uniform(0, 1200), random.uniform(0, 650)
    return x, y, x + side * random.uniform(0.6, 1.6), y + side * random.uniform(0.6, 1.6)


def random_set(seed: int, count: int = 40) -> tuple[LabelledSet, list[list[Detection]]]:
    """Pictures with found, shifted, missed, doubled, invented and mistaken objects of all sizes, and crowds."""
    random = np.random.default_rng(seed)
    pictures, found = [], []
    for _ in range(count):
        objects, things = [], []
        for _ in range(random.integers(0, 9)):
            box = random_box(random, float(random.choice([18, 28, 60, 90, 150])))
            name = str(random.choice(CLASSES))
            objects.append(TrueObject(name, box, crowd=bool(random.random() < 0.1)))
            for _ in range(random.choice([0, 1, 1, 1, 2])):
                shift = random.normal(0, 0.12, 4) * (box[2] - box[0])
                moved = tuple(side + by for side, by in zip(box, shift, strict=True))
                seen = str(random.choice(CLASSES)) if random.random() < 0.1 else name
                if moved[2] > moved[0] + 1 and moved[3] > moved[1] + 1:
                    # not all different: equal confidences have to be ranked alike
                    things.append(Detection(seen, float(np.round(random.beta(3, 2), 2)), moved))
        things += [
            Detection(str(random.choice(CLASSES)), float(np.round(random.beta(2, 4), 2)), random_box(random, 50))
            for _ in range(random.integers(0, 4))
        ]
        pictures.append(
            picture(
                *objects,
                light=str(random.choice(["day", "dusk", "night"])),
                weather=str(random.choice(["dry", "rain"])),
            )
        )
        found.append(sorted(things, key=lambda thing: -thing.confidence))
    return labelled(*pictures), found


def in_coco(box: Box) -> dict[str, Any]:
    left, top, right, bottom = box
    return {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}


def reference(truth: LabelledSet, found: list[list[Detection]], light: str, weather: str) -> dict[tuple[str, str], Any]:
    """What pycocotools says: (class, size) -> AP, AP50, AP75, AR."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    chosen = [
        index for index, one in enumerate(truth.pictures) if light in {ALL, one.light} and weather in {ALL, one.weather}
    ]
    # written out anew, so that a mistake in the conversion shows, too
    numbers = {name: number for number, name in enumerate(truth.classes, 1)}
    form: dict[str, Any] = {
        "info": {},
        "images": [{"id": index + 1, "width": 1280, "height": 720} for index in chosen],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": [
            {
                "image_id": index + 1,
                "category_id": numbers[thing.class_name],
                "iscrowd": thing.crowd,
                **in_coco(thing.bbox),
            }
            for index in chosen
            for thing in truth.pictures[index].objects
        ],
    }
    for number, annotation in enumerate(form["annotations"], 1):
        annotation["id"] = number
    boxes = [
        {
            "image_id": index + 1, "category_id": numbers[box.class_name], "score": box.confidence,
            "bbox": in_coco(box.bbox)["bbox"],
        }
        for index in chosen
        for box in found[index]
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        of_truth: Any = COCO()
        of_truth.dataset = form
        of_truth.createIndex()
        evaluation: Any = COCOeval(of_truth, of_truth.loadRes(boxes), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]

    def mean(values: Any) -> float | None:
        told = values[values > -1]
        return float(told.mean()) if told.size else None

    answers = {}
    for place, name in enumerate((ALL, *truth.classes)):
        classes = slice(None) if name == ALL else slice(place - 1, place)
        for size in range(len(SIZES)):
            answers[name, SIZES[size]] = (
                mean(precision[:, :, classes, size]),
                mean(precision[0, :, classes, size]),
                mean(precision[5, :, classes, size]),
                mean(recall[:, classes, size]),
            )
    return answers


@pytest.mark.parametrize("seed", range(4))
def test_averages_agree_with_the_reference_implementation(seed: int) -> None:
    truth, found = random_set(seed)
    scores = detector_scores(truth, found, confidence=0.35)
    compared = 0
    slices = {(score.light, score.weather) for score in scores}
    theirs_by_slice = {one: reference(truth, found, *one) for one in slices}
    for score in scores:
        expected = theirs_by_slice[score.light, score.weather][score.class_name, score.size]
        for ours, theirs in zip((score.ap, score.ap50, score.ap75, score.ar), expected, strict=True):
            if theirs is None:
                assert ours is None, score
            else:
                assert ours == pytest.approx(theirs, abs=1e-6), score
                compared += 1
    assert slices >= {(ALL, ALL), ("night", ALL), (ALL, "rain")}
    assert compared > 200


def cell(scores: list[DetectorScore], class_name: str = ALL, size: str = ALL, light: str = ALL) -> DetectorScore:
    [found] = [
        score for score in scores
        if (score.class_name, score.size, score.light, score.weather) == (class_name, size, light, ALL)
    ]  # fmt: skip
    return found


def test_the_sizes_and_thresholds_are_coco_s_own() -> None:
    from pycocotools.cocoeval import Params

    params = Params(iouType="bbox")
    assert [list(AREAS[size]) for size in SIZES] == params.areaRng
    assert list(SIZES) == params.areaRngLbl
    assert (params.iouThrs[0], params.iouThrs[5]) == (0.5, 0.75)


def test_a_perfect_detector_has_one_everywhere_and_a_blind_one_zero() -> None:
    truth, _ = random_set(3)
    perfect = [
        [Detection(thing.class_name, 0.9, thing.bbox) for thing in one.objects if not thing.crowd]
        for one in truth.pictures
    ]
    for found, value in ((perfect, 1.0), ([[] for _ in truth.pictures], 0.0)):
        scores = detector_scores(truth, found, confidence=0.35)
        told = [score for score in scores if score.objects]
        assert told
        for score in told:
            assert (score.ap, score.ap50, score.ar, score.recall) == pytest.approx((value,) * 4)
        # nothing is said of what is not there
        assert {(score.ap, score.recall) for score in scores if not score.objects} <= {(None, None)}
    assert all(score.precision is None for score in scores)


def test_precision_and_recall_are_those_at_the_detectors_own_confidence() -> None:
    box = (100.0, 100.0, 150.0, 150.0)
    truth = labelled(picture(TrueObject("car", box), TrueObject("person", (300, 300, 340, 400)), light="night"))
    sure, unsure = Detection("car", 0.8, box), Detection("person", 0.2, (300, 300, 340, 400))
    wrong = Detection("bus", 0.5, (600, 100, 700, 200))
    scores = detector_scores(truth, [[sure, wrong, unsure]], confidence=0.35)
    whole = cell(scores)
    assert (whole.objects, whole.recall, whole.precision) == (2, 0.5, 0.5)
    assert (cell(scores, "person").recall, cell(scores, "car", light="night").recall) == (0.0, 1.0)
    # the curve knows of the unsure one, too
    assert cell(scores, "person").ap == pytest.approx(1.0)


def test_a_box_in_a_crowd_counts_neither_way() -> None:
    crowd = TrueObject("person", (0, 0, 400, 400), crowd=True)
    inside, outside = Detection("person", 0.9, (10, 10, 50, 90)), Detection("person", 0.9, (500, 10, 550, 90))
    assert match(picture(crowd), [inside, outside]).boxes == (("person", False),)


def test_each_object_is_found_once_and_by_the_box_that_fits_best() -> None:
    box = (100.0, 100.0, 200.0, 200.0)
    first, second = Detection("car", 0.9, box), Detection("car", 0.8, (105, 100, 205, 200))
    matched = match(picture(TrueObject("car", box)), [second, first])
    assert matched.boxes == (("car", True), ("car", False))


class TestGroups:
    settings = DetectionSettings()
    car, person = (100.0, 300.0, 180.0, 360.0), (190.0, 300.0, 215.0, 370.0)

    def scene(self, *, level: str = "high", light: str = "day") -> LabelledPicture:
        return picture(
            TrueObject("car", self.car), TrueObject("person", self.person), light=light,
            groups=(TrueGroup((0, 1), level, "pedestrian_conflict"),),
        )  # fmt: skip

    def found(self, *things: tuple[str, Box, float]) -> list[Detection]:
        return [Detection(name, confidence, box) for name, box, confidence in things]

    def test_a_missed_member_costs_the_group(self) -> None:
        both = self.found(("car", self.car, 0.9), ("person", self.person, 0.6))
        one = self.found(("car", self.car, 0.9), ("person", self.person, 0.3))  # below the detector's confidence
        truth = labelled(self.scene(), self.scene(light="night"), self.scene(level="none"))
        recalls = {
            (item.kind, item.risk_type, item.light): item
            for item in group_recalls(truth, [both, one, both], self.settings)
            if item.weather == ALL
        }
        groups, dangers = recalls[GROUP, ALL, ALL], recalls[DANGER, ALL, ALL]
        assert (groups.groups, groups.found, groups.precision) == (3, 2, 1.0)
        assert (dangers.groups, dangers.found) == (2, 1)
        assert recalls[DANGER, "pedestrian_conflict", "night"].recall == 0.0
        assert recalls[GROUP, ALL, "night"].recall == 0.0

    def test_a_danger_needs_two_of_its_members_in_one_picture(self) -> None:
        far = (900.0, 300.0, 980.0, 360.0), (990.0, 300.0, 1010.0, 370.0)
        # a group elsewhere, and the endangered person alone
        found = self.found(("person", self.person, 0.9), ("car", far[0], 0.9), ("person", far[1], 0.9))
        recalls = group_recalls(labelled(self.scene()), [found], self.settings)
        assert {item.recall for item in recalls} == {0.0}
        # a group that shows the endangered person beside somebody else is another question
        beside = self.found(("person", self.person, 0.9), ("bicycle", (240, 300, 270, 370), 0.9))
        recalls = group_recalls(labelled(self.scene()), [beside], self.settings)
        assert {item.recall for item in recalls} == {0.0}

    def test_a_missed_third_member_costs_nothing_and_an_invented_group_costs_precision(self) -> None:
        third = (230.0, 300.0, 250.0, 370.0)
        truth = labelled(picture(*(TrueObject("person", box) for box in (self.car, self.person, third))))
        found = self.found(("person", self.car, 0.9), ("person", self.person, 0.9),
                           ("car", (900, 300, 980, 360), 0.9), ("car", (985, 300, 1060, 360), 0.9))  # fmt: skip
        [groups, *_] = group_recalls(truth, [found], self.settings)
        assert (groups.kind, groups.groups, groups.found, groups.precision) == (GROUP, 1, 1, 0.5)


@given(st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
@settings(max_examples=60)
def test_wilsons_interval_holds_the_share_and_stays_within_zero_and_one(shares: tuple[int, int]) -> None:
    hits, count = shares
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count + 1e-12
    assert hits / count - 1e-12 <= high <= 1
    assert low < high


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion (1998), table I: 81 of 263, 0 of 20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
