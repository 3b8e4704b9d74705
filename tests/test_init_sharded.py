"""init_sharded: on eight devices each makes its own parts, with the bits of a jitted init."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import liftax as nn
from liftax.init_sharded import init_sharded

KEY = jax.random.key(0)
X = jnp.ones((2, 64))
RULES = [("layers", None), ("embed", "data"), ("mlp", "model")]


def kernel(*names):
    return nn.with_logical_partitioning(nn.initializers.lecun_normal(), names)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(256, kernel_init=kernel("embed", "mlp"))(nn.LayerNorm()(x))
        return x + nn.Dense(64, kernel_init=kernel("mlp", "embed"))(nn.relu(y))


STACK = nn.Stack(Block(), depth=6, metadata_params={nn.PARTITION_NAME: "layers"})


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))


def test_variables_lie_where_the_rules_say():
    made = init_sharded(STACK, mesh(), KEY, X, rules=RULES)["params"]["block_0"]
    assert made["Dense_0"]["kernel"].value.sharding.spec == PartitionSpec(None, "data", "model")
    assert made["Dense_1"]["kernel"].value.sharding.spec == PartitionSpec(None, "model", "data")
    assert made["Dense_0"]["bias"].sharding.is_fully_replicated
    assert made["Dense_0"]["kernel"].value.addressable_shards[0].data.shape == (6, 32, 64)


@pytest.mark.parametrize("model", [STACK, Block()], ids=["stack", "block"])
def test_the_bits_are_those_of_a_jitted_init(model):
    rules = [*RULES[1:]] if model is not STACK else RULES
    made = nn.unbox(init_sharded(model, mesh(), KEY, X, rules=rules))
    expected = nn.unbox(jax.jit(model.init)(KEY, X))
    jax.tree.map(np.testing.assert_array_equal, made, expected)


def test_rules_that_are_set_hold():
    with nn.logical_axis_rules(RULES):
        made = nn.init_sharded(STACK, mesh(), KEY, X)
    spec = made["params"]["block_0"]["Dense_0"]["kernel"].value.sharding.spec
    assert spec == PartitionSpec(None, "data", "model")


def test_no_device_holds_a_whole_array():
    """Peak bytes of one device, by the compiled program: outputs and temporaries."""
    wide = nn.Dense(4096, kernel_init=kernel("embed", "mlp"), use_bias=False)
    x = jnp.ones((2, 1024))

    def init(key):
        return nn.init_sharded(wide, mesh(), key, x, rules=RULES)

    whole = 4 * 1024 * 4096
    program = jax.jit(init).lower(KEY).compile()
    figures = program.memory_analysis()
    assert figures.output_size_in_bytes == whole // 8
    assert figures.temp_size_in_bytes < whole / 2
    assert "[1024,4096]" not in program.as_text()


def test_an_axis_that_does_not_divide():
    odd = nn.Dense(6, kernel_init=kernel("embed", "mlp"))
    with pytest.raises(ValueError, match="PartitionSpec|implies"):
        nn.init_sharded(odd, mesh(), KEY, X, rules=RULES)
    nn.init_sharded(nn.Dense(8, kernel_init=kernel("embed", "mlp")), mesh(), KEY, X, rules=RULES)
