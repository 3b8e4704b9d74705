"""Makes practice.png, the picture of `liftax practice --serve`, with a headless Chromium.

python docs/images/make_practice.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from liftax.practice.exercises import find

SIZE = {"width": 1480, "height": 1300}
EXERCISE = find("composed-lifts")


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "liftax", "practice", "--serve", "--dir", folder],
            stdout=subprocess.PIPE,
            text=True,
        )
        found = (re.search(r"http://\S+token=\S+", line) for line in server.stdout)
        url = next(match[0] for match in found if match)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE)
            page.goto(url)
            page.get_by_role("button", name="11 composed-lifts").click()
            page.get_by_text(EXERCISE.title).wait_for()
            page.locator(".cm-content").click()
            page.keyboard.press("Control+a")
            page.keyboard.insert_text(EXERCISE.text("wrong/ensemble.py").partition("\n")[2])
            page.get_by_role("button", name="Check", exact=True).click()
            page.locator(".verdict").wait_for()
            page.evaluate("document.querySelector('.cm-scroller').scrollLeft = 0; scrollTo(0, 0)")
            page.wait_for_timeout(500)
            page.screenshot(path=Path(__file__).with_name("practice.png"))
            browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
