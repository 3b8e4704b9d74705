"""Whatever body `jax.lax.scan` takes, a lifted scan takes, with the same result and types."""

import collections
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn

XS = jnp.arange(1.0, 4.0)
W = jnp.float32(0.5)


class Pair(NamedTuple):
    a: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    a: Any
    b: Any


def drawn(key, x, w):
    key, now = jax.random.split(key)
    return key, jax.random.normal(now) * w


ZERO, ONES = jnp.zeros(()), jnp.ones(3)
BODIES = {  # first carry, (carry, x, w) -> (carry, ys)
    "None": (None, lambda c, x, w: (None, x * w)),
    "empty tuple": ((), lambda c, x, w: ((), x * w)),
    "empty dict": ({}, lambda c, x, w: ({}, x * w)),
    "key": (jax.random.key(5), drawn),
    "raw key": (jax.random.PRNGKey(5), drawn),
    "list": ([ZERO, ONES], lambda c, x, w: ([c[0] + x, c[1] * w], c[0])),
    "named tuple": (Pair(ZERO, ONES), lambda c, x, w: (Pair(c.a + x, c.b * w), c.a)),
    "dataclass": (Data(ZERO, ONES), lambda c, x, w: (Data(c.a + x, c.b * w), Data(c.a, None))),
    "ordered dict": (
        collections.OrderedDict(b=ZERO, a=ONES),
        lambda c, x, w: (collections.OrderedDict(b=c["b"] + x, a=c["a"]), {"z": c["b"]}),
    ),
    "None within": (({"a": [ZERO, None]}, ONES), lambda c, x, w: (c, None)),
    "weak": (0.0, lambda c, x, w: (c * w + x, c)),
    "weak int": (0, lambda c, x, w: (c + 1, c * 2)),
    "stays weak": (1.0, lambda c, x, w: (c * 2, c * x)),
    "weak to bfloat16": (
        0.0,
        lambda c, x, w: (c + jnp.bfloat16(1), c * jnp.bfloat16(2) * x.astype("bfloat16")),
    ),
    "weak, two": ((0.0, 1), lambda c, x, w: ((c[0] + c[1] * w, c[1] + 1), c[0] * c[1])),
    "bool": (True, lambda c, x, w: (~c, jnp.where(c, x, w))),
    "int8": (jnp.int8(3), lambda c, x, w: (c + jnp.int8(1), c)),
    "NumPy": (np.zeros((), "float32"), lambda c, x, w: (c * w + x, np.float32(3))),
    "complex": (1j, lambda c, x, w: (c * w + x, c.imag)),
    "Python number out": (ZERO, lambda c, x, w: (c + x * w, 1.0)),
    "unchanged": (ONES, lambda c, x, w: (c, x * w)),
}
WAYS = [{}, {"reverse": True, "unroll": 2}]


def described(tree):
    def one(x):
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return str(jax.typeof(x)), np.asarray(jax.random.key_data(x) if is_key else x).tolist()

    return jax.tree.structure(tree), [one(x) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("shared", [True, False])
def test_as_lax_scan(name, shared):
    carry, body = BODIES[name]

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return body(c, x, self.param("w", lambda key: W))

    options = WAYS[list(BODIES).index(name) % 2 == shared]
    roles = {"variable_broadcast": "params"} if shared else {"variable_axes": {"params": 0}}
    model = nn.scan(Body, **roles, split_rngs={"params": not shared}, **options)()
    expected = described(jax.lax.scan(lambda c, x: body(c, x, W), carry, XS, **options))
    y, variables = model.init_with_output(jax.random.key(0), carry, XS)
    assert described(y) == expected
    assert described(model.apply(variables, carry, XS)) == expected
