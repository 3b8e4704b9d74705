"""What JAX says of a model, in the user's terms: values that outlive their lift, unknown axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import liftax as nn
from liftax import errors

X = jnp.full((3, 4), 7.03125, jnp.float32)


def in_scan(module, keep, x):
    return nn.scan(lambda mdl, c, x: (keep(c + x), None))(module, x[0], x)[0]


def in_loop_of_broadcasts(module, keep, x):
    """The body is traced to a jaxpr first: the carry is weakly typed."""
    return nn.scan(lambda mdl, c, x: (c, keep(x)))(module, 0.0, x)[1]


def in_while(module, keep, x):
    return nn.while_loop(lambda mdl, c: c.sum() < 0, lambda mdl, c: keep(c + 1), module, x)


LIFTS = {
    "scan": (in_scan, "scan"),
    "scan in parts": (in_loop_of_broadcasts, "scan"),
    "while_loop": (in_while, "while_loop"),
    "vmap": (lambda module, keep, x: nn.vmap(lambda mdl, x: keep(x))(module, x), "vmap"),
    "jit": (lambda module, keep, x: nn.jit(lambda mdl, x: keep(x))(module, x), "jit"),
    "remat": (lambda module, keep, x: nn.remat(lambda mdl, x: keep(x))(module, x), "checkpoint"),
    "cond": (
        lambda module, keep, x: nn.cond(True, lambda mdl, x: keep(x), lambda mdl, x: x, module, x),
        "a branch",
    ),
    "grad": (
        lambda module, keep, x: nn.grad(lambda mdl, x: keep(x).sum(), module, x),
        "a transformation",
    ),
}


class Keeps(nn.Module):
    lift: str
    use: bool

    @nn.compact
    def __call__(self, x):
        kept = []

        def keep(value):
            kept.append(2 * value)
            return value

        LIFTS[self.lift][0](self, keep, x)
        return kept[0] + 1 if self.use else kept[0]


class Outer(nn.Module):
    inner: nn.Module

    def __call__(self, x):
        return self.inner(x)


@pytest.mark.parametrize("use", [True, False], ids=["used", "returned"])
@pytest.mark.parametrize("lift", LIFTS)
def test_an_escaped_value(lift, use):
    model = Outer(Keeps(lift, use))
    place = "/inner" if use else "/"
    name = LIFTS[lift][1]
    with pytest.raises(
        errors.LeakedTracerError,
        match=f"^module {place}: a value that was made inside {name} is used after it has ended",
    ) as caught:
        model.apply({}, X)
    message = str(caught.value)
    assert len(message.splitlines()) <= 12 and "7.03" not in message
    assert "float32[" in message
    if lift not in ("vmap", "grad"):  # JAX keeps no line for the others
        assert f"made at {__file__}" in message
    assert isinstance(caught.value.__context__, jax.errors.UnexpectedTracerError)


def test_what_a_lift_returns_may_be_kept():
    class Returns(nn.Module):
        @nn.compact
        def __call__(self, x):
            kept = []
            c, ys = nn.scan(lambda mdl, c, x: (c + x, 2 * c))(self, x[0], x)
            kept.append(ys)
            return kept[0] + c

    assert Returns().apply({}, X).shape == (3, 4)
    # Under other transformations the output is traced, and is no leak.
    assert jax.jit(jax.vmap(Returns().apply, (None, 0)))({}, X[None]).shape == (1, 3, 4)
    assert jax.grad(lambda x: Returns().apply({}, x).sum())(X).shape == (3, 4)


def test_the_name_of_an_axis_that_nothing_gives():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False, axis_name="batch", name="norm")(x)

    variables = Normed().init(jax.random.key(0), X)
    with pytest.raises(errors.AxisNameError, match="^module /norm: .* axis name 'batch'") as caught:
        Normed().apply(variables, X, mutable=["batch_stats"])
    assert isinstance(caught.value.__context__, NameError)

    def run(x):
        return Normed().apply(variables, x, mutable=["batch_stats"])[0]

    assert jax.vmap(run, axis_name="batch")(X[None]).shape == (1, 3, 4)


def test_a_name_error_of_the_model_stays_what_it_is():
    class Slip(nn.Module):
        def __call__(self, x):
            return x + missing  # noqa: F821

    with pytest.raises(NameError, match="'missing' is not defined") as caught:
        Slip().apply({}, X)
    assert type(caught.value) is NameError
