"""The grader: one answer held against the goal, stage by stage; the first that fails speaks.

1. It runs: whatever it raises, with liftax's code and the learner's line.
2. The layout of its variables, against the goal's, at sizes that are all different.
3. Its keys: equal layers, equal masks.
4. Its numbers, on the variables of the goal, at a few small sizes.
5. What it costs, where the exercise has a budget.

Everything here runs in one process, and none of it guards against code that does not end: that is
what `running.py` does, around it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import sys
import time
import traceback
import types
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from ..errors import LiftaxError
from ..layout import Layout, layout
from ..module import Module
from ..words import did_you_mean
from .differences import differences, paired
from .exercises import Exercise
from .grading import Answer, Call, Function, Grading, Model, Values
from .verdict import Failed, Verdict

SEARCH_SECONDS = 1.0
"""How long a smaller size is looked for at which the numbers differ too."""


class Grader:
    """Grades answers to one exercise.

    Example:
      >>> from liftax.practice.exercises import find
      >>> exercise = find("scan-depth")
      >>> Grader(exercise).check(exercise.solution).stage
      'passed'
    """

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise
        self.grading = _declaration(exercise)
        self.goal = _module("goal", str(exercise.folder / "goal.py"), exercise.solution)

    def warm(self) -> None:
        """Grades the solution: what the goal's side needs is then compiled."""
        self.check(self.exercise.solution)

    def check(self, source: str, path: str = "exercise.py") -> Verdict:
        """The verdict on the text of a file; ``path`` is what tracebacks call it."""
        return self._timed(lambda: self.judged(_imported(path, source), source, path))

    def checked(self, yours: types.ModuleType, source: str, path: str) -> Verdict:
        """The verdict on an answer that is there already, as in a notebook."""
        return self._timed(lambda: self.judged(yours, source, path))

    def _timed(self, judged: Callable[[], Verdict]) -> Verdict:
        began = time.monotonic()
        try:
            verdict = judged()
        except Failed as failed:
            verdict = Verdict(self.exercise.name, failed.stage, failed.said, **failed.fields)
        return verdict.replace(seconds=time.monotonic() - began)

    def judged(self, yours: types.ModuleType, source: str, path: str) -> Verdict:
        """The verdict on an answer that has been imported."""
        judge = _Judge(self.grading, yours, self.goal)
        answer = Answer(yours, self.goal, source)
        try:
            with _at_the_line(path, source), warnings.catch_warnings():
                # What liftax warns of, the layout shows as well.
                warnings.simplefilter("ignore")
                judge.layouts()
                _ask("keys", self.grading.keys, answer)
                judge.numbers()
                _ask("budget", self.grading.budget, answer)
                remark = self.grading.remarks(answer) if self.grading.remarks else None
        except Failed as failed:
            # Where the layouts were right they are shown with what failed later.
            failed.fields = judge.shown | failed.fields
            raise
        said = "the same variables in the same places, and the same numbers"
        remarks = (remark,) if remark else ()
        return Verdict(self.exercise.name, "passed", said, remarks=remarks, **judge.shown)


def _ask(stage: str, check: Callable[[Answer], str | None] | None, answer: Answer) -> None:
    wrong = check(answer) if check is not None else None
    if wrong:
        raise Failed(stage, wrong)


# --- the two sides, part by part ----------------------------------------------


class _Judge:
    """One answer beside the goal."""

    def __init__(self, grading: Grading, yours: types.ModuleType, goal: types.ModuleType) -> None:
        self.grading, self.yours, self.goal = grading, yours, goal
        self.shown: dict[str, Any] = {}  # the two layouts that the verdict shows

    def layouts(self) -> None:
        """Stage 2, for all parts: predictions, and where the variables lie."""
        for part in self.grading.parts:
            found(self.yours, part.name)
        for part in self.grading.parts:
            if isinstance(part, Values):
                self.predictions(part)
            elif isinstance(part, Model):
                self.model_layout(part, self.grading.shown)
            else:
                self.function_layout(part, self.grading.shown)

    def predictions(self, part: Values) -> None:
        mine, asked = found(self.yours, part.name), found(self.goal, part.name)
        if not isinstance(mine, Mapping):
            raise Failed("layout", f"{part.name} is {_kind(mine)}; it is to be a dict")
        for key, value in asked.items():
            why = part.why.get(key)
            tail = f": {why}" if why else ""
            if key not in mine:
                raise Failed("layout", f"{part.name} has no entry {key!r}{tail}")
            if mine[key] is Ellipsis:
                raise ValueError(f"{part.name}[{key!r}] is a hole")
            if _plain(mine[key]) != _plain(value):
                raise Failed("layout", f"{part.name}[{key!r}] is not {mine[key]!r}{tail}")

    def model_layout(self, part: Model, sizes: Mapping[str, int]) -> list[Any]:
        call = part.call(**sizes)
        mine = _layout_of(built(self.yours, part.name, call), call)
        goal = _layout_of(built(self.goal, part.name, call), call)
        self.compare(part.name, mine, goal, sizes, nest=part.nest, names=part.names)
        return paired(mine, goal)

    def function_layout(self, part: Function, sizes: Mapping[str, int]) -> None:
        mine = _initialised(found(self.yours, part.name), part.call(**sizes))
        goal = _initialised(found(self.goal, part.name), part.call(**sizes))
        if len(mine) < len(goal):
            said = f"{part.name} never initialises a module; variables come from model.init"
            raise Failed("layout", said)
        for one, other in zip(mine, goal, strict=False):
            self.compare(part.name, one, other, sizes, nest=part.nest)

    def compare(
        self, name: str, mine: Layout, goal: Layout, sizes: Mapping[str, int], **options: bool
    ) -> None:
        layouts = {"yours": mine.to_dict(), "goal": goal.to_dict()}
        differ = differences(mine, goal, sizes, self.grading.advice, **options)
        if not differ:
            self.shown.update(layouts)
            return
        first = str(differ[0])
        # A bias has gone where its kernel went: why is said once.
        rest = [
            str(dataclasses.replace(d, why="" if d.why == differ[0].why else d.why))
            for d in differ[1:]
        ]
        if len(self.grading.parts) > 1:
            first = f"{name}: {first}"
        details = tuple(rest[:3]) + ((f"and {len(rest) - 3} more",) if len(rest) > 3 else ())
        raise Failed("layout", first, details=details, differences=tuple(differ), **layouts)

    def numbers(self) -> None:
        """Stage 4: at the smallest sizes, then at some that hypothesis draws."""
        parts = [p for p in self.grading.parts if not isinstance(p, Values)]
        parts = [p for p in parts if isinstance(p, Function) or p.numbers]
        if not parts:
            return

        def compare(sizes: Mapping[str, int]) -> None:
            for part in parts:
                if isinstance(part, Model):
                    self.model_numbers(part, sizes)
                else:
                    self.function_numbers(part, sizes)

        at_sizes(self.grading.sizes, compare)

    def model_numbers(self, part: Model, sizes: Mapping[str, int]) -> None:
        pairs = self.model_layout(part, sizes)
        call = part.call(**sizes)
        args = filled(call.args)
        outs: list[object] = []
        for side, module in enumerate((self.yours, self.goal)):
            variables = _variables(pairs, side)
            rngs = {stream: jax.random.key(7) for stream in call.streams} or None
            model = built(module, part.name, call)
            mutable = list(call.mutable) or False
            out = model.apply(variables, *args, rngs=rngs, mutable=mutable)
            # What collections come out is compared by pairs, for the names may differ.
            outs.append(_renamed(out, pairs, side) if mutable else out)
        self.equal(part.name, outs[0], outs[1], sizes)

    def function_numbers(self, part: Function, sizes: Mapping[str, int]) -> None:
        call = part.call(**sizes)
        mine, goal = (
            found(module, part.name)(*filled(call.args), **call.fields)
            for module in (self.yours, self.goal)
        )
        self.equal(part.name, mine, goal, sizes)

    def equal(self, name: str, mine: object, goal: object, sizes: Mapping[str, int]) -> None:
        at = f"{name} with {', '.join(f'{k}={v}' for k, v in sizes.items())}" if sizes else name
        wrong = unequal(mine, goal, self.grading.rtol)
        if wrong:
            raise Failed("numbers", f"{at}: {wrong}")


def at_sizes(ranges: Mapping[str, tuple[int, int]], compare: Callable[..., None]) -> None:
    """Calls ``compare`` with the smallest sizes and with drawn ones; the smallest failure counts.

    Hypothesis draws, so that what fails at large sizes only is shown at the smallest of them.
    """
    smallest = {name: low for name, (low, _) in ranges.items()}
    compare(smallest)
    largest = {name: high for name, (_, high) in ranges.items()}
    if largest == smallest:
        return
    if importlib.util.find_spec("hypothesis") is None:
        compare(largest)
        return
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    failed: list[Failed] = []
    until = 0.0

    @settings(
        max_examples=2,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.fixed_dictionaries({k: st.integers(*span) for k, span in ranges.items()}))
    def drawn(sizes: dict[str, int]) -> None:
        nonlocal until
        # Hypothesis begins with the smallest, too.
        if sizes == smallest or (failed and time.monotonic() > until):
            return  # what was found will do: the learner waits
        try:
            compare(sizes)
        except Failed as error:
            until = until or time.monotonic() + SEARCH_SECONDS
            failed.append(error)
            raise

    try:
        drawn()
    except BaseException:
        # Hypothesis finds a test that stops failing flaky; here the clock made it so.
        if failed:
            raise failed[-1] from None
        raise


# --- values -------------------------------------------------------------------


def filled(tree: object) -> Any:
    """Numbers in place of shapes, the same ones every time; all else as it is."""
    counter = iter(range(1_000))

    def numbers(leaf: object) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return _numbers(next(counter), leaf.shape, str(leaf.dtype))

    return jax.tree.map(numbers, tree, is_leaf=lambda leaf: leaf is None)


def _numbers(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind if dtype != "bfloat16" else "f"
    # Small and positive: a variance may be among them, and a deep stack is not to overflow.
    values = rng.uniform(0.1, 0.9, shape) if kind == "f" else rng.integers(0, 2, shape)
    return jax.numpy.asarray(values, dtype)


def _variables(pairs: list[Any], side: int) -> dict[str, Any]:
    """Values for all variables, equal for the two of a pair, in the tree of one side."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        v, named = pair[side], pair[1]
        # By the goal's name: both sides have the same numbers, whatever theirs are called.
        seed = zlib.crc32(f"{named.collection}/{named.name}".encode())
        inner = tree.setdefault(v.collection, {})
        for part in v.path[:-1]:
            inner = inner.setdefault(part, {})
        values = _numbers(seed, v.shape, v.dtype)
        # Weights of both signs, statistics as they are.
        inner[v.path[-1]] = values - 0.5 if v.collection == "params" else values
    return tree


def _renamed(out: Any, pairs: list[Any], side: int) -> Any:
    """An output with the collections that came beside it, under the goal's names."""
    output, collections = out
    flat = {}
    for pair in pairs:
        v, named = pair[side], pair[1]
        inner: Any = collections.get(v.collection)
        for part in v.path:
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        if inner is not None:
            flat[f"{named.collection}/{'/'.join(named.path)}"] = inner
    return output, flat


def unequal(mine: object, goal: object, rtol: float = 1e-4) -> str | None:
    """What is wrong with a result, in words, or nothing; both may be trees."""
    ours, structure = jax.tree.flatten(mine)
    asked, wanted = jax.tree.flatten(goal)
    if structure != wanted:  # type: ignore[operator]
        return f"it returns {_tree_text(mine)}, and is to return {_tree_text(goal)}"
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(goal)]
    for path, one, other in zip(paths, ours, asked, strict=True):
        place = f"output{path}" if path else "the output"
        if np.shape(one) != np.shape(other):
            return f"{place} has shape {np.shape(one)}, and is to have {np.shape(other)}"
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        wrong = ~np.isclose(a, b, rtol=rtol, atol=1e-5, equal_nan=True)
        if wrong.any():
            i = tuple(int(n) for n in np.argwhere(wrong)[0])
            where = f" at {list(i)}" if i else ""
            some = f"; {int(wrong.sum())} of {wrong.size} differ" if wrong.size > 1 else ""
            return f"{place} is {a[i]:.5g}{where}, and is to be {b[i]:.5g}{some}"
    return None


def _tree_text(tree: object) -> str:
    text = str(jax.tree.map(lambda leaf: _Shape(leaf), tree))
    return text if len(text) <= 200 else text[:197] + "..."


class _Shape:
    """Prints as the shape of an array."""

    def __init__(self, leaf: Any) -> None:
        self.text = f"f{list(np.shape(leaf))}" if np.shape(leaf) else "a number"

    def __repr__(self) -> str:
        return self.text


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _kind(value: object) -> str:
    return "a hole" if value is Ellipsis else f"of type {type(value).__name__}"


# --- the learner's names ------------------------------------------------------


def found(module: types.ModuleType, name: str) -> Any:
    """What a file defines under a name."""
    if not hasattr(module, name):
        hint = did_you_mean(name, [n for n in vars(module) if not n.startswith("_")])
        raise Failed("runs", f"the file defines no {name!r}{hint}")
    return getattr(module, name)


def built(module: types.ModuleType, name: str, call: Call) -> Module:
    """An instance of a module that a file defines."""
    model = found(module, name)
    if not isinstance(model, Module):
        if not callable(model):
            raise Failed("runs", f"{name} is {_kind(model)}; it is to be a module class")
        model = model(**call.fields)
    if not isinstance(model, Module):
        raise Failed("runs", f"{name}(...) makes {type(model).__name__}; it is to be a module")
    return model


def _layout_of(model: Module, call: Call) -> Layout:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return layout(model, dict.fromkeys(("params", *call.streams), key), *call.args)


def _initialised(fn: Callable[..., Any], call: Call) -> list[Layout]:
    """The layouts of the modules that a function initialises, in order; nothing is computed."""
    leaves, structure = jax.tree.flatten((call.args, dict(call.fields)))
    is_shape = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]
    given = [leaf for leaf, shape in zip(leaves, is_shape, strict=True) if shape]

    def called(*arrays: object) -> Any:
        left = iter(arrays)
        all_ = [next(left) if s else leaf for leaf, s in zip(leaves, is_shape, strict=True)]
        args, fields = jax.tree.unflatten(structure, all_)
        return fn(*args, **fields)

    with _observed() as seen:
        try:
            jax.eval_shape(called, *given)
        except jax.errors.ConcretizationTypeError:
            # It looks at values, which is no mistake: then at small sizes, with numbers.
            seen.clear()
            fn(*filled(call.args), **call.fields)
    return [layout(module, rngs, *args, **kwargs) for module, rngs, args, kwargs in seen]


@contextmanager
def _observed() -> Iterator[list[tuple[Module, Any, tuple[Any, ...], dict[str, Any]]]]:
    """Lists the calls of `Module.init` while the learner's function runs."""
    seen: list[tuple[Module, Any, tuple[Any, ...], dict[str, Any]]] = []
    names = ("init", "init_with_output")
    held = {name: vars(Module)[name] for name in names}
    inside = False

    def shapes(tree: object) -> Any:
        # A tracer ends with the call that it belongs to; its shape does not.
        return jax.tree.map(
            lambda leaf: (
                jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf
            ),
            tree,
        )

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def init(self: Module, rngs: object, *args: object, **kwargs: object) -> Any:
            nonlocal inside
            # Either may call the other, and a module may initialise more: the learner's own call
            # counts.
            if inside:
                return method(self, rngs, *args, **kwargs)
            inside = True
            try:
                seen.append((self, shapes(rngs), shapes(args), shapes(kwargs)))
                return method(self, rngs, *args, **kwargs)
            finally:
                inside = False

        return init

    for name in names:
        setattr(Module, name, watched(held[name]))
    try:
        yield seen
    finally:
        for name in names:
            setattr(Module, name, held[name])


# --- files, and what they raise -----------------------------------------------


def _module(name: str, path: str, source: str) -> types.ModuleType:
    """Runs a file as a module of its own."""
    module = types.ModuleType(f"liftax_practice_{name}")
    module.__file__ = path
    # Dataclasses look their module up while the class is made.
    sys.modules[module.__name__] = module
    exec(compile(source, path, "exec"), vars(module))
    return module


def _imported(path: str, source: str) -> types.ModuleType:
    with _at_the_line(path, source):
        return _module("answer", path, source)


def _declaration(exercise: Exercise) -> Grading:
    path = exercise.folder / "grading.py"
    grading = _module("grading", str(path), exercise.text("grading.py")).GRADING
    assert isinstance(grading, Grading)
    return grading


@contextmanager
def _at_the_line(path: str, source: str) -> Iterator[None]:
    """Makes a verdict of whatever the learner's code raises, with the line that is to blame."""
    try:
        yield
    except Failed:
        raise
    except SyntaxError as error:
        raise Failed("runs", f"SyntaxError: {error.msg}", **_line(source, error.lineno)) from None
    except SystemExit:
        said = "it calls sys.exit(), which ends the program; an answer only defines names"
        raise Failed("runs", said, **_line(source, _blamed(path))) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        fields = _line(source, _blamed(path))
        holes = _holes(source)
        if holes:
            count = "a hole is" if len(holes) == 1 else f"{len(holes)} holes are"
            said = f"{count} left to fill: `...` in line {', '.join(map(str, holes))}"
            raise Failed("runs", said, **_line(source, holes[0])) from None
        if isinstance(error, LiftaxError):
            raise Failed("runs", str(error), code=error.code, **fields) from None
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            said = "it asks for more memory than an answer may have"
            raise Failed("runs", said, **fields) from None
        said = _said(error)
        raise Failed("runs", said, **fields) from None


def _said(error: BaseException) -> str:
    """An error of Python's or JAX's in a few lines, with what liftax notes on it."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, jax.errors.JAXTypeError):
        del lines[1:]  # where JAX traced it: lines of ours, and the address of a page
    notes = [line for note in getattr(error, "__notes__", ()) for line in note.splitlines()]
    kept = [line for line in notes if "JAX" not in line and not line.startswith("---")]
    return "\n".join([f"{type(error).__name__}: {lines[0]}", *lines[1:6], *kept[:4]])


def _blamed(path: str) -> int | None:
    """The last line of the learner's file that an error passed through."""
    error = sys.exception()
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    return next((f.lineno for f in reversed(frames) if f.filename == path), None)


def _line(source: str, number: int | None) -> dict[str, Any]:
    lines = source.splitlines()
    if number is None or not 1 <= number <= len(lines):
        return {}
    return {"line": number, "source": lines[number - 1]}


def _holes(source: str) -> list[int]:
    """The lines with a `...` to be filled: not one in a subscript, as `x[..., 0]` has."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        for inner in ast.walk(node.slice)
    }
    return sorted(
        {
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and node.value is Ellipsis and id(node) not in inside
        }
    )
