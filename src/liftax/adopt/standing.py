"""liftax in flax's place, and back again."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping

from ..errors import LiftWarning
from .places import HOMES, Place, Seen, flax_module, found_in, real_of, stand_in

_UNSET = object()
# These parts of flax hold modules or lifts of their own and have no place here: imported anew,
# they are made of liftax's.
_ANEW = ("flax.linen.fp8_ops", "flax.linen.experimental", "flax.core.nn", "flax.nnx.bridge")


class Adoption:
    """What `install` did, to be undone by `uninstall`.

    Attributes:
      late: the modules that had made classes of flax's Module before.
    """

    def __init__(self, report: bool):
        self.seen = Seen() if report else None
        self.late: list[str] = []
        self._undo: list[Callable[[], object]] = []
        self._afterwards: list[str] = []

    def report(self) -> str:
        """Says which names were taken by whom, and which are flax's own.

        Raises:
          ValueError: `install` was not asked to take notes.
        """
        if self.seen is None:
            raise ValueError("install(report=True) takes notes; this one took none")
        lines = []
        for title, notes in (
            ("taken from liftax", self.seen.taken),
            ("flax's own", self.seen.fell_back),
        ):
            by_asker: dict[str, set[str]] = {}
            for name, asker in notes:
                by_asker.setdefault(asker, set()).add(name.removeprefix("flax."))
            lines.append(f"{title}: {len({name for name, _ in notes})} names")
            for asker, names in sorted(by_asker.items()):
                lines.append(f"  {asker}: {', '.join(sorted(names))}")
        if self.late:
            lines.append(f"made of flax's Module before liftax came: {', '.join(self.late)}")
        return "\n".join(lines)

    def set(self, holder: object, name: str, value: object) -> None:
        """Sets an attribute until `undo`; one that was changed since then stays."""
        # Its own and not an inherited one, which must show through again afterwards.
        before = vars(holder).get(name, _UNSET)
        setattr(holder, name, value)

        def back() -> None:
            # Somebody has put something else there meanwhile, and means it.
            if vars(holder).get(name) is not value:
                return
            if before is _UNSET:
                delattr(holder, name)
            else:
                setattr(holder, name, before)

        self._undo.append(back)

    def enter(self, name: str, module: types.ModuleType) -> None:
        """Puts a module where `import` finds it, and where its package has it."""
        before = sys.modules.get(name)
        sys.modules[name] = module
        self._undo.append(lambda: _put(name, before))
        package, _, last = name.rpartition(".")
        self.set(sys.modules[package], last, module)

    @contextlib.contextmanager
    def made_anew(self) -> Iterator[None]:
        """Imports the modules of `_ANEW` once more around what the block puts in place."""
        before = _forget()
        yield

        def back() -> None:
            made = _forget()
            for name, module in before.items():
                _put(name, module)
                _hold(name, module)
            # What came in meanwhile is flax's again, too.
            self._afterwards = [name for name in _ANEW if name in made and name not in before]

        # Of the things to undo the last: by then all places are flax's.
        self._undo.insert(0, back)
        for name in _ANEW:
            if name in before:
                importlib.import_module(name)

    def undo(self) -> None:
        """Takes everything back, the last thing first."""
        while self._undo:
            self._undo.pop()()
        for name in self._afterwards:
            importlib.import_module(name)


def _put(name: str, module: types.ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module


def _hold(name: str, module: types.ModuleType) -> None:
    """Lets a package have a part as an attribute."""
    package, _, last = name.rpartition(".")
    if package in sys.modules:
        setattr(sys.modules[package], last, module)


def _forget() -> dict[str, types.ModuleType]:
    """Takes the modules of `_ANEW` out of those that are imported, and returns them."""
    names = [n for n in sys.modules if any(n == a or n.startswith(a + ".") for a in _ANEW)]
    return {name: sys.modules.pop(name) for name in names}


_standing: list[Adoption] = []


def install(report: bool = False) -> Adoption:
    """Puts liftax in flax's place, in this process.

    Flax may be imported already, by packages too: what they took from it by name becomes
    liftax's. Classes that they made of flax's Module cannot be changed; they are named in a
    warning. A second call changes nothing.

    Args:
      report: whether to take notes of who asks for what, for `Adoption.report`.

    Raises:
      MissingExtraError: flax is not installed.

    Example:
      >>> import liftax, liftax.adopt
      >>> with liftax.adopt.adopted():
      ...     import flax.linen as nn
      ...     nn.Dense is liftax.Dense
      True
    """
    if _standing:
        return _standing[0]
    said = "liftax.adopt stands in flax's place for what stays flax's (struct, serialization, "
    flax_module("flax.linen", f"{said}training), and flax is not installed")
    adoption = Adoption(report)
    places = {name: stand_in(name, adoption.seen) for name in HOMES}
    real_module = real_of(places["flax.linen"]).Module
    adoption.late = _late(real_module)
    with adoption.made_anew():
        for name, place in places.items():
            adoption.enter(name, place)
    # A package knows its parts as attributes; those of a place are places.
    for name, place in places.items():
        for part in ("kw_only_dataclasses", "frozen_dict", "tracers", "partial_eval"):
            if f"{name}.{part}" in sys.modules:
                place.__dict__[part] = sys.modules[f"{name}.{part}"]
    _standing.append(adoption)
    _rebind(adoption, places)
    _register_boxes()
    if adoption.late:
        text = (
            f"{', '.join(adoption.late[:3])}{', ...' * (len(adoption.late) > 3)} made classes of "
            f"flax's Module before liftax stood in its place; they stay flax's. Call "
            f"liftax.adopt.install() before they are imported, or start the program by `liftax run`"
        )
        warnings.warn(LiftWarning("LX208", text), stacklevel=2)
    return adoption


def uninstall() -> None:
    """Puts flax where it was; what was made of liftax meanwhile stays liftax's."""
    if _standing:
        _standing.pop().undo()


@contextlib.contextmanager
def adopted(report: bool = False) -> Iterator[Adoption]:
    """`install` for a ``with`` block; one inside another changes nothing."""
    outermost = not _standing
    adoption = install(report)
    try:
        yield adoption
    finally:
        if outermost:
            uninstall()


def _is_flaxs_own(name: str) -> bool:
    return name.partition(".")[0] in ("flax", "liftax")


def _late(base: type) -> list[str]:
    """The modules outside of flax that have made classes of its Module."""
    found: set[str] = set()
    todo: list[type] = [base]
    while todo:
        made: list[type] = type.__subclasses__(todo.pop())
        todo += made
        for cls in made:
            if not _is_flaxs_own(cls.__module__):
                found.add(cls.__module__)
    return sorted(found)


def _replacements(places: dict[str, Place]) -> dict[int, tuple[object, object]]:
    """Identity of what is flax's -> it and what stands for it."""
    found: dict[int, tuple[object, object]] = {}
    for name, place in places.items():
        real = real_of(place)
        found[id(real)] = real, place
        for attribute, value in list(vars(real).items()):
            if not isinstance(value, (type, types.FunctionType)) or attribute.startswith("_"):
                continue
            if value.__module__ not in (name, "flax.typing"):
                continue
            with contextlib.suppress(AttributeError):
                ours, is_ours = found_in(place, attribute)
                if is_ours:
                    found.setdefault(id(value), (value, ours))
    return found


def _rebind(adoption: Adoption, places: dict[str, Place]) -> None:
    """Gives the modules that are imported already what they took from flax by name."""
    replacements = _replacements(places)
    inside = tuple(HOMES)
    for name, module in list(sys.modules.items()):
        if name in inside or name.startswith("liftax") or type(module) is not types.ModuleType:
            continue
        for attribute, value in list(vars(module).items()):
            held, ours = replacements.get(id(value), (None, None))
            if held is value and not attribute.startswith("__"):
                adoption.set(module, attribute, ours)


def _register_boxes() -> None:
    """Tells flax's serialization of the boxes, which it then writes as it writes its own."""
    serialization = importlib.import_module("flax.serialization")
    from ..core.boxes import Partitioned
    from ..partitioning import AxisMetadata
    from ..spmd import LogicallyPartitioned

    def state_of(box: Partitioned) -> dict[str, object]:
        return {"value": serialization.to_state_dict(box.value)}

    def restored(box: Partitioned, state: Mapping[str, object]) -> Partitioned:
        return box.replace(value=serialization.from_state_dict(box.value, state["value"]))

    boxes: tuple[type, ...] = Partitioned, LogicallyPartitioned
    for cls in boxes:
        serialization.register_serialization_state(cls, state_of, restored, override=True)
    serialization.register_serialization_state(
        AxisMetadata, lambda names: {}, lambda names, state: names, override=True
    )
