from liftax.practice.grading import Call, Grading, Model, f32


def call(batch: int, depth: int, features: int) -> Call:
    fields = {"features": features, "depth": depth}
    return Call(fields, (f32(batch, features),), mutable=("batch_stats",))


GRADING = Grading(
    parts=(Model("Stacked", call), Model("Carried", call)),
    shown={"batch": 32, "depth": 12, "features": 64},
    sizes={"batch": (3, 4), "depth": (2, 3), "features": (1, 2)},
    advice={
        "extra scan batch_stats": "one layer has one set of statistics, handed from iteration to "
        "iteration; look at variable_carry",
    },
    rtol=1e-3,
)
