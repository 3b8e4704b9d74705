"""Trains the language model of `liftax.lm`.

python -m examples.lm                                          # one process
python -m examples.lm --processes 4 --mesh data=4              # four on this machine
python -m examples.lm --processes 2 --process-id 0 --coordinator host:1234 --mesh data=8
"""

import sys

from liftax.cli._lm import main

if __name__ == "__main__":
    sys.exit(main())
