"""The rows of a module beside flax.linen's: paths, inputs, outputs, variables, counts and costs."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, NamedTuple

import flax.linen.summary as flax_summary
import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, linen, ours

import liftax
from liftax import errors
from liftax.module.summary import summary

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = jnp.ones((4, 3))
PLAIN: dict[str, Any] = {"console_kwargs": {"width": 200, "force_terminal": False}}
COSTS = {"compute_flops": True, "compute_vjp_flops": True}


class Models(NamedTuple):
    net: Any
    methods: Any
    shared: Any
    sub: Any
    sow: Any
    integers: Any
    embed: Any
    random: Any
    leaves: Any
    lifted: Any
    sequential: Any
    nested_dicts: Any


@functools.cache
def models(lib: Library) -> Models:
    nn = lib.nn

    class Block(nn.Module):
        features: int

        @nn.compact
        def __call__(self, x, train=False, *, scale=1.0, extra=None):
            x = nn.Dense(self.features)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            self.sow("intermediates", "h", x)
            return x * scale

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = Block(3)
            x = block(x, True)
            x = block(x, scale=2.0, extra={"a": x, "b": None})
            x = Block(3, name="other")(x)
            return {"y": nn.Dropout(0.5, deterministic=True)(x), "z": (x, None, 1)}

    class Methods(nn.Module):
        def setup(self):
            self.d, self.e = nn.Dense(2), nn.Dense(2)

        def __call__(self, x, train):
            return self.decode(self.encode(x)) if train else x

        def encode(self, x):
            return self.d(x)

        @nn.compact
        def decode(self, x):
            return self.e(nn.Dense(3)(x)) + self._private(x)

        @nn.nowrap
        def not_wrapped(self, x):
            return x

        def _private(self, x):
            return self.not_wrapped(x)

    class Sub(nn.Module):
        inner: nn.Module

        def __call__(self, x):
            return self.inner(x)

    class Shared(nn.Module):
        inner: nn.Module

        @nn.compact
        def __call__(self, x):
            return self.inner(x) + Sub(self.inner)(x)

    class Sow(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("intermediates", "a", x @ x.T)
            self.sow("stats", "b", x @ x.T)
            total = self.variable("stats", "c", lambda: jnp.zeros(()))
            total.value += x.sum()
            return x

    class Integers(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.argmax(nn.Dense(3)(x), -1)

    class Random(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(0.5, deterministic=False)(x)
            return nn.BatchNorm(use_running_average=False)(x)

    class Leaves(nn.Module):
        @nn.compact
        def __call__(self, x):
            ones = jax.nn.initializers.ones
            self.param("p", nn.with_partitioning(ones, ("a", None)), (2, 2))
            self.param("q", lambda k: {"w": jnp.ones(2), "v": [jnp.ones(3, jnp.int8)]})
            self.variable("cache", "c", lambda: jnp.zeros((), jnp.int32))
            self.variable("cache", "n", lambda: None)
            kernel = nn.with_logical_partitioning(ones, ("i", "o"))
            return nn.Dense(2, kernel_init=kernel)(x)

    class Cell(nn.Module):
        @nn.compact
        def __call__(self, c, _):
            return nn.Dense(2)(c), None

    class Lifted(nn.Module):
        @nn.compact
        def __call__(self, x):
            stacked = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x = nn.vmap(nn.Dense, in_axes=0, **stacked)(2)(x)
            x, _ = nn.scan(Cell, length=3, **stacked)()(x, None)
            x = nn.remat(nn.Dense)(3)(x)
            return nn.jit(nn.Dense)(3)(x)

    class Sequential(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Sequential([nn.Dense(2), nn.relu, nn.Dense(1)])(x)

    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("tree", lambda k: {"Dense_0": jnp.ones(2)})
            return nn.Dense(2)(x)

    class NestedDicts(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Inner()(x), self.variables["params"]

    return Models(
        Net(),
        Methods(),
        Shared(nn.Dense(3)),
        Sub(nn.Dense(2)),
        Sow(),
        Integers(),
        nn.Embed(5, 4),
        Random(),
        Leaves(),
        Lifted(),
        Sequential(),
        NestedDicts(),
    )


def plain(tree: Any) -> Any:
    """Shapes and dtypes for arrays, text for other leaves, no empty dicts."""
    if hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return tuple(tree.shape), str(tree.dtype)
    if hasattr(tree, "obj"):  # what flax wraps anything else in
        return repr(tree.obj)
    if hasattr(tree, "names"):
        return plain(tree.value)
    if isinstance(tree, dict):
        return {k: plain(v) for k, v in tree.items() if v != {}}
    if isinstance(tree, (list, tuple)):
        return tuple(plain(v) for v in tree)
    return repr(tree)


def rows_of(table: Any) -> list[dict[str, Any]]:
    return [
        {
            "path": row.path,
            "class": type(row.module_copy).__name__,
            "method": row.method,
            "inputs": plain(row.inputs),
            "outputs": plain(row.outputs),
            "variables": plain(row.module_variables),
            "counted": plain(row.counted_variables),
            "flops": -1 if row.flops is None else row.flops,
            "vjp_flops": -1 if row.vjp_flops is None else row.vjp_flops,
        }
        for row in table
    ]


def summary_of(which: str, *args: Any, rngs: Any = KEY, **options: Any) -> Any:
    return summary(getattr(models(ours()), which), rngs, **options)(*args)


def flax_rows(which: str, *args: Any, rngs: Any = KEY, **options: Any) -> list[dict[str, Any]]:
    read = flax_summary._get_module_table(
        getattr(models(linen()), which),
        options.get("depth"),
        options.get("show_repeated", False),
        options.get("compute_flops", False),
        options.get("compute_vjp_flops", False),
    )
    mutable = options.get("mutable", flax_summary.DenyList("intermediates"))
    return rows_of(read(rngs, *args, mutable=mutable))


BOTH_KEYS = {"params": KEY, "dropout": KEY}
ROWS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("net", (X,), {}),
    ("net", (X,), {"show_repeated": True}),
    ("net", (X,), {"depth": 0}),
    ("net", (X,), {"depth": 1}),
    ("net", (X,), {"mutable": True}),
    ("net", (X,), COSTS),
    ("methods", (X, True), {"show_repeated": True, **COSTS}),
    ("methods", (X, True), {}),
    ("shared", (X,), COSTS),
    ("shared", (X,), {"show_repeated": True}),
    ("sub", (X,), COSTS),
    ("sow", (X,), COSTS),
    ("sow", (X,), {"mutable": True}),
    ("integers", (X,), COSTS),
    ("embed", (jnp.ones(2, int),), COSTS),
    ("random", (X,), {"rngs": BOTH_KEYS, **COSTS}),
    ("leaves", (X,), COSTS),
    ("lifted", (X,), COSTS),
    ("sequential", (X,), COSTS),
    ("nested_dicts", (X,), {}),
    ("nested_dicts", (X,), {"depth": 1}),
]


@pytest.mark.parametrize(("which", "args", "options"), ROWS)
def test_rows_beside_flax(which: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    found = rows_of(summary_of(which, *args, **options))
    expected = flax_rows(which, *args, **options)
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for ours_, theirs in zip(found, expected, strict=True):
        if which == "lifted" and ours_["path"] == ():  # has a loop in it, which Linen counts once
            for cost in ("flops", "vjp_flops"):
                assert ours_.pop(cost) > theirs.pop(cost)
        assert ours_ == theirs


@pytest.mark.parametrize("which", ["net", "lifted", "shared", "leaves", "nested_dicts"])
@pytest.mark.parametrize("depth", [0, 1, 2, None])
@pytest.mark.parametrize("show_repeated", [False, True])
def test_the_rows_add_up_to_the_total(which: str, depth: int, show_repeated: bool) -> None:
    table = summary_of(which, X, depth=depth, show_repeated=show_repeated, mutable=True)
    assert table.collections
    for collection in table.collections:
        counts = [row.count(collection) for row in table]
        assert table.total(collection) == tuple(map(sum, zip(*counts, strict=True)))
    everything = [table.total(c) for c in table.collections]
    assert table.total() == tuple(map(sum, zip(*everything, strict=True)))


def test_a_scanned_body_has_one_row_per_call() -> None:
    table = summary_of("lifted", X, show_repeated=True)
    cells = [row for row in table if row.path[:1] == ("ScanCell_0",)]
    # flax.linen, which traces the body twice, lists it twice.
    assert [(row.path[1:], row.class_name) for row in cells] == [
        ((), "Cell"),
        (("Dense_0",), "Dense"),
    ]


def test_a_jitted_module_is_seen_after_it_was_compiled() -> None:
    model = models(ours()).lifted
    jax.eval_shape(model.init, KEY, X)
    paths = [row.path for row in summary(model, KEY)(X)]
    assert ("JitDense_0",) in paths
    assert paths == [row.path for row in summary(model, KEY)(X)]


def test_nothing_is_computed() -> None:
    huge = liftax.Dense(3_000_000)
    row = summary(huge, KEY, **COSTS)(jax.ShapeDtypeStruct((7, 3_000_000), jnp.bfloat16))[0]
    assert row.count("params") == (9_000_003_000_000, 36_000_012_000_000)
    assert row.flops > 10**14
    assert "36.0 TB" in liftax.tabulate(huge, KEY, **PLAIN)(
        jax.ShapeDtypeStruct((7, 3_000_000), jnp.bfloat16)
    )


def test_costs_that_cannot_be_known_alone() -> None:
    nn = liftax

    class Batches(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.vmap(
                nn.BatchNorm,
                axis_name="b",
                variable_axes={"params": None, "batch_stats": None},
                split_rngs={"params": False},
            )
            return norm(use_running_average=False, axis_name="b")(x)

    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(3)(x)
            return jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: x * 2, x)

    whole, norm = summary(Batches(), KEY, **COSTS)(X)
    assert whole.flops > 0
    assert (norm.flops, norm.vjp_flops) == (None, None)
    assert "?" in nn.tabulate(Batches(), KEY, compute_flops=True, **PLAIN)(X)
    loop, dense = summary(Loop(), KEY, **COSTS)(X)
    assert loop.flops > 0
    assert loop.vjp_flops is None
    assert dense.vjp_flops > dense.flops


@pytest.mark.parametrize("which", ["net", "methods", "sequential"])
@pytest.mark.parametrize("options", [{}, {"show_repeated": True}, {"depth": 1}])
def test_the_table_beside_flax(which: str, options: dict[str, Any]) -> None:
    args = (X, True) if which == "methods" else (X,)

    def table(lib: Library) -> str:
        model = getattr(models(lib), which)
        return lib.nn.tabulate(model, KEY, mutable=["params"], **options, **PLAIN)(*args)

    if which == "net":  # it needs batch_stats, and flax puts the collections in any order
        with pytest.raises(errors.LiftaxError, match="batch_stats"):
            table(ours())
    else:
        assert table(ours()) == table(linen())


def test_the_looks_of_the_table() -> None:
    model = models(ours()).leaves
    text = liftax.tabulate(model, KEY, **PLAIN)(X)
    assert "p: float32[2,2] P(a, None)" in text
    assert "kernel: float32[3,2] P(i, o)" in text
    assert "n: None" in text
    assert "Total Parameters: 18 (63 B)" in text
    assert model.tabulate(KEY, X, **PLAIN) == text
    looks = {
        "table_kwargs": {"title": "T", "show_lines": False},
        "column_kwargs": {"min_width": 30},
    }
    wide = model.tabulate(KEY, X, **looks, **PLAIN)
    assert wide.strip().splitlines()[0].strip() == "T"
    assert len(wide.splitlines()) < len(text.splitlines())
    assert "━" * 30 in wide
    assert "━" * 33 not in text
    assert "\x1b[" in model.tabulate(KEY, X)


def test_how_values_are_written() -> None:
    class Pair(NamedTuple):
        first: Any
        second: Any

    class Odd(liftax.Module):
        def __call__(self, *args, **kwargs):
            return {}, (), Pair([X, [X]], {"k": KEY})

    text = Odd().tabulate(KEY, X, jnp.sin, "text", 2.5, jnp.float32, liftax.Dense(2), **PLAIN)
    column = [line.split("│")[3:5] for line in text.splitlines() if line.startswith("│")]
    assert [left.strip() for left, _ in column if left.strip()] == [
        "- float32[4,3]",
        "- sin",
        "- text",
        "- 2.5",
        "- float32",
        "- Dense",
    ]
    assert [right.rstrip()[1:] for _, right in column if right.strip()][:-1] == [
        "- {}",
        "- ()",
        "- first:",
        "  - float32[4,3]",
        "  - - float32[4,3]",
        "  second:",
        "    k: key<fry>[]",
    ]


def test_methods_keywords_and_shapes() -> None:
    model = models(ours()).methods
    (encode, dense) = summary(model, KEY, method="encode")(X)
    assert (encode.method, encode.path, dense.path) == ("encode", (), ("d",))
    keywords = summary(model, KEY)(x=jax.ShapeDtypeStruct((4, 3), jnp.float32), train=True)
    assert plain(keywords[0].inputs) == {"x": ((4, 3), "float32"), "train": "True"}
    assert "Methods (encode)" in model.tabulate(KEY, X, method="encode", **PLAIN)


def test_module_paths() -> None:
    found = models(ours()).net.module_paths(KEY, X)
    expected = models(linen()).net.module_paths(KEY, X)
    assert list(found) == list(expected)
    for path, module in found.items():
        assert type(module).__name__ == type(expected[path]).__name__
        assert module.scope is None
        assert module.name is None
    assert found["Block_0/BatchNorm_0"].use_running_average is False
    again = models(ours()).net.module_paths(KEY, X, show_repeated=True)
    assert again["Block_0/BatchNorm_0"].use_running_average is True
    assert again["Block_0/Dense_0"].init_with_output(KEY, X)[0].shape == (4, 3)
    by_method = models(ours()).methods.module_paths(KEY, X, method="encode")
    assert list(by_method) == ["", "d"]
    lifted = models(ours()).lifted.module_paths(KEY, X)
    assert {path: type(module).__name__ for path, module in lifted.items()} == {
        "": "Lifted",
        "VmapDense_0": "Dense",
        "ScanCell_0": "Cell",
        "ScanCell_0/Dense_0": "Dense",
        "CheckpointDense_0": "Dense",
        "JitDense_0": "Dense",
    }


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="summary of Dense: depth=-1"):
        summary(liftax.Dense(2), KEY, depth=-1)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "rich" else find(name, *a)
    )
    with pytest.raises(errors.MissingExtraError, match=r"pip install .*\[cli\]"):
        liftax.Dense(2).tabulate(KEY, X)
    assert issubclass(errors.MissingExtraError, ImportError)
    assert len(summary(liftax.Dense(2), KEY)(X)) == 1


def test_a_loop_counts_as_often_as_it_runs() -> None:
    nn = liftax

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(x.shape[-1])(x)), None

    class Net(nn.Module):
        unroll: int = 1

        @nn.compact
        def __call__(self, x):
            lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 7}
            return nn.scan(Block, **lift, unroll=self.unroll)(name="blocks")(x, None)[0]

    def flops(model):
        return [(row.flops, row.vjp_flops) for row in summary(model, KEY, **COSTS)(X)]

    (loop, *inside), (unrolled, *same) = flops(Net()), flops(Net(7))
    assert inside == same  # one iteration is one iteration
    assert loop == pytest.approx(unrolled, rel=0.1)
    assert loop[0] >= 7 * inside[0][0]
