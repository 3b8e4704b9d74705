from liftax.practice.grading import Call, Grading, Model, f32


def call(batch: int, features: int, hidden: int) -> Call:
    return Call({"features": features, "hidden": hidden}, (f32(batch, features),))


GRADING = Grading(
    parts=(Model("Compact", call, names=True), Model("Setup", call, names=True)),
    shown={"batch": 32, "features": 5, "hidden": 7},
    sizes={"batch": (1, 3), "features": (1, 4), "hidden": (2, 4)},
)
