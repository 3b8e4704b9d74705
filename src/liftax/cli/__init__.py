"""The command `liftax`.

One command is one public module of this package, with three names:

* `HELP`: one line for `liftax --help`;
* `configure(parser)`: adds the command's arguments to an `argparse` parser;
* `run(args, console)`: does the work, prints through the `Console`, returns the exit code.

A module that is dropped in here is found without being listed anywhere. Mistakes of the user are
`CommandError`s: one line on stderr and exit code 2. Whatever is not in the bare installation is
imported inside `run`, through `require` where its absence needs explaining.
"""

from ._console import CommandError, Console, Interrupted, require
from ._main import main

__all__ = ["CommandError", "Console", "Interrupted", "main", "require"]
