from liftax.practice.grading import Call, Grading, Model, f32


def call(batch: int, depth: int, features: int) -> Call:
    return Call({"features": features, "depth": depth}, (f32(batch, features),))


GRADING = Grading(
    parts=(Model("Model", call),),
    shown={"batch": 32, "depth": 12, "features": 64},
    sizes={"batch": (2, 3), "depth": (3, 4), "features": (2, 4)},
)
