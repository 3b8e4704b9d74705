from liftax.practice.grading import Call, Function, Grading, f32


def call(batch: int, layers: int, features: int) -> Call:
    return Call(args=(3, f32(batch, features), layers, features))


GRADING = Grading(
    parts=(Function("composed_lifts_forward", call, nest=True),),
    shown={"batch": 32, "layers": 12, "features": 64},
    sizes={"batch": (2, 3), "layers": (2, 3), "features": (2, 4)},
    advice={
        "nest": "the params are shared by the vmap, so the variables are the same either way, but "
        "the order of the lifts is reversed: the carry of your scan holds the whole batch. Build "
        "the scan of Block first, and the vmap around it",
    },
)
