from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.camera.frame import Frame
from dangerous_driving.contracts import DetectionMetadata, DetectionResult, message_id_of
from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.scene import GroupPicture, detection_result, scene_of
from dangerous_driving.settings import DetectionSettings

SETTINGS = DetectionSettings()
FRAME = Frame("7", np.zeros((1080, 1920, 3), np.uint8), datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=UTC), 1)


def car(x: float, y: float = 500.0, confidence: float = 0.9) -> Detection:
    return Detection("car", confidence, (x - 60, y - 40, x + 60, y + 40))


def person(x: float, y: float = 500.0) -> Detection:
    return Detection("person", 0.8, (x - 20, y - 50, x + 20, y + 50))


def test_a_group_has_its_objects_union_box_and_classes() -> None:
    scene = scene_of([car(100), person(190.04), car(1500)], 1920, 1080, SETTINGS)
    (group,) = scene.groups
    assert (group.object_count, group.classes) == (2, ("car", "person"))
    assert group.bbox == (40, 450, 210, 550)
    assert [(each.object_id, each.class_name) for each in scene.objects] == [(1, "car"), (2, "person"), (3, "car")]


def test_a_vehicle_detected_as_two_kinds_is_one_object_and_no_group() -> None:
    van = [Detection("truck", 0.7, (100, 100, 300, 200)), Detection("car", 0.5, (102, 101, 301, 202))]
    scene = scene_of(van, 1920, 1080, SETTINGS)
    assert [(each.object_id, each.class_name) for each in scene.objects] == [(1, "truck")]
    assert scene.groups == ()


def test_a_vehicle_found_whole_and_in_part_is_one_object() -> None:
    halved = [Detection("car", 0.8, (100, 100, 300, 200)), Detection("car", 0.5, (150, 110, 310, 200))]
    assert [thing.confidence for thing in scene_of(halved, 1920, 1080, SETTINGS).objects] == [0.8]
    far_one_before_a_lorry = [
        Detection("truck", 0.8, (100, 100, 300, 300)),
        Detection("car", 0.6, (120, 110, 180, 150)),
    ]
    assert len(scene_of(far_one_before_a_lorry, 1920, 1080, SETTINGS).objects) == 2
    side_by_side = [Detection("car", 0.8, (100, 100, 300, 200)), Detection("car", 0.6, (200, 90, 400, 200))]
    assert len(scene_of(side_by_side, 1920, 1080, SETTINGS).objects) == 2


def test_a_person_in_front_of_a_vehicle_and_overlapping_vehicles_stay_two_objects() -> None:
    hidden = [Detection("person", 0.7, (100, 100, 300, 200)), Detection("car", 0.5, (102, 101, 301, 202))]
    queue = [Detection("car", 0.7, (100, 100, 300, 200)), Detection("truck", 0.5, (160, 100, 360, 200))]
    assert [len(scene_of(each, 1920, 1080, SETTINGS).objects) for each in (hidden, queue)] == [2, 2]


def test_the_riskiest_group_comes_first_then_from_top_left() -> None:
    calm_below, calm_above = [car(100, 900), car(190, 900)], [car(100, 100), car(190, 100)]
    risky = [car(1500, 950), person(1560, 950)]
    scene = scene_of([*calm_below, *calm_above, *risky], 1920, 1080, SETTINGS)
    assert [group.classes for group in scene.groups] == [("car", "person"), ("car",), ("car",)]
    assert [group.bbox[1] for group in scene.groups] == [900, 60, 860]
    assert scene.groups[0].priority > scene.groups[1].priority == scene.groups[2].priority


def test_the_distance_follows_the_setting_and_the_frame() -> None:
    apart = [car(100), car(240)]
    assert len(scene_of(apart, 1920, 1080, SETTINGS).groups) == 1
    assert len(scene_of(apart, 1280, 1080, SETTINGS).groups) == 0
    assert len(scene_of(apart, 1280, 1080, DetectionSettings(group_distance=300)).groups) == 1


def test_the_frame_before_raises_what_has_come_closer() -> None:
    before = scene_of([car(100), person(240)], 1920, 1080, SETTINGS)
    alone = scene_of([car(100), person(150)], 1920, 1080, SETTINGS)
    after = scene_of([car(100), person(150)], 1920, 1080, SETTINGS, previous=before.road_users)
    assert after.groups[0].priority > alone.groups[0].priority


def test_the_message_holds_what_was_found_and_reads_back_the_same() -> None:
    scene = scene_of([car(100), person(190)], 1920, 1080, SETTINGS)
    metadata = DetectionMetadata(detection_latency=0.25, yolo_model="yolov8n", processing_node="node-01")
    result = detection_result(
        FRAME, scene, frame_url="s3://traffic/f.jpg", pictures=[GroupPicture("s3://traffic/g.jpg")], metadata=metadata
    )
    assert result.message_id == message_id_of("7", FRAME.captured_at)
    assert (result.camera_id, result.timestamp) == ("7", FRAME.captured_at)
    assert (result.image_width, result.image_height) == (1920, 1080)
    assert result.raw_frame_url == "s3://traffic/f.jpg"
    assert result.metadata == metadata
    (group,) = result.traffic_groups
    assert (group.group_index, group.group_image_url, group.group_image_base64) == (1, "s3://traffic/g.jpg", None)
    assert DetectionResult.from_json(result.to_json()) == result


boxes = st.tuples(st.floats(0, 1900), st.floats(0, 1000), st.floats(0.5, 400), st.floats(0.5, 400))
detections = st.lists(
    st.builds(
        lambda name, confidence, box: Detection(name, confidence, (box[0], box[1], box[0] + box[2], box[1] + box[3])),
        st.sampled_from(("car", "person", "truck", "bicycle")),
        st.floats(0, 1),
        boxes,
    ),
    max_size=20,
)


@given(detections)
def test_any_scene_makes_a_valid_message_and_equal_input_an_equal_one(found: list[Detection]) -> None:
    def message() -> DetectionResult:
        scene = scene_of(found, 1920, 1080, SETTINGS)
        pictures = [GroupPicture(f"g{index}") for index, _ in enumerate(scene.groups)]
        return detection_result(FRAME, scene, frame_url="f", pictures=pictures, metadata=DetectionMetadata())

    result = message()
    assert DetectionResult.from_json(result.to_json()) == result == message()
    assert [group.group_index for group in result.traffic_groups] == list(range(1, len(result.traffic_groups) + 1))
    priorities = [group.priority for group in result.traffic_groups]
    assert priorities == sorted(priorities, reverse=True)
    assert sum(group.object_count for group in result.traffic_groups) <= len(found)
