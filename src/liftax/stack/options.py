"""How a stack runs: frozen options, the same variables whatever they say.

Vocabulary
  run     ``"scan"``: one loop in the compiled program; ``"loop"``: layer after
          layer, written out; ``"scan of K"``: a loop over groups of K layers that
          are written out; ``"scan of sqrt"`` chooses K
  remat   which activations are computed again in the backward pass
  step    one turn of the stack's loop: the whole pattern once
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import jax
from jax.extend.core import Primitive

from .. import equations, jax_private
from ..core.lift.schedule import Pipeline
from ..errors import StackError
from ..words import did_you_mean, shown

if TYPE_CHECKING:
    import jax.extend.core as jex

P = ParamSpec("P")
T = TypeVar("T")
Policy = Callable[..., bool]

# These make a policy from names or from other policies.
_MAKERS = {
    "offload_dot_with_no_batch_dims": "offload=",
    "save_and_offload_only_these_names": "save= and offload=",
    "save_any_names_but_these": "the policy itself: policy=jax.checkpoint_policies...(...)",
    "save_anything_except_these_names": "the policy itself: policy=jax.checkpoint_policies...(...)",
    "save_from_both_policies": "the policy itself: policy=jax.checkpoint_policies...(...)",
    "save_only_these_names": "save=",
}


@dataclasses.dataclass(frozen=True)
class Remat:
    """Which activations of a stack are computed again in the backward pass.

    With nothing said, each step of the stack is computed again from what entered it.
    With ``every=K`` that holds for groups of K steps, and for each step within one: stored
    is what enters a group, and while one is computed again what enters its steps. That
    is less than ``Remat()`` stores, for one forward pass more. ``every="sqrt"`` chooses K so
    that what is stored grows with the square root of the depth (Chen et al. 2016,
    https://arxiv.org/abs/1604.06174). Where groups would store as much as single steps,
    steps are computed again one by one.

    ``Remat("products")`` is the plan to begin with. A scan stores every intermediate of its body,
    a copy into a stack of all layers and one out of it; this stores what is dear, products with
    weights and what attention returns, in the dtype that they have, and computes again what is
    cheap: normalisations, activations, masks, casts, scores of an attention.

    Args:
      policy: what may be stored nevertheless: ``"products"``, the name of a policy in
        ``jax.checkpoint_policies``, or such a function.
      every: the steps in one group, or ``"sqrt"``.
      nested: whether steps are computed again within a group. False computes a group again
        from its products, all of its steps at once: a pass less, with more memory. By default
        where they are scanned.
      positions: the positions of the pattern whose layers are recomputed, one by
        one; None for the whole pattern.
      save: names given by ``jax.ad_checkpoint.checkpoint_name`` to values that are
        stored. What enters a step that is recomputed, the residual stream, has the name
        ``"carry"``.
      offload: names of values that are stored in the host's memory. Under JAX's flag
        ``jax_remat3`` release 0.10 of JAX offloads nothing, and looks at names only where
        there is no ``policy``; later ones do both.
      prevent_cse: whether the compiler is kept from sharing work between the two
        passes; None keeps it wherever it could.

    Raises:
      StackError: no policy has the name; options contradict each other.

    Example:
      >>> Remat("dots_saveable", every=4)
      Remat(policy='dots_saveable', every=4)
      >>> Remat(save="attention").save
      ('attention',)
      >>> Remat(offload="carry")  # the residual stream waits in the host's memory
      Remat(offload=('carry',))
    """

    policy: str | Policy | None = None
    every: int | str = 1
    nested: bool | None = None
    positions: tuple[int, ...] | None = None
    save: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()
    prevent_cse: bool | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:  # as `__init__` of a frozen class does
            object.__setattr__(self, name, value)

        for name in ("save", "offload"):
            value = getattr(self, name)
            put(name, (value,) if isinstance(value, str) else tuple(value))
        if isinstance(self.positions, int):
            put("positions", (self.positions,))
        elif self.positions is not None:
            put("positions", tuple(self.positions))
        if isinstance(self.policy, str):
            _named_policy(self.policy)
        elif self.policy is not None and not callable(self.policy):
            raise StackError(
                f"Remat: policy expected the name of a policy, a policy or None; found "
                f"{type(self.policy).__name__}"
            )
        if self.every != "sqrt" and not _is_count(self.every):
            raise StackError(
                f"Remat: every expected a number of steps or 'sqrt'; found {self.every!r}"
            )
        if self.positions is not None and (self.every != 1 or self.nested):
            raise StackError(
                "Remat: positions= recomputes layers one by one; every= and nested= go with "
                "groups of whole steps, drop one of them"
            )
        if self.nested and self.every == 1:
            raise StackError("Remat: nested=True recomputes within groups; say every=K or 'sqrt'")
        both = set(self.save) & set(self.offload)
        if both:
            raise StackError(f"Remat: {sorted(both)[0]!r} is in save= and in offload=; keep one")

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                text = repr(value) if not callable(value) else getattr(value, "__name__", "policy")
                shown.append(f"{field.name}={text}")
        return f"Remat({', '.join(shown)})"

    @property
    def within(self) -> bool:
        """Whether steps are computed again within groups."""
        return self.every != 1 and self.nested is not False

    @property
    def names(self) -> tuple[str, ...]:
        """The names that some value of the layers must have."""
        return self.save + self.offload

    def as_policy(self) -> Policy | None:
        """Returns what `jax.checkpoint` takes."""
        return _policy(self.policy, self.save, self.offload)


# One function for equal options: JAX's caches know policies by identity.
@functools.lru_cache(maxsize=256)
def _policy(
    policy: str | Policy | None, save: tuple[str, ...], offload: tuple[str, ...]
) -> Policy | None:
    base = _named_policy(policy) if isinstance(policy, str) else policy
    if not save and not offload:
        return base
    policies = jax.checkpoint_policies
    if offload:
        named = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(save),
            names_which_can_be_offloaded=list(offload),
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        named = policies.save_only_these_names(*save)
    if base is None:
        return named
    mine = {*save, *offload}

    # The equation that gives a value its name is asked like any other: those of these names go by
    # the names alone, all others by the policy.
    def either(prim: Primitive, *args: object, **params: object) -> bool:
        if prim.name in equations.NAMING and params.get("name") in mine:
            return named(prim, *args, **params)
        return base(prim, *args, **params)

    return either


def _named_policy(name: str) -> Policy:
    if name == "products":
        return equations.keeps_products
    public = [n for n in dir(jax.checkpoint_policies) if not n.startswith("_")]
    if name in _MAKERS:
        raise StackError(f"Remat: {name!r} makes a policy and is none; use {_MAKERS[name]}")
    if name not in public:
        plain = [n for n in public if n not in _MAKERS]
        hint = did_you_mean(name, plain, like=0.4)
        raise StackError(
            f"Remat: jax.checkpoint_policies has no policy {name!r}{hint}\n"
            f"expected 'products', one of {', '.join(plain)}, or a function"
        )
    return getattr(jax.checkpoint_policies, name)


@dataclasses.dataclass(frozen=True)
class Run:
    """How the loop of a stack is written, see `parse_run`.

    Attributes:
      kind: ``"scan"`` or ``"loop"``.
      group: how many steps of a scan are written out together; None for one,
        ``"sqrt"`` for about the square root of their number.
      unroll: as in `jax.lax.scan`.
      pipeline: whose stages run the scan, each its part.
    """

    kind: str = "scan"
    group: int | str | None = None
    unroll: int | bool = 1
    pipeline: Pipeline | None = None


def parse_run(run: str | Pipeline, unroll: int | bool = 1) -> Run:
    """Reads ``run=``.

    Raises:
      StackError: it is none of the words.

    Example:
      >>> parse_run("scan of 4")
      Run(kind='scan', group=4, unroll=1, pipeline=None)
    """
    pipeline = run if isinstance(run, Pipeline) else None
    word = "scan" if pipeline else run if isinstance(run, str) else ""
    match = re.fullmatch(r"\s*(scan|loop)(?:\s+of\s+(\d+|sqrt))?\s*", word, re.ASCII)
    bad = match is None or (match[1] == "loop" and match[2]) or (match[2] or "1").strip("0") == ""
    if bad or match is None:
        raise StackError(
            f"Stack: run expected 'scan', 'loop', 'scan of K', 'scan of sqrt' or a Pipeline; found "
            f"{shown(run)}"
        )
    if not (isinstance(unroll, int) and unroll >= 0):
        raise StackError(
            f"Stack: unroll expected a number of steps, or True or 0 for all; found {shown(unroll)}"
        )
    if match[1] == "loop" and unroll not in (1, False):
        raise StackError(
            f"Stack: unroll={unroll!r} is for scans; run='loop' writes every layer out, "
            f"drop unroll="
        )
    if unroll == 0 and unroll is not False:
        unroll = True  # for JAX 0 is no number of steps
    group = match[2]
    return Run(match[1], group if group in (None, "sqrt") else int(group), unroll, pipeline)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclasses.dataclass(frozen=True)
class Level:
    """One loop of a nest: it goes over groups of ``size`` steps.

    Attributes:
      size: the steps in one turn.
      kind: ``"scan"`` or ``"loop"``.
      remat: whether one turn is recomputed in the backward pass.
      unroll: as in `jax.lax.scan`.
      products: whether a turn is recomputed from its products: a scan inside of what is recomputed
        stores as a scan does.
    """

    size: int
    kind: str
    remat: bool = False
    unroll: int | bool = 1
    products: bool = False


def levels(run: Run, remat: Remat | None, length: int) -> list[Level]:
    """Returns the nest of loops, outermost first, that runs ``length`` steps.

    A group that is longer than the stack is the whole stack: one declaration serves models of
    every depth.

    Raises:
      StackError: groups do not fit in one another.

    Example:
      >>> [(level.size, level.remat) for level in levels(Run(), Remat(every=3), 12)]
      [(3, True), (1, True)]
    """
    if remat is not None and remat.positions is not None:
        remat = None  # layers one by one, within steps: no loop is recomputed
    group = _group(run.group, length)
    every = 1 if remat is None else _group(remat.every, length)
    # Each loop goes over groups of the next one's size, so the sizes must divide one another; the
    # outermost may be the whole stack, into which nothing has to fit.
    sizes = sorted({group, every, 1}, reverse=True)
    overlap = group > 1 and every > 1 and max(group, every) % min(group, every) != 0
    if overlap and max(group, every) < length:
        raise StackError(
            f"run='scan of {group}' and Remat(every={every}): the groups overlap; one must be a "
            f"multiple of the other"
        )
    # Of steps that are written out the compiler holds as many as it likes; another pass saves none.
    written_out = run.kind == "loop" or group > 1
    within = remat is not None and remat.within and bool(remat.nested or not written_out)
    if within and not written_out and math.ceil(length / every) + every >= length:
        # As many carries as there are steps, or more: what is left is a forward pass for nothing.
        every, sizes = 1, [1]
    nest = []
    for size in sizes:
        kind = "loop" if run.kind == "loop" or size < group else "scan"
        again = remat is not None and (size == every or (size == 1 and within))
        inside = size == 1 < every and not again and kind == "scan"
        products = inside and remat is not None and not remat.names
        nest.append(Level(size, kind, again, products=products))
    # `unroll` is said of single steps: it is for the innermost loop that is a scan.
    scans = [i for i, level in enumerate(nest) if level.kind == "scan"]
    if scans:
        nest[scans[-1]] = dataclasses.replace(nest[scans[-1]], unroll=run.unroll)
    return nest


def _group(size: int | str | None, length: int) -> int:
    return _sqrt(length) if size == "sqrt" else min(int(size or 1), length)


def _sqrt(length: int) -> int:
    """Returns a group size near the square root, one that divides if there is a good one."""
    # What is kept is one activation for each group and those within one: size + length / size,
    # least at the root. A divisor a little off costs less than a second program for the rest.
    root = max(1, round(math.sqrt(length)))
    divisors = [d for d in range(1, length + 1) if length % d == 0]
    best = min(divisors, key=lambda d: (d + length // d, d))
    return best if best + length // best <= 1.25 * (root + length / root) else root


@dataclasses.dataclass(frozen=True)
class Options:
    """How a stack runs; see `override_stacks`."""

    run: str | Pipeline | None = None
    unroll: int | bool | None = None
    remat: Remat | str | None = None


_override: ContextVar[tuple[Options, ...]] = ContextVar("liftax_override_stacks", default=())


@contextlib.contextmanager
def override_stacks(
    run: str | Pipeline | None = None,
    unroll: int | bool | None = None,
    remat: Remat | str | None = None,
) -> Iterator[None]:
    """Runs the stacks that are traced in a ``with`` block in another way.

    Nothing of a model changes but its program: variables, keys and, to rounding,
    results are the same. A function that `jax.jit` has compiled already runs as it
    was compiled.

    Args:
      run: as in `Stack`; None leaves it.
      unroll: as in `Stack`; None leaves it, but for ``run="loop"``, which has none.
      remat: a `Remat` or ``"auto"``; ``"off"`` for none; None leaves it.

    Example:
      >>> import jax, liftax as nn
      >>> stack = nn.Stack(nn.Dense(4), depth=3)
      >>> x = jax.numpy.ones(4)
      >>> variables = stack.init(jax.random.key(0), x)
      >>> with nn.override_stacks(run="loop"):
      ...     program = str(jax.make_jaxpr(stack.apply)(variables, x))
      >>> "scan" in program
      False
    """
    if run is not None:
        parse_run(run, 1 if unroll is None else unroll)
    check_remat(remat, "override_stacks", off=True)
    token = _override.set((*_override.get(), Options(run, unroll, remat)))
    try:
        yield
    finally:
        _override.reset(token)


_in_stage: ContextVar[bool] = ContextVar("liftax_in_stage", default=False)


def in_stage(fn: Callable[P, T]) -> Callable[P, T]:
    """Returns the layers of a pipeline's stage: a stack among them is a scan, and no pipeline."""

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _in_stage.set(True)
        try:
            return fn(*args, **kwargs)
        finally:
            _in_stage.reset(token)

    return run


def check_remat(remat: object, place: str, *, off: bool = False) -> None:
    """Raises StackError where ``remat=`` is no `Remat`."""
    if remat is None or isinstance(remat, Remat) or remat == "auto" or (off and remat == "off"):
        return
    hint = f"; write Remat({remat!r})" if isinstance(remat, str) or callable(remat) else ""
    raise StackError(f"{place}: remat expected a Remat, 'auto' or None; found {remat!r}{hint}")


class Auto(Remat):
    """What ``remat="auto"`` is in a loop of the compiled program: nobody asked for it."""


AUTO = Auto("products")


def in_force(
    run: str | Pipeline, unroll: int | bool, remat: Remat | str | None, repeats: int
) -> tuple[Run, Remat | None]:
    """Returns the options that hold, those of `override_stacks` first."""
    for options in _override.get():  # the innermost block last, which has the last word
        if options.run is not None:
            run = options.run
            unroll = 1 if isinstance(run, str) and run.strip() == "loop" else unroll
        unroll = options.unroll if options.unroll is not None else unroll
        if options.remat is not None:
            remat = None if options.remat == "off" else options.remat
    read = parse_run(run, unroll)
    if read.pipeline is not None and _in_stage.get():
        read = dataclasses.replace(read, pipeline=None)
    if isinstance(remat, str):
        # Layers that are written out are fused and freed by the compiler as it likes, and without
        # a compiler nothing is gained.
        group = _group(read.group, repeats)
        several = 0 < 2 * group <= repeats
        looped = read.kind == "scan" and several and not jax_private.jit_is_disabled()
        # Of a group that is written out, a scan would store all that its layers do.
        return read, dataclasses.replace(AUTO, every=group) if looped else None
    return read, remat


def names_in(program: jex.ClosedJaxpr) -> set[str]:
    """Returns the names that ``checkpoint_name`` gave in a program and in those within."""
    names = map(equations.given_name, equations.all_of(program.jaxpr))
    return {name for name in names if name is not None}
