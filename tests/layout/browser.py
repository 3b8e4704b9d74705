"""Layout pages in a headless Chromium: several in one start, each questioned by a script."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
).split()

# Each page gets a frame of its own, in the order given; `probe(document, window)` answers for it.
_HARNESS = """<!doctype html><meta charset="utf-8"><body>{frames}<script>
const probe = {probe};
addEventListener("load", () => {{
  const answers = [...document.querySelectorAll("iframe")].map(
    (frame) => probe(frame.contentDocument, frame.contentWindow));
  const out = document.createElement("pre");
  out.id = "answers";
  out.textContent = JSON.stringify(answers);
  document.body.replaceChildren(out);
}});
</script></body>"""


def ask(
    pages: list[str], probe: str, *, width: int = 1280, dark: bool = False
) -> tuple[list[Any], list[str]]:
    """Opens pages and asks each the same question.

    Returns:
      What `probe`, a JavaScript function of (document, window), says of each page, and all that
      was written to the console.
    """
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pages.html"
        file.write_text(_HARNESS.format(frames=frames, probe=probe), encoding="utf-8")
        scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        done = subprocess.run(
            [CHROMIUM, *_FLAGS, *scheme, f"--user-data-dir={folder}/profile", file.as_uri()],
            capture_output=True,
            text=True,
            timeout=600,
        )
    found = re.search(r'<pre id="answers">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page did not come up: {done.stderr[-2000:]}"
    console = [
        line.split("CONSOLE", 1)[1] for line in done.stderr.splitlines() if "CONSOLE" in line
    ]
    return json.loads(html.unescape(found.group(1))), console
