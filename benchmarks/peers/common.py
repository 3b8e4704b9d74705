"""The models every peer builds, their numerics, and the interface a peer offers.

Two bodies are stacked: ``transformer``, a pre-norm attention and feed-forward block, and
``dense``, one affine map and a relu. ``Config.lengths`` says how: ``(12,)`` is one scan over
twelve layers, ``(2, 2, 2)`` three nested scans, and ``()`` with ``unrolled=12`` a Python loop over
twelve layers with parameters of their own.

The canonical parameters are those of the hand-written model: plain dicts, each array with the
scanned axes in front (a list of dicts when unrolled). A peer's ``adopt`` reorders them into its
own variables, so that all peers compute with the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

BASELINE = "by hand"
EPSILON = 1e-6

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """One model of the family; frozen, so that it can be a module's field."""

    body: str = "transformer"
    lengths: tuple[int, ...] = (12,)
    unrolled: int = 0
    remat: bool = False
    dim: int = 64
    heads: int = 4
    expand: int = 4
    batch: int = 2
    positions: int = 16
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.body not in ("transformer", "dense"):
            raise ValueError(f"body is {self.body!r}, expected 'transformer' or 'dense'")
        if bool(self.lengths) == bool(self.unrolled):
            raise ValueError("give either scanned lengths or a number of unrolled layers, not both")

    @property
    def denses(self) -> dict[str, tuple[int, int]]:
        """Name -> (features in, features out) of each affine map of the body."""
        d, wide = self.dim, self.dim * self.expand
        if self.body == "dense":
            return {"dense": (d, d)}
        return {
            **dict.fromkeys(("query", "key", "value", "out"), (d, d)),
            "up": (d, wide),
            "down": (wide, d),
        }

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the body's layer norms, each over ``dim`` features."""
        return () if self.body == "dense" else ("ln1", "ln2")

    @property
    def layers(self) -> int:
        """How many bodies the model runs, one after the other."""
        return self.unrolled or math.prod(self.lengths)

    def input(self, seed: int = 0) -> Array:
        """A batch of activations, ``(batch, positions, dim)``."""
        shape = (self.batch, self.positions, self.dim)
        return jax.random.normal(jax.random.key(seed), shape, self.dtype)

    def abstract_input(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.batch, self.positions, self.dim), jnp.dtype(self.dtype))


class BodyCounter:
    """How often a body was run as Python; a trace that came from a cache leaves it unmoved."""

    def __init__(self) -> None:
        self.calls = 0

    def count(self, trace: Callable[[], object]) -> int:
        before = self.calls
        trace()
        return self.calls - before


BODIES = BodyCounter()


FUSED = False
"""Whether attention is cuDNN's, in a process of its own on a GPU."""


def attend(q: Array, k: Array, v: Array) -> Array:
    """Dot-product attention over ``(..., positions, heads, head_dim)``, softmax in float32."""
    BODIES.calls += 1
    if FUSED:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    scale = 1.0 / math.sqrt(q.shape[-1])
    scores = jnp.einsum("...qhd,...khd->...hqk", q * scale, k)
    weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(q.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, v)


def split_heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def relu_body(y: Array) -> Array:
    """The activation of the ``dense`` body, counted like ``attend``."""
    BODIES.calls += 1
    return jax.nn.relu(y)


@dataclasses.dataclass(frozen=True)
class Model:
    """A peer's model as a pure function of its variables."""

    forward: Callable[[Any, Array], Array]
    adopt: Callable[[Params], Any]


class Missing(Exception):
    """A peer that cannot be measured here, with the reason."""


class Peer(Protocol):
    """What a module of this package offers."""

    NAME: str

    def version(self) -> str: ...

    def build(self, config: Config) -> Model:
        """The model; tracing ``forward`` always runs the body as Python."""
        ...

    def init(self, config: Config, *, jit: bool) -> Callable[[Array], Any]:
        """The recommended initialisation, ``key -> variables``, eager or jitted."""
        ...

    def init_arrays(self, config: Config) -> Callable[[Array], Any]:
        """The same as a pure function ``key -> arrays``, to look at its jaxpr."""
        ...

    def mlp(self, params: Sequence[Mapping[str, Array]]) -> Callable[[Array], Array]:
        """An eager call of a relu MLP with these parameters, ``x -> y``."""
        ...

    def stepper(self, config: Config, params: Params) -> tuple[Any, Callable[..., Any]]:
        """``state`` and ``step(state, x, y) -> (state, loss)``, jitted the recommended way."""
        ...


LEARNING_RATE = 1e-2


def square_error(prediction: Array, target: Array) -> Array:
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target))


def sgd(parameter: Array, gradient: Array) -> Array:
    return parameter - jnp.asarray(LEARNING_RATE, parameter.dtype) * gradient


def functional_stepper(model: Model, variables: Any) -> tuple[Any, Callable[..., Any]]:
    """The training step of a peer whose variables are an ordinary pytree of arrays."""

    def loss(variables: Any, x: Array, y: Array) -> Array:
        return square_error(model.forward(variables, x), y)

    def step(variables: Any, x: Array, y: Array) -> tuple[Any, Array]:
        value, gradients = jax.value_and_grad(loss)(variables, x, y)
        return jax.tree.map(sgd, variables, gradients), value

    return variables, jax.jit(step, donate_argnums=0)


def gradient(model: Model) -> Callable[[Any, Array], Any]:
    """``(variables, x) -> gradients`` of the mean square of the output."""

    def loss(variables: Any, x: Array) -> Array:
        return jnp.mean(jnp.square(model.forward(variables, x).astype(jnp.float32)))

    return lambda variables, x: jax.grad(loss)(variables, x)
