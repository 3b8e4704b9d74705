"""Layouts made by hand, for what does not need a model."""

from __future__ import annotations

import math
from dataclasses import replace

from liftax.layout.data import (
    Along,
    Axis,
    Cost,
    Finding,
    LiftNode,
    ModuleNode,
    Stats,
    VariableLayout,
)
from liftax.layout.shown import Layout
from liftax.layout.staged import Staged

SIZES = {"float32": 4, "bfloat16": 2, "int32": 4}


def variable(path, axes, along=(), collection="params", dtype="float32", layer=None):
    shape = tuple(axis.size for axis in axes)
    size = math.prod(shape) * SIZES[dtype]
    names = tuple(path.split("/"))
    return VariableLayout(collection, names, shape, dtype, size, tuple(axes), tuple(along), layer)


def empty() -> Layout:
    return Layout("Empty")


def plain() -> Layout:
    """No lifts at all."""
    rows = (
        variable("Dense_0/kernel", [Axis(3, "in"), Axis(4, "out")], layer="Dense"),
        variable("Dense_0/bias", [Axis(4, "out")], layer="Dense"),
        variable("step", [], collection="state", dtype="int32"),
    )
    return Layout("Plain", rows, arguments="f32[2,3]", file_line="/somewhere/plain.py:3")


def decoder() -> Layout:
    """vmap over scan over remat over vmap, with every role."""
    file = "/somewhere/examples/decoder.py"
    lifts = (
        LiftNode(0, "vmap", "Stack", (), None, 8, "batch", f"{file}:31",
                 roles={"params": "shared", "cache": "stacked"},
                 splits={"params": False, "dropout": True}),
        LiftNode(1, "scan", "Block", (), 0, 12, "layers", f"{file}:8", True,
                 roles={"params": "stacked", "cache": "stacked", "stats": "carried"},
                 splits={"params": True, "dropout": True}),
        LiftNode(2, "remat", "Block", ("blocks",), 1, None, None, f"{file}:8",
                 roles={"params": "through"}, details={"policy": "dots_saveable"}),
        LiftNode(3, "vmap", "Expert", ("blocks", "moe"), 2, 4, "experts", f"{file}:2",
                 roles={"params": "stacked"}, splits={"params": True}),
    )  # fmt: skip
    shared, stacked = Along(0, "shared", None, False), Along(1, "stacked", 0, True)
    through, expert = Along(2, "through"), Along(3, "stacked", 1, True)
    layers, experts = Axis(12, "layers", 1), Axis(4, "experts", 3)
    nest = (shared, stacked, through)
    rows = (
        variable("embed/embedding", [Axis(256, "vocabulary"), Axis(64, "features")], layer="Embed"),
        variable("blocks/query/kernel", [layers, Axis(64, "in"), Axis(64, "out")], nest,
                 layer="Dense"),
        variable("blocks/moe/up/kernel", [layers, experts, Axis(64, "in"), Axis(256, "out")],
                 (*nest, expert), dtype="bfloat16", layer="Dense"),
        variable("blocks/cached_key", [layers, Axis(8, "batch", 0), Axis(128, "length"), Axis(64)],
                 (Along(0, "stacked", 1), Along(1, "stacked", 0), through), "cache", "bfloat16"),
        variable("blocks/mean", [Axis(64, "features")],
                 (Along(0, "shared"), Along(1, "carried"), through), "stats"),
    )  # fmt: skip
    note = Finding(
        "LX901", "note", "An ensemble", "12 × 4 independent layers.\n<set> None & share", (3,),
        ("params/blocks/moe/up/kernel",), "liftax explain LX901",
    )  # fmt: skip
    cost = Cost("cpu", 1.5e9, 4.5e8, 12_345_678, 1000, 2000)
    return Layout("Decoder", rows, lifts, (note,), "i32[8,128]", f"{file}:40", cost)


def piped() -> Layout:
    """Two stacks that run in stages: a circular one, and one with more stages than are drawn."""
    lifts = (
        LiftNode(0, "stack", "Block", ("deep", "block_0"), None, 16, "layers", carry=True,
                 roles={"params": "stacked"},
                 staged=Staged(4, 2, 8, 2, "stage", 22, 6 / 22, 96, 2)),
        LiftNode(1, "stack", "Wide", ("wide", "block_0"), None, 160, carry=True,
                 roles={"params": "stacked"},
                 staged=Staged(40, 1, 300, 4, "<axis>", 1239, 39 / 1239, 3 << 20)),
    )  # fmt: skip
    rows = tuple(
        variable(f"{name}/block_0/kernel", [Axis(size, "layers", i), Axis(4, "in")],
                 (Along(i, "stacked", 0),), layer="Dense")
        for i, (name, size) in enumerate([("deep", 16), ("wide", 160)])
    )  # fmt: skip
    return Layout("Piped", rows, lifts)


def measured() -> Layout:
    """The decoder with its modules, and the values of its variables."""
    layout = decoder()
    stats = Stats(0.001234, 1.02, -3.21e-5, 4.0, 0.25, 0.0)
    rows = (replace(v, stats=stats, per_layer=(stats,) * 3) for v in layout)
    modules = (
        ModuleNode((), "Decoder", "i32[8,128]", "f32[8,128,256]", ("",)),
        ModuleNode(("embed",), "Embed", "i32[8,128]", "f32[8,128,64]", ("/.call", "/.attend")),
        *(ModuleNode((f"norm_{i}",), "LayerNorm", "f32[8,128,64]", "f32[8,128,64]", ("/.call",),
                     (), 1e6) for i in range(5)),
    )  # fmt: skip
    return layout.replace(variables=tuple(rows), modules=modules, absent=("dropout",))


def large(count: int = 2000) -> Layout:
    """A scan over `count` variables, no two of one shape, beside a few others."""
    scan = LiftNode(0, "scan", "Body", ("body",), None, 12, "layers", None, True)
    rows = [
        variable(
            f"body/Layer_{i}/kernel",
            [Axis(12, "layers", 0), Axis(i % 97 + 1, "in"), Axis(i % 89 + 1, "out")],
            [Along(0, "stacked", 0, True)],
            layer="Dense",
        )
        for i in range(count)
    ]
    return Layout("Large", tuple(rows), (scan,), arguments="f32[8,64]")


def alike(count: int = 2000) -> Layout:
    """`count` variables of two shapes, as a hundred unrolled layers have them."""
    rows = []
    for i in range(count // 2):
        rows.append(variable(f"Block_{i}/kernel", [Axis(64, "in"), Axis(64, "out")], layer="Dense"))
        rows.append(variable(f"Block_{i}/bias", [Axis(64, "out")], layer="Dense"))
    return Layout("Alike", tuple(rows))


def many_blocks(count: int = 1000) -> Layout:
    """Blocks written one after the other, each under a remat of its own."""
    lifts, rows, modules = [], [], [ModuleNode((), "Many", "f32[2,8]", "f32[2,8]", ("",))]
    parts = {"LayerNorm_0": ("scale", "bias"), "Dense_0": ("kernel", "bias"),
             "Dense_1": ("kernel", "bias")}  # fmt: skip
    for i in range(count):
        lifts.append(LiftNode(i, "remat", "Block", (f"Block_{i}",), roles={"params": "through"}))
        modules.append(ModuleNode((f"Block_{i}",), "Block", "f32[2,8]", "f32[2,8]", ("/.call",)))
        for part, names in parts.items():
            for name in names:
                axes = [Axis(8, "in"), Axis(8, "out")] if name == "kernel" else [Axis(8, "out")]
                rows.append(variable(f"Block_{i}/{part}/{name}", axes, [Along(i, "through")]))
    return Layout("Many", tuple(rows), tuple(lifts), modules=tuple(modules))


def deep(depth: int = 8) -> Layout:
    """Lifts of one kind in one another."""
    lifts = tuple(
        LiftNode(i, "scan", f"Level{i}", (), i - 1 if i else None, i + 2, carry=True)
        for i in range(depth)
    )
    axes = [Axis(i + 2, "scan", i) for i in range(depth)]
    along = [Along(i, "stacked", i, True) for i in range(depth)]
    return Layout("Deep", (variable("w", [*axes, Axis(3, "features")], along),), lifts)
