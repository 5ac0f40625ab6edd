"""Messages are exactly those of the contract, and what is wrong is named."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.contracts import (
    AssessmentTask,
    DetectedObject,
    DetectionResult,
    Message,
    RiskAssessmentResult,
    Stage,
    message_id_of,
    result_id_of,
    task_id_of,
)
from dangerous_driving.errors import ContractError
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

EXAMPLES: dict[str, type[Message]] = {
    "detection-result": DetectionResult,
    "assessment-task": AssessmentTask,
    "risk-assessment-result": RiskAssessmentResult,
    "risk-assessment-provisional": RiskAssessmentResult,
    "risk-assessment-error": RiskAssessmentResult,
}


def raw(**changes: object) -> str:
    content = json.loads(detection_result("sim-1", datetime(2026, 1, 1, tzinfo=UTC)).to_json())
    for path, value in changes.items():
        target = content
        *parents, last = path.split("__")
        for parent in parents:
            target = target[int(parent)] if parent.isdecimal() else target[parent]
        if value is ...:
            del target[last]
        else:
            target[int(last) if last.isdecimal() else last] = value
    return json.dumps(content)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_contract_survive_reading_and_writing(name: str, shared: Path) -> None:
    example = (shared / "contracts" / f"{name}.json").read_text()
    written = json.loads(EXAMPLES[name].from_json(example).to_json())
    wanted = json.loads(example)
    assert {key: value for key, value in written.items() if key in wanted} == wanted
    assert {key for key in written if key not in wanted} <= {"error", "stage", "taskId", "capturedAt"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messageId": ...}, "messageId"),
        ({"timestamp": None}, "timestamp"),
        ({"timestamp": "2026-01-01T00:00:00"}, "timestamp"),
        ({"imageWidth": 0}, "imageWidth"),
        ({"imageWidth": 3_000_000_000}, "imageWidth"),
        ({"timestamp": "9999-12-31T23:59:59-12:00"}, "timestamp"),
        ({"timestamp": "1970-01-01T00:00:00Z"}, "timestamp"),
        ({"detectedObjects__1__bbox": [1, 2, 3]}, "detectedObjects[1].bbox"),
        ({"detectedObjects__0__bbox": [5, 5, 1, 9]}, "detectedObjects[0].bbox"),
        ({"detectedObjects__0__confidence": 1.5}, "detectedObjects[0].confidence"),
        ({"trafficGroups__0__groupIndex": "one"}, "trafficGroups[0].groupIndex"),
        ({"trafficGroups__0__groupImageBase64": "data:image/jpeg;base64,AAAA"}, "trafficGroups[0].groupImageBase64"),
        ({"cameraId": "../etc"}, "cameraId"),
        ({"cameraId": True}, "cameraId"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(ContractError) as caught:
        DetectionResult.from_json(raw(**change))
    assert caught.value.field.startswith(field)
    assert caught.value.problem


@pytest.mark.parametrize("text", ["", "no json", "[]", "null", '{"messageId": NaN}', "\x00"])
def test_what_is_no_message_at_all_is_a_contract_error(text: str) -> None:
    with pytest.raises(ContractError):
        DetectionResult.from_json(text)


def test_a_nan_in_a_box_is_refused() -> None:
    with pytest.raises(ContractError):
        DetectionResult.from_json(raw(detectedObjects__0__bbox=[float("nan"), 0, 1, 1]))


def test_a_nul_character_is_refused_and_an_escaped_backslash_is_not() -> None:
    with pytest.raises(ContractError, match="NUL"):
        DetectionResult.from_json(raw(rawFrameUrl="a\x00b"))
    assert DetectionResult.from_json(raw(rawFrameUrl="a\\u0000b")).raw_frame_url == "a\\u0000b"


def test_unknown_fields_are_left_out_without_an_error() -> None:
    assert b"weather" not in DetectionResult.from_json(raw(weather="rain")).to_json()


@pytest.mark.parametrize(
    ("given_id", "kept", "written"), [(7, "7", 7), ("7", "7", 7), ("007", "007", "007"), ("a-b_C", "a-b_C", "a-b_C")]
)
def test_a_camera_id_is_text_and_digits_are_written_as_an_integer(given_id: object, kept: str, written: object) -> None:
    message = DetectionResult.from_json(raw(cameraId=given_id))
    assert message.camera_id == kept
    assert json.loads(message.to_json())["cameraId"] == written


@given(st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2099, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_times_survive_a_round_trip_in_milliseconds(at: datetime) -> None:
    message = detection_result("sim-1", at, groups=1)
    again = DetectionResult.from_json(message.to_json())
    assert again == message
    assert again.timestamp.microsecond % 1000 == 0
    assert again.message_id == message_id_of("sim-1", again.timestamp)


def test_ids_derive_from_their_input_alone() -> None:
    at = datetime(2026, 1, 1, 12, tzinfo=UTC)
    frame = message_id_of("sim-1", at)
    assert frame == message_id_of("sim-1", at)
    assert frame != message_id_of("sim-2", at)
    task = task_id_of(frame, 2)
    assert task == f"{frame}_group2"
    assert result_id_of(task, "live", Stage.FINAL) != result_id_of(task, "live", Stage.PROVISIONAL)


def test_a_task_is_read_back_as_it_was_derived() -> None:
    for task in tasks_from_detection(detection_result(groups=3)):
        assert AssessmentTask.from_json(task.to_json()) == task


def test_a_track_is_in_the_message_only_where_a_tracker_ran() -> None:
    plain = DetectedObject(object_id=1, class_name="car", confidence=0.5, bbox=(0, 0, 1, 1))
    assert "trackId" not in json.loads(plain.to_json())
    tracked = plain.model_copy(update={"track_id": 7})
    assert json.loads(tracked.to_json())["trackId"] == 7
    assert DetectedObject.model_validate_json(tracked.to_json()) == tracked
