"""`python -m liftax`, the same as the command `liftax`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
