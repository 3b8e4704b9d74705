"""A language model on text that every Python carries, trained by one process or by many.

``liftax train --model lm`` on one machine, ``python -m examples.lm --processes 4`` in several
processes. Whatever is killed at whatever step, the run goes on from the last whole checkpoint and
ends with the bits of one that nobody killed.
"""
