"""The operator's page in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect
from sqlalchemy import text

from dangerous_driving.contracts import AlertBasis, RiskLevel, Stage
from dangerous_driving.ledger.database import transaction
from tests.chromium import PAINTED, PIXELS, chromium
from tests.realtime.conftest import BridgeFactory, RunningBridge, a_frame, a_sighting, an_answer, moment

pytestmark = pytest.mark.integration

#: Whether a canvas has a pixel of about this colour.
HAS_COLOUR = f"""([canvas, wanted]) => {{
  {PIXELS}
  for (let index = 0; index < pixels.length; index += 4)
    if (pixels[index + 3] > 200 && wanted.every((part, at) => Math.abs(part - pixels[index + at]) < 12)) return true;
  return false;
}}"""
RED = [255, 93, 85]  # --high


@dataclass
class Watched:
    """A page and what its console said."""

    page: Page
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, timezone_id="UTC", locale="en-GB")
    context.set_default_timeout(20_000)
    expect.set_options(timeout=20_000)
    yield context
    context.close()


@pytest.fixture
def watched(context: BrowserContext) -> Iterator[Watched]:
    watched = Watched(context.new_page())
    yield watched
    assert watched.problems == []


def register_camera(bridge: RunningBridge, camera: str, name: str, kind: str, status: str = "online") -> None:
    with transaction(bridge.engine) as connection:
        connection.execute(
            text("INSERT INTO camera (id, name, kind, status) VALUES (:id, :name, :kind, :status)"),
            {"id": camera, "name": name, "kind": kind, "status": status},
        )


def open_page(watched: Watched, bridge: RunningBridge) -> Page:
    page = watched.page
    page.goto(bridge.url)
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    return page


def test_a_frame_is_shown_with_its_boxes_and_the_group_turns_red(bridge: RunningBridge, watched: Watched) -> None:
    register_camera(bridge, "north", "North gate", "simulated")
    page = open_page(watched, bridge)
    frame = a_frame(store=bridge.store)
    bridge.feed(frame)
    tile = page.locator('.tile[data-camera="north"]')
    expect(tile.locator(".name")).to_have_text("North gate")
    expect(tile.locator(".kind")).to_have_text("Simulated")
    expect(tile.locator(".picture")).to_have_attribute("aria-label", "North gate: 3 road users, 1 groups")
    overlay = tile.locator("canvas.overlay")
    assert tile.locator("canvas.picture").evaluate(PAINTED) > 0.99
    assert 0 < overlay.evaluate(PAINTED) < 0.5
    assert not page.evaluate(HAS_COLOUR, [overlay.element_handle(), RED])
    bridge.feed(an_answer(frame, stage=Stage.PROVISIONAL))
    page.wait_for_function(HAS_COLOUR, arg=[overlay.element_handle(), RED])


def test_a_live_alert_colours_its_group_in_the_next_frame_before_that_is_answered(
    bridge: RunningBridge, watched: Watched
) -> None:
    page = open_page(watched, bridge)
    bridge.decide(a_sighting(a_frame(at=moment(1.8))))
    bridge.feed(a_frame(store=bridge.store))
    tile = page.locator('.tile[data-camera="north"]')
    expect(tile).to_have_attribute("data-danger", "high")
    expect(tile.locator(".danger")).to_have_text("high alert")
    page.wait_for_function(HAS_COLOUR, arg=[tile.locator("canvas.overlay").element_handle(), RED])


def test_an_alert_appears_turns_final_is_acknowledged_and_survives_a_reload(
    bridge: RunningBridge, watched: Watched
) -> None:
    register_camera(bridge, "north", "North gate", "live")
    page = open_page(watched, bridge)
    page.locator("#operator").fill("Ada")
    frame = a_frame(store=bridge.store)
    bridge.decide(a_sighting(frame, kind=AlertBasis.PROVISIONAL))
    card = page.locator(".card")
    expect(card.locator(".stage")).to_have_text("Provisional · streamed")
    expect(card.locator(".camera")).to_have_text("North gate")
    expect(page.locator("#announcer")).to_have_text("High alert, North gate: Dangerous scene")
    expect(card.locator(".crop img")).to_be_visible()
    bridge.decide(a_sighting(frame))
    expect(card.locator(".stage")).to_have_text("Open")
    expect(card.locator(".types")).to_have_text("Pedestrian conflict")
    expect(card.locator(".description")).to_have_text("A person steps in front of a moving car")
    expect(page).to_have_title("(1) Dangerous Driving")
    card.get_by_role("button", name="Acknowledge").press("Enter")
    expect(card.locator(".verdict")).to_contain_text("Acknowledged by Ada at")
    page.reload()
    expect(page.locator(".card .verdict")).to_contain_text("Acknowledged by Ada at")
    assert page.locator(".card").count() == 1
    assert page.locator(".card .crop img").get_attribute("alt")


def test_a_card_is_judged_with_one_key(bridge: RunningBridge, watched: Watched) -> None:
    page = open_page(watched, bridge)
    bridge.decide(a_sighting(a_frame()))
    card = page.locator(".card")
    card.focus()
    page.keyboard.press("f")
    expect(card.locator(".verdict")).to_contain_text("False alarm by operator")
    expect(page).to_have_title("Dangerous Driving")


def test_another_browser_sees_the_verdict_at_once(
    bridge: RunningBridge, watched: Watched, context: BrowserContext
) -> None:
    page = open_page(watched, bridge)
    other = Watched(context.new_page())
    open_page(other, bridge)
    bridge.decide(a_sighting(a_frame()))
    page.locator(".card .reject").click()
    expect(other.page.locator(".card .verdict")).to_contain_text("False alarm")
    assert other.problems == []


def test_the_page_comes_back_after_a_restart_with_what_it_missed(
    bridge: RunningBridge, context: BrowserContext
) -> None:
    watched = Watched(context.new_page())  # the refused connections in between are in its console
    page = open_page(watched, bridge)
    bridge.decide(a_sighting(a_frame("a")))
    expect(page.locator(".card")).to_have_count(1)
    bridge.stop()
    expect(page.locator("#connection")).to_have_attribute("data-state", "reconnecting")
    bridge.decide(a_sighting(a_frame("b")), publish=False)
    bridge.restart()
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    expect(page.locator(".card")).to_have_count(2)


def test_text_of_the_llm_stays_text(bridge: RunningBridge, watched: Watched) -> None:
    page = open_page(watched, bridge)
    nasty = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
    look = a_sighting(a_frame(), description=nasty).model_copy(update={"risk_types": (nasty,)})
    bridge.decide(look)
    expect(page.locator(".card .description")).to_have_text(nasty)
    assert page.locator(".card .description *, .card .types *, #announcer *").count() == 0
    assert "owned" not in page.title()


def test_what_is_not_live_is_said(start_bridge: BridgeFactory, watched: Watched) -> None:
    bridge = start_bridge(demo_banner=True)
    register_camera(bridge, "a", "A", "simulated")
    register_camera(bridge, "b", "B", "replay")
    register_camera(bridge, "c", "C", "live", status="offline")
    page = open_page(watched, bridge)
    notice = page.locator("#notice")
    expect(notice).to_contain_text("Demo")
    expect(notice).to_contain_text("1 simulated camera, rendered scenes")
    expect(notice).to_contain_text("1 replayed camera")
    expect(notice).to_contain_text("simulated LLM")
    expect(page.locator("#gauge-cameras")).to_have_text("2 / 3")
    expect(page.locator('.tile[data-camera="c"] .reason')).to_have_text("Offline")
    assert page.locator('.tile[data-camera="c"] .kind').is_hidden()


def test_the_feed_is_filtered(bridge: RunningBridge, watched: Watched) -> None:
    page = open_page(watched, bridge)
    bridge.decide(a_sighting(a_frame("a", moment(3)), RiskLevel.MEDIUM))
    bridge.decide(a_sighting(a_frame("b")))
    cards = page.locator(".card:visible")
    expect(cards).to_have_count(2)
    page.locator("#filter-level").select_option("high")
    expect(cards).to_have_count(1)
    page.locator("#filter-level").select_option("low")
    cards.first.locator(".acknowledge").click()
    page.locator("#filter-state").select_option("unjudged")
    expect(cards).to_have_count(1)


def test_a_page_without_token_asks_for_it(start_bridge: BridgeFactory, context: BrowserContext) -> None:
    bridge = start_bridge(token="correct horse battery staple")
    bridge.decide(a_sighting(a_frame()))
    watched = Watched(context.new_page())  # the refused request is in its console
    page = watched.page
    page.goto(bridge.url)
    page.locator("#token").fill("wrong")
    page.get_by_role("button", name="Connect").click()
    expect(page.locator("#login-problem")).to_have_text("This token is not accepted.")
    page.locator("#token").fill("correct horse battery staple")
    page.keyboard.press("Enter")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    expect(page.locator(".card")).to_have_count(1)
    assert all("401" in problem for problem in watched.problems)


def test_on_a_phone_alerts_and_cameras_are_two_views(bridge: RunningBridge, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    expect.set_options(timeout=20_000)
    try:
        watched = Watched(context.new_page())
        page = open_page(watched, bridge)
        frame = a_frame(store=bridge.store)
        bridge.feed(frame)
        bridge.decide(a_sighting(frame))
        expect(page.locator(".card")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("button", name="Cameras").click()
        expect(page.locator(".tile")).to_be_visible()
        expect(page.locator(".card")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert watched.problems == []
    finally:
        context.close()
