"""What is wrong with a detection result, field by field; the fuzz proof sends such through real brokers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dangerous_driving.contracts import AssessmentTask, DetectionResult
from dangerous_driving.errors import ContractError
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_message

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def fields() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(detection_result("sim-1", NOW).to_json())
    return found


def tasks_of(message: Any, key: bytes | None = b"sim-1") -> list[tuple[bytes, bytes]]:
    value = message if isinstance(message, bytes) else json.dumps(message).encode()
    return tasks_from_message(value, key, NOW)


@pytest.mark.parametrize(
    "value", [b"", b"\xff\xfe\x00", b"no json", b"[]", b"null", b"7", b'{"a": 1', b'"text"'], ids=repr
)
def test_bytes_that_are_no_detection_result(value: bytes) -> None:
    with pytest.raises(ContractError, match="DetectionResult"):
        tasks_of(value)


@pytest.mark.parametrize(
    "name", ["messageId", "cameraId", "timestamp", "imageWidth", "imageHeight", "detectedObjects", "trafficGroups"]
)
@pytest.mark.parametrize("value", ["missing", None, {"another": "shape"}], ids=repr)
def test_a_field_that_is_missing_null_or_of_another_shape_is_named(name: str, value: Any) -> None:
    message = fields()
    if value == "missing":
        del message[name]
    else:
        message[name] = value
    with pytest.raises(ContractError) as caught:
        tasks_of(message)
    assert caught.value.field.startswith(name)


def _box(part: str, box: list[Any]) -> Callable[[dict[str, Any]], None]:
    def damage(message: dict[str, Any]) -> None:
        message[part][1]["bbox"] = box

    return damage


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def damage(message: dict[str, Any]) -> None:
        message[name] = value

    return damage


def _groups(count: int) -> Callable[[dict[str, Any]], None]:
    def damage(message: dict[str, Any]) -> None:
        group = message["trafficGroups"][0]
        message["trafficGroups"] = [group | {"groupIndex": number + 1} for number in range(count)]

    return damage


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        (_box("detectedObjects", [0, 0, float("nan"), 9]), "detectedObjects[1].bbox"),
        (_box("trafficGroups", [0, 0, float("inf"), 9]), "trafficGroups[1].bbox"),
        (_box("detectedObjects", [9, 0, 3, 9]), "detectedObjects[1].bbox"),
        (_box("trafficGroups", [-90, -90, -10, -10]), "trafficGroups[1].bbox"),
        (_box("detectedObjects", [5000, 0, 6000, 9]), "detectedObjects[1].bbox"),
        (_groups(10_000), "trafficGroups"),
        (_set("schemaVersion", 0), "schemaVersion"),
        (_set("schemaVersion", 2), "schemaVersion"),
        (_set("timestamp", "2027-06-01T00:00:00Z"), "timestamp"),
        (_set("timestamp", "1999-06-01T00:00:00Z"), "timestamp"),
        (_set("timestamp", 1760956245), "timestamp"),
        (_set("timestamp", "1760956245"), "timestamp"),
        (_set("imageWidth", "1920"), "imageWidth"),
        (_set("imageWidth", True), "imageWidth"),
        (_box("detectedObjects", ["1", "2", "3", "4"]), "detectedObjects[1].bbox"),
    ],
    ids=[
        "nan",
        "infinite",
        "negative",
        "left-of",
        "outside",
        "many",
        "old-version",
        "new-version",
        "year-ahead",
        "last-century",
        "seconds",
        "seconds-as-text",
        "text-for-a-number",
        "true-for-a-number",
        "texts-in-a-box",
    ],
)
def test_a_wrong_value_is_named(damage: Callable[[dict[str, Any]], None], field: str) -> None:
    message = fields()
    damage(message)
    with pytest.raises(ContractError) as caught:
        tasks_of(message)
    assert caught.value.field.startswith(field)


def test_a_key_of_another_camera_is_named_and_no_key_is_accepted() -> None:
    with pytest.raises(ContractError, match="another") as caught:
        tasks_of(fields(), b"another")
    assert caught.value.field == "cameraId"
    assert len(tasks_of(fields(), None)) == 2


def test_boxes_that_reach_beyond_the_picture_are_cut_at_its_borders() -> None:
    message = fields()
    message["detectedObjects"][0]["bbox"] = [-20, -10, 100, 90]
    message["trafficGroups"][0]["bbox"] = [-20, -10, 5000, 4000]
    result = DetectionResult.from_json(json.dumps(message).encode())
    assert result.detected_objects[0].bbox == (0, 0, 100, 90)
    assert result.traffic_groups[0].bbox == (0, 0, 1920, 1080)
    [(_, first), _] = tasks_of(message)
    assert AssessmentTask.from_json(first).group_metadata.bbox == (0, 0, 1920, 1080)


def test_a_year_old_frame_is_accepted() -> None:
    message = fields() | {"timestamp": (NOW - timedelta(days=365)).isoformat()}
    assert len(tasks_of(message)) == 2
