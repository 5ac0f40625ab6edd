"""A real Chromium for tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.conftest import missing_component

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)

#: The pixels of a canvas, read from a copy (reading from the canvas itself makes the browser complain).
PIXELS = """if (!canvas.width || !canvas.height) return 0;  // not laid out yet
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  const context = copy.getContext("2d");
  context.drawImage(canvas, 0, 0);
  const pixels = context.getImageData(0, 0, copy.width, copy.height).data;"""

#: The share of a canvas' pixels that are not transparent.
PAINTED = f"""canvas => {{
  {PIXELS}
  let painted = 0;
  for (let index = 3; index < pixels.length; index += 4) if (pixels[index]) painted += 1;
  return painted / (pixels.length / 4);
}}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; a failure in CI and a skip elsewhere when there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        missing_component("no Chromium: install Debian's package chromium")
    with sync_playwright() as running:
        try:
            browser = running.chromium.launch(executable_path=found, args=ARGUMENTS)
        except PlaywrightError as error:
            missing_component(f"Chromium does not start: {error.message.splitlines()[0]}")
            raise
        yield browser
        browser.close()
