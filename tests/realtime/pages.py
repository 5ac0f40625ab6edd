"""The operator's page in a real Chromium, for the tests that look at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect
from sqlalchemy import text

from dangerous_driving.ledger.database import transaction
from tests.chromium import chromium

if TYPE_CHECKING:
    from tests.realtime.conftest import RunningBridge


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
