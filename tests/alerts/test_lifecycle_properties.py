"""What holds for every sequence of inputs, in every order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from dangerous_driving.alerts.inputs import AnyInput, Sighting, Tick, VerdictGiven
from dangerous_driving.alerts.lifecycle import AlertChange, CameraState, Lifecycle
from dangerous_driving.alerts.place import distance, reach
from dangerous_driving.contracts import AlertBasis, AlertState, BBox, RiskLevel, Verdict, alert_id_of
from dangerous_driving.settings import AlertsSettings
from tests.alerts.conftest import NOON, sighting

EDGES = {
    (None, AlertState.PROVISIONAL),
    (None, AlertState.OPEN),
    (AlertState.PROVISIONAL, AlertState.OPEN),
    (AlertState.PROVISIONAL, AlertState.WITHDRAWN),
    (AlertState.OPEN, AlertState.CLOSED),
}

AnInput = Sighting | Tick | VerdictGiven
#: A busy machine is no failure.
steady = settings(deadline=None)

TYPES = ("tailgating", "speeding", "pedestrian_conflict")


@st.composite
def arrivals(draw: st.DrawFn) -> list[AnInput]:
    """Up to twelve groups in up to nine frames with geometry, stream and answer, each late by its own; ticks; verdicts."""
    inputs: list[AnInput] = []
    looks = st.tuples(st.integers(0, 8), st.integers(1, 2))
    for frame, group in draw(st.lists(looks, min_size=1, max_size=12, unique=True)):
        x = draw(st.sampled_from((0, 150, 400, 2000)))
        for kind in draw(st.lists(st.sampled_from(list(AlertBasis)), unique=True)):
            level = draw(st.sampled_from(list(RiskLevel)))
            delay = draw(st.sampled_from((0.5, 1.5, 4, 15, 50, 90)))
            types = draw(st.lists(st.sampled_from(TYPES), max_size=2)) if kind is AlertBasis.FINAL else ()
            inputs.append(sighting(kind, frame, level, x, delay, types, group))
    inputs += [
        Tick(at=NOON + timedelta(seconds=seconds)) for seconds in draw(st.lists(st.integers(0, 120), max_size=6))
    ]
    for seconds in draw(st.lists(st.integers(1, 60), max_size=2, unique=True)):
        frame, group = draw(looks)
        inputs.append(
            VerdictGiven(
                at=NOON + timedelta(seconds=seconds),
                alert_id=alert_id_of(f"frame{frame}_group{group}"),
                verdict=draw(st.sampled_from(list(Verdict))),
                by="Ada",
            )
        )
    return sorted(inputs, key=lambda given: given.at) if draw(st.booleans()) else list(draw(st.permutations(inputs)))


def run(inputs: Sequence[AnInput]) -> tuple[CameraState, list[AlertChange]]:
    return Lifecycle(AlertsSettings()).replay(CameraState("crossing"), inputs)


def kept(changes: Sequence[AlertChange]) -> list[AnInput]:
    """The inputs as the ledger keeps them: of each one that changed something, its JSON."""
    return [
        AnyInput.validate_json(next(group).input.to_json())
        for _, group in groupby(changes, key=lambda change: change.input.input_id)
    ]


@steady
@given(arrivals())
def test_replaying_the_kept_inputs_makes_the_same_alerts(inputs: list[AnInput]) -> None:
    state, changes = run(inputs)
    again, changes_again = run(kept(changes))
    assert again.alerts == state.alerts
    assert [(change.before, change.after) for change in changes_again] == [
        (change.before, change.after) for change in changes
    ]


@steady
@given(arrivals(), st.data())
def test_inputs_that_come_again_change_nothing(inputs: list[AnInput], data: st.DataObject) -> None:
    state, changes = run(inputs)
    applied = [change.input for change in changes]
    if applied:
        again = data.draw(st.lists(st.sampled_from(applied)))
        after, more = Lifecycle(AlertsSettings()).replay(state, again)
        assert more == []
        assert after == state


@steady
@given(arrivals())
def test_versions_count_without_gaps_and_states_move_along_the_edges(inputs: list[AnInput]) -> None:
    state, changes = run(inputs)
    versions: dict[str, int] = {}
    for change in changes:
        alert = change.after.alert
        assert alert.version == versions.get(alert.alert_id, 0) + 1
        versions[alert.alert_id] = alert.version
        before = change.before.state if change.before else None
        assert before is alert.state or (before, alert.state) in EDGES
    assert versions == {tracked.alert.alert_id: tracked.alert.version for tracked in state.alerts}


@steady
@given(arrivals())
def test_an_alert_is_consistent_after_every_change(inputs: list[AnInput]) -> None:
    rung: set[str] = set()
    for change in run(inputs)[1]:
        alert = change.after.alert
        assert alert.peak_level.rank >= alert.risk_level.rank >= RiskLevel.MEDIUM.rank
        assert alert.opened_at <= alert.last_seen_at
        assert (alert.closed_at is not None) == (alert.state is AlertState.CLOSED)
        if change.before:
            assert alert.last_seen_at >= change.before.last_seen_at
            assert alert.opened_at <= change.before.opened_at
            assert alert.updated_at >= change.before.updated_at
        if alert.notify:
            assert alert.alert_id not in rung
            assert alert.peak_level is RiskLevel.HIGH
            rung.add(alert.alert_id)


@steady
@given(arrivals())
def test_every_dangerous_answer_belongs_to_an_alert(inputs: list[AnInput]) -> None:
    _, changes = run(inputs)
    kept_answers = {change.input.input_id for change in changes}
    for item in inputs:
        if isinstance(item, Sighting) and item.kind is AlertBasis.FINAL and item.level.rank >= RiskLevel.MEDIUM.rank:
            assert item.input_id in kept_answers


@settings(steady, max_examples=50)
@given(
    st.lists(st.floats(0.5, 3), min_size=6, max_size=6),
    st.integers(-180, 180),
    st.integers(1, 4),
)
def test_one_danger_is_one_alert_however_late_its_answers_come(delays: list[float], step: int, missed: int) -> None:
    """Up to 0.6 diagonals a frame, one frame missed, answers up to 3 s late, so that later frames may be answered first."""
    looks = [
        sighting(AlertBasis.FINAL, frame, RiskLevel.HIGH, 2000 + frame * step, delay, ("tailgating",))
        for frame, delay in enumerate(delays)
        if frame != missed
    ]
    state, changes = run(sorted(looks, key=lambda look: look.at))
    assert len(state.alerts) == 1
    assert sum(change.after.alert.notify for change in changes) == 1


boxes = st.tuples(st.floats(0, 1920), st.floats(0, 1080), st.floats(1, 500), st.floats(1, 500)).map(
    lambda sides: (sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3])
)


@steady
@given(boxes, boxes, st.floats(0.1, 10))
def test_distance_is_symmetric_and_does_not_depend_on_the_picture_s_resolution(
    first: BBox, second: BBox, scale: float
) -> None:
    def scaled(box: BBox) -> BBox:
        return box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale

    assert distance(first, first) == 0
    assert distance(first, second) == distance(second, first)
    assert abs(distance(scaled(first), scaled(second)) - distance(first, second)) < 1e-6


@steady
@given(st.floats(0, 100), st.floats(0, 100))
def test_a_scene_may_have_moved_farther_in_more_time(less: float, more: float) -> None:
    less, more = sorted((less, more))
    assert reach(less) <= reach(more) <= 2.0
    assert reach(-less) == reach(less)
