"""flax.linen.partitioning: names of axes beside the variables, against flax's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning as theirs
from helpers.compare import ON_FLAX, Library, both, ours

import liftax as nn
from liftax import errors, partitioning

pytestmark = pytest.mark.skipif(ON_FLAX, reason="liftax.partitioning is what is tested")
KEY = jax.random.key(0)
X = jnp.asarray(np.sin(np.arange(8.0)).reshape(2, 4), jnp.float32)
SPLIT = {"params": True}
NAMED = ("params", "cache")


def part_of(lib: Library) -> Any:
    return theirs if lib.name == "flax" else partitioning


def layer(lib: Library) -> Any:
    """A layer as t5x has them: a kernel and a cache with names, a bias without."""
    nn, part = lib.nn, part_of(lib)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            init = nn.initializers.lecun_normal()
            kernel = part.param_with_axes("kernel", init, (4, 4), axes=("embed", "mlp"))
            bias = part.param_with_axes("bias", nn.initializers.ones, (4,))
            cache = part.variable_with_axes("cache", "sum", jnp.zeros, (4,), axes=("mlp",))
            cache.value = cache.value + x.sum(0)
            assert cache.is_mutable() and cache.axes == ("mlp",)
            return (jnp.tanh(x @ kernel + bias) if train else x), None

    return Layer


def plain(tree: Any) -> Any:
    """Names of axes as text, which has the same type in both libraries."""
    return jax.tree.map(
        lambda leaf: str(leaf.names) if hasattr(leaf, "names") else leaf,
        tree,
        is_leaf=lambda leaf: hasattr(leaf, "names"),
    )


def scanned(part: Any, cls: Any, **options: Any) -> Any:
    given: dict[str, Any] = {
        "variable_axes": {"params": 1, "cache": 0},
        "split_rngs": SPLIT,
        "length": 2,
        "axes_collections": NAMED,
        **options,
    }
    return part.scan_with_axes(cls, **given)


LIFTS: dict[str, Callable[[Any, Any], Any]] = {
    "plain": lambda part, cls: cls,
    "remat": lambda part, cls: part.remat(cls, static_argnums=(1,), prevent_cse=False),
    "scan": lambda part, cls: scanned(part, part.remat(cls, static_argnums=(1,))),
    "scan, named": lambda part, cls: scanned(
        part, cls, variable_axes={"params": 0, "cache": 1}, axis_name="depth"
    ),
    "vmap": lambda part, cls: part.vmap_with_axes(
        cls,
        {"params": 0, "cache": 1},
        SPLIT,
        partitioning_axis_names={"params": "heads", "cache": "heads"},
    ),
}


@pytest.mark.parametrize("lift", LIFTS)
def test_variables_names_and_numbers(lift: str) -> None:
    args = () if lift.startswith("scan") or lift == "vmap" else (True,)

    def run(lib: Library) -> Any:
        nn, part = lib.nn, part_of(lib)
        lifted = LIFTS[lift](part, layer(lib))

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                x, _ = lifted(name="layers")(x, *args)
                return lifted()(x, *args)[0]  # its automatic name is Linen's too

        # Inside a module, as t5x has it: there the lift looks at what is mutable now.
        variables = Model().init(KEY, X)
        y, cache = Model().apply(variables, X, mutable=["cache"])
        without = {col: variables[col] for col in NAMED}
        y2, made = Model().apply(without, X, mutable=["cache", "params_axes", "cache_axes"])
        return plain((variables, y, cache, y2, made))

    variables, *_ = both(run)
    assert any("Layer_0" in name for name in variables["params_axes"])


def test_names_of_all_variables() -> None:
    variables = our_layer().init(KEY, X)
    names = partitioning.get_axis_names(variables["params_axes"])
    assert names == {"kernel": jax.P("embed", "mlp")}
    assert names == dict(theirs.get_axis_names(variables["params_axes"]))
    nested = {"a": {"k_axes": partitioning.AxisMetadata(None)}, "b": partitioning.AxisMetadata("x")}
    assert partitioning.get_axis_names(nested) == {"a": {"k": None}, "b": jax.P("x")}


def our_layer() -> Any:
    return layer(ours())()


def test_rules_of_the_context_lay_out() -> None:
    mesh = jax.make_mesh((2,), ("x",))
    with jax.set_mesh(mesh), partitioning.axis_rules((("mlp", "x"),)):
        assert partitioning.get_axis_rules() == nn.get_logical_axis_rules() == (("mlp", "x"),)
        _, variables = jax.jit(our_layer().init_with_output)(KEY, X)
        constrained = jax.jit(
            lambda: partitioning.with_sharding_constraint(jnp.ones((4, 4)), jax.P("embed", "mlp"))
        )()
    assert variables["cache"]["sum"].sharding.spec == jax.P("x")
    assert constrained.sharding.spec == jax.P(None, "x")


def test_an_axis_counted_from_the_end_is_where_it_is() -> None:
    """Linen names another axis than the new one, and its `apply` refuses its own variables."""
    model = scanned(partitioning, our_layer().__class__, variable_axes={"params": -1, "cache": 0})
    variables = model().init(KEY, X)
    assert variables["params_axes"]["kernel_axes"].names == ("embed", "mlp", "layers")
    assert variables["params"]["kernel"].shape == (4, 4, 2)
    model().apply(variables, X, mutable=["cache"])
    wrong = scanned(partitioning, our_layer().__class__, axis_name="depth")
    with pytest.raises(errors.PartitioningMismatchError, match="should be called 'depth'"):
        wrong().apply(variables, X, mutable=["cache"])


def test_misuse() -> None:
    zeros = nn.initializers.zeros
    with pytest.raises(errors.UnboundModuleError, match="no module's method runs here"):
        partitioning.param_with_axes("k", zeros, (3,), axes=("a",))

    class Named(nn.Module):
        axes: tuple[str, ...]

        def setup(self) -> None:
            self.k = partitioning.param_with_axes("k", zeros, (3,), axes=self.axes, module=self)

        def __call__(self) -> Any:
            return self.k

    variables = Named(("a",)).init(KEY)
    with pytest.raises(errors.PartitioningMismatchError, match=r"called \('a',\) already"):
        Named(("b",)).apply(variables, mutable=["params_axes"])

    # Linen loses these names without a word.
    lifted = nn.vmap(our_layer().__class__, variable_axes={"params": 0}, split_rngs=SPLIT)
    with pytest.raises(errors.UnnamedCollectionError, match="params_axes|cache"):
        lifted().init(KEY, X)
