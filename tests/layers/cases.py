"""The table of layers: each layer with each of its options, built for either library.

A `Case` makes a module and its inputs; `VARIANTS` says in which dtypes it is run. The parity
tests run the table on liftax and flax.linen, the tests under lifts run it inside transformations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BF16 = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Variant:
    """Dtypes of one run: fields given to the layer, dtype of the inputs, and 64 bits or not."""

    options: Mapping[str, Any]
    inputs: Any
    x64: bool = False


VARIANTS: dict[str, Variant] = {
    "float32": Variant({}, jnp.float32),
    "compute-bfloat16": Variant({"dtype": BF16}, jnp.float32),
    "all-bfloat16": Variant({"param_dtype": BF16}, BF16),
    "float64": Variant({"param_dtype": np.float64}, np.float64, x64=True),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer with some options, and what it is called with."""

    make: Callable[..., Any]
    shapes: tuple[Any, ...]
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variants: tuple[str, ...] = ("float32",)

    def module(self, nn: Any, variant: Variant) -> Any:
        return self.make(nn, **variant.options)

    def args(self, variant: Variant) -> tuple[Any, ...]:
        return tuple(array(s, variant.inputs, i) for i, s in enumerate(self.shapes))

    def kwargs(self) -> dict[str, Any]:
        return {k: v() if callable(v) else v for k, v in self.call.items()}


def array(spec: Any, dtype: Any, seed: int = 0) -> Any:
    """A shape as numbers of `dtype`; a function as what it returns; a tuple of these as such."""
    if callable(spec):
        return spec()
    if spec and not isinstance(spec[0], int):
        return tuple(array(s, dtype, seed + 10 + i) for i, s in enumerate(spec))
    values = np.random.default_rng(seed).normal(size=spec)
    return jnp.asarray(values, dtype)


def holes(*shape: int) -> Callable[[], jax.Array]:
    """A mask with a False here and there, never everywhere."""
    return lambda: jnp.asarray(np.arange(int(np.prod(shape))).reshape(shape) % 3 != 1)


def index(*values: int) -> Callable[[], jax.Array]:
    return lambda: jnp.asarray(values, jnp.int32)


ALL = tuple(VARIANTS)
SOME = ("float32", "compute-bfloat16")


def layer(name: str, **fields: Any) -> Callable[..., Any]:
    """A module by its name in the library; a field may be a function of the library."""

    def make(nn: Any, **dtypes: Any) -> Any:
        built = {k: v(nn) if isinstance(v, Late) else v for k, v in fields.items()}
        return getattr(nn, name)(**{**built, **dtypes})

    return make


@dataclasses.dataclass(frozen=True)
class Late:
    """A field that depends on the library."""

    build: Callable[[Any], Any]

    def __call__(self, nn: Any) -> Any:
        return self.build(nn)


def _normal_init(nn: Any) -> Any:
    return nn.initializers.normal(0.5)


NORMAL = Late(_normal_init)


def wrapped(body: Callable[..., Any]) -> Callable[..., Any]:
    """A compact module around `body(nn, x, **dtypes)`, for layers that hold layers."""

    def make(nn: Any, **dtypes: Any) -> Any:
        class Wrapped(nn.Module):
            @nn.compact
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return body(nn, *args, **kwargs, **dtypes)

        return Wrapped()

    return make


def cell(name: str, **fields: Any) -> Callable[..., Any]:
    """A recurrent cell. In bfloat16 there is no QR, hence no orthogonal initializer."""

    def make(nn: Any, **dtypes: Any) -> Any:
        init = {}
        if dtypes.get("param_dtype") is BF16 and name != "ConvLSTMCell":
            init["recurrent_kernel_init"] = nn.initializers.normal()
        return layer(name, **fields)(nn, **init, **dtypes)

    return make


def rnn(cell_of: Callable[..., Any], **fields: Any) -> Callable[..., Any]:
    def make(nn: Any, **dtypes: Any) -> Any:
        return nn.RNN(cell_of(nn, **dtypes), **fields)

    return make


@functools.cache
def table() -> dict[str, Case]:
    """All cases by name."""
    from layers import families

    cases: dict[str, Case] = {}
    for family in families.FAMILIES:
        for name, case in family():
            assert name not in cases, name
            cases[name] = case
    return cases
