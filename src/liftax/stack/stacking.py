"""Which subtrees are layers of one another, and along which axis they are stacked.

Vocabulary
  stacked form   the variables of many layers are one subtree; each array has a layer axis
  layers form    one subtree a layer; no array has the axis
  stacking       one subtree of the stacked form, the subtrees of the layers form that it stands
                 for, and the axis of each collection
  around         what encloses a stacking: the axes that other lifts put into the same arrays

A `Stacking` is plain data. It is taken from a model (`stackings_of`), from the layouts of stacks
or of a traced model (`as_stackings`; both in `checkpoint/find.py`), given by hand (`Stacking.of`)
or read from a checkpoint (`Stacking.from_dict`). Names of variables play no part in what a stacking
means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..core.lift.schedule import Groups
from ..core.types import Path
from ..errors import StackingError
from .arrays import Places

Stackings = tuple["Stacking", ...]
Axes = Mapping[str | bool, int | None]
"""Collection -> axis; `True` stands for every collection that is not named, None for no axis."""
NONE_GONE: frozenset[Path] = frozenset()


class AskedAxes(Axes):
    """Axes that a function knows, of whatever collection it is asked for."""

    def __init__(self, ask: Callable[[str], int | None]):
        self.ask = ask

    def __getitem__(self, name: str | bool) -> int | None:
        return self.ask(name if isinstance(name, str) else "any other")

    def __contains__(self, name: object) -> bool:
        return name is True  # it names no collection

    def __iter__(self) -> Iterator[str | bool]:
        return iter((True,))

    def __len__(self) -> int:
        return 1


@dataclasses.dataclass(frozen=True)
class Around:
    """The axis that an enclosing lift adds: per collection, in the array that it makes.

    `stack` is the stack whose own axis this is, None for any other lift.
    """

    axes: Axes
    stack: Path | None = None

    def axis_of(self, collection: str) -> int | None:
        """The axis that the lift adds to ``collection``."""
        return _axis_in(self.axes, collection)


def _first_axis() -> Axes:
    return {True: 0}


@dataclasses.dataclass(frozen=True)
class Stacking:
    """One subtree of the stacked form and the layers that it holds.

    Args:
      path: where the subtree lies in the stacked form, from the root of a collection.
      layers: where the subtree of each layer lies in the layers form, in the order of the axis.
      axes: collection -> axis, counted in the stacked array as the innermost lift sees it; None
        for a collection without a layer axis; `True` for the rest. `axes=None` says that there is
        no axis at all: one layer, which only has another name in the other form.
      metadata_params: what names the axis in boxed variables (as in `nn.scan`).
      owner: where the whole stack stands, the same for all parts of one stack.
      numbers: the number of each layer in the order in which the layers of the owner run.
      around: what encloses the stack, innermost first.
      inside: stackings within one layer, with paths from that layer.
      keys: the names directly under `path`; what a stack that is the whole model is known by.
      beyond: paths that only a stack of more layers would have.
      mark: by what `around` and a conversion know its axis, the owner where nothing is said; scans
        at one path have one each.
      order: how the layers of a stack that is stored by the stages of a pipeline come to lie along
        the axis; ``layers`` and ``numbers`` are in that order already.
      level: the number of lifts with an axis around the stack, where a trace has told.
      shapes: path from the root of the collection -> shape and dtype of a parameter in the stack,
        where a trace has told.

    Example:
      >>> blocks = Stacking.of("decoder/blocks", 3)
      >>> "/".join(blocks.layers[2])
      'decoder/blocks/layers_2'
    """

    path: Path
    layers: tuple[Path, ...]
    axes: Axes | None = dataclasses.field(default_factory=_first_axis)
    metadata_params: Mapping[str, object] = dataclasses.field(default_factory=dict)
    owner: Path = ()
    numbers: tuple[int, ...] = ()
    around: tuple[Around, ...] = ()
    inside: Stackings = ()
    keys: frozenset[str] | None = None
    beyond: tuple[Path, ...] = ()
    mark: Path = ()
    order: Groups | None = None
    level: int | None = dataclasses.field(default=None, compare=False, repr=False)
    shapes: Mapping[Path, tuple[tuple[int, ...], str]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "mark", self.mark or self.owner)  # frozen, so past its guard
        if not self.layers:
            raise StackingError(f"a stack at {name_of(self.path)} has no layers: give it one")
        if len(set(self.layers)) != len(self.layers):
            raise StackingError(
                f"two layers of the stack at {name_of(self.path)} have one path; "
                f"let names= tell them apart, as in 'layers_{{}}'"
            )
        if self.numbers and len(self.numbers) != len(self.layers):
            raise StackingError(
                f"{len(self.numbers)} numbers for {len(self.layers)} layers at "
                f"{name_of(self.path)}: each layer has one"
            )
        if self.axes is None and len(self.layers) != 1:
            raise StackingError(f"{len(self.layers)} layers at {name_of(self.path)} need axes=")

    @classmethod
    def of(
        cls,
        path: str | Path,
        depth: int,
        *,
        axis: int | Axes | Mapping[str, int | None] = 0,
        names: str = "layers_{}",
        metadata_params: Mapping[str, object] | None = None,
        inside: Iterable[Stacking] = (),
        keys: Iterable[str] | None = None,
    ) -> Stacking:
        """A stack described by hand, as for a checkpoint that says nothing about itself.

        Args:
          path: where the stacked subtree lies, `"decoder/blocks"`; `""` for the whole collection.
          depth: the number of layers.
          axis: the axis of every collection, or collection -> axis.
          names: the path of layer number `{}`, from ``path``, or from the root with a leading slash
            (`"/decoder/block_{}"`).
          metadata_params: what names the axis in boxed variables.
          inside: stacks within one layer, with paths from that layer.
          keys: the names directly under an empty ``path``; only states of optimizers need them.

        Raises:
          StackingError: ``depth`` is not positive, or ``names`` lacks its `{}`.

        Example:
          >>> Stacking.of("decoder", 2, names="/decoder_{}").layers
          (('decoder_0',), ('decoder_1',))
        """
        if depth < 1:
            raise StackingError(f"the stack at {name_of(path)} has depth={depth}, not 1 or more")
        if "{}" not in names:
            raise StackingError(f"names={names!r} lacks the {{}} that stands for a layer's number")
        at = split_path(path)
        # One layer more than there are: its path tells a deeper model when it is met.
        above, below = ((), names[1:]) if names.startswith("/") else (at, names)
        layers = [(*above, *split_path(below.replace("{}", str(i)))) for i in range(depth + 1)]
        made = cls(
            path=at,
            layers=tuple(layers[:-1]),
            axes=dict(axis.items()) if isinstance(axis, Mapping) else {True: axis},
            metadata_params=dict(metadata_params or {}),
            owner=at,
            numbers=tuple(range(depth)),
            keys=None if keys is None else frozenset(keys),
            beyond=(layers[-1],),
        )
        for inner in inside:
            made = hold(made, inner)
        return made

    @property
    def in_order(self) -> Sequence[int]:
        """The number of each layer in the order in which those of the owner run."""
        return self.numbers or range(len(self.layers))

    # --- axes -----------------------------------------------------------------

    def stacks(self, collection: str) -> bool:
        """Whether the variables of ``collection`` have the layer axis.

        Raises:
          StackingError: the stacking does not say.
        """
        if self.axes is None:
            return False
        if collection not in self.axes and True not in self.axes:
            known = ", ".join(map(repr, self.axes))
            raise StackingError(
                f"the stack at {name_of(self.path)} has variables in the collection "
                f"{collection!r}, but its layout only knows {known}: give it an axis with "
                f"axes={{{collection!r}: 0}} (None where it has no layer axis)"
            )
        return self.axis_of(collection) is not None

    def axis_of(self, collection: str) -> int | None:
        """The axis in the stack's own array; see `places` for the whole array."""
        return None if self.axes is None else _axis_in(self.axes, collection)

    def places(self, collection: str, ndim: int, removed: frozenset[Path] = NONE_GONE) -> Places:
        """Where the layer axis lies in a whole array of ``ndim`` axes, and what it leaves behind.

        Args:
          collection: one that the stacking stacks.
          ndim: the number of axes of the stacked array, those of enclosing lifts included.
          removed: the stacks around this one whose axis the array has lost already.

        Raises:
          StackingError: there is no such axis in an array of ``ndim`` axes.
        """
        axis = self.axis_of(collection)
        assert axis is not None
        return placed(axis, self.present(collection, removed), ndim)

    def present(self, collection: str, removed: frozenset[Path]) -> list[int]:
        """The axes that enclosing lifts have put into the arrays, innermost first."""
        # A stack around this one, taken apart before it, has taken its axis along.
        axes = (a.axis_of(collection) for a in self.around if a.stack not in removed)
        return [axis for axis in axes if axis is not None]

    # --- plain data -----------------------------------------------------------

    def to_dict(self, collections: Iterable[str] = ("params",)) -> dict[str, object]:
        """Plain dicts, lists, strings and numbers, ready for JSON.

        Args:
          collections: those that are written out by name.
        """
        collections = tuple(collections)
        return {
            "path": list(self.path),
            "layers": [list(layer) for layer in self.layers],
            "axes": None if self.axes is None else _plain_axes(self.axes, collections),
            "metadata_params": {str(k): v for k, v in self.metadata_params.items()},
            "owner": list(self.owner),
            "numbers": list(self.numbers),
            "around": [
                {
                    "axes": _plain_axes(a.axes, collections),
                    "stack": None if a.stack is None else list(a.stack),
                }
                for a in self.around
            ],
            "inside": [inner.to_dict(collections) for inner in self.inside],
            "keys": None if self.keys is None else sorted(self.keys),
            "beyond": [list(path) for path in self.beyond],
            "mark": list(self.mark),
            **({} if self.order is None else {"order": list(self.order)}),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Stacking:
        """The stacking that `to_dict` wrote.

        Raises:
          StackingError: ``plain`` is something else.
        """
        # The file may say anything: whatever is not as `to_dict` wrote it ends in one error.
        try:
            return cls(
                path=_read_path(plain["path"]),
                layers=tuple(map(_read_path, plain["layers"])),
                axes=None if plain["axes"] is None else _read_axes(plain["axes"]),
                metadata_params={
                    k: tuple(v) if isinstance(v, list) else v
                    for k, v in plain["metadata_params"].items()
                },
                owner=_read_path(plain["owner"]),
                numbers=tuple(map(int, plain["numbers"])),
                around=tuple(_read_around(a["axes"], a["stack"]) for a in plain["around"]),
                inside=tuple(map(cls.from_dict, plain["inside"])),
                keys=None if plain["keys"] is None else frozenset(plain["keys"]),
                beyond=tuple(map(_read_path, plain["beyond"])),
                mark=_read_path(plain.get("mark", [])),
                order=Groups(*map(int, plain["order"])) if plain.get("order") else None,
            )
        except StackingError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StackingError(f"not the description of a stack: {error}") from error

    def along(self, axis: int) -> Stacking:
        """The same layers, stacked along another axis in every collection that is stacked."""
        if self.axes is None:
            return dataclasses.replace(self, inside=tuple(i.along(axis) for i in self.inside))
        return dataclasses.replace(
            self,
            axes=_put_along(self.axes, axis),
            shapes={},
            around=tuple(
                a if a.stack is None else dataclasses.replace(a, axes=_put_along(a.axes, axis))
                for a in self.around
            ),
            inside=tuple(inner.along(axis) for inner in self.inside),
        )

    def walk(self) -> Iterator[Stacking]:
        """This stacking and those inside, outermost first."""
        yield self
        for inner in self.inside:
            yield from inner.walk()


def placed(axis: int, around: Sequence[int], ndim: int) -> Places:
    """Where a layer axis lies in a whole array, and what it leaves behind.

    Args:
      axis: the axis in the stack's own array.
      around: the axes that lifts around the stack add, from the inside out, each in the array
        that its lift makes.
      ndim: the number of axes of the whole array.

    Raises:
      StackingError: there is no such axis.

    Example:
      >>> placed(0, [0], 3).axis  # an ensemble of stacks
      1
    """
    size = ndim - len(around)
    if not -size <= axis < size:
        raise StackingError(f"has {ndim} axes and so no layer axis at {axis}")
    # The axes, called by what they come from, in the order in which the lifts add them.
    layer: list[int | str] = list(range(size - 1))
    whole = [*layer]
    whole.insert(axis % size, "layers")
    for number, other in enumerate(around):
        whole.insert(other % (len(whole) + 1), f"around {number}")
    left = [part for part in whole if part != "layers"]
    # A lift around layers that are stored one by one adds its axis to each of their arrays.
    for number, other in enumerate(around):
        if not -len(layer) - 1 <= other <= len(layer):
            layer = left  # and cannot, where they have too few axes: then nothing moves
            break
        layer.insert(other % (len(layer) + 1), f"around {number}")
    order = tuple(left.index(part) for part in layer)
    return Places(whole.index("layers"), None if order == tuple(range(len(order))) else order)


def name_of(path: str | Iterable[str]) -> str:
    """A path with slashes, for reading; names in files may hold anything.

    Example:
      >>> name_of(("decoder", "blocks")), name_of(()), name_of("two\\nlines")
      ('decoder/blocks', 'the root', 'two\\\\nlines')
    """
    text = path if isinstance(path, str) else "/".join(path)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text or "the root"


def split_path(path: str | Iterable[str]) -> Path:
    """`"a/b"` as a tuple of names."""
    if isinstance(path, str):
        return tuple(part for part in path.split("/") if part)
    return tuple(path)


def _axis_in(axes: Axes, collection: str) -> int | None:
    return axes.get(collection, axes.get(True))


def _plain_axes(axes: Axes, collections: Iterable[str]) -> dict[str, int | None]:
    # A function cannot be written down: it is asked for the collections that there are.
    named: dict[str, int | None] = {}
    if isinstance(axes, AskedAxes):
        named = {n: axes[n] for n in collections if n == "params" or axes[n] != axes[True]}
    return {"*" if name is True else str(name): axis for name, axis in axes.items()} | named


def _put_along(axes: Axes, axis: int) -> Axes:
    if isinstance(axes, AskedAxes):
        return AskedAxes(lambda name: None if axes[name] is None else axis)
    return {name: None if old is None else axis for name, old in axes.items()}


def _read_around(axes: Mapping[str, object], stack: object) -> Around:
    return Around(_read_axes(axes), None if stack is None else _read_path(stack))


def _read_axes(plain: Mapping[str, object]) -> Axes:
    axes: dict[str | bool, int | None] = {}
    for name, axis in plain.items():
        if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
            raise TypeError(f"an axis is {axis!r}, not a whole number")
        axes[True if name == "*" else name] = axis
    return axes


def _read_path(plain: object) -> Path:
    if not isinstance(plain, list) or not all(isinstance(part, str) for part in plain):
        raise TypeError("a path is not a list of names")
    return tuple(plain)


def insert(groups: Stackings, new: Stacking, same: bool = False) -> Stackings:
    """Puts a stacking inside of the one that holds it, or beside the others.

    With ``same``, one at the path of another is inside of it: a scan of a scan.
    """
    for i, group in enumerate(groups):
        if new == group:
            return groups  # said twice is said once: a layout may come with its parts
        if new.path == group.path and not same:
            raise StackingError(
                f"the layout describes the stack at {name_of(new.path)} twice; a stack of stacks "
                f"at one path is Stacking.of(path, depth, inside=[Stacking.of('', depth)])"
            )
        if new.path[: len(group.path)] == group.path:
            held = hold(group, relative(new, group.path), same)
            return (*groups[:i], held, *groups[i + 1 :])
    return (*groups, new)


def hold(group: Stacking, new: Stacking, same: bool = False) -> Stacking:
    """The group with one more stacking inside; that one knows then whose axis is around it."""
    around = new.around
    # A trace has told of the group as one of the lifts around; given by hand it is not there yet.
    if group.axes is not None and not any(a.stack == group.mark for a in around):
        here = Around(group.axes, group.mark)
        if group.level is not None and group.level < len(around):
            at = len(around) - 1 - group.level  # counted from the outside there
            around = (*around[:at], here, *around[at + 1 :])
        else:
            around = (here, *around)
    new = dataclasses.replace(new, around=around)
    return dataclasses.replace(group, inside=insert(group.inside, new, same))


def relative(stacking: Stacking, above: Path) -> Stacking:
    """The stacking with paths from ``above`` on."""
    depth = len(above)
    return dataclasses.replace(
        stacking,
        path=stacking.path[depth:],
        layers=tuple(layer[depth:] for layer in stacking.layers),
        beyond=tuple(path[depth:] for path in stacking.beyond),
    )
