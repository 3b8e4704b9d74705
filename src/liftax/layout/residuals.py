"""What a backward pass keeps: read from the program of a forward pass that is to be differentiated.

Vocabulary
  residual   an array that the forward pass hands to the backward pass
  dear       a product with weights, or what a kernel returns: what `Remat("products")` keeps
  cheap      all else: computed again in less time than it takes to store and to read
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import equations, jax_private
from ..module import Module
from ..pytrees import is_array, split
from .data import human_bytes

if TYPE_CHECKING:
    import jax.extend.core as jex


@dataclass(frozen=True)
class Residual:
    """An array that is kept.

    Attributes:
      module: the path of the module that computed it.
      operation: what computed it, in JAX's word; ``"carry"`` for what enters an iteration.
      shape: its shape, the axes of the loops around it first.
      dtype: its dtype.
      bytes: what it takes, of all iterations.
      loops: the lengths of those loops, outermost first.
      dear: whether it would take long to compute again.
    """

    module: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    loops: tuple[int, ...]
    dear: bool


@dataclass(frozen=True)
class Residuals:
    """All that a backward pass keeps, besides the variables themselves.

    Attributes:
      rows: the residuals, in the order in which they are computed.
    """

    rows: tuple[Residual, ...]

    @property
    def bytes(self) -> int:
        """What all take together."""
        return sum(row.bytes for row in self.rows)

    @property
    def cheap_bytes(self) -> int:
        """What those take that are cheap to compute again."""
        return sum(row.bytes for row in self.rows if not row.dear)

    def by_module(self) -> dict[str, int]:
        """The bytes of each module, by its path."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.module] = found.get(row.module, 0) + row.bytes
        return found

    def __str__(self) -> str:
        rows = [
            (
                f"{row.dtype}[{','.join(map(str, row.shape))}]",
                human_bytes(row.bytes),
                row.operation if row.dear else f"{row.operation}, cheap",
                row.module,
            )
            for row in self.rows
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
        lines = ["  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) for row in rows]
        total = f"{human_bytes(self.bytes)} kept, {human_bytes(self.cheap_bytes)} of it cheap"
        return "\n".join([*(line.rstrip() for line in lines), total])


def saved_residuals(
    module: Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Residuals:
    """What the backward pass keeps, by module, name, shape and bytes, before anything runs.

    The gradient is that of the outputs with respect to ``variables['params']``; the model is
    traced once, and nothing is computed.

    Args:
      module: the model, not bound.
      variables: its variables; shapes will do, as from `jax.eval_shape`.
      *args: arguments of the model, arrays or shapes.
      **kwargs: as for `Module.apply`: ``rngs``, ``mutable``, ``method`` and the model's own.

    Returns:
      the `Residuals`; print them for a table.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return x + nn.Dense(4)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
      >>> x = jax.numpy.ones((8, 4))
      >>> kept = {}
      >>> for remat in (None, nn.Remat("products")):
      ...     stack = nn.Stack(Block(), depth=12, remat=remat)
      ...     shapes = jax.eval_shape(stack.init, jax.random.key(0), x)
      ...     kept[remat] = nn.saved_residuals(stack, shapes, x)
      >>> print(kept[nn.Remat("products")])
      float32[12,8,16]  6.0 KiB  dot_general  block_0/Dense_1
      float32[12,8,4]   1.5 KiB  carry
      7.5 KiB kept, 0 B of it cheap
      >>> kept[None].cheap_bytes > 5 * kept[None].bytes // 6
      True
    """
    params = variables["params"]
    others = {name: value for name, value in variables.items() if name != "params"}

    arrays, call = split((args, kwargs), is_array)

    def residuals(params: Any, others: Any, arrays: list[Any]) -> list[Any]:
        args, kwargs = call.filled(arrays)

        def forward(params: Any) -> list[Any]:
            out = module.apply({**others, "params": params}, *args, **kwargs)
            return [
                y for y in jax.tree.leaves(out) if jnp.issubdtype(jnp.result_type(y), jnp.inexact)
            ]

        return jax.tree.leaves(jax.vjp(forward, params)[1])

    closed = jax.make_jaxpr(residuals)(params, others, arrays)
    order = {out: n for n, eqn in enumerate(closed.jaxpr.eqns) for out in eqn.outvars}
    # A variable, or an input, is there anyway; and what is kept twice is one array.
    kept = [atom for atom in dict.fromkeys(_variables(closed.jaxpr.outvars)) if atom in order]
    return Residuals(tuple(_residual(closed.jaxpr, v) for v in sorted(kept, key=order.__getitem__)))


def _variables(atoms: Any) -> Iterator[Any]:
    return (atom for atom in atoms if jax_private.is_variable(atom))


def _residual(program: jex.Jaxpr, variable: Any) -> Residual:
    """Finds what computed a value, in the programs that equations call."""
    aval, loops, places = variable.aval, [], []
    while True:
        eqn = next((e for e in program.eqns if variable in e.outvars), None)
        if eqn is None:  # it came into a loop's body
            operation, dear = "carry", True
            break
        if equations.is_handed_on(eqn):  # as what a checkpoint keeps is
            (variable,) = eqn.invars
            continue
        places.append(equations.place_of(eqn))
        index = eqn.outvars.index(variable)
        scan = equations.as_scan(eqn)
        if scan is not None:
            loops.append(scan.length)
            inner = scan.body.jaxpr
        else:
            called = [p.jaxpr for p in equations.programs_of(eqn)]
            inner = called[0] if len(called) == 1 else None
            if inner is None or len(inner.outvars) != len(eqn.outvars):
                operation = equations.name_of(eqn)
                dear = _is_dear(eqn)
                break
        program, variable = inner, inner.outvars[index]
        if not jax_private.is_variable(variable):
            operation, dear = "constant", False
            break
    # The scope of the model itself has the name of its class, which is in no path.
    path = "/".join(filter(None, places)).partition("/")[2]
    size = aval.size * aval.dtype.itemsize
    return Residual(path, operation, aval.shape, str(aval.dtype), size, tuple(loops), dear)


def _is_dear(eqn: jex.JaxprEqn) -> bool:
    avals = [atom.aval for atom in eqn.invars]
    return bool(equations.keeps_products(eqn.primitive, *avals, **eqn.params))
