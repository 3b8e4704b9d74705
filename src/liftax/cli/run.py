"""``liftax run``: a program written for flax.linen, with liftax in flax's place."""

from __future__ import annotations

import argparse
import os
import runpy
import sys

from ._console import CommandError, Console

HELP = "Run a Python program with liftax in the place of flax.linen."


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "--report",
        action="store_true",
        help="say at the end, on stderr, who took which names from liftax, and which are flax's",
    )
    parser.add_argument("-m", action="store_true", dest="module", help="PROGRAM is a module")
    parser.add_argument("program", metavar="PROGRAM", help="a script, or with -m a module")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="its own arguments"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the program as Python would; its exit code is this command's."""
    if not args.module and not os.path.exists(args.program):
        raise CommandError(f"{args.program}: there is no such file; a module is run by -m")
    from ..adopt import install
    from ..errors import MissingExtraError

    try:
        # Before the program imports anything: what it imports from flax is liftax's from then on.
        adoption = install(report=args.report)
    except MissingExtraError as error:
        raise CommandError(str(error)) from error
    # The program reads its own arguments, and finds itself first among them.
    sys.argv = [args.program, *args.arguments]
    try:
        if args.module:
            sys.path.insert(0, os.getcwd())
            runpy.run_module(args.program, run_name="__main__", alter_sys=True)
        else:
            path = os.path.abspath(args.program)
            # As Python itself does for a script.
            sys.path.insert(0, os.path.dirname(path))
            runpy.run_path(path, run_name="__main__")
    finally:
        if args.report:
            print(adoption.report(), file=sys.stderr)
    return 0
