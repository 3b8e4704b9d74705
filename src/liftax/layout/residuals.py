"""What a backward pass keeps: read from the program of a forward pass that is to be differentiated.

Vocabulary
  residual   an array that the forward pass hands to the backward pass
  dear       a product with weights, or what a kernel returns: what `Remat("products")` keeps
  cheap      all else: computed again in less time than it takes to store and to read
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax

from .. import equations, jax_private
from ..core.types import Tree
from ..module import Module
from ..pytrees import floats, is_array, split
from .data import Loop, Residual, Residuals

if TYPE_CHECKING:
    import jax.extend.core as jex


def saved_residuals(
    module: Module, variables: Mapping[str, Tree], *args: object, **kwargs: object
) -> Residuals:
    """What the backward pass keeps, by module, name, shape and bytes, before anything runs.

    The gradient is that of the outputs with respect to ``variables['params']``; what becomes of
    mutable collections is not differentiated. The model is traced once, and nothing is computed.

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
    arrays, call = split((args, kwargs), is_array)

    def apply(variables: Mapping[str, Tree], arrays: list[jax.Array]) -> object:
        args, kwargs = call.filled(arrays)
        return module.apply(variables, *args, **kwargs)

    return residuals_of(apply, variables, arrays, kwargs.get("mutable", False) is not False)


def residuals_of(
    apply: Callable[..., Any],
    variables: Mapping[str, Tree],
    arrays: Tree,
    with_state: bool,
) -> Residuals:
    """As `saved_residuals`, of a function of variables and arrays, both given as arrays or shapes.

    Args:
      apply: the forward pass.
      variables: collection -> variables; the gradient is with respect to ``"params"``.
      arrays: a pytree.
      with_state: whether it returns a pair, of outputs and of what it wrote to variables.
    """

    def residuals(params: Tree, others: Mapping[str, Tree], arrays: Tree) -> list[jax.Array]:
        # Of floats alone: outputs without a derivative would need cotangents of their own kind.
        def forward(params: Tree) -> list[jax.Array]:
            out = apply({**others, "params": params}, arrays)
            return floats(jax.tree.leaves(out[0] if with_state else out))

        # The pull-back is a pytree whose leaves are exactly what it holds on to.
        return jax.tree.leaves(jax.vjp(forward, params)[1])

    others = {name: value for name, value in variables.items() if name != "params"}
    program = jax.make_jaxpr(residuals)(variables.get("params", {}), others, arrays).jaxpr
    # What no equation makes was given, and lies in memory whether there is a gradient or not.
    order = {out: n for n, eqn in enumerate(program.eqns) for out in eqn.outvars}
    for eqn in program.eqns:  # a loop over groups of layers sees the weights in another shape
        if equations.is_reshape(eqn) and eqn.invars[0] not in order:
            order.pop(eqn.outvars[0])
    # A variable, or an input, is there anyway; and what is kept twice is one array.
    kept = [atom for atom in dict.fromkeys(equations.variables(program.outvars)) if atom in order]
    makers, loops = _Makers(), dict(_loops(program, []))
    rows = [_residual(program, v, makers, loops) for v in sorted(kept, key=order.__getitem__)]
    return Residuals(tuple(rows), tuple(loops.values()))


class _Makers(dict["jex.Jaxpr", "dict[jex.Var, jex.JaxprEqn]"]):
    """Program -> its values -> the equation that makes each; each program is read once."""

    def __missing__(self, program: jex.Jaxpr) -> dict[jex.Var, jex.JaxprEqn]:
        self[program] = {out: eqn for eqn in program.eqns for out in eqn.outvars}
        return self[program]


def _residual(
    program: jex.Jaxpr, variable: Any, makers: _Makers, known: Mapping[int, Loop]
) -> Residual:
    """Finds what computed a value, in the programs that equations call."""
    aval, loops, names, outermost = variable.aval, [], [], None

    # Inward: an output of a loop or a call was computed by an equation of the program inside.
    while True:
        eqn = makers[program].get(variable)
        if eqn is None:  # it came into a loop's body
            operation, dear = "carry", True
            break
        if equations.is_handed_on(eqn):  # as what a checkpoint keeps is
            (variable,) = eqn.invars
            continue
        # Scopes name the modules; each level adds those between the one outside and itself.
        names.append(equations.place_of(eqn))
        index = eqn.outvars.index(variable)
        scan = equations.as_scan(eqn)
        if scan is not None:
            outermost = list(known).index(id(eqn)) if outermost is None else outermost
            loops.append(scan.length)
            inner = scan.body.jaxpr
        else:
            # With one program whose outputs are the equation's it is only called; with more, as for
            # a branch or a kernel, it cannot be told which made the value.
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

    return Residual(
        module=_path(names),
        operation=operation,
        shape=aval.shape,
        dtype=str(aval.dtype),
        bytes=_bytes(aval),
        loops=tuple(loops),
        dear=dear,
        loop=outermost,
    )


def _path(names: list[str]) -> str:
    """The path of a module, from the names of the scopes around what it computes."""
    # A scope is named by class and method, and by the name of the submodule: the two say the same
    # twice where a module calls itself.
    path: list[str] = []
    method = False
    for name in "/".join(filter(None, names)).split("/"):
        module, dot, _ = name.partition(".")
        # `Block.body` is a method of Block, inside of Block or around it.
        if not (path and path[-1] == module and (dot or method)):
            path.append(module)
        method = bool(dot)
    return "/".join(path[1:])  # the scope of the model itself is called as its class


def _loops(program: jex.Jaxpr, names: list[str]) -> Iterator[tuple[int, Loop]]:
    """The outermost loops of a program that is held, each with the id of its equation."""
    for eqn in program.eqns:
        inside = [*names, equations.place_of(eqn)]
        scan = equations.as_scan(eqn)
        if scan is None:
            for called in equations.programs_of(eqn):
                yield from _loops(called.jaxpr, inside)
            continue
        body = scan.body.jaxpr
        # What enters an iteration is kept whatever the policy: without it nothing could be computed
        # again.
        carried = body.invars[scan.shared : scan.shared + scan.carried]
        once = _products(body) + sum(_bytes(atom.aval) for atom in carried)
        yield id(eqn), Loop(_path(inside), scan.length, scan.length * once)


def _products(program: jex.Jaxpr) -> int:
    found = 0
    for eqn in program.eqns:
        if _is_dear(eqn):
            found += sum(_bytes(out.aval) for out in eqn.outvars)
        else:
            scan = equations.as_scan(eqn)
            inside = sum(_products(called.jaxpr) for called in equations.programs_of(eqn))
            found += inside * (scan.length if scan is not None else 1)
    return found


def _bytes(aval: Any) -> int:
    return int(aval.size * aval.dtype.itemsize)


def _is_dear(eqn: jex.JaxprEqn) -> bool:
    avals = [atom.aval for atom in eqn.invars]
    return bool(equations.keeps_products(eqn.primitive, *avals, **eqn.params))
