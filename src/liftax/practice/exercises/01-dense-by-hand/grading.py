import jax
import jax.numpy as jnp

from liftax.practice.grading import Answer, Call, Grading, Model, f32
from liftax.practice.values import unequal


def call(batch: int, inputs: int, features: int) -> Call:
    return Call({"features": features}, (f32(batch, inputs),))


def starts(answer: Answer) -> str | None:
    """The initial values, which depend on the key, the name and the initializer."""
    key, x = jax.random.key(0), jnp.ones((2, 4))
    mine, goal = (m.MyDense(features=3).init(key, x) for m in (answer.yours, answer.goal))
    if unequal(mine, goal) is None:
        return None
    return "init makes other first values; look at the initializer of each parameter"


def made_by_hand(answer: Answer) -> str | None:
    return (
        "nn.Dense is what is to be written here, by hand" if "nn.Dense" in answer.source else None
    )


GRADING = Grading(
    parts=(Model("MyDense", call),),
    shown={"batch": 32, "inputs": 5, "features": 7},
    sizes={"batch": (1, 3), "inputs": (1, 4), "features": (2, 4)},
    advice={"own params": "the input's axis comes first, then the features; no batch is in it"},
    keys=starts,
    budget=made_by_hand,
)
