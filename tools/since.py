"""How large the library is beside an old state of it: `python tools/since.py [FOLDER]`.

The code lines of revision 57c245d, counted as `tools/house.py` counts, beside those that the
subjects of that time have today. What the library learned since then stands in `NEW`, so that two
figures are compared that speak of the same things. A subject that has grown counts with all of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.house import code_lines

REVISION = "57c245d"

NEW = (
    # flax.linen's own addresses, its programs and its types, taken as they are
    *("adopt", "absent", "treescoped", "core/frozen_dict", "core/meta", "core/axes_scan"),
    *("core/linen_names", "module/linen_names", "core/lift/pack", "transforms/linen_lifts"),
    *("activation", "attention", "batch_apply", "combinators", "core/variables", "dtypes"),
    *("fp8_ops", "initializers", "kw_only_dataclasses", "linear", "normalization"),
    *("partitioning", "pooling", "recurrent", "stochastic", "summary", "module/name_scope"),
    # other trees of parameters, other names for them, adapters, states of optimizers
    *("training", "checkpoint/layouts", "checkpoint/names", "checkpoint/states", "stack/foreign"),
    *("checkpoint/msgpack_out", "module/foreign"),
    # programs read step by step; what a layout knows besides places
    *("debug", "equations", "tracebacks", "layout/diff", "layout/kept", "layout/modules"),
    *("layout/residuals", "layout/staged", "layout/values", "layout/page_stages", "module/work"),
    *("layout/progress", "module/shapes"),
    # pipelines, explicit meshes, caches written in place, layers left out
    *("core/lift/pipeline", "core/lift/interleaved", "core/lift/schedule", "core/lift/stages"),
    *("core/lift/automatic", "core/lift/split", "core/lift/shard_map", "core/lift/in_place"),
    *("transforms/pipeline", "transforms/shard_map", "layers/sharded", "init_sharded"),
    *("stack/chosen", "stack/fsdp", "stack/interleave", "stack/microbatches"),
    # more lifts; programs found again
    *("core/lift/own", "transforms/own", "core/lift/checkify", "transforms/checkify"),
    *("core/lift/jacobians", "transforms/jacobians", "core/lift/bounded_loop"),
    *("core/making/alike", "core/making/kept", "core/holding"),
    # exercises, a training, commands
    *("practice", "lm", "interrupts", "installed", "cli/_lm", "cli/explain", "cli/migrate"),
    *("cli/practice", "cli/predict", "cli/run"),
)
"""Folders and files, by what they are called today, of which `REVISION` has no subject."""


def is_new(name: str) -> bool:
    """Tells whether a file's subject came after `REVISION`.

    Example:
      >>> is_new('debug/check.py'), is_new('core/scope.py')
      (True, False)
    """
    return any(f"{name.removesuffix('.py')}/".startswith(f"{new}/") for new in NEW)


def lines_then(folder: str, revision: str = REVISION) -> int:
    """Returns the code lines of a package at an old revision."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout

    names = git("ls-tree", "-r", "--name-only", revision, folder).split()
    return sum(code_lines(git("show", f"{revision}:{n}")) for n in names if n.endswith(".py"))


def lines_now(folder: Path) -> tuple[int, int]:
    """Returns the code lines of the subjects of then, and those of the new ones."""
    old = new = 0
    for file in sorted(folder.rglob("*.py")):
        count = code_lines(file.read_text(encoding="utf-8"))
        if is_new(file.relative_to(folder).as_posix()):
            new += count
        else:
            old += count
    return old, new


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", default="src/liftax")
    folder = parser.parse_args().folder
    old, new = lines_now(Path(folder))
    print(f"code lines at {REVISION}       {lines_then(folder)}")
    print(f"the same subjects today     {old}")
    print(f"subjects that came since    {new}")


if __name__ == "__main__":
    main()
