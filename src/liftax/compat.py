"""The only file that touches JAX outside its documented interface.

Everything here works on jax 0.10 to 0.12. How an equation is read stands in `equations`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax._src import core as _core
from jax._src import effects as _effects
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

if TYPE_CHECKING:
    import jax.extend.core as jex


def prune(jaxpr: jex.Jaxpr, used_outputs: Sequence[bool]) -> tuple[jex.Jaxpr, list[bool]]:
    """Cuts a jaxpr without constvars down to what ``used_outputs`` need.

    Args:
      jaxpr: the program; loops and calls in it are cut down as well.
      used_outputs: one bool per output.

    Returns:
      the smaller program and one bool per input: whether it is still an input.
    """
    small, used_inputs = pe.dce_jaxpr(jaxpr, list(used_outputs))
    return small, list(used_inputs)


def element(stacked: Any) -> Any:
    """Returns the abstract value of one slice along the first axis, as `jax.lax.scan` has it.

    Weak type, varying axes and sharding stay, so it stands for the slice wherever that is used.
    """
    aval = jax.typeof(stacked)
    return _core.mapped_aval(aval.shape[0], 0, aval)


def consts_as_inputs(closed: jex.ClosedJaxpr) -> jex.Jaxpr:
    """Returns the program with its constants as the first inputs."""
    jaxpr = closed.jaxpr
    if not jaxpr.constvars:
        return jaxpr
    # Argument names in the debug info would no longer line up with the inputs.
    return jaxpr.replace(
        constvars=(),
        invars=[*jaxpr.constvars, *jaxpr.invars],
        debug_info=jaxpr.debug_info._replace(arg_names=None),
    )


def rewire(
    jaxpr: jex.Jaxpr, *, invars: Sequence[Any], outvars: Sequence[Any], eqns: Sequence[Any]
) -> jex.Jaxpr:
    """Returns the program with other inputs, outputs and equations."""
    return jaxpr.replace(
        invars=list(invars),
        outvars=list(outvars),
        eqns=list(eqns),
        debug_info=jaxpr.debug_info._replace(arg_names=None, result_paths=None),
    )


def evaluate(jaxpr: jex.Jaxpr, args: Sequence[Any]) -> list[Any]:
    """Runs a program without constvars, equation by equation."""
    found = jax.core.eval_jaxpr(jaxpr, (), *args)
    # An output that is a literal comes back as NumPy knows it.
    return [x if isinstance(x, jax.Array) else jax.numpy.asarray(x) for x in found]


def evaluate_apart(jaxpr: jex.Jaxpr, args: Sequence[Any], zero: Any) -> list[Any]:
    """Runs a program inside `jax.jit` with its equations kept apart.

    The compiler fuses operations, contracts a product and a sum into one rounding
    and folds constants. Between two equations the bits go through an exclusive or
    with ``zero``, of which it knows nothing, so the numbers are those of `evaluate`.

    Args:
      zero: a traced uint32 scalar that is 0 at run time.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))

    for eqn in jaxpr.eqns:
        # A constant is an input where an equation is run by itself: hide its value,
        # which the compiler would fold (a division becomes a product).
        given = {v: values[v] for v in eqn.invars if not isinstance(v, _core.Literal)}
        invars: list[Any] = []
        for atom in eqn.invars:
            if isinstance(atom, _core.Literal):
                value, atom = _apart(atom.val, zero), _core.Var(atom.aval)
                given[atom] = value
            invars.append(atom)
        one = rewire(
            jaxpr, invars=list(given), outvars=eqn.outvars, eqns=[eqn.replace(invars=invars)]
        )
        found = evaluate(one, list(given.values()))
        found = [_apart(value, zero) for value in found]
        values.update(zip(eqn.outvars, found, strict=True))
    return [v.val if isinstance(v, _core.Literal) else values[v] for v in jaxpr.outvars]


def is_symbolic(size: Any) -> bool:
    """Tells whether a size is a symbol, which an exported program is given when it runs."""
    return _core.is_dim(size) and not _core.is_constant_dim(size)


def is_variable(atom: Any) -> bool:
    """Tells whether an operand of an equation is a variable and no literal."""
    return isinstance(atom, _core.Var)


# From 0.11 on one class is both, and 0.12 has the old name no more.
_Open: Any = _core.Jaxpr
_Closed: Any = getattr(_core, "ClosedJaxpr", _Open)


def as_program(value: Any) -> jex.ClosedJaxpr | None:
    """Returns a parameter of an equation as the program that it is, None if it is none."""
    if isinstance(value, _Closed):
        return value
    return _Closed(value, ()) if isinstance(value, _Open) else None


def quiet(jaxpr: jex.Jaxpr, *, inner: bool = False) -> jex.Jaxpr:
    """Returns a program that computes the same outputs and does nothing besides.

    Prints, callbacks and checks go; so do writes to references that no output reads. What
    an output needs stays, and counts as pure.

    Args:
      inner: whether it is called by another program. Then references that it writes may be
        read there, and what an output needs keeps its effects: its order is in them.
    """
    if not jaxpr.effects:
        return jaxpr
    live = {atom for atom in jaxpr.outvars if is_variable(atom)}
    if inner:
        live |= _written(jaxpr.effects)
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if live.isdisjoint(eqn.outvars) and live.isdisjoint(_written(eqn.effects)):
            continue
        live |= {atom for atom in eqn.invars if is_variable(atom)}
        if eqn.effects:
            called: list[Any] = []
            params = {name: _quieted(value, called) for name, value in eqn.params.items()}
            needed = [*called] if called or not inner else [eqn]
            eqn = eqn.replace(params=params, effects=_among(eqn.effects, needed))
        eqns.append(eqn)
    return jaxpr.replace(eqns=eqns[::-1], effects=_among(jaxpr.effects, eqns))


def _quieted(value: Any, called: list[Any]) -> Any:
    """Returns a parameter of an equation with the programs in it quiet; lists those."""
    if isinstance(value, (tuple, list)):
        parts = [_quieted(part, called) for part in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    if isinstance(value, _Open):
        value = quiet(value, inner=True)
    elif isinstance(value, _Closed):
        value = value.replace(jaxpr=quiet(value.jaxpr, inner=True))
    else:
        return value
    called.append(value)
    return value


def _written(effects: Any) -> set[Any]:
    """Returns the references that effects are on."""
    return {e.input for e in effects if isinstance(e, _effects.JaxprInputEffect)}


def _among(effects: Any, parts: Sequence[Any]) -> Any:
    """Returns those of some effects that ``parts`` have, or that only say what values depend on."""
    plain = (_effects.JaxprInputEffect, _core.NamedAxisEffect, _core.InternalMutableArrayEffect)
    return {e for e in effects if isinstance(e, plain) or any(e in part.effects for part in parts)}


def acts(eqn: Any) -> bool:
    """Tells whether an equation does something besides computing and using references."""
    return bool(eqn.effects - _among(eqn.effects, ()))


def calmed(eqn: Any) -> Any:
    """Returns an equation as one that need not be run if nothing needs its outputs."""
    return eqn.replace(effects=_among(eqn.effects, ()))


def literals_as_inputs(jaxpr: jex.Jaxpr) -> tuple[jex.Jaxpr, list[Any]]:
    """Returns the program with its literals as further inputs, and their values.

    Weakly typed ones stay: as an input they would be like any other number.
    """
    invars, values, eqns = list(jaxpr.invars), [], []
    for eqn in jaxpr.eqns:
        atoms: list[Any] = []
        for atom in eqn.invars:
            if isinstance(atom, _core.Literal) and not getattr(atom.aval, "weak_type", False):
                values.append(atom.val)
                atom = _core.Var(atom.aval)
                invars.append(atom)
            atoms.append(atom)
        eqns.append(eqn.replace(invars=atoms))
    return rewire(jaxpr, invars=invars, outvars=jaxpr.outvars, eqns=eqns), values


def _apart(value: Any, zero: Any) -> Any:
    dtype = jax.typeof(value).dtype
    if jax.numpy.issubdtype(dtype, jax.numpy.complexfloating):
        return jax.lax.complex(_apart(jax.lax.real(value), zero), _apart(jax.lax.imag(value), zero))
    if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
        return value
    bits = jax.numpy.dtype(f"uint{8 * dtype.itemsize}")
    hidden = jax.lax.bitcast_convert_type(value, bits) ^ jax.lax.convert_element_type(zero, bits)
    return jax.lax.bitcast_convert_type(hidden, dtype)


def register_constant(primitive: Any, value: Any) -> None:
    """Lowers ``primitive``, which has no inputs, to the constant ``value(**params)``."""

    def constant(**params: Any) -> Any:
        return jax.numpy.asarray(value(**params))

    mlir.register_lowering(primitive, mlir.lower_fun(constant, multiple_results=False))


def identity(name: str) -> _core.Primitive:
    """Makes a primitive that returns its input: its parameters mark a place in a program.

    The marked value is differentiated, batched and compiled as if it bore no mark.
    """
    mark = _core.Primitive(name)

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        return mark.bind(*primals, **params), *tangents

    def batch(args: Any, axes: Any, **params: Any) -> Any:
        return mark.bind(*args, **params), *axes

    mark.def_impl(lambda x, **_: x)
    mark.def_abstract_eval(lambda aval, **_: aval)
    ad.primitive_jvps[mark] = jvp
    batching.primitive_batchers[mark] = batch
    mlir.register_lowering(mark, lambda ctx, x, **_: [x])
    return mark


def current_trace() -> Any:
    """Returns the level of tracing in force: one object per jit, grad, vmap or eager."""
    return _core.trace_ctx.trace


_numbers = itertools.count()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Settings:
    """JAX's settings on which a trace depends, such as enable_x64, by a number."""

    number: int


@jax.jit
def settings() -> Settings:
    """Returns what equals another call's under equal settings."""
    return Settings(next(_numbers))  # traced, and so counted, once for each


Primitive = _core.Primitive
"""The public `jax.extend.core.Primitive`, without importing all of `jax.extend`."""

EAGER = _core.eval_trace
"""The level of tracing outside every transformation."""


# Only speed hangs on it: where JAX has no such name, any traced value will do.
_STAGED = getattr(pe, "DynamicJaxprTracer", jax.core.Tracer)


def is_staged(value: Any) -> bool:
    """Tells whether ``value`` stands for a value of a program that is being written down."""
    return isinstance(value, _STAGED)


def leaks(value: Any, trace: Any) -> bool:
    """Tells whether ``value`` is traced at a level inside ``trace``, so dies before it."""
    if not isinstance(value, jax.core.Tracer):
        return False
    while trace is not None:
        if value._trace is trace:
            return False
        trace = getattr(trace, "parent_trace", None)
    return True
