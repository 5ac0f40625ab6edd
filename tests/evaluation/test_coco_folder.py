"""Labelled folders: what is read, and what is refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.coco_folder import read_labelled
from dangerous_driving.evaluation.detector import evaluate_detector, read_picture
from dangerous_driving.settings import DetectionSettings

CLASSES = DetectionSettings().classes


def labels() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48, "light": "night", "weather": "rain"},
            {
                "id": 9, "file_name": "b.jpg", "width": 64, "height": 48,
                "attributes": {"timeofday": "dawn/dusk", "weather": "snowy"},
            },
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [20, 2, 5, 12], "iscrowd": 1},
            {"id": 3, "image_id": 9, "category_id": 80, "bbox": [20, 2, 5, 12]},
            {"id": 4, "image_id": 9, "category_id": 3, "bbox": [20, 2, 0, 12]},
        ],
        "categories": [{"id": 1, "name": "Pedestrian"}, {"id": 3, "name": "car"}, {"id": 80, "name": "toaster"}],
        "groups": [{"image_id": 7, "annotation_ids": [1, 2], "risk_level": "high", "risk_type": "pedestrian_conflict"}],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "junctions"
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "a.jpg"), np.zeros((48, 64, 3), np.uint8))
    cv2.imwrite(str(folder / "images" / "b.jpg"), np.zeros((48, 64, 3), np.uint8))
    (folder / "annotations.json").write_text(json.dumps(labels()))
    return folder


def test_coco_labels_with_light_weather_groups_and_other_names(folder: Path) -> None:
    found = read_labelled(folder, CLASSES)
    assert (found.name, found.classes, found.simulated) == ("junctions", ("person", "car"), False)
    first, second = found.pictures
    assert [(thing.class_name, thing.bbox, thing.crowd) for thing in first.objects] == [
        ("car", (1, 2, 11, 22), False),
        ("person", (20, 2, 25, 14), True),
    ]
    assert (first.light, first.weather, second.light, second.weather) == ("night", "rain", "dusk", "snowy")
    assert (first.groups[0].members, first.groups[0].dangerous) == ((0, 1), True)
    assert dict(found.left_out) == {"of other classes": 1, "without an area": 1}
    assert (found.lights(), found.weathers()) == (("dusk", "night"), ("rain", "snowy"))


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    before = read_labelled(folder, CLASSES).fingerprint
    assert read_labelled(folder.rename(tmp_path / "elsewhere"), CLASSES).fingerprint == before
    cv2.imwrite(str(tmp_path / "elsewhere" / "a.jpg"), np.full((48, 64, 3), 9, np.uint8))
    assert read_labelled(tmp_path / "elsewhere", CLASSES).fingerprint != before


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(name)


def changed(part: str, place: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[part][place].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("images"), "images: Field required"),
        (changed("annotations", 0, image_id=5), "annotation 1 is of image 5, which is not listed"),
        (changed("annotations", 0, category_id=5), "annotation 1 is of category 5, not listed"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"annotations\.0\.bbox: List should have at least 4 items"),
        (changed("annotations", 1, id=1), "uses the annotation id 1 2 times"),
        (changed("images", 1, id=7), "uses the image id 7 2 times"),
        (changed("images", 1, file_name="gone.jpg"), "lists pictures that are not there: gone.jpg"),
        (changed("groups", 0, risk_level="awful"), r"groups\.0\.risk_level"),
        (lambda content: [item.update(name="toaster") for item in content["categories"]], "labels none of person"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_with_place_and_reason(
    folder: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    content = labels()
    change(content)
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"monitoring\.labelled_folders.*annotations\.json: .*{said}"):
        read_labelled(folder, CLASSES)


def test_a_folder_without_labels_or_with_several_files_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        read_labelled(tmp_path / "nowhere", CLASSES)
    with pytest.raises(ConfigError, match="has no annotation files"):
        read_labelled(folder / "images", CLASSES)
    (folder / "annotations.json").rename(folder / "train.json")
    (folder / "val.json").write_text("{}")
    with pytest.raises(ConfigError, match="has 2 annotation files"):
        read_labelled(folder, CLASSES)
    (folder / "val.json").unlink()
    assert len(read_labelled(folder, CLASSES).pictures) == 2
    (folder / "train.json").write_bytes(b"\xff{")
    with pytest.raises(ConfigError, match="is no JSON"):
        read_labelled(folder, CLASSES)


def test_a_picture_that_is_none_or_of_another_size_ends_the_evaluation(folder: Path) -> None:
    first, second = read_labelled(folder, CLASSES).pictures
    first.file.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"a\.jpg is no picture"):
        read_picture(first)
    cv2.imwrite(str(second.file), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ConfigError, match="is 30 x 20 px, its labels are for 64 x 48"):
        read_picture(second)


def test_weights_that_are_missing_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no weights are set"):
        evaluate_detector(read_labelled(folder, CLASSES), DetectionSettings())
