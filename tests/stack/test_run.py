"""All ways to run and to store a stack: the same variables, keys, results and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.quick import well
from hypothesis import given, settings
from hypothesis import strategies as st
from stack.blocks import (
    KEY,
    RNGS,
    STORES,
    Calls,
    Counts,
    Normed,
    Residual,
    Scale,
    Uses,
    Wide,
    X,
    as_stacked,
    counting,
    dense,
    equal,
    every_way,
    loss_and_grads,
    primitives,
    same,
    way,
)

import liftax as nn
from liftax.errors import StackError
from liftax.stack.options import Level, levels, parse_run
from liftax.stack.storage import by_layers

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def check_ways(stack, ways, x=X):
    """Every way makes the same variables, loss and gradients."""
    _, variables = stack.init_with_output(RNGS, x)
    value, grads = loss_and_grads(stack, variables, x, rngs=RNGS)
    for other in ways:
        _, made = other.init_with_output(RNGS, x)
        equal(as_stacked(other, made), variables)
        found, slopes = loss_and_grads(other, made, x, rngs=RNGS)
        np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=way(other))
        same(as_stacked(other, slopes), grads, rtol=1e-4, atol=1e-5)


def test_every_run_and_storage():
    stack = nn.Stack(
        [Residual(0.4), Scale()], repeats=5, before=[Wide()], after=[Residual(0.4), Scale()]
    )
    ways = [
        ("scan", "layers"),
        ("loop", "stacked"),
        ("loop", "layers"),
        ("scan of 2", "stacked"),
        ("scan of sqrt", "layers"),
    ]
    check_ways(stack, [stack.clone(run=run, store=store) for run, store in ways])


def test_the_loop_by_hand():
    """A stack is the loop that its documentation shows."""
    stack = nn.Stack([Residual(), Wide()], repeats=3)
    variables = stack.init(KEY, X)
    layers = by_layers(variables, stack.layout())["params"]
    x = X
    for i in range(6):
        x = stack[i].apply({"params": layers[f"layers_{i}"]}, x)
    same(stack.apply(variables, X), x)


def test_keys_are_those_of_a_scan_by_hand():
    """Layer i draws from split i of the stream, at the path of its position."""

    class Noise(nn.Module):
        def __call__(self, x):
            return x + jax.random.normal(self.make_rng("dropout"), x.shape)

    key = jax.random.key(7)
    y = nn.Stack(Noise(), depth=3).apply({}, X, rngs={"dropout": key})

    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return Noise(name="block_0")(x), None

    scan = nn.scan(Body, split_rngs={"dropout": True}, length=3, check_constancy_invariants=False)
    same(scan().apply({}, X, None, rngs={"dropout": key})[0], y)


def test_a_stream_that_is_not_split():
    class Noise(nn.Module):
        def __call__(self, x):
            return x + jax.random.normal(self.make_rng("noise"), x.shape)

    stack = nn.Stack(Noise(), depth=3, split_rngs={"noise": False})
    rngs = {"noise": jax.random.key(7)}
    y = stack.apply({}, X, rngs=rngs)
    same((y - X) / 3, stack.bind({}, rngs=rngs)[0](X) - X)
    same(stack.clone(run="loop").apply({}, X, rngs=rngs), y)


def test_batch_statistics():
    stack = nn.Stack(Normed(), depth=4, after=[Normed()])
    x = jax.random.normal(KEY, (8, 4))
    _, variables = stack.init_with_output(RNGS, x, True)

    def train(stack, variables):
        return stack.apply(variables, x, True, mutable=["batch_stats"], rngs=RNGS)

    y, updated = train(stack, variables)
    for other in every_way(stack, runs=("loop",), remats=(nn.Remat(),)):
        mine = variables
        if other.store == "layers":
            mine = by_layers(variables, other.layout())
        z, found = train(other, mine)
        same(z, y, rtol=1e-4)
        same(as_stacked(other, found), updated, rtol=1e-4)


def test_carried_state_runs_alike():
    stack = nn.Stack(Counts(), depth=5, variable_carry="count")
    _, variables = stack.init_with_output(KEY, X)
    expected = stack.apply(variables, X, mutable=["count"])
    assert int(expected[1]["count"]["block_0"]["n"]) == 10
    for run in ("loop", "scan of 2"):
        other = stack.clone(run=run)
        equal(other.init_with_output(KEY, X)[1], variables)
        same(other.apply(variables, X, mutable=["count"]), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_ties_run_alike(tied):
    if tied:
        stack = nn.Stack([Residual(0.3), Scale()], repeats=3, variable_broadcast="params")
    else:
        inner = nn.Dense(4)
        stack = nn.Stack([Uses(inner), inner], repeats=3, before=[Uses(inner)], shared=[inner])
    check_ways(stack, every_way(stack, runs=("loop",), remats=(nn.Remat(),)))
    check_ways(stack, [stack.clone(run="scan of 2")])


def test_frozen_layers_run_alike():
    stack = nn.Stack([Residual(), Scale()], repeats=2, before=[Wide()], frozen=[0, 1, -1])
    variables = stack.init(KEY, X)
    free = loss_and_grads(stack.clone(frozen=False), variables, X)[1]
    grads = loss_and_grads(stack, variables, X)[1]
    slopes = by_layers(grads, stack.layout())["params"]
    expected = by_layers(free, stack.layout())["params"]
    for i in range(5):
        if i in (0, 1, 4):
            assert not any(np.any(g) for g in jax.tree.leaves(slopes[f"layers_{i}"]))
        else:
            same(slopes[f"layers_{i}"], expected[f"layers_{i}"])
    check_ways(stack, every_way(stack, runs=("loop",)))
    whole = loss_and_grads(stack.clone(frozen=True), variables, X)[1]
    assert not any(np.any(g) for g in jax.tree.leaves(whole))


def test_boxes_name_the_axis_of_the_layers():
    init = nn.with_partitioning(nn.initializers.uniform(0.8), ("in", "out"))
    stack = nn.Stack(
        nn.Dense(4, kernel_init=init),
        depth=3,
        param_axis=1,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    kernel = stack.init(KEY, X)["params"]["block_0"]["kernel"]
    assert kernel.names == ("in", "layers", "out")
    assert kernel.value.shape == (4, 3, 4)
    by_layer = stack.clone(store="layers").init(KEY, X)["params"]
    assert by_layer["layers_2"]["kernel"].names == ("in", "out")
    assert stack.bind(stack.init(KEY, X))[1].variables["params"]["kernel"].names == ("in", "out")
    check_ways(stack, every_way(stack, runs=("loop",)))


class Decoder(nn.Module):
    run: str = "scan"
    store: str = "stacked"

    @nn.compact
    def __call__(self, x, decode=False):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, decode):
                mask = None if decode else nn.make_causal_mask(x[..., 0])
                attend = nn.MultiHeadDotProductAttention(2, decode=decode)
                return x + attend(nn.LayerNorm()(x), mask=mask)

        stack = nn.Stack(
            Layer(parent=None), depth=3, after=[Layer(parent=None)], run=self.run, store=self.store
        )
        return stack(x, decode)


@pytest.mark.parametrize(("run", "store"), [("scan of 2", "stacked"), ("loop", "layers")])
def test_trained_scanned_decodes_unrolled(run, store):
    """The cache and the parameters of one way serve another."""
    tokens = jax.random.normal(KEY, (2, 5, 4))
    variables = Decoder().init(KEY, tokens)
    expected = Decoder().apply(variables, tokens)
    cache = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(lambda: Decoder(run, store).init(KEY, tokens, True)["cache"]),
    )
    if store == "layers":
        at = nn.Stack(Scale(), depth=3, after=[Scale()]).layout()
        stack = by_layers({"params": variables["params"]["Stack_0"]}, at)
        variables = {"params": {"Stack_0": stack["params"]}}

    @jax.jit
    def step(variables, cache, token):
        module = Decoder(run, store)
        y, updated = module.apply({**variables, "cache": cache}, token, True, mutable=["cache"])
        return y, updated["cache"]

    outputs = []
    for t in range(5):
        y, cache = step(variables, cache, tokens[:, t : t + 1])
        outputs.append(y)
    same(jnp.concatenate(outputs, 1), expected, rtol=1e-4)


def test_what_layers_sow_is_stored_with_them():
    stack = nn.Stack([Scale(), Wide()], repeats=2, after=[Scale()])
    variables = stack.init(KEY, X)
    for other in every_way(stack, runs=("scan", "loop")):
        mine = by_layers(variables, stack.layout()) if other.store == "layers" else variables
        _, found = other.apply(mine, X, capture_intermediates=True)
        seen = found["intermediates"]
        assert seen["__call__"][0].shape == X.shape
        if other.store == "layers":
            assert seen["layers_3"]["down"]["__call__"][0].shape == X.shape
        else:
            assert seen["block_1"]["down"]["__call__"][0].shape == (2, *X.shape)
            assert seen["after_0"]["__call__"][0].shape == X.shape


# --- the program --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "expected"),
    [("scan", 1), ("loop", 6), ("scan of 2", 2), ("scan of 4", 6), ("scan of sqrt", 2)],
)
def test_how_often_a_layer_is_traced(run, expected):
    """Once in a scan, K times in a scan of K (and for a remainder), each time in a loop."""
    calls = Calls()
    stack = nn.Stack(counting(calls)(), depth=6, run=run)
    variables = stack.init(KEY, X)
    calls.n = 0
    jax.make_jaxpr(stack.apply)(variables, X)
    assert calls.n == expected


def test_the_loops_of_the_program():
    stack = nn.Stack(Residual(), depth=6)
    variables = stack.init(KEY, X)

    def count(**options):
        return primitives(stack.clone(**options).apply, variables, X)

    assert count()["scan"] == 1
    assert "scan" not in count(run="loop")
    assert count(run="scan of 3")["scan"] == 1
    assert count(run="scan of 3")["dot_general"] == 3
    assert count(remat=nn.Remat(every=2))["scan"] == 2
    assert count(unroll=2)["scan"] == 1


def test_storage_by_layers_costs_nothing_in_a_loop():
    """The compiled program is that of a model written layer by layer."""
    stack = nn.Stack(nn.Dense(4), depth=6, run="loop", store="layers")
    variables = stack.init(KEY, X)

    def by_hand(variables):
        x = X
        for i in range(6):
            p = variables["params"][f"layers_{i}"]
            x = x @ p["kernel"] + p["bias"]
        return jnp.sum(jnp.sin(x))

    def as_stack(variables):
        return jnp.sum(jnp.sin(stack.apply(variables, X)))

    def cost(fn):
        compiled = jax.jit(jax.grad(fn)).lower(variables).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    assert cost(as_stack) == cost(by_hand)


def test_overrides_hold_where_they_are_traced():
    stack = nn.Stack(Residual(), depth=6, unroll=2, remat=None)
    variables = stack.init(KEY, X)

    def has(name):
        return name in primitives(jax.grad(lambda v: stack.apply(v, X).sum()), variables)

    assert has("scan")
    assert not has("remat2")
    with nn.override_stacks(run="loop"):
        assert not has("scan")
        with nn.override_stacks(run="scan", remat=nn.Remat()):
            assert has("scan")
            assert has("remat2")
            with nn.override_stacks(remat="off"):
                assert not has("remat2")
        assert not has("scan")
    assert has("scan")


def test_runs_are_parsed_once_and_strictly():
    assert parse_run(" scan  of 12 ").group == 12
    for run in ("scans", "scan of", "scan of 0", "loop of 3", "scan of -1", "", "scan of x"):
        with pytest.raises(StackError, match="expected 'scan', 'loop', 'scan of K'"):
            nn.Stack(Scale(), depth=2, run=run)
    with pytest.raises(StackError, match="unroll=2 is for scans"):
        nn.Stack(Scale(), depth=2, run="loop", unroll=2)
    with pytest.raises(StackError, match="unroll expected a number.*found -1"):
        nn.Stack(Scale(), depth=2, unroll=-1)
    with pytest.raises(
        StackError, match="expected a Remat, 'auto' or None; found 'dots_saveable'; write"
    ):
        nn.override_stacks(remat="dots_saveable").__enter__()


# --- laws ---------------------------------------------------------------------------------


KINDS = {"scale": Scale, "dense": lambda: dense(4), "wide": Wide, "noisy": lambda: Residual(0.5)}


@st.composite
def stacks(draw):
    layers = st.sampled_from(sorted(KINDS))
    pattern = draw(st.lists(layers, min_size=1, max_size=3))
    ends = [draw(st.lists(layers, max_size=2)) for _ in range(2)]
    repeats = draw(st.integers(1, 5))
    return nn.Stack(
        [KINDS[k]() for k in pattern],
        repeats=repeats,
        before=[KINDS[k]() for k in ends[0]],
        after=[KINDS[k]() for k in ends[1]],
        param_axis=draw(st.sampled_from([0, 1, -1])),
    )


@st.composite
def ways_of(draw, repeats):
    run = draw(st.sampled_from(["scan", "loop", "scan of sqrt", "scan of K"]))
    group = draw(st.integers(1, repeats))
    remat = draw(st.sampled_from(["none", "each", "groups", "sqrt", "positions"]))
    every = 1
    if remat == "groups":
        options = [k for k in range(1, repeats + 1) if k % group == 0 or group % k == 0]
        every = draw(st.sampled_from(options if run == "scan of K" else range(1, repeats + 1)))
    if run == "scan of sqrt":
        remat = "none" if remat == "groups" else remat
    if run == "scan of K" and remat == "sqrt":
        remat = "each"
    plans = {
        "none": None,
        "each": nn.Remat(),
        "groups": nn.Remat("dots_saveable", every=every, nested=every > 1),
        "sqrt": nn.Remat(every="sqrt"),
        "positions": nn.Remat(positions=0),
    }
    return {
        "run": run.replace("K", str(group)),
        "store": draw(st.sampled_from(STORES)),
        "remat": plans[remat],
    }


@settings(max_examples=7)
@given(st.data())
def test_all_runs_agree(data):
    stack = data.draw(stacks())
    options = data.draw(ways_of(stack.repeats))
    with well():  # a loss may be near zero, and is compared all the same
        check_ways(stack, [stack.clone(**options)])


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12), st.sampled_from([None, True]))
def test_levels_cover_the_depth(length, group, every, nested):
    run = parse_run(f"scan of {group}")
    remat = nn.Remat(every=every, nested=nested if every > 1 else None)
    group, every = min(group, length), min(every, length)
    if max(group, every) < length and max(group, every) % min(group, every):
        with pytest.raises(StackError, match="the groups overlap"):
            levels(run, remat, length)
        return
    nest = levels(run, remat, length)
    assert nest[-1].size == 1
    within = every > 1 and (remat.nested or group == 1)
    # Groups that would store as much as single steps are single steps.
    pays = not (within and group == 1) or -(-length // every) + every < length
    assert [level.size for level in nest] == sorted({group, every * pays or 1, 1}, reverse=True)
    assert sum(level.remat for level in nest) == 1 + (within and pays)
    for outer, inner in zip(nest, nest[1:], strict=False):
        assert outer.size % inner.size == 0 or outer.size == length


def test_groups_longer_than_the_stack_are_the_stack():
    check_ways(
        nn.Stack(Scale(), depth=3),
        [
            nn.Stack(Scale(), depth=3, run="scan of 4"),
            nn.Stack(Scale(), depth=3, run="scan of 2", remat=nn.Remat(every=4)),
        ],
    )
    one = nn.Stack(Scale(), depth=1, run="loop", remat=nn.Remat(every=5, nested=True))
    check_ways(one, [one.clone(run="scan of 4")])


class Around(nn.Module):
    stack: nn.Stack

    def __call__(self, x):
        return self.stack(x)


def in_two_fields(lift, **options):
    tied = Scale()
    pattern = [Uses(tied), Scale(), Uses(tied)]
    return lift(Around)(nn.Stack(pattern, repeats=2, **options))


@pytest.mark.parametrize("lift", [lambda cls: cls, nn.jit])
def test_one_module_in_fields_of_two_positions(lift):
    """The first position owns it, in either storage; each repeat has one of its own."""
    stacked, layers = in_two_fields(lift), in_two_fields(lift, store="layers")
    whole, apart = stacked.init(KEY, X), layers.init(KEY, X)
    equal(nn.to_layers(whole, nn.stack_layouts(layers, KEY, X)), apart)
    found = apart["params"]["stack"]
    assert [i for i in range(6) if "inner" in found[f"layers_{i}"]] == [0, 3]
    expected = stacked.apply(whole, X)
    same(layers.apply(apart, X), expected)
    same(in_two_fields(lift, frozen=True).apply(whole, X), expected)


@given(st.integers(1, 2000))
def test_groups_of_about_the_square_root(length):
    nest = levels(parse_run("scan of sqrt"), None, length)
    size = nest[0].size
    stored = size + -(-length // size)
    assert stored <= 2.6 * np.sqrt(length) + 1
    assert nest[0] == Level(size, "scan", unroll=nest[0].unroll)
