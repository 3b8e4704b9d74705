from liftax.practice.grading import Call, Grading, Model, f32


def call(atoms: int, hidden: int) -> Call:
    return Call({"hidden": hidden}, (f32(atoms, 3),))


GRADING = Grading(
    parts=(Model("Forces", call, names=True),),
    shown={"atoms": 7, "hidden": 16},
    sizes={"atoms": (2, 4), "hidden": (2, 4)},
)
