"""The lifted scan over functions of scopes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import metadata
from ..core.filters import Filter
from ..core.pack import Group, Opening
from ..core.rngs import Drawn, Log, replay, rewind, settle
from ..core.rngs import join as join_draws
from ..core.roles import BROADCAST, CARRY, Roles, broadcast, loop_roles
from ..core.scope import Scope
from ..errors import AxesTreeError
from .axes import Sizes, axes_of, from_front, restack, to_front, unstack
from .invariants import Loop, Marks, trace_loop
from .looperrors import (
    check_carried,
    check_options,
    check_out_axes,
    check_variable_axes,
    checked_carry,
    no_carry,
    not_a_pair,
)
from .loopflat import FlatBody, Result
from .looptrees import (
    created,
    strengthened,
    updated,
    writable,
    written_first,
)


def scan(
    fn: Callable[..., Any],
    variable_axes: Mapping[Filter, Any] = {},
    variable_broadcast: Filter = False,
    variable_carry: Filter = False,
    split_rngs: Mapping[Filter, bool] = {},
    in_axes: Any = 0,
    out_axes: Any = 0,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    _split_transpose: bool = False,
    data_transform: Callable[..., Any] | None = None,
    metadata_params: Mapping[Any, Any] = {},
    check_constancy_invariants: bool = True,
) -> Callable[..., Any]:
    """`liftax.scan` over a function of a scope.

    Args:
      fn: the body, ``(scope, carry, *xs, **kwargs) -> (carry, ys)``; ``scope`` may
        be a pytree of scopes.

    The other arguments are those of `liftax.scan`.

    Returns:
      ``(scope, carry, *xs, **kwargs) -> (carry, ys)``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from liftax.core import init, lift
      >>> def layer(scope, x):
      ...     w = scope.param('w', jax.random.normal, (3, 3))
      ...     return x @ w, x.sum()
      >>> deep = lift.scan(
      ...     layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=4)
      >>> (y, sums), variables = init(deep)(jax.random.key(0), jnp.ones(3))
      >>> y.shape, sums.shape, variables['params']['w'].shape
      ((3,), (4,), (4, 3, 3))
    """
    arguments = dict(locals())
    del arguments["fn"]
    return scanner(**arguments)(fn)


def scanner(
    variable_axes: Mapping[Filter, Any],
    variable_broadcast: Filter,
    variable_carry: Filter,
    split_rngs: Mapping[Filter, bool],
    in_axes: Any,
    out_axes: Any,
    length: int | None,
    reverse: bool,
    unroll: int | bool,
    _split_transpose: bool,
    data_transform: Callable[..., Any] | None,
    metadata_params: Mapping[Any, Any],
    check_constancy_invariants: bool,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns `scan` with its arguments read, for any number of functions."""
    roles = loop_roles("scan", variable_axes, variable_broadcast, variable_carry, split_rngs)
    options = {"reverse": reverse, "unroll": unroll, "_split_transpose": _split_transpose}
    check_options(
        "scan",
        **options,
        data_transform=data_transform,
        metadata_params=metadata_params,
        check_constancy_invariants=check_constancy_invariants,
    )

    spec = Spec(
        roles, out_axes, options, data_transform, metadata_params, check_constancy_invariants
    )
    return looped(spec, in_axes, length)


_MISSING: Any = object()


def looped(
    spec: Spec, in_axes: Any = 0, length: int | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns `scan` with its arguments read, for a loop of any kind.

    Args:
      spec: what is fixed about it.
      in_axes, length: as in `scan`.
    """
    axes, metadata_params = spec.roles.axes, spec.metadata_params
    wanted = (*axes, CARRY, BROADCAST)

    def scanned(fn: Any, scope: Any, /, carry: Any = _MISSING, *args: Any, **kwargs: Any) -> Any:
        opening = Opening(spec.roles, scope, fn, spec.shared)
        if carry is _MISSING:
            raise no_carry(opening.place)
        opening.check()
        given = _Arguments(args, in_axes, opening)
        variables = opening.sorted_values(wanted)
        sizes = Sizes(opening, length, "length")
        sizes.see_arguments(args, given.axes, skip=2)
        for axis in axes:
            sizes.see_variables(variables[axis], axis)
        size = sizes.known("nothing is scanned over; pass length=")
        boxed = opening.boxed
        xs = (
            given.moving(),
            [unstack(opening, variables[axis], axis, metadata_params, boxed) for axis in axes],
            opening.split_keys(size),
        )
        carry_leaves, carry_def = jax.tree.flatten(carry)
        call = _Call(spec, fn, scope, opening, variables, carry_def, given, kwargs, size)
        return call.finish(call.run(carry_leaves, xs))

    return lambda fn: functools.partial(scanned, fn)


class _Arguments:
    """The arguments of a scan after the carry, those along an axis and the others."""

    def __init__(self, args: tuple[Any, ...], in_axes: Any, opening: Opening):
        self.leaves, self.treedef = jax.tree.flatten(args)
        self.axes = axes_of(in_axes, args, len(self.leaves), opening, "in_axes")
        if None in self.axes:
            raise AxesTreeError(
                f"{opening.place}: in_axes has None for an array; to hand it whole to each "
                f"iteration use nn.broadcast in its place"
            )
        self.whole = broadcast in self.axes  # whether any is handed whole to each iteration

    def moving(self) -> list[Any]:
        """Returns the leaves along an axis, with that axis in front."""
        both = zip(self.leaves, self.axes, strict=True)
        return [to_front(leaf, axis) for leaf, axis in both if axis is not broadcast]

    def rebuild(self, moving: list[Any]) -> Any:
        """Returns the arguments of one iteration, from its part of `moving`."""
        if self.whole:
            parts, both = iter(moving), zip(self.leaves, self.axes, strict=True)
            moving = [x if axis is broadcast else next(parts) for x, axis in both]
        return jax.tree.unflatten(self.treedef, moving)


class Spec(NamedTuple):
    """What is fixed when a scan is made.

    Attributes:
      options: for `jax.lax.scan`, without the length.
      twice: whether keys are counted as by Linen, which traces the body twice.
      loop: what runs the pure body, called like `jax.lax.scan`; it may call the
        body more than once.
      shared: scopes whose variables all iterations share.
    """

    roles: Roles
    out_axes: Any
    options: dict[str, Any]
    data_transform: Callable[..., Any] | None
    metadata_params: Mapping[Any, Any]
    twice: bool
    loop: Callable[..., Any] = jax.lax.scan
    shared: Sequence[Scope] = ()


class _Retrace(Exception):
    """A carried variable appeared in a body that was traced straight into the loop."""


class _Call:
    """One call of a lifted scan."""

    def __init__(
        self,
        spec: Spec,
        fn: Callable[..., Any],
        scopes: Any,
        opening: Opening,
        variables: Mapping[Any, Group],
        carry_def: Any,
        args: _Arguments,
        kwargs: dict[str, Any],
        size: int,
        first: list[Drawn] | None = None,
    ):
        self.spec = spec
        self.fn = fn
        self.scopes = scopes
        self.opening = opening
        self.carry_def = carry_def
        self.args = args
        self.kwargs = kwargs
        self.size = size
        self.first = first  # the draws of the first iteration, if it ran by itself
        self.axes = spec.roles.axes
        self.carried = variables[CARRY]
        self.shared = variables[BROADCAST]
        self.shared_keys = opening.keys(False)
        self.marks: Marks | None = None
        self.drawn: list[Drawn] = []
        self.y_def: Any = None
        self.y_axes: list[Any] = []

    def run(self, carry: list[Any], xs: Any) -> Result:
        """Runs the loop from the carry's leaves: `jax.lax.scan` traces the body, where it may."""
        if self._traces_first(carry):
            return self._in_parts(carry, xs)
        opening = self.opening

        def step(c: Any, x: Any) -> Any:
            inner, after, ys = self.body(c[0], c[1], x)
            if opening.read_only:
                return (after, c[1]), (ys, [])
            carry_vars = opening.written(inner, CARRY)
            if created(carry_vars, self.carried):
                raise _Retrace
            kept = updated(c[1], carry_vars)
            check_carried(opening, c[1], kept)
            return (after, kept), (ys, self.stacked(inner))

        try:
            (carry, carry_vars), (ys, stacked) = self.spec.loop(
                step, (carry, self.carried), xs, length=self.size, **self.spec.options
            )
        except _Retrace:
            self._forget()
            return self._in_parts(carry, xs)
        return Result(carry, carry_vars, ys, [], stacked)

    def _traces_first(self, carry: list[Any]) -> bool:
        """Tells whether the body goes to a jaxpr before it goes into the loop."""
        opening = self.opening
        return (
            opening.can_write(BROADCAST)
            or (opening.initializing and opening.can_write(CARRY))
            or (self.spec.out_axes != 0 and broadcast in jax.tree.leaves(self.spec.out_axes))
            # lax.scan traces a weakly typed carry a second time to make it strong.
            or any(getattr(jax.typeof(leaf), "weak_type", False) for leaf in carry)
        )

    # --- the body ---------------------------------------------------------------

    def body(self, carry: list[Any], carried: Group, x: Any) -> Any:
        """Runs the user's body once, inside the trace.

        Returns:
          the inner scopes, the carry's leaves and the leaves of ys.
        """
        opening = self.opening
        # A loop that calls the body again wants the same keys: the log of a loop outside
        # settles the draws of all its calls as one.
        earlier = self.drawn if opening.log is not None and self.first is None else []
        if self.drawn:
            self._forget()  # of a call of the body that went before: each counts alike
        moving, stacked, split_keys = x
        variables: Any = (self.shared, carried, *stacked)
        keys: Any = (self.shared_keys, split_keys)
        if self.spec.data_transform is not None:
            variables, keys = self.spec.data_transform(variables, keys)
        log = None if opening.keyless else Log(self._is_shared, opening.log)
        inner = opening.enter(variables, keys, log=log)
        if self.marks is not None:
            for i, scope in enumerate(inner):
                scope._root.on_birth = self._marker(i, self.marks)
        out = opening.call(
            self.fn,
            inner,
            (jax.tree.unflatten(self.carry_def, carry), *self.args.rebuild(moving)),
            self.kwargs,
            size=self.size,
            axis_name=self.spec.metadata_params.get(metadata.PARTITION_NAME),
            carry=bool(carry) or any(carried),
        )
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise not_a_pair(opening.place, out)
        if log is not None and (log or self.first is not None):
            self._count(log, earlier)
        after = checked_carry(opening, carry, self.carry_def, out[0])
        ys, self.y_def = jax.tree.flatten(out[1])
        self.y_axes = axes_of(self.spec.out_axes, out[1], len(ys), opening, "out_axes")
        check_out_axes(opening, out[1], self.y_axes, shared=broadcast)
        opening.close(inner)
        return inner, after, ys

    def stacked(self, inner: list[Scope]) -> list[Group]:
        """Returns what the body wrote along each axis."""
        groups = [self.opening.written(inner, axis) for axis in self.axes]
        check_variable_axes(self.opening, groups, self.axes)
        return groups

    def _is_shared(self, col: str) -> bool:
        return self.spec.roles.role(col) == BROADCAST

    def _is_made(self, col: str) -> bool:
        """Whether what one iteration makes is there in the next one."""
        return self.spec.roles.role(col) in (BROADCAST, CARRY)

    def _marker(self, top: int, marks: Marks) -> Callable[..., Any]:
        roles = self.opening.tables[top]
        depth = len(self.opening.tops[top].path)

        def on_birth(col: str, path: tuple[str, ...], value: Any, late: bool) -> Any:
            role = roles.role(col)
            if role not in (BROADCAST, CARRY):
                return value
            return marks.birth(role == CARRY, top, col, path[depth:], value, late)

        return on_birth

    def _count(self, log: Log, earlier: list[Drawn]) -> None:
        """Counts the draws of the body as Linen's traces of it would have made them."""
        rewind(log)
        self.drawn = replay(log) if self.spec.twice else log
        if self.first is not None:
            join_draws(self.first, self.drawn, self._is_made)
            self.drawn = self.first
        settle(self.drawn)
        join_draws(self.drawn, earlier, lambda collection: False)

    def _forget(self) -> None:
        """Takes back the draws of a trace that another one replaces."""
        rewind(self.drawn)
        self.drawn = []

    # --- the loop ---------------------------------------------------------------

    def _in_parts(self, carry: list[Any], xs: Any) -> Result:
        """Traces the body to a jaxpr, runs what stands before the loop, then the loop."""
        opening = self.opening
        self.marks = marks = Marks()
        var_leaves, var_def = jax.tree.flatten(self.carried)
        x_leaves, x_def = jax.tree.flatten(xs)
        n = len(carry)
        flat = FlatBody(self, n, var_def, x_def, marks)
        first = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in x_leaves]
        before = [*carry, *var_leaves]
        split = self.spec.roles.split("params") is True
        loop = trace_loop(flat, before, first, marks, flat.name_of, opening.place, split)
        strong = strengthened(before, loop.carry_avals)
        if strong is not None:
            # The body makes a wider carry of a weakly typed one: begin with the wider.
            before = strong
            self._forget()
            loop = trace_loop(flat, before, first, marks, flat.name_of, opening.place, split)
        x = [x[-1 if self.spec.options["reverse"] else 0] for x in x_leaves]
        # Written first: where this loop stands in another one's body, the variables are
        # marked there on the way, and the loop must use them with that mark on.
        shared = written_first(opening, marks, False, loop.shared)
        born = loop.first(before, x)
        if any(birth.late and birth.carried for birth in marks.births):
            return self._peeled(flat, loop, shared, before, born, xs, x)
        born = written_first(opening, marks, True, born)

        def step(c: Any, x: Any) -> Any:
            after, births, ys = loop.step(shared, *c, x)
            return (after, births), ys

        (after, born), ys = self.spec.loop(
            step, (before, born), x_leaves, length=self.size, **self.spec.options
        )
        return flat.result(after, born, ys, loop.invariants)

    def _peeled(
        self,
        flat: FlatBody,
        loop: Loop,
        shared: list[Any],
        before: list[Any],
        born: list[Any],
        xs: Any,
        x: list[Any],
    ) -> Result:
        """Runs the first iteration by itself, then the loop over the rest.

        For carried variables that a lift inside the body made: their first value is
        sealed in that lift, and what is known is what the iteration left of them.
        """
        after, births, ys = loop.step(shared, before, born, x)
        ys = [jnp.expand_dims(y, 0) for y in ys]
        one = flat.result(after, births, ys, loop.invariants)
        if self.size == 1:
            return one
        self.opening.write_back(writable(self.opening, one.carry_vars))
        first = self.drawn
        self._forget()
        reverse = self.spec.options["reverse"]
        rest = jax.tree.map(lambda leaf: leaf[:-1] if reverse else leaf[1:], xs)
        opening = Opening(self.spec.roles, self.scopes, self.fn, self.spec.shared)
        again = _Call(
            self.spec,
            self.fn,
            self.scopes,
            opening,
            opening.sorted_values((CARRY, BROADCAST)),
            self.carry_def,
            self.args,
            self.kwargs,
            self.size - 1,
            first,
        )
        more = again.run(one.carry, rest)
        self.drawn = first

        def join(first: Any, others: Any) -> Any:
            parts = (others, first) if reverse else (first, others)
            return jnp.concatenate(parts)

        ys = [join(a, b) for a, b in zip(one.ys, more.ys, strict=True)]
        stacked = jax.tree.map(join, one.stacked, more.stacked)
        return more._replace(ys=ys, stacked=stacked)

    def finish(self, result: Result) -> Any:
        """Writes the variables back and puts the outputs together."""
        opening = self.opening
        if opening.log is not None:
            opening.log.extend(self.drawn)
        if not opening.read_only:
            opening.write_back(writable(opening, result.carry_vars))
            for group, axis in zip(result.stacked, self.axes, strict=True):
                opening.write_back(restack(opening, group, axis, self.spec.metadata_params))
        moving, fixed = iter(result.ys), iter(result.constant)
        ys = [
            next(fixed) if axis is broadcast else from_front(next(moving), axis)
            for axis in self.y_axes
        ]
        carry = jax.tree.unflatten(self.carry_def, result.carry)
        return carry, jax.tree.unflatten(self.y_def, ys)
