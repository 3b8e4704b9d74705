"""Boxed variables in modules: what lifts do to axis names, and shardings on eight devices."""

from __future__ import annotations

from typing import Any

import flax.linen as linen_nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import Library, both, ours
from helpers.models import cheap
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import liftax
from liftax import errors
from liftax.core import boxes

KEY = jax.random.key(0)
X = jnp.asarray(np.sin(np.arange(16.0)).reshape(4, 4), jnp.float32)
LAYERS = {"partition_name": "layers"}
HEADS = {"partition_name": "heads"}
SPLIT = {"params": True}
RULES = (("embed", "data"), ("mlp", "model"), ("layers", None))


def mesh_of(kind: str) -> Any:
    kinds = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kinds[kind],) * 2)


def dense(lib: Library, wrapper: str = "with_partitioning", state: bool = True) -> Any:
    """A dense layer, in the manner of a scan's body, whose kernel and bias are boxed."""
    nn, wrap = lib.nn, getattr(lib.nn, wrapper)

    class Layer(nn.Module):
        features: int = 4

        @nn.compact
        def __call__(self, c, _=None):
            kernel = self.param("kernel", wrap(cheap, ("embed", "mlp")), (4, self.features))
            bias = self.param("bias", wrap(cheap, ("mlp",)), (self.features,))
            plain = self.param("plain", cheap, (self.features,))
            if state:
                zeros = nn.meta.Partitioned(jnp.zeros(4), ("x",))
                self.variable("state", "count", lambda: zeros).value += 1.0
            return jnp.tanh(c @ kernel + bias + plain), None

    return Layer


STACK = {
    "scan": lambda lib, body, axis, meta: lib.nn.scan(
        body,
        variable_axes={"params": axis, "state": 0},
        split_rngs=SPLIT,
        length=3,
        metadata_params=meta,
    ),
    "vmap": lambda lib, body, axis, meta: lib.nn.vmap(
        body,
        variable_axes={"params": axis, "state": 0},
        split_rngs=SPLIT,
        in_axes=None,
        axis_size=3,
        metadata_params=meta,
    ),
}


def shapes_of(model: Any) -> Any:
    """What `init_and_apply` returns, in shapes: the names are what is tested here."""
    return jax.eval_shape(lambda: init_and_apply(model))


def init_and_apply(model: Any) -> Any:
    variables = model.init(KEY, X)
    out, updates = model.apply(variables, X, mutable=["state"])
    return {"variables": variables, "out": out, "updates": updates}


@pytest.mark.parametrize("wrapper", ["with_partitioning", "with_logical_partitioning"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("lift", STACK)
def test_a_lift_names_its_axis(lift: str, axis: int, wrapper: str) -> None:
    found = both(lambda lib: shapes_of(STACK[lift](lib, dense(lib, wrapper), axis, LAYERS)()))
    box = found["variables"]["params"]["kernel"]
    assert box.names[axis] == "layers"
    assert box.value.shape[axis] == 3
    assert found["updates"]["state"]["count"].names == ("layers", "x")


# Not a vmap in a scan: this body's carry would grow.
@pytest.mark.parametrize(("outer", "inner"), [("scan", "scan"), ("vmap", "scan"), ("vmap", "vmap")])
def test_nested_lifts_name_their_axes(outer: str, inner: str) -> None:
    def run(lib: Library) -> Any:
        body = STACK[inner](lib, dense(lib), 1, LAYERS)
        return shapes_of(STACK[outer](lib, body, 0, HEADS)())

    box = both(run)["variables"]["params"]["kernel"]
    assert box.names == ("heads", "embed", "layers", "mlp")


def test_other_lifts_leave_the_names_alone() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn
        lifted = [nn.remat(dense(lib)), nn.jit(dense(lib)), nn.checkpoint(nn.jit(dense(lib)))]
        return [shapes_of(lift()) for lift in lifted]

    for result in both(run):
        assert result["variables"]["params"]["kernel"].names == ("embed", "mlp")


def test_a_name_alone() -> None:
    def run(lib: Library) -> Any:
        # Outside there is a name more than the array has axes, as for an axis added by hand.
        layer = dense(lib, state=False)
        named = lib.nn.add_metadata_axis(layer, variable_axes={"params": 0}, metadata_params=LAYERS)
        return shapes_of(named())

    assert both(run)["variables"]["params"]["kernel"].names == ("layers", "embed", "mlp")


def test_shared_variables_gain_no_name() -> None:
    def run(lib: Library, state: bool) -> Any:
        body = lib.nn.scan(
            dense(lib, state=state),
            variable_broadcast="params",
            variable_carry="state",
            split_rngs={"params": False},
            length=3,
            metadata_params=LAYERS,
        )
        return init_and_apply(body())

    found = both(lambda lib: run(lib, False))
    assert found["variables"]["params"]["kernel"].names == ("embed", "mlp")
    # flax.linen cannot initialise what is carried.
    carried = run(ours(), True)["variables"]["state"]["count"]
    assert carried.names == ("x",)
    np.testing.assert_array_equal(carried.value, np.full(4, 3.0))


@pytest.mark.parametrize("lift", STACK)
def test_the_body_sees_its_own_axes(lift: str) -> None:
    seen = []

    class Body(liftax.Module):
        @liftax.compact
        def __call__(self, c, _=None):
            boxed = liftax.with_partitioning(cheap, ("embed", "mlp"))
            value = self.param("kernel", boxed, (4, 4))
            for box in self.variables["params"]["kernel"], self.get_variable("params", "kernel"):
                seen.append((box.names, box.value.shape, value.shape))
            return c, None

    model = STACK[lift](ours(), Body, 1, LAYERS)()
    variables = model.init(KEY, X)
    model.apply(variables, X)
    assert set(seen) == {(("embed", "mlp"), (4, 4), (4, 4))}


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("lift", STACK)
def test_a_negative_axis_is_named_where_it_lies(lift: str, axis: int) -> None:
    # flax.linen names another axis, and then fails to apply its own variables.
    class Body(liftax.Module):
        @liftax.compact
        def __call__(self, c, _=None):
            boxed = liftax.with_partitioning(cheap, ("embed", "mlp"))
            return jnp.tanh(c @ self.param("kernel", boxed, (4, 4))), None

    model = STACK[lift](ours(), Body, axis, LAYERS)()
    result = init_and_apply(model)
    box = result["variables"]["params"]["kernel"]
    assert box.names[axis] == "layers"
    assert box.value.shape[axis] == 3
    assert [n for n in box.names if n != "layers"] == ["embed", "mlp"]


@pytest.mark.parametrize("lift", STACK)
def test_an_axis_without_a_name_is_an_error(lift: str) -> None:
    model = STACK[lift](ours(), dense(ours()), 0, {})()
    with pytest.raises(errors.PartitioningUnspecifiedError, match="partition_name"):
        model.init(KEY, X)
    named = STACK[lift](ours(), dense(ours()), 0, LAYERS)()
    variables = named.init(KEY, X)
    other = STACK[lift](ours(), dense(ours()), 0, HEADS)()
    with pytest.raises(errors.PartitioningMismatchError, match="should be called 'heads'"):
        other.apply(variables, X, mutable=["state"])


def test_specs_of_a_model_that_does_not_exist_yet() -> None:
    def run(lib: Library) -> Any:
        nn, model = lib.nn, STACK["scan"](lib, dense(lib), 0, LAYERS)()
        shapes = jax.eval_shape(model.init, KEY, X)
        specs = nn.get_partition_spec(shapes)
        return jax.tree.map(str, specs, is_leaf=lambda x: isinstance(x, P))

    specs = both(run)
    assert specs["params"]["kernel"] == str(P("layers", "embed", "mlp"))
    assert specs["params"]["plain"] == str(P())


def logical_model(lib: Library) -> Any:
    nn = lib.nn

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            wrap = nn.with_logical_partitioning
            up = self.param("up", wrap(cheap, ("embed", "mlp")), (4, 8))
            down = self.param("down", wrap(cheap, ("embed", "mlp")), (8, 4))
            h = nn.with_logical_constraint(jnp.tanh(x @ up), ("embed", None))
            return nn.with_logical_constraint(h @ down, ("embed", "mlp"))

    return Mlp()


def test_jitted_init_and_apply_on_a_mesh() -> None:
    def run(lib: Library) -> Any:
        nn, mesh, model = lib.nn, mesh_of("auto"), logical_model(lib)
        shapes = jax.eval_shape(model.init, KEY, X)
        with nn.logical_axis_rules(RULES), jax.set_mesh(mesh):
            shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(shapes), mesh)
            variables = jax.jit(model.init, out_shardings=shardings)(KEY, X)
            out = jax.jit(model.apply)(variables, X)
        placed = jax.tree.map(lambda x: str(x.sharding.spec), (nn.unbox(variables), out))
        return jax.device_get(nn.unbox(variables)), jax.device_get(out), placed

    variables, out, placed = both(run)
    assert placed[0]["params"]["up"] == str(P("data", "model"))
    assert placed[1] == str(P("data", "model"))
    alone = logical_model(ours()).init(KEY, X)
    np.testing.assert_array_equal(ours().nn.unbox(alone)["params"]["up"], variables["params"]["up"])
    # Devices add in an order of their own: of numbers near 1, the last bit is 1.2e-7.
    np.testing.assert_allclose(logical_model(ours()).apply(alone, X), out, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize("compiled", [True, False])
def test_train_on_a_mesh_of_either_kind(kind: str, compiled: bool) -> None:
    nn, mesh, model = liftax, mesh_of(kind), logical_model(ours())

    def loss(variables, x):
        return (model.apply(variables, x) ** 2).sum()

    variables = model.init(KEY, X)
    expected = jax.grad(loss)(variables, X)
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(variables), mesh, RULES)
    maybe_jit = jax.jit if compiled else lambda f: f
    with nn.logical_axis_rules(RULES), jax.set_mesh(mesh):
        placed = jax.tree.map(
            lambda box, s: box.replace_boxed(jax.device_put(box.value, s)),
            variables,
            shardings,
            is_leaf=boxes.is_axis_metadata,
        )
        x = jax.device_put(X, NamedSharding(mesh, P("data", None)))
        grads = maybe_jit(jax.grad(loss))(placed, x)
    found, expected = boxes.unbox(grads), boxes.unbox(expected)
    for name in ("up", "down"):
        array = found["params"][name]
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, P("data", "model")), 2)
        np.testing.assert_allclose(array, expected["params"][name], rtol=2e-5)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize("lift", STACK)
def test_lifted_modules_on_a_mesh_of_either_kind(lift: str, kind: str) -> None:
    class Body(liftax.Module):
        @liftax.compact
        def __call__(self, c, _=None):
            boxed = liftax.with_partitioning(cheap, (None, "model"))
            y = jnp.tanh(c @ self.param("kernel", boxed, (4, 4)))
            return boxes.constrain(y, P()), None

    model = STACK[lift](ours(), Body, 0, {"partition_name": None})()
    variables = model.init(KEY, X)
    expected, _ = model.apply(variables, X)
    with jax.set_mesh(mesh_of(kind)):
        found, _ = jax.jit(model.apply)(variables, X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_names_of_linen_are_there() -> None:
    names = [
        "Partitioned",
        "with_partitioning",
        "LogicallyPartitioned",
        "with_logical_partitioning",
        "with_logical_constraint",
        "logical_axis_rules",
        "get_logical_axis_rules",
        "set_logical_axis_rules",
        "logical_to_mesh",
        "logical_to_mesh_axes",
        "logical_to_mesh_sharding",
        "get_partition_spec",
        "get_sharding",
        "unbox",
        "PARTITION_NAME",
        "meta",
    ]
    known = [n for n in names if hasattr(linen_nn, n)]
    assert [n for n in known if not hasattr(liftax, n)] == []
