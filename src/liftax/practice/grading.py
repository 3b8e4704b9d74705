"""How an exercise says what a right answer is; `grading.py` in its folder makes one `Grading`.

An answer has parts, each under a name that the learner's file defines: a `Model` (a module class,
or a function that returns a module), a `Function`, or plain `Values`. What is called with which
shapes is a function of a few named sizes, so that the layouts can be compared at telling sizes, for
nothing runs there, and the numbers at small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Call:
    """One call of a part of the answer.

    Shapes (`jax.ShapeDtypeStruct`) anywhere in `args` are filled with numbers; whatever else
    stands there is handed over as it is. `streams` are what `apply` gets keys for, `mutable` the
    collections that come out of it beside the output.
    """

    fields: Mapping[str, object] = field(default_factory=dict)
    args: tuple[object, ...] = ()
    streams: tuple[str, ...] = ()
    mutable: tuple[str, ...] = ()


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    """The shape of an array of float32."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@dataclass(frozen=True)
class Model:
    """A module: its layout is compared with the goal's, and what `apply` makes of equal variables.

    With `nest` the lifts must also stand in the goal's order; without, any nest is right that puts
    the variables in the same places. With `names` the submodules must be called what they are
    called there. `numbers=False` leaves the outputs to `Grading.keys`.
    """

    name: str
    call: Callable[..., Call]
    nest: bool = False
    names: bool = False
    numbers: bool = True


@dataclass(frozen=True)
class Function:
    """A function: its results are compared, and the layouts of the modules that it initialises."""

    name: str
    call: Callable[..., Call]
    nest: bool = False


@dataclass(frozen=True)
class Values:
    """Predictions: a dict whose entries are compared, one by one, with the goal's.

    `why` says, by entry, what settles it; it is shown with the first entry that is wrong.
    """

    name: str
    why: Mapping[str, str] = field(default_factory=dict)


Part = Model | Function | Values


@dataclass(frozen=True)
class Answer:
    """The learner's file and the goal's, both run, for checks that an exercise writes itself."""

    yours: ModuleType
    goal: ModuleType
    source: str


Check = Callable[[Answer], str | None]
"""Looks at an answer, and says in a sentence what is wrong, or nothing."""


@dataclass(frozen=True)
class Grading:
    """What a right answer is.

    Args:
      parts: what the file must define, in the order in which it is judged.
      shown: the sizes at which layouts are compared: all different, so that an axis can be named
        by its size.
      sizes: for each size the smallest and the largest at which numbers are compared.
      shipped: the stage at which the file with its holes fails, and words of that verdict.
      advice: what to say where a lift does other things with a collection than the goal's; keys
        are `"vmap params"`, as in `Difference.why`; the general advice serves where none is given.
      keys: equal layers, equal masks: a check of what is drawn.
      budget: traces, loops, bytes: a check of what it costs.
      remarks: what may be said of an answer that is right.
    """

    parts: tuple[Part, ...]
    shown: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    shipped: tuple[str, str] = ("runs", "hole")
    advice: Mapping[str, str] = field(default_factory=dict)
    keys: Check | None = None
    budget: Check | None = None
    remarks: Check | None = None
    rtol: float = 1e-4
