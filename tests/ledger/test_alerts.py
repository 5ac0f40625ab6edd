"""Alerts in a real PostgreSQL: in one transaction with their inputs, applied once, published at least once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dangerous_driving.alerts.inputs import Sighting, VerdictGiven
from dangerous_driving.alerts.lifecycle import CameraState, Lifecycle
from dangerous_driving.contracts import Alert, AlertBasis, AlertState, RiskLevel, Verdict
from dangerous_driving.errors import BrokerError
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.ledger import quiet
from dangerous_driving.ledger.alerts import AlertFilter, AlertPosition
from dangerous_driving.ledger.database import transaction
from dangerous_driving.settings import AlertsSettings
from tests.alerts.conftest import NOON, sighting

pytestmark = pytest.mark.integration

LIFECYCLE = Lifecycle(AlertsSettings())
HIGH, MEDIUM, LOW = RiskLevel.HIGH, RiskLevel.MEDIUM, RiskLevel.LOW


def final(frame: float, level: RiskLevel = HIGH, x: float = 0, camera: str = "crossing", **kwargs: Any) -> Sighting:
    look = sighting(AlertBasis.FINAL, frame, level, x, **kwargs)
    return look.model_copy(update={"camera_id": camera, "task_id": f"{camera}_{look.task_id}"})


def claim(kind: AlertBasis, frame: float, level: RiskLevel = HIGH, **kwargs: Any) -> Sighting:
    look = sighting(kind, frame, level, **kwargs)
    return look.model_copy(update={"task_id": f"crossing_{look.task_id}"})


def alerts(engine: Engine) -> list[Alert]:
    return ledger_alerts.list_alerts(engine, AlertFilter(), limit=100)


def published(engine: Engine) -> list[Alert]:
    sent: list[Alert] = []
    ledger_alerts.publish_pending(engine, sent.extend, limit=100)
    return sent


def test_an_alert_goes_on_in_another_process_as_if_it_were_the_same(ledger: Engine) -> None:
    """Each batch is a new process: all that the next one needs is in the ledger."""
    inputs = [
        claim(AlertBasis.GEOMETRY, 0, MEDIUM),
        claim(AlertBasis.PROVISIONAL, 0),
        final(0, MEDIUM, types=("tailgating",)),
        claim(AlertBasis.PROVISIONAL, 1),
        final(1, LOW),
        final(2, HIGH, types=("tailgating", "speeding")),
    ]
    for given in inputs:
        ledger_alerts.advance(ledger, LIFECYCLE, [given])
    (kept,) = alerts(ledger)
    state, changes = LIFECYCLE.replay(CameraState("crossing"), inputs)
    (tracked,) = state.alerts
    assert kept == tracked.alert.model_copy(update={"notify": False})
    assert [event.version for event in ledger_alerts.events_of(ledger, kept.alert_id)] == list(
        range(1, len(changes) + 1)
    )


def test_the_kept_inputs_make_the_same_alerts_again(ledger: Engine) -> None:
    ledger_alerts.advance(ledger, LIFECYCLE, [final(0), final(0, x=3000, group=2), final(1)])
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(seconds=30))
    ledger_alerts.advance(ledger, LIFECYCLE, [final(2, delay=100)])
    state, _ = LIFECYCLE.replay(CameraState("crossing"), ledger_alerts.inputs_of(ledger, "crossing"))
    again = {tracked.alert.alert_id: tracked.alert.model_copy(update={"notify": False}) for tracked in state.alerts}
    assert again == {alert.alert_id: alert for alert in alerts(ledger)}
    assert len(again) == 2


def test_a_replay_sees_the_camera_as_it_was(ledger: Engine) -> None:
    """Its interval and its quiet hours are others by now; the alerts made again are the same, with what rang."""

    def camera(interval: float, snoozed: timedelta | None) -> None:
        with transaction(ledger) as connection:
            connection.execute(
                text(
                    "INSERT INTO camera (id, frame_interval) VALUES ('crossing', :interval) "
                    "ON CONFLICT (id) DO UPDATE SET frame_interval = :interval"
                ),
                {"interval": interval},
            )
        until = NOON + snoozed if snoozed else None
        quiet.snooze(ledger, AlertsSettings(), "crossing", until, by="Ada", now=NOON)

    camera(10, timedelta(minutes=5))
    ledger_alerts.advance(ledger, LIFECYCLE, [final(0), final(10)])  # 18 s apart
    camera(1.8, None)
    ledger_alerts.advance(ledger, LIFECYCLE, [final(300, x=3000)])
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(hours=1))
    state, changes = LIFECYCLE.replay(CameraState("crossing"), ledger_alerts.inputs_of(ledger, "crossing"))
    again = [change.after.alert for change in changes]
    kept = [
        event.alert
        for alert in sorted(alerts(ledger), key=lambda alert: alert.opened_at)
        for event in ledger_alerts.events_of(ledger, alert.alert_id)
    ]
    assert sorted(again, key=lambda alert: (alert.opened_at, alert.version)) == kept
    assert len(state.alerts) == 2
    assert [(alert.notify, alert.held_reason) for alert in kept if alert.reached_level] == [
        (False, "snooze"),
        (True, None),
    ]


def test_the_cooldown_holds_in_another_process(ledger: Engine) -> None:
    def rings(look: Sighting) -> bool:
        (change,) = ledger_alerts.advance(ledger, LIFECYCLE, [look])
        return change.after.alert.notify

    assert rings(final(0, types=("tailgating",)))
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(seconds=17))  # it is closed and far away
    assert not rings(final(9, x=3000, types=("tailgating",)))
    assert rings(final(9, x=6000, types=("wrong_way",), group=2))
    assert rings(final(9, x=3000, types=("tailgating",), camera="other"))
    assert rings(final(17, x=9000, types=("tailgating",)))


def test_what_nobody_judges_rings_again_in_another_process_once(ledger: Engine) -> None:
    lifecycle = Lifecycle(AlertsSettings(escalate_after=60))
    ledger_alerts.advance(ledger, lifecycle, [final(0), final(0, x=3000, group=2, types=("wrong_way",))])
    first = alerts(ledger)[0]
    ledger_alerts.tick(ledger, lifecycle, NOON + timedelta(seconds=30))
    given = VerdictGiven(
        at=NOON + timedelta(seconds=40), alert_id=first.alert_id, verdict=Verdict.ACKNOWLEDGED, by="Ada"
    )
    ledger_alerts.judge(ledger, lifecycle, given)
    assert ledger_alerts.tick(ledger, lifecycle, NOON + timedelta(seconds=60)) == []
    (change,) = ledger_alerts.tick(ledger, lifecycle, NOON + timedelta(seconds=61))
    assert (change.after.alert.escalation, change.after.alert.notify) == (1, True)
    assert change.after.alert.alert_id != first.alert_id
    assert ledger_alerts.tick(ledger, lifecycle, NOON + timedelta(hours=5)) == []


def test_inputs_that_come_again_change_nothing(ledger: Engine) -> None:
    batch = [claim(AlertBasis.GEOMETRY, 0, MEDIUM), final(0), final(1)]
    assert len(ledger_alerts.advance(ledger, LIFECYCLE, batch)) == 3
    assert ledger_alerts.advance(ledger, LIFECYCLE, batch) == []
    assert ledger_alerts.advance(ledger, LIFECYCLE, batch[1:]) == []
    assert [alert.version for alert in alerts(ledger)] == [3]


def test_an_answer_that_comes_again_after_its_alert_has_ended_opens_no_other(ledger: Engine) -> None:
    ledger_alerts.advance(ledger, LIFECYCLE, [final(0)])
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(hours=1))
    assert ledger_alerts.advance(ledger, LIFECYCLE, [final(0, delay=7200)]) == []
    assert [alert.state for alert in alerts(ledger)] == [AlertState.CLOSED]


def test_an_answer_of_the_window_lane_joins_the_alert_of_its_time(ledger: Engine) -> None:
    ledger_alerts.advance(ledger, LIFECYCLE, [final(0, MEDIUM), final(2, MEDIUM)])
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(hours=1))
    (change,) = ledger_alerts.advance(ledger, LIFECYCLE, [final(1, HIGH, delay=3600)])
    assert (change.after.alert.state, change.after.alert.peak_level) == (AlertState.CLOSED, HIGH)
    assert not change.after.alert.notify
    assert len(alerts(ledger)) == 1


def test_an_answer_long_after_the_withdrawal_opens_an_alert_of_its_own(ledger: Engine) -> None:
    ledger_alerts.advance(ledger, LIFECYCLE, [claim(AlertBasis.GEOMETRY, 0, MEDIUM)])
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(seconds=100))
    ledger_alerts.advance(ledger, LIFECYCLE, [final(0, delay=3600)])
    assert sorted(alert.state for alert in alerts(ledger)) == [AlertState.OPEN, AlertState.WITHDRAWN]


def test_an_answer_in_the_ledger_silences_geometry_that_comes_after_it(ledger: Engine) -> None:
    look = claim(AlertBasis.GEOMETRY, 0, MEDIUM)
    answered(ledger, look, level="low")
    assert ledger_alerts.advance(ledger, LIFECYCLE, [look, claim(AlertBasis.GEOMETRY, 1, MEDIUM)]) == []
    assert len(ledger_alerts.advance(ledger, LIFECYCLE, [claim(AlertBasis.GEOMETRY, 1, MEDIUM, x=3000, group=2)])) == 1


def answered(engine: Engine, look: Sighting, level: str) -> None:
    """What a harmless answer, which changes no alert, leaves behind."""
    from dangerous_driving.ledger.schema import Partitions

    Partitions().ensure(engine, [look.captured_at])
    with transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO risk_assessment (captured_at, task_id, run, message_id, camera_id, group_index, group_bbox,"
                " risk_level, risk_types, description, trigger_object_ids, is_current, lane, prompt_version, model,"
                " key_hash, call_id, retry_count, latency, input_tokens, output_tokens, cost, raw_answer, node,"
                " assessed_at) VALUES (:at, :task, 'live', 'frame', 'crossing', 1, CAST(:box AS jsonb), :level, '{}',"
                " '', '{}', true, 'realtime', 'v1', 'm', 'k', 'c', 0, 1, 0, 0, 0, '', 'n', now())"
            ),
            {"at": look.captured_at, "task": look.task_id, "box": str(list(look.bbox)), "level": level},
        )


def test_cameras_of_one_batch_have_alerts_of_their_own(ledger: Engine) -> None:
    ledger_alerts.advance(ledger, LIFECYCLE, [final(0, camera="north"), final(0, camera="south")])
    assert {alert.camera_id for alert in alerts(ledger)} == {"north", "south"}


def test_a_camera_s_frame_interval_and_kind_come_from_its_row(ledger: Engine) -> None:
    with transaction(ledger) as connection:
        connection.execute(
            text("INSERT INTO camera (id, kind, frame_interval) VALUES ('crossing', 'simulated', 10)"),
        )
    ledger_alerts.advance(ledger, LIFECYCLE, [final(0), final(10)])  # 18 s apart, within three intervals of 10 s
    (alert,) = alerts(ledger)
    assert alert.simulated


def test_two_processes_with_the_same_messages_make_every_alert_once(ledger: Engine) -> None:
    """Both see all messages, as during a change in the consumer group."""
    batches = [[final(frame, camera=camera) for camera in ("b", "a")] for frame in range(12)]

    def work(order: Sequence[list[Sighting]]) -> None:
        for batch in order:
            ledger_alerts.advance(ledger, LIFECYCLE, batch)

    with ThreadPoolExecutor(2) as processes:
        list(processes.map(work, (batches, [batch[::-1] for batch in batches])))
    assert sorted((alert.camera_id, alert.version) for alert in alerts(ledger)) == [("a", 12), ("b", 12)]


# publishing


def test_every_version_is_published_once_and_in_order(ledger: Engine) -> None:
    ledger_alerts.advance(ledger, LIFECYCLE, [claim(AlertBasis.GEOMETRY, 0, MEDIUM), final(0)])
    sent = published(ledger)
    assert [(alert.version, alert.state, alert.notify) for alert in sent] == [
        (1, AlertState.PROVISIONAL, False),
        (2, AlertState.OPEN, True),
    ]
    assert published(ledger) == []
    ledger_alerts.advance(ledger, LIFECYCLE, [final(1)])
    assert [(alert.version, alert.notify) for alert in published(ledger)] == [(3, False)]


def test_what_the_broker_did_not_take_is_published_later(ledger: Engine) -> None:
    def broker_away(alerts: Sequence[Alert]) -> None:
        raise BrokerError("away")

    ledger_alerts.advance(ledger, LIFECYCLE, [final(0)])
    with pytest.raises(BrokerError):
        ledger_alerts.publish_pending(ledger, broker_away, limit=10)
    assert len(published(ledger)) == 1


def test_a_second_publisher_leaves_it_to_the_first(ledger: Engine) -> None:
    ledger_alerts.advance(ledger, LIFECYCLE, [final(0)])
    seen: list[int] = []
    ledger_alerts.publish_pending(ledger, lambda _: seen.append(len(published(ledger))), limit=10)
    assert seen == [0]
    assert published(ledger) == []


def test_a_limited_publisher_goes_on_where_it_stopped(ledger: Engine) -> None:
    ledger_alerts.advance(ledger, LIFECYCLE, [final(frame) for frame in range(5)])
    sent: list[Alert] = []
    while ledger_alerts.publish_pending(ledger, sent.extend, limit=2):
        pass
    assert [alert.version for alert in sent] == [1, 2, 3, 4, 5]


# verdicts


def test_a_verdict_is_an_event_of_the_alert_and_is_published(ledger: Engine) -> None:
    ledger_alerts.advance(ledger, LIFECYCLE, [final(0)])
    published(ledger)
    (alert,) = alerts(ledger)
    given = VerdictGiven(
        at=NOON + timedelta(seconds=9), alert_id=alert.alert_id, verdict=Verdict.REJECTED, by="Ada", note="'; DROP--"
    )
    judged = ledger_alerts.judge(ledger, LIFECYCLE, given)
    assert judged is not None
    assert (judged.verdict, judged.verdict_note, judged.version) == (Verdict.REJECTED, "'; DROP--", 2)
    assert ledger_alerts.judge(ledger, LIFECYCLE, given) == judged
    assert ledger_alerts.get_alert(ledger, alert.alert_id) == judged
    assert [(a.version, a.verdict) for a in published(ledger)] == [(2, Verdict.REJECTED)]
    assert ledger_alerts.events_of(ledger, alert.alert_id)[-1].given == given


def test_a_verdict_on_an_alert_that_is_not_there_finds_none(ledger: Engine) -> None:
    given = VerdictGiven(at=NOON, alert_id="unknown", verdict=Verdict.REJECTED, by="Ada")
    assert ledger_alerts.judge(ledger, LIFECYCLE, given) is None


# reading


@pytest.fixture
def day(ledger: Engine) -> Engine:
    """Ten alerts, one a minute, of two cameras, medium and high in turn; the first five closed."""
    every = [
        final(100 * number, HIGH if number % 2 else MEDIUM, camera="north" if number < 7 else "south")
        for number in range(10)
    ]
    ledger_alerts.advance(ledger, LIFECYCLE, every)
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(seconds=180 * 4 + 100))
    return ledger


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (AlertFilter(), 10),
        (AlertFilter(camera_id="south"), 3),
        (AlertFilter(level=HIGH), 5),
        (AlertFilter(level=MEDIUM), 10),
        (AlertFilter(states=(AlertState.CLOSED,)), 5),
        (AlertFilter(states=(AlertState.CLOSED, AlertState.OPEN)), 10),
        (AlertFilter(since=NOON + timedelta(seconds=180 * 8)), 2),
        (AlertFilter(before=NOON + timedelta(seconds=180 * 8)), 8),
        (AlertFilter(camera_id="north", level=HIGH, states=(AlertState.OPEN,)), 1),
        (AlertFilter(camera_id="nowhere"), 0),
    ],
)
def test_alerts_are_found_by_camera_level_state_and_time(day: Engine, wanted: AlertFilter, count: int) -> None:
    assert len(ledger_alerts.list_alerts(day, wanted, limit=100)) == count


def test_pages_have_every_alert_once_the_newest_first(day: Engine) -> None:
    pages: list[Alert] = []
    position = None
    while page := ledger_alerts.list_alerts(day, AlertFilter(), limit=3, after=position):
        pages += page
        position = AlertPosition(page[-1].opened_at, page[-1].alert_id)
    assert pages == ledger_alerts.list_alerts(day, AlertFilter(), limit=100)
    assert [alert.opened_at for alert in pages] == sorted((alert.opened_at for alert in pages), reverse=True)


def test_what_changed_since_is_found_by_the_time_of_change(day: Engine) -> None:
    changed = ledger_alerts.changed_since(day, NOON + timedelta(seconds=180 * 8), limit=100)
    assert {alert.version for alert in changed} == {1}
    assert len(changed) == 2
