"""What goes through the modules of a running step, and what comes back: numbers of each layer.

While a function is traced, each module's output goes through a mark, which does nothing. The mark's
derivative marks the gradient of the output; the module's own parameters go into it too, only to be
seen. The program of the whole function, gradients and all, is then run with the numbers of each
marked value beside it; a loop stacks them, layer by layer, and no value is kept for them. Updates
are made outside of all modules: `watch_updates` marks them where the optimizer returns them.
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
from ..core.boxes import unbox
from ..files import replacing
from ..installed import needed
from ..module import intercept_methods
from ..pytrees import is_array, is_inexact, split
from ..training.per_layer import layer_axes

if TYPE_CHECKING:
    import jax.extend.core as jex
    import optax

    from ..module.bound import Variables
    from ..module.methods import InterceptorContext

_mark_p = jax_private.both_ways("liftax_watched")
_KINDS = {"value": "outputs", "gradient": "gradients", "update": "updates"}
_OF = ("outputs", "gradients", "params", "updates")
_STATS = ("rms", "max", "zeros", "nonfinite")

Seen = dict[str, dict[str, dict[str, jax.Array]]]
"""``"outputs"``, ``"params"`` ... -> path of module or parameter -> statistic -> an array."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watched:
    """The numbers of each module; a pytree, as text a table.

    Attributes:
      values: ``"outputs"`` or ``"gradients"`` -> path of the module, ``"params"`` or ``"updates"``
        -> path of the parameter; -> statistic -> ``float32`` of the loops around the module, the
        outermost first: ``[layers]`` in a stack.

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
        to them, the ``"params"`` of the modules that are called, the ``"updates"`` of an optimizer
        in `watch_updates`.

    Returns:
      a function of the same arguments that returns ``(fn(...), Watched)``. In a stack each number
      is an array of the layers; nothing else is kept. What stands in the branches of a
      `jax.lax.cond` or in a while loop is not heard of.

    Raises:
      ValueError: there is no such statistic, or nothing of that name to watch; or no optimizer of
        the function is in `watch_updates`, and updates are asked for.

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
    for name, known in ((stats, _STATS), (of, _OF)):
        for one in name:
            if one not in known:
                raise ValueError(f"watch: {one!r} is none of {', '.join(known)}")

    numbers = functools.partial(_numbers, tuple(stats))

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> tuple[Any, Watched]:
        arrays, rest = split((args, kwargs), is_array)

        def call(arrays: list[Any]) -> Any:
            args, kwargs = rest.filled(arrays)
            with marked("params" in of):
                return fn(*args, **kwargs)

        closed, shape = jax.make_jaxpr(call, return_shape=True)(arrays)
        outputs, found = Reader(numbers, tuple(of)).run(closed, jax.tree.leaves(arrays))
        values: Seen = {kind: {} for kind in of}
        for (kind, path), one in found.items():
            values[kind][path] = one.numbers
        if "updates" in of and not values["updates"]:
            raise ValueError(
                "watch: of= asks for 'updates', and the function has none that are marked\n"
                "expected: an optimizer tx = nn.watch_updates(tx, layout), called in the function"
            )
        return jax.tree.unflatten(jax.tree.structure(shape), outputs), Watched(values)

    return run


def _numbers(stats: tuple[str, ...], x: jax.Array) -> dict[str, jax.Array]:
    """Computes the statistics of one value."""
    sizes = jnp.abs(jax.lax.stop_gradient(x))
    sizes = sizes.astype(jnp.promote_types(sizes.dtype, jnp.float32))
    # As whole numbers, which are in the order of the sizes: the compiler may take the largest, and
    # count, many at a time, where of floats it takes one after the other, for the sake of NaN.
    whole = jnp.uint64 if sizes.dtype == jnp.float64 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(sizes, whole)
    infinite = jax.lax.bitcast_convert_type(jnp.full((), jnp.inf, sizes.dtype), whole)
    parts = {
        "rms": jnp.square(sizes),
        "max": bits,
        "zeros": (bits == 0).astype(whole),
        "nonfinite": (bits >= infinite).astype(whole),
    }

    def join(one: Sequence[jax.Array], two: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        each = zip(stats, one, two, strict=True)
        return tuple(jnp.maximum(a, b) if name == "max" else a + b for name, a, b in each)

    # All in one pass: reading a value once for each would cost more than all else here.
    given = tuple(parts[name] for name in stats)
    zeros = tuple(jnp.zeros((), part.dtype) for part in given)
    found = jax.lax.reduce(given, zeros, join, tuple(range(x.ndim)))
    made = {}
    for name, total in zip(stats, found, strict=True):
        if name == "max":
            value = jax.lax.bitcast_convert_type(total, sizes.dtype)
        else:
            value = total.astype(sizes.dtype) / max(x.size, 1)
        made[name] = (jnp.sqrt(value) if name == "rms" else value).astype(jnp.float32)
    return made


def watch_updates(
    tx: optax.GradientTransformation, layout: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Makes `watch` hear of the updates that an optimizer returns, layer by layer.

    Outside of `watch` nothing changes: neither numbers, nor the state, nor the compiled program.

    Args:
      tx: any transformation of optax.
      layout: which subtrees are stacked, as for `per_layer`: a `Stack` (as the whole model), or
        what `nn.layout` found in a model. None if nothing is.

    Returns:
      the transformation, with the same state.

    Raises:
      StackingError: the layout has no stack, or other layers than the updates; by ``update``.
      MissingExtraError: optax is not installed.

    Example:
      >>> import jax, optax, liftax as nn
      >>> stack = nn.Stack(nn.Dense(4), depth=3)
      >>> x = jax.numpy.ones((2, 4))
      >>> params = stack.init(jax.random.key(0), x)["params"]
      >>> tx = nn.watch_updates(optax.adam(1e-3), stack)
      >>> def step(params, state):
      ...     grads = jax.grad(lambda p: stack.apply({"params": p}, x).sum())(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> watched = nn.watch(step, stats=["rms"], of=["params", "updates"])
      >>> _, seen = jax.jit(watched)(params, tx.init(params))
      >>> seen["params"]["block_0/kernel"]["rms"].shape
      (3,)
      >>> [f"{rms:.4f}" for rms in seen["updates"]["block_0/kernel"]["rms"]]  # adam's first step
      ['0.0010', '0.0010', '0.0010']
    """
    optax = needed("optax", "train", "nn.watch_updates is for transformations of optax")
    inner = optax.with_extra_args_support(tx)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        new, state = inner.update(updates, state, params, **extra)
        leaves, treedef = jax.tree.flatten(new)
        places = layer_axes(new, layout)
        made = [
            _mark_p.bind(x, kind="update", path="/".join(path), axes=tuple(axes))
            for x, (path, axes) in zip(leaves, places, strict=True)
        ]
        return jax.tree.unflatten(treedef, made), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def marked(params: bool = False) -> contextlib.AbstractContextManager[None]:
    """A block in which results of modules go through a mark, with their own ``params`` or not."""
    return intercept_methods(functools.partial(_mark, params))


def _mark(params: bool, call: Any, args: Any, kwargs: Any, context: InterceptorContext) -> Any:
    out = call(*args, **kwargs)
    if context.method_name != "__call__":
        return out
    path = "/".join(context.module.path)
    own = _own_params(context.module) if params else {}
    leaves, rest = split(out, lambda leaf: is_array(leaf) and is_inexact(leaf))
    if own and not leaves:  # tokens, say: they bear the mark of the parameters alone
        leaves, rest = split(out, is_array)
    names = [path] if len(leaves) == 1 else [f"{path}[{i}]" for i in range(len(leaves))]
    seen = [(own, tuple(f"{path}/{name}".lstrip("/") for name in own)), *[({}, ())] * len(leaves)]
    return rest.filled(
        [
            _mark_p.bind(x, *also.values(), kind="value", path=name, also=paths)
            for x, name, (also, paths) in zip(leaves, names, seen, strict=False)
        ]
    )


def _own_params(module: Variables) -> dict[str, jax.Array]:
    """The parameters of a module without those of the modules in it."""
    scope = module.scope
    node: dict[str, Any] = unbox(scope.node("params") or {}) if scope is not None else {}
    return {name: x for name, x in node.items() if is_array(x) and is_inexact(x)}


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

        read = functools.partial(equations.value_of, values)
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
            return inputs[:1], self._read(eqn, inputs, at)
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

    def _read(self, eqn: jex.JaxprEqn, inputs: list[jax.Array], at: At) -> Found:
        # What a backward pass computes again is the output that was counted.
        if eqn.params["kind"] == "value" and equations.is_again(eqn):
            return {}
        kind, x = _KINDS.get(eqn.params["kind"], ""), inputs[0]
        found: Found = {}
        if kind in self.of and is_inexact(x):
            numbers = self.numbers
            for axis in reversed(eqn.params.get("axes", ())):
                numbers = jax.vmap(numbers, in_axes=axis)
            found[kind, eqn.params["path"]] = Read(numbers(x), at)
        for path, x in zip(eqn.params.get("also", ()), inputs[1:], strict=False):
            found["params", path] = Read(self.numbers(x), at)
        return found


def _has_marks(eqn: jex.JaxprEqn) -> bool:
    programs = equations.programs_of(eqn)
    return any(
        equations.name_of(inner) == _mark_p.name
        for program in programs
        for inner in equations.all_of(program.jaxpr)
    )
