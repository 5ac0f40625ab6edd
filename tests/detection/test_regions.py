"""Only who stands where a camera is meant to look counts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.regions import counted, within
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.settings import CameraSpec, DetectionSettings, Polygon

LEFT_HALF: Polygon = ((0, 0), (0.5, 0), (0.5, 1), (0, 1))
WHOLE: Polygon = ((0, 0), (1, 0), (1, 1), (0, 1))
BOTTOM: Polygon = ((0, 0.8), (1, 0.8), (1, 1), (0, 1))
HORSESHOE: Polygon = ((0, 0), (1, 0), (1, 1), (0.8, 1), (0.8, 0.2), (0.2, 0.2), (0.2, 1), (0, 1))


def camera(**more: object) -> CameraSpec:
    return CameraSpec(id="a", source=SecretStr("0")).model_copy(update=more)


def objects_seen(camera: CameraSpec | None, *feet: tuple[float, float]) -> list[float]:
    """The x of the feet that count, of cars in a picture of 1000 x 500 px."""
    detections = [Detection("car", 0.9, (x - 20, y - 30, x + 20, y)) for x, y in feet]
    scene = scene_of(detections, 1000, 500, DetectionSettings(), camera=camera)
    return [(thing.bbox[0] + thing.bbox[2]) / 2 for thing in scene.objects]


def test_without_regions_everybody_counts() -> None:
    assert objects_seen(None, (100, 100), (900, 490)) == [100, 900]
    assert objects_seen(camera(), (100, 100), (900, 490)) == [100, 900]


def test_a_region_of_interest_leaves_out_what_stands_elsewhere() -> None:
    assert objects_seen(camera(region_of_interest=(LEFT_HALF,)), (100, 100), (900, 490), (490, 300)) == [100, 490]


def test_several_regions_add_up() -> None:
    assert objects_seen(camera(region_of_interest=(LEFT_HALF, BOTTOM)), (900, 100), (900, 490), (100, 100)) == [
        900,
        100,
    ]


def test_an_ignored_area_counts_nobody_even_within_a_region_of_interest() -> None:
    both = camera(region_of_interest=(LEFT_HALF,), ignore=(BOTTOM,))
    assert objects_seen(both, (100, 100), (100, 490), (900, 100)) == [100]


def test_the_foot_decides_not_the_roof() -> None:
    # the upper part of this lorry is in the ignored area, its wheels are on the road
    lorry = [Detection("truck", 0.9, (400, 50, 500, 300))]
    top: Polygon = ((0, 0), (1, 0), (1, 0.5), (0, 0.5))
    assert len(scene_of(lorry, 1000, 500, DetectionSettings(), camera=camera(ignore=(top,))).objects) == 1


def test_whoever_the_lower_edge_cuts_off_stands_in_the_region_that_reaches_it() -> None:
    assert objects_seen(camera(region_of_interest=(BOTTOM,)), (900, 500), (900, 300)) == [900]
    assert objects_seen(camera(ignore=(BOTTOM,)), (900, 500), (900, 300)) == [900]
    assert objects_seen(camera(ignore=(BOTTOM,)), (900, 500)) == []


@given(
    st.lists(st.tuples(*[st.floats(-50, 1050)] * 2, *[st.floats(-50, 550)] * 2), min_size=1, max_size=20),
)
def test_the_whole_picture_keeps_every_box_that_was_cut_at_its_edge(
    sides: list[tuple[float, float, float, float]],
) -> None:
    x, y = np.array(sides)[:, :2].clip(0, 1000), np.array(sides)[:, 2:].clip(0, 500)
    boxes = np.stack([x.min(axis=1), y.min(axis=1), x.max(axis=1), y.max(axis=1)], axis=1)
    assert counted(boxes, 1000, 500, [WHOLE], []).all()
    assert not counted(boxes, 1000, 500, [], [WHOLE]).any()


def test_a_group_holds_nobody_from_outside() -> None:
    pair = [Detection("car", 0.9, (440, 100, 490, 150)), Detection("person", 0.9, (510, 100, 530, 150))]
    settings = DetectionSettings(group_distance=500)
    assert len(scene_of(pair, 1000, 500, settings).groups) == 1
    assert scene_of(pair, 1000, 500, settings, camera=camera(region_of_interest=(LEFT_HALF,))).groups == ()


def test_a_camera_may_have_a_group_distance_of_its_own() -> None:
    pair = [Detection("car", 0.9, (100, 100, 150, 150)), Detection("person", 0.9, (300, 100, 330, 150))]
    assert scene_of(pair, 1920, 1080, DetectionSettings()).groups == ()
    assert len(scene_of(pair, 1920, 1080, DetectionSettings(), camera=camera(group_distance=300.0)).groups) == 1


shares = st.floats(0.001, 0.999)


@given(
    st.lists(st.tuples(shares, shares), min_size=3, max_size=9),
    st.lists(st.tuples(shares, shares), min_size=1, max_size=20),
)
def test_any_polygon_holds_what_opencv_says(
    corners: list[tuple[float, float]], points: list[tuple[float, float]]
) -> None:
    outline = np.array(corners, dtype=np.float32)
    inside = within(np.array(points), [tuple(corners)])
    for point, said in zip(points, inside.tolist(), strict=True):
        distance = cv2.pointPolygonTest(outline, point, True)
        if abs(distance) > 1e-4:  # on the edge either is right
            assert said == (distance > 0)


def test_a_concave_polygon_has_a_hole() -> None:
    assert within(np.array([[0.5, 0.6], [0.1, 0.6], [0.5, 0.1]]), [HORSESHOE]).tolist() == [False, True, True]


@pytest.mark.parametrize("polygon", [((0, 0), (1, 1)), ((0, 0), (1.2, 0), (1, 1)), ((-0.1, 0), (1, 0), (1, 1))])
def test_polygons_outside_the_picture_or_without_area_are_refused(polygon: object) -> None:
    with pytest.raises(ValidationError, match="region_of_interest"):
        CameraSpec(id="a", source=SecretStr("0"), region_of_interest=(polygon,))
