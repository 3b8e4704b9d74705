"""Every model under every flag: liftax as Linen under the same flag.

Initial variables are the same bits. Outputs and gradients are compiled, and the compiler may fuse
two programs of the same arithmetic apart, so those agree to rounding; `tests/parity` has the bits.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from helpers.processes import fresh

from probes.flags import FLAGS
from probes.run import main

# Where neither library can: (flag, model) -> why. Where Linen can, liftax does the same.
NEITHER: dict[tuple[str, str], str] = {
    ("jax_enable_x64", "lstm"): "the carry is float32, what a float64 input makes of it is not",
    ("jax_check_tracer_leaks", "custom_vjp"): "JAX keeps the functions, and they what they saw",
}


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Where two results differ first, if they do."""
    if found.keys() != expected.keys():
        return f"differs: only one has {sorted(found.keys() ^ expected.keys())}"
    for path, left in found.items():
        right = expected[path]
        if (left.dtype, left.shape) != (right.dtype, right.shape):
            return f"differs at {path}: {left.dtype}{left.shape}, not {right.dtype}{right.shape}"
        compiled = path.startswith(("['outputs']", "['grads']"))
        if compiled and np.issubdtype(left.dtype, np.floating):
            same = np.allclose(left, right, rtol=1e-5, atol=1e-6)
        else:
            same = left.tobytes() == right.tobytes()
        if not same:
            return f"differs at {path}: {left}, not {right}"
    return None


@pytest.mark.parametrize("flag", FLAGS)
def test_models_under(flag: str) -> None:
    missing = FLAGS[flag].missing()
    if missing:
        pytest.skip(f"jax {jax.__version__} has no {', '.join(missing)}")
    results = fresh(main, flag)
    assert list(results) == list(FLAGS[flag].models)

    only_ours = [name for name, (_, linen) in results.items() if isinstance(linen, str)]
    plain = fresh(main, "no flag", *only_ours) if only_ours else {}
    faults = []
    for name, (found, linen) in results.items():
        if isinstance(found, str):
            fault = f"fails, Linen {'too' if name in plain else 'does not'}: {found}"
        else:
            # Where Linen cannot, the flag must change nothing.
            fault = difference(found, plain[name][0] if name in plain else linen)
        known = NEITHER.get((flag, name)) if name in plain else None
        if known and not fault:
            faults.append(f"{name} works now, and stands in a table as: {known}")
        elif fault and not known:
            faults.append(f"{name} {fault}")
    assert not faults, "\n\n".join(faults)
