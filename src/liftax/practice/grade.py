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

import dataclasses
import importlib.util
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from ..layout import Layout, layout
from ..module import Module
from ..pytrees import is_array, split
from ..words import did_you_mean
from .differences import differences, paired
from .exercises import Exercise
from .grading import Answer, Call, Function, Grading, Model, Values
from .raised import at_the_line
from .values import filled, renamed, unequal, variables_of
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
            with at_the_line(path, source), warnings.catch_warnings():
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
            variables = variables_of(pairs, side)
            rngs = {stream: jax.random.key(7) for stream in call.streams} or None
            model = built(module, part.name, call)
            mutable = list(call.mutable) or False
            out = model.apply(variables, *args, rngs=rngs, mutable=mutable)
            # What collections come out is compared by pairs, for the names may differ.
            outs.append(renamed(out, pairs, side) if mutable else out)
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
    inputs = (call.args, dict(call.fields))
    given, rest = split(inputs, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def called(*arrays: object) -> Any:
        args, fields = rest.filled(arrays)
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
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array(leaf) else leaf,
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


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _kind(value: object) -> str:
    return "a hole" if value is Ellipsis else f"of type {type(value).__name__}"


# --- files --------------------------------------------------------------------


def _module(name: str, path: str, source: str) -> types.ModuleType:
    """Runs a file as a module of its own."""
    module = types.ModuleType(f"liftax_practice_{name}")
    module.__file__ = path
    # Dataclasses look their module up while the class is made.
    sys.modules[module.__name__] = module
    exec(compile(source, path, "exec"), vars(module))
    return module


def _imported(path: str, source: str) -> types.ModuleType:
    with at_the_line(path, source):
        return _module("answer", path, source)


def _declaration(exercise: Exercise) -> Grading:
    path = exercise.folder / "grading.py"
    grading = _module("grading", str(path), exercise.text("grading.py")).GRADING
    assert isinstance(grading, Grading)
    return grading
