"""A loop inside one that shares what it makes, as it is in both of Linen's traces of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..types import Group, Metadata, Tree
from .axes import restack, unnamed, unstack
from .forms import choice
from .one_trace import Loop
from .places import Place, Variables, flat, nested, without


def run_both(
    loop: Loop,
    scan: Callable[..., Any],
    made: Variables,
    before: tuple[Tree, Variables],
    xs: Tree,
    left: Iterable[Place],
    metadata_params: Metadata,
) -> tuple[Any, Variables, tuple[Any, list[Group]]]:
    """Runs a loop whose iterations make variables that a loop outside shares.

    In the first trace of the loop outside this one makes them, in the second they come in.

    Args:
      loop: the traced body.
      scan: called like `jax.lax.scan`.
      made: what the iterations share.
      before: the carry, and the carried variables that the body makes.
      xs: what belongs to an iteration, stacked.
      left: the variables that the body leaves as they were made.
      metadata_params: what boxes are told of the axis.

    Returns:
      the carry, those variables, and the outputs with what else was written along an axis.
    """

    def whole(state: tuple[Tree, Variables], x: Tree) -> tuple[object, object]:
        (after, births, ys), new = loop.whole(made, state[0], state[1], x)
        return (after, births), (ys, new)

    def again(state: tuple[Tree, Variables], given: tuple[Tree, Variables]) -> Any:
        x, new = given
        after, births, ys = loop.step(made, state[0], {**state[1], **new}, x)
        return (after, births), ys

    # The first form makes; what it made is written outside, and comes in to the second from there.
    end, (ys, births) = scan(whole, before, xs)
    stand = _written(loop, births, metadata_params)
    first, second = (end, ys), scan(again, before, (xs, stand))
    (after, born), (ys, groups) = choice(first, second, [place[1] for place in births])
    # What the body left as it was made stands outside already.
    return after, born, (ys, [without(group, left) for group in groups])


def _written(loop: Loop, births: Variables, metadata_params: Metadata) -> Variables:
    """Writes the births of all iterations to the scopes outside; returns what stands there.

    There they have their axis, and its name in their boxes.
    """
    opening = loop.opening
    found: Variables = {}
    for axis in opening.roles.axes:
        places = {p: v for p, v in births.items() if opening.tables[p[0]].role(p[1]) == axis}
        group = restack(opening, nested(places, len(opening.tops)), axis, metadata_params)
        stand = loop.write(flat(group))
        for index, col, *names in places:  # a lift made them, which may do so again
            top = opening.tops[index]
            top.call.made_plain.discard((col, (*top.path, *names)))
        back = unnamed(opening, nested(stand, len(opening.tops)), axis, metadata_params)
        found |= flat(unstack(back, axis))
    return found
