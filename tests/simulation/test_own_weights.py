"""The weights that come with the project find what is in simulated scenes that they have not seen."""

from __future__ import annotations

import numpy as np
import pytest

from dangerous_driving.detection.cpu import CpuEngine
from dangerous_driving.settings import DetectionSettings
from dangerous_driving.simulation import OWN_WEIGHTS
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec

#: Neither trained on nor measured with, see the model card.
UNSEEN = 60_000


def iou(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared)


@pytest.fixture(scope="module")
def engine() -> CpuEngine:
    return CpuEngine(DetectionSettings(weights=OWN_WEIGHTS, input_size=640))


@pytest.mark.parametrize("light", list(Light))
def test_most_cars_and_people_are_found_in_place_and_little_else(engine: CpuEngine, light: Light) -> None:
    wanted = hits = said = right = 0
    for seed in range(UNSEEN, UNSEEN + 3):
        scene = Scene(SceneSpec(Scenario.FREE_FLOW, light, seed=seed))
        for at in (2.0, 15.0, 28.0):
            frame = scene.frame(at)
            found = engine.detect([frame.image])[0]
            large = [
                thing
                for thing in frame.objects
                if thing.class_name in {"car", "person"} and thing.visible > 0.7 and thing.bbox[3] - thing.bbox[1] >= 40
            ]
            wanted += len(large)
            hits += sum(
                any(other.class_name == thing.class_name and iou(other.bbox, thing.bbox) >= 0.5 for other in found)
                for thing in large
            )
            said += len(found)
            right += sum(any(iou(other.bbox, thing.bbox) >= 0.5 for thing in frame.objects) for other in found)
    assert wanted >= 15
    assert hits >= 0.7 * wanted, f"{hits} of {wanted}"
    assert right >= 0.8 * said, f"{right} of {said}"


def test_a_picture_gives_the_same_alone_and_among_others(engine: CpuEngine) -> None:
    pictures = [Scene(SceneSpec(seed=UNSEEN + number)).frame(4.0).image for number in range(2)]
    small = np.ascontiguousarray(pictures[0][:300, :300])
    together = engine.detect([pictures[0], small, pictures[1]])
    alone = [engine.detect([picture])[0] for picture in (pictures[0], small, pictures[1])]
    for first, second in zip(together, alone, strict=True):
        assert [thing.class_name for thing in first] == [thing.class_name for thing in second]
        for one, other in zip(first, second, strict=True):
            assert iou(one.bbox, other.bbox) > 0.99
            assert abs(one.confidence - other.confidence) < 0.01


def test_the_weights_say_what_they_are_for_and_under_which_licence() -> None:
    import onnxruntime

    said = onnxruntime.InferenceSession(OWN_WEIGHTS, providers=["CPUExecutionProvider"]).get_modelmeta()
    assert "simulated" in said.custom_metadata_map["description"]
    assert "AGPL-3.0" in said.custom_metadata_map["license"]
    assert OWN_WEIGHTS.stat().st_size <= 6_000_000
    assert (OWN_WEIGHTS.parent / "MODEL_CARD.md").exists()
