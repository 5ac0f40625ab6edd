"""The whole of it: scenes are rendered, the project's own weights look at them, the report tells what truth tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.engine import Detection
from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.coco_folder import read_labelled
from dangerous_driving.evaluation.detector import DetectorReport, evaluate_detector, markdown
from dangerous_driving.evaluation.group_recall import DANGER, GROUP
from dangerous_driving.evaluation.labels import LabelledSet
from dangerous_driving.settings import DetectionSettings
from dangerous_driving.simulation import OWN_WEIGHTS
from dangerous_driving.simulation.labelled_scenes import CLASSES, scene_specs, write_labelled_scenes
from dangerous_driving.simulation.scenes import Light, Scenario, SceneSpec, Weather

SETTINGS = DetectionSettings(weights=OWN_WEIGHTS)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "simulated"
    # two scenes of 48 kinds, small: rendering is what takes the time
    specs = [
        SceneSpec(Scenario.STEPPING_OUT, Light.DAY, Weather.DRY, 90_002, 800, 450),
        SceneSpec(Scenario.TAILGATING, Light.NIGHT, Weather.RAIN, 90_003, 800, 450),
    ]
    assert list(write_labelled_scenes(folder, specs, frames=2)) == [1, 2, 3, 4]
    return folder


@pytest.fixture(scope="session")
def labelled(scenes: Path) -> LabelledSet:
    return read_labelled(scenes, SETTINGS.classes)


class Oracle:
    """Answers with the truth, a little less sure of each further object."""

    model_name = "oracle"

    def __init__(self, labelled: LabelledSet, missing: str = "") -> None:
        self._answers = iter(
            [
                [
                    Detection(thing.class_name, 0.9 - 0.01 * number, thing.bbox)
                    for number, thing in enumerate(picture.objects)
                    if not thing.crowd and thing.class_name != missing
                ]
                for picture in labelled.pictures
            ]
        )

    def detect(self, images: Sequence[Image], camera_ids: Sequence[str] = ()) -> list[list[Detection]]:
        return [next(self._answers) for _ in images]


def test_every_kind_of_scene_comes_in_every_light_and_weather() -> None:
    specs = scene_specs(48)
    assert len({(spec.scenario, spec.light, spec.weather) for spec in specs}) == 48
    assert {spec.scenario for spec in specs} == set(Scenario)
    assert len({spec.seed for spec in specs}) == 48
    assert {(spec.light, spec.weather) for spec in specs} == {(light, rain) for light in Light for rain in Weather}


def test_rendered_scenes_are_read_back_with_light_weather_groups_and_faint_road_users(
    scenes: Path, labelled: LabelledSet
) -> None:
    assert labelled.simulated
    assert set(labelled.classes) == set(CLASSES)
    assert (labelled.lights(), labelled.weathers()) == (("day", "night"), ("dry", "rain"))
    assert any(thing.crowd for picture in labelled.pictures for thing in picture.objects)
    assert any(picture.groups for picture in labelled.pictures)
    with pytest.raises(ConfigError, match="holds labelled pictures already"):
        next(write_labelled_scenes(scenes, scene_specs(1), frames=1))


def test_an_engine_that_knows_the_truth_has_full_marks_and_one_that_is_blind_to_cars_has_not(
    labelled: LabelledSet,
) -> None:
    perfect = evaluate_detector(labelled, SETTINGS, engine=Oracle(labelled))
    whole, groups, dangers = perfect.score(), perfect.recall(GROUP), perfect.recall(DANGER)
    assert whole is not None
    assert (whole.ap, whole.ar, whole.recall, whole.precision) == pytest.approx((1.0,) * 4)
    assert groups is not None
    assert groups.recall == 1.0
    assert dangers is not None
    blind = evaluate_detector(labelled, SETTINGS, engine=Oracle(labelled, missing="car"))
    cars, without = blind.score("car"), blind.recall(GROUP)
    assert cars is not None
    assert (cars.ap, cars.recall, cars.precision) == (0.0, 0.0, None)
    assert without is not None
    assert without.found < groups.found


def test_the_own_weights_on_simulated_scenes(labelled: LabelledSet) -> None:
    done: list[int] = []
    report = evaluate_detector(labelled, SETTINGS, on_progress=done.append)
    assert done[-1] == len(labelled.pictures) == report.pictures
    cars, small, large = report.score("car"), report.score("car", "small"), report.score("car", "large")
    assert cars is not None
    assert cars.ap50 is not None
    assert cars.ap50 > 0.7  # 0.94 on 192 pictures
    assert small is not None
    assert large is not None
    assert cars.objects >= small.objects + large.objects
    groups = report.recall(GROUP)
    assert groups is not None
    assert groups.found > 0
    assert_reads_well(report)


def assert_reads_well(report: DetectorReport) -> None:
    text = markdown(report)
    assert "simulated pictures" in text
    for row in ("| all |", "| car |", "| small (< 32² px) |", "| groups of the true boxes | all |"):
        assert row in text, row


def test_an_evaluation_has_an_id_of_its_input(labelled: LabelledSet) -> None:
    def identity(settings: DetectionSettings) -> str:
        return evaluate_detector(labelled, settings, engine=Oracle(labelled)).evaluation_id

    assert identity(SETTINGS) == identity(SETTINGS)
    assert identity(SETTINGS) != identity(SETTINGS.model_copy(update={"confidence": 0.5}))
