from liftax.practice.grading import Call, Function, Grading, f32


def call(depth: int, features: int) -> Call:
    return Call(args=(3, f32(features), depth))


GRADING = Grading(
    parts=(Function("layer_norms", call),),
    shown={"depth": 12, "features": 64},
    sizes={"depth": (2, 4), "features": (2, 3)},
)
