"""`python -m liftax`, the same as the command `liftax`."""

import sys

from .interrupts import ending_at_once


def main() -> int:
    """Runs the command line; Ctrl-C counts from here on, before anything else is loaded."""
    with ending_at_once("liftax"):
        from .cli import main as run
    return run()


if __name__ == "__main__":
    sys.exit(main())
