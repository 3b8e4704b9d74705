"""liftax in flax's place: one program in two processes, and what comes before and after."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.compare import ON_FLAX

import liftax

pytestmark = pytest.mark.skipif(ON_FLAX, reason="flax in flax's place")
HERE = Path(__file__).parent


def python(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    source = str(Path(liftax.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": source},
    )


def test_a_program_prints_the_same_bits() -> None:
    program = HERE / "program.py"
    theirs = python(program, "-m", "--report", "x")
    ours = python("-m", "liftax", "run", "--report", program, "-m", "--report", "x")
    assert theirs.returncode == ours.returncode == 0, theirs.stderr + ours.stderr
    assert ours.stdout == theirs.stdout
    assert len(ours.stdout.splitlines()) == 32
    assert "taken from liftax" in ours.stderr
    assert "core.FrozenDict" in ours.stderr and "linen.Fp8DotGeneralOp" in ours.stderr
    assert "flax's own: 0 names" in ours.stderr


def test_modules_as_public_code_writes_them(tmp_path: Path) -> None:
    """In flax's place, and with the imports swapped."""
    from liftax.cli import main

    program = HERE / "modules.py"
    theirs, ours = python(program), python("-m", "liftax", "run", program)
    assert theirs.returncode == ours.returncode == 0, theirs.stderr + ours.stderr
    assert ours.stdout == theirs.stdout
    lines = theirs.stdout.splitlines()
    assert len(lines) == 60

    swapped = tmp_path / "swapped.py"
    swapped.write_text(program.read_text())
    assert main(["migrate", str(swapped), "--write"]) == 0
    assert "import liftax as nn" in swapped.read_text()
    assert python(swapped).stdout.splitlines() == lines


TESTS = """
import flax.linen as nn, jax, pytest

def test_here():
    assert nn.Dense.__module__.startswith("liftax.")
    import liftax.adopt
    with liftax.adopt.adopted():  # inside another it changes nothing
        pass
    assert nn.Dense is liftax.Dense

def test_of_somebody_else():
    assert nn.Dense(2).init(jax.random.key(0), jax.numpy.ones(3))["params"]["bias"].shape == (2,)
    with pytest.raises(AttributeError, match="clean_clone.*apply and bind"):
        nn.transforms.clean_clone
    with pytest.raises(ImportError, match="did you mean 'LayerNorm'"):
        from flax.linen import LayerNom
"""


def test_tests_run_with_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(TESTS)
    done = python(
        "-m", "pytest", "-q", "-p", "liftax.adopt.pytest", "--liftax-report", ".", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout and "test_theirs: linen.Dense" in done.stdout


# A package that came before has names of flax's, and a class made of them.
BEFORE = """
import flax.linen as nn
from flax import linen, nnx
from flax.core import meta
from flax.linen import Dense, scan

class Made(nn.Module):
    pass
"""
AROUND = """
import sys, warnings
import package, flax, jax
from flax import nnx

flaxs = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "flax"}
held = {(n, k): v for n, m in flaxs.items() for k, v in vars(m).items()}
bridge = nnx.bridge.ToLinen

import liftax, liftax.adopt
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    adoption = liftax.adopt.install()
assert "LX208: package made classes of flax's Module" in str(caught[0].message), caught
assert liftax.adopt.install() is adoption and adoption.late == ["package"]
assert package.Dense is liftax.Dense and package.nn.Dense is liftax.Dense
assert package.scan is liftax.scan and package.meta.Partitioned is liftax.Partitioned
assert issubclass(nnx.bridge.ToLinen, liftax.Module) and nnx.bridge.ToLinen is not bridge
assert flax.linen.fp8_ops.Fp8DotGeneralOp is package.nn.Fp8DotGeneralOp
assert issubclass(package.nn.Fp8DotGeneralOp, liftax.Module)
with nnx.logical_axis_rules((("a", "b"),)):
    assert liftax.get_logical_axis_rules() == (("a", "b"),)
everything = {}
exec("from flax.linen import *", everything)
assert everything["Dense"] is liftax.Dense and "FrozenDict" in everything
try:
    adoption.report()
except ValueError as error:
    assert "install(report=True)" in str(error)

liftax.adopt.uninstall()
for name, module in flaxs.items():
    assert sys.modules[name] is module, name
for (name, attribute), value in held.items():
    assert vars(flaxs[name])[attribute] is value, (name, attribute)
assert package.Dense is flax.linen.Dense is not liftax.Dense and nnx.bridge.ToLinen is bridge
liftax.adopt.uninstall()
print("all well")
"""


def test_before_and_after(tmp_path: Path) -> None:
    (tmp_path / "package.py").write_text(BEFORE)
    (tmp_path / "around.py").write_text(AROUND)
    done = python(tmp_path / "around.py")
    assert done.stdout == "all well\n", done.stderr
    # Where no script is, no Python starts.
    from liftax.cli import main

    assert main(["run", str(tmp_path / "absent.py")]) == 2
