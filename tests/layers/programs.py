"""Whether two traced programs do the same arithmetic, without running them.

Each value gets a number that stands for the operation, its parameters and its operands; two
programs whose results have the same numbers compute the same bits. Calls are inlined, what no
result needs is never looked at, the scale of attention is worked out, taking off zero does
nothing, and axes of size 1 may come and go around elementwise operations. Programs that differ
may still agree in their results: run those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from helpers.compare import assert_same
from helpers.interpret import _CALLS, evaluate
from jax.extend import core as jex

from liftax.equations import as_scan

# Options that do not change the result: the type in which a product is returned is its own.
_IDLE = ("preferred_element_type", "weak_type", "name", "sharding", "out_sharding")

_ELEMENTWISE = frozenset(
    "add sub mul div max min square sqrt rsqrt neg exp tanh logistic convert_element_type pow "
    "integer_pow select_n real imag eq ne lt le gt ge and or not add_any".split()
)


class Numbering:
    """Numbers of values, shared by the programs that are compared."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._constants: dict[int, np.ndarray] = {}
        self._reshapes: dict[int, tuple[int, tuple[int, ...]]] = {}

    def of(self, *key: Any) -> int:
        """The number of what `key` describes."""
        return self._numbers.setdefault(key, len(self._numbers))

    def constant(self, value: Any) -> int:
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(value))
            return self.of("key", str(value.dtype), data.shape, data.tobytes())
        array = np.asarray(value)
        number = self.of("constant", array.shape, str(array.dtype), array.tobytes())
        self._constants[number] = array
        return number

    def program(self, closed: Any, inputs: Sequence[int]) -> list[int]:
        """The numbers of a program's results, given those of its inputs."""
        jaxpr, consts = _open(closed)
        known: dict[Any, int] = {}
        known.update(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> int:
            if isinstance(atom, jex.Literal):
                return self.constant(np.asarray(atom.val, atom.aval.dtype))
            return known[atom]

        for eqn in jaxpr.eqns:
            found = self._equation(eqn, [read(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, inputs: list[int]) -> list[int]:
        name, params = eqn.primitive.name, eqn.params
        if name in _CALLS:
            return self.program(params[_CALLS[name]], inputs)
        if name == "scan":
            return self._scan(eqn, inputs)
        if name == "cond":
            branches = [self.program(branch, inputs[1:]) for branch in params["branches"]]
            return [self.of("cond", inputs[0], results) for results in zip(*branches, strict=True)]
        if name in ("stop_gradient", "name", "random_clone"):
            return inputs
        if all(n in self._constants for n in inputs):
            known = self._fold(eqn, [self._constants[n] for n in inputs])
            if known is not None:
                return [self.constant(known)]
        shapes = tuple((v.aval.shape, str(v.aval.dtype)) for v in eqn.outvars)
        given = [v.aval.shape for v in eqn.invars]
        options = tuple(sorted((k, self._option(v)) for k, v in params.items() if k not in _IDLE))
        if name in ("reshape", "squeeze", "expand_dims"):
            return [self._reshape(inputs[0], given[0], shapes[0])]
        if name == "broadcast_in_dim" and given[0]:
            if _size(given[0]) == _size(shapes[0][0]) > 0:
                return [self._reshape(inputs[0], given[0], shapes[0])]
            origin, _ = self._reshapes.get(inputs[0], (inputs[0], given[0]))
            placed = zip(params["broadcast_dimensions"], given[0], strict=True)
            return [self.of(name, origin, tuple(p for p in placed if p[1] != 1), shapes)]
        if name == "sub" and self._is_zeros(inputs[1]) and given[0] == shapes[0][0]:
            return [inputs[0]]
        if name in _ELEMENTWISE:
            origins = [self._reshapes.get(n) for n in inputs if not self._is_scalar(n)]
            before = {None if o is None else o[1] for o in origins}
            if len(before) == 1 and None not in before and set(given) <= {(), shapes[0][0]}:
                (shape,) = before
                moved = [n if self._is_scalar(n) else self._reshapes[n][0] for n in inputs]
                key = (name, options, _ordered(name, moved), ((shape, shapes[0][1]),))
                return [self._reshape(self.of(*key, 0), shape, shapes[0])]
        key = (name, options, _ordered(name, inputs), shapes)
        return [self.of(*key, i) for i in range(len(shapes))]

    def _fold(self, eqn: Any, values: list[np.ndarray]) -> Any:
        """The value of an operation on constants, of those few where the libraries differ."""
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        if name == "convert_element_type" and values[0].shape == ():
            return values[0].astype(out.dtype)
        if name == "sqrt" and values[0].shape == ():
            return np.sqrt(values[0])
        if name == "broadcast_in_dim" and values[0].shape == ():
            return np.broadcast_to(values[0], out.shape)
        if name in ("reshape", "broadcast_in_dim") and values[0].size == _size(out.shape):
            return values[0].reshape(out.shape)
        if not values and name.startswith("liftax"):
            return eqn.primitive.bind(**eqn.params)
        return None

    def _is_scalar(self, number: int) -> bool:
        return number in self._constants and self._constants[number].shape == ()

    def _is_zeros(self, number: int) -> bool:
        return number in self._constants and not self._constants[number].any()

    def _reshape(self, number: int, given: tuple[int, ...], made: tuple[Any, str]) -> int:
        """The number of a value under another shape; that of the value itself under its own."""
        origin, shape = self._reshapes.get(number, (number, given))
        if shape == made[0]:
            return origin
        result = self.of("reshape", origin, made)
        self._reshapes[result] = (origin, shape)
        return result

    def _scan(self, eqn: Any, inputs: list[int]) -> list[int]:
        """Each result by the part of the loop that it depends on."""
        scan = as_scan(eqn)
        assert scan is not None
        body, n, m = scan.body, scan.shared, scan.carried
        jaxpr = _open(body)[0]
        uses = _uses(jaxpr, jaxpr.invars[n : n + m])
        results: list[int] = []
        for j in range(len(jaxpr.outvars)):
            needed = uses[j] | ({j} if j < m else set())
            while (more := needed.union(*(uses[i] for i in needed))) != needed:
                needed = more
            ranks = {i: rank for rank, i in enumerate(sorted(needed))}
            # Constants keep the numbers that they have outside.
            numbers = list(inputs[:n])
            numbers += [self.of("carry", inputs[n + i], ranks.get(i, -1)) for i in range(m)]
            numbers += [self.of("x", x) for x in inputs[n + m :]]
            out = self.program(body, numbers)
            made = tuple(out[i] for i in sorted(needed))
            loop = (scan.length, eqn.params["reverse"], made)
            results.append(self.of("scan", loop, ranks[j] if j < m else ("y", out[j])))
        return results

    def _option(self, value: Any) -> str:
        if isinstance(value, (jex.ClosedJaxpr, jex.Jaxpr)):
            variables = _open(value)[0].invars
            inputs = [self.of("input", i, v.aval.str_short()) for i, v in enumerate(variables)]
            return str(self.program(value, inputs))
        if isinstance(value, tuple) and type(value) is tuple:
            return str(tuple(self._option(v) for v in value))
        return str(value)


def _open(program: Any) -> tuple[Any, Sequence[Any]]:
    if isinstance(program, jex.ClosedJaxpr):
        return program.jaxpr, program.consts
    return program, ()


def _ordered(name: str, inputs: list[int]) -> tuple[int, ...]:
    return tuple(sorted(inputs) if name in ("add", "mul", "max", "min", "add_any") else inputs)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _uses(jaxpr: Any, carries: Sequence[Any]) -> list[set[int]]:
    """For each result, which of the carries it depends on."""
    found: dict[Any, set[int]] = {v: {i} for i, v in enumerate(carries)}

    def read(atom: Any) -> set[int]:
        return set() if isinstance(atom, jex.Literal) else found.get(atom, set())

    for eqn in jaxpr.eqns:
        used = set().union(*map(read, eqn.invars))
        found.update(dict.fromkeys(eqn.outvars, used))
    return [read(atom) for atom in jaxpr.outvars]


def _differing(found: Any, expected: Any) -> list[int]:
    """Which results of two closed jaxprs are not known to be the same arithmetic."""
    variables = [[v.aval.str_short() for v in p.jaxpr.invars] for p in (found, expected)]
    assert variables[0] == variables[1]
    numbers = Numbering()
    inputs = [numbers.of("input", i) for i in range(len(variables[0]))]
    results = numbers.program(found, inputs), numbers.program(expected, inputs)
    return [i for i, (a, b) in enumerate(zip(*results, strict=True)) if a != b]


def same_program(found: Any, expected: Any) -> bool:
    """Whether two closed jaxprs, of the same inputs, do the same arithmetic."""
    return not _differing(found, expected)


def assert_same_results(
    found: Any, expected: Any, inputs: Sequence[Any], shapes: Any, what: str
) -> None:
    """Two closed jaxprs, whose results are trees like `shapes`, give the same bits.

    Results that are the same arithmetic do. The others are run, one primitive at a time.
    """
    differing = _differing(found, expected)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    names = [paths[i] for i in differing]
    values = [evaluate(program, inputs, differing) for program in (found, expected)]
    left, right = (dict(zip(names, value, strict=True)) for value in values)
    assert_same(left, right, what)
