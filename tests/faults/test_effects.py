"""Effects in a loop body: each happens once an iteration, in order, as in a Python loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify, io_callback

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SEEN = []
XS = np.arange(1.0, 4.0, dtype="float32")
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


def note(value):
    SEEN.append(float(value))


def answered(value):
    note(value)
    return np.float32(1)


def through_reference(c):
    ref = jax.new_ref(c)
    ref[...] += 1
    jax.debug.callback(note, ref[...] - 1, ordered=True)


EFFECTS = {
    "debug.callback": lambda c: jax.debug.callback(note, c, ordered=True),
    "io_callback": lambda c: io_callback(note, None, c, ordered=True),
    "io_callback whose result is not used": lambda c: io_callback(
        answered, SCALAR, c, ordered=True
    ),
    "in jit": lambda c: jax.jit(lambda c: jax.debug.callback(note, c, ordered=True))(c),
    "in cond": lambda c: jax.lax.cond(
        c > -1, lambda: jax.debug.callback(note, c, ordered=True), lambda: None
    ),
    "reference": through_reference,
}


class Plain(nn.Module):
    effect: str = "debug.callback"

    @nn.compact
    def __call__(self, c, x):
        EFFECTS[self.effect](c)
        w = self.param("w", lambda key: jnp.float32(0.5))
        return c * w + x, c


class Counts(nn.Module):
    effect: str = "debug.callback"

    @nn.compact
    def __call__(self, c, x):
        n = self.variable("state", "n", lambda: jnp.zeros(()))
        n.value += c
        return Plain(self.effect)(c, x)


class CountsLate(nn.Module):
    @nn.compact
    def __call__(self, c, x):
        return nn.remat(Counts)()(c, x)


class Same(nn.Module):
    @nn.compact
    def __call__(self, c, x):
        return Plain()(c, x)[0], self.param("v", lambda key: jnp.ones(()))


class Cell(nn.RNNCellBase):
    @nn.compact
    def __call__(self, c, x):
        return Plain()(c, x[0])

    def initialize_carry(self, key, shape):
        return jnp.zeros(())

    num_feature_axes = 1


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, c, xs):
        return nn.RNN(Cell(), return_carry=True)(xs[:, None], initial_carry=c)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        n = self.variable("shared", "n", lambda: jnp.ones(()))
        return Plain()(x, n.value)[0]


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, c, xs):
        return nn.Stack(Layer(), depth=3, variable_broadcast="shared")(c), None


SHARED = {"variable_broadcast": "params", "split_rngs": {"params": False}}
EACH = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
LOOPS = {
    "stacked": lambda: nn.scan(Plain, **EACH)(),
    "shared": lambda: nn.scan(Plain, **SHARED)(),
    "carried": lambda: nn.scan(Counts, variable_carry="state", **SHARED)(),
    "carried, made in a lift": lambda: nn.scan(CountsLate, variable_carry="state", **SHARED)(),
    "outputs broadcast": lambda: nn.scan(Same, out_axes=nn.broadcast, **SHARED)(),
    "unrolled": lambda: nn.scan(Plain, unroll=2, **SHARED)(),
    "RNN": Recurrent,
    "Stack": Stacked,
}


def seen(run):
    SEEN.clear()
    result = run()
    jax.block_until_ready(jax.tree.leaves(result))
    jax.effects_barrier()
    return result, list(SEEN)


def check(model, carry):
    c, xs = 0.0, XS if not isinstance(model, Stacked) else np.ones(3)
    expected = []
    for x in xs:
        expected.append(c)
        c = c * 0.5 + x
    key = jax.random.key(0)
    ways = [lambda: model.init_with_output(key, carry, XS), lambda: model.init(key, carry, XS)]
    (_, variables), found = seen(ways[0])
    assert found == expected
    assert seen(ways[1])[1] == expected
    ways = [False] if set(variables) == {"params"} else []
    for mutable in [*ways, ["state", "shared"], True]:
        assert seen(lambda m=mutable: model.apply(variables, carry, XS, mutable=m))[1] == expected


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("weak", [False, True])
def test_once_an_iteration_in_order(loop, weak):
    check(LOOPS[loop](), 0.0 if weak else jnp.zeros(()))


@pytest.mark.parametrize("effect", EFFECTS)
def test_every_effect(effect):
    check(nn.scan(Counts, variable_carry="state", **SHARED)(effect), 0.0)


def test_a_layout_has_none():
    _, found = seen(lambda: nn.layout(LOOPS["carried"](), jax.random.key(0), jnp.zeros(()), XS))
    assert found == []


@pytest.mark.parametrize("loop", ["stacked", "shared"])
def test_lazy_init_of_inputs_without_values_has_none(loop):
    abstract = jax.ShapeDtypeStruct((), jnp.float32)
    _, found = seen(lambda: LOOPS[loop]().lazy_init(jax.random.key(0), abstract, XS))
    assert found == []


def test_lazy_init_has_none_in_what_is_recomputed(remat3):
    if remat3 and jax.__version_info__ < (0, 11):
        pytest.skip("this JAX forgets the effects of what is recomputed")

    def half(x):
        jax.debug.callback(note, x)
        return x / 2

    class Prints(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + self.param("w", lambda key: jax.checkpoint(half)(jnp.ones(())))

    abstract = jax.ShapeDtypeStruct((), jnp.float32)
    variables, found = seen(lambda: nn.remat(Prints)().lazy_init(jax.random.key(0), abstract))
    assert found == []
    assert float(variables["params"]["w"]) == 0.5


def test_references_from_outside():
    ref = jax.new_ref(jnp.zeros(()))

    class Sums(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            w = self.param("w", lambda key: jnp.float32(0.5))
            ref[...] += c
            return c * w + x, ref[...]

    model = nn.scan(Sums, **SHARED)()
    (_, sums), _ = model.init_with_output(jax.random.key(0), jnp.zeros(()), XS)
    np.testing.assert_array_equal(sums, [0, 1, 3.5])
    np.testing.assert_array_equal(ref[...], 3.5)


@pytest.mark.parametrize("jitted", [False, True])
def test_an_initial_value_is_read_once(jitted):
    def read(key):
        return io_callback(lambda: answered(7.0), SCALAR, ordered=True)

    class Reads(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return c + self.param("w", jax.jit(read) if jitted else read), x

    ((c, _), variables), found = seen(
        lambda: nn.scan(Reads, **SHARED)().init_with_output(jax.random.key(0), 0.0, XS)
    )
    assert found == [7.0]
    assert float(c) == 3 and float(variables["params"]["w"]) == 1


@pytest.mark.parametrize(("start", "message"), [(0.0, None), (9.0, "carry is 9.0")])
def test_checkify(start, message):
    class Checks(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            checkify.check(c < 8, "carry is {c}", c=c)
            return Plain()(c, x)

    model = nn.scan(Checks, **SHARED)()
    for way in (model.init, model.init_with_output):
        error, _ = checkify.checkify(lambda way=way: way(jax.random.key(0), start, XS))()
        assert (error.get() is None) if message is None else (message in error.get())
