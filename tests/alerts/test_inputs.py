"""Messages as inputs of the lifecycle."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dangerous_driving.alerts.inputs import (
    AnyInput,
    TaskDetails,
    Tick,
    VerdictGiven,
    sightings_of_detection,
    sightings_of_result,
)
from dangerous_driving.contracts import (
    AlertBasis,
    AssessmentFailure,
    AssessmentMetadata,
    DetectionResult,
    RiskAssessment,
    RiskAssessmentResult,
    RiskLevel,
    Stage,
    TrafficGroup,
    Verdict,
)

CAPTURED = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = datetime(2026, 3, 1, 12, 0, 2, tzinfo=UTC)
BOX = (10.0, 20.0, 110.0, 220.0)


def result(**changes: object) -> RiskAssessmentResult:
    entry = RiskAssessment(
        group_index=2, risk_level=RiskLevel.HIGH, risk_types=("tailgating",), description="close", group_bbox=BOX
    )
    whole = RiskAssessmentResult(
        message_id="result",
        request_id="frame",
        camera_id="7",
        timestamp=NOW,
        results=(entry,),
        has_dangerous_driving=True,
        max_risk_level=RiskLevel.HIGH,
        task_id="frame_group2",
        captured_at=CAPTURED,
    )
    return whole.model_copy(update=changes)


def frame(*groups: TrafficGroup) -> DetectionResult:
    return DetectionResult(
        message_id="frame",
        camera_id="7",
        timestamp=CAPTURED,
        image_width=1920,
        image_height=1080,
        detected_objects=(),
        traffic_groups=groups,
    )


def group(index: int, priority: float, objects: int = 2) -> TrafficGroup:
    return TrafficGroup(
        group_index=index, object_count=objects, bbox=BOX, classes=("car",), priority=priority, group_image_url="s3://g"
    )


def test_an_answer_is_a_sighting_with_the_picture_of_its_task() -> None:
    details = {"frame_group2": TaskDetails(bbox=BOX, group_image_url="s3://crop")}
    (sighting,) = sightings_of_result(result(), at=NOW, details=details)
    assert sighting.input_id == "frame_group2:final"
    assert (sighting.captured_at, sighting.at) == (CAPTURED, NOW)
    assert (sighting.level, sighting.risk_types, sighting.description) == (RiskLevel.HIGH, ("tailgating",), "close")
    assert sighting.group_image_url == "s3://crop"
    assert sighting.bbox == BOX


def test_a_streamed_level_has_an_input_of_its_own() -> None:
    (sighting,) = sightings_of_result(result(stage=Stage.PROVISIONAL), at=NOW)
    assert (sighting.kind, sighting.input_id) == (AlertBasis.PROVISIONAL, "frame_group2:provisional")


@pytest.mark.parametrize(
    "changes",
    [
        {"error": AssessmentFailure(code="timeout", message="no answer")},
        {"metadata": AssessmentMetadata(run="backfill-2026-03")},
        {"results": ()},
    ],
    ids=["failure", "backfill", "empty"],
)
def test_failures_and_other_runs_never_touch_alerts(changes: dict[str, object]) -> None:
    assert sightings_of_result(result(**changes), at=NOW) == []


def test_a_message_of_the_old_form_is_accepted() -> None:
    entry = RiskAssessment(group_index=2, risk_level=RiskLevel.HIGH)
    old = result(task_id=None, captured_at=None, results=(entry,))
    assert sightings_of_result(old, at=NOW) == []  # nobody knows where it was
    details = {"frame_group2": TaskDetails(bbox=BOX, group_image_url=None)}
    (sighting,) = sightings_of_result(old, at=NOW, details=details)
    assert (sighting.task_id, sighting.captured_at, sighting.bbox) == ("frame_group2", NOW, BOX)


def test_answers_of_the_simulated_llm_say_so() -> None:
    (sighting,) = sightings_of_result(result(metadata=AssessmentMetadata(llm_model="simulated-vl")), at=NOW)
    assert sighting.simulated


def test_geometry_counts_from_its_priority_on_and_never_for_a_lone_object() -> None:
    found = sightings_of_detection(
        frame(group(1, 0.9), group(2, 0.89), group(3, 1.0, objects=1)), at=NOW, priority=0.9, level=RiskLevel.MEDIUM
    )
    assert [(sighting.input_id, sighting.level) for sighting in found] == [("frame_group1:geometry", RiskLevel.MEDIUM)]
    assert found[0].group_image_url == "s3://g"


def test_geometry_can_be_switched_off() -> None:
    assert sightings_of_detection(frame(group(1, 1.0)), at=NOW, priority=None, level=RiskLevel.MEDIUM) == []


def test_inputs_survive_their_json() -> None:
    (sighting,) = sightings_of_result(result(), at=NOW)
    tick = Tick(at=NOW)
    verdict = VerdictGiven(at=NOW, alert_id="a", verdict=Verdict.REJECTED, by="Ada", note="a shadow")
    for given in (sighting, tick, verdict):
        assert AnyInput.validate_json(given.to_json()) == given
