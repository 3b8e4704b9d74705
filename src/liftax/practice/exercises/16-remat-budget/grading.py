import functools

import jax.numpy as jnp

from liftax.practice.grading import Answer, Call, Grading, Model, f32
from liftax.practice.probes import gradient_bytes, zeros


def call(batch: int, depth: int, features: int) -> Call:
    return Call({"depth": depth}, (f32(batch, features),))


def taken(module: object) -> int:
    """The memory of the gradient, at sizes at which activations outweigh the weights."""
    model = module.Model(depth=12)  # type: ignore[attr-defined]
    x = jnp.zeros((128, 8))
    variables = zeros(model, x)
    return gradient_bytes(lambda variables: model.apply(variables, x), variables)


@functools.cache
def goal_takes(module: object) -> int:
    return taken(module)


def budget(answer: Answer) -> str | None:
    mine, allowed = taken(answer.yours), goal_takes(answer.goal) * 3 // 2
    if mine <= allowed:
        return None
    return (
        f"the gradient takes {mine >> 10} KiB, and may take {allowed >> 10} KiB: more is kept than "
        "what goes into each layer; look at where remat stands, and at its policy"
    )


GRADING = Grading(
    parts=(Model("Model", call),),
    shown={"batch": 32, "depth": 12, "features": 8},
    sizes={"batch": (1, 3), "depth": (2, 3), "features": (1, 2)},
    shipped=("budget", "the gradient takes"),
    budget=budget,
)
