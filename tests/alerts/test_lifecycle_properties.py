"""What holds for every sequence of inputs, in every order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import time, timedelta
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from dangerous_driving.alerts.inputs import AnyInput, Sighting, Tick, VerdictGiven
from dangerous_driving.alerts.lifecycle import AlertChange, CameraState, Lifecycle
from dangerous_driving.alerts.place import distance, reach
from dangerous_driving.alerts.quiet import QuietRules
from dangerous_driving.contracts import AlertBasis, AlertState, BBox, RiskLevel, Verdict, alert_id_of
from dangerous_driving.settings import AlertsSettings
from dangerous_driving.settings.alerts import QuietHours
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


def run(
    inputs: Sequence[AnInput], settings: AlertsSettings | None = None, start: CameraState | None = None
) -> tuple[CameraState, list[AlertChange]]:
    return Lifecycle(settings or AlertsSettings()).replay(start or CameraState("crossing"), inputs)


#: What rings, when, and when it is held.
ringing = st.builds(
    AlertsSettings,
    cooldown=st.sampled_from((0.0, 10.0, 30.0)),
    escalate_after=st.sampled_from((None, 5.0, 40.0)),
    escalations=st.integers(1, 3),
    notify_level=st.sampled_from((RiskLevel.MEDIUM, RiskLevel.HIGH)),
)
cameras = st.builds(
    CameraState,
    st.just("crossing"),
    frame_interval=st.sampled_from((0.5, 1.8, 10.0)),
    simulated=st.booleans(),
    quiet=st.builds(
        QuietRules,
        st.lists(st.sampled_from((QuietHours(begin=time(11), end=time(12, 1)),)), max_size=1).map(tuple),
        snoozed_until=st.none() | st.integers(0, 120).map(lambda seconds: NOON + timedelta(seconds=seconds)),
    ),
)


def kept(changes: Sequence[AlertChange]) -> list[AnInput]:
    """The inputs as the ledger keeps them: of each one that changed something, its JSON."""
    return [
        AnyInput.validate_json(next(group).input.to_json())
        for _, group in groupby(changes, key=lambda change: change.input.input_id)
    ]


@steady
@given(arrivals(), ringing, cameras, cameras)
def test_replaying_the_kept_inputs_makes_the_same_alerts(
    inputs: list[AnInput], settings: AlertsSettings, then: CameraState, now: CameraState
) -> None:
    """Also when the camera is another one by now: other interval, other quiet hours."""
    state, changes = run(inputs, settings, then)
    again, changes_again = run(kept(changes), settings, now)
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


@steady
@given(arrivals(), cameras)
def test_quiet_changes_what_rings_and_nothing_else(inputs: list[AnInput], camera: CameraState) -> None:
    """No alert is lost by it, and whatever would have rung is held instead, for as long as the quiet lasts."""
    loud = replace(camera, quiet=QuietRules())
    quiet_changes, loud_changes = run(inputs, start=camera)[1], run(inputs, start=loud)[1]
    assert len(quiet_changes) == len(loud_changes)
    for held, rung in zip(quiet_changes, loud_changes, strict=True):
        first, second = held.after.alert, rung.after.alert
        momentary = {"notify", "held_reason", "held_until"}
        assert first.model_dump(exclude=momentary) == second.model_dump(exclude=momentary)
        assert second.notify == (first.notify or (second.notify and first.held_until is not None))
        if first.held_until is not None:
            assert first.held_until > held.input.at
            assert not first.notify


@steady
@given(arrivals(), ringing)
def test_nothing_escalates_without_having_rung_nor_after_a_verdict(
    inputs: list[AnInput], settings: AlertsSettings
) -> None:
    told: dict[str, int] = {}
    for change in run(inputs, settings)[1]:
        alert = change.after.alert
        if alert.escalation:
            assert alert.escalation == told[alert.alert_id] <= settings.escalations
            assert alert.verdict is None
            assert alert.state is not AlertState.WITHDRAWN
        if alert.notify:
            told[alert.alert_id] = told.get(alert.alert_id, 0) + 1


@settings(steady, max_examples=50)
@given(st.permutations(range(6)), st.integers(-180, 180), st.sets(st.integers(0, 5), max_size=2))
def test_one_danger_has_at_most_one_open_alert_in_whatever_order_its_answers_come(
    order: list[int], step: int, missed: set[int]
) -> None:
    looks = [
        sighting(AlertBasis.FINAL, frame, RiskLevel.HIGH, 2000 + frame * step, 2.0, ("tailgating",))
        for frame in sorted(order)
        if frame not in missed
    ]
    by_frame = {look.request_id: look for look in looks}
    state, changes = run([by_frame[f"frame{frame}"] for frame in order if frame not in missed])
    # looks further apart than a scene may be were two dangers until the ones between them came
    far = any(
        distance(one.bbox, other.bbox) > reach((other.captured_at - one.captured_at).total_seconds())
        or other.captured_at - one.captured_at > timedelta(seconds=5.4)
        for one in looks
        for other in looks
        if one.captured_at < other.captured_at
    )
    live = [tracked for tracked in state.alerts if tracked.live]
    assert len(live) == 1 or far
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
