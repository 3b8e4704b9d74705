"""A program as it is written for Linen; run with flax and with liftax, it prints the same lines.

Each part is one way of using Linen that public code has. What is printed are bits, not numbers.
"""

import functools
import hashlib
import sys

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, serialization, struct, traverse_util
from flax.core import FrozenDict, freeze, lift, meta, unfreeze
from flax.core.scope import CollectionFilter, VariableDict  # noqa: F401
from flax.errors import ScopeCollectionNotFound
from flax.linen import initializers, partitioning, transforms
from flax.linen.dtypes import promote_dtype
from flax.linen.linear import default_kernel_init
from flax.linen.module import compact
from flax.training import train_state
from flax.typing import In

KEY = jax.random.key(0)
X = jnp.asarray(np.sin(np.arange(8.0)).reshape(2, 4), jnp.float32)


def show(what, tree):
    """Prints paths, shapes and a hash of all bits; boxes and names of axes as their text."""
    tree = unfreeze(tree) if isinstance(tree, (FrozenDict, dict)) else tree
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{jax.tree_util.keystr(path)} {np.shape(leaf)}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    print(what, digest.hexdigest()[:16])


class Block(nn.Module):
    features: int = 4

    @compact
    def __call__(self, x, _=None):
        x, *_ = promote_dtype(x, dtype=jnp.float32)
        x = linen.Dense(self.features, kernel_init=default_kernel_init)(x)
        self.sow("intermediates", "mean", x.mean())
        return nn.Dropout(0.5, deterministic=False)(nn.relu(x)), None


class Model(nn.Module):
    depth: int = 3

    def setup(self):
        scanned = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        self.layers = scanned()
        self.norm = nn.BatchNorm(use_running_average=False)
        self.head = nn.Dense(
            3, kernel_init=nn.with_partitioning(initializers.orthogonal(), ("embed", None))
        )

    def __call__(self, x):
        x, _ = self.layers(x, None)
        return self.head(self.norm(x))


@struct.dataclass
class Batch:
    x: jax.Array
    name: str = struct.field(pytree_node=False)


def a_model():
    rngs = {"params": KEY, "dropout": jax.random.key(1)}
    variables = Model().init(rngs, X)
    assert isinstance(variables["params"]["head"]["kernel"], meta.AxisMetadata)
    show("variables", meta.unbox(variables))
    frozen = freeze(variables)  # a FrozenDict goes in, too
    y, state = Model().apply(frozen, X, rngs=rngs, mutable=["batch_stats", "intermediates"])
    show("output", y)
    show("state", state)
    flat = traverse_util.flatten_dict(unfreeze(frozen)["params"], sep="/")
    print(sorted(flat), nn.get_partition_spec(variables)["params"]["head"]["kernel"])
    return variables, rngs


def training(variables, rngs):
    class State(train_state.TrainState):
        batch_stats: dict

    state = State.create(
        apply_fn=Model().apply,
        params=variables["params"],
        tx=optax.adam(1e-2),
        batch_stats=variables["batch_stats"],
    )

    @jax.jit
    def step(state, batch):
        def loss(params):
            both = {"params": params, "batch_stats": state.batch_stats}
            y, new = state.apply_fn(both, batch.x, rngs=rngs, mutable=["batch_stats"])
            return (y**2).mean(), new

        (_, new), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, **new)

    for _ in range(2):
        state = step(state, Batch(X, "batch"))
    show("trained", meta.unbox(state.params))
    data = serialization.to_bytes(state.params)
    print("bytes", hashlib.sha256(data).hexdigest()[:16])
    again = serialization.from_bytes(state.params, data)
    assert jax.tree.structure(again) == jax.tree.structure(state.params)


def lifts_with_marks_of_flax():
    """`In` from flax.typing and from flax.core.lift are one class."""
    assert In is lift.In
    Layer = nn.scan(
        Block,
        variable_axes={"params": In(0)},
        variable_broadcast="none",
        split_rngs={"params": True, "dropout": True},
        length=2,
    )
    variables = nn.vmap(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=2
    )
    rngs = {"params": KEY, "dropout": KEY}
    params = variables().init(rngs, jnp.stack([X, X]))["params"]
    show("scanned over given layers", Layer().apply({"params": params}, X, None, rngs=rngs)[0])


def eight_bits():
    """flax's operators in eight bits are modules: made of whatever flax.linen is."""
    model = nn.Dense(4, dot_general_cls=nn.Fp8DotGeneralOp)
    variables = model.init(KEY, X)
    show("fp8", variables)
    show("fp8 output", model.apply(variables, X))


def names_beside_variables():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ partitioning.param_with_axes(
                "w", initializers.ones, (4, 2), axes=("embed", "mlp")
            )

    variables = Named().init(KEY, X)
    names = partitioning.get_axis_names(variables["params_axes"])
    print("names", dict(names), serialization.to_state_dict(variables["params_axes"]))
    with nn.logical_axis_rules((("embed", "x"),)):
        print("rules", partitioning.get_axis_rules(), flax.core.spmd.get_logical_axis_rules())


def names_under_lifts():
    """As t5x has them: names of axes in a collection beside the variables, stacked with them."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            init = initializers.lecun_normal()
            w = partitioning.param_with_axes("w", init, (4, 4), axes=("embed", "mlp"))
            seen = partitioning.variable_with_axes("cache", "seen", jnp.zeros, (4,), axes=("mlp",))
            seen.value = seen.value + x.sum(0)
            return (jnp.tanh(x @ w) if train else x), None

    Stacked = partitioning.scan_with_axes(
        partitioning.remat(Layer, static_argnums=(1,)),
        variable_axes={"params": 1, "cache": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=2,
        axis_name="layers",
        axes_collections=("params", "cache"),
    )

    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Stacked(name="layers")(x, True)[0]

    variables = Decoder().init(KEY, X)
    named = [partitioning.get_axis_names(variables[col]) for col in ("params_axes", "cache_axes")]
    print("stacked names", [dict(names["layers"]) for names in named])
    y, cache = Decoder().apply(variables, X, mutable=["cache"])
    show("stacked", ({col: variables[col] for col in ("params", "cache")}, y, cache))
    rules = (("embed", None), ("mlp", ("x", "y")))
    print("mesh", nn.logical_to_mesh_axes(("embed", None, "mlp"), rules))


def lifts_of_ones_own():
    """As the documentation of flax.core shows: a lift is `pack` and a function of scopes."""

    def scaled(fn, factor, variables=True, rngs=True):
        def inner(scope_fn, repack_fn, variable_groups, rng_groups, *args):
            scope = scope_fn(variable_groups, rng_groups)
            return fn(scope, *args) * factor, repack_fn(scope)

        return lift.pack(inner, (variables,), (variables,), (rngs,), name="scaled")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = transforms.lift_transform(scaled, nn.Dense, 0.5)(4)(x)
            doubled = transforms.decorator_lift_transform(scaled, lambda mdl, x: mdl(x), 2.0)
            return doubled(nn.Dense(2), x)

    show("own lifts", Net().init_with_output(KEY, X))
    Twice = transforms.module_class_lift_transform(scaled, nn.Dense, 2.0, methods=["__call__"])
    show(Twice.__name__, Twice(3).init_with_output(KEY, X))


def static_arguments_and_cells():
    """Arguments are counted from the module on, which is 0; a cell is as wide as its carry."""

    class Switched(nn.Module):
        @nn.compact
        def __call__(self, x, train, width):
            return nn.Dense(width)(x if train else -x)

    for numbers in ((2, 3), (3, 2)):
        model = nn.remat(Switched, static_argnums=numbers, policy=None)()
        show(f"static {numbers}", model.init_with_output(KEY, X, False, 3))
    for cell in (nn.LSTMCell(3), nn.GRUCell(3), nn.OptimizedLSTMCell(3), nn.SimpleCell(3)):
        carry = cell.initialize_carry(KEY, X.shape)
        show(type(cell).__name__, nn.RNN(cell, return_carry=True).init_with_output(KEY, X[None]))
        show("carry", carry)


def functions_and_errors():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.map_variables(
                lambda mdl, x: mdl(x),
                "params",
                functools.partial(jax.tree.map, lambda w: 2 * w),
                init=True,
            )(nn.Dense(2), x)

    show("mapped", Scaled().init_with_output(KEY, X))
    try:
        nn.Dense(2).apply({}, X)
    except ScopeCollectionNotFound as error:
        print("error", type(error).__name__)
    names = []
    with nn.intercept_methods(lambda f, a, k, c: names.append(c.method_name) or f(*a, **k)):
        nn.Dense(2).apply(nn.Dense(2).init(KEY, X), X)
    print("intercepted", names[-1], nn.module._context.module_stack)


def bridge():
    """flax.nnx's bridges stand on flax.linen."""
    from flax import nnx

    model = nnx.bridge.ToNNX(nn.Dense(3), rngs=nnx.Rngs(0)).lazy_init(X)
    print("nnx", model(X).shape, sorted(nnx.state(model)))
    inside = nnx.bridge.ToLinen(nnx.Linear, args=(4, 2))
    print("linen", isinstance(inside, nn.Module), sorted(inside.init(KEY, X)))


if __name__ == "__main__":
    print(sys.argv[1:])
    training(*a_model())
    lifts_with_marks_of_flax()
    eight_bits()
    names_beside_variables()
    names_under_lifts()
    lifts_of_ones_own()
    static_arguments_and_cells()
    functions_and_errors()
    bridge()
