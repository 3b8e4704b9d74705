"""Time to import each library after ``import jax``, in fresh processes taking turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from benchmarks.table import Table
from benchmarks.timing import Sample, Settings

MODULES = {
    "jax": "jax",
    "liftax": "liftax",
    "flax.linen": "flax.linen",
    "flax.nnx": "flax.nnx",
    "equinox": "equinox",
    "haiku": "haiku",
}
CODE = """
import sys, time
{before}
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def run(settings: Settings) -> list[Table]:
    """Seconds of the import statement; files are in the system's cache after a first round."""
    names = [n for n in MODULES if settings.peers is None or n in (*settings.peers, "jax")]
    table = Table("imports", "import, after import jax", names)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as bytecode:
        for round_number in range(min(settings.rounds, 7) + 1):
            for name in names:
                try:
                    found = import_time(MODULES[name], bytecode)
                except RuntimeError as error:
                    table.note(f"{name}: {error}")
                    continue
                if round_number:
                    seconds.setdefault(name, []).append(found)
    samples = {name: Sample(tuple(values)) for name, values in seconds.items()}
    table.put_samples("import", samples)
    table.targets["import"] = "liftax <= 30 ms"
    return [table]


def import_time(module: str, bytecode: str) -> float:
    """Seconds of ``import module`` in a fresh process that has imported jax, if it is not jax."""
    code = CODE.format(before="" if module == "jax" else "import jax", module=module)
    # Compiled files as an installed package has them, wherever this machine keeps them or not.
    env = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["import failed"])[-1])
    return float(done.stdout)
