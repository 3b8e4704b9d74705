"""The practice in a real browser: solved by typing, each mistake told, and closed to all others."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liftax.practice.exercises import find
from liftax.practice.places import Place

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("nicegui")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]

EXERCISE = find("composed-lifts")
PITFALLS = {
    "reversed": "the order of the lifts is reversed",
    "ensemble": "the vmap gave every example weights of its own",
    "split_shared": "LX201",
    "width": "LX102",
}


@dataclass
class Server:
    """A running `liftax practice --serve`."""

    place: Place
    url: str

    @property
    def bare(self) -> str:
        return self.url.partition("?")[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    place = Place(tmp_path_factory.mktemp("served") / "files")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "liftax", "practice", "--serve", "--dir", str(place.folder)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--seconds", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # It looks for pytest, and then does not start as it would.
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
    )
    try:
        assert process.stdout is not None
        found = (re.search(r"http://\S+token=\S+", line) for line in process.stdout)
        url = next(match[0] for match in found if match)
        # The address is said while the server starts; it listens a moment later.
        for _ in range(3_000):
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.1)
        yield Server(place, url)
    finally:
        process.terminate()
        process.wait(300)
        process.stdout.close()


@pytest.fixture(scope="module")
def page(server) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(500_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(server.url)
        with contextlib.closing(browser):
            yield page


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def typed(page: Any, source: str) -> None:
    page.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(source)


def checked(page: Any, source: str) -> str:
    """What the page says of an answer that is typed into its editor."""
    typed(page, source)
    button(page, "Check").click()
    page.locator(".q-spinner").wait_for()
    page.locator(".verdict").wait_for()
    return " ".join(page.locator(".verdict").inner_text().split())


def test_solved_by_typing(page, server):
    button(page, "11 composed-lifts").click()
    page.get_by_text(EXERCISE.title).wait_for()
    for name, words in PITFALLS.items():
        said = checked(page, EXERCISE.text(f"wrong/{name}.py"))
        assert words in said, said
    # Two layouts side by side where the layouts differ; a run that fails has none.
    checked(page, EXERCISE.text("wrong/ensemble.py"))
    assert page.locator(".sides > div").count() == 2
    assert page.locator(".sides .row.differs").count() == 4
    assert server.place.read(EXERCISE) == EXERCISE.text("wrong/ensemble.py")
    assert page.get_by_text("0 of 20 solved").count() == 1

    phone(page)
    said = checked(page, EXERCISE.solution)
    assert "passed" in said
    page.get_by_text("1 of 20 solved").wait_for(state="attached")
    assert server.place.progress.solved == ["composed-lifts"]
    phone(page)
    page.set_viewport_size({"width": 1400, "height": 1000})


def phone(page: Any) -> None:
    """On a phone's width everything is there, and nothing is cut off at the side."""
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    assert page.locator(".cm-content").is_visible() and button(page, "Check").is_visible()


def test_hints_one_by_one_and_the_file_as_shipped(page, server):
    exercise = find("scan-depth")
    button(page, "4 scan-depth").click()
    page.get_by_text(exercise.title).wait_for()
    button(page, "Solution").click()
    page.get_by_text("The solution is shown when you have passed").wait_for()
    for i in range(1, 6):
        button(page, "Hint").click()
        page.get_by_text(f"Hint {i} of 5").wait_for()
    page.get_by_text("The solution:").wait_for()
    typed(page, "# mine")
    button(page, "Reset").click()
    page.get_by_text("yours is kept as").wait_for()
    assert server.place.read(exercise) == exercise.start
    assert [f.read_text() for f in server.place.folder.glob("04*.kept")] == ["# mine"]


def test_nothing_is_fetched_from_elsewhere(page, server):
    asked = [url for url in page.asked if not url.startswith(("data:", "blob:"))]
    assert asked and all(url.startswith(server.bare) for url in asked)


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_only_the_learner_s_own_page_is_served(server):
    assert status(server.url) == 200
    assert status(server.bare) == 403
    assert status(server.bare + "?token=guess") == 403
    assert status(server.url, Origin="http://evil.example") == 403
    assert status(server.url, Origin="null") == 403
    assert status(server.url, Host="evil.example") == 403
    assert status(server.bare + "_nicegui_ws/socket.io/?EIO=4&transport=polling") == 403


def test_a_web_socket_of_another_page_is_closed(server):
    address = re.search(r"127\.0\.0\.1:(\d+)", server.bare)
    with socket.create_connection(("127.0.0.1", int(address[1]))) as connection:
        connection.sendall(
            b"GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
            b"Host: " + address[0].encode() + b"\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b" 403 " in connection.recv(200).split(b"\r\n")[0]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux")
def test_it_listens_on_loopback_alone(server):
    port = int(re.search(r":(\d+)/", server.bare)[1])
    listening, found = "0A", set()
    for _ in range(200):  # the kernel's list may miss a line while others come and go
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        found |= {row[1] for row in rows if row[3] == listening and row[1].endswith(f":{port:04X}")}
        if found:
            break
        time.sleep(0.1)
    assert found == {f"0100007F:{port:04X}"}
    assert f":{port:04X} " not in Path("/proc/net/tcp6").read_text()
