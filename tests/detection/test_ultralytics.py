from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dangerous_driving.detection.engine import Detection, open_engine
from dangerous_driving.errors import ConfigError, InferenceError
from dangerous_driving.settings import DetectionSettings


class Column:
    """A torch tensor, as far as it is used."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def cpu(self) -> Column:
        return self

    def tolist(self) -> list[Any]:
        return self.values


class FakeYolo:
    """ultralytics.YOLO, as far as it is used."""

    options: dict[str, Any]
    names = {0: "person", 1: "tree", 2: "car"}  # noqa: RUF012

    def __init__(self, weights: str, task: str) -> None:
        if "broken" in weights:
            raise TypeError("unsupported format")
        self.task = "segment" if "segment" in weights else task
        self.weights = weights

    def predict(self, images: list[NDArray[np.uint8]], **options: Any) -> list[Any]:
        if any(image.size > 10_000 for image in images):
            raise RuntimeError("out of memory")
        FakeYolo.options = options
        boxes = SimpleNamespace(
            xyxy=Column([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 9.0, 8.0]]),
            conf=Column([0.5, 1.0000001]),
            cls=Column([2.0, 0.0]),
        )
        return [SimpleNamespace(boxes=boxes) for _ in images]


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    ultralytics, torch = ModuleType("ultralytics"), ModuleType("torch")
    vars(ultralytics)["YOLO"] = FakeYolo
    vars(torch).update(cuda=SimpleNamespace(is_available=lambda: False), set_num_threads=lambda count: None)
    monkeypatch.setitem(sys.modules, "ultralytics", ultralytics)
    monkeypatch.setitem(sys.modules, "torch", torch)


def settings(weights: Path, **changes: Any) -> DetectionSettings:
    weights.write_bytes(b"weights")
    return DetectionSettings(engine="ultralytics", weights=weights, **changes)


@pytest.mark.usefixtures("_installed")
def test_detections_are_converted_the_most_confident_first(tmp_path: Path) -> None:
    engine = open_engine(settings(tmp_path / "yolo11n.pt", confidence=0.4, iou=0.6, input_size=320))
    image = np.zeros((48, 64, 3), np.uint8)
    expected = [Detection("person", 1.0, (5.0, 6.0, 9.0, 8.0)), Detection("car", 0.5, (1.0, 2.0, 3.0, 4.0))]
    assert engine.detect([image, image]) == [expected, expected]
    assert engine.detect([]) == []
    assert engine.model_name == "yolo11n"
    used = {name: FakeYolo.options[name] for name in ("conf", "iou", "classes", "imgsz", "max_det")}
    assert used == {"conf": 0.4, "iou": 0.6, "classes": [0, 2], "imgsz": 320, "max_det": 200}
    assert "quantize" not in FakeYolo.options


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("name", ["broken.pt", "segment.pt"])
def test_weights_it_cannot_use_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^detection\.weights \(--weights\): "):
        open_engine(settings(tmp_path / name))


@pytest.mark.usefixtures("_installed")
def test_a_failing_device_is_an_inference_error(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="out of memory"):
        open_engine(settings(tmp_path / "yolo.pt")).detect([np.zeros((100, 100, 3), np.uint8)])


def test_without_the_extra_the_remedy_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ConfigError, match=r"detection\.engine: .*pip install -e '.\[ultralytics\]'"):
        open_engine(settings(tmp_path / "yolo.pt"))


@pytest.mark.usefixtures("_installed")
def test_the_device_is_the_one_that_is_set(tmp_path: Path) -> None:
    open_engine(settings(tmp_path / "yolo.pt", device="cpu")).detect([np.zeros((48, 64, 3), np.uint8)])
    assert FakeYolo.options["device"] == "cpu"
    assert "quantize" not in FakeYolo.options


def test_a_tracker_needs_the_engine_that_has_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"detection\.tracker"):
        open_engine(settings(tmp_path / "yolo.pt", tracker="bytetrack").model_copy(update={"engine": "cpu"}))


@pytest.mark.usefixtures("_installed")
def test_a_gpu_works_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["torch"], "cuda", SimpleNamespace(is_available=lambda: True))
    open_engine(settings(tmp_path / "yolo.pt")).detect([np.zeros((48, 64, 3), np.uint8)])
    assert FakeYolo.options["quantize"] == 16
