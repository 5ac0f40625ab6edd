"""The documentation's pictures of the page, taken from a running demo in a real Chromium.

::

    make pictures          # beside `make demo` that has run for ten minutes; nothing else on the machine

Writes ``docs/demo.png``, ``wall.png``, ``alert.png``, ``history.png`` and ``phone.png``. What is simulated is labelled on the
page itself. One camera is stopped for the wall and started again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[1]
#: s for something to appear
PATIENCE = 120


def get(address: str, path: str) -> Any:
    """What the bridge answers."""
    with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
        return json.load(answer)


def order(address: str, path: str) -> None:
    """Have the bridge do something."""
    body, kind = b'{"by": "night shift"}', {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{address}{path}", body, kind, method="POST"), timeout=10).close()


def worth_showing(address: str) -> str:
    """The newest high alert whose streamed level was confirmed by the whole answer; else the newest of all."""
    found = get(address, "api/alerts?limit=200")
    for alert in found["items"]:
        stages = [stage["stage"] for stage in found["stages"].get(alert["alertId"], ())]
        if alert["peakLevel"] == "high" and {"provisional", "final"} <= set(stages):
            return str(alert["alertId"])
    return str(found["items"][0]["alertId"])


def opened(browser: Browser, address: str, width: int, height: int, *, scale: float = 1) -> Page:
    """The page with its cameras painted."""
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
    page.goto(address)
    page.wait_for_selector("#alerts .card .crop img", timeout=PATIENCE * 1000)
    return page


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", default="http://127.0.0.1:8080/", help="of the running demo")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs")
    arguments = parser.parse_args()
    address, out = arguments.page, arguments.out
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = opened(browser, address, 1440, 800)
        time.sleep(8)  # frames come every 1.8 s: each tile has some
        page.screenshot(path=out / "demo.png")

        last = get(address, "api/cameras")[-1]["cameraId"]
        order(address, f"api/cameras/{last}/stop")
        page.set_viewport_size({"width": 1440, "height": 900})
        time.sleep(10)
        page.screenshot(path=out / "wall.png")
        order(address, f"api/cameras/{last}/start")

        page.goto(f"{address}#alert={worth_showing(address)}")
        page.wait_for_selector("#detail canvas", timeout=PATIENCE * 1000)
        time.sleep(5)
        page.screenshot(path=out / "alert.png")
        page.keyboard.press("Escape")

        page.locator('[data-show="history"]').click()
        page.locator("#history-span").select_option("1h")
        time.sleep(3)
        page.screenshot(path=out / "history.png", full_page=True)

        phone = opened(browser, address, 390, 844, scale=2)
        time.sleep(5)
        phone.screenshot(path=out / "phone.png")
        browser.close()
    print(f"pictures in {out}")


if __name__ == "__main__":
    main()
