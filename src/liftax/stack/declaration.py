"""What a stack declares: its layers, its options, and what follows from them alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax

from ..core.filters import Filter, in_filter
from ..core.lift.schedule import Groups, Pipeline
from ..core.roles import InPlace, Roles, loop_roles
from ..core.types import Path
from ..errors import StackError
from ..layout.staged import Staged
from ..module import Module, nowrap
from ..words import shown
from .arguments import Block
from .fsdp import FSDP
from .options import Remat, Run, check_remat, in_force, parse_run
from .storage import StackLayout


class Declaration(Module):
    """The fields of a `Stack`, read and checked; `Stack` runs it."""

    # Adopted first: a shared module inside a layer is found to be this one.
    shared: Sequence[Module] = dataclasses.field(default=(), kw_only=True)
    block: Module | Sequence[Module]
    depth: int | None = None
    repeats: int | None = dataclasses.field(default=None, kw_only=True)
    before: Sequence[Module] = dataclasses.field(default=(), kw_only=True)
    after: Sequence[Module] = dataclasses.field(default=(), kw_only=True)
    outputs: bool | str | Sequence[int] = dataclasses.field(default=False, kw_only=True)
    per_layer: Sequence[str] = dataclasses.field(default=(), kw_only=True)
    run: str | Pipeline = dataclasses.field(default="scan", kw_only=True)
    unroll: int | bool = dataclasses.field(default=1, kw_only=True)
    remat: Remat | str | None = dataclasses.field(default="auto", kw_only=True)
    store: str = dataclasses.field(default="stacked", kw_only=True)
    param_axis: int = dataclasses.field(default=0, kw_only=True)
    variable_axes: Mapping[str, int] = dataclasses.field(default_factory=dict, kw_only=True)
    variable_broadcast: Filter = dataclasses.field(default=False, kw_only=True)
    variable_carry: Filter = dataclasses.field(default=False, kw_only=True)
    split_rngs: Mapping[str, bool] = dataclasses.field(default_factory=dict, kw_only=True)
    metadata_params: Mapping[str, object] = dataclasses.field(default_factory=dict, kw_only=True)
    frozen: bool | Sequence[int] = dataclasses.field(default=False, kw_only=True)
    fsdp: FSDP | str | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        # Fields are set past `__setattr__`: what it checks and adopts is for users' assignments.
        own = self.__dict__
        if isinstance(self.per_layer, str):
            own["per_layer"] = (self.per_layer,)
        own["repeats"] = _repeats(self)
        if isinstance(self.fsdp, str):
            own["fsdp"] = FSDP(self.fsdp)
        self._check()
        super().__post_init__()

    @nowrap
    def _check(self) -> None:
        if not isinstance(self.outputs, bool) and self.outputs != "positions":
            self._check_outputs(self.outputs)
        if self.store not in ("stacked", "layers", "circular"):
            raise StackError(
                f"Stack: store expected 'stacked' or 'layers', or 'circular' with a Pipeline; "
                f"found {self.store!r}"
            )
        parse_run(self.run, self.unroll)
        if self.store == "circular":
            self._check_circular()
        check_remat(self.remat, "Stack")
        positions = self.remat.positions if isinstance(self.remat, Remat) else None
        for position in positions or ():
            if not 0 <= position < len(self._pattern):
                raise StackError(
                    f"Stack: Remat(positions=) has {position}; the pattern has positions 0 to "
                    f"{len(self._pattern) - 1}"
                )
        if "params" in self.variable_axes:
            raise StackError("Stack: the axis of 'params' is given by param_axis=")
        self._roles()
        self._frozen()
        self._check_fsdp()

    @nowrap
    def _check_circular(self) -> None:
        if not isinstance(self.run, Pipeline):
            raise StackError(
                f"Stack: store='circular' keeps the layers in the order of a pipeline's stages; "
                f"found run={self.run!r}, expected run=Pipeline(...). Where it is to run in "
                f"another way for once: nn.override_stacks(run=...)"
            )
        self.run.layers(self._count, "Stack")

    @nowrap
    def _check_fsdp(self) -> None:
        if self.fsdp is None:
            return
        if not isinstance(self.fsdp, FSDP):
            raise StackError(
                f"Stack: fsdp expected the name of a mesh axis, an FSDP or None; found "
                f"{shown(self.fsdp)}"
            )
        if self.remat not in (None, "auto", Remat()):
            raise StackError(
                f"Stack: fsdp= runs each layer again in the backward pass, from what entered it; "
                f"found remat={self.remat!r}, expected Remat(), or nothing"
            )
        if self.param_axis != 0:
            raise StackError(
                f"Stack: fsdp= takes layers from the first axis of their parameters; found "
                f"param_axis={self.param_axis}"
            )

    @nowrap
    def _check_outputs(self, outputs: object) -> None:
        if not outputs or not _are_numbers(outputs):
            raise StackError(
                f"Stack: outputs expected True, False, 'positions' or the numbers of layers; "
                f"found {outputs!r}"
            )
        wrong = [i for i in outputs if not 0 <= i < len(self)]  # type: ignore[attr-defined]
        if wrong:
            raise StackError(f"Stack: outputs has layer {wrong[0]}; there are {len(self)} layers")

    # --- what is declared -----------------------------------------------------

    @property
    def _pattern(self) -> Sequence[Block]:
        return self.block  # type: ignore[return-value]

    @nowrap
    def _roles(self) -> Roles:
        # What nothing is said of gets an axis and split keys: layers are apart unless told else.
        axes: dict[Any, Any] = {**self.variable_axes}
        axes.setdefault(True, 0)
        # Of a cache a step of decoding changes one position. By layers each has its own array.
        if self.store == "stacked" and axes[True] == 0:
            axes = {"cache": InPlace(0), **axes}
        splits: dict[Any, bool] = {**self.split_rngs}
        tied = in_filter(self.variable_broadcast, "params")
        if tied:
            # Parameters that are the same in all repeats are made from one key.
            splits.setdefault("params", False)
        elif not in_filter(self.variable_carry, "params"):
            axes = {"params": self.param_axis, **axes}
        splits.setdefault(True, True)
        return loop_roles("stack", axes, self.variable_broadcast, self.variable_carry, splits)

    @nowrap
    def _frozen(self) -> frozenset[int]:
        if isinstance(self.frozen, bool):
            return frozenset(range(len(self)) if self.frozen else ())
        if not _are_numbers(self.frozen):
            raise StackError(
                f"Stack: frozen expected True, False or the numbers of layers, e.g. [0, 1]; "
                f"found {self.frozen!r}"
            )
        wrong = [i for i in self.frozen if not -len(self) <= i < len(self)]
        if wrong:
            raise StackError(f"Stack: frozen has layer {wrong[0]}; there are {len(self)} layers")
        return frozenset(i % len(self) for i in self.frozen)

    @property
    def _order(self) -> Groups | None:
        """The order in which the repeats are stored, None for that in which they run."""
        in_stages = self.store == "circular" and isinstance(self.run, Pipeline)
        return self.run.order if in_stages else None  # type: ignore[union-attr]

    @property
    def _count(self) -> int:
        """The number of repeats."""
        assert self.repeats is not None  # said, or worked out from the depth
        return self.repeats

    @nowrap
    def _in_force(self) -> tuple[Run, Remat | None]:
        """How it runs where it is called now."""
        return in_force(self.run, self.unroll, self.remat, self._count)

    @nowrap
    def _is_scanned(self) -> bool:
        """Whether the layers of the pattern run in a loop of the compiled program."""
        return self._in_force()[0].kind == "scan" and self._count > 1

    @nowrap
    def _stack_layout(self, path: Path) -> StackLayout:
        return StackLayout(
            path,
            len(self.before),
            len(self._pattern),
            self._count,
            len(self.after),
            self.store,
            self._roles().role,
            self.metadata_params,
            order=self._order,
        )

    @nowrap
    def _staged(self, x: object = None) -> Staged | None:
        """How it runs now on ``x``, where that is a pipeline."""
        at = self._in_force()[0].pipeline
        if at is None or self._count % (at.stages * at.repeats):
            return None
        # In a step each stage hands on a microbatch, and a place in the queue moves up.
        sent = sum(leaf.size * leaf.dtype.itemsize for leaf in map(jax.typeof, jax.tree.leaves(x)))
        return Staged(
            at.stages,
            self._count // (at.stages * at.repeats),
            at.microbatches,
            at.repeats,
            at.axis,
            at.steps,
            at.bubble,
            2 * sent // at.microbatches,
            at.delay,
        )

    # Under this name a layout of a model finds out that a module is a stack.
    @nowrap
    def _stack_told(self, path: Path, x: object = None) -> tuple[StackLayout, bool, Staged | None]:
        return self._stack_layout(path), self._is_scanned(), self._staged(x)

    @nowrap
    def layout(self, path: Path = ()) -> StackLayout:
        """Says where the variables of the stack lie, for a stack at ``path``.

        Example:
          >>> import liftax as nn
          >>> nn.Stack(nn.Dense(4), depth=3, param_axis=1).layout().axis_of("params")
          1
        """
        return self._stack_layout(tuple(path))

    @nowrap
    def __len__(self) -> int:
        return len(self.before) + len(self._pattern) * self._count + len(self.after)

    # A stack of no layers is a stack; by its length alone it would count as false.
    def __bool__(self) -> bool:
        return True


def _are_numbers(value: object) -> bool:
    # Numbers of numpy have `__index__` too, but so have bools, which are a mask and no numbers.
    if not isinstance(value, (Sequence, Set)) or isinstance(value, str):
        return False
    return all(hasattr(i, "__index__") and not isinstance(i, bool) for i in value)


def _repeats(stack: Declaration) -> int:
    """Reads ``depth`` and ``repeats``."""
    depth, repeats, size = stack.depth, stack.repeats, len(stack._pattern)
    if size == 0:
        raise StackError("Stack: block is an empty list; expected a layer or a list of layers")
    given = [n for n in (depth, repeats) if n is not None]
    if not given:
        raise StackError("Stack: say how deep it is: depth= layers, or repeats= of the pattern")
    for n in given:
        if isinstance(n, bool) or not hasattr(n, "__index__") or n.__index__() < 0:
            raise StackError(f"Stack: depth and repeats are ints, 0 or more; found {n!r}")
    if depth is not None and depth % size:
        raise StackError(
            f"Stack: depth={depth} is no multiple of the pattern's {size} layers; give the "
            f"remainder as after= (or before=) and say repeats={depth // size}"
        )
    if depth is not None and repeats is not None and depth != repeats * size:
        raise StackError(
            f"Stack: depth={depth} and repeats={repeats} of {size} layers contradict each other; "
            f"drop one"
        )
    return repeats.__index__() if repeats is not None else depth // size  # type: ignore[operator]
