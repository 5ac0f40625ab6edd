from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.detection.agreement import f1_of, iou
from dangerous_driving.detection.engine import Detection

CAR = Detection("car", 0.9, (0.0, 0.0, 10.0, 10.0))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 0.0, 10.0, 10.0), 1.0),
        ((5.0, 0.0, 15.0, 10.0), 1 / 3),
        ((10.0, 0.0, 20.0, 10.0), 0.0),
        ((2.0, 2.0, 7.0, 7.0), 0.25),
    ],
)
def test_intersection_over_union(box: tuple[float, float, float, float], expected: float) -> None:
    assert iou(CAR.bbox, box) == pytest.approx(expected)
    assert iou(box, CAR.bbox) == pytest.approx(expected)


def test_a_detection_hits_once_and_only_its_own_class_and_place() -> None:
    person = Detection("person", 0.9, CAR.bbox)
    aside = Detection("car", 0.9, (6.0, 0.0, 16.0, 10.0))
    assert f1_of([[CAR]], [[CAR]]) == 1.0
    assert f1_of([[CAR, CAR]], [[CAR]]) == pytest.approx(2 / 3)
    assert f1_of([[person]], [[CAR]]) == 0.0
    assert f1_of([[aside]], [[CAR]]) == 0.0
    assert f1_of([[aside]], [[CAR]], least=0.2) == 1.0
    assert f1_of([[CAR], []], [[], [CAR]]) == 0.0  # picture by picture
    assert f1_of([[]], [[]]) == 1.0


BOXES = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 10), st.integers(1, 10)).map(
    lambda box: Detection("car", 0.5, (box[0], box[1], box[0] + box[2], box[1] + box[3]))
)


@given(st.lists(BOXES, max_size=6))
def test_everything_agrees_with_itself(found: list[Detection]) -> None:
    assert f1_of([found], [found]) == 1.0
