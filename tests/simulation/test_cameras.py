"""Simulated cameras behave like any other source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from dangerous_driving.camera.source import probe
from dangerous_driving.errors import ConfigError, SourceError
from dangerous_driving.settings import CameraSettings, CameraSpec
from dangerous_driving.simulation.cameras import open_source, simulated_cameras

SETTINGS = CameraSettings()


def camera(source: str) -> CameraSpec:
    return CameraSpec(id="sim", source=SecretStr(source))


def test_it_plays_at_its_own_pace_without_an_end() -> None:
    source = open_source(camera("simulated:queue?size=320x180&fps=4"), SETTINGS)
    assert source.period == 0.25
    assert all(source.grab() for _ in range(1000))
    assert source.retrieve().shape == (180, 320, 3)
    source.close()


def test_the_scene_goes_on_with_each_frame_looked_at_or_not() -> None:
    passed_over, looked_at = (open_source(camera("simulated:queue?size=320x180&fps=1"), SETTINGS) for _ in range(2))
    for _ in range(7):
        passed_over.grab()
        looked_at.grab()
        looked_at.retrieve()
    assert np.array_equal(passed_over.retrieve(), looked_at.retrieve())


def test_the_cameras_of_a_demo_differ_and_say_that_they_are_simulated() -> None:
    cameras = simulated_cameras(12)
    assert len({spec.id for spec in cameras}) == len({spec.shown_source for spec in cameras}) == 12
    assert all(spec.kind == "simulated" and spec.name.startswith("Simulated") for spec in cameras)
    assert cameras[:4] == simulated_cameras(4)


def test_a_scene_that_is_not_there_is_a_lost_source_and_at_the_start_a_wrong_setting() -> None:
    with pytest.raises(SourceError, match="nonsense"):
        open_source(camera("simulated:nonsense"), SETTINGS)
    with pytest.raises(ConfigError, match="nonsense"):
        probe(camera("simulated:nonsense"), SETTINGS, source_opener=open_source)


def test_a_scene_says_its_size_before_its_first_picture_which_has_it() -> None:
    source = open_source(camera("simulated:queue?size=640x352"), SETTINGS)
    assert probe(camera("simulated:queue?size=640x352"), SETTINGS, source_opener=open_source).width == 640
    assert source.size == (640, 352)
    assert source.grab()
    assert source.retrieve().shape == (352, 640, 3)


def test_real_sources_are_opened_as_ever(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file"):
        open_source(camera(str(tmp_path / "nowhere.mp4")), SETTINGS)
