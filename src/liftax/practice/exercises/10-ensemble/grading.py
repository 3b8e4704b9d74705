from liftax.practice.grading import Call, Grading, Model, f32


def call(batch: int, members: int, inputs: int, features: int) -> Call:
    return Call({"features": features, "members": members}, (f32(batch, inputs),))


GRADING = Grading(
    parts=(Model("Ensemble", call),),
    shown={"batch": 32, "members": 5, "inputs": 3, "features": 7},
    sizes={"batch": (2, 3), "members": (3, 4), "inputs": (1, 2), "features": (2, 3)},
    advice={
        "split vmap params": "all members start out identical, and will agree about everything; "
        "look at split_rngs of the vmap",
        "missing vmap params": "one model, many times: the members share their weights; look at "
        "variable_axes of the vmap",
    },
)
