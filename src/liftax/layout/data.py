"""What a `Layout` says: every variable, the origin of each of its axes, and the nest of lifts.

Plain frozen data. `liftax.layout()` fills it in from one abstract trace; the terminal table, the
page and the findings only read it. Lifts are kept flat and in order of appearance, each with the
index of its parent, so that an axis refers to its lift by a number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

from ..core.types import Metadata
from ..words import did_you_mean
from .grouped import grouped
from .staged import Staged
from .wording import human_bytes, short_file_line

# What a reader is told, in words, where the engine has an axis number or a word of its own.
Role = Literal["stacked", "shared", "carried", "through", "mapped", "differentiated", "absent"]

ROLE_WORDS: dict[str, str] = {
    "stacked": "one slice for each iteration",
    "shared": "the same for all iterations",
    "carried": "handed from one iteration to the next",
    "through": "passes unchanged",
    "differentiated": "derivatives are taken with respect to it",
    "mapped": "changed on the way in and on the way out",
    "absent": "not available inside",
}


@dataclass(frozen=True)
class Axis:
    """One axis of a variable: its size, its name, and the lift it came from.

    `lift` is an index into `Layout.lifts`, or `None` where the layer itself made the axis.
    """

    size: int
    label: str | None = None
    lift: int | None = None

    @property
    def origin(self) -> str:
        """`"lift"` or `"layer"`."""
        return "layer" if self.lift is None else "lift"


@dataclass(frozen=True)
class Along:
    """What one enclosing lift does with one variable.

    `axis` is the position in the variable's full shape where the role is `"stacked"`. `split`
    says whether the stream that initialises the variable is split along the lift, `None` where no
    stream is involved or the lift has no axis.
    """

    lift: int
    role: Role
    axis: int | None = None
    split: bool | None = None


@dataclass(frozen=True)
class VariableLayout:
    """One array: where it is, what it is, and how each axis and each lift bear on it.

    `leaf` tells the arrays of a variable that is a pytree apart (`"[0]"`); `layer` is the class
    of the module that owns the variable, where known. `stats` are of its values, where they were
    given (`Layout.with_values`), and `per_layer` those of each slice along the outermost loop.
    """

    collection: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    axes: tuple[Axis, ...] = ()
    along: tuple[Along, ...] = ()
    layer: str | None = None
    leaf: str = ""
    stats: Stats | None = None
    per_layer: tuple[Stats, ...] = ()

    @property
    def name(self) -> str:
        """The path with slashes, without the collection."""
        return "/".join(self.path) + self.leaf

    @property
    def elements(self) -> int:
        """The number of elements of the array."""
        return math.prod(self.shape)

    # Outermost: that is what a user counts layers by.
    @property
    def layer_axis(self) -> int | None:
        """The axis of the outermost lift that stacks the variable."""
        return next((a.axis for a in self.along if a.axis is not None), None)

    @property
    def slice_label(self) -> str:
        """What the slices along that axis are called."""
        axis = self.layer_axis
        return "slice" if axis is None else self.axes[axis].label or "slice"

    @property
    def lifts(self) -> tuple[int, ...]:
        """The lifts around the variable, outermost first."""
        return tuple(a.lift for a in self.along)


@dataclass(frozen=True)
class LiftNode:
    """One lift of the nest: what it is, what it lifts, and what it does with each collection.

    `roles` maps collections that occur in the layout to a role; `splits` maps rng streams to
    whether they are split. `takes`, `carries` and `gives` are the shapes that one iteration sees.
    `file_line` is where the body stands, `made_at` where the user lifted it, `called_at` where
    that was called. `staged` is what a stack says that runs as a pipeline; `order` has the stages
    and repeats by which its layers are stored, `()` where they lie as they run.
    """

    index: int
    kind: str
    target: str
    path: tuple[str, ...] = ()
    parent: int | None = None
    size: int | None = None
    axis_name: str | None = None
    file_line: str | None = None
    carry: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, bool] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)
    takes: str = ""
    carries: str = ""
    gives: str = ""
    made_at: str | None = None
    called_at: str | None = None
    quiet: tuple[str, ...] = ()
    batch: bool = False
    staged: Staged | None = None
    order: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The name of the axis: as given to the lift, or from the kind of the lift."""
        return self.axis_name or self.kind

    @property
    def title(self) -> str:
        """`scan × 12 over Block`."""
        size = "" if self.size is None else f" × {self.size}"
        return f"{self.kind}{size} over {self.target}"

    @property
    def where(self) -> str:
        """`file:line` of the body, shortened for reading."""
        return short_file_line(self.file_line)

    @property
    def lifted_at(self) -> str:
        """`file:line` of the lift, shortened: where it was made or, not knowing that, called."""
        return short_file_line(self.made_at or self.called_at)


@dataclass(frozen=True)
class ModuleNode:
    """One module: its class, what its method takes and gives, and who calls it.

    `uses` has one entry for each call from another module: `"the path of that module.method"`;
    a module with two or more is shared. `flops` is what one forward pass of the whole model
    spends in it, by `with_cost()`. `lifts` are those around it, outermost first.
    """

    path: tuple[str, ...]
    layer: str
    takes: str = ""
    gives: str = ""
    uses: tuple[str, ...] = ()
    lifts: tuple[int, ...] = ()
    flops: float | None = None


@dataclass(frozen=True)
class Stats:
    """What the numbers of one array are like; `zeros` and `nonfinite` are shares from 0 to 1.

    The others are of the finite ones alone, and None where there is none.
    """

    mean: float | None
    spread: float | None
    smallest: float | None
    largest: float | None
    zeros: float
    nonfinite: float


@dataclass(frozen=True)
class Enclosing:
    """A lift with an axis around a stack.

    `roles` maps collections to the axis that the lift adds to their variables, or to a word where
    it adds none; `"*"` stands for all that are not named. `stack` is the stack whose own loop
    this is, `None` for any other lift.
    """

    kind: str
    size: int | None
    roles: Mapping[str, int | str | None]
    stack: tuple[str, ...] | None = None

    def axis_of(self, collection: str) -> int | None:
        """The axis that the lift adds to a collection's variables."""
        role = self.roles.get(collection, self.roles["*"])
        return role if isinstance(role, int) else None


@dataclass(frozen=True)
class StackNode:
    """One `nn.Stack`: which layers it has, and where the variables of each lie.

    `before`, `positions`, `repeats` and `after` count layers as `nn.StackLayout` does; `roles` are
    those of the stack's own loop, as in `Enclosing`; `around` has the lifts with an axis around
    the stack, outermost first. `scanned` says whether it runs as a loop of the compiled program;
    `order` has the stages and repeats of a pipeline by which the layers are stored.
    """

    path: tuple[str, ...]
    before: int
    positions: int
    repeats: int
    after: int
    store: str
    roles: Mapping[str, int | str | None]
    metadata_params: Metadata = field(default_factory=dict)
    around: tuple[Enclosing, ...] = ()
    scanned: bool = False
    order: tuple[int, int] | None = None


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing about a layout; `liftax.errors.RULES` is the table of rules."""

    code: str
    severity: str
    title: str
    message: str
    lifts: tuple[int, ...] = ()
    variables: tuple[str, ...] = ()
    page: str = ""


@dataclass(frozen=True)
class Cost:
    """One forward pass, by the analysis of the compiled program; `None` where it does not say.

    A scan's body counts as often as it runs; the body of a `while_loop` counts once.
    """

    backend: str
    flops: float | None = None
    bytes_accessed: float | None = None
    peak_temporary_bytes: int | None = None
    argument_bytes: int | None = None
    output_bytes: int | None = None


Measured = tuple[Cost, Mapping[tuple[str, ...], float]]
"""The cost of a forward pass, and the FLOPs of each module in it by path."""


@dataclass(frozen=True)
class Residual:
    """An array that is kept.

    Attributes:
      module: the path of the module that computed it.
      operation: what computed it, in JAX's word; ``"carry"`` for what enters an iteration.
      shape: its shape, the axes of the loops around it first.
      dtype: its dtype.
      bytes: what it takes, of all iterations.
      loops: the lengths of those loops, outermost first.
      dear: whether it would take long to compute again: a product, or what a kernel returns.
      loop: the outermost of those loops, as an index into `Residuals.loops`; None in no loop.
    """

    module: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    loops: tuple[int, ...]
    dear: bool
    loop: int | None = None


@dataclass(frozen=True)
class Loop:
    """A loop of a forward pass, in no other.

    Attributes:
      place: the path of the module in which it stands.
      length: how often it runs.
      products: the bytes of all that is dear in it, and of what enters each iteration: what
        `Remat("products")` keeps at most.
    """

    place: str
    length: int
    products: int


@dataclass(frozen=True)
class Residuals:
    """All that a backward pass keeps, besides the variables themselves.

    Attributes:
      rows: the residuals, in the order in which they are computed.
      loops: the outermost loops that they come from.
    """

    rows: tuple[Residual, ...]
    loops: tuple[Loop, ...] = ()

    @property
    def bytes(self) -> int:
        """What all take together."""
        return sum(row.bytes for row in self.rows)

    @property
    def cheap_bytes(self) -> int:
        """What those take that are cheap to compute again."""
        return sum(row.bytes for row in self.rows if not row.dear)

    @property
    def total(self) -> str:
        """`7.5 KiB kept, 0 B of it cheap`."""
        return f"{human_bytes(self.bytes)} kept, {human_bytes(self.cheap_bytes)} of it cheap"

    def by_module(self) -> dict[str, int]:
        """The bytes of each module, by its path."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.module] = found.get(row.module, 0) + row.bytes
        return found

    def __str__(self) -> str:
        rows = [
            (
                f"{row.dtype}[{','.join(map(str, row.shape))}]",
                human_bytes(row.bytes),
                row.operation if row.dear else f"{row.operation}, cheap",
                row.module,
            )
            for row in self.rows
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
        lines = ["  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*(line.rstrip() for line in lines), self.total])


@dataclass(frozen=True)
class CollectionTotal:
    """The sum over one collection."""

    collection: str
    variables: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class LiftTotal:
    """What one lift means for the number of parameters inside it.

    `parameters` counts all inside the lift; `per_iteration` those that one iteration uses;
    `shared` those that all iterations use together; `if_shared` what `parameters` would be if
    the lift's axis were shared too.
    """

    lift: int
    parameters: int
    per_iteration: int
    shared: int
    if_shared: int


@dataclass(frozen=True, repr=False)
class LayoutData:
    """What a `Layout` knows: see shown.py for what it shows.

    `traced` says whether a trace of the model told of lifts; arrays and files do not tell.
    `absent` are the streams that were asked for and not given, so that `params` stood in. `kept` is
    what a backward pass keeps, of a layout that was made with `grads=True`.
    """

    module: str
    variables: tuple[VariableLayout, ...] = ()
    lifts: tuple[LiftNode, ...] = ()
    findings: tuple[Finding, ...] = ()
    arguments: str = ""
    file_line: str | None = None
    cost: Cost | None = None
    stacks: tuple[StackNode, ...] = ()
    traced: bool = True
    modules: tuple[ModuleNode, ...] = ()
    absent: tuple[str, ...] = ()
    kept: Residuals | None = None
    measure: Callable[[], Measured] | None = field(default=None, compare=False)

    # What measures the cost holds the model and a trace; it stays where it was made.
    def __getstate__(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"measure": None}

    def __copy__(self) -> Self:
        return self  # it is frozen

    def __deepcopy__(self, memo: object) -> Self:
        return self

    # --- looking things up ----------------------------------------------------

    def __getitem__(self, name: str) -> VariableLayout:
        """The variable called `collection/path`, as in `layout["params/Dense_0/kernel"]`."""
        try:
            return self._by_name[name]
        except KeyError:
            # A KeyError, as of any mapping, but one that helps.
            hint = did_you_mean(name, self._by_name)
            raise KeyError(f"the layout of {self.module} has no variable {name!r}{hint}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[VariableLayout]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)

    @cached_property
    def _by_name(self) -> dict[str, VariableLayout]:
        return {f"{v.collection}/{v.name}": v for v in self.variables}

    @cached_property
    def children(self) -> dict[int | None, tuple[int, ...]]:
        """Lift -> the lifts directly inside it; `None` -> the outermost ones."""
        found = grouped(self.lifts, lambda lift: lift.parent)
        return {parent: tuple(lift.index for lift in inside) for parent, inside in found.items()}

    @cached_property
    def inside(self) -> dict[int | None, tuple[VariableLayout, ...]]:
        """Lift -> the variables whose innermost lift it is; `None` -> those in no lift."""
        found = grouped(self.variables, lambda v: v.along[-1].lift if v.along else None)
        return {lift: tuple(vs) for lift, vs in found.items()}

    @cached_property
    def by_collection(self) -> dict[str, list[VariableLayout]]:
        """The variables of each collection, `params` first."""
        groups = grouped(self.variables, lambda v: v.collection)
        return dict(sorted(groups.items(), key=lambda g: (g[0] != "params", g[0])))

    def around(self, lift: LiftNode) -> list[LiftNode]:
        """The lifts with an axis around a lift, outermost first."""
        found: list[LiftNode] = []
        while lift.parent is not None:
            lift = self.lifts[lift.parent]
            if lift.size is not None:
                found.insert(0, lift)
        return found

    # --- totals ---------------------------------------------------------------

    @property
    def parameters(self) -> int:
        """The number of elements in the collection `params`."""
        return sum(v.elements for v in self.variables if v.collection == "params")

    @property
    def bytes(self) -> int:
        """The bytes of all variables together."""
        return sum(v.bytes for v in self.variables)

    @cached_property
    def collections(self) -> tuple[CollectionTotal, ...]:
        """Totals by collection, `params` first."""
        return tuple(
            CollectionTotal(
                name, len(group), sum(v.elements for v in group), sum(v.bytes for v in group)
            )
            for name, group in self.by_collection.items()
        )

    @cached_property
    def by_lift(self) -> tuple[LiftTotal, ...]:
        """Totals by lift, for the lifts that have an axis and parameters inside."""
        stacked: dict[int, int] = {}
        other: dict[int, int] = {}
        for v in self.variables:
            if v.collection == "params":
                for a in v.along:
                    sums = stacked if a.role == "stacked" else other
                    sums[a.lift] = sums.get(a.lift, 0) + v.elements
        totals = []
        for lift in self.lifts:
            if lift.size is None or not (lift.index in stacked or lift.index in other):
                continue
            own, shared = stacked.get(lift.index, 0), other.get(lift.index, 0)
            # A loop of no iterations has no iteration to count.
            one = own // lift.size + shared if lift.size else shared
            totals.append(LiftTotal(lift.index, own + shared, one, shared, one))
        return tuple(totals)

    def replace(self, **changes: Any) -> Self:
        """The layout with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_cost(self) -> Self:
        """The layout with `cost` filled in: compiles one forward pass, without running it.

        Raises:
          ValueError: the layout was read back from a file and knows its model no more.
        """
        if self.measure is None:
            raise ValueError(
                f"the layout of {self.module} was not made by liftax.layout() in this process; "
                f"call liftax.layout(module, rngs, ...).with_cost()"
            )
        cost, flops = self.measure()
        modules = tuple(replace(node, flops=flops.get(node.path)) for node in self.modules)
        return self.replace(cost=cost, modules=modules)

    @property
    def brought_together(self) -> str:
        """What is said of stacks whose scan goes over layers that lie apart; may be empty."""
        apart = [node for node in self.stacks if node.store == "layers" and node.scanned]
        named = ", ".join("/" + "/".join(node.path) for node in apart)
        if not apart:
            return ""
        return (
            f"stored apart and scanned: {named}; each call stacks the variables of the layers and "
            f"each gradient takes them apart, which doubles the operations: run='loop' reads them "
            f"where they lie, store='stacked' has them together"
        )

    # --- showing --------------------------------------------------------------

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{n:,} {word if n == 1 else word + 's'}"
            for n, word in (
                (len(self.variables), "variable"),
                (self.parameters, "parameter"),
                (len(self.lifts), "lift"),
                (len(self.findings), "finding"),
            )
        )
        return f"<Layout of {self.module}: {counts}; print it for the table>"

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON; `from_dict` reads them back."""
        plain = _plain(dataclasses.asdict(self.replace(measure=None)))
        del plain["measure"]
        plain["totals"] = {
            "variables": len(self.variables),
            "parameters": self.parameters,
            "bytes": self.bytes,
            "collections": _plain([dataclasses.asdict(t) for t in self.collections]),
            "lifts": _plain([dataclasses.asdict(t) for t in self.by_lift]),
        }
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The layout that `to_dict` wrote."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: _read(name, part) for name, part in plain.items() if name in known})


# --- plain data, and back -----------------------------------------------------

_HELD: dict[str, Callable[..., object]] = {
    "variables": VariableLayout,
    "axes": Axis,
    "along": Along,
    "stats": Stats,
    "per_layer": Stats,
    "lifts": LiftNode,
    "staged": Staged,
    "findings": Finding,
    "cost": Cost,
    "stacks": StackNode,
    "around": Enclosing,
    "modules": ModuleNode,
    "kept": Residuals,
    "rows": Residual,
    "loops": Loop,
}
"""By the name of a field, what each mapping in it was."""


def _read(name: str, plain: Any) -> Any:
    """What `_plain` was given for a field: a tuple for a list, of what `_HELD` says."""
    if isinstance(plain, list):
        return tuple(_read(name, part) for part in plain)
    if not isinstance(plain, Mapping):
        return plain
    # What was a mapping already has names of its own, which are no fields.
    if name not in _HELD:
        return {key: _read("", value) for key, value in plain.items()}
    return _HELD[name](**{part: _read(part, value) for part, value in plain.items()})


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)
