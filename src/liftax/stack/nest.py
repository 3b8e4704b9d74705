"""Runs the pure steps of a stack: loops within loops, some of them recomputed.

Everything here works on pure functions, ``step(carry, x) -> (carry, ys)``, and is
called like `jax.lax.scan`. What is a variable, a key or a name is settled before,
in the lift, so no option of this file can change it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .. import equations, jax_private
from ..core.lift.crossing import Opening
from ..core.lift.pipeline import Objective, Pipelined
from ..core.lift.schedule import Groups, Pipeline
from ..core.lift.stages import Stage, takes_again
from ..core.roles import THROUGH, through_roles
from ..core.scope import Scope
from ..core.streams import Keyed
from ..core.types import Group
from .arrays import unstack
from .chosen import Chosen
from .numbered import Step, Threaded, by_number
from .options import Auto, Level, Policy, Remat, Run, levels, names_in

T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class Runner:
    """One call's way to run: called like `jax.lax.scan`, and for layers by themselves.

    Attributes:
      run: how the loop is written.
      remat: what is recomputed.
      chosen: which of the repeats run, None for all.
      place: where the stack stands, for messages.
      stored: whether a pipeline gets variables by stages.
      order: by which stages variables that are made will lie.
      moving: in a pipeline, who has a batch, see `Pipelined`.
      objective: what a pipeline differentiates as it goes.
      seen: the names that values of recomputed layers have.
    """

    run: Run
    remat: Remat | None
    chosen: Chosen | None
    place: str
    stored: bool
    order: Groups | None
    moving: Sequence[int | None] = ()
    objective: Objective | None = None
    seen: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.names_carry = self.remat is not None and "carry" in self.remat.names

    def __call__(
        self,
        step: Step,
        init: object,
        xs: object,
        *,
        length: int,
        reverse: bool = False,
        **_: object,
    ) -> tuple[object, object]:
        """Runs ``length`` steps, called as `jax.lax.scan` is; the stack says how it is unrolled.

        Args:
          step: ``(carry, x) -> (carry, ys)``.
          init: the first carry.
          xs: leaves with a leading axis of ``length``.
          length: the number of steps.
          reverse: whether to go from the last slice to the first.
        """
        # JAX knows what comes out of no steps; there is nothing to group or to recompute.
        if length == 0:
            return jax.lax.scan(step, init, xs, length=0)
        if self.run.pipeline is not None:
            return self._pipeline(self.run.pipeline)(step, init, xs, length=length)
        loop = functools.partial(self._loop, reverse=reverse)
        if self.chosen is None:
            return loop(step, init, xs, length)
        return self.chosen.over(loop, step, init, xs, length)

    def _loop(
        self, step: Step, init: object, xs: object, length: int, *, reverse: bool
    ) -> tuple[object, object]:
        nest = self._levels(length)
        if self._by_number(nest):
            step, init, xs = by_number(step, init, xs, length)
        # Turned around here, once: groups of steps, and what is left over, would be others else.
        if reverse:
            xs = jax.tree.map(lambda x: jnp.flip(x, 0), xs)
        carry, ys = self._nest(nest, step, init, xs, length, in_scan=False)
        carry = carry.carry if isinstance(carry, Threaded) else carry
        if reverse:
            ys = jax.tree.map(lambda y: jnp.flip(y, 0), ys)
        return carry, ys

    def _levels(self, length: int) -> list[Level]:
        if self.order is None:
            return levels(self.run, self.remat, length)
        # Repeats, stages and the layers of a visit are loops of their own: what they make has an
        # axis of stages, along which the compiler can split it. Of one loop over all layers each
        # device would make all, to keep its own after they are put in order.
        stages, repeats = self.order
        visit = length // (stages * repeats)
        sizes = [size for size in dict.fromkeys([stages * visit, visit]) if 1 < size < length]
        within = levels(self.run, self.remat, sizes[-1] if sizes else length)
        return [*(Level(size, "scan") for size in sizes), *within]

    def _by_number(self, nest: Sequence[Level]) -> bool:
        """Tells whether groups are computed again, which over slices would copy their layers.

        A policy that stores slices would store all of them, which as inputs they are not; and
        what lies by stages is to be split along that axis.
        """
        scans = self.order is None and all(level.kind == "scan" for level in nest)
        groups = scans and any(level.remat and level.size > 1 for level in nest)
        policy = self.remat.as_policy() if groups and self.remat is not None else None
        return groups and not equations.keeps_slices(policy)

    def _pipeline(self, pipeline: Pipeline) -> Pipelined:
        """A pipeline, in which a visit of a stage is what is recomputed, and each layer within.

        On one device it is the loop over layers as a scan runs it.
        """
        remat = self.remat
        # A visit that is computed again computes all of its layers before the first goes back: with
        # each within, no more than one layer's intermediates are there at once.
        each: Remat | None = None
        if remat is not None and (remat.within or remat.policy == "products"):
            each = dataclasses.replace(remat, every=1, nested=None)
        again: Callable[[Stage], Stage] = takes_again
        if remat is not None and remat.positions is None:
            again = functools.partial(self.checkpoint, in_scan=True, stream=2)

        def visit(step: Step, init: object, xs: object, *, length: int) -> tuple[object, object]:
            return self._nest(levels(self.run, each, length), step, init, xs, length, True)

        whole = functools.partial(self._loop, reverse=False)
        return Pipelined(
            pipeline, self.place, visit, whole, again, self.objective, self.moving, self.stored
        )

    def _nest(
        self,
        nest: Sequence[Level],
        step: Step,
        carry: object,
        xs: object,
        length: int,
        in_scan: bool,
    ) -> tuple[object, object]:
        level, inner = nest[0], nest[1:]
        count, rest = divmod(length, level.size)
        # Where the loop is left in the compiled program, forward and backward pass lie in
        # different loops and the compiler has nothing to share between them.
        written_out = level.unroll is True or int(level.unroll) >= count
        looped = in_scan or (level.kind == "scan" and count > 1 and not written_out)

        def turn(size: int, in_scan: bool) -> Step:
            body = step
            if level.size > 1:

                def body(carry: object, xs: object) -> tuple[object, object]:
                    # What a group and what its layers compute again would lie in one body, unless
                    # the next level is a loop of its own.
                    apart = in_scan and not level.remat
                    return self._nest(inner, step, carry, xs, size, apart)

            if level.products:
                return self.checkpoint(body, in_scan, policy=equations.keeps_products)
            return self.checkpoint(body, in_scan) if level.remat else body

        # Whole groups in one loop, then the steps that fill no group, as one of their own.
        head, tail = _cut(xs, count * level.size, length)
        parts = []
        if count:
            head = _grouped(head, count, level.size)
            body = turn(level.size, looped)
            if level.kind == "scan":
                carry, ys = jax.lax.scan(body, carry, head, length=count, unroll=level.unroll)
            else:
                carry, ys = _loop(body, carry, head, count)
            parts.append(_ungrouped(ys, count, level.size))
        if rest:
            carry, ys = turn(rest, in_scan)(carry, tail)
            parts.append(ys)
        if len(parts) == 1:
            return carry, parts[0]
        return carry, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def checkpoint(
        self,
        fn: Callable[..., T],
        in_scan: bool = False,
        stream: int = 0,
        policy: Policy | None = None,
    ) -> Callable[..., T]:
        """Returns ``fn`` with its activations recomputed, as the options say.

        Args:
          fn: the function.
          in_scan: whether it runs in a loop of the compiled program.
          stream: which of its arguments is the residual stream.
          policy: what may be stored, where the options do not say it.
        """
        remat = self.remat
        assert remat is not None
        # Without a loop between them, the compiler finds forward and recomputed work to be the
        # same, does it once, and keeps the activations after all.
        prevent = remat.prevent_cse if remat.prevent_cse is not None else not in_scan
        policy = policy or remat.as_policy()
        again = functools.partial(jax.checkpoint, policy=policy, prevent_cse=prevent)

        def recomputed(*args: object) -> T:
            # A policy is asked when the program is differentiated, if it is; a name that no value
            # has must be an error in the forward pass already. So the program is looked through.
            closed, shape = jax.make_jaxpr(self._with_name(fn, stream), return_shape=True)(*args)
            self.seen |= names_in(closed)
            # And what is computed twice is to be printed once.
            program = jax_private.consts_as_inputs(closed)
            silent, loud = equations.in_two(program) or (program, None)
            run: Callable[..., list[jax.Array]] = functools.partial(jax_private.evaluate, silent)
            # JAX recomputes no callback that returns a value; nobody asked here to recompute it.
            if not (isinstance(remat, Auto) and any(map(equations.acts, silent.eqns))):
                run = again(run)
            inputs = [*closed.consts, *jax.tree.leaves(args)]
            found = run(inputs)
            out, seen = found[: len(program.outvars)], found[len(program.outvars) :]
            if loud is not None:
                jax_private.evaluate(loud, seen)
            return jax.tree.unflatten(jax.tree.structure(shape), out)

        return recomputed

    def _with_name(self, fn: Callable[..., T], stream: int) -> Callable[..., T]:
        """``fn``, in which the residual stream has the name ``carry`` if the options ask for it."""
        if not self.names_carry:
            return fn

        def named(*args: object) -> T:
            parts = list(args)
            parts[stream] = _named(parts[stream])
            # In a group of steps only what enters the group is kept: no carry within has the name.
            self.names_carry = False
            try:
                return fn(*parts)
            finally:
                self.names_carry = True

        return named

    def layer(
        self, fn: Callable[..., T], scopes: Sequence[Scope], x: object, *, in_scan: bool
    ) -> T:
        """Runs one layer, a function of scopes, with its activations recomputed.

        Args:
          fn: ``(scopes, x) -> y``.
          scopes: its scopes, those of shared modules too.
          x: what is differentiated; all else that ``fn`` uses it closes over.
        """
        opening = Opening(through_roles("remat", True, True), scopes, fn)
        # A loop outside that initialises has to see each variable as it is made, and would not
        # through a checkpoint; in `init` there is nothing to be recomputed.
        if opening.watched:
            return opening.call_without(fn, scopes, (x,), {})
        run = opening.body(fn)

        def sealed(variables: Group, keys: Keyed, x: object) -> tuple[T, list[Group]]:
            return run([variables], [keys], (x,))

        again = self.checkpoint(sealed, in_scan, stream=2)
        y, written = again(opening.values(THROUGH), opening.keys(False), x)
        opening.write_back(*written)
        return y

    @property
    def unseen(self) -> list[str]:
        """The names in the options that no recomputed layer gave to a value."""
        names = self.remat.names if self.remat is not None else ()
        return [name for name in names if name not in self.seen]


def _named(state: object) -> object:
    """The residual stream with its name; the weights that go along are none of it."""
    if isinstance(state, Threaded):
        return state._replace(carry=_named(state.carry))
    return jax.tree.map(_name_carry, state)


def _name_carry(x: jax.Array) -> jax.Array:
    # Keys of random numbers are not moved to the host.
    is_array = not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
    return checkpoint_name(x, "carry") if is_array else x


def _cut(xs: object, at: int, length: int) -> tuple[object, object]:
    if at == length:
        return xs, None
    if at == 0:
        return None, xs
    return jax.tree.map(lambda x: x[:at], xs), jax.tree.map(lambda x: x[at:], xs)


def _grouped(xs: object, count: int, size: int) -> object:
    if size == 1:
        return xs
    return jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), xs)


def _ungrouped(ys: object, count: int, size: int) -> object:
    if size == 1:
        return ys
    return jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:]), ys)


def _loop(body: Step, carry: object, xs: object, count: int) -> tuple[object, object]:
    """The Python loop that a scan stands for."""
    leaves, treedef = jax.tree.flatten(xs)
    slices = [unstack(leaf) for leaf in leaves]
    outputs = []
    for i in range(count):
        x = jax.tree.unflatten(treedef, [parts[i] for parts in slices])
        carry, y = body(carry, x)
        outputs.append(y)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)
