"""What a call costs as models grow: counted in calls of Python and in equations, never timed."""

import functools
import gc
import sys

import jax
import jax.numpy as jnp
import pytest

import liftax as nn
from liftax.core import FrozenDict


def python_calls(fn):
    """How many Python functions run while `fn` does."""
    count = 0

    def profile(frame, event, arg):
        nonlocal count
        count += event == "call"

    fn()
    gc.disable()  # a collection calls Python too
    sys.setprofile(profile)
    try:
        fn()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


class Scale(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("w0", nn.initializers.ones, ())


class Probe(nn.Module):
    times: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.times):
            self.sow("intermediates", "seen", x)
        return x


class Gather(nn.Module):
    times: int

    @nn.compact
    def __call__(self, x):
        seen = self.variable("cache", "seen", tuple)
        for _ in range(self.times):
            seen.value = (*seen.value, x)
        return x


class Holder(nn.Module):
    held: tuple

    def __call__(self, x):
        return x


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1])(nn.LayerNorm()(x))


def flat(count):
    return {"params": {f"w{i}": jnp.ones(()) for i in range(count)}}


def nested(count):
    layers = {f"layer_{i}": {"kernel": jnp.ones(()), "bias": jnp.ones(())} for i in range(count)}
    return {"params": {**layers, "w0": jnp.ones(())}}


USES = {
    "bind": lambda v: Scale().bind(v),
    "variables": lambda v: Scale().bind(v).variables,
    "unbind": lambda v: Scale().bind(v).unbind(),
    "apply": lambda v: Scale().apply(v, 1.0),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("variables", [flat, nested], ids=["flat", "nested"])
def test_what_reads_one_variable_does_not_walk_them_all(use, variables):
    few, many = variables(10), variables(1000)
    assert python_calls(lambda: USES[use](many)) == python_calls(lambda: USES[use](few))


def test_what_is_not_written_is_the_callers_own():
    variables = nested(3)
    assert Scale().bind(variables).variables["params"] is variables["params"]
    written = Scale().bind(variables, mutable=["params"]).variables
    assert written["params"] is not variables["params"]


def test_a_mutable_call_asks_of_each_dict_and_not_of_each_variable():
    def calls(count):
        variables = flat(count)
        return python_calls(lambda: Scale().apply(variables, 1.0, mutable=["params"]))

    assert calls(1000) == calls(10)


@pytest.mark.parametrize("module", [Probe, Gather])
@pytest.mark.parametrize("scanned", [False, True], ids=["plain", "scanned"])
def test_a_write_does_not_walk_what_was_gathered(module, scanned):
    gathered = ["intermediates", "cache"]

    class Step(module):
        @nn.compact
        def __call__(self, x, _):
            return super().__call__(x), None

    def calls(times):
        model, args = module(times), (1.0,)
        if scanned:
            axes = dict.fromkeys(gathered, 0)
            model, args = nn.scan(Step, variable_axes=axes, length=2)(times), (1.0, None)
        call = functools.partial(model.apply, {}, *args, mutable=gathered)
        return python_calls(lambda: jax.eval_shape(call))

    one, two, four = calls(20), calls(40), calls(80)
    assert four - two == 2 * (two - one)


@pytest.mark.parametrize(
    "held", [lambda n: tuple(range(n)), lambda n: ("a",) * n], ids=["ints", "texts"]
)
def test_a_hash_opens_only_containers_that_need_it(held):
    few, many = Holder(held(10)), Holder(held(10_000))
    assert python_calls(lambda: hash(many)) == python_calls(lambda: hash(few))


def test_equal_modules_have_equal_hashes_whatever_is_nested():
    def make():
        return Holder((1, [2, {"a": (3, nn.Dense(4))}], {"b": {"c": [5]}}))

    assert make() == make()
    assert hash(make()) == hash(make())
    assert hash(make()) != hash(Holder((1, [2, {"a": (3, nn.Dense(5))}], {"b": {"c": [5]}})))
    # What flax freezes hashes itself, and equals the dict that it was made of.
    plain = {"a": 1, "b": {"c": (2, "x")}}
    for wrap in (lambda x: x, lambda x: (x,), lambda x: {"in": [x, None]}):
        frozen, same = Holder(wrap(FrozenDict(plain))), Holder(wrap(plain))
        assert frozen == same and hash(frozen) == hash(same)


def test_a_value_without_a_hash_is_an_error_wherever_it_stands():
    for held in (jnp.ones(2), (1, jnp.ones(2)), {"a": [jnp.ones(2)]}, nn.Sequential([jnp.ones(2)])):
        with pytest.raises(TypeError, match="unhashable type"):
            hash(Holder(held))


@pytest.mark.parametrize("store", ["stacked", "layers"])
@pytest.mark.parametrize("run", ["scan", "loop", "scan of 2"])
def test_a_stack_makes_its_variables_by_one_loop(run, store):
    def equations(depth):
        model = nn.Stack(Block(), depth=depth, run=run, store=store)
        program = jax.make_jaxpr(model.init)(jax.random.key(0), jnp.ones((2, 4)))
        return len(program.jaxpr.eqns), str(program).count("erf_inv")

    (few, draws), (many, as_many) = equations(4), equations(12)
    assert draws == as_many == 1
    if store == "stacked":
        assert few == many


def test_the_way_a_stack_runs_changes_no_bit_of_what_it_makes():
    class Seen(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = Block()(x)
            self.variable("batch_stats", "mean", lambda: jnp.mean(y) * 1.37 + jnp.std(y))
            return y

    x = jax.random.normal(jax.random.key(1), (2, 8))

    def made(run):
        return nn.Stack(Seen(), depth=6, run=run).init(jax.random.key(0), x)

    first = made("scan")
    for run in ("loop", "scan of 3"):
        same = jax.tree.map(lambda a, b: (a == b).all(), first, made(run))
        assert jax.tree.all(same)


def test_layers_that_look_at_values_are_made_one_by_one():
    class Looks(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x) if x.sum() > -1e9 else x

    made = nn.Stack(Looks(), depth=2, run="loop").init(jax.random.key(0), jnp.ones((1, 2)))
    assert made["params"]["block_0"]["Dense_0"]["kernel"].shape == (2, 2, 2)
