import jax.numpy as jnp

from liftax.practice.grading import Answer, Call, Grading, Model, f32
from liftax.practice.probes import loops, zeros


def call(repeats: int, remainder: int, length: int, features: int) -> Call:
    return Call({"repeats": repeats, "remainder": remainder}, (f32(length, features),))


def budget(answer: Answer) -> str | None:
    x = jnp.zeros((3, 2))
    for name, allowed in (("Trained", 1), ("Decoding", 0)):
        model = getattr(answer.yours, name)(repeats=3, remainder=1)
        variables = zeros(model, x)
        found = loops(lambda v, model=model: model.apply(v, x), variables)
        if found != allowed:
            return (
                f"{name} has {found or 'no'} loop{'s' * (found != 1)} in its program, and is to "
                f"have {allowed or 'none'}; look at run="
            )
    return None


GRADING = Grading(
    parts=(Model("Trained", call, names=True), Model("Decoding", call, names=True)),
    shown={"repeats": 4, "remainder": 2, "length": 11, "features": 8},
    sizes={"repeats": (2, 2), "remainder": (1, 1), "length": (3, 3), "features": (2, 2)},
    budget=budget,
)
