"""The operator's page in a real Chromium."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, WebSocketRoute, expect
from sqlalchemy import text

from dangerous_driving.contracts import AlertBasis, RiskLevel, Stage
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.realtime.app import PAGE
from tests.chromium import PAINTED, PIXELS
from tests.realtime.conftest import BridgeFactory, RunningBridge, a_frame, a_sighting, an_answer, moment
from tests.realtime.pages import Watched, open_page, register_camera

pytestmark = pytest.mark.integration

#: Whether a canvas has a pixel of about this colour.
HAS_COLOUR = f"""([canvas, wanted]) => {{
  {PIXELS}
  for (let index = 0; index < pixels.length; index += 4)
    if (pixels[index + 3] > 200 && wanted.every((part, at) => Math.abs(part - pixels[index + at]) < 12)) return true;
  return false;
}}"""
RED = [255, 93, 85]  # --high


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


def test_an_alert_between_the_first_look_and_the_connection_is_not_missed(
    bridge: RunningBridge, watched: Watched
) -> None:
    def late(socket: WebSocketRoute) -> None:
        bridge.decide(a_sighting(a_frame()), publish=False)  # the ledger has been read, and nobody is there to be told
        socket.connect_to_server()

    watched.page.route_web_socket(re.compile("/ws"), late)
    page = open_page(watched, bridge)
    expect(page.locator(".card")).to_have_count(1)


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


# what the operator does


def test_an_alert_from_its_first_sight_to_a_verdict_that_everybody_has(
    bridge: RunningBridge, browser: Browser, context: BrowserContext
) -> None:
    register_camera(bridge, "north", "North gate", "live")
    operator = Watched(context.new_page())
    page = open_page(operator, bridge)
    other_context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="zh-CN", timezone_id="UTC")
    other_context.set_default_timeout(20_000)
    try:
        other = Watched(other_context.new_page())
        elsewhere = open_page(other, bridge)
        frame = a_frame(store=bridge.store)
        bridge.feed(frame)
        bridge.decide(a_sighting(frame, kind=AlertBasis.PROVISIONAL))
        card = page.locator(".card")
        expect(card.locator(".stage")).to_have_text("Provisional · streamed")
        expect(card.locator(".times li")).to_have_text([re.compile(r"streamed level \d+\.\d s")])
        (alert,) = bridge.decide(a_sighting(frame))
        expect(card.locator(".stage")).to_have_text("Open")
        expect(card.locator(".times li")).to_have_text([re.compile("streamed level"), re.compile("final answer")])
        page.locator("body").press("n")
        expect(card).to_be_focused()
        page.keyboard.press("a")
        expect(card.locator(".verdict")).to_contain_text("Acknowledged by operator at")
        expect(elsewhere.locator(".card .verdict")).to_contain_text("已确认（operator")
        assert operator.problems == []
        assert other.problems == []
        page.reload()
        expect(page.locator(".card .verdict")).to_contain_text("Acknowledged by operator at")
        expect(page.locator(".card .times li")).to_have_count(2)
        # refused connections while the bridge is away are in the consoles, and nothing else
        bridge.restart()
        for shown in (page, elsewhere):
            expect(shown.locator("#connection")).to_have_attribute("data-state", "live")
            expect(shown.locator(".card .verdict")).to_be_visible()
        bridge.decide(a_sighting(a_frame("south")))
        for shown in (page, elsewhere):
            expect(shown.locator(".card")).to_have_count(2)
        assert page.locator(f'.card[data-alert="{alert.alert_id}"]').count() == 1
        for watched in (operator, other):
            assert all("ERR_" in problem or "WebSocket" in problem for problem in watched.problems), watched.problems
    finally:
        other_context.close()


def test_an_alert_is_seen_frame_by_frame_with_how_it_came_about(bridge: RunningBridge, watched: Watched) -> None:
    frames = [a_frame(at=moment(8 - 1.8 * number), store=bridge.store) for number in range(4)]
    record_detections(bridge.engine, Partitions(), frames, [], window_length=3600)
    page = open_page(watched, bridge)
    bridge.decide(a_sighting(frames[2], kind=AlertBasis.PROVISIONAL))
    bridge.decide(a_sighting(frames[2]))
    page.locator(".card").press("Enter")
    detail = page.locator("#detail")
    expect(detail).to_be_visible()
    expect(detail.locator(".strip button span")).to_have_text(["before", "before", "alert", "after"])
    expect(detail.locator(".steps li")).to_have_count(2)
    expect(detail.locator(".steps li").first).to_contain_text("streamed level, opened · high")
    expect(detail.locator(".caption")).to_contain_text("Frame 3 of 4, alert")
    page.wait_for_function(HAS_COLOUR, arg=[detail.locator("canvas.overlay").element_handle(), RED])
    assert detail.locator("canvas.picture").evaluate(PAINTED) > 0.99
    page.keyboard.press("ArrowRight")
    expect(detail.locator(".caption")).to_contain_text("Frame 4 of 4, after")
    expect(detail.get_by_role("button", name="Next frame")).to_be_disabled()
    detail.locator(".note").fill("patrol <b>sent</b>")
    detail.get_by_role("button", name="False alarm").click()
    expect(detail.locator(".verdict")).to_contain_text("False alarm by operator")
    expect(detail.locator(".verdict")).to_contain_text("patrol <b>sent</b>")
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    expect(page.locator(".card .verdict")).to_contain_text("patrol <b>sent</b>")


def build_marts(bridge: RunningBridge) -> None:
    """The tables of the marts that the page shows, as dbt builds them."""
    with transaction(bridge.engine) as connection:
        connection.execute(text("CREATE SCHEMA marts"))
        connection.execute(
            text(
                "CREATE TABLE marts.camera_hourly_risk AS SELECT 'north' AS camera_id, date_trunc('hour', now()) - n * interval"
                " '1 hour' AS hour_started_at, 2000::bigint AS frames, 5000::numeric AS road_users_seen, 40::bigint AS"
                " scenes_none, 10::bigint AS scenes_low, 5::bigint AS scenes_medium, (n % 5)::bigint AS scenes_high,"
                " (5 + n % 5)::bigint AS dangerous_scenes FROM generate_series(0, 23) AS n"
            )
        )
        connection.execute(
            text(
                "CREATE TABLE marts.junction_ranking AS SELECT days AS period_days, camera_id, place AS place_most_dangerous,"
                " evidence AS against_all_cameras, dangers, 1000 AS road_users_seen, dangers::float8 AS"
                " dangers_per_1000_road_users, dangers / 2.0::float8 AS dangers_per_1000_road_users_lower, dangers * 2.0::float8"
                " AS dangers_per_1000_road_users_upper FROM (VALUES (7, 'north', 1, 'more dangerous', 12), (7, 'south', 2,"
                " 'no evidence', 3), (28, 'south', 1, 'no evidence', 9), (7, 'blind', NULL, 'nothing seen', 0))"
                " AS ranked (days, camera_id, place, evidence, dangers)"
            )
        )


def test_the_history_shows_what_the_marts_and_the_ledger_hold(bridge: RunningBridge, watched: Watched) -> None:
    register_camera(bridge, "north", "North gate", "live")
    bridge.decide(a_sighting(a_frame()))
    page = open_page(watched, bridge)
    page.get_by_role("button", name="History").click()
    expect(page.locator("#history-notice")).to_be_visible()
    expect(page.locator("#history-alerts .plot")).to_have_attribute("aria-label", re.compile("not judged 1"))
    build_marts(bridge)
    page.locator("#history-span").select_option("7d")
    expect(page.locator("#history-notice")).to_be_hidden()
    expect(page.locator("#history-scenes .plot")).to_have_attribute(
        "aria-label", re.compile("high 46, medium 120, low 240")
    )
    assert page.locator("#history-scenes canvas").evaluate(PAINTED) > 0.005
    expect(page.locator("#history-cameras tbody tr")).to_have_text(re.compile(r"^North gate1\.4166120000"))
    expect(page.locator("#history-delays tbody tr")).to_have_count(1)
    page.locator("#history-scenes summary").click()
    expect(page.locator("#history-scenes details td").first).to_be_visible()
    expect(page.locator("#history-junctions tbody tr")).to_have_text(
        [
            re.compile(r"^1\. North gate.*12\.00 \(6\.00–24\.00\)12more dangerous"),
            re.compile(r"^2\. south.*no evidence"),
        ]
    )
    page.locator("#history-span").select_option("30d")
    expect(page.locator("#history-junctions tbody tr")).to_have_text([re.compile(r"^1\. south")])
    page.go_back()
    expect(page.locator("#alerts")).to_be_visible()


def test_keys_and_lag_are_shown_by_hash_and_service(bridge: RunningBridge, watched: Watched) -> None:
    with transaction(bridge.engine) as connection:
        connection.execute(
            text("INSERT INTO api_key (key_hash, label, qps_limit, rpm_limit) VALUES ('key_hash_1', '', 10, 300)")
        )
        connection.execute(
            text("INSERT INTO key_reservation (key_hash, lane, reserved_at) SELECT 'key_hash_1', 'realtime', now() FROM"
                 " generate_series(1, 42)")
        )  # fmt: skip
    page = open_page(watched, bridge)
    page.get_by_role("button", name="System").click()
    expect(page.locator("#system-keys li")).to_contain_text("key_hash_1")
    expect(page.locator("#system-keys .used")).to_have_text("42 of 300 a minute")
    expect(page.locator("#system-lag")).to_have_text("The broker does not answer.")


def test_a_camera_is_stopped_by_two_presses_and_started_by_one(bridge: RunningBridge, watched: Watched) -> None:
    register_camera(bridge, "north", "North gate", "live")
    page = open_page(watched, bridge)
    tile = page.locator('.tile[data-camera="north"]')
    tile.get_by_role("button", name="Stop: North gate").click()
    tile.get_by_role("button", name="Stop watching?: North gate").click()
    expect(tile.locator(".reason")).to_have_text("Stopped by an operator")
    tile.get_by_role("button", name="Start: North gate").click()
    expect(tile).to_have_attribute("data-status", "online")


def test_the_page_speaks_chinese_and_is_silent_until_told(bridge: RunningBridge, watched: Watched) -> None:
    bridge.decide(a_sighting(a_frame()))
    page = open_page(watched, bridge)
    expect(page.locator("#sound")).to_have_attribute("aria-pressed", "false")
    page.locator("#sound").click()
    expect(page.locator("#sound")).to_have_attribute("aria-pressed", "true")
    page.locator("#language").select_option("zh")
    expect(page.locator("#feed-title")).to_have_text("警报")
    expect(page.locator(".card .types")).to_have_text("人车冲突")
    expect(page.locator("html")).to_have_attribute("lang", "zh")
    page.reload()
    expect(page.locator(".card .acknowledge")).to_have_text("确认")
    expect(page.locator("#sound")).to_have_attribute("aria-pressed", "true")


def test_both_languages_have_the_same_texts_and_all_that_the_page_asks_for(
    bridge: RunningBridge, watched: Watched
) -> None:
    source = (PAGE / "i18n.js").read_text(encoding="utf-8")
    english, chinese = (
        set(
            re.findall(
                r'(?:^\s*|[,{]\s*)"?([\w.]+)"?: "', source.split(f"const {name} = {{")[1].split("\n};")[0], re.MULTILINE
            )
        )
        for name in ("en", "zh")
    )
    assert english == chinese
    asked = set(
        re.findall(r'data-t(?:-label|-hint|-title)?="([^"]+)"', (PAGE / "index.html").read_text(encoding="utf-8"))
    )
    for script in PAGE.glob("*.js"):
        asked |= set(re.findall(r'\bt\("([^"$]+)"[,)]', script.read_text(encoding="utf-8")))
    assert asked <= english, asked - english
    page = open_page(watched, bridge)
    assert not page.evaluate("[...document.querySelectorAll('[data-t]')].filter((e) => !e.textContent).length")


def test_a_viewer_sees_no_buttons_that_would_be_refused(start_bridge: BridgeFactory, context: BrowserContext) -> None:
    bridge = start_bridge(token="for the display in the hall", token_role="viewer")
    register_camera(bridge, "north", "North gate", "live")
    bridge.decide(a_sighting(a_frame()))
    page = context.new_page()
    page.add_init_script("sessionStorage.setItem('dangerous-driving.token', 'for the display in the hall')")
    watched = Watched(page)
    open_page(watched, bridge)
    expect(page.locator(".card .acknowledge")).to_be_hidden()
    expect(page.locator(".tile .switch")).to_be_hidden()
    expect(page.locator(".operator")).to_be_hidden()
    assert watched.problems == []


# people who do not see, or use no mouse


@pytest.mark.parametrize("width", [1440, 390])
def test_an_accessibility_checker_finds_nothing_serious(bridge: RunningBridge, browser: Browser, width: int) -> None:
    register_camera(bridge, "north", "North gate", "simulated")
    register_camera(bridge, "south", "South gate", "live", status="offline")
    build_marts(bridge)
    frame = a_frame(store=bridge.store)
    record_detections(bridge.engine, Partitions(), [frame], [], window_length=3600)
    context = browser.new_context(viewport={"width": width, "height": 900}, locale="en-GB", reduced_motion="reduce")
    context.set_default_timeout(20_000)
    try:
        page = context.new_page()
        page.goto(bridge.url)
        bridge.feed(frame)
        bridge.decide(a_sighting(frame))
        bridge.decide(a_sighting(a_frame("south"), kind=AlertBasis.PROVISIONAL))
        expect(page.locator(".card")).to_have_count(2)
        page.locator(".card .reject").first.click()
        expect(page.locator(".card .verdict:visible")).to_have_count(1)
        require_accessible(page, "alerts")
        page.locator('.card[data-level="high"]').last.press("Enter")
        expect(page.locator("#detail .caption")).to_contain_text("Frame 1")
        require_accessible(page, "detail")
        page.keyboard.press("Escape")
        if width == 1440:
            page.keyboard.press("?")
            require_accessible(page, "help")
            page.keyboard.press("Escape")
        for view in ("cameras", "history", "system"):
            page.goto(f"{bridge.url}/#{view}")
            if view == "history":
                expect(page.locator("#history-cameras tbody tr")).to_have_count(2)
            require_accessible(page, view)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    finally:
        context.close()


def require_accessible(page: Page, what: str) -> None:
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [
        (rule["id"], rule["impact"], [node["html"][:120] for node in rule["nodes"][:3]])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == [], what
