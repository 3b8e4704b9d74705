"""Lifted branches: cond and switch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef

from ... import jax_private
from ...errors import BranchError, ConditionError
from ...pytrees import is_array
from ...words import describe, kind_of
from ..filters import Filter
from ..roles import THROUGH, through_roles
from ..scope import Scope
from ..types import Function, Group, Tree
from .births import Kind, Marks
from .checks import kinds
from .counters import counted, set_counters
from .crossing import Opening
from .one_trace import Loop
from .places import Variables, flat, name_of, nested, rewritten

__all__ = ["cond", "switch"]

T = TypeVar("T")


def cond(
    pred: object,
    true_fun: Callable[..., T],
    false_fun: Callable[..., T],
    scope: Tree,
    *operands: Tree,
    variables: Filter = True,
    rngs: Filter = True,
) -> T:
    """`liftax.cond` over functions of a scope: ``fun(scope, *operands)``.

    Example:
      >>> from liftax.core import apply, lift
      >>> def double(scope, x): return x * 2
      >>> def negate(scope, x): return -x
      >>> float(apply(lambda s, p, x: lift.cond(p, double, negate, s, x))({}, True, 3.0))
      6.0
    """
    opening = Opening(through_roles("cond", variables, rngs), scope, true_fun)
    if not _is_scalar(pred, np.generic):
        raise ConditionError(
            f"{opening.place}: pred must be a scalar: one bool for all.\n"
            f"found: {kind_of(pred)}\n"
            f"expected: bool[], e.g. by .all() or .any(); jnp.where chooses value by value"
        )

    def select(branches: Sequence[Function], *args: object) -> object:
        return jax.lax.cond(pred, *branches, *args)

    return _Call(opening, select, [true_fun, false_fun], operands).run()


def switch(
    index: object,
    branches: Sequence[Callable[..., T]],
    scope: Tree,
    *operands: Tree,
    variables: Filter = True,
    rngs: Filter = True,
) -> T:
    """`liftax.switch` over functions of a scope: ``branch(scope, *operands)``.

    Example:
      >>> from liftax.core import apply, lift
      >>> branches = [lambda scope, x: x * 2, lambda scope, x: -x]
      >>> float(apply(lambda s, i, x: lift.switch(i, branches, s, x))({}, 1, 3.0))
      -3.0
    """
    if not branches:
        raise BranchError("switch: branches is empty; expected at least one function")
    opening = Opening(through_roles("switch", variables, rngs), scope, branches[0])
    if not _is_scalar(index, np.integer):
        raise ConditionError(
            f"{opening.place}: index must be a scalar of an integer type: one branch for all.\n"
            f"found: {kind_of(index)}\n"
            f"expected: int32[] from 0 to {len(branches) - 1}"
        )

    def select(chosen: Sequence[Function], *args: object) -> object:
        return jax.lax.switch(index, chosen, *args)

    return _Call(opening, select, list(branches), operands).run()


def _is_scalar(value: Any, dtype: type) -> bool:
    if isinstance(value, (bool, int, float)):
        return bool(np.issubdtype(type(value), dtype))
    if not is_array(value):
        return False
    return value.shape == () and bool(jnp.issubdtype(value.dtype, dtype))


@dataclasses.dataclass(eq=False)
class _Call:
    """One call of such a lift.

    Attributes:
      select: calls one of the functions that it is given, with the arguments besides.
      functions: the branches, of a scope and the operands.
    """

    opening: Opening
    select: Callable[..., Any]
    functions: list[Function]
    operands: tuple[object, ...]

    def __post_init__(self) -> None:
        self.values, self.keys = self.opening.values(THROUGH), self.opening.keys(False)

    def run(self) -> Any:
        """Runs the branch that is chosen."""
        if not self.opening.can_write(THROUGH):
            return self.untraced()
        # Without jit JAX runs one branch as Python, and so does Linen: its keys alone count.
        if jax_private.jit_is_disabled():
            # JAX says which: an index that is out of range means the nearest.
            chosen = self.select([lambda i=i: i for i in range(len(self.functions))])
            if type(chosen) is int:  # JAX runs but that one
                return self.known(chosen)
        return self.traced()

    def untraced(self) -> Any:
        """Lets JAX trace the branches itself, where nothing can be written."""
        # What each returned is kept for the message, as shapes: nothing of a trace may stay.
        returned: dict[int, object] = {}

        def pure(i: int, fn: Function) -> Callable[..., Any]:
            def run(*operands: object) -> Any:
                y, _ = self.opening.body(fn)([self.values], [self.keys], operands)
                returned[i] = kinds(y)
                return y

            return run

        branches = [pure(i, fn) for i, fn in enumerate(self.functions)]
        try:
            return self.select(branches, *self.operands)
        except TypeError as cause:
            if len(returned) == len(branches):
                _check_same(self.opening, [returned[i] for i in range(len(branches))], cause)
            raise

    def known(self, chosen: int) -> object:
        """Runs the branch that is chosen; after it, what other branches alone would make is made.

        No key counts that those draw: Linen does not look at them.
        """
        opening, functions = self.opening, self.functions
        y, (written,) = opening.body(functions[chosen])([self.values], [self.keys], self.operands)
        opening.write_back(written)
        counts, drawn = counted(opening), len(opening.log or ())
        for fn in functions[:chosen] + functions[chosen + 1 :]:
            branch = _Branch(self, fn, opening.values(THROUGH))
            born = branch.loop.first(self.operands, None)
            opening.write_back(nested(born, len(opening.tops)))
            set_counters(opening, counts)
        if opening.log is not None:
            del opening.log[drawn:]
        return y

    def traced(self) -> Any:
        """Traces each branch once, so that all of them return the same variables.

        A variable that some branches make and others don't is made before the
        branches, in any case; those that make it go on from there.
        """
        # Each branch by itself: what it makes, and the rest of it as a program that takes that.
        opening, operands = self.opening, self.operands
        traced = [_Branch(self, fn, self.values) for fn in self.functions]
        _check_same(opening, [branch.y for branch in traced])
        # What all make, each makes for itself. What some make is made before, outside of any
        # branch, with the value of the first that does.
        common = set.intersection(*(set(branch.marks.births) for branch in traced))
        early: Variables = {}
        for branch in traced:
            for place, value in branch.loop.first(operands, None).items():
                if place not in common:
                    early.setdefault(place, value)
        before = flat(self.values)
        places = [place for branch in traced for place in branch.written]

        def run(branch: _Branch) -> Function:
            def call(operands: Tree, early: Variables) -> tuple[object, Variables]:
                born = branch.loop.first(operands, None)
                born = {place: early.get(place, value) for place, value in born.items()}
                _, _, (y, written) = branch.loop.step({}, operands, born, None)
                # JAX wants the same from all: where one wrote nothing, what stood there.
                after = {**before, **early, **written}
                return y, {place: after[place] for place in (*branch.written, *places)}

            return call

        try:
            y, written = self.select([run(branch) for branch in traced], operands, early)
        except TypeError as cause:
            # JAX compares by leaves, and names none: which variable it is, is found here.
            for place in sorted(set(places), key=repr):
                stands = [branch.written[place] for branch in traced if place in branch.written]
                if len(stands) < len(traced) and place in before:
                    stands.append(before[place])
                _check_same(opening, stands, cause, name_of(place))
            raise
        opening.write_back(nested(written, len(opening.tops)))
        return y


class _Branch:
    """One branch, traced: what it makes, and the kinds of what it writes and returns."""

    def __init__(self, call: _Call, fn: Function, values: Group):
        opening, self.marks = call.opening, Marks()
        before = flat(values)

        def see(inner: Sequence[Scope]) -> None:
            self.marks.listen(inner, {THROUGH: Kind.CARRIED}, opening.tops)

        def body(operands: tuple[object, ...], x: None) -> tuple[object, ...]:
            run = opening.body(fn, see=see)
            y, (after,) = run([values], [call.keys], operands)
            written = rewritten(after, before)
            self.y, self.written = kinds(y), {p: kinds(value) for p, value in written.items()}
            return [], {}, (jax.tree.map(jnp.asarray, y), written), ({}, None)

        self.loop = Loop(body, call.operands, None, self.marks, opening, chooses=False)


def _check_same(
    opening: Opening, values: Sequence[Tree], cause: Exception | None = None, name: str = ""
) -> None:
    """Raises BranchError where the branches make different kinds of values.

    Args:
      opening: for the place.
      values: what each branch returns, or leaves in a variable.
      cause: JAX's own error, where it has noticed first.
      name: the variable; empty for what is returned.
    """
    does, ends = ("leave", f" in {name}") if name else ("return", "")
    first: PyTreeDef
    leaves, first = jax.tree.flatten(values[0])
    for i, value in enumerate(values[1:], 1):
        others, other = jax.tree.flatten(value)
        if other != first:
            raise BranchError(
                f"{opening.place}: the branches {does} different structures{ends}.\n"
                f"found: {kind_of(value)} from branch {i}\n"
                f"expected: {kind_of(values[0])}, as branch 0 {does}s"
            ) from cause
        for a, b in zip(map(jax.typeof, leaves), map(jax.typeof, others), strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise BranchError(
                    f"{opening.place}: the branches {does} different arrays{ends}.\n"
                    f"found: {describe(b)} from branch {i}\n"
                    f"expected: {describe(a)}, as branch 0 {does}s"
                ) from cause
