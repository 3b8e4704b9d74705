"""The pages of the findings: their parts, and how to bring the messages shown up to date.

After the wording of a message has changed: `python tests/layout/pages.py`
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import liftax as nn
from liftax import errors
from liftax.installed import how_to_install
from liftax.layout import RULES, rule_of

FOLDER = Path(errors.__file__).with_name("findings")
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


def is_run(code: str) -> bool:
    """Whether a page's programs are run: one that speaks of two packages has its own test."""
    return "<!-- not run -->" not in (FOLDER / f"{code}.md").read_text(encoding="utf-8")


def execute(source: str) -> dict[str, Any]:
    """Runs a block with what the findings' README.md says that it may assume."""
    key, x = jax.random.key(0), jnp.ones((2, 4))
    names = {"jax": jax, "jnp": jnp, "nn": nn, "key": key, "x": x}
    exec(compile(source, "<example>", "exec"), names)
    return names


def said(code: str) -> str:
    """What liftax says of a page's example."""
    rule, source = RULES[code], blocks(code)["Example"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            names = execute(source)
        except errors.LiftaxError as error:
            if rule_of(error) is rule and isinstance(error, getattr(errors, rule.error or "")):
                # Wherever this liftax was installed from, the page shows it by its name.
                here = how_to_install("checkpoints")
                return str(error).replace(here, "pip install 'liftax[checkpoints]'")
            raise
    if rule.severity == "warning":
        texts = [str(w.message) for w in caught if getattr(w.message, "code", None) == code]
    else:
        layout = names.get("layout")
        texts = [f.message for f in layout.findings if f.code == code] if layout else []
    if texts:
        return texts[0]
    raise AssertionError(f"{code}: the example shows nothing of the kind")


def update(code: str) -> None:
    """Writes the message into the page."""
    page = FOLDER / f"{code}.md"
    before, fix, after = page.read_text(encoding="utf-8").partition("## Fix\n")
    before = before.partition("The message:\n")[0]
    shown = f"The message:\n\n```text\n{said(code).rstrip()}\n```\n\n"
    page.write_text(before + shown + fix + after, encoding="utf-8")


if __name__ == "__main__":
    for name in filter(is_run, RULES):
        update(name)
