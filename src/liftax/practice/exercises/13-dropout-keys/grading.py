import jax
import jax.numpy as jnp

from liftax.practice.grading import Answer, Call, Grading, Model, f32
from liftax.practice.probes import same_along


def call(batch: int, layers: int, width: int) -> Call:
    return Call({"layers": layers}, (f32(batch, width),), streams=("dropout",))


def keys(answer: Answer) -> str | None:
    """Wide masks, so that none are equal by chance."""
    for name, for_layers, for_examples in (
        ("PerLayer", False, True),
        ("PerExample", True, False),
        ("Neither", True, True),
    ):
        model = getattr(answer.yours, name)(layers=3)
        found = model.apply({}, jnp.ones((2, 64)), rngs={"dropout": jax.random.key(5)})
        if found.shape != (2, 3, 64):
            return f"{name}: the masks have shape {found.shape}, and are to have (2, 3, 64)"
        if not same_along(found, 0) and for_examples:
            return f"{name}: the examples have different masks; look at split_rngs of the vmap"
        if not same_along(found, 1) and for_layers:
            return f"{name}: the layers have different masks; look at split_rngs of the scan"
        if same_along(found, 1) and not for_layers:
            return f"{name}: all layers have the same mask; look at split_rngs of the scan"
        if same_along(found, 0) and not for_examples:
            return f"{name}: all examples have the same mask; look at split_rngs of the vmap"
    return None


GRADING = Grading(
    parts=tuple(Model(name, call, numbers=False) for name in ("PerLayer", "PerExample", "Neither")),
    shown={"batch": 2, "layers": 3, "width": 8},
    keys=keys,
)
