"""The outbox in a real PostgreSQL: planned once, sent at least once, whatever dies or stays away in between."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dangerous_driving.alerts.inputs import VerdictGiven
from dangerous_driving.alerts.lifecycle import Lifecycle
from dangerous_driving.contracts import AlertBasis, RiskLevel, Verdict
from dangerous_driving.errors import DeliveryError, LedgerError, RefusedError
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.ledger import notifications as ledger
from dangerous_driving.ledger import quiet
from dangerous_driving.ledger.database import transaction
from dangerous_driving.notifications.rendering import Item, Rendered, Renderer
from dangerous_driving.notifications.service import Dispatcher, NotifyService, Post
from dangerous_driving.settings import AlertsSettings
from dangerous_driving.settings.notifications import NotificationsSettings, WebhookReceiver
from tests.alerts.conftest import NOON, sighting
from tests.notifications.conftest import LIFECYCLE, SECRET

pytestmark = pytest.mark.integration

HIGH, MEDIUM, LOW = RiskLevel.HIGH, RiskLevel.MEDIUM, RiskLevel.LOW
START = NOON + timedelta(seconds=3)


class Killed(BaseException):
    """As a kill -9: nothing of the process runs after it."""


class FakeChannel:
    def __init__(self) -> None:
        self.sent: list[tuple[Item, Rendered]] = []
        self.fail: Callable[[Item], BaseException | None] = lambda _: None
        self.after: Callable[[], None] = lambda: None

    def deliver(self, item: Item, rendered: Rendered, picture: bytes | None = None) -> None:
        error = self.fail(item)
        if error is not None:
            raise error
        self.sent.append((item, rendered))
        self.after()

    def check(self) -> str:
        return "there"

    def close(self) -> None:
        pass

    @property
    def kinds(self) -> list[str]:
        return [item.kind for item, _ in self.sent]


class House:
    """A ledger with one receiver, and a clock that the test moves."""

    def __init__(self, engine: Engine, **receiver: Any) -> None:
        self.engine = engine
        self.now = START
        self.channel = FakeChannel()
        self.receiver = WebhookReceiver.model_validate(
            {"name": "desk", "kind": "webhook", "url": "https://desk/hook", "secret": SECRET} | receiver
        )
        self.settings = NotificationsSettings(receivers=(self.receiver,))
        self.alerts = AlertsSettings(cooldown=0)

    def service(self) -> NotifyService:
        return NotifyService(self.engine, [self.post], self.settings, clock=lambda: self.now)

    @property
    def post(self) -> Post:
        return Post(self.receiver, self.channel, Renderer(self.receiver))

    def plan(self) -> int:
        return self.service().plan()

    def send(self) -> datetime | None:
        """A new process each time: nothing is remembered but in the ledger."""
        chance = random.Random(1)  # noqa: S311  # repeatable is the point
        dispatcher = Dispatcher(self.engine, self.post, self.settings, clock=lambda: self.now, chance=chance)
        return dispatcher.step()

    def states(self) -> dict[str, int]:
        with transaction(self.engine) as connection:
            rows = connection.execute(text("SELECT state, count(*) FROM notification GROUP BY 1"))
            return dict(rows.tuples().all())


@pytest.fixture
def house(ledger: Engine) -> House:
    return House(ledger)


def danger(engine: Engine, number: int = 0, level: RiskLevel = HIGH, lifecycle: Lifecycle = LIFECYCLE) -> str:
    """One alert at a place of its own; returns its id."""
    look = sighting(AlertBasis.FINAL, 0, level, 3000.0 * number, 2.0, ("tailgating",), group=number + 1)
    (change,) = ledger_alerts.advance(engine, lifecycle, [look])
    return change.after.alert.alert_id


def test_an_alert_is_told_once_however_often_it_is_planned(house: House) -> None:
    alert_id = danger(house.engine)
    assert house.plan() == 1
    assert house.plan() == 0
    house.send()
    house.send()
    ((item, rendered),) = house.channel.sent
    assert item.alert is not None
    assert (item.kind, item.alert.alert_id) == ("ring", alert_id)
    assert b'"type":"alert.ring"' in rendered.body
    assert house.states() == {"sent": 1}


def test_what_follows_an_alert_is_told_in_its_order(ledger: Engine) -> None:
    house = House(ledger, min_level="medium", tells=["ring", "raised", "judged", "closed"])
    alert_id = danger(ledger, level=MEDIUM)
    house.plan()
    raised = sighting(AlertBasis.FINAL, 1, HIGH, 0, 1.0, ("tailgating",))
    ledger_alerts.advance(ledger, LIFECYCLE, [raised])
    given = VerdictGiven(at=NOON + timedelta(seconds=9), alert_id=alert_id, verdict=Verdict.ACKNOWLEDGED, by="Ada")
    ledger_alerts.judge(ledger, LIFECYCLE, given)
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(seconds=60))
    house.now = NOON + timedelta(seconds=61)
    house.plan()
    house.send()
    assert house.channel.kinds == ["ring", "raised", "judged", "closed"]


def test_a_medium_alert_is_no_news_to_who_wants_high_ones(house: House) -> None:
    danger(house.engine, level=MEDIUM)
    house.plan()
    assert house.states() == {}


def test_an_escalation_is_told(house: House) -> None:
    lifecycle = Lifecycle(AlertsSettings(escalate_after=60))
    danger(house.engine, lifecycle=lifecycle)
    ledger_alerts.tick(house.engine, lifecycle, NOON + timedelta(seconds=61))
    assert house.plan() == 2  # the alert and its end
    ledger_alerts.tick(house.engine, lifecycle, NOON + timedelta(seconds=63))  # closed by now
    house.now = NOON + timedelta(seconds=64)
    house.plan()
    house.send()
    assert house.channel.kinds == ["ring", "escalation"]


# quiet times


def test_in_a_snooze_nothing_is_told_and_at_its_end_everything(house: House) -> None:
    end = START + timedelta(minutes=30)
    quiet.snooze(house.engine, house.alerts, "crossing", end, by="Ada", now=NOON)
    ids = {danger(house.engine, number) for number in range(3)}
    house.plan()
    house.send()
    assert house.channel.sent == []
    assert len(ledger_alerts.list_alerts(house.engine, ledger_alerts.AlertFilter(), limit=10)) == 3
    house.now = end
    house.send()
    ((item, rendered),) = house.channel.sent
    assert item.kind == "digest"
    assert all(alert_id.encode() in rendered.body for alert_id in ids)
    assert house.states() == {"merged": 3, "sent": 1}


def test_what_follows_an_alert_that_was_held_is_held_with_it(ledger: Engine) -> None:
    house = House(ledger, tells=["ring", "withdrawn", "closed"])
    end = START + timedelta(minutes=30)
    quiet.snooze(ledger, house.alerts, "crossing", end, by="Ada", now=NOON)
    claim = sighting(AlertBasis.PROVISIONAL, 0, HIGH, 0, 1.0, group=1)
    ledger_alerts.advance(ledger, LIFECYCLE, [claim])
    danger(ledger, 1)
    house.plan()
    harmless = sighting(AlertBasis.FINAL, 0, RiskLevel.NONE, 0, 2.0, group=1)
    ledger_alerts.advance(ledger, LIFECYCLE, [harmless])
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(seconds=60))
    house.now = NOON + timedelta(seconds=61)
    house.plan()
    house.send()
    assert house.channel.sent == []
    house.now = end
    house.send()
    ((item, _),) = house.channel.sent
    assert item.kind == "digest"
    assert house.states() == {"merged": 4, "sent": 1}


def test_a_snooze_that_is_ended_early_frees_what_waits_unless_quiet_hours_hold_it(house: House) -> None:
    from dangerous_driving.settings.alerts import QuietHours

    quiet.snooze(house.engine, house.alerts, "*", START + timedelta(hours=9), by="Ada", now=NOON)
    danger(house.engine)
    house.plan()
    hours = QuietHours.model_validate({"begin": "11:00", "end": "13:00"})
    quiet.set_quiet_hours(house.engine, house.alerts, "crossing", [hours], now=house.now)
    quiet.snooze(house.engine, house.alerts, "*", None, by="Ada", now=house.now)
    house.send()
    assert house.channel.sent == []
    quiet.set_quiet_hours(house.engine, house.alerts, "crossing", [], now=house.now)
    house.send()
    assert house.channel.kinds == ["ring"]
    assert quiet.read_quiet(house.engine)["crossing"].hours == ()


# rate limits


def test_beyond_the_limit_the_rest_comes_as_a_digest(ledger: Engine) -> None:
    house = House(ledger, rate_limit=3, rate_window=60)
    for number in range(10):
        danger(ledger, number)
    house.plan()
    house.send()
    assert house.channel.kinds == ["ring", "ring", "digest"]
    assert house.states() == {"merged": 8, "sent": 3}
    danger(ledger, 11)
    house.plan()
    assert house.send() == START + timedelta(seconds=60)
    assert len(house.channel.sent) == 3
    house.now = START + timedelta(seconds=60)
    house.send()
    assert house.channel.kinds[3:] == ["ring"]


# failures


def test_a_message_that_fails_is_sent_again_later_under_the_same_id(house: House) -> None:
    danger(house.engine)
    house.plan()
    house.channel.fail = lambda _: DeliveryError("away")
    for _ in range(5):
        until = house.send()
        assert until is not None
        assert house.now < until <= house.now + timedelta(seconds=300)
        house.now = until
    assert house.states() == {"pending": 1}
    (row,) = ledger.list_notifications(house.engine, limit=10)
    assert (row.attempts, row.last_error) == (5, "away")
    house.channel.fail = lambda _: None
    house.send()
    assert [item.notification_id for item, _ in house.channel.sent] == [row.notification_id]


def test_after_an_outage_messages_come_in_the_order_in_which_they_arose(ledger: Engine) -> None:
    house = House(ledger, tells=["ring", "closed"])
    danger(ledger)
    house.plan()
    house.channel.fail = lambda _: DeliveryError("away")
    until = house.send()
    assert until is not None
    ledger_alerts.tick(ledger, LIFECYCLE, NOON + timedelta(seconds=60))
    house.plan()
    house.now = until
    house.channel.fail = lambda _: None
    house.send()
    assert house.channel.kinds == ["ring", "closed"]


def test_a_pause_that_the_receiver_asks_for_is_kept(house: House) -> None:
    danger(house.engine)
    house.plan()
    house.channel.fail = lambda _: DeliveryError("busy", retry_after=120)
    assert house.send() == START + timedelta(seconds=120)
    house.now = START + timedelta(seconds=119)
    house.channel.fail = lambda _: None
    house.send()
    assert house.channel.sent == []
    house.now = START + timedelta(seconds=120)
    house.send()
    assert house.channel.kinds == ["ring"]


def test_one_message_that_is_refused_keeps_no_other_back(house: House) -> None:
    first, second = danger(house.engine, 0), danger(house.engine, 1)
    house.plan()
    house.channel.fail = lambda item: RefusedError("no") if item.alert and item.alert.alert_id == first else None
    house.send()
    assert [item.alert.alert_id for item, _ in house.channel.sent if item.alert] == [second]
    assert house.states() == {"pending": 1, "sent": 1}


def test_after_a_day_of_failures_a_message_is_given_up_kept_and_can_be_sent_again(house: House) -> None:
    danger(house.engine)
    house.plan()
    house.channel.fail = lambda _: DeliveryError("away")
    house.send()
    house.now = START + timedelta(hours=25)
    house.send()
    assert house.states() == {"failed": 1}
    assert ledger.waiting_by_receiver(house.engine) == {("desk", "failed"): 1}
    assert ledger.retry(house.engine, now=house.now, receiver="other") == 0
    assert ledger.retry(house.engine, now=house.now) == 1
    house.channel.fail = lambda _: None
    house.send()
    assert house.states() == {"sent": 1}


def test_a_message_that_was_held_for_a_weekend_is_not_given_up_at_its_first_failure(house: House) -> None:
    quiet.snooze(house.engine, house.alerts, "crossing", START + timedelta(days=3), by="Ada", now=NOON)
    danger(house.engine)
    house.plan()
    house.now = START + timedelta(days=3)
    house.channel.fail = lambda _: DeliveryError("away")
    house.send()
    assert house.states() == {"pending": 1}


def test_what_is_older_than_a_day_is_told_to_nobody(house: House) -> None:
    danger(house.engine)
    house.now = START + timedelta(hours=25)
    assert house.plan() == 0
    house.now = START
    assert house.plan() == 0  # it is marked as looked at


def test_a_verdict_of_today_does_not_tell_yesterday_s_alert(house: House) -> None:
    alert_id = danger(house.engine)
    house.now = START + timedelta(hours=25)
    given = VerdictGiven(at=house.now, alert_id=alert_id, verdict=Verdict.ACKNOWLEDGED, by="Ada")
    ledger_alerts.judge(house.engine, LIFECYCLE, given)
    assert house.plan() == 2
    assert house.states() == {}


# death


@pytest.mark.parametrize("where", ["plan", "claim", "deliver", "after delivery", "finish"])
def test_a_kill_anywhere_loses_nothing_and_repeats_only_under_the_same_id(
    house: House, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    ids = {danger(house.engine, number) for number in range(3)}

    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        if where == "plan":
            patch.setattr(ledger, "_keep", die)
        if where == "claim":
            patch.setattr(ledger, "_members", die)
        if where == "finish":
            patch.setattr(ledger, "finish", die)
        if where == "deliver":
            house.channel.fail = lambda _: Killed()
        if where == "after delivery":
            house.channel.after = die
        with pytest.raises(Killed):  # noqa: PT012  # wherever it dies
            house.plan()
            house.send()
    before = [item.notification_id for item, _ in house.channel.sent]
    house.channel.fail, house.channel.after = (lambda _: None), (lambda: None)
    house.plan()
    house.send()  # another process, while the dead one's claim holds
    house.now = START + timedelta(seconds=house.settings.claim_timeout)
    house.send()
    got = {item.alert.alert_id for item, _ in house.channel.sent if item.alert}
    assert got == ids
    sent = [item.notification_id for item, _ in house.channel.sent]
    assert len(set(sent)) == 3
    assert len(sent) == 3 + len(before)
    assert house.states() == {"sent": 3}


def test_two_processes_share_the_outbox_without_telling_anything_twice(house: House) -> None:
    for number in range(12):
        danger(house.engine, number)
    house.plan()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as processes:
        list(processes.map(lambda _: house.send(), range(4)))
    sent = [item.notification_id for item, _ in house.channel.sent]
    assert len(sent) == len(set(sent)) == 12


def test_while_the_database_is_away_the_service_waits_and_then_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_plan, real_claim, away = ledger.plan_pending, ledger.claim, {"plan": 3, "claim": 3}

    def flaky(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if away[what]:
                away[what] -= 1
                raise LedgerError("away")
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(ledger, "plan_pending", flaky("plan", real_plan))
    monkeypatch.setattr(ledger, "claim", flaky("claim", real_claim))
    danger(house.engine)
    stop = threading.Event()
    house.channel.after = stop.set
    service = house.service()
    service.POLL_SECONDS = service.BACKOFF_MAX = 0.02
    service.run(stop)
    assert house.channel.kinds == ["ring"]
    assert away == {"plan": 0, "claim": 0}


def test_an_error_of_our_own_ends_the_process_and_loses_nothing(house: House) -> None:
    """It is restarted by whoever runs it; to go on with a thread less would keep one receiver's messages back unseen."""
    danger(house.engine)
    house.channel.fail = lambda _: RuntimeError("a bug")
    service = house.service()
    service.POLL_SECONDS = 0.02
    with pytest.raises(RuntimeError, match="a bug"):
        service.run(threading.Event())
    assert house.states() == {"pending": 1}


def test_a_template_that_fails_keeps_its_message_until_it_is_mended(house: House, tmp_path: Any) -> None:
    file = tmp_path / "desk.jinja"
    file.write_text("not json", encoding="utf-8")
    house.receiver = house.receiver.model_copy(update={"template": file})
    danger(house.engine)
    house.plan()
    house.send()
    assert house.states() == {"pending": 1}
    file.write_text('{"text": {{ subject | tojson }}}', encoding="utf-8")
    house.now += timedelta(seconds=10)
    house.send()
    ((_, rendered),) = house.channel.sent
    assert rendered.body == b'{"text":"HIGH alert: tailgating, Camera crossing"}'
