"""Training of the project's own weights, with the real library: what must hold before an hour is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dangerous_driving.detection.cpu import CpuEngine
from dangerous_driving.settings import DetectionSettings
from dangerous_driving.simulation import OWN_WEIGHTS
from dangerous_driving.simulation.training import Recipe, export, go_on_from, write_data

SMALL = Recipe(scenes=2, frames_per_scene=2, held_out_scenes=1, held_out_frames=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("training") / "data", SMALL)


def test_cuts_show_road_users_within_their_borders(data: Path) -> None:
    labels = sorted((data.parent / "labels/train").glob("*.txt"))
    rows = np.concatenate([np.loadtxt(file, ndmin=2) for file in labels if file.stat().st_size])
    assert len(labels) >= SMALL.scenes * SMALL.frames_per_scene
    centres, sizes = rows[:, 1:3], rows[:, 3:5]
    assert (centres - sizes / 2 >= -1e-4).all()
    assert (centres + sizes / 2 <= 1 + 1e-4).all()
    assert (sizes > 0).all()


def test_a_training_that_goes_on_begins_with_the_answers_of_the_weights_that_it_was_given(
    data: Path, tmp_path: Path
) -> None:
    start = go_on_from(OWN_WEIGHTS, tmp_path, data)
    again = export(start, tmp_path / "again.onnx", SMALL)
    pictures: list[Any] = [cv2.imread(str(file)) for file in sorted((data.parent / "images/held_out").glob("*.jpg"))]
    before, after = (
        CpuEngine(DetectionSettings(weights=weights, input_size=640)).detect(pictures)
        for weights in (OWN_WEIGHTS, again)
    )
    assert sum(map(len, before)) > 3, "an empty answer would show nothing"
    for these, those in zip(before, after, strict=True):
        assert [thing.class_name for thing in these] == [thing.class_name for thing in those]
        assert np.allclose([thing.bbox for thing in these], [thing.bbox for thing in those], atol=0.1)
        assert np.allclose([thing.confidence for thing in these], [thing.confidence for thing in those], atol=1e-3)
