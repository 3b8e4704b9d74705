"""Which operation made infinity or NaN first, in which layer and direction."""

import functools

import jax
import jax.numpy as jnp
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = jnp.arange(1.0, 5.0)


def divided(x, by):
    return (x + 1) / by  # the line that is to be named


LINE = divided.__code__.co_firstlineno + 1
BY = jnp.ones((3, 4)).at[1, 2].set(0.0)


def scanned(x, by):
    return jax.lax.scan(lambda x, b: (divided(x, b), None), x, by)[0]


def reverse(x, by):
    return jax.lax.scan(lambda x, b: (divided(x, b), None), x, by, reverse=True)[0]


def outputs(x, by):
    return jax.lax.scan(lambda x, b: (x, divided(x, b)), x, by)[1]


def counted(x, by):
    return jax.lax.fori_loop(0, 3, lambda i, x: divided(x, by[i]), x)


def as_long_as(x, by):
    def step(s):
        return s[0] + 1, divided(s[1], by[s[0]])

    return jax.lax.while_loop(lambda s: s[0] < by.shape[0], step, (0, x))[1]


def in_a_branch(x, by):
    return jax.lax.cond(x[0] > 0, lambda: divided(x, by[1]), lambda: x)


def nested(x, by):
    def inner(x, b):
        return scanned(x, jnp.stack([jnp.ones(4), b])), None

    return jax.lax.scan(inner, x, by)[0]


def mapped(x, by):
    return jax.vmap(scanned, in_axes=(0, None))(jnp.stack([x, 2 * x]), by)


@jax.custom_vjp
def ruled(x, by):
    return divided(x, by)


ruled.defvjp(lambda x, by: (divided(x, by), None), lambda _, g: (g, g))


def everything(x, by):
    body = jax.checkpoint(lambda x, b: (jax.jit(ruled)(x, b), None))
    return jax.jit(lambda x: jax.lax.scan(body, x, by)[0])(x)


@pytest.mark.parametrize(
    ("fn", "loops"),
    [
        (scanned, ((1, 3),)),
        (reverse, ((1, 3),)),
        (outputs, ((1, 3),)),
        (counted, ((1, 3),)),
        (as_long_as, ((1, 3),)),
        (in_a_branch, ()),
        (nested, ((1, 3), (1, 2))),
        (mapped, ((1, 3),)),
        (everything, ((1, 3),)),
        (lambda x, by: jax.jvp(scanned, (x, by), (x, by)), ((1, 3),)),
    ],
)
def test_through_everything(fn, loops):
    found = nn.find_nonfinite(fn, X, BY)
    assert (found.operation, found.loops, found.backward) == ("div", loops, False)
    assert found.line == f"{__file__}:{LINE}"
    assert found.inputs[1].low == 0.0 and found.output.infinite
    assert nn.find_nonfinite(fn, X, jnp.ones((3, 4))) is None


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        gain = self.param("gain", nn.initializers.ones, (4,))
        # What where leaves out is finite here, and its derivative is not.
        return x + jnp.where(gain > 0, jnp.sqrt(jnp.abs(gain)), 0.0) * nn.Dense(4)(x)


class Model(nn.Module):
    depth: int
    remat: object = "auto"

    @nn.compact
    def __call__(self, x):
        return nn.Stack(Block(), depth=self.depth, remat=self.remat, name="deep")(x)


@pytest.mark.parametrize("remat", ["auto", nn.Remat(every=2, nested=True)])
def test_the_layer_of_a_backward_pass(remat):
    model = Model(4, remat)
    variables = model.init(KEY, X)
    step = jax.jit(jax.value_and_grad(lambda v, x: model.apply(v, x).sum()))
    assert nn.find_nonfinite(step, variables, X) is None
    gain = variables["params"]["deep"]["block_0"]["gain"]
    variables["params"]["deep"]["block_0"]["gain"] = gain.at[2, 1].set(0.0)
    assert nn.find_nonfinite(model.apply, variables, X) is None
    found = nn.find_nonfinite(step, variables, X)
    assert found.operation == "div" and found.kind == "infinite"
    assert found.module == "Model/deep/block_0"
    nan = found.became_nan
    assert nan.operation == "mul" and nan.backward and nan.kind == "NaN"
    layer = functools.reduce(lambda at, turn: at * turn[1] + turn[0], nan.loops, 0)
    assert layer == 2
    assert "pass" in str(found) and "then NaN first made by mul, backward pass" in str(found)


def softmax(x, mask):
    scores = jnp.where(mask, x, -jnp.inf)
    return jax.nn.softmax(scores)


def test_infinity_that_is_meant_is_none():
    assert nn.find_nonfinite(softmax, X, jnp.array([True, False, True, True])) is None
    found = nn.find_nonfinite(softmax, X, jnp.zeros(4, bool))
    assert (found.operation, found.kind) == ("select_n", "infinite")
    assert found.became_nan.operation == "sub"


def test_infinity_that_nothing_bad_hangs_on_is_passed_by():
    def fn(x):
        hidden = jnp.exp(-(jnp.log(0.0 * x) ** 2))  # of -inf, and 0
        return jnp.log(-x) + hidden

    found = nn.find_nonfinite(fn, X)
    assert found.operation == "log" and found.inputs[0].high == -1.0 and found.kind == "NaN"


def test_what_was_given_is_named():
    tree = {"params": {"kernel": X, "bias": X.at[2].set(jnp.nan)}}
    found = nn.find_nonfinite(lambda v, scale: v["params"]["bias"] * scale, tree, scale=2.0)
    assert found.operation is None
    assert found.argument == "args[0]['params']['bias']"
    assert str(found).startswith("NaN in the argument args[0]['params']['bias']")
    found = nn.find_nonfinite(lambda *, a, b: a + b, a=X, b=jnp.inf * X)
    assert (found.argument, found.kind) == ("b", "infinite")


def test_it_is_traced_once_and_prints_nothing(capfd):
    calls = []

    def fn(x):
        calls.append(x)
        jax.debug.print("x is {}", x)
        return jax.lax.scan(lambda x, _: (jnp.log(x - 1), None), x, length=4)[0]

    found = nn.find_nonfinite(fn, jnp.full(3, 4.0, jnp.bfloat16))
    jax.effects_barrier()
    assert len(calls) == 1 and capfd.readouterr().out == ""
    assert found.loops == ((2, 4),) and found.inputs[0].array == "bfloat16[3]"


def test_complex_numbers_keys_and_integers():
    def fn(x, key, n):
        noise = jax.random.normal(key, (4,))
        return (x + 1j * noise) / jnp.where(n > 0, 0, 1).astype(jnp.float32), n + 1

    found = nn.find_nonfinite(fn, X, KEY, jnp.arange(4))
    assert found.operation == "div"


@jax.jit
def step(w):
    return w - jax.grad(lambda w: jnp.sqrt(jnp.sum(w**2)))(w)


def test_the_finder_raises_where_nan_is_made():
    with nn.nan_finder():
        w = step(step(jnp.ones(3)))  # the second call takes JAX's short way
        donated = jax.jit(lambda w: w + 1, donate_argnums=0)
        assert jnp.isfinite(donated(w)).all()
        step(jnp.full(3, jnp.nan))  # is no fault of the step
        jnp.where(w > 0, -jnp.inf, 0.0)
    with pytest.raises(nn.errors.NonFiniteError, match="infinite first made by div") as raised:
        with nn.nan_finder():
            step(jnp.zeros(3))
    assert raised.value.found.became_nan.backward
    assert isinstance(raised.value, FloatingPointError)
    assert jnp.isnan(step(jnp.zeros(3))).all()  # outside of the block nothing is looked at


def test_the_finder_names_a_line_outside_of_jit():
    with pytest.raises(nn.errors.NonFiniteError) as raised:
        with nn.nan_finder():
            jnp.log(-X)
    line = raised.value.found.line
    assert line.startswith(__file__)


def test_models_are_the_same_in_the_finder():
    model = nn.Stack(nn.Dense(4), depth=2)
    plain = model.init(KEY, X), model.apply(model.init(KEY, X), X)
    with nn.nan_finder():
        found = model.init(KEY, X), model.apply(model.init(KEY, X), X)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), plain, found))
