"""The first layer and module at which two models part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ..core.types import Tree
from ..module import Module
from ..pytrees import is_array, split
from .watch import Found, Reader, marked


@dataclass(frozen=True)
class Apart:
    """How far the outputs of one module are apart.

    Attributes:
      module: its path.
      layer: the how manieth call of it this is, from 0: the layer, where it stands in a stack.
      error: the largest difference, beside the largest of the first model's absolute values; NaN
        where one of the two has NaN and the other has none there.
      first, second: dtype and shape in either model.
    """

    module: str
    layer: int
    error: float
    first: str
    second: str

    def __str__(self) -> str:
        shapes = self.first if self.first == self.second else f"{self.first}, {self.second}"
        return f"module /{self.module}, call {self.layer}: {self.error:.3g} apart ({shapes})"


@dataclass(frozen=True)
class ModelDiff:
    """Where two models part; true where they do, as text the first place.

    Attributes:
      rows: the modules that both have, in the order in which they return.
      tolerance: how far apart two outputs may be.

    Example:
      >>> import jax, liftax as nn
      >>> layer, x = nn.Dense(2), jax.numpy.ones((2, 4))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> found = nn.diff(layer, variables, layer, variables, x)
      >>> bool(found), str(found), len(found.rows)
      (False, 'no difference', 1)
    """

    rows: tuple[Apart, ...]
    tolerance: float

    @property
    def first(self) -> Apart | None:
        """The first module whose outputs are apart, None where there is none."""
        return next((row for row in self.rows if not row.error <= self.tolerance), None)

    def __bool__(self) -> bool:
        return self.first is not None

    def __str__(self) -> str:
        return "no difference" if self.first is None else str(self.first)


def diff(
    model_a: Module,
    variables_a: Mapping[str, Tree],
    model_b: Module,
    variables_b: Mapping[str, Tree],
    *args: object,
    tolerance: float = 1e-3,
    **kwargs: object,
) -> ModelDiff:
    """Finds the first layer and module at which two models part.

    Both run forward once, on the same arguments; what each module returns is compared, call by
    call. How the layers of a stack run and are stored plays no part: scanned or written out,
    stacked or one subtree a layer, the third layer is the third call. All outputs of both models
    are held at once.

    Args:
      model_a: a model, not bound.
      variables_a: its variables.
      model_b: another one, or the same with other options, dtypes or variables; modules are
        compared where their paths are the same.
      variables_b: its variables.
      *args: arguments of both.
      tolerance: how far apart two outputs may be, beside the largest of the first's values.
      **kwargs: for `Module.apply` of both: ``rngs``, ``mutable``, ``method`` and the models' own.

    Returns:
      a `ModelDiff`, which is false where they agree.

    Raises:
      ValueError: no module of the one has the path of one of the other.

    Example:
      >>> import jax, liftax as nn
      >>> stack = nn.Stack(nn.Dense(4), depth=6)
      >>> x = jax.numpy.ones((2, 4))
      >>> variables = stack.init(jax.random.key(0), x)
      >>> bool(nn.diff(stack, variables, stack.clone(run="loop"), variables, x))
      False
      >>> kernel = variables["params"]["block_0"]["kernel"].at[3].mul(1.1)
      >>> other = {"params": {"block_0": {**variables["params"]["block_0"], "kernel": kernel}}}
      >>> found = nn.diff(stack, variables, stack, other, x)
      >>> found.first.module, found.first.layer
      ('block_0', 3)
    """
    one, two = (
        {(path, n): value for path, n, value in _calls(model, variables, args, kwargs)}
        for model, variables in ((model_a, variables_a), (model_b, variables_b))
    )
    rows = [_apart(*key, one[key], two[key]) for key in one if key in two]
    if not rows:
        # What each has, so that a prefix that is missing shows at once.
        names = [", ".join(dict.fromkeys(path or "/" for path, _ in m)) for m in (one, two)]
        raise ValueError(
            f"diff: the models have no module of the same path.\nfound: {names[0]} and {names[1]}"
        )
    return ModelDiff(tuple(rows), tolerance)


def _apart(module: str, layer: int, a: np.ndarray, b: np.ndarray) -> Apart:
    texts = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in (a, b)]
    if a.shape != b.shape:
        return Apart(module, layer, float("inf"), *texts)
    # In float32 at least: two bfloat16 may be apart by less than bfloat16 can say.
    a, b = (np.asarray(jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))) for x in (a, b))
    # The same infinity, or NaN, at the same place is no difference.
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        distance = np.where(alike, 0, np.abs(a - b)).max(initial=0)
    # Beside the largest value, and not value by value, where any noise around zero would be the
    # worst of all.
    largest = np.abs(a[np.isfinite(a)]).max(initial=0)
    return Apart(module, layer, float(distance / (largest or 1)), *texts)


def _calls(
    model: Module,
    variables: Mapping[str, Tree],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yields path, number of the call, and output, in the order in which modules return."""
    # Arguments that are no arrays (a flag, a name) must reach the model as Python has them.
    arrays, rest = split((dict(variables), args, kwargs), is_array)

    def call(arrays: list[jax.Array]) -> list[jax.Array]:
        variables, args, kwargs = rest.filled(arrays)
        with marked():
            return jax.tree.leaves(model.apply(variables, *args, **kwargs))

    reader = Reader(lambda x: {"value": x}, ("outputs",))

    def run(arrays: list[jax.Array]) -> Found:
        return reader.run(jax.make_jaxpr(call)(arrays), arrays)[1]

    found = []
    for (_, name), read in jax.jit(run)(arrays).items():
        path, value = name.partition(" (")[0], np.asarray(read.numbers["value"])
        loops = value.shape[: read.at.count(None)]
        for index in np.ndindex(*loops):
            turns = iter(index)
            place = tuple(next(turns) if n is None else n for n in read.at)
            found.append((place, path, value[index]))
    # By number of the call: the layers of a stack that is scanned and of one that is written out
    # come in the same order, and have the same path or not.
    counts: dict[str, int] = {}
    for _, path, value in sorted(found, key=lambda row: row[:2]):
        number = counts[path] = counts.get(path, -1) + 1
        yield path, number, value
