"""The life of alerts: what opens, continues, changes and ends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import time, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from dangerous_driving.alerts.lifecycle import CameraState, Lifecycle
from dangerous_driving.alerts.quiet import QuietRules
from dangerous_driving.contracts import AlertBasis, AlertState, RiskLevel, Verdict, alert_id_of
from dangerous_driving.settings import AlertsSettings
from dangerous_driving.settings.alerts import QuietHours
from tests.alerts.conftest import NOON

if TYPE_CHECKING:
    from tests.alerts.conftest import Scene

NONE, LOW, MEDIUM, HIGH = RiskLevel
#: s after noon, by which every answer of the scenes below has come and silence is believed
LONG_AFTER = 1000.0


# opening


@pytest.mark.parametrize("level", [MEDIUM, HIGH])
def test_a_whole_answer_at_the_opening_level_opens_an_alert(scene: Scene, level: RiskLevel) -> None:
    scene.final(0, level, "tailgating")
    alert = scene.alert
    assert (alert.state, alert.basis, alert.risk_level) == (AlertState.OPEN, AlertBasis.FINAL, level)
    assert alert.alert_id == alert_id_of("frame0_group1")
    assert alert.risk_types == ("tailgating",)
    assert alert.description == "seen in frame 0"
    assert alert.version == 1


@pytest.mark.parametrize("level", [NONE, LOW])
def test_nothing_opens_below_the_opening_level(scene: Scene, level: RiskLevel) -> None:
    assert scene.streamed(0, level) == []
    assert scene.final(0, level) == []
    assert scene.alerts == []


def test_the_opening_level_is_a_setting(scene_with: Callable[[AlertsSettings], Scene]) -> None:
    scene = scene_with(AlertsSettings(open_level=HIGH))
    scene.final(0, MEDIUM)
    assert scene.alerts == []
    scene.final(1, HIGH)
    assert scene.alert.risk_level is HIGH


def test_geometry_and_streamed_levels_open_provisional_alerts(scene: Scene) -> None:
    scene.geometry(0)
    scene.streamed(0, HIGH, x=5000, group=2)
    assert [(a.state, a.basis) for a in scene.alerts] == [
        (AlertState.PROVISIONAL, AlertBasis.GEOMETRY),
        (AlertState.PROVISIONAL, AlertBasis.PROVISIONAL),
    ]


# the two stages


@pytest.mark.parametrize("final", [MEDIUM, HIGH])
@pytest.mark.parametrize("streamed", [MEDIUM, HIGH])
def test_the_whole_answer_confirms_raises_or_lowers_under_the_same_id(
    scene: Scene, streamed: RiskLevel, final: RiskLevel
) -> None:
    scene.geometry(0)
    scene.streamed(0, streamed)
    assert scene.alert.risk_level is streamed
    opened = scene.alert.alert_id
    scene.final(0, final, "tailgating")
    alert = scene.alert
    assert (alert.alert_id, alert.state, alert.basis) == (opened, AlertState.OPEN, AlertBasis.FINAL)
    assert (alert.risk_level, alert.peak_level) == (final, final)


@pytest.mark.parametrize("final", [NONE, LOW])
def test_a_harmless_answer_withdraws_what_its_task_had_opened(scene: Scene, final: RiskLevel) -> None:
    scene.geometry(0)
    scene.streamed(0, HIGH)
    scene.final(0, final)
    assert scene.alert.state is AlertState.WITHDRAWN
    assert scene.alert.version == 3


def test_a_provisional_alert_stands_until_the_last_of_its_looks_is_answered(scene: Scene) -> None:
    scene.streamed(0, MEDIUM)
    scene.streamed(1, HIGH)
    scene.final(0, LOW)
    assert (scene.alert.state, scene.alert.risk_level) == (AlertState.PROVISIONAL, HIGH)
    scene.final(1, LOW)
    assert scene.alert.state is AlertState.WITHDRAWN


def test_an_answer_to_another_group_withdraws_nothing(scene: Scene) -> None:
    scene.streamed(0, HIGH)
    scene.final(0, NONE, group=2, x=900)
    assert scene.alert.state is AlertState.PROVISIONAL


def test_a_provisional_alert_without_answer_is_withdrawn_after_the_time_out(scene: Scene) -> None:
    scene.streamed(0, HIGH)
    assert scene.tick(60) == []
    scene.tick(60.1)
    assert scene.alert.state is AlertState.WITHDRAWN


def test_an_answer_after_the_withdrawal_opens_an_alert_of_its_own(scene: Scene) -> None:
    scene.geometry(0)
    scene.tick(61)
    scene.final(0, HIGH, "tailgating", delay=3600)
    withdrawn, opened = scene.alerts
    assert withdrawn.state is AlertState.WITHDRAWN
    assert opened.state is AlertState.OPEN
    assert opened.alert_id != withdrawn.alert_id
    assert scene.rings == 0  # an hour late


def test_a_streamed_level_that_is_taken_back_leaves_an_open_alert_at_its_confirmed_level(scene: Scene) -> None:
    scene.final(0, MEDIUM, "tailgating")
    scene.streamed(1, HIGH)
    assert (scene.alert.risk_level, scene.alert.basis) == (HIGH, AlertBasis.PROVISIONAL)
    scene.final(1, LOW)
    alert = scene.alert
    assert (alert.state, alert.risk_level, alert.peak_level) == (AlertState.OPEN, MEDIUM, MEDIUM)
    assert alert.basis is AlertBasis.FINAL


def test_a_streamed_level_does_not_lower_an_open_alert(scene: Scene) -> None:
    scene.final(0, HIGH)
    scene.streamed(1, MEDIUM)
    assert (scene.alert.risk_level, scene.alert.basis) == (HIGH, AlertBasis.FINAL)
    assert scene.alert.last_task_id == "frame1_group1"


def test_a_harmless_frame_neither_ends_nor_continues_an_open_alert(scene: Scene) -> None:
    scene.final(0, HIGH)
    assert scene.final(1, NONE) == []
    assert scene.alert.state is AlertState.OPEN
    assert scene.alert.last_task_id == "frame0_group1"


def test_the_level_follows_the_newest_answer_and_the_peak_stays(scene: Scene) -> None:
    scene.final(0, HIGH)
    scene.final(1, MEDIUM)
    assert (scene.alert.risk_level, scene.alert.peak_level) == (MEDIUM, HIGH)


# what has been answered needs no geometry


def test_geometry_that_comes_after_its_answer_does_nothing(scene: Scene) -> None:
    scene.final(0, LOW)
    assert scene.geometry(0, delay=5) == []
    assert scene.streamed(0, HIGH, delay=5) == []


def test_geometry_says_nothing_where_an_answer_has_just_found_no_danger(scene: Scene) -> None:
    scene.geometry(0)
    scene.final(0, LOW)
    for frame in (1, 2, 3):
        assert scene.geometry(frame) == []
        scene.final(frame, LOW)
    assert [alert.state for alert in scene.alerts] == [AlertState.WITHDRAWN]
    # elsewhere, and at the same place for a level read from the stream, it goes on
    assert scene.geometry(4, x=3000)
    assert scene.streamed(4, HIGH)


def test_geometry_goes_on_with_an_alert_that_an_answer_has_confirmed(scene: Scene) -> None:
    scene.final(0, MEDIUM)
    scene.geometry(1)
    assert scene.alert.last_task_id == "frame1_group1"
    assert (scene.alert.state, scene.alert.basis) == (AlertState.OPEN, AlertBasis.FINAL)


def test_geometry_and_streamed_levels_of_a_scene_that_is_over_change_nothing(scene: Scene) -> None:
    scene.final(0, HIGH)
    scene.tick(30)
    assert scene.geometry(1, delay=29) == []
    assert scene.streamed(1, HIGH, delay=29) == []
    assert scene.alert.state is AlertState.CLOSED


def test_old_geometry_and_streamed_levels_open_nothing_but_an_old_answer_does(scene: Scene) -> None:
    assert scene.geometry(0, delay=61) == []
    assert scene.streamed(0, HIGH, delay=61) == []
    scene.final(0, HIGH, delay=61)
    assert scene.alert.state is AlertState.OPEN


# continuation


def test_one_moving_danger_with_a_missed_frame_and_a_late_answer_is_one_alert(scene: Scene) -> None:
    """Six frames in 10 s, 0.9 group sizes a frame; frame 2 is missed, the answer to frame 3 comes after all others."""
    for frame in (0, 1, 3, 4, 5):
        scene.geometry(frame, x=frame * 180)
        scene.streamed(frame, HIGH, x=frame * 180)
        if frame != 3:
            scene.final(frame, HIGH, "pedestrian_conflict", x=frame * 180)
        scene.tick(frame * 1.8 + 1.7)
    before = scene.alert
    scene.final(3, MEDIUM, "pedestrian_conflict", "speeding", x=3 * 180, delay=9)
    assert scene.tick(LONG_AFTER)
    assert scene.alert.alert_id == before.alert_id
    assert scene.alert.state is AlertState.CLOSED
    assert scene.alert.last_task_id == "frame5_group1"
    assert scene.rings == 1


def test_an_answer_later_than_the_gap_still_continues_its_alert(scene: Scene) -> None:
    """Silence is counted in capture time: between frames 0 and 3 lie 5.4 s, but frame 3's answer takes 9 s."""
    scene.final(0, HIGH)
    assert scene.tick(3 * 1.8 + 8.9) == []
    scene.final(3, HIGH, delay=9)
    assert scene.alert.last_task_id == "frame3_group1"


@pytest.mark.parametrize(("cooldown", "rings"), [(0, 2), (30, 1)])
def test_two_dangers_at_two_places_are_two_alerts(
    scene_with: Callable[[AlertsSettings], Scene], cooldown: float, rings: int
) -> None:
    scene = scene_with(AlertsSettings(cooldown=cooldown))
    for frame in range(6):
        for group, x in ((1, frame * 150), (2, 1500 - frame * 60)):
            scene.geometry(frame, x=x, group=group)
            scene.streamed(frame, HIGH, x=x, group=group)
            scene.final(frame, HIGH, "tailgating", x=x, group=group)
    assert len(scene.alerts) == 2
    assert scene.rings == rings  # of one camera and type, within the cooldown
    near, far = scene.alerts
    assert (near.last_task_id, far.last_task_id) == ("frame5_group1", "frame5_group2")


def test_two_types_at_one_place_are_two_alerts(scene: Scene) -> None:
    scene.final(0, HIGH, "tailgating")
    scene.final(1, HIGH, "pedestrian_conflict")
    assert len(scene.alerts) == 2
    scene.final(2, HIGH, "speeding", "tailgating")
    assert len(scene.alerts) == 2
    assert scene.alerts[0].risk_types == ("tailgating", "speeding")


def test_an_answer_without_types_meets_all(scene: Scene) -> None:
    scene.final(0, HIGH, "tailgating")
    scene.final(1, MEDIUM)
    scene.streamed(2, HIGH)
    assert scene.alert.last_task_id == "frame2_group1"


def test_a_streamed_level_moves_to_an_alert_of_its_own_when_the_answer_is_of_another_type(scene: Scene) -> None:
    scene.final(0, MEDIUM, "tailgating")
    scene.streamed(1, HIGH)
    changes = scene.final(1, HIGH, "pedestrian_conflict")
    assert len(changes) == 2
    first, second = scene.alerts
    assert (first.risk_level, first.risk_types) == (MEDIUM, ("tailgating",))
    assert (second.risk_level, second.risk_types) == (HIGH, ("pedestrian_conflict",))


@pytest.mark.parametrize(("frame", "alerts"), [(3, 1), (4, 2)])
def test_after_more_than_three_frame_intervals_it_is_another_scene(scene: Scene, frame: int, alerts: int) -> None:
    scene.final(0, HIGH)
    scene.final(frame, HIGH)
    assert len(scene.alerts) == alerts


def test_a_fast_camera_still_waits_the_seconds_of_silence(scene_with: Callable[[AlertsSettings], Scene]) -> None:
    scene = scene_with(AlertsSettings(silence=8, silence_intervals=1))
    scene.final(0, HIGH)
    scene.final(4, HIGH)
    assert len(scene.alerts) == 1


def test_an_answer_about_an_earlier_frame_joins_without_moving_the_alert_back(scene: Scene) -> None:
    scene.final(2, MEDIUM, "tailgating", x=400)
    before = scene.alert
    scene.final(1, HIGH, "speeding", "tailgating", x=200, delay=9)
    after = scene.alert
    assert (after.last_seen_at, after.group_bbox, after.last_task_id) == (
        before.last_seen_at,
        before.group_bbox,
        before.last_task_id,
    )
    assert (after.risk_level, after.peak_level) == (MEDIUM, HIGH)
    assert after.description == before.description
    assert after.risk_types == ("tailgating", "speeding")
    assert after.opened_at == before.opened_at - timedelta(seconds=1.8)
    assert after.first_task_id == before.first_task_id


# the end


def test_silence_closes_once_late_answers_had_their_time(scene: Scene) -> None:
    scene.final(0, HIGH)
    assert scene.tick(5.4 + 10) == []
    scene.tick(5.4 + 10.1)
    assert scene.alert.state is AlertState.CLOSED
    assert scene.alert.closed_at == scene.alert.last_seen_at + timedelta(seconds=5.4)


def test_an_answer_that_comes_after_the_end_joins_the_closed_alert(scene: Scene) -> None:
    scene.final(0, MEDIUM, "tailgating")
    scene.tick(100)
    scene.final(1, HIGH, "tailgating", delay=3600)
    alert = scene.alert
    assert (alert.state, alert.peak_level, alert.last_task_id) == (AlertState.CLOSED, HIGH, "frame1_group1")
    assert alert.closed_at == alert.last_seen_at + timedelta(seconds=5.4)
    assert scene.rings == 0


def test_a_withdrawn_alert_is_over_for_good(scene: Scene) -> None:
    scene.streamed(0, HIGH)
    scene.final(0, NONE)
    scene.final(1, HIGH)
    assert [alert.state for alert in scene.alerts] == [AlertState.WITHDRAWN, AlertState.OPEN]


# ringing


def test_an_alert_rings_once_and_at_its_first_high(scene: Scene) -> None:
    scene.geometry(0)
    scene.streamed(0, MEDIUM)
    assert scene.rings == 0
    scene.final(0, HIGH)
    scene.final(1, HIGH)
    scene.streamed(2, HIGH)
    assert [change.after.alert.version for change in scene.changes if change.after.alert.notify] == [3]


@pytest.mark.parametrize(("delay", "rings"), [(60, 1), (60.1, 0)])
def test_only_results_younger_than_the_live_age_ring(scene: Scene, delay: float, rings: int) -> None:
    scene.final(0, HIGH, delay=delay)
    assert scene.rings == rings


def test_the_level_that_rings_is_a_setting(scene_with: Callable[[AlertsSettings], Scene]) -> None:
    scene = scene_with(AlertsSettings(notify_level=MEDIUM))
    scene.final(0, MEDIUM)
    assert scene.rings == 1


def test_what_a_person_has_judged_does_not_ring(scene: Scene) -> None:
    scene.final(0, MEDIUM)
    scene.verdict(scene.alert, Verdict.REJECTED, 2)
    scene.final(1, HIGH)
    assert scene.rings == 0
    assert (scene.alert.state, scene.alert.verdict) == (AlertState.OPEN, Verdict.REJECTED)


# cooldown


def test_within_the_cooldown_a_camera_does_not_ring_again_for_the_same_type(scene: Scene) -> None:
    """A walk-through that tracking cuts into four alerts calls the operator once."""
    for number in range(4):
        scene.final(number, HIGH, "pedestrian_conflict", x=number * 2000)
    assert len(scene.alerts) == 4
    assert scene.rings == 1


def test_another_type_or_a_higher_level_rings_within_the_cooldown(
    scene_with: Callable[[AlertsSettings], Scene],
) -> None:
    scene = scene_with(AlertsSettings(notify_level=MEDIUM))
    scene.final(0, MEDIUM, "tailgating")
    scene.final(1, MEDIUM, "wrong_way", x=2000)
    scene.final(2, MEDIUM, "tailgating", x=4000)
    assert scene.rings == 2
    scene.final(3, HIGH, "tailgating", x=6000)
    assert scene.rings == 3


def test_after_the_cooldown_an_alert_that_goes_on_rings(scene: Scene) -> None:
    scene.final(0, HIGH, "tailgating")
    for frame in range(1, 20):
        scene.final(frame, HIGH, "tailgating", x=2000)
        late = frame * 1.8 >= 30
        assert scene.rings == (2 if late else 1), frame
    assert len(scene.alerts) == 2


def test_a_withdrawn_alert_does_not_keep_a_confirmed_one_from_ringing(scene: Scene) -> None:
    scene.streamed(0, HIGH)
    scene.final(0, LOW)
    scene.streamed(1, HIGH)  # another claim: the operator has just been called in vain
    assert scene.rings == 1
    scene.final(1, HIGH, "tailgating")
    assert scene.rings == 2


def test_each_higher_level_is_announced_once(scene: Scene) -> None:
    scene.final(0, MEDIUM, "tailgating")
    scene.final(1, MEDIUM, "tailgating")
    scene.final(2, HIGH, "tailgating")
    scene.final(3, HIGH, "tailgating")
    assert [change.after.alert.reached_level for change in scene.changes] == [MEDIUM, None, HIGH, None]


# quiet hours


def quiet(scene: Scene, *hours: QuietHours, snoozed: float | None = None, zone: str = "UTC") -> None:
    until = NOON + timedelta(seconds=snoozed) if snoozed is not None else None
    scene.state = replace(scene.state, quiet=QuietRules(hours, ZoneInfo(zone), until))


def test_in_a_snooze_the_alert_opens_and_its_ringing_is_held(scene: Scene) -> None:
    quiet(scene, snoozed=600)
    scene.final(0, HIGH, "tailgating")
    alert = scene.alert
    assert (alert.state, alert.notify, alert.reached_level) == (AlertState.OPEN, False, HIGH)
    assert (alert.held_reason, alert.held_until) == ("snooze", NOON + timedelta(seconds=600))
    scene.final(1, HIGH, "tailgating")
    assert scene.alert.held_until is None  # of that one change
    quiet(scene)
    scene.final(2, HIGH, "tailgating")
    assert scene.rings == 0  # it is told at the snooze's end, not twice


def test_quiet_hours_hold_until_their_end(scene: Scene) -> None:
    quiet(scene, QuietHours(begin=time(11), end=time(13)))
    scene.final(0, HIGH)
    assert (scene.alert.held_reason, scene.alert.held_until) == ("quiet_hours", NOON + timedelta(hours=1))


# escalation

ESCALATING = AlertsSettings(escalate_after=60, escalations=2)


def test_an_alert_that_nobody_judges_rings_again_also_after_its_end(
    scene_with: Callable[[AlertsSettings], Scene],
) -> None:
    scene = scene_with(ESCALATING)
    scene.final(0, HIGH, "tailgating", delay=1)
    for seconds in range(10, 400, 10):
        scene.tick(seconds)
    assert scene.alert.state is AlertState.CLOSED
    told = [(change.input.at - NOON).total_seconds() for change in scene.changes if change.after.alert.escalation]
    assert told == [70, 130]
    assert scene.rings == 3


def test_a_verdict_or_a_withdrawal_ends_the_escalation(scene_with: Callable[[AlertsSettings], Scene]) -> None:
    scene = scene_with(ESCALATING)
    scene.final(0, HIGH, "tailgating")
    scene.verdict(scene.alert, Verdict.ACKNOWLEDGED, 5)
    scene.streamed(40, HIGH, x=3000)
    scene.final(40, LOW, x=3000)
    for seconds in range(10, 400, 10):
        scene.tick(seconds)
    assert scene.rings == 2  # each its first


def test_in_quiet_hours_nothing_escalates_until_they_are_over(scene_with: Callable[[AlertsSettings], Scene]) -> None:
    scene = scene_with(ESCALATING)
    scene.final(0, HIGH, "tailgating")
    quiet(scene, snoozed=300)
    for seconds in range(10, 400, 10):
        scene.tick(seconds)
    told = [(change.input.at - NOON).total_seconds() for change in scene.changes if change.after.alert.escalation]
    assert told == [300, 360]


def test_a_closed_alert_keeps_the_interval_of_the_frames_that_it_was_seen_in(scene: Scene) -> None:
    scene.final(0, HIGH, "tailgating")
    scene.tick(100)
    (closing,) = [change.input for change in scene.changes if change.after.alert.state is AlertState.CLOSED]
    again = Lifecycle(AlertsSettings())
    kept = [change.input for change in scene.changes]
    state, _ = again.replay(CameraState("crossing", frame_interval=60), kept)  # the camera is slower by now
    assert state.alerts[0].alert == scene.alert
    assert closing.frame_interval == 1.8  # type: ignore[union-attr]


# verdicts


def test_a_verdict_is_kept_beside_the_state(scene: Scene) -> None:
    scene.final(0, HIGH)
    scene.verdict(scene.alert, Verdict.ACKNOWLEDGED, 3, note="patrol sent")
    alert = scene.alert
    assert (alert.state, alert.version) == (AlertState.OPEN, 2)
    assert (alert.verdict, alert.verdict_by, alert.verdict_note) == (Verdict.ACKNOWLEDGED, "Ada", "patrol sent")
    assert scene.verdict(alert, Verdict.ACKNOWLEDGED, 4, note="patrol sent") == []
    scene.verdict(alert, Verdict.REJECTED, 5)
    assert scene.alert.verdict is Verdict.REJECTED


def test_a_verdict_on_an_unknown_alert_changes_nothing(scene: Scene) -> None:
    scene.final(0, HIGH)
    unknown = scene.alert.model_copy(update={"alert_id": "unknown"})
    assert scene.verdict(unknown, Verdict.REJECTED, 3) == []


def test_an_alert_of_a_simulated_camera_says_so(scene: Scene) -> None:
    scene.state = type(scene.state)("crossing", simulated=True)
    scene.final(0, HIGH)
    assert scene.alert.simulated
