"""Parameters split over a mesh axis and gathered a layer ahead: values, memory, the program."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import liftax as nn
from liftax.errors import StackError

P = PartitionSpec
KEY = jax.random.key(0)
WIDTH, DEPTH = 32, 6
X = jax.random.normal(KEY, (8, WIDTH))
KINDS = (AxisType.Auto, AxisType.Explicit)


class Block(nn.Module):
    """Parameters that divide and one that does not, keys, an argument and an output."""

    @nn.compact
    def __call__(self, x, scale, deterministic=True):
        h = nn.relu(nn.Dense(4 * WIDTH, use_bias=False)(x))
        h = nn.Dropout(0.5, deterministic=deterministic)(h)
        gain = self.param("gain", nn.initializers.ones, (3,))
        x = x + nn.Dense(WIDTH)(h) * scale * gain.sum()
        return x, x.mean()


STACK = nn.Stack(Block(), depth=DEPTH, outputs=True)
ONE = jnp.float32(0.5)


def step(stack: nn.Stack, deterministic: bool = True) -> Any:
    def loss(variables: Any, x: Any, scale: Any) -> Any:
        y, means = stack.apply(
            variables, x, scale, deterministic=deterministic, rngs={"dropout": KEY}
        )
        return jnp.sum(jnp.sin(y)) + jnp.sum(means**2)

    return jax.value_and_grad(loss, argnums=(0, 1, 2))


def mesh_of(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def compiled(stack: nn.Stack, kind: AxisType = AxisType.Auto, deterministic: bool = True) -> Any:
    """The compiled step on eight devices, and its inputs."""
    mesh = mesh_of(kind)
    variables = jax.jit(STACK.init)(KEY, X, ONE)
    places = nn.fsdp_sharding(variables, mesh)
    inputs = (
        jax.device_put(variables, places),
        jax.device_put(X, jax.NamedSharding(mesh, P("data"))),
    )
    out = {} if kind == AxisType.Explicit else {"out_shardings": (None, (places, None, None))}
    with jax.set_mesh(mesh):
        program = jax.jit(step(stack, deterministic), **out).lower(*inputs, ONE).compile()
        return program, program(*inputs, ONE)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values_and_gradients_are_those_of_the_whole_parameters(kind: AxisType) -> None:
    variables = jax.jit(STACK.init)(KEY, X, ONE)
    expected = jax.jit(step(STACK, False))(variables, X, ONE)
    program, found = compiled(STACK.clone(fsdp="data"), kind, False)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-3),
        found,
        expected,
    )
    (gradient, *_), kernel = found[1], variables["params"]["block_0"]["Dense_0"]["kernel"]
    spec = gradient["params"]["block_0"]["Dense_0"]["kernel"].sharding.spec
    assert tuple(spec) == (None, None, "data") and kernel.shape == (DEPTH, WIDTH, 4 * WIDTH)


def loops(program: Any) -> list[list[tuple[str, str, list[str]]]]:
    """Of each computation with products and gathers, in order: name, operation, operands."""
    found = []
    for text in re.split(r"\n(?=%|ENTRY)", program.as_text()):
        lines = re.findall(r"^ +(?:ROOT )?(%\S+) = .*? ([\w-]+)\((.*)$", text, re.MULTILINE)
        ops = [
            # A product may stand in a fusion that is named for nothing: its source says so.
            (
                name,
                "dot" if "dot_general" in rest and op != "copy" else op,
                re.findall(r"%[\w.-]+", rest),
            )
            for name, op, rest in lines
        ]
        kinds = [op for _, op, _ in ops]
        if "all-gather" in kinds and "dot" in kinds and not text.startswith("ENTRY"):
            found.append(ops)
    return found


def needs(ops: list[tuple[str, str, list[str]]], of: str, wanted: str) -> bool:
    """Whether an operation of one kind reads, within the loop, what one of another kind made."""
    reads = {name: operands for name, _, operands in ops}
    makes = {name for name, op, _ in ops if op == wanted}

    def walk(name: str, seen: set[str]) -> bool:
        for before in reads.get(name, []):
            if before not in seen:
                seen.add(before)
                if before in makes or walk(before, seen):
                    return True
        return False

    return any(walk(name, set()) for name, op, _ in ops if op == of)


def test_a_layer_is_gathered_while_the_one_before_it_computes() -> None:
    ahead, _ = compiled(STACK.clone(fsdp=nn.FSDP("data")))
    at_once, _ = compiled(STACK.clone(fsdp=nn.FSDP("data", prefetch=0)))
    forward_and_backward = loops(ahead)
    assert len(forward_and_backward) == len(loops(at_once)) == 2
    for ops in forward_and_backward:
        # Neither waits for the other, and the gather is begun before the layer is done.
        assert not needs(ops, "dot", "all-gather") and not needs(ops, "all-gather", "dot")
        kinds = [op for _, op, _ in ops]
        last_dot = len(kinds) - 1 - kinds[::-1].index("dot")
        assert kinds.index("all-gather") < last_dot
    assert all(needs(ops, "dot", "all-gather") for ops in loops(at_once))

    # Of the gathered parameters one layer is there, or two, whatever the depth.
    layer = 4 * WIDTH * WIDTH * 2 * 4
    temp = {
        name: p.memory_analysis().temp_size_in_bytes
        for name, p in (("ahead", ahead), ("at once", at_once))
    }
    assert layer / 2 < temp["ahead"] - temp["at once"] < 1.5 * layer
    assert temp["ahead"] < 3.5 * layer < DEPTH * layer
    assert ahead.memory_analysis().argument_size_in_bytes < DEPTH * layer / 7


def test_without_a_mesh_and_by_other_ways_to_run() -> None:
    stack = STACK.clone(fsdp="data")
    assert stack.fsdp == nn.FSDP("data") and stack.clone() == stack
    variables = jax.jit(stack.init)(KEY, X, ONE)
    jax.tree.map(np.testing.assert_array_equal, variables, jax.jit(STACK.init)(KEY, X, ONE))
    program = str(jax.make_jaxpr(stack.apply)(variables, X, ONE))
    assert program == str(jax.make_jaxpr(STACK.apply)(variables, X, ONE))
    with jax.set_mesh(mesh_of(AxisType.Auto)):
        with nn.override_stacks(run="loop"):
            jax.eval_shape(stack.apply, variables, X, ONE)
        shapes = jax.eval_shape(jax.vmap(stack.apply, (None, 0, None)), variables, X[None], ONE)
        with pytest.raises(StackError, match=r"fsdp expected an axis of the mesh.*found 'rows'"):
            jax.eval_shape(STACK.clone(fsdp="rows").apply, variables, X, ONE)
    assert shapes[0].shape == (1, *X.shape)


REFUSED = {
    "fsdp expected the name of a mesh axis": {"fsdp": 3},
    "fsdp= runs each layer again": {"fsdp": "data", "remat": nn.Remat("products")},
    "fsdp= takes layers from the first axis": {"fsdp": "data", "param_axis": 1},
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    with pytest.raises(StackError, match=text):
        nn.Stack(Block(), depth=2, **REFUSED[text])
    with pytest.raises(StackError, match="prefetch expected 0 or 1"):
        nn.FSDP("data", prefetch=2)
