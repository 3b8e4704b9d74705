"""`liftax explain`: every code has its page wherever liftax is installed."""

from __future__ import annotations

import pytest

from liftax.cli import main
from liftax.errors import RULES


@pytest.mark.parametrize("code", RULES)
def test_every_code(code, capsys):
    assert main(["explain", code]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {code}: {RULES[code].title}\n")
    assert "\n## Example\n" in shown and "\n## Fix\n" in shown


@pytest.mark.parametrize("written", ["lx102", "102", " LX102 "])
def test_a_code_as_people_write_it(written, capsys):
    assert main(["explain", written]) == 0
    assert capsys.readouterr().out.startswith("# LX102")


def test_the_list(capsys):
    assert main(["explain", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RULES)
    assert lines[1] == "LX102  error    The carry changes from one iteration to the next"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["LX199"], "'LX199': there is no such code; those of its kind are LX101, LX102, "),
        (["carry"], "'carry': there is no such code; --list shows all"),
        ([], "give a code, such as LX102, or --list"),
        (["LX102", "--list"], "give a code, such as LX102, or --list"),
    ],
)
def test_what_is_no_code(args, says, capsys):
    assert main(["explain", *args]) == 2
    assert says in capsys.readouterr().err
