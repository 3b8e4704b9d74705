import jax.numpy as jnp

import liftax as nn
from liftax.practice.grading import Answer, Call, Grading, Model, f32
from liftax.practice.probes import traces, zeros


def call(batch: int, depth: int, features: int) -> Call:
    return Call({"features": features, "depth": depth}, (f32(batch, features),))


def budget(answer: Answer) -> str | None:
    model, x = answer.yours.Model(features=3, depth=5), jnp.zeros((2, 3))
    found = traces(nn.Dense, lambda v: model.apply(v, x), zeros(model, x))
    if found == 1:
        return None
    return f"the layer is traced {found} times for 5 blocks; a scan traces it once, at any depth"


def remarks(answer: Answer) -> str | None:
    if "Stack(" not in answer.source:
        return "works; nn.Stack(Block(features), depth=depth) says it in one line"
    return None


GRADING = Grading(
    parts=(Model("Model", call),),
    shown={"batch": 32, "depth": 12, "features": 64},
    sizes={"batch": (1, 3), "depth": (2, 4), "features": (2, 4)},
    budget=budget,
    remarks=remarks,
)
