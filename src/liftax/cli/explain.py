"""`liftax explain`: the page of an error, a warning or a note, by its code."""

from __future__ import annotations

import argparse

from ..errors import RULES
from ._console import CommandError, Console

HELP = "show what a code such as LX102 means, with an example and the fix"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("code", nargs="?", help="as a message shows it: LX102, lx102 or 102")
    parser.add_argument("--list", action="store_true", help="a line for each code")


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints a page, or the table of all."""
    if args.list == (args.code is not None):
        raise CommandError("give a code, such as LX102, or --list for all of them")
    if args.list:
        for each in RULES.values():
            console.line(f"{each.code}  {each.severity:7}  {each.title}")
        return 0
    code = args.code.strip().upper()
    rule = RULES.get(code) or RULES.get(f"LX{code}")
    if rule is None:
        # The first digit of a code is its kind.
        near = [known for known in RULES if known[:3] == f"LX{code.removeprefix('LX')}"[:3]]
        known = f"those of its kind are {', '.join(near)}" if near else "--list shows all"
        raise CommandError(f"{args.code!r}: there is no such code; {known}")
    if console.fancy:
        from rich.markdown import Markdown

        console.rich(Markdown(rule.text()))
    else:
        for line in rule.text().rstrip().splitlines():
            console.line(line)
    return 0
