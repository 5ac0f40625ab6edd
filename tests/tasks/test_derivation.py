"""Which tasks follow from a frame."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.contracts import DetectedObject, DetectionResult, TrafficGroup
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

AT = datetime(2026, 1, 1, tzinfo=UTC)


@given(groups=st.integers(0, 20), size=st.integers(1, 4), seed=st.integers(0, 1000))
def test_every_group_of_two_or_more_makes_exactly_one_task(groups: int, size: int, seed: int) -> None:
    result = detection_result("sim-1", AT, groups=groups, objects_per_group=size, seed=seed)
    tasks = tasks_from_detection(result)
    assert [task.group_index for task in tasks] == ([*range(1, groups + 1)] if size >= 2 else [])
    assert len({task.task_id for task in tasks}) == len(tasks)
    for task in tasks:
        group = result.traffic_groups[task.group_index - 1]
        assert task.task_id == f"{result.message_id}_group{group.group_index}"
        assert (task.request_id, task.timestamp, task.priority) == (result.message_id, AT, group.priority)
        assert task.group_metadata.object_count == group.object_count


def test_a_task_carries_the_objects_whose_centre_lies_in_the_group_s_box() -> None:
    def item(number: int, x: float) -> DetectedObject:
        return DetectedObject(object_id=number, class_name="car", confidence=0.9, bbox=(x, 0, x + 20, 20))

    result = DetectionResult(
        message_id="m",
        camera_id="sim-1",
        timestamp=AT,
        image_width=640,
        image_height=360,
        # centres at 10, 100 (on the border) and 101
        detected_objects=(item(1, 0), item(2, 90), item(3, 91)),
        traffic_groups=(TrafficGroup(group_index=1, object_count=2, bbox=(0, 0, 100, 30), classes=("car",)),),
    )
    [task] = tasks_from_detection(result)
    assert [found.object_id for found in task.detected_objects] == [1, 2]
