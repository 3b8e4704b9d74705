from liftax.practice.grading import Answer, Call, Grading, Model, f32


def call(batch: int, depth: int, features: int) -> Call:
    return Call({"features": features, "depth": depth}, (f32(batch, features),))


def remarks(answer: Answer) -> str | None:
    if "Stack(" not in answer.source:
        return "works; nn.Stack(Block(features), depth=depth) says it in one line"
    return None


GRADING = Grading(
    parts=(Model("Model", call),),
    shown={"batch": 32, "depth": 12, "features": 64},
    sizes={"batch": (1, 3), "depth": (2, 4), "features": (2, 4)},
    remarks=remarks,
)
