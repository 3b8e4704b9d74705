"""The pages of docs/findings: their parts, and how to bring the messages shown up to date.

After the wording of a message has changed: `python tests/layout/pages.py`
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp

import liftax as nn
from liftax import errors
from liftax.layout import RULES

FOLDER = Path(__file__).parents[2] / "docs" / "findings"
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(code: str) -> dict[str, str]:
    """The page's program under "Example" and "Fix", and its "message" if it shows one."""
    text = (FOLDER / f"{code}.md").read_text(encoding="utf-8")
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        for language, block in _BLOCK.findall(body):
            found[title if language == "python" else "message"] = block
    return found


def execute(source: str) -> dict[str, object]:
    """Runs a block with what docs/findings/README.md says that it may assume."""
    key, x = jax.random.key(0), jnp.ones((2, 4))
    names = {"jax": jax, "jnp": jnp, "nn": nn, "key": key, "x": x}
    exec(compile(source, "<example>", "exec"), names)
    return names


def said(code: str) -> str:
    """What liftax says of a page's example."""
    rule, source = RULES[code], blocks(code)["Example"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nn.LiftWarning)
        if rule.error is None:
            return next(f.message for f in execute(source)["layout"].findings if f.code == code)
        try:
            execute(source)
        except getattr(errors, rule.error) as error:
            return str(error)
    raise AssertionError(f"{code}: the example runs without {rule.error}")


def update(code: str) -> None:
    """Writes the message into the page."""
    page = FOLDER / f"{code}.md"
    before, fix, after = page.read_text(encoding="utf-8").partition("## Fix\n")
    before = before.partition("The message:\n")[0]
    shown = f"The message:\n\n```text\n{said(code).rstrip()}\n```\n\n"
    page.write_text(before + shown + fix + after, encoding="utf-8")


if __name__ == "__main__":
    for name in RULES:
        update(name)
