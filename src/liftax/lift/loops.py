"""Lifted loops over functions of scopes: scan, remat_scan, while_loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core import metadata
from ..core.filters import Filter
from ..core.pack import Group, Opening
from ..core.rngs import Drawn, describe, replay, rewind, settle
from ..core.roles import BROADCAST, CARRY, broadcast, loop_roles
from ..errors import BodyReturnError, CarryError
from .axes import Sizes, axes_of, from_front, restack, to_front, unstack
from .invariants import Marks, trace_loop


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
    roles = loop_roles("scan", variable_axes, variable_broadcast, variable_carry, split_rngs)
    axes = roles.axes()

    def scanned(scope: Any, carry: Any, *args: Any, **kwargs: Any) -> Any:
        opening = Opening(roles, scope, fn)
        roles.check_used(
            opening.place,
            {c for top in opening.tops for c in top.collections()},
            {s for top in opening.tops for s in top.rngs},
        )
        leaves, treedef = jax.tree.flatten(args)
        leaf_axes = axes_of(in_axes, args, opening.place, "in_axes")
        _no_none(leaf_axes, opening.place)
        stacked = [opening.values(axis) for axis in axes]
        sizes = Sizes(opening.place, length, "length")
        sizes.see_arguments(args, leaf_axes, skip=2)
        for axis, group in zip(axes, stacked, strict=True):
            sizes.see_variables(group, axis)
        size = sizes.known("nothing is scanned over; pass length=")

        carry_leaves, carry_def = jax.tree.flatten(carry)
        carried = opening.values(CARRY)
        shared = opening.values(BROADCAST)
        shared_keys = opening.keys(False)
        run = _Scan(opening, fn, axes, out_axes, metadata_params, data_transform)
        run.twice = check_constancy_invariants
        run.size = size
        run.carry_def = carry_def
        run.shared = shared
        run.shared_keys = shared_keys
        run.kwargs = kwargs

        def rebuild(scanned_leaves: list[Any]) -> Any:
            parts = iter(scanned_leaves)
            return jax.tree.unflatten(
                treedef,
                [
                    leaf if axis is broadcast else next(parts)
                    for leaf, axis in zip(leaves, leaf_axes, strict=True)
                ],
            )

        run.rebuild = rebuild
        xs = (
            [
                to_front(leaf, axis)
                for leaf, axis in zip(leaves, leaf_axes, strict=True)
                if axis is not broadcast
            ],
            [unstack(g, a, metadata_params) for g, a in zip(stacked, axes, strict=True)],
            opening.split_keys(size),
        )
        options = {
            "length": size,
            "reverse": reverse,
            "unroll": unroll,
            "_split_transpose": _split_transpose,
        }
        if run.traces_first(carry_leaves):
            return run.in_two_parts(carry_leaves, carried, xs, options)
        return run.directly(carry_leaves, carried, xs, options)

    return scanned


class _Retrace(Exception):
    """A carried variable appeared in a body that was traced straight into the loop."""


class _Scan:
    """One call of a lifted scan."""

    twice: bool
    size: int
    carry_def: Any
    shared: Group
    shared_keys: Group
    kwargs: dict[str, Any]
    rebuild: Callable[[list[Any]], Any]

    def __init__(
        self,
        opening: Opening,
        fn: Callable[..., Any],
        axes: list[int],
        out_axes: Any,
        metadata_params: Mapping[Any, Any],
        data_transform: Callable[..., Any] | None,
    ):
        self.opening = opening
        self.fn = fn
        self.axes = axes
        self.out_axes = out_axes
        self.metadata_params = metadata_params
        self.data_transform = data_transform
        self.y_def: Any = None
        self.y_axes: list[Any] = []
        self.marks: Marks | None = None
        self.drawn: list[Drawn] = []

    def traces_first(self, carry_leaves: list[Any]) -> bool:
        """Tells whether the body goes to a jaxpr before it goes into the loop."""
        opening = self.opening
        return (
            opening.can_write(BROADCAST)
            or (opening.can_write(CARRY) and opening.initializing)
            or any(a is broadcast for a in jax.tree.leaves(self.out_axes, is_leaf=_is_broadcast))
            # lax.scan traces a weakly typed carry a second time to make it strong.
            or any(getattr(jax.typeof(leaf), "weak_type", False) for leaf in carry_leaves)
        )

    def body(self, carry_leaves: Any, carried: Group, x: Any) -> Any:
        """Runs the user's body once, inside the trace."""
        opening = self.opening
        xs, stacked, split_keys = x
        variables = [self.shared, carried, *stacked]
        keys = [self.shared_keys, split_keys]
        if self.data_transform is not None:
            variables, keys = _transformed(self.data_transform, opening, variables, keys)
        log: list[Drawn] = []
        inner = opening.enter(variables, keys, log=log)
        if self.marks is not None:
            for i, scope in enumerate(inner):
                scope._root.on_birth = self._marker(i)
        carry = jax.tree.unflatten(self.carry_def, carry_leaves)
        out = opening.call(
            self.fn,
            inner,
            (carry, *self.rebuild(xs)),
            self.kwargs,
            size=self.size,
            axis_name=self.metadata_params.get(metadata.PARTITION_NAME),
            carry=True,
        )
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise _not_a_pair(opening.place, out)
        new_carry, ys = out
        self._settle(log)
        carry_out = self._check_carry(carry_leaves, new_carry)
        y_leaves, self.y_def = jax.tree.flatten(ys)
        self.y_axes = axes_of(self.out_axes, ys, opening.place, "out_axes")
        opening.close(inner)
        return inner, carry_out, y_leaves

    def _marker(self, top: int) -> Callable[[str, tuple[str, ...], Any], Any]:
        marks, roles = self.marks, self.opening.roles
        depth = len(self.opening.tops[top].path)
        assert marks is not None

        def on_birth(col: str, path: tuple[str, ...], value: Any) -> Any:
            role = roles.role(col)
            if role not in (BROADCAST, CARRY):
                return value
            return marks.birth(role == CARRY, top, col, path[depth:], value)

        return on_birth

    def _settle(self, log: list[Drawn]) -> None:
        """Settles the draws of the body, as many as Linen's two traces would make."""

        def hoisted(col: str) -> bool:
            return self.opening.roles.role(col) == BROADCAST

        rewind(log)
        self.drawn = replay(log, hoisted) if self.twice else log
        settle(self.drawn)

    def _forget(self) -> None:
        """Takes back the draws of a trace that another one replaces."""
        rewind(self.drawn)
        self.drawn = []

    def _check_carry(self, before: list[Any], carry: Any) -> list[Any]:
        after, after_def = jax.tree.flatten(carry)
        place = self.opening.place
        if after_def != self.carry_def:
            raise _carry_error(
                place,
                "the carry changes its structure",
                str(self.carry_def),
                str(after_def),
                "return a carry of the same containers as the one that comes in",
            )
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            a, b = jax.typeof(old), jax.typeof(new)
            if a.shape != b.shape or (a.dtype != b.dtype and not a.weak_type):
                tree = jax.tree.unflatten(self.carry_def, range(len(before)))
                path = jax.tree_util.tree_leaves_with_path(tree)[i][0]
                hint = "cast it to the dtype that comes in, or hand in the wider one"
                if a.shape != b.shape:
                    hint = "the carry must keep its shape"
                    if a.shape[:-1] == b.shape[:-1]:
                        hint += (
                            f": the residual width is {a.shape[-1]} and the body makes "
                            f"{b.shape[-1]}, so set its features to {a.shape[-1]}"
                        )
                name = "carry" + jax.tree_util.keystr(path)
                raise _carry_error(place, f"{name} changes", describe(a), describe(b), hint)
        return after

    def directly(
        self, carry_leaves: list[Any], carried: Group, xs: Any, options: dict[str, Any]
    ) -> Any:
        """Hands the body to `jax.lax.scan`, which traces it."""
        opening = self.opening

        def step(c: Any, x: Any) -> Any:
            inner, carry, ys = self.body(*c, x)
            carry_vars = opening.written(inner, CARRY)
            if _created(carry_vars, carried):
                raise _Retrace
            kept = _updated(c[1], carry_vars)
            return (carry, kept), (ys, [opening.written(inner, a) for a in self.axes])

        try:
            (carry, carry_vars), (ys, stacked) = jax.lax.scan(
                step, (carry_leaves, carried), xs, **options
            )
        except _Retrace:
            self._forget()
            return self.in_two_parts(carry_leaves, carried, xs, options)
        return self.finish(carry, carry_vars, ys, [], stacked)

    def in_two_parts(
        self, carry_leaves: list[Any], carried: Group, xs: Any, options: dict[str, Any]
    ) -> Any:
        """Traces the body to a jaxpr, runs what stands before the loop, then the loop."""
        opening = self.opening
        self.marks = marks = Marks()
        var_leaves, var_def = jax.tree.flatten(carried)
        xs_leaves, xs_def = jax.tree.flatten(xs)
        n_carry = len(carry_leaves)
        side: dict[str, Any] = {}

        def step(c: list[Any], x: list[Any]) -> Any:
            marks.clear()
            group = jax.tree.unflatten(var_def, c[n_carry:])
            inner, carry, ys = self.body(c[:n_carry], group, jax.tree.unflatten(xs_def, x))
            kept = jax.tree.leaves(_updated(group, opening.written(inner, CARRY)))
            births = [
                leaf
                for b in marks.births
                if b.carried
                for leaf in _final(inner[b.top], b, opening.place)
            ]
            shared_out = _changed(opening.written(inner, BROADCAST), self.shared, marks)
            shared_leaves, side["shared_def"] = jax.tree.flatten(shared_out)
            side["names"] = [
                f"variable {'/'.join(str(getattr(k, 'key', k)) for k in path[1:])}"
                for path, _ in jax.tree_util.tree_leaves_with_path(shared_out)
            ]
            y_names = jax.tree_util.tree_leaves_with_path(
                jax.tree.unflatten(self.y_def, range(len(ys)))
            )
            constant = []
            for (path, _), y, axis in zip(y_names, ys, self.y_axes, strict=True):
                if axis is broadcast:
                    side["names"].append(f"output {jax.tree_util.keystr(path) or 'ys'}")
                    constant.append(y)
            stacked = [opening.written(inner, a) for a in self.axes]
            stacked_leaves, side["stacked_def"] = jax.tree.flatten(stacked)
            moving = [y for y, a in zip(ys, self.y_axes, strict=True) if a is not broadcast]
            side["n_ys"] = len(moving)
            return [*carry, *kept], births, [*moving, *stacked_leaves], [*shared_leaves, *constant]

        def name_of(i: int) -> str:
            if i < len(side["names"]):
                return side["names"][i]
            marked = [b for b in marks.births if not b.carried for _ in b.marks]
            birth = marked[i - len(side["names"])]
            return f"variable {'/'.join((birth.col, *birth.path))}"

        first_x = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in xs_leaves]
        before = [*carry_leaves, *var_leaves]
        loop = trace_loop(step, before, first_x, marks, name_of, opening.place)
        strong = _strengthened(before, loop.carry_avals)
        if strong is not None:
            # The body makes a wider carry of a weakly typed one: begin with the wider.
            before = strong
            self._forget()
            loop = trace_loop(step, before, first_x, marks, name_of, opening.place)
        index = self.size - 1 if options["reverse"] else 0
        # Written first: where this loop stands in another one's body, the variables are
        # marked there on the way, and the loop must use them with that mark on.
        shared = _written_first(opening, marks, False, loop.shared)
        born = loop.first(before, [x[index] for x in xs_leaves])
        born = _written_first(opening, marks, True, born)

        def flat(c: Any, x: Any) -> Any:
            carry, births, ys = loop.step(shared, *c, x)
            return (carry, births), ys

        (after, born), ys = jax.lax.scan(flat, (before, born), xs_leaves, **options)
        n_ys, n_shared = side["n_ys"], side["shared_def"].num_leaves
        carry_vars = jax.tree.unflatten(var_def, after[n_carry:])
        carry_vars = _with_births(carry_vars, marks, born)
        shared_out = jax.tree.unflatten(side["shared_def"], loop.invariants[:n_shared])
        opening.write_back(shared_out)
        return self.finish(
            after[:n_carry],
            carry_vars,
            ys[:n_ys],
            loop.invariants[n_shared:],
            jax.tree.unflatten(side["stacked_def"], ys[n_ys:]),
        )

    def finish(
        self,
        carry_leaves: list[Any],
        carry_vars: Group,
        ys: list[Any],
        constant: list[Any],
        stacked: list[Group],
    ) -> Any:
        """Writes the variables back and puts the outputs together."""
        opening = self.opening
        outer_log = next((top._root.log for top in opening.tops if top._root.log is not None), None)
        if outer_log is not None:
            outer_log.extend(self.drawn)
        opening.write_back(_writable(opening, carry_vars))
        for group, axis in zip(stacked, self.axes, strict=True):
            opening.write_back(restack(group, axis, self.metadata_params))
        moving, fixed = iter(ys), iter(constant)
        y_leaves = [
            next(fixed) if axis is broadcast or len(ys) == 0 else from_front(next(moving), axis)
            for axis in self.y_axes
        ]
        carry = jax.tree.unflatten(self.carry_def, carry_leaves)
        return carry, jax.tree.unflatten(self.y_def, y_leaves)


def _is_broadcast(axis: Any) -> bool:
    return axis is broadcast


def _no_none(leaf_axes: list[Any], place: str) -> None:
    if any(axis is None for axis in leaf_axes):
        from ..errors import AxesTreeError

        raise AxesTreeError(
            f"{place}: in_axes has None for an array; to hand it whole to each iteration "
            f"use nn.broadcast in its place"
        )


def _not_a_pair(place: str, out: Any) -> BodyReturnError:
    found = describe(out) if not isinstance(out, (tuple, list)) else f"{len(out)} values"
    return BodyReturnError(
        f"{place}: the body must return a pair (carry, ys).\n"
        f"found: {found}\n"
        f"expected: return carry, ys; where there is nothing to stack, return carry, None"
    )


def _carry_error(place: str, what: str, before: str, after: str, hint: str) -> CarryError:
    return CarryError(
        f"{place}: {what} from one iteration to the next.\n"
        f"found: {after} comes out of the body\n"
        f"expected: {before}, as it went in; {hint}"
    )


def _transformed(
    transform: Callable[..., Any], opening: Opening, variables: list[Any], keys: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Applies ``data_transform`` to the groups."""
    groups, key_groups = transform(tuple(variables), tuple(keys))
    return list(groups), list(key_groups)


def _updated(before: Any, after: Any) -> Any:
    """Returns ``before`` with the values of ``after`` where there are any."""
    if isinstance(before, tuple):
        return tuple(_updated(b, a) for b, a in zip(before, after, strict=True))
    if isinstance(before, dict) and isinstance(after, dict):
        return {k: _updated(v, after[k]) if k in after else v for k, v in before.items()}
    return after


def _created(after: Any, before: Any) -> bool:
    """Tells whether ``after`` has a name that ``before`` lacks."""
    if isinstance(after, tuple):
        return any(_created(a, b) for a, b in zip(after, before, strict=True))
    if not (isinstance(after, dict) and isinstance(before, dict)):
        return False
    return any(k not in before or _created(v, before[k]) for k, v in after.items())


def _changed(after: Any, before: Any, marks: Marks) -> Any:
    """Returns what the body wrote to ``before``, but for the births that it left alone."""
    if isinstance(after, tuple):
        return tuple(_changed(a, b, marks) for a, b in zip(after, before, strict=True))
    found = {}
    for key, value in after.items():
        old = before.get(key, None)
        if isinstance(value, dict):
            part = _changed(value, old if isinstance(old, Mapping) else {}, marks)
            if part:
                found[key] = part
        elif value is not old and not marks.stands_on(value):
            found[key] = value
    return found


def _written_first(opening: Opening, marks: Marks, carried: bool, leaves: list[Any]) -> list[Any]:
    """Writes the births' initial values to the scopes outside; returns what stands there."""
    values, found = iter(leaves), []
    for birth in marks.births:
        if birth.carried != carried:
            continue
        value = jax.tree.unflatten(birth.treedef, [next(values) for _ in birth.marks])
        top = opening.tops[birth.top]
        node: Any = value
        for name in reversed(birth.path[1:]):
            node = {name: node}
        top.put_variable(birth.col, birth.path[0], node)
        node = top._own(birth.col)
        for name in birth.path:
            node = node[name]
        found += jax.tree.leaves(node)
    return found


def _final(scope: Any, birth: Any, place: str) -> list[Any]:
    """Returns the value, at the end of the body, of a variable born in it."""
    node = scope._nodes[birth.col]
    for name in birth.path:
        node = node[name]
    leaves, treedef = jax.tree.flatten(node)
    if treedef != birth.treedef:
        raise _carry_error(
            place,
            f"variable {'/'.join((birth.col, *birth.path))} changes its structure",
            str(birth.treedef),
            str(treedef),
            "write a value of the same containers",
        )
    return [jnp.asarray(leaf) for leaf in leaves]


def _with_births(group: Group, marks: Marks, born: list[Any]) -> Group:
    """Puts the carried births' final values among the carried variables."""
    values = iter(born)
    for birth in marks.births:
        if not birth.carried:
            continue
        value = jax.tree.unflatten(birth.treedef, [next(values) for _ in birth.marks])
        node = group[birth.top].setdefault(birth.col, {})
        for name in birth.path[:-1]:
            node = node.setdefault(name, {})
        node[birth.path[-1]] = value
    return group


def _writable(opening: Opening, group: Group) -> Group:
    """Leaves out the collections that may not be written in this call."""
    return tuple(
        {c: v for c, v in collections.items() if top._root.is_mutable(c)}
        for top, collections in zip(opening.tops, group, strict=True)
    )


def _strengthened(before: list[Any], after: list[Any]) -> list[Any] | None:
    """Returns the carry in the dtypes that the body makes of it, None if they agree."""
    kept = [
        old if jax.typeof(old).dtype == new.dtype else jnp.asarray(old, new.dtype)
        for old, new in zip(before, after, strict=True)
    ]
    return None if all(a is b for a, b in zip(kept, before, strict=True)) else kept
