from liftax.practice.grading import Call, Grading, Model, f32


def call(batch: int, times: int, features: int) -> Call:
    return Call({"features": features, "times": times}, (f32(batch, features),))


GRADING = Grading(
    parts=(Model("Model", call),),
    shown={"batch": 32, "times": 12, "features": 64},
    sizes={"batch": (1, 3), "times": (2, 5), "features": (2, 4)},
    advice={
        "extra scan params": "the scan gave every iteration weights of its own; one layer is to be "
        "applied again and again: variable_broadcast in place of variable_axes"
    },
)
