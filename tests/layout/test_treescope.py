"""What treescope shows of modules, variables, stacks and layouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import liftax as nn

treescope = pytest.importorskip("treescope")
# Its release of today asks jax 0.12 for what that release calls by another name.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KEY, X = jax.random.key(0), jnp.ones((2, 4))


def text(value):
    said = " ".join(treescope.render_to_text(value).split())
    html = treescope.render_to_html(value)
    assert "<div" in html or "<span" in html
    return said


def test_a_module_without_its_defaults():
    assert text(nn.Dense(3)) == "Dense(features=3)"
    assert text(nn.Dense(3, use_bias=False, name="up")) == (
        "Dense(features=3, use_bias=False, name='up')"
    )
    said = text(nn.Stack(nn.Dense(4), depth=3))
    assert said.startswith("Stack(block=(Dense(features=4),), depth=3")


def test_a_bound_module_with_its_variables():
    model = nn.Dense(3)
    said = text(model.bind(model.init(KEY, X)))
    assert (
        said.startswith("Dense( features=3,")
        and "'kernel': " in said
        and "jax.Array float32(4, 3)" in said
    )


def test_a_variable_while_it_lives():
    seen = []

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            seen.append(text(self.variable("state", "count", lambda: jnp.zeros(3))))
            return nn.Dense(3)(x)

    Net(name=None).init_with_output(KEY, X)
    assert seen[0].startswith("Variable(") and "collection='state'" in seen[0]
    assert "path='count'" in seen[0]


def test_a_layout():
    lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "axis_size": 3}
    said = text(nn.layout(nn.vmap(nn.Dense, in_axes=None, **lift)(2), KEY, X))
    assert said.startswith("Layout( module='VmapDense', parameters=30,")
    assert "'0: vmap × 3 over Dense': {}" in said
    assert "'kernel': 'float32 (vmap 3, in 4, out 2)'" in said and "LX901" in said


def test_a_layout_with_what_a_gradient_keeps():
    said = text(nn.layout(nn.Dense(3), KEY, X, grads=True))
    assert "'in all': '0 B kept, 0 B of it cheap'" in said
