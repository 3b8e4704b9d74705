from liftax.practice.grading import Call, Grading, Model, Values, f32


def call(batch: int, layers: int, features: int) -> Call:
    return Call({"features": features, "layers": layers}, (f32(batch, features),))


NEST = "the variables are right; it is to be a scan over a vmap: build the vmap of Block first"

GRADING = Grading(
    parts=(
        Model("Shared", call, nest=True),
        Model("Own", call, nest=True),
        Values(
            "SAME",
            {
                "shared by the vmap": "a lift that shares adds no axis, wherever it stands",
                "both lifts say 0": "the outer lift's axis comes first: (batch, layers, ...) and "
                "(layers, batch, ...)",
                "the inner lift says 0, the outer scan 1": "the scan's axis then stands behind "
                "that of the vmap, as in vmap(scan)",
            },
        ),
    ),
    shown={"batch": 32, "layers": 12, "features": 64},
    sizes={"batch": (2, 3), "layers": (3, 4), "features": (2, 4)},
    advice={"nest": NEST},
)
