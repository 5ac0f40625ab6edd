"""What a verdict says of the level, and verdicts whose picture is gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dangerous_driving.alerts.inputs import Sighting, VerdictGiven
from dangerous_driving.alerts.lifecycle import Lifecycle
from dangerous_driving.contracts import AlertBasis, RiskLevel, Verdict
from dangerous_driving.evaluation.cases import Label, truth_of
from dangerous_driving.evaluation.collection import collect_verdicts, verdict_label
from dangerous_driving.ledger.alerts import advance, judge
from dangerous_driving.ledger.evaluation_cases import VerdictRow, list_cases
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.settings import AlertsSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

from .conftest import Bench, picture

AT = datetime(2025, 10, 20, 10, tzinfo=UTC)
NONE, LOW, MEDIUM, HIGH = RiskLevel


def said(verdict: Verdict, *, level: RiskLevel = HIGH, by: str = "ann", after: int = 0) -> VerdictRow:
    at = AT + timedelta(minutes=after)
    return VerdictRow(1, "alert-1", at, verdict, by, "a note", level, ("wrong_way",), None)


def label(verdict: VerdictRow, before: list[Label] | None = None) -> Label:
    return verdict_label(verdict, before or [], open_level=MEDIUM)


def test_a_rejection_says_that_it_lies_below_the_level_of_alerts() -> None:
    found = label(said(Verdict.REJECTED))
    assert (found.lowest, found.highest, found.risk_types, found.note) == (NONE, LOW, None, "a note")
    strict = verdict_label(said(Verdict.REJECTED), [], open_level=HIGH)
    assert strict.highest is MEDIUM


def test_a_confirmation_says_the_level_and_types_that_the_alert_showed() -> None:
    found = label(said(Verdict.ACKNOWLEDGED))
    assert (found.lowest, found.highest, found.risk_types) == (HIGH, HIGH, ("wrong_way",))


def test_a_second_confirmation_of_an_alert_that_was_raised_in_between_is_no_contradiction() -> None:
    first = label(said(Verdict.ACKNOWLEDGED, level=MEDIUM))
    second = label(said(Verdict.ACKNOWLEDGED, level=HIGH, by="bob", after=1), [first])
    truth = truth_of([first, second])
    assert truth is not None
    assert (truth.lowest, truth.highest) == (MEDIUM, MEDIUM)


def test_a_confirmation_and_a_rejection_contradict_each_other() -> None:
    assert truth_of([label(said(Verdict.ACKNOWLEDGED)), label(said(Verdict.REJECTED, by="bob", after=1))]) is None


@pytest.mark.parametrize("there", [True, False])
def test_a_verdict_whose_picture_is_gone_is_told_and_tried_again(bench: Bench, there: bool) -> None:
    result = detection_result("north-1", datetime.now(UTC), groups=1)
    url = bench.store.url("groups/x.jpg")
    [group] = result.traffic_groups
    result = result.model_copy(update={"traffic_groups": (group.model_copy(update={"group_image_url": url}),)})
    [task] = tasks_from_detection(result)
    record_detections(bench.engine, Partitions(), [result], [task], window_length=3600)
    lifecycle = Lifecycle(AlertsSettings())
    sighting = Sighting(
        kind=AlertBasis.FINAL, at=result.timestamp, camera_id="north-1", task_id=task.task_id, request_id=task.request_id,
        captured_at=result.timestamp, level=HIGH, bbox=group.bbox, risk_types=("collision",), group_image_url=url,
    )  # fmt: skip
    [change] = advance(bench.engine, lifecycle, [sighting])
    alert_id = change.after.alert.alert_id
    given = VerdictGiven(at=datetime.now(UTC), alert_id=alert_id, verdict=Verdict.REJECTED, by="ann")
    judge(bench.engine, lifecycle, given)
    if there:
        bench.store.put("groups/x.jpg", picture(), "image/jpeg")
    found = collect_verdicts(bench.engine, bench.store, open_level=MEDIUM)
    assert (found.cases, found.without_picture) == ((1, ()) if there else (0, (alert_id,)))
    bench.store.put("groups/x.jpg", picture(), "image/jpeg")
    again = collect_verdicts(bench.engine, bench.store, open_level=MEDIUM)
    assert again.cases == (0 if there else 1)
    assert len(list_cases(bench.engine)) == 1
