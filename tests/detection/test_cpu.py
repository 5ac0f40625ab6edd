from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.cpu import CpuEngine, letterbox_of
from dangerous_driving.detection.engine import Detection, open_engine
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import DetectionSettings

WriteOnnx = Callable[..., Path]

PERSON, BICYCLE, CAR, TRAIN = range(4)


def raw(*boxes: tuple[float, float, float, float, Mapping[int, float]]) -> NDArray[np.float32]:
    """Raw YOLO output (4 + classes) x n of centre x, centre y, width, height, confidence by class."""
    answer = np.zeros((8, len(boxes)), np.float32)
    for column, (x, y, width, height, confidences) in enumerate(boxes):
        answer[:4, column] = x, y, width, height
        for index, confidence in confidences.items():
            answer[4 + index, column] = confidence
    return answer


def grey(width: int = 64, height: int = 64) -> Image:
    return np.full((height, width, 3), 90, np.uint8)


def engine(weights: Path, **settings: object) -> CpuEngine:
    return CpuEngine(DetectionSettings.model_validate({"weights": weights, **settings}))


def found(detections: Sequence[Detection]) -> list[tuple[str, float, tuple[float, ...]]]:
    return [
        (each.class_name, round(each.confidence, 3), tuple(round(side, 2) for side in each.bbox)) for each in detections
    ]


def test_boxes_come_in_pixels_of_the_picture_the_most_confident_first(write_onnx: WriteOnnx) -> None:
    weights = write_onnx(raw((32, 32, 20, 10, {CAR: 0.6}), (10, 30, 8, 12, {PERSON: 0.9})))
    (wide,) = engine(weights).detect([grey(128, 64)])  # scaled by 0.5 to 64 x 32, with bars of 16 above and below
    assert found(wide) == [("person", 0.9, (12, 16, 28, 40)), ("car", 0.6, (44, 22, 84, 42))]


def test_boxes_are_cut_at_the_edge_of_the_picture_and_dropped_in_the_bars(write_onnx: WriteOnnx) -> None:
    weights = write_onnx(raw((32, 16, 80, 10, {CAR: 0.9}), (32, 4, 20, 6, {CAR: 0.8})))
    (detections,) = engine(weights).detect([grey(128, 64)])
    assert found(detections) == [("car", 0.9, (0, 0, 128, 10))]


def test_overlapping_boxes_of_one_class_are_one_object_and_those_of_two_classes_are_two(write_onnx: WriteOnnx) -> None:
    weights = write_onnx(
        raw((32, 32, 20, 20, {CAR: 0.9}), (33, 32, 20, 20, {CAR: 0.8}), (33, 33, 20, 20, {PERSON: 0.7}))
    )
    (detections,) = engine(weights, iou=0.5).detect([grey()])
    assert [each.class_name for each in detections] == ["car", "person"]
    (detections,) = engine(weights, iou=0.95).detect([grey()])
    assert [each.class_name for each in detections] == ["car", "car", "person"]


def test_what_is_below_the_confidence_or_rather_something_else_is_left_out(write_onnx: WriteOnnx) -> None:
    weights = write_onnx(
        raw((10, 10, 8, 8, {CAR: 0.34}), (30, 30, 8, 8, {CAR: 0.5, TRAIN: 0.6}), (50, 50, 8, 8, {CAR: 0.36}))
    )
    (detections,) = engine(weights, confidence=0.35).detect([grey()])
    assert found(detections) == [("car", 0.36, (46, 46, 54, 54))]


def test_only_so_many_detections_the_most_confident_are_kept(write_onnx: WriteOnnx) -> None:
    boxes = [(5 + 6 * n, 32.0, 4.0, 4.0, {CAR: 0.4 + 0.05 * n}) for n in range(10)]
    (detections,) = engine(write_onnx(raw(*boxes)), max_detections=3).detect([grey()])
    assert [round(each.confidence, 2) for each in detections] == [0.85, 0.8, 0.75]


@pytest.mark.parametrize("batch", ["batch", 1, 2, 3])
def test_a_batch_gives_each_pictures_own_detections_whatever_batch_the_weights_take(
    write_onnx: WriteOnnx, batch: int | str
) -> None:
    answer = raw((32, 32, 20, 20, {CAR: 0.9}))
    weights = write_onnx(answer, shape=(batch, 3, 64, 64))
    sizes = [(64, 64), (128, 128), (32, 32)]
    detected = engine(weights).detect([grey(*size) for size in sizes])
    assert [found(each)[0][2] for each in detected] == [(22, 22, 42, 42), (44, 44, 84, 84), (11, 11, 21, 21)]
    assert engine(weights).detect([]) == []


def test_weights_that_suppress_overlaps_themselves_are_read_as_they_are(write_onnx: WriteOnnx) -> None:
    answer = np.array([[10, 10, 20, 20, 0.9, CAR], [10, 10, 20, 21, 0.5, TRAIN], [0, 0, 0, 0, 0, 0]], np.float32)
    (detections,) = engine(write_onnx(answer)).detect([grey()])
    assert found(detections) == [("car", 0.9, (10, 10, 20, 20))]


def test_classes_are_matched_by_name_whatever_their_number(write_onnx: WriteOnnx) -> None:
    names = ["tree", "Truck", "sky", "person"]
    weights = write_onnx(raw((32, 32, 9, 9, {1: 0.9}), (9, 9, 9, 9, {3: 0.8})), class_names=names)
    (detections,) = engine(weights).detect([grey()])
    assert [each.class_name for each in detections] == ["truck", "person"]


def test_free_height_and_width_take_the_set_size_or_that_of_the_training(write_onnx: WriteOnnx) -> None:
    metadata = {"names": "['person', 'bicycle', 'car', 'train']", "imgsz": "[64, 96]"}
    weights = write_onnx(raw((48, 32, 10, 10, {CAR: 0.9})), shape=("batch", 3, "height", "width"), metadata=metadata)
    (trained,) = engine(weights).detect([grey(96, 64)])
    (square,) = engine(weights, input_size=192).detect([grey(192, 192)])
    assert found(trained)[0][2] == found(square)[0][2] == (43, 27, 53, 37)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (10_000, 10_000)])
def test_pictures_of_odd_sizes_are_no_error(write_onnx: WriteOnnx, size: tuple[int, int]) -> None:
    weights = write_onnx(raw((32, 32, 64, 64, {CAR: 0.9})))
    (detections,) = engine(weights).detect([grey(*size)])
    assert all(0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1] for x1, y1, x2, y2 in (d.bbox for d in detections))


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([(640, 640), (416, 416), (384, 640)]))
def test_a_letterboxed_picture_lies_within_the_input_and_fills_one_side(
    width: int, height: int, size: tuple[int, int]
) -> None:
    box = letterbox_of(width, height, size[1], size[0])
    assert box.left >= 0
    assert box.top >= 0
    assert box.left + box.width <= size[1]
    assert box.top + box.height <= size[0]
    assert box.width == size[1] or box.height == size[0]


def test_the_network_sees_the_picture_in_rgb_between_grey_bars(write_onnx: WriteOnnx) -> None:
    instance = engine(write_onnx(raw((32, 32, 20, 20, {CAR: 0.9}))))
    fed: list[NDArray[np.float32]] = []
    session = instance._session

    class Spy:
        def run(self, names: None, feed: dict[str, NDArray[np.float32]]) -> object:
            fed.append(feed["images"])
            return session.run(names, feed)

    instance._session = Spy()
    blue = np.zeros((32, 64, 3), np.uint8)
    blue[..., 0] = 255
    instance.detect([blue])
    (picture,) = fed[0]
    assert picture.dtype == np.float32
    assert np.allclose(picture[:, 32, 32], [0, 0, 1])
    assert np.allclose(picture[:, :16], 114 / 255)
    assert np.allclose(picture[:, 48:], 114 / 255)


def test_no_weights_or_missing_or_empty_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for weights in (None, tmp_path / "missing.onnx", tmp_path / "empty.onnx"):
        with pytest.raises(ConfigError, match=r"^detection\.weights \(--weights\): "):
            CpuEngine(DetectionSettings(weights=weights))


@pytest.mark.parametrize("content", [b"PK\x03\x04 a torch archive", b"just text\n" * 50, bytes(1000)])
@pytest.mark.parametrize("name", ["yolo.pt", "yolo.txt", "yolo.onnx"])
def test_weights_that_are_no_onnx_are_refused_with_the_remedy(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"^detection\.weights \(--weights\): .*yolo export"):
        engine(tmp_path / name)


BOX = raw((32, 32, 20, 20, {CAR: 0.9}))
CLASSIFIER = np.zeros((4, 7), np.float32)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shape": ("batch", 64)}, "takes images batch x 64"),
        ({"shape": ("batch", 1, 64, 64)}, "takes images batch x 1 x 64 x 64"),
        ({"answer": CLASSIFIER}, "answers output0 batch x 4 x 7"),
        ({"metadata": {}}, "names of its classes"),
        ({"metadata": {"names": "{0: 'car', 2: 'person'}"}}, "names of its classes"),
        ({"metadata": {"names": "__import__('os').abort()"}}, "names of its classes"),
        ({"metadata": {"task": "segment", "names": "{0: 'car'}"}}, "trained to segment"),
        ({"class_names": ["cat", "dog", "fox", "owl"]}, "know none of person.*cat, dog, fox, owl"),
    ],
)
def test_a_network_that_is_no_detector_of_road_users_is_refused(
    write_onnx: WriteOnnx, changes: dict[str, object], problem: str
) -> None:
    weights = write_onnx(**{"answer": BOX, **changes})
    with pytest.raises(ConfigError, match=rf"^detection\.weights \(--weights\): .*{problem}"):
        engine(weights)


def test_an_input_size_that_the_weights_do_not_take_is_refused(write_onnx: WriteOnnx) -> None:
    with pytest.raises(ConfigError, match=r"detection\.input_size: the weights are made for 64 px, not 320"):
        engine(write_onnx(BOX), input_size=320)
    with pytest.raises(ConfigError, match=r"detection\.input_size: 100 is no multiple of 32 px"):
        engine(write_onnx(BOX, shape=("batch", 3, "height", "width")), input_size=100)


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


@pytest.mark.parametrize("weights", ["yolov8n.onnx", "yolov8n_dynbatch.onnx"])
def test_detections_on_real_pictures_agree_with_the_reference(shared: Path, weights: str) -> None:
    reference = json.loads((shared / "samples/detections.json").read_text())
    settings = DetectionSettings(
        weights=shared / "models" / weights,
        confidence=reference["confidence_threshold"],
        iou=reference["nms_iou"],
    )
    images = [cv2.imread(str(shared / "samples/images" / name)) for name in reference["images"]]
    assert all(image is not None for image in images)
    detected = open_engine(settings).detect([np.asarray(image, dtype=np.uint8) for image in images])
    outcomes = [
        any(
            each.class_name == box["class"]
            and iou(each.bbox, box["bbox"]) >= 0.9
            and abs(each.confidence - box["confidence"]) <= 0.05
            for each in detections
        )
        for boxes, detections in zip(reference["images"].values(), detected, strict=True)
        for box in boxes
        if box["confidence"] >= 0.35
    ]
    assert len(outcomes) > 100
    assert sum(outcomes) >= 0.95 * len(outcomes)
    boxes_in_reference = sum(len(boxes) for boxes in reference["images"].values())
    assert sum(len(each) for each in detected) == pytest.approx(boxes_in_reference, rel=0.05)
