"""The only file that touches JAX outside its documented interface.

Everything here works on jax 0.10 to 0.12. How an equation is read stands in `equations`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import jax
from jax._src import config as _config
from jax._src import core as _core
from jax._src import effects as _effects
from jax._src import source_info_util, traceback_util
from jax._src.interpreters import batching as _batching
from jax._src.interpreters import partial_eval as _pe
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe
from jax.typing import ArrayLike

if TYPE_CHECKING:
    import jax.extend.core as jex

T = TypeVar("T")

Trace = _core.Trace
"""A level of tracing: one object for each jit, grad or vmap in force, and one outside of all."""

Effect = _effects.Effect
Effects = AbstractSet[Effect]

Hijax = TypeVar("Hijax")
"""An object in an equation that says what the equation does; JAX has no public class for it."""

# JAX names the user's line where a value was made: what this file does in between is none.
source_info_util.register_exclusion(__file__)
# A traceback that JAX shortens shows neither its own files nor ours.
traceback_util.register_exclusion(os.path.dirname(os.path.abspath(__file__)))


_JAX = os.path.dirname(jax.__file__) + os.sep


def is_jax(frame: types.FrameType) -> bool:
    """Whether a line of a traceback is JAX's."""
    return frame.f_code.co_filename.startswith(_JAX)


def shown(entries: list[types.TracebackType]) -> list[types.TracebackType]:
    """Returns the entries of a traceback that a user reads, up to the last that is not JAX's.

    JAX hides its machinery and shows its numpy: what a call of that did is in the message.
    """
    kept = [entry for entry in entries if traceback_util.include_frame(entry.tb_frame)]
    last = max((i for i, entry in enumerate(kept) if not is_jax(entry.tb_frame)), default=-1)
    return kept[: last + 1] or kept


def shorten(error: Exception) -> None:
    """Leaves out lines of an error's traceback as `JAX_TRACEBACK_FILTERING` says."""
    try:
        # Raised once more: JAX shortens what leaves a function of its own kind.
        _raised(error)
    except Exception:
        if hasattr(error, "__notes__"):  # calls in calls say it once
            error.__notes__ = list(dict.fromkeys(error.__notes__))


@traceback_util.api_boundary
def _raised(error: Exception) -> None:
    raise error


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


def element(stacked: ArrayLike) -> jax.core.AbstractValue:
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
    jaxpr: jex.Jaxpr,
    *,
    invars: Sequence[jex.Var],
    outvars: Sequence[jex.Var | jex.Literal],
    eqns: Sequence[jex.JaxprEqn],
) -> jex.Jaxpr:
    """Returns the program with other inputs, outputs and equations."""
    return jaxpr.replace(
        invars=list(invars),
        outvars=list(outvars),
        eqns=list(eqns),
        debug_info=jaxpr.debug_info._replace(arg_names=None, result_paths=None),
    )


def evaluate(jaxpr: jex.Jaxpr, args: Sequence[object]) -> list[jax.Array]:
    """Runs a program without constvars, equation by equation."""
    found = jax.core.eval_jaxpr(jaxpr, (), *args)
    # An output that is a literal comes back as NumPy knows it.
    return [x if isinstance(x, jax.Array) else jax.numpy.asarray(x) for x in found]


def as_call(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
    """Returns the equation of a call of a jitted function that does what ``eqn`` does."""

    def run(*inputs: jax.Array) -> object:
        with eqn.ctx.manager:
            return eqn.primitive.bind(*inputs, **eqn.params)

    # The context of an equation is none of its parameters: on which mesh, on which processor.
    (call,) = jax.make_jaxpr(jax.jit(run))(*[atom.aval for atom in eqn.invars]).jaxpr.eqns
    return call


def run_equation(eqn: jex.JaxprEqn, inputs: Sequence[object]) -> list[Any]:
    """Runs one equation; where something is traced, it becomes part of that."""
    with eqn.ctx.manager:
        # Some primitives are bound to functions where their equations have programs.
        found = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(found) if eqn.primitive.multiple_results else [found]


def lines_of(eqn: jex.JaxprEqn) -> Iterator[tuple[str, int]]:
    """Yields file and line of the calls that wrote an equation, innermost first; none of JAX's."""
    for frame in source_info_util.user_frames(eqn.source_info.traceback):
        yield frame.file_name, frame.start_line


def is_symbolic(size: object) -> bool:
    """Tells whether a size is a symbol, which an exported program is given when it runs."""
    return _core.is_dim(size) and not _core.is_constant_dim(size)


def is_variable(atom: object) -> TypeGuard[jex.Var]:
    """Tells whether an operand of an equation is a variable and no literal."""
    return isinstance(atom, _core.Var)


# From 0.11 on one class is both, and 0.12 has the old name no more.
_Open: Any = _core.Jaxpr
_Closed: Any = getattr(_core, "ClosedJaxpr", _Open)


def as_program(value: object) -> jex.ClosedJaxpr | None:
    """Returns a parameter of an equation as the program that it is, None if it is none."""
    if isinstance(value, _Closed):
        return value
    return _Closed(value, ()) if isinstance(value, _Open) else None


def with_program(
    value: object, change: Callable[[jex.Jaxpr], jex.Jaxpr]
) -> jex.Jaxpr | jex.ClosedJaxpr | None:
    """Returns a parameter of an equation, if it is a program, as what ``change`` makes of that."""
    if isinstance(value, _Open):
        return change(value)
    return value.replace(jaxpr=change(value.jaxpr)) if isinstance(value, _Closed) else None


def with_params(prim: Hijax, params: Mapping[str, object], effects: Iterable[Effect]) -> Hijax:
    """Returns a hijax primitive with other parameters, which are its attributes as well."""
    made = copy.copy(prim)
    made.__dict__.update(params, params=dict(params), effects=frozenset(effects))
    return made


def written(effects: Effects) -> set[jex.Var]:
    """Returns the references that effects are on."""
    return {e.input for e in effects if isinstance(e, _effects.JaxprInputEffect)}


def among(effects: Effects, parts: Sequence[jex.Jaxpr | jex.JaxprEqn] = ()) -> set[Effect]:
    """Returns those of some effects that ``parts`` have, or that only say what values depend on."""
    # Of references and of named axes: these say what values depend on, and nothing is done there.
    plain = (_effects.JaxprInputEffect, _core.NamedAxisEffect, _core.InternalMutableArrayEffect)
    return {e for e in effects if isinstance(e, plain) or any(e in part.effects for part in parts)}


def register_constant(primitive: _core.Primitive, value: Callable[..., ArrayLike]) -> None:
    """Lowers ``primitive``, which has no inputs, to the constant ``value(**params)``."""

    def constant(**params: object) -> jax.Array:
        return jax.numpy.asarray(value(**params))

    mlir.register_lowering(primitive, mlir.lower_fun(constant, multiple_results=False))


def identity(name: str) -> _core.Primitive:
    """Makes a primitive that returns its input: its parameters mark a place in a program.

    The marked value is differentiated, batched and compiled as if it bore no mark.
    """
    mark = _core.Primitive(name)

    def jvp(
        primals: Sequence[object], tangents: Sequence[object], **params: object
    ) -> tuple[object, ...]:
        return mark.bind(*primals, **params), *tangents

    def batch(
        args: Sequence[object], axes: Sequence[object], **params: object
    ) -> tuple[object, ...]:
        return mark.bind(*args, **params), *axes

    mark.def_impl(lambda x, **_: x)
    mark.def_abstract_eval(lambda aval, **_: aval)
    ad.primitive_jvps[mark] = jvp
    batching.primitive_batchers[mark] = batch
    mlir.register_lowering(mark, lambda ctx, x, **_: [x])
    return mark


def both_ways(name: str) -> _core.Primitive:
    """Makes a primitive that returns its first input: it marks a value, and the gradient of it.

    Its parameter ``kind`` is ``"value"`` where it was put, and ``"gradient"`` in a backward pass.
    The other inputs are there to be seen with the first; no derivative is taken by them.
    """
    mark = identity(name)
    mark.def_impl(lambda x, *_, **__: x)
    mark.def_abstract_eval(lambda aval, *_, **__: aval)
    mlir.register_lowering(mark, lambda ctx, x, *_, **__: [x])

    def jvp(
        primals: Sequence[object], tangents: Sequence[object], *, kind: str, **params: object
    ) -> tuple[object, object]:
        tangent = tangents[0]
        if not isinstance(tangent, ad.Zero):
            tangent = mark.bind(tangent, kind="tangent", **params)
        return mark.bind(*primals, kind=kind, **params), tangent

    def transpose(ct: Any, _: object, *, kind: str, **params: object) -> list[object]:
        back = "gradient" if kind == "tangent" else kind
        return [ct if isinstance(ct, ad.Zero) else mark.bind(ct, kind=back, **params)]

    def batch(
        args: Sequence[object], axes: Sequence[object], **params: object
    ) -> tuple[object, object]:
        return mark.bind(*args, **params), axes[0]

    ad.primitive_jvps[mark] = jvp
    ad.primitive_transposes[mark] = transpose
    batching.primitive_batchers[mark] = batch
    return mark


def choice(name: str) -> _core.Primitive:
    """Makes a primitive of two values that whoever rewrites the program chooses from.

    The second one is taken where nobody did.
    """
    both = _core.Primitive(name)

    def jvp(
        primals: Sequence[object], tangents: Sequence[object], **params: object
    ) -> tuple[object, object]:
        return both.bind(*primals, **params), both.bind(
            *map(ad.instantiate_zeros, tangents), **params
        )

    def transpose(ct: Any, first: object, again: object, **params: object) -> tuple[object, object]:
        # Of the one that is chosen later the cotangent is this, of the other one it is zero.
        zero = jax.tree.map(jax.numpy.zeros_like, ad.instantiate_zeros(ct))
        return both.bind(ct, zero, **params), both.bind(zero, ct, **params)

    def batch(args: Sequence[Any], axes: Sequence[Any], **params: object) -> tuple[object, int]:
        size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
        moved = [
            jax.numpy.broadcast_to(x, (size, *x.shape))
            if axis is None
            else jax.numpy.moveaxis(x, axis, 0)
            for x, axis in zip(args, axes, strict=True)
        ]
        return both.bind(*moved, **params), 0

    both.def_impl(lambda first, again, **_: again)
    both.def_abstract_eval(lambda first, again, **_: again)
    ad.primitive_jvps[both] = jvp
    ad.primitive_transposes[both] = transpose
    batching.primitive_batchers[both] = batch
    mlir.register_lowering(both, lambda ctx, first, again, **_: [again])
    return both


_whole_p = _core.Primitive("liftax_whole")
_whole_p.multiple_results = True
_whole_p.def_abstract_eval(lambda *avals, **_: avals)


Change = Callable[[list[jax.Array]], list[jax.Array]]
"""Of the values of all examples, such values: see `whole`."""

Map = _batching.AxisData
"""What `jax.vmap` knows of one call of it; compared by identity."""


def current_map() -> Map:
    """Returns what tells the innermost `jax.vmap` whose body is traced from any other."""
    found: Map = current_trace().axis_data  # type: ignore[attr-defined]
    return found


def whole(change: Change, values: Sequence[jax.Array], axis: int, of: Map) -> list[jax.Array]:
    """Changes values in the body of a `jax.vmap` as they are outside of it.

    Args:
      change: takes the values of all examples along ``axis``, and returns such values.
      values: of one example.
      axis: the axis of the examples.
      of: the map, as `current_map` returned it in its body. Maps inside it are passed through:
        their examples share the values.

    Returns:
      what ``change`` returned, of one example. It differs from example to example for JAX, also
      where the values given did not.
    """
    found: list[jax.Array] = _whole_p.bind(*values, change=change, axis=axis, of=of)
    return found


def _whole(
    data: Map,
    values: Sequence[jax.Array],
    dims: Sequence[int | None],
    *,
    change: Change,
    axis: int,
    of: Map,
) -> tuple[Sequence[jax.Array], Sequence[int | None]]:
    if data is not of:
        if any(dim is not None for dim in dims):
            return values, dims  # not shared after all, as the map inside will say
        found = whole(change, values, axis, of)
        return found, [None] * len(found)

    def moved(x: jax.Array, dim: int | None) -> jax.Array:
        if dim is not None:
            return x if dim == axis % x.ndim else jax.numpy.moveaxis(x, dim, axis)
        one = jax.numpy.expand_dims(x, axis)
        shape = list(one.shape)
        shape[axis] = data.size
        return jax.numpy.broadcast_to(one, shape)

    changed = change(list(map(moved, values, dims)))
    return changed, [axis % x.ndim for x in changed]


batching.fancy_primitive_batchers[_whole_p] = _whole


def current_trace() -> Trace:
    """Returns the level of tracing in force: one object per jit, grad, vmap or eager."""
    return _core.trace_ctx.trace


Primitive = _core.Primitive
"""The public `jax.extend.core.Primitive`, without importing all of `jax.extend`."""

EAGER = _core.eval_trace
"""The level of tracing outside every transformation."""


Seen = Callable[[_core.Primitive, Sequence[Any], Mapping[str, Any], Sequence[Any]], None]
"""Is told what was run: primitive, inputs, parameters and outputs."""


class _Watched(type(EAGER)):  # type: ignore[misc]
    """Runs what is not traced, and tells of it."""

    __slots__ = ("see",)

    def __init__(self, see: Seen) -> None:
        super().__init__()
        self.see = see

    def process_primitive(
        self, primitive: _core.Primitive, tracers: Sequence[object], params: dict[str, Any], /
    ) -> Any:
        if "donated_invars" in params:  # who is told is to find the inputs there
            params = {**params, "donated_invars": (False,) * len(params["donated_invars"])}
        with _core.set_current_trace(EAGER):
            found = EAGER.process_primitive(primitive, tracers, params)
            outputs = found if primitive.multiple_results else [found]
            self.see(primitive, tracers, params, outputs)
        return found


def watched(see: Seen) -> contextlib.AbstractContextManager[None]:
    """A context in which ``see`` is told of all that is run outside of traces, call by call."""
    return _core.set_current_trace(_Watched(see))


class _Units(_pe.DynamicJaxprTrace):
    """Writes a program down in the units in which JAX would run it, were it not traced.

    What is jitted to be inlined, as most of `jax.numpy` is, goes into a program as its
    equations, but is run as one compiled program, which rounds otherwise.
    """

    __slots__ = ()

    def process_primitive(
        self,
        primitive: _core.Primitive,
        tracers: Sequence[object],
        params: dict[str, Any],
        /,
    ) -> Any:
        if not params.get("inline"):
            return super().process_primitive(primitive, tracers, params)
        source = source_info_util.current()
        given = [self.to_jaxpr_tracer(x, source) for x in tracers]
        return self.default_process_primitive(primitive, given, params, source)


class _Run(_Units):
    """Writes a program down that is run in place of the function that was traced."""

    __slots__ = ()

    # What is run is not differentiated: a rule for that is nothing but its function.

    def process_custom_jvp_call(
        self, prim: Any, fun: Any, jvp: Any, tracers: Sequence[object], /, **options: Any
    ) -> Any:
        if not is_run(self):
            return super().process_custom_jvp_call(prim, fun, jvp, tracers, **options)
        with _core.set_current_trace(self):
            return fun.call_wrapped(*tracers)

    def process_custom_vjp_call(
        self, prim: Any, fun: Any, fwd: Any, bwd: Any, tracers: Sequence[object], /, **options: Any
    ) -> Any:
        if not is_run(self):
            return super().process_custom_vjp_call(prim, fun, fwd, bwd, tracers, **options)
        with _core.set_current_trace(self):
            return fun.call_wrapped(*tracers)


def _traced_by(kind: type, fn: Callable[..., T]) -> Callable[..., T]:
    """Returns ``fn`` so that JAX traces it by a trace of class ``kind``.

    `jax.make_jaxpr` makes the trace, and cannot be told of which class. To make one here would
    mean to repeat all that it does around it (the frame, the constants, the names for messages,
    the check for leaks), which is written anew in every release; to evaluate the finished program
    instead would come too late, as its equations are inlined by then. Another class for the
    object that is there leans on one thing: that the subclass adds no slots, which Python checks.
    """

    @functools.wraps(fn)
    def run(*args: object) -> T:
        current_trace().__class__ = kind
        return fn(*args)

    return run


def in_units(fn: Callable[..., T]) -> Callable[..., T]:
    """Returns ``fn`` for `jax.make_jaxpr`, as the units in which JAX would run it."""
    # Linen makes what stands before a loop by partial evaluation: up to 0.10 that ran each call
    # that is known as JAX came to it, in its unit; from 0.11 on JAX writes all of it down first,
    # inlined. Nothing that can be asked of a release says which, so its number does.
    return _traced_by(_Units, fn) if jax.__version_info__ < (0, 11) else fn


def hoists() -> bool:
    """Tells whether JAX takes constants out of a loop that it evaluates as far as it is known."""
    return jax.__version_info__ < (0, 11)


def known(
    program: jex.Jaxpr, inputs: Sequence[object], avals: Sequence[jax.core.AbstractValue]
) -> list[Any]:
    """Runs a program without constvars as far as its inputs are known.

    Args:
      program: the program.
      inputs: its first inputs.
      avals: the shapes and dtypes of the others, which are not known.

    Returns:
      the outputs, None for those that are not known.
    """
    from jax.extend import linear_util as lu

    def run(*args: object) -> list[object]:
        return list(jax.core.eval_jaxpr(program, (), *args))

    values = [pe.PartialVal.known(x) for x in inputs] + [pe.PartialVal.unknown(a) for a in avals]
    debug_info = program.debug_info._replace(arg_names=None, result_paths=None)
    _, found, _ = pe.trace_to_jaxpr_nounits(lu.wrap_init(run, debug_info=debug_info), values)
    return [value.get_known() for value in found]


def to_run(fn: Callable[..., T]) -> Callable[..., T]:
    """Returns ``fn`` for `jax.make_jaxpr`, to run the program where ``fn`` would be run."""
    return _traced_by(_Run, fn)


def is_run(trace: Trace) -> bool:
    """Tells whether what is computed at a level of tracing is run, now or in its place."""
    level: Trace | None = trace
    while type(level) is _Run:
        level = level.parent_trace
    return isinstance(level, type(EAGER))


def is_compiled() -> bool:
    """Tells whether what is computed now becomes part of a compiled program."""
    level: Trace | None = current_trace()
    while level is not None:
        if isinstance(level, _pe.DynamicJaxprTrace) and type(level) is not _Run:
            return True
        level = getattr(level, "parent_trace", None)
    return False


def jit_is_disabled() -> bool:
    """Tells whether `jax.disable_jit` is in force, in this thread."""
    return bool(_config.disable_jit.value)


def now() -> contextlib.AbstractContextManager[None]:
    """A context in which nothing is traced."""
    return _core.set_current_trace(EAGER)


# Only speed hangs on it: where JAX has no such name, any traced value will do.
_STAGED = getattr(pe, "DynamicJaxprTracer", jax.core.Tracer)


def is_staged(value: object) -> bool:
    """Tells whether ``value`` stands for a value of a program that is being written down."""
    return isinstance(value, _STAGED) and type(value._trace) is not _Run


def leaks(value: object, trace: Trace) -> bool:
    """Tells whether ``value`` is traced at a level inside ``trace``, so dies before it."""
    if not isinstance(value, jax.core.Tracer):
        return False
    level: Trace | None = trace
    while level is not None:
        if value._trace is level:
            return False
        level = getattr(level, "parent_trace", None)
    return True
