"""What each layer costs, by the compiler's count: which layers, how often, how many FLOPs."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import liftax as nn
from liftax.debug.cut import calls_in
from liftax.debug.timing import _text
from liftax.errors import StackError

KEY = jax.random.key(0)
X = jnp.ones((2, 8))
WIDE = 32


class Block(nn.Module):
    width: int = WIDE

    @nn.compact
    def __call__(self, x):
        jax.debug.print("a layer runs")
        return x + nn.Dense(8)(nn.relu(nn.Dense(self.width)(x)))


class Model(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(11, 8)
        pattern = [Block(), Block(2 * WIDE)]
        x = nn.Stack(pattern, repeats=3, after=[Block()], name="deep")(embed(ids))
        return embed.attend(x)


def ticks():
    """A clock that goes on by a second with each look at it."""
    seconds = itertools.count(0.0)
    return lambda: next(seconds)


def products(width, backward=False):
    """The FLOPs of a Block's products: a backward pass has two for each."""
    return 2 * 2 * len(X) * 8 * width * (3 if backward else 1)


def test_the_layers_of_stacks_and_what_stands_beside_them(capfd):
    ids = jnp.zeros((len(X),), int)
    shapes = jax.eval_shape(Model().init, KEY, ids)
    found = nn.time_layers(
        Model(), shapes, ids, runs=["scan", "loop"], backward=False, repeats=2, clock=ticks()
    )
    assert [(row.module, row.kind, row.times) for row in found.layers] == [
        ("Embed_0", "Embed", 1),
        ("deep/block_0", "Block", 4),  # one after the pattern has the same program
        ("deep/block_1", "Block", 3),
        ("Embed_0", "Embed.attend", 1),
    ]
    for row, width in zip(found.layers[1:3], (WIDE, 2 * WIDE), strict=True):
        assert products(width) <= row.forward.cost.flops < 1.6 * products(width)
        assert row.forward.cost.bytes_accessed >= 4 * 2 * 8 * width
        assert row.forward.cost.peak_temporary_bytes >= 0
    assert [(row.module, row.run, row.layers) for row in found.stacks] == [
        ("deep", "scan", 7),
        ("deep", "loop", 7),
    ]
    whole = 4 * products(WIDE) + 3 * products(2 * WIDE)
    assert all(whole <= row.forward.cost.flops < 1.6 * whole for row in found.stacks)
    # By the clock every program takes a second: a stack takes one, and its layers take seven.
    assert {row.adds for row in found.stacks} == {(1.0 - 7.0, None)}
    assert "a layer runs" not in capfd.readouterr().out


def test_layers_that_draw_are_equal_wherever_they_stand():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(x) + nn.Dropout(0.1)(x, False)

    class Written(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = Noisy()(x)
            return nn.Stack(Noisy(), depth=2, before=[Noisy()])(x)

    calls = calls_in(lambda x: Written().apply({}, x, rngs={"dropout": KEY}), X)
    parts = [part for call in calls for part in call.parts]
    assert [part.times for part in parts] == [1, 1, 1, 1, 2]
    assert len({_text(part) for part in parts}) == 1


def test_as_tables_with_gradients():
    stack = nn.Stack(Block(), depth=4)
    shapes = jax.eval_shape(stack.init, KEY, X)
    found = nn.time_layers(stack, shapes, X, runs=["scan"], repeats=1, clock=ticks())
    both = found.layers[0].both.cost
    assert products(WIDE, backward=True) <= both.flops < 1.6 * products(WIDE, backward=True)
    for width in (60, 80, 120):
        lines = found.text(width).splitlines()
        assert all(len(line) <= width for line in lines)
        cells = [" ".join(line.split()) for line in lines]
        assert cells[0] == "layer pass time FLOPs bytes memory"
        assert cells[2].startswith("block_0 ×4 forward 1 s")
        assert cells[3].startswith("Block gradient 1 s")
        assert cells[5] == "stack pass time loop adds memory"
        assert cells[7].startswith("/ ×4 forward 1 s -3 s")
        assert cells[8].startswith("scan gradient 1 s -3 s")


def test_nothing_runs_and_nothing_is_differentiated_unasked():
    def never():
        raise AssertionError

    stack = nn.Stack(Block(), depth=4, store="layers", remat=nn.Remat())
    found = nn.time_layers(
        stack, jax.eval_shape(stack.init, KEY, X), X, runs=["scan"], backward=False, repeats=0,
        clock=never,
    )  # fmt: skip
    ((layer,), (whole,)) = found.layers, found.stacks
    assert (layer.times, layer.both, layer.forward.seconds) == (4, None, None)
    assert whole.adds == (None, None)
    assert "block_0  ×4  forward" in found.text(80)


class Pattern(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Stack(nn.Dense(8), depth=2)(x), None


def test_loops_around_a_stack_are_counted_and_a_map_is_timed_whole():
    loops = nn.scan(Pattern, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)
    batch = nn.vmap(loops, variable_axes={"params": None}, split_rngs={"params": False})
    model, x = batch(), jnp.ones((3, 8))
    shapes = jax.eval_shape(model.init, KEY, x, None)
    found = nn.time_layers(model, shapes, x, None, runs=["scan"], repeats=0, backward=False)
    (layer,), (stack,) = found.layers, found.stacks
    assert (layer.kind, layer.times, stack.layers) == ("Dense", 10, 2)
    assert layer.forward.cost.flops >= 3 * 2 * 8 * 8


def test_without_a_stack_what_stands_in_the_model():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = Block()(x)
            return nn.Dense(1)(x)

    shapes = jax.eval_shape(Plain().init, KEY, X)
    found = nn.time_layers(Plain(), shapes, X, repeats=0, backward=False)
    rows = [(row.module, row.times) for row in found.layers]
    assert rows == [("Block_0", 3), ("Dense_0", 1)]
    variables = {"params": {"kernel": jnp.ones((8, 1)), "bias": X[0, :1]}}
    alone = nn.time_layers(nn.Dense(1), variables, X, backward=False, repeats=0)
    assert [row.kind for row in alone.layers] == ["Dense"] and alone.stacks == ()


def test_a_layer_that_does_nothing_and_one_without_a_derivative():
    class Same(nn.Module):
        def __call__(self, x):
            return x

    stack = nn.Stack(Same(), depth=2)
    (row,) = nn.time_layers(stack, {}, X, runs=["loop"], repeats=0).layers
    assert row.times == 2
    counts = jnp.zeros((2,), int)
    (row,) = nn.time_layers(stack, {}, counts, runs=["loop"], repeats=0).layers
    assert row.both is None


def test_the_program_of_a_call_computes_what_the_call_does():
    stack = nn.Stack(nn.Dense(8), depth=3)
    variables = stack.init(KEY, X)
    (call,) = calls_in(stack.apply, variables, X)
    (layer,) = call.parts
    assert layer.program is not None and layer.times == 3
    kernel, bias = jnp.full((8, 8), 2.0), jnp.arange(8.0)
    given = {(8, 8): kernel, (8,): bias, X.shape: X}
    inputs = [given[aval.shape] for aval in layer.program.in_avals]
    (out,) = jax.core.eval_jaxpr(layer.program.jaxpr, (), *inputs)
    assert (out == X @ kernel + bias).all()


class Empty(nn.Module):
    def __call__(self, n):
        return n


def test_refusals():
    with pytest.raises(ValueError, match="time_layers: found no module in Empty"):
        nn.time_layers(Empty(), {}, 3)
    assert nn.time_layers(Empty(), {}, X, repeats=0).layers
    stack = nn.Stack(nn.Dense(8), depth=2)
    variables = stack.init(KEY, X)
    with pytest.raises(StackError, match="run expected 'scan', 'loop'.*found 'spiral'"):
        nn.time_layers(stack, variables, X, runs=["spiral"], repeats=0)
    assert nn.time_layers(stack, variables, X, runs=["scan"], repeats=0).stacks
