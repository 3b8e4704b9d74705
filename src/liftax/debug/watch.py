"""What goes through the modules of a running step, and what comes back: numbers of each layer.

While a function is traced, each module's output goes through a mark, which does nothing. The mark's
derivative marks the gradient of the output. The program of the whole function, gradients and all,
is then run with the numbers of each marked value beside it; a loop stacks them, layer by layer, and
no value is kept for them.
"""

from __future__ import annotations

import contextlib
import functools
import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import equations, jax_private
from ..files import replacing
from ..module import intercept_methods
from ..pytrees import is_array, is_inexact, split

if TYPE_CHECKING:
    import jax.extend.core as jex

    from ..module.methods import InterceptorContext

_mark_p = jax_private.both_ways("liftax_watched")
_KINDS = {"value": "outputs", "gradient": "gradients"}
_STATS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "rms": jnp.square,
    "max": lambda x: x,
    "zeros": lambda x: x == 0,
    "nonfinite": lambda x: ~jnp.isfinite(x),
}
"""Of the absolute values of all elements: what is added up, or of which the largest is taken."""

Seen = dict[str, dict[str, dict[str, jax.Array]]]
"""``"outputs"`` or ``"gradients"`` -> path of the module -> statistic -> an array of the layers."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watched:
    """The numbers of each module; a pytree, as text a table.

    Attributes:
      values: ``"outputs"`` or ``"gradients"`` -> path of the module -> statistic -> ``float32`` of
        the loops around the module, the outermost first: ``[layers]`` in a stack.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.Dense(2, kernel_init=nn.initializers.ones)
      >>> x = jnp.ones((3, 4))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> _, seen = nn.watch(layer.apply, stats=["max"], of=["outputs"])(variables, x)
      >>> float(seen["outputs"][""]["max"])
      4.0
    """

    values: Seen

    def __getitem__(self, of: str) -> dict[str, dict[str, jax.Array]]:
        return self.values[of]

    def rows(self) -> Iterator[tuple[str, str, str, np.ndarray[Any, Any]]]:
        """Yields of what, path, statistic and numbers."""
        for of, modules in self.values.items():
            for path, stats in modules.items():
                for name, numbers in stats.items():
                    yield of, path, name, np.asarray(numbers)

    def __str__(self) -> str:
        rows = [
            (of, path or "/", name, " ".join(f"{x:.3g}" for x in numbers.ravel()))
            for of, path, name, numbers in self.rows()
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        cut = [[text.ljust(w) for text, w in zip(row, widths, strict=False)] for row in rows]
        return "\n".join("  ".join([*head, row[3]]) for head, row in zip(cut, rows, strict=True))

    def to_html(self, path: str) -> None:
        """Writes a page with a heat map for each statistic: modules down, layers across.

        Args:
          path: the file.
        """
        tables: dict[tuple[str, str], list[str]] = {}
        for of, module, name, numbers in self.rows():
            cells = "".join(_cell(name, float(x)) for x in numbers.ravel())
            row = f"<tr><th>{html.escape(module or '/')}</th>{cells}</tr>"
            tables.setdefault((of, name), []).append(row)
        parts = [
            f"<h2>{of}: {name}</h2><table>{''.join(rows)}</table>"
            for (of, name), rows in tables.items()
        ]
        with replacing(Path(path)) as (file, _):
            file.write((_PAGE + "".join(parts)).encode())


_PAGE = """<!doctype html><meta charset="utf-8"><title>Watched</title>
<style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}
th{font-weight:normal;text-align:left;padding-right:1em}td{width:1.6em;height:1.4em}</style>
"""


def _cell(stat: str, value: float) -> str:
    """One layer: by orders of magnitude for sizes, from 0 to 1 for shares; red where not finite."""
    if not math.isfinite(value):
        colour = "hsl(0 90% 50%)"
    elif stat in ("zeros", "nonfinite"):
        colour = f"hsl({0 if stat == 'nonfinite' else 210} 80% {95 - 55 * min(value, 1.0):.0f}%)"
    else:
        size = min(max((math.log10(value) + 6) / 9, 0.0), 1.0) if value > 0 else 0.0
        colour = f"hsl(210 80% {95 - 65 * size:.0f}%)"
    return f'<td style="background:{colour}" title="{value:.6g}"></td>'


def watch(
    fn: Callable[..., Any],
    *,
    stats: Sequence[str] = ("rms", "max", "zeros", "nonfinite"),
    of: Sequence[str] = ("outputs", "gradients"),
) -> Callable[..., tuple[Any, Watched]]:
    """Makes a function also return a few numbers of what each module gives, and of its gradient.

    Args:
      fn: a function that calls modules: a loss, a training step with its gradient. Under `jax.jit`,
        `watch` goes inside: ``jax.jit(nn.watch(step))``. Around it all, it hears of gradients that
        are taken within.
      stats: which numbers: ``"rms"``, the root of the mean square; ``"max"``, of the absolute
        values; ``"zeros"`` and ``"nonfinite"``, which share of the elements is zero, infinite or
        NaN.
      of: ``"outputs"`` of the modules' ``__call__``, ``"gradients"`` of the function with respect
        to them.

    Returns:
      a function of the same arguments that returns ``(fn(...), Watched)``. In a stack each number
      is an array of the layers; nothing else is kept. What stands in the branches of a
      `jax.lax.cond` or in a while loop is not heard of.

    Raises:
      ValueError: there is no such statistic, or nothing of that name to watch.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return x + nn.relu(nn.Dense(4, name="up")(x))
      >>> stack = nn.Stack(Block(), depth=6)
      >>> x = jax.numpy.ones((2, 4))
      >>> variables = stack.init(jax.random.key(0), x)
      >>> @jax.jit
      ... @nn.watch
      ... def step(variables):
      ...     return jax.value_and_grad(lambda v: (stack.apply(v, x) ** 2).mean())(variables)
      >>> (loss, grads), seen = step(variables)
      >>> seen["outputs"]["block_0/up"]["rms"].shape, sorted(seen["gradients"])
      ((6,), ['', 'block_0', 'block_0/up'])
    """
    for name, known in ((stats, _STATS), (of, dict.fromkeys(_KINDS.values()))):
        for one in name:
            if one not in known:
                raise ValueError(f"watch: {one!r} is none of {', '.join(known)}")

    numbers = functools.partial(_numbers, tuple(stats))

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> tuple[Any, Watched]:
        arrays, rest = split((args, kwargs), is_array)

        def call(arrays: list[Any]) -> Any:
            args, kwargs = rest.filled(arrays)
            with marked():
                return fn(*args, **kwargs)

        closed, shape = jax.make_jaxpr(call, return_shape=True)(arrays)
        outputs, found = Reader(numbers, tuple(of)).run(closed, jax.tree.leaves(arrays))
        values: Seen = {kind: {} for kind in of}
        for (kind, path), one in found.items():
            values[kind][path] = one.numbers
        return jax.tree.unflatten(jax.tree.structure(shape), outputs), Watched(values)

    return run


def _numbers(stats: tuple[str, ...], x: jax.Array) -> dict[str, jax.Array]:
    """Computes the statistics of one value."""
    sizes = jnp.abs(jax.lax.stop_gradient(x))
    sizes = sizes.astype(jnp.promote_types(sizes.dtype, jnp.float32))
    parts = [_STATS[name](sizes).astype(sizes.dtype) for name in stats]

    def join(one: Sequence[jax.Array], two: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        each = zip(stats, one, two, strict=True)
        return tuple(jnp.maximum(a, b) if name == "max" else a + b for name, a, b in each)

    # All in one pass: reading a value once for each would cost more than all else here.
    zeros = tuple(jnp.zeros((), sizes.dtype) for _ in stats)
    found = jax.lax.reduce(tuple(parts), zeros, join, tuple(range(x.ndim)))
    made = {}
    for name, total in zip(stats, found, strict=True):
        value = total if name == "max" else total / max(x.size, 1)
        made[name] = (jnp.sqrt(value) if name == "rms" else value).astype(jnp.float32)
    return made


def marked() -> contextlib.AbstractContextManager[None]:
    """A block in which what modules return goes through a mark."""
    return intercept_methods(_mark)


def _mark(call: Any, args: Any, kwargs: Any, context: InterceptorContext) -> Any:
    out = call(*args, **kwargs)
    if context.method_name != "__call__":
        return out
    path = "/".join(context.module.path)
    leaves, rest = split(out, lambda leaf: is_array(leaf) and is_inexact(leaf))
    names = [path] if len(leaves) == 1 else [f"{path}[{i}]" for i in range(len(leaves))]
    pairs = zip(leaves, names, strict=True)
    return rest.filled([_mark_p.bind(x, kind="value", path=name) for x, name in pairs])


At = tuple[int | None, ...]
"""Where a mark stands in a program: numbers of equations, None for the iteration of a loop."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["numbers"], meta_fields=["at"])
@dataclass(frozen=True)
class Read:
    """What was made of a marked value; each array has an axis for each loop around it."""

    numbers: dict[str, jax.Array]
    at: At


Found = dict[tuple[str, str], Read]
"""By kind and path."""


@dataclass(frozen=True)
class Reader:
    """Runs a program with something made of what is marked in it.

    Attributes:
      numbers: what is made of a value.
      of: of which kinds of values.
    """

    numbers: Callable[[jax.Array], dict[str, jax.Array]]
    of: tuple[str, ...]

    def run(
        self, closed: jex.ClosedJaxpr, args: Sequence[Any], at: At = ()
    ) -> tuple[list[Any], Found]:
        """Returns the outputs, and what was read."""
        program, found = closed.jaxpr, Found()
        values: dict[Any, Any] = dict(zip(program.constvars, closed.consts, strict=True))
        values.update(zip(program.invars, args, strict=True))

        def read(atom: Any) -> Any:
            return values[atom] if jax_private.is_variable(atom) else atom.val

        for n, eqn in enumerate(program.eqns):
            inputs = [read(atom) for atom in eqn.invars]
            out, inner = self._step(eqn, inputs, (*at, n))
            for key, one in inner.items():
                self._put(found, key, one)
            values.update(zip(eqn.outvars, out, strict=True))
        return [read(atom) for atom in program.outvars], found

    def _put(self, found: Found, key: tuple[str, str], one: Read) -> None:
        kind, path = key
        again = 1
        while (kind, path) in found:  # a module that is called several times
            again += 1
            path = f"{key[1]} ({again})"
        found[kind, path] = one

    def _step(self, eqn: jex.JaxprEqn, inputs: list[Any], at: At) -> tuple[list[Any], Found]:
        if equations.name_of(eqn) == _mark_p.name:
            return inputs, self._read(eqn, inputs[0], at)
        if not _has_marks(eqn):
            return jax_private.run_equation(eqn, inputs), {}
        scan, remat = equations.as_scan(eqn), equations.as_remat(eqn)
        if scan is not None:
            return self._scan(scan, inputs, at)
        if remat is not None:
            run = functools.partial(self.run, remat.program, at=at)
            if remat.differentiated:
                barred = jax.lax.optimization_barrier(inputs) if remat.prevent_cse else inputs
                return run(barred)
            again = jax.checkpoint(
                lambda *given: run(given), policy=remat.policy, prevent_cse=remat.prevent_cse
            )
            return again(*inputs)
        called = equations.called_by(eqn, plain=True)
        if called is not None:
            return self.run(called, inputs, at)
        # A rule for derivatives, a branch, a while loop: they stay as they are.
        return jax_private.run_equation(eqn, inputs), {}

    def _scan(self, scan: equations.Scan, inputs: list[Any], at: At) -> tuple[list[Any], Found]:
        shared, rest = inputs[: scan.shared], inputs[scan.shared :]

        def turn(carry: Any, x: Any) -> Any:
            out, found = self.run(scan.body, [*shared, *carry, *x], (*at, None))
            return out[: scan.carried], (out[scan.carried :], found)

        carry, (ys, found) = jax.lax.scan(
            turn,
            rest[: scan.carried],
            rest[scan.carried :],
            length=scan.length,
            reverse=scan.reverse,
            unroll=scan.unroll or 1,
        )
        return [*carry, *ys], found

    def _read(self, eqn: jex.JaxprEqn, x: jax.Array, at: At) -> Found:
        kind = _KINDS.get(eqn.params["kind"])
        # What a backward pass computes again is the output that was counted.
        again = kind == "outputs" and equations.is_again(eqn)
        if kind not in self.of or again:
            return {}
        return {(kind, eqn.params["path"]): Read(self.numbers(x), at)}


def _has_marks(eqn: jex.JaxprEqn) -> bool:
    programs = equations.programs_of(eqn)
    return any(
        equations.name_of(inner) == _mark_p.name
        for program in programs
        for inner in equations.all_of(program.jaxpr)
    )
