"""Reading the equations of a traced program: the one place that knows what JAX calls things.

Vocabulary
  program   a jaxpr with its constants; what an equation calls, a loop's body too
  hijax     primitives that share one name and are told apart by an object in the
            equation: JAX moves ``scan``, ``checkpoint`` and ``checkpoint_name`` there

Releases differ in how they write a loop down: up to 0.10 its equation counts constants
and carries, from 0.11 it holds the inputs' tree, and a program is one object with its
constants.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax

from . import jax_private
from .pytrees import is_inexact

if TYPE_CHECKING:
    import jax.extend.core as jex

T = TypeVar("T")

_LOOPS = frozenset({"scan", "Scan3", "while", "cond"})
_REMATS = frozenset({"checkpoint", "remat", "remat2"})
_JITS = frozenset({"jit", "pjit", "closed_call", "core_call"})
_CALLS = _REMATS | _JITS | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
REMADE = "rematted_computation"
"""JAX's name around what a backward pass computes again."""

_RULES = frozenset({"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees"})
NAMING = frozenset({"name", "CheckpointName", "CheckpointNameFwd"})
"""What `jax.ad_checkpoint.checkpoint_name` is called."""

_PRODUCTS = frozenset({"dot_general", "ragged_dot", "ragged_dot_general"})
_KERNELS = frozenset({"conv_general_dilated", "pallas_call", "ffi_call", "custom_partitioning"})
_SUMS = _PRODUCTS | {
    *("conv_general_dilated", "reduce_sum", "reduce_prod", "reduce_window_sum"),
    *("cumsum", "cumprod", "cumlogsumexp", "scatter-add", "scatter_add", "scatter_mul"),
}
_KEYS = frozenset({"random_fold_in", "random_split", "random_seed"})
_NUMBERS = frozenset({"random_bits", "random_gamma"})
_DRAWS = _KEYS - {"random_seed"} | _NUMBERS | {"threefry2x32"}
SAME_KEY = frozenset({"random_wrap", "random_unwrap", "reshape", "squeeze", "convert_element_type"})
"""What hands a key on in another form."""


class Scan(NamedTuple):
    """What the equation of a `jax.lax.scan` says.

    Attributes:
      body: one iteration, a program of the shared inputs, the carry and a slice.
      length: the number of iterations.
      unroll: how many are written out in one turn of the compiled loop.
      shared: how many of its inputs are the same in each iteration; they come first.
      carried: how many are the carry; they come next.
      reverse: whether the last slice comes first.
    """

    body: jex.ClosedJaxpr
    length: int
    unroll: int
    shared: int
    carried: int
    reverse: bool


class While(NamedTuple):
    """What the equation of a `jax.lax.while_loop` says.

    Attributes:
      condition: whether to go on, a program of its shared inputs and the carry.
      body: one iteration, a program of its shared inputs and the carry.
      tested: how many inputs only the condition has; they come first.
      shared: how many only the body has; they come next, and then the carry.
    """

    condition: jex.ClosedJaxpr
    body: jex.ClosedJaxpr
    tested: int
    shared: int


def name_of(eqn: jex.JaxprEqn) -> str:
    """Returns the name of what an equation does."""
    prim = eqn.params.get("_prim")
    # A hijax primitive says in an object what it does; its own name is the same for all.
    return eqn.primitive.name if prim is None else type(prim).__name__


def params_of(eqn: jex.JaxprEqn) -> Mapping[str, Any]:
    """Returns the parameters of what an equation does."""
    prim = eqn.params.get("_prim")
    return eqn.params if prim is None else getattr(prim, "params", {})


def is_loop(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation runs programs as often, or as far, as values say."""
    return name_of(eqn) in _LOOPS


def is_remat(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation's program runs equation by equation, where nothing is compiled."""
    return eqn.primitive.name in _REMATS


def computes_by(eqn: jex.JaxprEqn) -> list[tuple[str, object]]:
    """Returns what the numbers of an equation depend on besides its inputs, in order.

    Its rules for derivatives are left out: they are new objects in each trace.
    """
    return [(name, value) for name, value in sorted(eqn.params.items()) if name not in _RULES]


def as_scan(eqn: jex.JaxprEqn) -> Scan | None:
    """Returns what a scan's equation says; None for another one.

    A scan whose carry lies in references counts as another: it has no body of values.
    """
    if eqn.primitive.name != "scan":
        return None
    params = eqn.params
    # Since 0.11 the inputs are one tree of three parts; before, two of them were counted.
    if "ft_in" in params:
        shared, carried, _ = map(len, params["ft_in"].unpack())
    else:
        shared, carried = params["num_consts"], params["num_carry"]
    length = params["length"]
    # 0 stands for all of it, and more than there is for that too.
    unroll = min(int(params["unroll"]) or length, length)
    return Scan(params["jaxpr"], length, unroll, shared, carried, bool(params["reverse"]))


def as_while(eqn: jex.JaxprEqn) -> While | None:
    """Returns what the equation of a while loop says; None for another one."""
    if eqn.primitive.name != "while":
        return None
    p = eqn.params
    return While(p["cond_jaxpr"], p["body_jaxpr"], p["cond_nconsts"], p["body_nconsts"])


class Remat(NamedTuple):
    """What the equation of a `jax.checkpoint` says.

    Attributes:
      program: what it computes.
      policy: what of that is kept, as `jax.checkpoint` takes it.
      prevent_cse: whether it keeps the compiler from finding the same work in the forward pass.
      differentiated: whether it is part of a derivative already.
    """

    program: jex.ClosedJaxpr
    policy: Callable[..., Any] | None
    prevent_cse: bool
    differentiated: bool


def as_remat(eqn: jex.JaxprEqn) -> Remat | None:
    """Returns what the equation of a checkpoint says; None for another one."""
    if not is_remat(eqn):
        return None
    (program,), p = programs_of(eqn), eqn.params
    # A tuple where each input has its own; any of them is reason enough.
    prevent = p["prevent_cse"]
    return Remat(
        program,
        p["policy"],
        any(prevent) if isinstance(prevent, tuple) else bool(prevent),
        bool(p["differentiated"]),
    )


def branches_of(eqn: jex.JaxprEqn) -> Sequence[jex.ClosedJaxpr]:
    """Returns the programs of which an equation's first input chooses one; none for another."""
    return eqn.params["branches"] if eqn.primitive.name == "cond" else ()


def called_by(eqn: jex.JaxprEqn, *, plain: bool = False) -> jex.ClosedJaxpr | None:
    """Returns the program that an equation runs once, on its inputs and for its outputs.

    Args:
      eqn: the equation.
      plain: whether it must do nothing besides: no rule for derivatives, nothing computed again.
    """
    if eqn.primitive.name not in (_JITS if plain else _CALLS):
        return None
    programs = list(programs_of(eqn))
    # With several, as of a kernel with another for other machines, nobody can tell which runs.
    return programs[0] if len(programs) == 1 else None


_TRANSFORMED = re.compile(r"\w+\(([^()]*)\)")  # jvp(Dense_0)


def place_of(eqn: jex.JaxprEqn) -> str:
    """Returns the names of the scopes in which an equation was traced, with slashes between."""
    text = str(eqn.source_info.name_stack)
    while (inner := _TRANSFORMED.sub(r"\1", text)) != text:
        text = inner
    return text


def is_backward(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation was made by a derivative in reverse."""
    return "transpose(" in str(eqn.source_info.name_stack)


def is_again(eqn: jex.JaxprEqn) -> bool:
    """Tells whether a backward pass computes again what a forward pass did."""
    return REMADE in str(eqn.source_info.name_stack)


def is_handed_on(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation returns its input; JAX marks so what a checkpoint keeps."""
    params = eqn.params
    exact = "exponent_bits" in params and params["exponent_bits"] >= 8
    return exact and eqn.primitive.name == "reduce_precision" and len(eqn.invars) == 1


def is_reshape(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation gives the same numbers in the same order another shape."""
    return eqn.primitive.name in ("reshape", "squeeze", "expand_dims") and len(eqn.invars) == 1


def is_update(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation is a `jax.lax.dynamic_update_slice`."""
    return eqn.primitive.name == "dynamic_update_slice"


def programs_of(eqn: jex.JaxprEqn) -> Iterator[jex.ClosedJaxpr]:
    """Yields the programs that an equation calls."""
    for value in params_of(eqn).values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            program = jax_private.as_program(part)
            if program is not None:
                yield program


def all_of(program: jex.Jaxpr) -> Iterator[jex.JaxprEqn]:
    """Yields the equations of a program and of all that it calls, as often as they stand there."""
    for eqn in program.eqns:
        yield eqn
        for inner in programs_of(eqn):
            yield from all_of(inner.jaxpr)


def variables(atoms: Iterable[jex.Var | jex.Literal]) -> Iterator[jex.Var]:
    """Yields those of the inputs or outputs of equations that are no numbers."""
    return (atom for atom in atoms if jax_private.is_variable(atom))


def value_of(values: Mapping[jex.Var, T], atom: jex.Var | jex.Literal) -> T:
    """Returns the value of an input or output of an equation.

    Args:
      values: those of the variables; a number stands in the program itself.
    """
    return values[atom] if jax_private.is_variable(atom) else atom.val  # type: ignore[union-attr]


def draws(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation makes random numbers, or another key, of a key."""
    return eqn.primitive.name in _DRAWS


def draws_numbers(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation makes random numbers of its first input, a key."""
    return eqn.primitive.name in _NUMBERS


def with_programs(eqn: jex.JaxprEqn, change: Callable[[jex.Jaxpr], jex.Jaxpr]) -> jex.JaxprEqn:
    """Returns an equation with the programs that it calls changed."""
    return _with_params(eqn, _changed_params(eqn, change), eqn.effects)


def _changed_params(
    eqn: jex.JaxprEqn, change: Callable[[jex.Jaxpr], jex.Jaxpr]
) -> dict[str, object]:
    return {name: _changed(value, change) for name, value in params_of(eqn).items()}


def _changed(value: object, change: Callable[[jex.Jaxpr], jex.Jaxpr]) -> object:
    if isinstance(value, (tuple, list)):
        parts = [_changed(part, change) for part in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    program = jax_private.with_program(value, change)
    return value if program is None else program


def _with_params(
    eqn: jex.JaxprEqn, params: dict[str, object], effects: jax_private.Effects
) -> jex.JaxprEqn:
    """Returns an equation with other parameters of what it does, and other effects."""
    prim = eqn.params.get("_prim")
    if prim is not None:
        params = {**eqn.params, "_prim": jax_private.with_params(prim, params, effects)}
    return eqn.replace(params=params, effects=effects)


def sums(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation adds up numbers that are rounded, or calls a program that does.

    In which order it does so is left to the compiler.
    """
    if name_of(eqn) in _SUMS:
        return any(is_inexact(var.aval) for var in eqn.outvars)
    return any(any(map(sums, program.jaxpr.eqns)) for program in programs_of(eqn))


def given_name(eqn: jex.JaxprEqn) -> str | None:
    """Returns the name that `jax.ad_checkpoint.checkpoint_name` gives here, if it does."""
    return params_of(eqn)["name"] if name_of(eqn) in NAMING else None


def keeps_products(primitive: jex.Primitive, *avals: object, **params: object) -> bool:
    """A policy of `jax.checkpoint`: whether a result is dear to compute again, or small to keep.

    Kept are products with weights, convolutions, what kernels of others return (Pallas, cuDNN, any
    call from outside of XLA), and keys. A product of activations with each other, which has batch
    axes, is kept where it is no larger than what goes into it: the sum of an attention's values
    and not its scores, which grow with the square of the length.

    Args:
      primitive: what the equation does.
      *avals: its inputs' shapes and dtypes.
      **params: its parameters.
    """
    name = primitive.name
    if name in _PRODUCTS:
        return not _has_batch(params) or _is_small(avals, params)
    return name in _KERNELS or name in _KEYS or "attention" in name or "matmul" in name


def keeps_slices(policy: Callable[..., object] | None) -> bool:
    """Tells whether a policy of `jax.checkpoint` stores slices of arrays that are there anyway."""

    def one(x: jax.Array, i: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)

    program = jax.make_jaxpr(one)(jax.ShapeDtypeStruct((2, 2), "float32"), 0)
    return policy is not None and any(
        policy(eqn.primitive, *(a.aval for a in eqn.invars), **params_of(eqn)) is True
        for eqn in program.eqns
    )


def _has_batch(params: Mapping[str, Any]) -> bool:
    return bool(params["dimension_numbers"][1][0]) if "dimension_numbers" in params else False


def _is_small(avals: Any, params: Mapping[str, Any]) -> bool:
    """Tells whether a product is no larger than the larger of its factors."""
    (contracted, _), (batch, _) = params["dimension_numbers"]
    left, right = avals[:2]
    repeated = math.prod(left.shape[i] for i in batch)
    summed = math.prod(left.shape[i] for i in contracted)
    return bool(left.size * right.size <= max(left.size, right.size) * repeated * summed**2)


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
    live = set(variables(jaxpr.outvars))
    if inner:
        live |= jax_private.written(jaxpr.effects)
    eqns = []
    # From the end on: an equation stays if one that stays needs what it makes.
    for eqn in reversed(jaxpr.eqns):
        needed = not live.isdisjoint(eqn.outvars)
        if needed or not live.isdisjoint(jax_private.written(eqn.effects)):
            live.update(variables(eqn.invars))
            eqns.append(_quieted(eqn, inner) if eqn.effects else eqn)
    return jaxpr.replace(eqns=eqns[::-1], effects=jax_private.among(jaxpr.effects, eqns))


def _quieted(eqn: jex.JaxprEqn, inner: bool) -> jex.JaxprEqn:
    """Returns an equation with the programs that it calls quiet."""
    called: list[jex.Jaxpr] = []

    def quieted(program: jex.Jaxpr) -> jex.Jaxpr:
        called.append(quiet(program, inner=True))
        return called[-1]

    params = _changed_params(eqn, quieted)
    # An equation says what its programs do: it has lost the effects that none of them has now.
    effects = jax_private.among(eqn.effects, called if called or not inner else [eqn])
    return _with_params(eqn, params, effects)


def acts(eqn: jex.JaxprEqn) -> bool:
    """Tells whether an equation does something besides computing and using references."""
    return bool(eqn.effects - jax_private.among(eqn.effects))


def calmed(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
    """Returns an equation as one that need not be run if nothing needs its outputs."""
    return eqn.replace(effects=jax_private.among(eqn.effects))


def in_two(jaxpr: jex.Jaxpr) -> tuple[jex.Jaxpr, jex.Jaxpr] | None:
    """Takes apart what a program computes and what it does besides: prints, callbacks, checks.

    Returns:
      a program of the same inputs that does nothing, whose outputs are the inputs of the second
      after its own, and a program without outputs that does the rest; None where it does nothing,
      or where what it does makes a value, as a callback that returns one.
    """
    loud = [eqn for eqn in jaxpr.eqns if acts(eqn)]
    if not loud or any(map(_answers, loud)):
        return None
    atoms = list(variables(atom for eqn in loud for atom in eqn.invars))
    needed = list(dict.fromkeys(atoms))
    both = jax_private.rewire(
        jaxpr, invars=jaxpr.invars, outvars=[*jaxpr.outvars, *needed], eqns=jaxpr.eqns
    )
    rest = jax_private.rewire(jaxpr, invars=needed, outvars=(), eqns=loud)
    return quiet(both), rest


def _answers(eqn: jex.JaxprEqn) -> bool:
    """Tells whether something that an equation does besides computing makes a value."""
    called = list(programs_of(eqn))
    if not called:
        return bool(eqn.outvars)
    return any(_answers(inner) for p in called for inner in p.jaxpr.eqns if acts(inner))
