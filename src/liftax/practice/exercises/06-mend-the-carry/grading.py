from liftax.practice.grading import Call, Grading, Model, f32


def call(batch: int, depth: int, features: int) -> Call:
    return Call({"depth": depth}, (f32(batch, features),))


GRADING = Grading(
    parts=(Model("Model", call, names=True),),
    shown={"batch": 32, "depth": 12, "features": 16},
    sizes={"batch": (1, 3), "depth": (2, 4), "features": (1, 3)},
    shipped=("runs", "LX102"),
    advice={
        "own params": "the layer itself has another shape: up to four times the width, and back"
    },
)
