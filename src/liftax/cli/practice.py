"""`liftax practice`: exercises in lifts, graded by where the variables lie.

liftax practice                 page, file, verdict: at this terminal
liftax practice --serve         the same in a browser
liftax practice run scan-depth  one verdict
liftax practice verify          all of them; the exit code says whether all are solved
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._arguments import count
from ._console import CommandError, Console, require

if TYPE_CHECKING:
    from ..practice.places import Place
    from ..practice.running import Limits

HELP = "learn lifts by writing them: twenty exercises, graded by the layout"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("run", "verify", "list"),
        help="without one: page and verdicts",
    )
    parser.add_argument("name", nargs="?", help="run: a number or a name, such as scan-depth")
    parser.add_argument("--serve", action="store_true", help="in a browser, on this machine alone")
    parser.add_argument("--port", type=count, default=8017, help="of --serve (default: 8017)")
    parser.add_argument("--json", action="store_true", help="verdicts as JSON")
    parser.add_argument(
        "--dir", type=Path, metavar="FOLDER", help="where the files are (default: liftax-practice)"
    )
    parser.add_argument(
        "--seconds", type=count, default=20, help="how long an answer may run (default: 20)"
    )
    parser.add_argument(
        "--memory", type=count, default=2048, help="MiB that an answer may take (default: 2048)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Lays the files out, and does what is asked."""
    # Here and below, since all commands are loaded for the help of one.
    from ..errors import LiftaxError
    from ..practice.exercises import exercises
    from ..practice.places import DEFAULT, Place
    from ..practice.running import Limits

    if (args.action == "run") != (args.name is not None):
        raise CommandError("run takes the name of an exercise, and nothing else does")
    if args.action and args.serve:
        raise CommandError("--serve goes without an action")
    here = Path.cwd()
    # Who stands in the folder itself means that folder.
    inside = (here / exercises()[0].file_name).is_file()
    place = Place(args.dir or (here if inside else DEFAULT))
    limits = Limits(seconds=args.seconds, memory=args.memory << 20)
    try:
        laid_out = place.lay_out()
        if laid_out and not args.json:
            console.line(f"{laid_out} exercises are in {place.folder}")
        if args.action == "run":
            return _run(args, console, place, limits)
        if args.action == "verify":
            return _verify(args, console, place, limits)
        if args.action == "list":
            return _list(args, console, place)
        if args.serve:
            # Asked for first: what is missing is told with the command that installs it.
            require("nicegui", "practice")
            from ..practice.browser import serve

            return serve(place, limits, args.port, console.line)
        return _practise(args, console, place, limits)
    except (LiftaxError, OSError) as error:
        raise CommandError(str(error)) from error


def _run(args: argparse.Namespace, console: Console, place: Place, limits: Limits) -> int:
    from ..practice.exercises import find
    from ..practice.running import Runner
    from ..practice.terminal import show_verdict, tell

    exercise = find(args.name)
    with Runner(limits, ahead=False) as runner:
        verdict = runner.check(exercise, place.read(exercise), place.path(exercise))
    if verdict.passed:
        place.solve(exercise)
    if args.json:
        console.line(json.dumps(verdict.to_dict(), indent=2))
    else:
        show_verdict(console, verdict)
        tell(console, place)
    return 0 if verdict.passed else 1


def _verify(args: argparse.Namespace, console: Console, place: Place, limits: Limits) -> int:
    from ..practice.terminal import progress_line, tell, verify

    verdicts = verify(place, limits)
    if args.json:
        console.line(json.dumps([verdict.to_dict() for verdict in verdicts], indent=2))
    else:
        for verdict in verdicts:
            mark = "✓" if verdict.passed else "✗"
            # One line for each of twenty; all of it is told by `liftax practice run`.
            line = verdict.said.partition("\n")[0] if not verdict.passed else ""
            console.line(f"{mark} {verdict.exercise:26} {line}".rstrip())
        tell(console, place)
        console.line(progress_line(place))
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _list(args: argparse.Namespace, console: Console, place: Place) -> int:
    from ..practice.exercises import exercises
    from ..practice.terminal import show_list, tell

    if args.json:
        solved = place.progress.solved
        rows = [
            {"number": e.number, "name": e.name, "title": e.title, "solved": e.name in solved}
            for e in exercises()
        ]
        console.line(json.dumps(rows, indent=2))
    else:
        show_list(console, place)
        tell(console, place)
    return 0


def _practise(args: argparse.Namespace, console: Console, place: Place, limits: Limits) -> int:
    """The session; piped, the page and the verdict of the first exercise that is not solved."""
    from ..practice.running import Runner
    from ..practice.terminal import Session, progress_line, show_markdown, tell

    at_a_terminal = sys.stdin.isatty() and console.out.isatty()
    if at_a_terminal and not args.json:
        require("watchfiles", "practice")
        with Runner(limits) as runner:
            Session(console, place, runner).run()
        return 0
    exercise = place.current()
    if not args.json:
        show_markdown(console, exercise.page)
        console.line()
        tell(console, place)
        console.line(progress_line(place))
    # Nobody presses keys at a pipe: one verdict, which the exit code repeats.
    args.name = exercise.name
    return _run(args, console, place, limits)
