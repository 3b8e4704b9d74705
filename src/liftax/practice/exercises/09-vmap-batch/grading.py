from liftax.practice.grading import Call, Grading, Model, f32


def call(batch: int, points: int, inputs: int, features: int) -> Call:
    return Call({"features": features}, (f32(batch, points, inputs),))


GRADING = Grading(
    parts=(Model("Model", call),),
    shown={"batch": 32, "points": 11, "inputs": 3, "features": 7},
    sizes={"batch": (2, 3), "points": (3, 4), "inputs": (1, 2), "features": (2, 3)},
)
