"""Modules of liftax in what takes Linen's, against the same model in Linen alone."""

from __future__ import annotations

from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state
from helpers.compare import ON_FLAX, Library, assert_same, linen, ours

import liftax as nn
from liftax import errors

pytestmark = pytest.mark.skipif(ON_FLAX, reason="liftax.to_linen is what is tested")
KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
X = jnp.asarray(np.sin(np.arange(12.0)).reshape(4, 3), jnp.float32)
SPLIT = {"params": True, "dropout": True}
STATE = {"batch_stats": 0, "intermediates": 0}


def layer_of(lib: Library) -> Any:
    """A module with a bit of everything, in either library."""

    class Layer(lib.nn.Module):
        rate: float = 0.5
        sizes: tuple[int, ...] = (3,)

        @lib.nn.compact
        def __call__(self, x, _=None):
            init = lib.nn.with_partitioning(lib.nn.initializers.lecun_normal(), ("in", "out"))
            for size in self.sizes:
                x = lib.nn.Dense(size, kernel_init=init)(x)
            x = lib.nn.BatchNorm(use_running_average=False)(x)
            self.sow("intermediates", "mean", x.mean())
            return lib.nn.Dropout(self.rate, deterministic=False)(x), None

        def half(self, x):
            return self(x)[0] / 2

    return Layer


def lifted(lib: Library) -> Any:
    """The same under a lift of its own library."""
    return lib.nn.scan(
        layer_of(lib),
        variable_axes={"params": 0, **STATE},
        split_rngs=SPLIT,
        length=2,
        metadata_params={lib.nn.PARTITION_NAME: "inner"},
    )


LIFTS: dict[str, Any] = {
    "remat": flax.linen.remat,
    "jit": flax.linen.jit,
    "scan": lambda cls: flax.linen.scan(
        cls,
        variable_axes={"params": 0, **STATE},
        split_rngs=SPLIT,
        length=2,
        metadata_params={flax.linen.PARTITION_NAME: "layers"},
    ),
}


def in_both(run: Any) -> None:
    """Runs a Linen model with Linen's own modules, and with ours made Linen's."""
    assert_same(run(ours(), nn.to_linen), run(linen(), lambda module: module))


@pytest.mark.parametrize(
    ("made", "lift"), [*((layer_of, lift) for lift in LIFTS), (lifted, "scan")]
)
def test_the_same_as_in_linen_alone(made: Any, lift: str) -> None:
    def run(lib: Library, as_linen: Any) -> Any:
        layer = made(lib)

        class Model(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x):
                x, _ = LIFTS[lift](as_linen(layer))(rate=0.25)(x, None)
                last = as_linen(layer(0.5, name="last"))
                return last(last(x, None)[0], None)[0] + self.make_rng("dropout").size

        variables = Model().init(KEYS, X)
        mutable = ["batch_stats", "intermediates"]
        y, state = Model().apply(variables, X, rngs=KEYS, mutable=mutable)

        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            return Model().apply(given, X, rngs=KEYS, mutable=mutable)[0].sum()

        return variables, y, state, jax.grad(loss)(variables["params"])

    in_both(run)


def test_methods_fields_and_a_class_with_an_init_of_its_own() -> None:
    def run(lib: Library, as_linen: Any) -> Any:
        class Wide(lib.nn.Module):
            size: int

            def __init__(self, size, parent=None, name=None):
                self.size = int(size)
                self.parent, self.name = parent, name
                self.__post_init__()

            def __call__(self, x):
                return x * self.size

        class Model(flax.linen.Module):
            def setup(self):
                self.layer = as_linen(layer_of(lib)(0.25))
                self.wide = as_linen(Wide)("3")

            def __call__(self, x):
                assert self.layer.rate == 0.25 and self.layer.clone(rate=0.5).rate == 0.5
                return self.wide(self.layer.half(x))

        variables = Model().init(KEYS, X)
        return variables, Model().apply(variables, X, rngs=KEYS, mutable="batch_stats")

    in_both(run)


def test_there_and_back() -> None:
    module = flax.linen.Dense(3)
    assert nn.to_linen(nn.from_linen(module)) is module
    assert nn.to_linen(nn.from_linen(flax.linen.Dense)) is flax.linen.Dense
    assert nn.to_linen(module) is module and nn.to_linen(nn.Dense) is nn.to_linen(nn.Dense)
    assert nn.to_linen(nn.Dense(3)).kernel_init is nn.Dense.kernel_init
    assert nn.to_linen(nn.Dense(3, name="x")) == nn.to_linen(nn.Dense(3, name="x"))
    with pytest.raises(errors.TransformTargetError, match="expected a module of liftax"):
        nn.to_linen(len)
    with pytest.raises(errors.TransformTargetError, match="Dense is bound already"):
        nn.to_linen(nn.Dense(2).bind({}))


def test_boxes_of_somebody_s_own() -> None:
    """Of either library, under lifts of the other."""

    @flax.struct.dataclass
    class Told(flax.core.meta.AxisMetadata):
        value: Any
        axes: str = flax.struct.field(pytree_node=False)

        def unbox(self):
            return self.value

        def replace_boxed(self, val):
            return self.replace(value=val)

        def add_axis(self, index, params):
            return self.replace(axes=f"{params['partition_name']} {self.axes}")

        def remove_axis(self, index, params):
            return self.replace(axes=self.axes.partition(" ")[2])

    options: Any = {
        "variable_axes": {"params": 0},
        "split_rngs": {"params": True},
        "length": 2,
        "metadata_params": {nn.PARTITION_NAME: "layers"},
    }

    def init(*args: Any) -> Any:
        return Told(nn.initializers.ones(*args), "in out")

    for there, lib, other in (
        (nn.from_linen, nn, flax.linen),
        (nn.to_linen, flax.linen, nn),
    ):

        class Layer(other.Module):  # type: ignore[name-defined, misc]
            @other.compact
            def __call__(self, x, _, other=other):
                return other.Dense(3, kernel_init=init)(x), None

        model = lib.scan(there(Layer), **options)()
        variables = model.init(KEYS, X, None)
        kernel = variables["params"]["Dense_0"]["kernel"]
        assert kernel.axes == "layers in out" and kernel.value.shape == (2, 3, 3)
        assert model.apply(variables, X, None)[0].shape == X.shape


class Plain(nn.Module):
    """What the libraries around get."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(3)(x)
        self.variable("state", "calls", lambda: jnp.zeros(())).value += 1
        return nn.Dropout(0.5, deterministic=False)(x)


def test_nnx() -> None:
    """`flax.nnx.bridge.ToNNX` takes a module of liftax as it is."""
    model = nnx.bridge.ToNNX(Plain(), rngs=nnx.Rngs(0, dropout=1)).lazy_init(X)
    theirs = nnx.bridge.ToNNX(nn.to_linen(Plain()), rngs=nnx.Rngs(0, dropout=1)).lazy_init(X)
    assert_same(nnx.to_pure_dict(nnx.state(model)), nnx.to_pure_dict(nnx.state(theirs)))
    assert_same(model(X, mutable=["state"]), theirs(X, mutable=["state"]))

    @nnx.jit
    def step(model: Any, x: Any) -> Any:
        return nnx.grad(lambda m: m(x, mutable=["state"]).sum())(model)

    assert step(model, X)["Dense_0"]["kernel"].get_value().shape == (3, 3)
    # With axis names: the variables of nnx have them, and the box comes back.
    boxed = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones, ("in", "out")))
    mesh = jax.make_mesh((1, 1), ("in", "out"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        named = nnx.bridge.ToNNX(boxed, rngs=nnx.Rngs(0)).lazy_init(X)
        assert named.kernel.out_sharding == ("in", "out")
        assert_same(named(X), boxed.apply(boxed.init(KEYS, X), X))


def test_training_as_with_linen(tmp_path: Any) -> None:
    """TrainState, optax, flax's serialization, Orbax: the same bits as of Linen's module."""
    ocp = pytest.importorskip("orbax.checkpoint")

    def run(module: Any) -> Any:
        variables = module.init(KEYS, X)
        state: Any = train_state.TrainState.create(
            apply_fn=module.apply, params=variables["params"], tx=optax.adam(0.1)
        )

        @jax.jit
        def step(state: Any) -> Any:
            grads = jax.grad(lambda params: state.apply_fn({"params": params}, X, rngs=KEYS).sum())(
                state.params
            )
            return state.apply_gradients(grads=grads)

        state = step(step(state))
        again = serialization.from_bytes(state, serialization.to_bytes(state))
        assert_same(again.params, state.params)
        with ocp.StandardCheckpointer() as files:
            files.save(tmp_path / type(module).__module__, state.params)
            files.wait_until_finished()
            assert_same(
                files.restore(tmp_path / type(module).__module__, state.params), state.params
            )
        return state.params, state.opt_state[0].mu

    model = nn.Sequential([nn.Dense(4), nn.Dropout(0.5, deterministic=False), nn.Dense(2)])
    theirs = flax.linen.Sequential(
        [flax.linen.Dense(4), flax.linen.Dropout(0.5, deterministic=False), flax.linen.Dense(2)]
    )
    assert_same(run(model), run(theirs))
