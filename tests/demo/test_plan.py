"""What a demo is about to run, and what it refuses before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from dangerous_driving.demo import plan
from dangerous_driving.errors import ConfigError
from dangerous_driving.services import own_weights
from dangerous_driving.settings import CameraSettings, CameraSpec, DetectionSettings, Settings


def real_camera(**changes: object) -> CameraSpec:
    return CameraSpec(id="north", source=SecretStr("rtsp://user:password@camera/stream")).model_copy(update=changes)


def test_without_arguments_there_are_four_simulated_cameras_that_differ() -> None:
    specs = plan.camera_specs(Settings(), [], None)
    assert len(specs) == 4
    assert {spec.kind for spec in specs} == {"simulated"}
    assert all("simulated" in spec.name.casefold() for spec in specs)
    assert len({spec.shown_source for spec in specs}) == 4
    assert len({spec.id for spec in specs}) == 4


def test_as_many_simulated_cameras_as_wanted() -> None:
    specs = plan.camera_specs(Settings(), [], 23)
    assert len({spec.id for spec in specs}) == 23


def test_configured_cameras_come_before_simulated_ones() -> None:
    settings = Settings(camera=CameraSettings(cameras=(real_camera(), real_camera(id="south"))))
    assert [spec.id for spec in plan.camera_specs(settings, [], None)] == ["north", "south"]
    assert [spec.id for spec in plan.camera_specs(settings, [], 1)] == ["north"]


def test_named_sources_are_taken_in_rotation_and_paths_made_absolute() -> None:
    specs = plan.camera_specs(Settings(), ["a.mp4", "rtsp://camera/1", "simulated:queue?seed=3", "0"], 5)
    assert [spec.source.get_secret_value() for spec in specs] == [
        str(Path("a.mp4").absolute()),
        "rtsp://camera/1",
        "simulated:queue?seed=3",
        "0",
        str(Path("a.mp4").absolute()),
    ]
    assert "Simulated" in specs[2].name


def test_a_source_that_is_no_address_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match=r"^--source: not an address; write special characters .*%23") as refused:
        plan.camera_specs(Settings(), ["clip.mp4", "rtsp://admin:hun#ter2@camera/1"], None)
    assert "hun" not in str(refused.value)
    assert "ter2" not in str(refused.value)


def test_simulated_cameras_get_the_weights_that_come_with_the_project() -> None:
    specs = plan.camera_specs(Settings(), [], None)
    assert plan.weights_for(specs, None, Settings()) == own_weights()


def test_named_weights_win(tmp_path: Path) -> None:
    specs = plan.camera_specs(Settings(), [], None)
    named = Settings(detection=DetectionSettings(weights=tmp_path / "configured.onnx"))
    assert plan.weights_for(specs, tmp_path / "named.onnx", named) == tmp_path / "named.onnx"
    assert plan.weights_for(specs, None, named) == tmp_path / "configured.onnx"


def test_a_real_camera_is_never_watched_with_weights_of_simulated_scenes() -> None:
    specs = [*plan.camera_specs(Settings(), [], 1), real_camera()]
    with pytest.raises(ConfigError, match="--weights") as refused:
        plan.weights_for(specs, None, Settings())
    assert "password" not in str(refused.value)
