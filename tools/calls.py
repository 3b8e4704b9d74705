"""What one call of a lifted module costs in Python: `python tools/calls.py`.

Counts the calls of Python functions while one scanned block is applied inside a trace, warm, so
that neither JAX's compiler nor the machine's speed has a part in the figure: calls inside liftax,
inside everything, and the files and classes of liftax that were entered on the way.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp

import liftax as nn

PACKAGE = str(Path(nn.__file__).parent)


class Block(nn.Module):
    """One layer."""

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return jnp.tanh(nn.Dense(x.shape[-1])(x)), None


def count() -> tuple[Counter[str], Counter[str], int]:
    """Returns the calls by file and by class of liftax, and the calls of all Python functions."""
    layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
    model = layers()
    x = jnp.ones((2, 3))
    variables = model.init(jax.random.key(0), x, None)
    files: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    everything = 0

    def see(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal everything
        if event != "call":
            return
        everything += 1
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            files[code.co_filename[len(PACKAGE) + 1 :]] += 1
            owner = code.co_qualname.split(".<locals>")[0].rpartition(".")[0]
            if owner:
                classes[owner] += 1

    def apply(variables: Any, x: Any) -> Any:
        return model.apply(variables, x, None)

    jax.make_jaxpr(apply)(variables, x)  # what is remembered is there
    sys.setprofile(see)
    try:
        jax.make_jaxpr(lambda variables, x: apply(variables, x))(variables, x)
    finally:
        sys.setprofile(None)
    return files, classes, everything


def main() -> None:
    files, classes, everything = count()
    print(f"calls in liftax    {files.total()} in {len(files)} files, {len(classes)} classes")
    print(f"calls in all       {everything}")
    for name, calls in files.most_common():
        print(f"  {calls:4} {name}")
    print(*sorted(classes), sep=", ")


if __name__ == "__main__":
    main()
