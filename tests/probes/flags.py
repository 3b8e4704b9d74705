"""The flags of JAX that a model must not notice, or that it notices as Linen does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from probes.models import MODELS


@dataclasses.dataclass(frozen=True)
class Flag:
    """One way to run a model: settings of JAX, the style of keys, how `x` lies on a mesh."""

    settings: tuple[tuple[str, Any], ...] = ()
    typed_keys: bool = True
    spec: PartitionSpec | None = None
    traced_only: bool = False
    models: tuple[str, ...] = tuple(MODELS)

    def missing(self) -> list[str]:
        """The settings that the installed JAX does not have."""
        return [name for name, _ in self.settings if name not in jax.config.values]

    @contextlib.contextmanager
    def on(self, x: Any) -> Iterator[Any]:
        """Switches the flag on, for the rest of the process, and gives the input to use."""
        for name, value in self.settings:
            jax.config.update(name, value)
        if self.spec is None:
            yield jnp.asarray(x)
            return
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
        with jax.set_mesh(mesh):
            yield jax.device_put(jnp.asarray(x), NamedSharding(mesh, self.spec))


def _switch(name: str, value: Any = True) -> Flag:
    return Flag(((name, value),))


FLAGS = {
    "no flag": Flag(),
    "PRNGKey": Flag(typed_keys=False),
    "typed keys only": _switch("jax_legacy_prng_key", "error"),
    "jax_enable_custom_prng": Flag((("jax_enable_custom_prng", True),), typed_keys=False),
    "jax_remat3": _switch("jax_remat3"),
    "jax_custom_vjp3": _switch("jax_custom_vjp3"),
    "jax_custom_jvp3": _switch("jax_custom_jvp3"),
    "jax_use_simplified_jaxpr_constants": _switch("jax_use_simplified_jaxpr_constants"),
    "explicit mesh, replicated": Flag(spec=PartitionSpec()),
    "explicit mesh, sharded": Flag(spec=PartitionSpec("data")),
    "jax_disable_jit": _switch("jax_disable_jit"),
    "jax_debug_nans": _switch("jax_debug_nans"),
    "jax_enable_checks": _switch("jax_enable_checks"),
    # It empties every cache at each step, so an eager run takes minutes; leaks are in the tracing.
    "jax_check_tracer_leaks": Flag((("jax_check_tracer_leaks", True),), traced_only=True),
    "jax_numpy_dtype_promotion": _switch("jax_numpy_dtype_promotion", "strict"),
    "jax_enable_x64": _switch("jax_enable_x64"),
}
