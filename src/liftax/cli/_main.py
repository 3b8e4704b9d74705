"""Finds the commands, parses the command line, turns what goes wrong into exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..files import room_for
from ..interrupts import ending_at_once
from ._console import CommandError, Console, Interrupted, printable

_FILES = 64
"""What a command may have open, beside what is open already: Orbax reads many files at once."""


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _commands() -> list[str]:
    # By the files that are there: a command is added by adding its file.
    names = (module.name for module in pkgutil.iter_modules([os.path.dirname(__file__)]))
    return sorted(name for name in names if not name.startswith("_"))


def _version() -> str:
    try:
        return importlib.metadata.version("liftax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed, run from its source)"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="liftax",
        description="Lifted transformations for neural-network modules on JAX.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"liftax {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in _commands():
        module = importlib.import_module(f"liftax.cli.{name}")
        command = commands.add_parser(
            name, help=module.HELP, description=module.HELP, allow_abbrev=False
        )
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit code: 0, or 2 where the user's input is wrong, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a stand-in for it, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not room_for(_FILES):
        # Without any, libraries fail in their own ways, halfway and over many lines.
        print(f"liftax: {_FILES} files cannot be open at once; try ulimit -n 1024", file=sys.stderr)
        return 2
    try:
        with ending_at_once("liftax"):  # the commands load jax
            parser = _parser()
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    try:
        return int(args.run(args, Console()))
    except CommandError as error:
        # One line, whatever the error is made of: scripts read it.
        message = printable(" ".join(str(error).split()))
        print(f"liftax {args.command}: {message}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        print(f"liftax {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, `head` say, has seen enough. Nothing more can be printed; the interpreter
        # would try once more on exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
