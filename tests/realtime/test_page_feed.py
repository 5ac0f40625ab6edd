"""The feed of the operator's page over a long shift: many alerts, long breaks, and links to single ones."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect
from sqlalchemy import text

from dangerous_driving.contracts import Alert, AlertState
from dangerous_driving.ledger.database import transaction
from tests.realtime.conftest import BridgeFactory, RunningBridge, a_frame, a_sighting, moment
from tests.realtime.pages import Watched, open_page
from tests.realtime.test_hub import alert

pytestmark = pytest.mark.integration

MOST_CARDS = 300  # as feed.js has it


def an_alert(number: int, state: AlertState = AlertState.CLOSED) -> Alert:
    """As the topic brings it: a higher number opened later."""
    at = moment(3000 - number)
    return alert(number, state=state, opened_at=at, last_seen_at=at, updated_at=at)


def bring(bridge: RunningBridge, page: Page, numbers: Iterable[int]) -> None:
    """Closed alerts of these numbers come, and are shown."""
    for number in numbers:
        bridge.feed(an_alert(number))
    expect(card(page, f"alert{number}")).to_be_attached()


def keep_closed(bridge: RunningBridge, count: int, begin: float) -> list[Alert]:
    """Alerts that the ledger holds, closed; the first opened last, `begin` seconds ago."""
    looks = [a_sighting(a_frame(f"busy{number}", moment(begin + number))) for number in range(count)]
    kept = bridge.decide(*looks, publish=False)
    close(bridge, "busy", changes=0)
    return sorted(kept, key=lambda each: each.opened_at, reverse=True)


def close(bridge: RunningBridge, cameras: str, changes: int = 1) -> None:
    """Alerts of the cameras whose ids begin so ended long ago, and nobody is told: not with what a connection resumes either."""
    with transaction(bridge.engine) as connection:
        connection.execute(
            text(
                "UPDATE alert SET state = 'closed', version = version + :changes, updated_at = updated_at - interval '1 hour'"
                " WHERE camera_id LIKE :cameras"
            ),
            {"cameras": f"{cameras}%", "changes": changes},
        )


def card(page: Page, alert_id: str) -> Locator:
    return page.locator(f'.card[data-alert="{alert_id}"]')


# more alerts than the list has room for


def test_a_live_alert_stays_however_many_come_after_it(start_bridge: BridgeFactory, watched: Watched) -> None:
    bridge = start_bridge(client_queue=1000)
    keep_closed(bridge, 1, begin=4000)
    page = open_page(watched, bridge)
    bridge.feed(an_alert(0, AlertState.OPEN))
    bring(bridge, page, range(1, MOST_CARDS + 6))
    expect(page.locator(".card")).to_have_count(MOST_CARDS)
    expect(card(page, "alert0").locator(".stage")).to_have_text("Open")
    expect(page).to_have_title("(1) Dangerous Driving")
    # those that went are not live
    expect(card(page, "alert6")).to_have_count(0)


def test_older_alerts_are_added_to_a_full_list_and_none_is_left_out(
    start_bridge: BridgeFactory, watched: Watched
) -> None:
    bridge = start_bridge(client_queue=1000)
    keep_closed(bridge, 110, begin=4000)
    page = open_page(watched, bridge)
    cards = page.locator(".card")
    expect(cards).to_have_count(50)
    bring(bridge, page, range(260))  # ten of the fifty go
    expect(cards).to_have_count(MOST_CARDS)
    older = page.get_by_role("button", name="Show older alerts")
    older.click()
    expect(cards).to_have_count(350)
    older.click()
    expect(cards).to_have_count(370)
    expect(older).to_be_hidden()


def test_the_alert_that_somebody_looks_at_stays_and_can_be_judged(
    start_bridge: BridgeFactory, watched: Watched
) -> None:
    bridge = start_bridge(client_queue=1000)
    (kept,) = keep_closed(bridge, 1, begin=4000)
    page = open_page(watched, bridge)
    bring(bridge, page, range(MOST_CARDS - 1))
    looked_at = card(page, kept.alert_id)
    looked_at.focus()
    bring(bridge, page, range(300, 305))
    expect(looked_at).to_be_focused()
    page.keyboard.press("Enter")
    detail = page.locator("#detail")
    expect(detail.locator(".steps li")).to_have_count(1)
    bring(bridge, page, range(305, 310))
    expect(page.locator(".card")).to_have_count(MOST_CARDS)
    detail.get_by_role("button", name="Acknowledge").click()
    expect(detail.locator(".verdict")).to_contain_text("Acknowledged by operator")
    expect(looked_at.locator(".verdict")).to_contain_text("Acknowledged by operator")


# breaks that are too long to resume


def test_after_a_long_break_the_page_shows_what_the_ledger_holds(
    bridge: RunningBridge, context: BrowserContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dangerous_driving.realtime.socket.RESUME_LIMIT", 0)
    (over,) = bridge.decide(a_sighting(a_frame("over", moment(100))), publish=False)
    (lasting,) = bridge.decide(a_sighting(a_frame("lasting", moment(90))), publish=False)
    watched = Watched(context.new_page())  # the refused connections in between are in its console
    page = open_page(watched, bridge)
    expect(page).to_have_title("(2) Dangerous Driving")
    bridge.stop()
    expect(page.locator("#connection")).to_have_attribute("data-state", "reconnecting")
    (unseen,) = bridge.decide(a_sighting(a_frame("unseen", moment(80))), publish=False)
    close(bridge, "over")
    keep_closed(bridge, 60, begin=1)
    bridge.restart()
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    expect(page.locator(".card")).to_have_count(52)
    expect(page.locator('.card[data-state="open"]')).to_have_count(2)
    for live in (lasting, unseen):
        expect(card(page, live.alert_id).locator(".stage")).to_have_text("Open")
    expect(page).to_have_title("(2) Dangerous Driving")
    page.get_by_role("button", name="Show older alerts").click()
    expect(page.locator(".card")).to_have_count(63)
    expect(card(page, over.alert_id).locator(".stage")).to_have_text("Closed")


def test_the_detail_that_is_open_over_a_long_break_is_brought_up_to_date(
    bridge: RunningBridge, context: BrowserContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dangerous_driving.realtime.socket.RESUME_LIMIT", 0)
    (over,) = bridge.decide(a_sighting(a_frame("over", moment(100))), publish=False)
    page = open_page(Watched(context.new_page()), bridge)
    page.locator(".card").press("Enter")
    detail = page.locator("#detail")
    expect(detail.locator(".standing")).to_have_text("Open")
    bridge.stop()
    close(bridge, "over")
    keep_closed(bridge, 60, begin=1)
    bridge.decide(a_sighting(a_frame("unseen")), publish=False)
    bridge.restart()
    expect(detail.locator(".standing")).to_have_text("Closed")
    expect(card(page, over.alert_id).locator(".stage")).to_have_text("Closed")


def test_what_could_not_be_read_after_a_long_break_is_asked_for_again(
    bridge: RunningBridge, context: BrowserContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dangerous_driving.realtime.socket.RESUME_LIMIT", 0)
    bridge.decide(a_sighting(a_frame("seen")), publish=False)
    page = open_page(Watched(context.new_page()), bridge)
    expect(page.locator(".card")).to_have_count(1)
    bridge.stop()
    bridge.decide(a_sighting(a_frame("missed")), publish=False)
    refused: list[str] = []

    def refuse_twice(route: Route) -> None:
        if len(refused) >= 2:
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(status=503, json={"detail": "the database does not answer: try again"})

    page.route(re.compile(r"/api/alerts\?"), refuse_twice)
    bridge.restart()
    expect(page.locator("#toast")).to_have_text("the database does not answer: try again")
    expect(page.locator(".card")).to_have_count(2)
    assert len(refused) == 2


# links in notifications


def test_a_link_opens_its_alert_wherever_it_is(bridge: RunningBridge, watched: Watched) -> None:
    kept = keep_closed(bridge, 60, begin=10)
    newest, oldest = kept[0], kept[-1]
    page = watched.page
    page.goto(f"{bridge.url}/#alert={oldest.alert_id}")
    detail = page.locator("#detail")
    expect(detail).to_be_visible()
    expect(detail).to_have_attribute("data-alert", oldest.alert_id)
    expect(detail.locator(".where")).to_contain_text(oldest.camera_id)
    expect(page.locator(".card")).to_have_count(50)
    expect(card(page, oldest.alert_id)).to_have_count(0)
    detail.get_by_role("button", name="False alarm").click()  # it has no card
    expect(detail.locator(".verdict")).to_contain_text("False alarm by operator")
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("#alerts$"))
    for linked in (newest, oldest, oldest):  # twice the same: it was closed in between
        page.evaluate("hash => { location.hash = hash; }", f"#alert={linked.alert_id}")
        expect(detail).to_be_visible()
        expect(detail).to_have_attribute("data-alert", linked.alert_id)
        page.keyboard.press("Escape")
        expect(detail).to_be_hidden()
        expect(page).to_have_url(re.compile("#alerts$"))  # from here on the same link is another one


def test_a_link_opens_another_alert_over_an_open_one_and_the_way_back_closes_it(
    bridge: RunningBridge, watched: Watched
) -> None:
    first, second = keep_closed(bridge, 2, begin=10)
    page = open_page(watched, bridge)
    detail = page.locator("#detail")
    for linked in (first, second):
        page.evaluate("hash => { location.hash = hash; }", f"#alert={linked.alert_id}")
        expect(detail).to_have_attribute("data-alert", linked.alert_id)
    page.go_back()
    expect(detail).to_have_attribute("data-alert", first.alert_id)
    page.go_back()
    expect(detail).to_be_hidden()


@pytest.mark.parametrize("link", ["never-opened", "%", "..%2Fcameras", ""])
def test_a_link_to_no_alert_says_so(bridge: RunningBridge, context: BrowserContext, link: str) -> None:
    watched = Watched(context.new_page())  # the answer 404 is in its console
    page = watched.page
    page.goto(f"{bridge.url}/#alert={link}")
    expect(page.locator("#toast")).to_have_text("There is no such alert. It may be too old to be kept.")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page).to_have_url(re.compile("#alerts$"))
    assert all("404" in problem or "422" in problem for problem in watched.problems), watched.problems


def test_a_link_is_followed_once_the_token_is_given(start_bridge: BridgeFactory, context: BrowserContext) -> None:
    bridge = start_bridge(token="correct horse battery staple")
    (kept,) = keep_closed(bridge, 1, begin=10)
    page = context.new_page()
    page.goto(f"{bridge.url}/#alert={kept.alert_id}")
    page.locator("#token").fill("correct horse battery staple")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    expect(page.locator("#detail")).to_have_attribute("data-alert", kept.alert_id)
