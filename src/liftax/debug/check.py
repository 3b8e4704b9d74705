"""What may be a slip in a model, from its program alone: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import equations, jax_private
from ..checkpoint.find import from_layout
from ..core.events import quiet
from ..core.streams import Rngs
from ..core.types import Function, Tree
from ..errors import RULES
from ..layout.build import layout
from ..layout.data import Finding
from ..module import Module, intercept_methods
from ..module.shapes import init_shapes
from ..pytrees import floats, is_array, is_inexact, split
from ..training.per_layer import mixed_layers
from ..words import names_on
from .steps import Atom, Leaves, Literal, Place, Steps

if TYPE_CHECKING:
    import jax.extend.core as jex
    import optax

    from ..module.methods import InterceptorContext


@dataclass(frozen=True)
class Checked:
    """What was found; as text, a paragraph for each.

    Attributes:
      findings: each with a code, of which `liftax explain` shows a page; those of the layout first.

    Example:
      >>> import jax, liftax as nn
      >>> found = nn.check(nn.Dense(2), jax.random.key(0), jax.ShapeDtypeStruct((2, 4), "float32"))
      >>> bool(found), str(found)
      (False, 'nothing found')
    """

    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return bool(self.findings)

    def __str__(self) -> str:
        found = [f"{f.code}: {f.message}" for f in self.findings]
        return "\n\n".join(found) or "nothing found"


def check(
    module: Module,
    rngs: Rngs | jax.ShapeDtypeStruct,
    *args: object,
    tx: optax.GradientTransformation | None = None,
    **kwargs: Any,
) -> Checked:
    """Looks for what may be a slip, by path, before anything runs.

    Besides the findings of `nn.layout`: parameters that reach no output
    (LX905), parameters that reach one and get no gradient (LX906), keys that two draws use (LX907),
    and modules that give a wider dtype than they were given without having been asked to (LX908).
    With ``tx`` also an optimizer that takes the layers of a stack for one parameter (LX909).
    What is meant is left out with ``with nn.silenced("LX906"):`` around the call.

    Args:
      module: the model, not bound.
      rngs: a key, or a mapping of stream to key, as for ``module.init``; streams that ``apply``
        needs are among them.
      *args: arguments of the model; arrays or `jax.ShapeDtypeStruct`.
      tx: the transformation of optax that the model is trained with, as it is used. It is tried on
        small arrays.
      **kwargs: further arguments of the model.

    Returns:
      a `Checked`, which is false where nothing was found.

    Raises:
      Whatever ``module.init`` and ``module.apply`` raise for the same arguments.

    Example:
      >>> import jax, liftax as nn
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         y = nn.Dense(4, name="used")(x)
      ...         nn.Dense(4, name="forgotten")(x)
      ...         return y
      >>> x = jax.ShapeDtypeStruct((2, 4), "float32")
      >>> found = nn.check(Model(), jax.random.key(0), x)
      >>> [(f.code, f.variables) for f in found.findings]
      [('LX905', ('forgotten/bias', 'forgotten/kernel'))]
    """
    streams = dict(rngs) if isinstance(rngs, Mapping) else {"params": rngs}
    given, rest = split((streams, args, kwargs), is_array)
    # Shapes alone from here on, so that nothing can be computed by mistake.
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given]
    variables = init_shapes(module, *rest.filled(arrays))
    params = variables.get("params", {})
    others = {name: tree for name, tree in variables.items() if name != "params"}
    wider = _Wider()

    def forward(params: Tree, others: Mapping[str, Tree], arrays: Leaves) -> Leaves:
        streams, args, kwargs = rest.filled(arrays)
        held = {**others, "params": params}
        out = module.apply(held, *args, rngs=streams, mutable=list(others), **kwargs)
        return jax.tree.leaves(out)

    # One trace serves for parameters, keys and dtypes.
    with intercept_methods(wider.see):
        closed = jax.make_jaxpr(forward)(params, others, arrays)
    names = [names_on(path) for path, _ in jax.tree.leaves_with_path(params)]
    reached = _reached(closed, len(names))
    lost = ["/".join(at) for at, is_used in zip(names, reached, strict=True) if not is_used]
    moves = zip(names, reached, _with_gradient(forward, params, others, arrays), strict=True)
    still = ["/".join(at) for at, is_used, is_moved in moves if is_used and not is_moved]
    at = layout(module, rngs, *args, **kwargs)
    found = [*at.findings]
    if lost:
        found.append(_finding("LX905", f"no output depends on {_listed(lost)}.", lost))
    if still:
        found.append(
            _finding(
                "LX906",
                f"outputs depend on {_listed(still)},\nand no gradient comes back: it was cut, or "
                f"passes through what has none.",
                still,
            )
        )
    found += [*_keys_twice(Steps(closed)), *wider.findings()]
    if tx is not None and from_layout(at):
        mixed = mixed_layers(tx, params, at)
        if mixed:
            found.append(
                _finding(
                    "LX909",
                    f"the optimizer takes stacked layers for one parameter: {_listed(mixed)}\n"
                    f"would get other updates, were the layers apart.\n"
                    f"Use nn.per_layer(tx, nn.stackings_of(model, rngs, *args)).",
                    mixed,
                )
            )
    return Checked(tuple(f for f in found if f.code not in quiet.get()))


def _finding(code: str, message: str, variables: list[str]) -> Finding:
    rule = RULES[code]
    return Finding(code, rule.severity, rule.title, message, (), tuple(variables), rule.page)


def _listed(names: list[str]) -> str:
    more = len(names) - 4
    return ", ".join(names[:4]) + (f" and {more} more" if more > 0 else "")


# --- parameters ---------------------------------------------------------------


def _reached(closed: jex.ClosedJaxpr, count: int) -> list[bool]:
    """Tells of the first inputs of a program whether an output depends on them."""
    # What JAX would leave out as dead is what no output depends on.
    program = jax_private.consts_as_inputs(closed)
    _, used = jax_private.prune(program, [True] * len(program.outvars))
    return used[len(closed.consts) :][:count]


def _with_gradient(
    forward: Callable[..., Leaves], params: Tree, others: Tree, arrays: Sequence[object]
) -> list[bool]:
    """Tells of each parameter whether a cotangent of an output comes back to it."""

    def moving(params: Tree, others: Tree, arrays: Tree) -> Leaves:
        return floats(forward(params, others, arrays))

    def pulled(cotangents: Leaves, params: Tree, others: Tree, arrays: Tree) -> Leaves:
        moved, fixed = split(params, is_inexact)
        run = jax.vjp(lambda moved: moving(fixed.filled(moved), others, arrays), moved)[1]
        return run(cotangents)[0]

    cotangents = jax.eval_shape(moving, params, others, arrays)
    closed = jax.make_jaxpr(pulled)(cotangents, params, others, arrays)
    program, first = jax_private.consts_as_inputs(closed), len(closed.consts)

    # One output at a time: which parameter's derivative needs no cotangent cannot be told of all
    # together.
    def comes_back(n: int) -> bool:
        count = len(program.outvars)
        _, used = jax_private.prune(program, [n == k for k in range(count)])
        return any(used[first : first + len(cotangents)])

    numbers = iter(range(len(program.outvars)))
    # What has no derivative, as an integer, is none that was lost.
    return [comes_back(next(numbers)) if is_inexact(x) else True for x in jax.tree.leaves(params)]


# --- keys ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Draw:
    """A place at which random numbers are made of a key."""

    key: object
    place: Place


def _keys_twice(level: Steps) -> Iterator[Finding]:
    first: dict[object, _Draw] = {}
    said = set()
    # A key that comes in is equal to itself alone; what it may be outside is not asked.
    for draw in _draws(level, {n: n for n in level.inputs}, Place()):
        before = first.setdefault(draw.key, draw)
        if before is not draw:
            places = [_where(before.place), _where(draw.place)]
            if tuple(places) not in said:
                said.add(tuple(places))
                modules = list(dict.fromkeys([before.place.module, draw.place.module]))
                yield _finding(
                    "LX907",
                    f"two draws use one key, so their numbers hang together:\n{places[0]}\n"
                    f"{places[1]}\nSplit it, or ask for another with self.make_rng.",
                    modules,
                )


def _where(place: Place) -> str:
    return f"  module {place.module or '/'}, {place.line or 'an unknown line'}"


def _draws(level: Steps, same: dict[int, object], place: Place) -> Iterator[_Draw]:
    """Finds all draws of a level and below.

    Args:
      level: the program.
      same: what is known of its inputs: two values are one where this is equal. It is filled with
        what the steps make: equal steps of equal inputs make one value.
      place: where the program stands.
    """
    for number in level.constants:
        same[number] = ("constant", id(level.constants[number]))

    def of(atom: Atom) -> object:
        if isinstance(atom, Literal):
            return "literal", str(atom.value)
        return same.setdefault(atom, (id(level), atom))

    for step in level.steps:
        eqn, inputs = step.eqn, tuple(map(of, step.inputs))
        here = place.at(step)
        if equations.draws_numbers(eqn):
            yield _Draw(inputs[0], here)
        inner = _inside(step.eqn, inputs)
        for program, given in inner:
            yield from _draws(program, given, here)
        name = None if inner else equations.name_of(eqn)
        if name in equations.SAME_KEY:
            same.update(dict.fromkeys(step.outputs, inputs[0]))
        elif name is not None:
            # By value: two `fold_in` of one key by one number are one key, though two equations.
            text = name, str(equations.computes_by(eqn)), inputs
            same.update({out: (text, k) for k, out in enumerate(step.outputs)})


def _inside(eqn: jex.JaxprEqn, inputs: tuple[object, ...]) -> list[tuple[Steps, dict[int, object]]]:
    """The programs of a loop or a branch, with what is known of their inputs.

    In the body of a loop only what all iterations share is known. Of branches one runs: what two of
    them draw is drawn once.
    """
    scan, turns = equations.as_scan(eqn), equations.as_while(eqn)
    if scan is not None:
        body, shared = Steps(scan.body), inputs[: scan.shared]
    elif turns is not None:
        body = Steps(turns.body)
        shared = inputs[turns.tested : turns.tested + turns.shared]
    else:
        return []
    return [(body, dict(zip(body.inputs, shared, strict=False)))]


# --- dtypes -------------------------------------------------------------------


class _Wider:
    """Hears of every call of a module, and notes those that widen what goes through them."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def see(
        self,
        call: Function,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        context: InterceptorContext,
    ) -> object:
        # A module that was noted while this one ran has widened already: its parents only pass it
        # on.
        before = len(self.found)
        out = call(*args, **kwargs)
        module = context.module
        given, made = _width((args, kwargs)), _width(out)
        # One that was asked for a dtype gives what was asked for; one within is where it began.
        asked = getattr(module, "dtype", None) is not None
        if given is not None and made is not None and not asked and len(self.found) == before:
            if made.itemsize > given.itemsize:
                path = "/".join(module.path)
                told = f"{type(module).__name__} takes {given} and gives {made}"
                self.found.setdefault(path, told)
        return out

    def findings(self) -> Iterator[Finding]:
        for path, told in self.found.items():
            yield _finding(
                "LX908",
                f"module /{path}: {told}, as JAX promotes it with a parameter or a constant.\n"
                f"Set dtype= of the module, or cast.",
                [path],
            )


def _width(tree: Tree) -> jnp.dtype[Any] | None:
    """The widest floating dtype in a tree, None where there is none."""
    found = [
        x.dtype
        for x in jax.tree.leaves(tree)
        if is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return max(found, key=lambda dtype: dtype.itemsize, default=None)
