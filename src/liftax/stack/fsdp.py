"""Parameters that lie split over a mesh axis, gathered layer by layer as the stack runs.

Each device keeps its part of every layer. The loop gathers one layer while the layer before it
computes, and lets go of it afterwards; the backward pass does the same from the last layer to the
first, and hands each gradient back as parts. A loop that JAX differentiates would keep whatever
goes round in it, all gathered layers among it. So the loop says itself how it is differentiated: it
keeps what entered each step and runs the step again, on parameters gathered anew.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, KeyPath, tree_flatten_with_path, tree_map_with_path

from .. import jax_private
from ..core.types import Collections
from ..errors import StackError
from ..pytrees import floats, is_inexact, spread, with_floats

Step = Callable[[Any, Any], tuple[Any, Any]]
Leaves = list[Any]


@dataclasses.dataclass(frozen=True)
class FSDP:
    """How a stack's parameters are gathered from the devices that share them.

    Args:
      axis: the mesh axis over which the parameters of each layer are split.
      prefetch: 1 gathers a layer while the one before it computes, 0 as it begins.

    Raises:
      StackError: ``prefetch`` is neither.

    Example:
      >>> FSDP("data")
      FSDP(axis='data', prefetch=1)
    """

    axis: str
    prefetch: int = 1

    def __post_init__(self) -> None:
        if self.prefetch not in (0, 1):
            raise StackError(f"FSDP: prefetch expected 0 or 1 layers; found {self.prefetch!r}")

    def size(self) -> int:
        """Over how many devices of the mesh in force the parameters are split; 1 without a mesh.

        Raises:
          StackError: the mesh has no such axis.
        """
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return 1
        if self.axis not in mesh.axis_names:
            raise StackError(
                f"Stack: fsdp expected an axis of the mesh, which has {mesh.axis_names}; found "
                f"{self.axis!r}"
            )
        return int(mesh.shape[self.axis])


def split_axis(shape: Sequence[int], size: int) -> int | None:
    """The axis of a layer's parameter that is split: the longest that divides, None for none.

    Example:
      >>> split_axis((8, 32), 8), split_axis((3,), 8)
      (1, None)
    """
    # One that does not divide has no equal parts, so it is left whole.
    fit = [axis for axis, n in enumerate(shape) if n and n % size == 0]
    return max(fit, key=lambda axis: shape[axis], default=None)


def fsdp_sharding(
    variables: Collections, mesh: Mesh | AbstractMesh, axis: str = "data"
) -> Collections:
    """Says how variables lie where each parameter is split over one mesh axis.

    Of each parameter the longest axis that divides is split; in a stack (below ``block_p``) the
    axis of the layers, the first, stays whole. Other collections lie on every device.

    Args:
      variables: variables, or their shapes as `jax.eval_shape` gives them.
      mesh: the mesh.
      axis: its axis.

    Returns:
      a tree of `NamedSharding`, for ``jax.jit(..., out_shardings=)`` or `jax.device_put`.

    Example:
      >>> import jax, liftax as nn
      >>> stack = nn.Stack(nn.Dense(16), depth=4, fsdp="data")
      >>> init = lambda key: stack.init(key, jax.numpy.ones((8, 16)))
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> shapes = jax.eval_shape(init, jax.random.key(0))
      >>> places = nn.fsdp_sharding(shapes, mesh)
      >>> places["params"]["block_0"]["kernel"].spec
      P(None, 'data', None)
      >>> variables = jax.jit(init, out_shardings=places)(jax.random.key(0))
    """

    def place(path: KeyPath, leaf: Any) -> NamedSharding:
        names = [str(getattr(entry, "key", "")) for entry in path]
        # By name, since nothing else is known of variables alone: the layers of a stack lie below
        # its positions, and their axis is the one that the loop goes along, which must not be
        # split.
        first = int(any(re.fullmatch(r"(block|circular_\d+x\d+)_\d+", name) for name in names))
        found = None
        if names[0] == "params":
            found = split_axis(leaf.shape[first:], mesh.shape[axis])
        if found is None:
            return NamedSharding(mesh, PartitionSpec())
        spec = [axis if i == found + first else None for i in range(leaf.ndim)]
        return NamedSharding(mesh, PartitionSpec(*spec))

    placed: Collections = tree_map_with_path(place, variables)
    return placed


class _Gathered:
    """One leaf of a layer's parameters: how it is gathered, and how its gradient is split.

    Args:
      aval: of the part that a layer has.
      axis: the mesh axis.
      size: its size.
    """

    def __init__(self, aval: Any, axis: str, size: int):
        mesh = jax.sharding.get_abstract_mesh()
        kind = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis]
        # On an explicit axis the type of an array says how it lies, and JAX reshards where that
        # changes. On an automatic one XLA decides, and only a constraint holds it to a place.
        self.explicit = kind == AxisType.Explicit
        if self.explicit:
            spec = (*aval.sharding.spec, *(None,) * (aval.ndim - len(aval.sharding.spec)))
            held = [axis in (e if isinstance(e, tuple) else (e,)) for e in spec]
            self.at = held.index(True) if any(held) else None
        else:
            # What other axes of the mesh do with the array is not ours to say.
            spec = (PartitionSpec.UNCONSTRAINED,) * aval.ndim
            self.at = split_axis(aval.shape, size)
        if self.at is None:
            return

        def put(entry: object) -> NamedSharding:
            changed = [entry if i == self.at else e for i, e in enumerate(spec)]
            return NamedSharding(mesh, PartitionSpec(*changed))

        old = spec[self.at]
        names = old if isinstance(old, tuple) else ()
        self.whole = put(tuple(name for name in names if name != axis) or None)
        self.parts = put(old if self.explicit else axis)
        self.aval = jax.ShapeDtypeStruct(
            aval.shape, aval.dtype, sharding=self.whole if self.explicit else None
        )

    def gather(self, x: jax.Array) -> jax.Array:
        # As parts first: else the compiler is free to gather all layers, and to take one out of
        # that.
        return self._lay(self._lay(x, self.parts), self.whole)

    def scatter(self, x: jax.Array) -> jax.Array:
        return self._lay(x, self.parts)

    def _lay(self, x: jax.Array, place: NamedSharding) -> jax.Array:
        if self.explicit:
            return jax.sharding.reshard(x, place)
        return jax.lax.with_sharding_constraint(x, place)


class Loop:
    """A stack's loop with gathered parameters, called as `jax.lax.scan` is.

    Args:
      fsdp: what the stack says.
      plain: what runs the loop where there is nothing to gather.
    """

    def __init__(self, fsdp: FSDP, plain: Callable[..., Any]):
        self.fsdp, self.plain = fsdp, plain

    def __call__(self, step: Step, init: Any, xs: Any, *, length: int, **options: Any) -> Any:
        """Runs ``length`` steps ``(carry, x) -> (carry, ys)``."""
        size = self.fsdp.size()
        found, tree = tree_flatten_with_path(xs)
        avals = [jax_private.element(leaf) for _, leaf in found]
        gathered: dict[int, _Gathered] = {}
        for i, ((path, _), aval) in enumerate(zip(found, avals, strict=True)):
            if size > 1 and _collection(path) == "params" and is_inexact(aval):
                leaf = _Gathered(aval, self.fsdp.axis, size)
                if leaf.at is not None:
                    gathered[i] = leaf
        # Without a mesh, or on one device, this is the plain loop, to the bit.
        if length == 0 or not gathered:
            return self.plain(step, init, xs, length=length, **options)
        seen = [gathered[i].aval if i in gathered else aval for i, aval in enumerate(avals)]
        # The step is traced here, once, on what it will see: whole parameters. What it closes over
        # becomes an input, for `custom_vjp` hands no derivative to a value that a rule closes over.
        closed, shape = jax.make_jaxpr(step, return_shape=True)(
            init, jax.tree.unflatten(tree, seen)
        )
        run = _Run(closed, list(gathered.items()), self.fsdp.prefetch, length)
        leaves = [leaf for _, leaf in found]
        carry, ys = run.loop(
            list(closed.consts),
            jax.tree.leaves(init),
            [leaves[i] for i in gathered],
            [leaf for i, leaf in enumerate(leaves) if i not in gathered],
        )
        carry_def, ys_def = map(jax.tree.structure, shape)
        return jax.tree.unflatten(carry_def, carry), jax.tree.unflatten(ys_def, ys)


def _collection(path: KeyPath) -> object:
    """The collection that a leaf of what goes into a step belongs to, None for an argument."""
    return next((entry.key for entry in path if isinstance(entry, DictKey)), None)


class _Run:
    """The loop over a step's program: forward, and backward from the last step to the first."""

    def __init__(self, closed: Any, gathered: list[tuple[int, _Gathered]], ahead: int, length: int):
        self.program = jax_private.consts_as_inputs(closed)
        self.places = [i for i, _ in gathered]
        self.gathered = [leaf for _, leaf in gathered]
        self.ahead, self.length = ahead, length
        # Of constants, carry, parts and the rest; returns the last carry and the outputs.
        self.loop = jax.custom_vjp(lambda *args: self.forward(*args)[0])
        self.loop.defvjp(self.forward, self.backward)

    def step(self, consts: Leaves, carry: Leaves, whole: Leaves, rest: Leaves) -> list[Any]:
        """One step, of all its inputs as leaves."""
        at, others = dict(zip(self.places, whole, strict=True)), iter(rest)
        x = [at[i] if i in at else next(others) for i in range(len(whole) + len(rest))]
        return list(jax_private.evaluate(self.program, [*consts, *carry, *x]))

    def layer(self, parts: Leaves, i: jax.Array) -> Leaves:
        """The parameters of one step, gathered; of one past the ends those at the end."""
        # The last step has no layer to gather ahead. It gathers its own once more, which costs less
        # than a branch in every step.
        i = jnp.clip(i, 0, self.length - 1)
        both = zip(self.gathered, parts, strict=True)
        return [
            leaf.gather(jax.lax.dynamic_index_in_dim(part, i, keepdims=False))
            for leaf, part in both
        ]

    def over(self, body: Callable[..., Any], parts: Leaves, state: Any, xs: Any, by: int) -> Any:
        """Scans ``body(state, whole, x) -> (state, y)``, each step's layer gathered ahead."""
        reverse = by < 0
        numbers = jnp.arange(self.length)

        def turn(state: Any, x: Any) -> Any:
            (i, x), now = x, None
            if self.ahead:
                # The next layer needs nothing of this one: the two may overlap.
                state, now = state
                after = self.layer(parts, i + by)
            state, y = body(state, self.layer(parts, i) if now is None else now, x)
            return ((state, after) if self.ahead else state), y

        first = jnp.asarray(self.length - 1 if reverse else 0)
        begun = (state, self.layer(parts, first)) if self.ahead else state
        end, ys = jax.lax.scan(turn, begun, (numbers, xs), reverse=reverse)
        return (end[0] if self.ahead else end), ys

    def forward(self, consts: Leaves, carry: Leaves, parts: Leaves, rest: Leaves) -> Any:
        def body(carry: Leaves, whole: Leaves, rest: Leaves) -> Any:
            out = self.step(consts, carry, whole, rest)
            return out[: len(carry)], (out[len(carry) :], carry)

        end, (ys, entered) = self.over(body, parts, carry, rest, 1)
        # What entered each step is all that is kept: the rest is computed again from gathered
        # layers.
        return (end, ys), (consts, entered, parts, rest)

    def backward(self, kept: Any, cotangents: Any) -> Any:
        consts, entered, parts, rest = kept
        d_carry, d_ys = cotangents

        def body(state: Any, whole: Leaves, x: Any) -> Any:
            # Constants are used by all steps, so their derivatives add up; they begin with zero.
            sums, d_carry = state
            carry, rest, d_ys = x
            groups = (consts, carry, whole, rest)
            given = [floats(group) for group in groups]

            def again(given: list[Leaves]) -> Leaves:
                filled = [with_floats(old, new) for old, new in zip(groups, given, strict=True)]
                return floats(self.step(*filled))

            _, pull = jax.vjp(again, given)
            ((d_consts, d_carry, d_whole, d_rest),) = pull([*d_carry, *d_ys])
            sums = jax.tree.map(jnp.add, sums, d_consts)
            both = zip(self.gathered, d_whole, strict=True)
            return (sums, d_carry), ([leaf.scatter(d) for leaf, d in both], d_rest)

        zeros = [jnp.zeros_like(leaf) for leaf in floats(consts)]
        # JAX hands a cotangent for integers too, of a dtype (float0) that no loop takes.
        d_carry, d_ys = floats(d_carry), floats(d_ys)
        (d_consts, d_carry), (d_parts, d_rest) = self.over(
            body, parts, (zeros, d_carry), (entered, rest, d_ys), -1
        )
        first = [leaf[0] for leaf in entered]
        return (
            spread(consts, d_consts),
            spread(first, d_carry),
            d_parts,
            spread(rest, d_rest),
        )
