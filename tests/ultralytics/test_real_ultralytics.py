"""The engine ultralytics, and `weights export`, with the real library."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from dangerous_driving.camera.frame import Image
from dangerous_driving.cli import app
from dangerous_driving.detection.cpu import CpuEngine
from dangerous_driving.detection.engine import Detection, open_engine
from dangerous_driving.detection.export import export_onnx
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import DetectionSettings
from dangerous_driving.simulation import OWN_WEIGHTS
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec

SHARED = Path(__file__).parents[3] / "shared"

CONFIDENCE, OVERLAP, DIFFERENCE, SHARE = 0.35, 0.9, 0.05, 0.95


def iou(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared)


def agreement(some: Sequence[list[Detection]], others: Sequence[list[Detection]]) -> tuple[int, int]:
    """How many of all boxes there are, and how many have their like on the other side."""
    every = alike = 0
    for these, those in ((some, others), (others, some)):
        for found, other in zip(these, those, strict=True):
            every += len(found)
            alike += sum(
                any(
                    twin.class_name == thing.class_name
                    and iou(twin.bbox, thing.bbox) >= OVERLAP
                    and abs(twin.confidence - thing.confidence) <= DIFFERENCE
                    for twin in other
                )
                for thing in found
            )
    return every, alike


def both(weights: Path, images: Sequence[Image]) -> tuple[list[list[Detection]], list[list[Detection]]]:
    settings = DetectionSettings(weights=weights, confidence=CONFIDENCE, input_size=640)
    cpu = CpuEngine(settings)
    other = open_engine(settings.model_copy(update={"engine": "ultralytics"}))
    return [cpu.detect([image])[0] for image in images], [other.detect([image])[0] for image in images]


def simulated(count: int) -> list[Image]:
    specs = [SceneSpec(Scenario.QUEUE, light, seed=61_000 + number) for number in range(count) for light in Light]
    # square ones: there the cpu engine leaves nothing of the grey bars away, and both see the same input
    return [np.ascontiguousarray(Scene(spec).frame(12.0).image[:, 300:1020]) for spec in specs]


def test_both_engines_find_the_same_in_simulated_scenes() -> None:
    every, alike = agreement(*both(OWN_WEIGHTS, simulated(3)))
    assert every > 50
    assert alike >= SHARE * every, f"{alike} of {every}"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sample pictures (../shared) are not here")
def test_both_engines_find_the_same_in_real_pictures() -> None:
    files = sorted((SHARED / "samples/images").glob("*.jpg"))
    images: list[Any] = [cv2.imread(str(file)) for file in files]
    every, alike = agreement(*both(SHARED / "models/yolov8n.onnx", images))
    assert every > 100
    assert alike >= SHARE * every, f"{alike} of {every}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector as a training leaves it, of classes that are ours and others."""
    from ultralytics import YOLO

    path = tmp_path_factory.mktemp("weights") / "untrained.pt"
    model: Any = YOLO("yolo11n.yaml", task="detect")
    model.model.names = {**dict.fromkeys(range(80), "thing"), 0: "person", 2: "car"}
    model.save(str(path))
    return path


def test_an_exported_checkpoint_is_taken_by_the_cpu_engine(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.onnx"
    said = CliRunner().invoke(app, ["weights", "export", str(checkpoint), "--out", str(out), "--input-size", "320"])
    assert said.exit_code == 0, said.output
    assert "car, person" in said.output
    assert "320 x 320" in said.output
    engine = CpuEngine(DetectionSettings(weights=out))
    pictures = [np.full((90, 160, 3), 128, np.uint8), np.full((120, 120, 3), 90, np.uint8)]
    assert len(engine.detect(pictures)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.onnx"]  # nothing is left lying about


def test_what_an_exported_network_answers_is_what_its_checkpoint_answers(checkpoint: Path, tmp_path: Path) -> None:
    out = export_onnx(str(checkpoint), tmp_path / "ours.onnx", input_size=320, dynamic=False)
    images = simulated(1)
    # an untrained network is sure of nothing: the best boxes at no confidence
    settings = DetectionSettings(weights=out, confidence=0.0, input_size=320, max_detections=20)
    found = CpuEngine(settings).detect(images)
    expected = open_engine(settings.model_copy(update={"engine": "ultralytics", "weights": checkpoint})).detect(images)
    best = [[sorted(thing.confidence for thing in of)[-5:] for of in side] for side in (found, expected)]
    np.testing.assert_allclose(best[0], best[1], atol=0.005)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("folder/none.pt", "there is no file"),
        ("text.pt", "cannot export"),
        ("segment.pt", "trained to segment"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    model: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics import YOLO

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("no weights")
    network: Any = YOLO("yolo11n-seg.yaml", task="segment")
    network.save("segment.pt")
    with pytest.raises(ConfigError, match=words):
        export_onnx(model, tmp_path / "out.onnx", input_size=320, dynamic=True)
    assert not (tmp_path / "out.onnx").exists()


def test_weights_that_are_none_and_devices_that_are_not_there_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"\x80no pickle")
    with pytest.raises(ConfigError, match=r"detection\.weights"):
        open_engine(DetectionSettings(engine="ultralytics", weights=broken))


def test_int8_weights_are_smaller_and_find_nearly_the_same(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, picture in enumerate(simulated(5)):
        cv2.imwrite(str(pictures / f"{number}.png"), picture)
    out = tmp_path / "int8.onnx"
    said = CliRunner().invoke(
        app, ["weights", "quantize", str(OWN_WEIGHTS), "--pictures", str(pictures), "--out", str(out)]
    )
    assert said.exit_code == 0, said.output
    agreement = float(said.output.split("F1 ")[1].split()[0])
    assert agreement > 0.85
    assert agreement < 1.0  # a copy of the fp32 file would be no int8
    assert out.stat().st_size < 0.5 * OWN_WEIGHTS.stat().st_size
    assert "AGPL-3.0" in said.output  # what the file says of itself stays
    assert (
        CpuEngine(DetectionSettings(weights=out)).classes == CpuEngine(DetectionSettings(weights=OWN_WEIGHTS)).classes
    )


def test_too_few_pictures_make_no_int8_weights(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), simulated(1)[0])
    with pytest.raises(ConfigError, match="too few"):
        app(["weights", "quantize", str(OWN_WEIGHTS), "--pictures", str(tmp_path)], standalone_mode=False)


def test_a_tracker_numbers_each_camera_for_itself() -> None:
    scenes = [Scene(SceneSpec(Scenario.QUEUE, seed=seed, fps=10)) for seed in (61_000, 61_001)]
    engine = open_engine(
        DetectionSettings(engine="ultralytics", weights=OWN_WEIGHTS, input_size=640, tracker="bytetrack")
    )
    numbers: dict[str, list[dict[int, tuple[float, ...]]]] = {"a": [], "b": []}
    for step in range(6):
        images = [scene.frame(4.0 + step * 0.1).image for scene in scenes]
        for camera_id, found in zip("ab", engine.detect(images, ["a", "b"]), strict=True):
            numbers[camera_id].append({thing.track_id: thing.bbox for thing in found if thing.track_id})
    for frames in numbers.values():
        first, last = frames[1], frames[-1]
        assert first
        assert min(first) == 1  # not numbered on from the other camera
        stayed = first.keys() & last.keys()
        assert len(stayed) >= 0.6 * len(first)
        moves = [
            iou(before[key], after[key]) for before, after in pairwise(frames) for key in before.keys() & after.keys()
        ]
        assert sum(overlap > 0.3 for overlap in moves) >= 0.8 * len(moves)


def test_track_ids_are_in_the_message() -> None:
    found = [
        Detection("car", 0.9, (10.0, 10.0, 60.0, 40.0), track_id=7),
        Detection("car", 0.8, (90.0, 10.0, 140.0, 40.0)),
    ]
    scene = scene_of(found, 640, 480, DetectionSettings())
    assert [thing.track_id for thing in scene.objects] == [7, None]


def test_weights_in_another_place_are_exported_beside_the_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(checkpoint, tmp_path / "best.pt")
    monkeypatch.chdir(tmp_path)
    assert export_onnx("best.pt", None, input_size=320, dynamic=True) == tmp_path / "best.onnx"
