"""The table of rules, and the pages of docs/findings: each example does what its page says."""

from __future__ import annotations

import warnings

import pytest

import liftax as nn
from liftax import errors
from liftax.layout import RULES, rule_of

from .pages import FOLDER, blocks, execute


def of(severity: str) -> list[str]:
    return [code for code, rule in RULES.items() if rule.severity == severity]


def test_each_rule_has_a_page_and_each_page_a_rule():
    assert {p.stem for p in FOLDER.glob("LX*.md")} == set(RULES)
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for code, rule in RULES.items():
        page = (FOLDER / f"{code}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {code}: {rule.title}\n")
        assert f"| [{code}]({code}.md) | {rule.severity} | {rule.title} |" in index


def test_rules_and_error_classes_belong_together():
    lifts = errors.LiftError.__subclasses__()
    assert lifts and all(rule_of(error) is not None for error in lifts)
    for code in of("error"):
        assert rule_of(getattr(errors, RULES[code].error)).code == code


@pytest.mark.parametrize("code", of("error"))
def test_error(code):
    """The example raises the rule's error with the wording of the page; the fix passes."""
    page = blocks(code)
    with pytest.raises(getattr(errors, RULES[code].error), match=".") as caught:
        execute(page["Example"])
    assert rule_of(caught.value).code == code
    message = str(caught.value)
    assert message.rstrip() == page["message"].rstrip()
    assert len(message.splitlines()) <= 12
    assert "Array(" not in message and "Traced<" not in message
    execute(page["Fix"])


@pytest.mark.parametrize("code", [*of("warning"), *of("note")])
def test_finding(code):
    """The layout of the example has the finding, worded as on the page; that of the fix not."""
    page = blocks(code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nn.LiftWarning)
        (found,) = [f for f in execute(page["Example"])["layout"].findings if f.code == code]
    assert (found.severity, found.title) == (RULES[code].severity, RULES[code].title)
    assert found.page == f"docs/findings/{code}.md"
    assert found.message.rstrip() == page["message"].rstrip()
    assert len(found.message.splitlines()) <= 12
    assert not [f for f in execute(page["Fix"])["layout"].findings if f.code == code]


def test_a_warning_is_silenced_by_its_code():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "LX202", nn.LiftWarning)
        warnings.warn(nn.LiftWarning("LX202", "not split"), stacklevel=1)
        with pytest.raises(nn.LiftWarning, match="^LX999: something else"):
            warnings.warn(nn.LiftWarning("LX999", "something else"), stacklevel=1)
