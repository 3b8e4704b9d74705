"""The body of a scan over lists of leaves, for the loop that is traced before it runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from ..core.pack import Group
from ..core.roles import BROADCAST, CARRY, broadcast
from .invariants import Birth, Marks
from .looperrors import check_carried
from .looptrees import changed, final_of, updated, with_births


class Result(NamedTuple):
    """What comes out of the loop, in leaves and groups."""

    carry: list[Any]
    carry_vars: Group
    ys: list[Any]
    constant: list[Any]
    stacked: list[Group]


class FlatBody:
    """The body of a scan over lists of leaves, as `trace_loop` takes it."""

    def __init__(self, call: Any, n_carry: int, var_def: Any, x_def: Any, marks: Marks):
        self.call = call
        self.n_carry = n_carry
        self.var_def = var_def
        self.x_def = x_def
        self.marks = marks
        self.names: list[str] = []
        self.n_ys = 0
        self.shared_def: Any = None
        self.stacked_def: Any = None

    def __call__(self, c: list[Any], x: list[Any]) -> Any:
        call, marks = self.call, self.marks
        opening = call.opening
        marks.clear()
        group = jax.tree.unflatten(self.var_def, c[self.n_carry :])
        inner, carry, ys = call.body(c[: self.n_carry], group, jax.tree.unflatten(self.x_def, x))
        after = updated(group, opening.written(inner, CARRY))
        check_carried(opening, group, after)
        kept = jax.tree.leaves(after)
        births = [
            leaf
            for birth in marks.births
            if birth.carried
            for leaf in final_of(inner[birth.top], birth, opening)
        ]
        shared = changed(opening.written(inner, BROADCAST), call.shared, marks)
        shared_leaves, self.shared_def = jax.tree.flatten(shared)
        self.names = [
            "variable " + "/".join(str(getattr(k, "key", k)) for k in path[1:])
            for path, _ in jax.tree_util.tree_leaves_with_path(shared)
        ]
        numbered = jax.tree.unflatten(call.y_def, range(len(ys)))
        constant, moving = [], []
        for (path, i), axis in zip(
            jax.tree_util.tree_leaves_with_path(numbered), call.y_axes, strict=True
        ):
            if axis is broadcast:
                self.names.append("output ys" + jax.tree_util.keystr(path))
                constant.append(ys[i])
            else:
                moving.append(ys[i])
        self.n_ys = len(moving)
        stacked = call.stacked(inner)
        stacked_leaves, self.stacked_def = jax.tree.flatten(stacked)
        return [*carry, *kept], births, [*moving, *stacked_leaves], [*shared_leaves, *constant]

    def name_of(self, i: int) -> str:
        """Names an invariant: a shared variable that was written, an output, a birth."""
        if i < len(self.names):
            return self.names[i]
        births: list[Birth] = [b for b in self.marks.births if not b.carried for _ in b.marks]
        birth = births[i - len(self.names)]
        return "variable " + "/".join((birth.col, *birth.path))

    def result(
        self, carry: list[Any], born: list[Any], ys: list[Any], invariants: list[Any]
    ) -> Result:
        """Sorts the leaves that came out; writes the shared variables."""
        n, n_shared = self.n_carry, self.shared_def.num_leaves
        shared = jax.tree.unflatten(self.shared_def, invariants[:n_shared])
        self.call.opening.write_back(shared)
        carry_vars = jax.tree.unflatten(self.var_def, carry[n:])
        return Result(
            carry[:n],
            with_births(carry_vars, [b for b in self.marks.births if b.carried], born),
            ys[: self.n_ys],
            invariants[n_shared:],
            jax.tree.unflatten(self.stacked_def, ys[self.n_ys :]),
        )
