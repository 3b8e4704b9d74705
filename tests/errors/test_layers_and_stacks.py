"""Mistakes with layers, stacks, and how a module is written: each beside its corrected twin."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import liftax as nn
from liftax import errors

from .misuse import assert_passes, assert_refused, cases_of, misuse


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, given=None):
        return x + nn.Dense(x.shape[-1])(x)


# --- variables of another stack ----------------------------------------------------------------


@misuse(
    errors.StackError,
    "by layers",
    "found: params/layers_0",
    "nn.to_stacked",
    "store='layers'",
    at="net",
    apply=True,
)
def layers_in_a_stacked_stack(mdl, x, wrong):
    return nn.Stack(Block(), depth=3, store="stacked" if wrong else "layers", name="net")(x)


@misuse(
    errors.StackError,
    "stored stacked",
    "found: params/block_0",
    "nn.to_layers",
    "store='stacked'",
    at="net",
    apply=True,
)
def stacked_in_a_stack_of_layers(mdl, x, wrong):
    return nn.Stack(Block(), depth=3, store="layers" if wrong else "stacked", name="net")(x)


@misuse(
    errors.StackError,
    "params/block_0/Dense_0/bias (float32[3,4]), 3 along axis 0",
    "expected: 4 layers, by depth=4",
    at="net",
    apply=True,
)
def variables_of_fewer_layers(mdl, x, wrong):
    return nn.Stack(Block(), depth=4 if wrong else 3, name="net")(x)


@misuse(
    errors.StackError,
    "layers_2, the last of 3 layers",
    "expected: 4 layers, by depth=4",
    at="net",
    apply=True,
)
def variables_of_fewer_layers_by_layers(mdl, x, wrong):
    return nn.Stack(Block(), depth=4 if wrong else 3, store="layers", name="net")(x)


@misuse(
    errors.StackError,
    "layers_2, one of 3 layers",
    "expected: 2 layers, by depth=2",
    at="net",
    apply=True,
)
def variables_of_more_layers_by_layers(mdl, x, wrong):
    return nn.Stack(Block(), depth=2 if wrong else 3, store="layers", name="net")(x)


@misuse(errors.StackError, "found: params/block_1", "by repeats=2", at="net", apply=True)
def variables_of_a_longer_pattern(mdl, x, wrong):
    pattern = [Block()] if wrong else [Block(), Block()]
    return nn.Stack(pattern, repeats=2, name="net")(x)


@misuse(errors.StackError, "found: params/after_0", "by depth=2", at="net", apply=True)
def variables_of_a_layer_after(mdl, x, wrong):
    return nn.Stack(Block(), depth=2, after=[] if wrong else [Block()], name="net")(x)


@misuse(
    errors.StackError,
    "not those of a stack",
    "found: params/Dense_0",
    "expected: params/block_0",
    at="net",
    apply=True,
)
def variables_of_one_layer(mdl, x, wrong):
    return nn.Stack(Block(), depth=2, name="net")(x) if wrong else Block(name="net")(x)


@misuse(errors.AxisError, "stack of Block", "found: param_axis=2", "from -2 to 1", at="net/block_0")
def axis_of_a_stack_out_of_range(mdl, x, wrong):
    return nn.Stack(Block(), depth=2, param_axis=2 if wrong else 1, name="net")(x)


# --- stacks ------------------------------------------------------------------------------------


@misuse(errors.StackError, "Stack: run expected", "'scan of K'", "found 'unroll'", at=None)
def stack_run_mistyped(mdl, x, wrong):
    return nn.Stack(Block(), depth=2, run="unroll" if wrong else "loop", name="net")(x)


@misuse(errors.StackError, "Stack: frozen has layer 2", "2 layers", at=None)
def stack_frozen_beyond(mdl, x, wrong):
    return nn.Stack(Block(), depth=2, frozen=[2 if wrong else 1], name="net")(x)


@misuse(
    errors.CarryError,
    "stack of Dense",
    "residual width is 4 and the body makes 8",
    at="net/block_0",
)
def stack_of_a_wider_layer(mdl, x, wrong):
    return nn.Stack(nn.Dense(8 if wrong else 4), depth=2, name="net")(x)


@misuse(
    errors.StackError, "argument 'given'", "found: float32[2,4]", "size 3, for 3 layers", at="net"
)
def stack_per_layer_of_another_length(mdl, x, wrong):
    given = jnp.zeros((2 if wrong else 3, 4))
    return nn.Stack(Block(), depth=3, per_layer="given", name="net")(x, given=given)


@misuse(errors.StackError, "Stack: block expected a module or a list of them", at=None)
def stack_of_a_function(mdl, x, wrong):
    return nn.Stack(nn.relu if wrong else Block(), depth=3, name="net")(x)


@misuse(errors.StackError, "Remat(positions=) has 1", "positions 0 to 0", at=None)
def stack_remat_position_beyond(mdl, x, wrong):
    return nn.Stack(Block(), depth=3, remat=nn.Remat(positions=[1 if wrong else 0]), name="net")(x)


# --- how a module is written -------------------------------------------------------------------


@misuse(
    errors.ScopeParamShapeError,
    "used in two shapes",
    "found: (4, 3) in the first call",
    "a module of its own",
    at="d",
)
def one_submodule_at_two_widths(mdl, x, wrong):
    dense = nn.Dense(3 if wrong else 4, name="d")
    return dense(dense(x))


@misuse(
    errors.IncorrectPostInitOverrideError,
    "__init__ of its own",
    "found: Wrong.__init__(self, features)",
    "fields of the class",
    at=None,
)
def init_of_its_own(mdl, x, wrong):
    class Wrong(nn.Module):
        def __init__(self, features):
            self.features = features

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.features)(x)

    class Right(nn.Module):
        features: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.features)(x)

    return (Wrong if wrong else Right)(4)(x)


@misuse(
    errors.IncorrectPostInitOverrideError, "__init__ of its own", "fields of the class", at=None
)
def init_of_its_own_that_calls_post_init(mdl, x, wrong):
    class Wrong(nn.Module):
        features: int

        def __init__(self, features):
            self.features = features
            super().__post_init__()

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.features)(x)

    class Right(nn.Module):
        features: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.features)(x)

    return (Wrong if wrong else Right)(4)(x)


@misuse(AttributeError, "no attribute 'dense'", "__init__ of its own", "make it in setup", at=None)
def init_of_its_own_that_makes_a_layer(mdl, x, wrong):
    class Wrong(nn.Module):
        def __init__(self, features):
            super().__init__(parent=None)
            self.dense = nn.Dense(features)

        def __call__(self, x):
            return self.dense(x)

    class Right(nn.Module):
        features: int

        def setup(self):
            self.dense = nn.Dense(self.features)

        def __call__(self, x):
            return self.dense(x)

    class Around(nn.Module):
        inside: nn.Module

        @nn.compact
        def __call__(self, x):
            return self.inside(x)

    return Around((Wrong if wrong else Right)(4))(x)


@misuse(
    errors.SetAttributeFrozenModuleError,
    "after super().__post_init__()",
    "Named(name=...)",
    at="Named_0",
)
def name_set_in_post_init(mdl, x, wrong):
    class Named(nn.Module):
        def __post_init__(self):
            if not wrong:
                self.name = "mine"
            super().__post_init__()
            if wrong:
                self.name = "mine"

        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    return Named()(x)


@misuse(
    errors.InitializerError,
    "variable 'w' in collection 'params'",
    "found: float32[4]",
    "(key, shape, dtype)",
)
def initial_parameter_is_an_array(mdl, x, wrong):
    if wrong:
        return x + mdl.param("w", jnp.zeros(4))
    return x + mdl.param("w", nn.initializers.zeros, (4,))


@misuse(TypeError, "missing 1 required positional argument: 'shape'", at=None)
def initial_parameter_without_a_shape(mdl, x, wrong):
    return x + mdl.param("w", nn.initializers.zeros, *(() if wrong else ((4,),)))


@misuse(
    errors.InitializerError, "variable 'last' in collection 'cache'", "found: float32[4]", "lambda:"
)
def initial_variable_is_an_array(mdl, x, wrong):
    start = jnp.zeros(4)
    return x + mdl.variable("cache", "last", start if wrong else lambda: start).value


@misuse(TypeError, "Dense.__call__() takes 2 positional arguments but 3 were given", at=None)
def one_argument_too_many(mdl, x, wrong):
    return nn.Dense(4)(x, x) if wrong else nn.Dense(4)(x)


@misuse(errors.InvalidRngError, "stream 'noise'", "rngs={'noise'", keys=())
def key_of_a_stream_that_is_not_there(mdl, x, wrong):
    return x + jax.random.normal(mdl.make_rng("noise"), x.shape) if wrong else x


@misuse(errors.InitializerError, "variable 'w'", "found: (4,)")
def parameter_by_two_arguments(mdl, x, wrong):
    return mdl.param("w", (4,), nn.initializers.zeros) if wrong else x


# --- layers ------------------------------------------------------------------------------------


def layer(name, error, bad, good, *says, at="l"):
    """A layer called `l` with wrong options, or on a wrong input."""

    def body(mdl, x, wrong):
        out = (bad if wrong else good)(x)
        leaves = jax.tree.leaves(out)
        return x + sum(jnp.sum(leaf) for leaf in leaves)

    body.__name__ = name
    return misuse(error, *says, at=at)(body)


E = errors.LayerError
dense_of_a_word = layer(
    "dense_of_a_word",
    E,
    lambda x: nn.Dense("4", name="l")(x),
    lambda x: nn.Dense(4, name="l")(x),
    "features='4'",
    "not an int",
)
dense_of_a_float = layer(
    "dense_of_a_float",
    E,
    lambda x: nn.Dense(4.0, name="l")(x),
    lambda x: nn.Dense(4, name="l")(x),
    "features=4.0",
    "not an int",
)
dense_of_nothing = layer(
    "dense_of_nothing",
    E,
    lambda x: nn.Dense(-1, name="l")(x),
    lambda x: nn.Dense(1, name="l")(x),
    "features=-1",
    "Change features=",
)
dense_of_a_scalar = layer(
    "dense_of_a_scalar",
    E,
    lambda x: nn.Dense(4, name="l")(x[0, 0]),
    lambda x: nn.Dense(4, name="l")(x[0]),
    "the input is a scalar",
)
conv_without_channels = layer(
    "conv_without_channels",
    E,
    lambda x: nn.Conv(4, (3, 3), name="l")(x),
    lambda x: nn.Conv(4, (3,), name="l")(x),
    "too few axes",
    "kernel_size=(3, 3)",
)
conv_strides = layer(
    "conv_strides",
    E,
    lambda x: nn.Conv(4, (3,), strides=(1, 2), name="l")(x),
    lambda x: nn.Conv(4, (3,), strides=(2,), name="l")(x),
    "strides=(1, 2)",
    "Change strides=",
)
conv_padding = layer(
    "conv_padding",
    E,
    lambda x: nn.Conv(4, (3,), padding="SMAE", name="l")(x),
    lambda x: nn.Conv(4, (3,), padding="SAME", name="l")(x),
    "padding='SMAE'",
    "Change padding=",
)
conv_groups = layer(
    "conv_groups",
    E,
    lambda x: nn.Conv(4, (3,), feature_group_count=3, name="l")(x),
    lambda x: nn.Conv(4, (3,), feature_group_count=2, name="l")(x),
    "feature_group_count=3",
    "4 channels",
)
heads = layer(
    "heads",
    E,
    lambda x: nn.MultiHeadDotProductAttention(3, name="l")(x),
    lambda x: nn.MultiHeadDotProductAttention(2, name="l")(x),
    "num_heads=3",
    "4 features",
)
mask = layer(
    "mask",
    E,
    lambda x: nn.MultiHeadDotProductAttention(2, name="l")(x, mask=jnp.ones((3, 3))),
    lambda x: nn.MultiHeadDotProductAttention(2, name="l")(x, mask=jnp.ones((2, 2))),
    "mask of shape (3, 3)",
    "(2, 2, 2)",
)
embed_of_floats = layer(
    "embed_of_floats",
    E,
    lambda x: nn.Embed(5, 3, name="l")(x),
    lambda x: nn.Embed(5, 3, name="l")(x.astype(int)),
    "dtype float32",
    "Pass indices",
)
embed_attend = layer(
    "embed_attend",
    E,
    lambda x: nn.Embed(5, 3, name="l").attend(x),
    lambda x: nn.Embed(5, 4, name="l").attend(x),
    "the query has shape (2, 4)",
    "features=3",
)
batch_norm = layer(
    "batch_norm",
    E,
    lambda x: nn.BatchNorm(name="l")(x),
    lambda x: nn.BatchNorm(name="l")(x, use_running_average=True),
    "use_running_average is not set",
)
dropout = layer(
    "dropout",
    E,
    lambda x: nn.Dropout(0.5, name="l")(x),
    lambda x: nn.Dropout(0.5, name="l")(x, deterministic=True),
    "deterministic is not set",
)
dropout_rate = layer(
    "dropout_rate",
    E,
    lambda x: nn.Dropout(2.0, deterministic=True, name="l")(x),
    lambda x: nn.Dropout(0.2, deterministic=True, name="l")(x),
    "rate=2.0",
)
layer_norm_axis = layer(
    "layer_norm_axis",
    E,
    lambda x: nn.LayerNorm(reduction_axes=2, name="l")(x),
    lambda x: nn.LayerNorm(reduction_axes=1, name="l")(x),
    "reduction_axes=(2,)",
    "2 dimensions",
)
group_norm = layer(
    "group_norm",
    E,
    lambda x: nn.GroupNorm(3, name="l")(x),
    lambda x: nn.GroupNorm(2, name="l")(x),
    "num_groups=3",
    "4 channels",
)
cell_swapped = layer(
    "cell_swapped",
    E,
    lambda x: nn.LSTMCell(4, name="l")(x, (x, x)),
    lambda x: nn.LSTMCell(4, name="l")((x, x), x),
    "not a pair (c, h)",
    "initialize_carry",
)
cell_carry_single = layer(
    "cell_carry_single",
    E,
    lambda x: nn.LSTMCell(4, name="l")(x, x),
    lambda x: nn.LSTMCell(4, name="l")((x, x), x),
    "not a pair (c, h)",
    "initialize_carry",
)
gru_pair = layer(
    "gru_pair",
    E,
    lambda x: nn.GRUCell(4, name="l")((x, x), x),
    lambda x: nn.GRUCell(4, name="l")(x, x),
    "tuple of 2 values, not one array",
    "initialize_carry",
)
rnn_class = layer(
    "rnn_class",
    E,
    lambda x: nn.RNN(nn.GRUCell, name="l")(x),
    lambda x: nn.RNN(nn.GRUCell(4), name="l")(x),
    "the class GRUCell",
    "Pass an instance",
)
rnn_flat = layer(
    "rnn_flat",
    E,
    lambda x: nn.RNN(nn.GRUCell(4), name="l")(x[0]),
    lambda x: nn.RNN(nn.GRUCell(4), name="l")(x),
    "shape (4,) has too few axes",
    "(*batch, time, *features)",
)
rnn_lengths = layer(
    "rnn_lengths",
    E,
    lambda x: nn.RNN(nn.GRUCell(4), name="l")(x[None], seq_lengths=jnp.ones(3, int)),
    lambda x: nn.RNN(nn.GRUCell(4), name="l")(x[None], seq_lengths=jnp.ones(1, int)),
    "seq_lengths has shape (3,)",
    "batch (1,)",
)
sequential_of_a_class = layer(
    "sequential_of_a_class",
    E,
    lambda x: nn.Sequential([nn.Dense], name="l")(x),
    lambda x: nn.Sequential([nn.Dense(4)], name="l")(x),
    "layers[0] is the class Dense",
    "Dense(...)",
)
sequential_of_a_number = layer(
    "sequential_of_a_number",
    E,
    lambda x: nn.Sequential([nn.Dense(4), 4], name="l")(x),
    lambda x: nn.Sequential([nn.Dense(4)], name="l")(x),
    "layers[1] is of type int",
    "Change layers=",
)
sequential_empty = layer(
    "sequential_empty",
    E,
    lambda x: nn.Sequential([], name="l")(x),
    lambda x: nn.Sequential([nn.Dense(4)], name="l")(x),
    "layers is empty",
)
sequential_no_list = layer(
    "sequential_no_list",
    E,
    lambda x: nn.Sequential(nn.Dense(4), name="l")(x),
    lambda x: nn.Sequential([nn.Dense(4)], name="l")(x),
    "layers is of type Dense",
    "Pass a list or tuple",
    at=None,
)
einsum_text = layer(
    "einsum_text",
    E,
    lambda x: nn.Einsum((4, 3), "ab,bc", name="l")(x),
    lambda x: nn.Einsum((4, 3), "ab,bc->ac", name="l")(x),
    "einsum_str='ab,bc'",
    "output axes",
)
einsum_shape = layer(
    "einsum_shape",
    E,
    lambda x: nn.Einsum((3, 3), "ab,bc->ac", name="l")(x),
    lambda x: nn.Einsum((4, 3), "ab,bc->ac", name="l")(x),
    "axis 'b'",
    "Change shape=",
)
general_axis = layer(
    "general_axis",
    E,
    lambda x: nn.DenseGeneral(4, axis=3, name="l")(x),
    lambda x: nn.DenseGeneral(4, axis=1, name="l")(x),
    "axis=(3,)",
    "Change axis=",
)
general_batch = layer(
    "general_batch",
    E,
    lambda x: nn.DenseGeneral(4, axis=1, batch_dims=(1,), name="l")(x),
    lambda x: nn.DenseGeneral(4, axis=1, batch_dims=(0,), name="l")(x),
    "batch_dims=(1,)",
    "leading axes",
)
pool_window = layer(
    "pool_window",
    E,
    lambda x: nn.max_pool(x, (2, 2)),
    lambda x: nn.max_pool(x[None], (2,)),
    "window_shape=(2, 2)",
    "2 axes",
    at=None,
)
spectral = layer(
    "spectral",
    TypeError,
    lambda x: nn.SpectralNorm(nn.Dense(4), name="l")(x),
    lambda x: nn.SpectralNorm(nn.Dense(4), name="l")(x, update_stats=False),
    "missing 1 required keyword-only argument: 'update_stats'",
    at=None,
)
bidirectional_same = layer(
    "bidirectional_same",
    E,
    lambda x: nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.GRUCell(4), name="l")(x),
    lambda x: nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4)), name="l")(x),
    "backward_rnn is GRUCell",
    "backward_rnn=nn.RNN(cell)",
)
init_word = layer(
    "init_word",
    errors.InitializerError,
    lambda x: nn.Dense(4, kernel_init="zeros", name="l")(x),
    lambda x: nn.Dense(4, kernel_init=nn.initializers.zeros, name="l")(x),
    "variable 'kernel'",
    "found: 'zeros'",
    "nn.initializers.zeros",
)
dtype_word = layer(
    "dtype_word",
    TypeError,
    lambda x: nn.Dense(4, dtype="float33", name="l")(x),
    lambda x: nn.Dense(4, dtype="float32", name="l")(x),
    "data type 'float33' not understood",
    at=None,
)
cond_of_modules = layer(
    "cond_of_modules",
    errors.TransformTargetError,
    lambda x: nn.cond(True, nn.Dense(4), nn.Dense(4), x),
    nn.relu,
    "cond: function 0",
    "an instance of Dense",
    "lambda mdl, x: mdl(x)",
    at=None,
)


@cases_of(globals(), ("bare", "scan"))
def test_refused(case, nest):
    assert_refused(case, nest)


@cases_of(globals(), ("bare",))
def test_twin_passes(case, nest):
    assert_passes(case, nest)
