"""A while loop of a bounded number of steps: the same loop, and differentiable in reverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = jnp.array([0.5, 2.0])


class Net(nn.Module):
    """Doubles until it is large, and counts how often."""

    max_steps: int | None = None
    limit: float = 40.0
    seen: object = None

    @nn.compact
    def __call__(self, x):
        rate = self.param("rate", nn.initializers.constant(1.7), (2,))
        self.variable("state", "count", lambda: jnp.zeros((), jnp.int32))
        self.variable("state", "noise", lambda: jnp.zeros(2))

        def below(mdl, y):
            return jnp.sum(y) < self.limit

        def step(mdl, y):
            if self.seen is not None:
                self.seen()
            mdl.put_variable("state", "count", mdl.get_variable("state", "count") + 1)
            drawn = jax.random.normal(mdl.make_rng("noise"), (2,))
            mdl.put_variable("state", "noise", mdl.get_variable("state", "noise") + drawn)
            return jnp.sin(y) * 0.1 + rate * y

        return nn.while_loop(
            below,
            step,
            self,
            x,
            carry_variables="state",
            split_rngs={"noise": True},
            max_steps=self.max_steps,
        )


V = Net().init({"params": KEY, "noise": KEY}, X)
V["state"] = jax.tree.map(jnp.zeros_like, V["state"])


def run(net, variables=V, x=X):
    return net.apply(variables, x, rngs={"noise": KEY}, mutable="state")


@pytest.mark.parametrize("most", [6, 7, 16, 30])
def test_it_is_the_same_loop(most):
    y, state = run(Net())
    z, bounded = run(Net(most))
    assert state["state"]["count"] == 6
    np.testing.assert_allclose(z, y, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), bounded, state)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_it_ends_where_it_is_told_to(most):
    assert run(Net(most))[1]["state"]["count"] == most


def test_the_gradient_is_that_of_the_steps_that_ran():
    def by_hand(params):
        y = X
        for _ in range(6):
            y = jnp.sin(y) * 0.1 + params["rate"] * y
        return y.sum()

    def bounded(params):
        return run(Net(12), {**V, "params": params})[0].sum()

    wanted = jax.grad(by_hand)(V["params"])
    found = jax.jit(jax.grad(bounded))(V["params"])
    np.testing.assert_allclose(found["rate"], wanted["rate"], rtol=1e-5)
    with pytest.raises(ValueError, match="Reverse-mode differentiation"):
        jax.grad(lambda p: run(Net(), {**V, "params": p})[0].sum())(V["params"])


def test_memory_grows_with_the_root():
    def kept(most):
        net = Net(most, limit=1e30)
        _, pull = jax.vjp(lambda p: run(net, {**V, "params": p})[0], V["params"])
        return sum(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))

    small, large = kept(16), kept(1600)
    assert large <= 11 * small  # and not 100 times


def test_the_body_is_traced_once():
    seen, plain = [], []
    run(Net(9, seen=lambda: seen.append(1)))
    run(Net(seen=lambda: plain.append(1)))
    assert len(seen) == len(plain)


@pytest.mark.parametrize("most", [0, -1, 2.5, True])
def test_a_bound_that_is_none(most):
    with pytest.raises(nn.errors.LiftOptionError, match="while_loop.*max_steps expected an int"):
        run(Net(most))


def test_a_carry_of_python_numbers():
    class Counts(nn.Module):
        @nn.compact
        def __call__(self, n):
            return nn.while_loop(
                lambda mdl, i: i[0] < n, lambda mdl, i: (i[0] * 2, i[1] + 0.5), self, (1, 0.0),
                max_steps=8,
            )  # fmt: skip

    i, half = Counts().apply({}, 9)
    assert (int(i), float(half)) == (16, 2.0)
