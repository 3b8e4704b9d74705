"""What is recomputed: the plan, the program, the memory."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from stack.blocks import (
    KEY,
    Residual,
    Scale,
    Wide,
    X,
    dense,
    equal,
    loss_and_grads,
    primitives,
    same,
)

import liftax as nn
from liftax.errors import StackError
from liftax.stack.options import Level, levels, parse_run

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def loss(stack, x=X):
    return lambda variables: jnp.sum(jnp.sin(stack.apply(variables, x)))


def program(stack, variables):
    return primitives(jax.grad(loss(stack)), variables)


PLANS = {
    "each step": nn.Remat(),
    "groups": nn.Remat(every=2),
    "groups with a remainder, nested": nn.Remat(every=4, nested=True),
    "sqrt": nn.Remat(every="sqrt"),
    "a policy by name": nn.Remat("dots_with_no_batch_dims_saveable"),
    "a policy": nn.Remat(jax.checkpoint_policies.everything_saveable, every=3),
    "positions": nn.Remat(positions=[1]),
    "names": nn.Remat(save="branch"),
    "names and a policy": nn.Remat("dots_saveable", save="branch", every=2),
    "on the host": nn.Remat(offload="branch"),
    "barriers": nn.Remat(prevent_cse=True),
}


@pytest.mark.parametrize("run", ["loop", "scan"])
def test_no_plan_changes_a_gradient(run):
    stack = nn.Stack([Scale(), Residual()], repeats=5, before=[Residual()], run=run)
    variables = stack.init(KEY, X)
    expected = loss_and_grads(stack, variables, X)
    plans = PLANS if run == "loop" else {k: PLANS[k] for k in ("names", "groups", "positions")}
    for name, plan in plans.items():
        found = loss_and_grads(stack.clone(remat=plan), variables, X)
        try:
            same(found, expected, rtol=1e-4)
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize(
    ("run", "remat", "expected"),
    [
        ("scan", nn.Remat(), [Level(1, "scan", True)]),
        ("scan", nn.Remat(every=4), [Level(4, "scan", True), Level(1, "scan", True)]),
        ("scan", nn.Remat(every=2, save="a"), [Level(2, "scan", True), Level(1, "scan", True)]),
        (
            "scan",
            nn.Remat(every=4, nested=False),
            [Level(4, "scan", True), Level(1, "scan", products=True)],
        ),
        (
            "scan",
            nn.Remat(every=4, nested=False, save="branch"),
            [Level(4, "scan", True), Level(1, "scan")],
        ),
        ("scan", nn.Remat(every=15), [Level(1, "scan", True)]),  # two groups, and as many carries
        ("loop", nn.Remat(every=4), [Level(4, "loop", True), Level(1, "loop")]),
        (
            "scan of 2",
            nn.Remat(every=4, nested=True),
            [Level(4, "scan", True), Level(2, "scan"), Level(1, "loop", True)],
        ),
        ("scan of 4", nn.Remat(), [Level(4, "scan"), Level(1, "loop", True)]),
        ("scan of 4", nn.Remat(positions=0), [Level(4, "scan"), Level(1, "loop")]),
        (
            "scan of 4",
            nn.Remat(every=2),
            [Level(4, "scan"), Level(2, "loop", True), Level(1, "loop")],
        ),
        ("scan of sqrt", nn.Remat(every="sqrt"), [Level(4, "scan", True), Level(1, "loop")]),
    ],
)
def test_the_nest_of_loops(run, remat, expected):
    assert levels(parse_run(run), remat, 16) == expected


# How `checkpoint` is written down is JAX's; that it recomputes in both ways is tested below.
@pytest.mark.parametrize("remat3", [False], indirect=True)
def test_the_program_has_what_the_plan_says(remat3):
    stack = nn.Stack([dense(4), Scale()], repeats=4, after=[dense(4)], remat=None)
    variables = stack.init(KEY, X)
    assert "remat2" not in program(stack, variables)
    # One for the loop's body, one for the layer after it.
    assert program(stack.clone(remat=nn.Remat()), variables)["remat2"] == 2
    assert program(stack.clone(remat=nn.Remat(), run="loop"), variables)["remat2"] == 5
    assert program(stack.clone(remat=nn.Remat(every=2), run="loop"), variables)["remat2"] == 3
    # The layers at a position, and none outside the pattern.
    both = nn.Remat(positions=(0, 1))
    assert program(stack.clone(remat=both), variables)["remat2"] == 2
    assert program(stack.clone(remat=nn.Remat(positions=1), run="loop"), variables)["remat2"] == 4


@pytest.mark.parametrize("remat3", [False], indirect=True)
def test_barriers_only_where_passes_could_share_work(remat3):
    stack = nn.Stack(dense(4), depth=4)
    variables = stack.init(KEY, X)

    def barriers(**options):
        text = str(jax.make_jaxpr(jax.grad(loss(stack.clone(**options))))(variables))
        return text.count("prevent_cse=True") > 0

    assert not barriers(remat=nn.Remat())
    assert not barriers(remat=nn.Remat(every=2))
    assert barriers(remat=nn.Remat(every=4, nested=False))  # a loop over one group is none
    assert barriers(remat=nn.Remat(), run="loop")
    assert barriers(remat=nn.Remat(), unroll=True)
    assert barriers(remat=nn.Remat(prevent_cse=True))
    assert not barriers(remat=nn.Remat(prevent_cse=False), run="loop")


def test_a_saved_value_is_not_computed_again(remat3):
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = checkpoint_name(jnp.cos(dense(4)(x)), "h")
            return jnp.tanh(h)

    stack = nn.Stack(Two(), depth=3, remat=None)
    variables = stack.init(KEY, X)
    again = program(stack.clone(remat=nn.Remat()), variables)
    saved = program(stack.clone(remat=nn.Remat(save="h")), variables)
    kept = program(stack, variables)
    assert again["dot_general"] == saved["dot_general"] == kept["dot_general"] + 1
    assert again["tanh"] == 2
    if remat3 and jax.__version_info__ < (0, 11):
        return  # knows no offloading
    text = str(jax.make_jaxpr(jax.grad(loss(stack.clone(remat=nn.Remat(offload="h")))))(variables))
    assert "Host" in text or "host" in text
    plain = jax.make_jaxpr(jax.grad(loss(stack.clone(remat=nn.Remat()))))(variables)
    carried = str(
        jax.make_jaxpr(jax.grad(loss(stack.clone(remat=nn.Remat(offload="carry")))))(variables)
    )
    assert "host" in carried.lower() and "host" not in str(plain).lower()


def deep(depth, **options):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = jnp.sin(x)
            return x * self.param("w", nn.initializers.ones, (1,))

    return nn.Stack(Layer(), depth=depth, **options)


def temporary_bytes(stack, x):
    variables = jax.eval_shape(lambda: stack.init(KEY, x))
    compiled = jax.jit(jax.grad(loss(stack, x))).lower(variables).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_square_root():
    """The compiled program's own count, four times as deep."""
    x = jnp.ones(2048)
    size = x.nbytes
    plain = [temporary_bytes(deep(n, remat=None), x) / size for n in (16, 64)]
    each = [temporary_bytes(deep(n, remat=nn.Remat()), x) / size for n in (16, 64)]
    sqrt = nn.Remat(every="sqrt")
    root = [temporary_bytes(deep(n, remat=sqrt), x) / size for n in (16, 64, 256)]
    assert plain[1] - plain[0] > 3 * (64 - 16) * 0.9
    assert abs((each[1] - each[0]) - (64 - 16)) < 4
    # Carries of sqrt(n) groups, and of the sqrt(n) steps in one of them.
    assert root[1] - root[0] < 2 * (8 - 4) + 2
    assert root[2] - root[1] < 2 * (16 - 8) + 2
    assert root[2] < each[1]


@pytest.mark.parametrize(("width", "rows"), [(96, 2), (4, 2048)])
def test_groups_never_take_more_than_steps(width, rows):
    """Neither where weights are the larger thing, nor where what enters a layer is."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            drop = nn.Dropout(0.1, deterministic=False)
            return x + nn.Dense(width)(jnp.tanh(nn.Dense(width)(drop(x))))

    x = jnp.ones((rows, width))
    stack = nn.Stack(Layer(), depth=11, remat=nn.Remat())
    rngs = {"dropout": jax.random.key(1)}
    variables = stack.init({"params": KEY, **rngs}, x)

    def found(remat):
        model = stack.clone(remat=remat)
        grads = jax.grad(lambda v, x: jnp.sum(model.apply(v, x, rngs=rngs) ** 2), argnums=(0, 1))
        program = jax.jit(grads).lower(variables, x).compile()
        return program.memory_analysis().temp_size_in_bytes, program(variables, x)

    size, expected = found(nn.Remat())
    for remat in (nn.Remat(every=3), nn.Remat(every=4, nested=False), nn.Remat(every=10)):
        groups, grads = found(remat)
        equal(grads, expected)
        # Of the carries four groups' and three steps' are there at once, of the weights none; what
        # is kept of a group at once is two products of each of its steps.
        most = {3: size - x.nbytes, 4: size + 4 * 2 * x.nbytes, 10: size}[remat.every]
        assert groups <= most, remat
        kept = nn.saved_residuals(stack.clone(remat=remat), variables, x, rngs=rngs)
        assert not any(r.shape[-2:] == (width, width) for r in kept.rows if r.operation == "carry")


def test_groups_have_every_derivative():
    """Forward over reverse, reverse over reverse, and layers side by side."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + 0.3 * jnp.sin(nn.Dense(4)(x))

    x = jnp.linspace(0.1, 1, 4)
    plain = nn.Stack(Layer(), depth=7, remat=None)
    variables = plain.init(KEY, x)
    direction = jax.tree.map(jnp.cos, variables)

    def found(stack):
        def grads(v):
            return jax.grad(loss(stack, x))(v)

        def dot(v):
            pairs = zip(jax.tree.leaves(grads(v)), jax.tree.leaves(direction), strict=True)
            return sum(jnp.vdot(a, b) for a, b in pairs)

        both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), variables)
        return (
            jax.jvp(loss(stack, x), (variables,), (direction,)),
            jax.jvp(grads, (variables,), (direction,)),
            jax.grad(dot)(variables),
            jax.vmap(grads)(both),
        )

    groups = jax.jit(lambda: found(plain.clone(remat=nn.Remat(every=3))))()
    same(groups, jax.jit(lambda: found(plain))(), rtol=1e-4)


def test_names_that_match_nothing(remat3):
    stack = nn.Stack([Residual(), Scale()], repeats=2)
    variables = stack.init(KEY, X)
    wrong = nn.Remat(save=("branch", "brunch"))
    for run in ("scan", "loop"):
        with pytest.raises(StackError, match="'brunch', but no recomputed layer") as error:
            stack.clone(remat=wrong, run=run).apply(variables, X)
        assert "found: branch\n" in str(error.value)
    with pytest.raises(StackError, match="'branch', but no recomputed layer"):
        stack.clone(remat=nn.Remat(save="branch", positions=1)).apply(variables, X)
    stack.clone(remat=nn.Remat(save="branch", positions=0)).apply(variables, X)
    ends = nn.Stack(Scale(), depth=2, after=[Residual()], remat=nn.Remat(offload="branch"))
    ends.init(KEY, X)


REFUSED = {
    "a slip": ({"policy": "dots_savable"}, "did you mean 'dots_saveable'"),
    "a maker": ({"policy": "save_only_these_names"}, "makes a policy and is none; use save="),
    "no policy": ({"policy": 3}, "the name of a policy, a policy or None; found int"),
    "zero": ({"every": 0}, "a number of steps or 'sqrt'; found 0"),
    "a word": ({"every": "cbrt"}, "found 'cbrt'"),
    "both": ({"positions": 0, "every": 2}, "drop one of them"),
    "nested alone": ({"nested": True}, "nested=True recomputes within groups"),
    "twice": ({"save": "a", "offload": ["a", "b"]}, "'a' is in save= and in offload="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(StackError, match=message):
        nn.Remat(**options)


def test_plans_that_do_not_fit_the_stack():
    with pytest.raises(StackError, match="the pattern has positions 0 to 1"):
        nn.Stack([Scale(), Wide()], repeats=2, remat=nn.Remat(positions=2))
    with pytest.raises(StackError, match="found 'dots_saveable'; write Remat"):
        nn.Stack(Scale(), depth=2, remat="dots_saveable")
    with pytest.raises(StackError, match="the groups overlap"):
        nn.Stack(Scale(), depth=6, run="scan of 2", remat=nn.Remat(every=3)).init(KEY, X)


def test_options_are_values():
    assert nn.Remat("dots_saveable", save=["a"]) == nn.Remat("dots_saveable", save="a")
    assert len({nn.Remat(every=2), nn.Remat(every=2), nn.Remat(every=3)}) == 2
    assert repr(nn.Remat(every="sqrt", save="a")) == "Remat(every='sqrt', save=('a',))"
    with pytest.raises(AttributeError, match="cannot assign"):
        nn.Remat().every = 3
