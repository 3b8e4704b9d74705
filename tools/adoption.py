"""Real packages on liftax: `make adoption`, or `python tools/adoption.py [--install] [NAME...]`.

Each program in tests/adoption/packages/uses.py runs twice: with flax in one process, and in another
by `liftax run`, with liftax in flax's place. What they print, a hash of the bits of each tree of
arrays, must be the same. Where a package ships tests of its modules, `--tests` runs them too: those
that pass with flax must pass with `-p liftax.adopt.pytest`. Tests of liftax's that use a package
beside liftax run here, since they need it. Prints the table that stands in
docs/guides/linen.md; `--docs` writes it there.

The packages belong into an environment of their own, which `--install` fills: `make adoption` makes
one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
USES = ROOT / "tests/adoption/packages/uses.py"
CONSTRAINTS = USES.with_name("constraints.txt")
PAGE = ROOT / "docs/guides/linen.md"
START, END = "<!-- made by tools/adoption.py -->\n", "<!-- end -->\n"


class Package(NamedTuple):
    """What is run of a package.

    Attributes:
      pins: its distribution and what it needs besides, at fixed versions.
      what: what of it is run.
      alone: distributions that are installed without what they ask for: what they need of it is
        in `pins`.
      tests: its modules of tests.
      beside: tests of liftax's that use it beside liftax, not on it.
    """

    pins: str
    what: str
    alone: str = ""
    tests: str = ""
    beside: str = ""


PACKAGES = {
    "aqtp": Package(
        "aqtp==0.9.0", "quantized dot products and einsums in layers, frozen, under scan and remat",
        tests="aqt.jax.v2.flax.aqt_flax_test aqt.jax.v2.flax.freezer_test "
        "aqt.jax.v2.flax.intercept.aqt_intercept_methods_test",
        beside="tests/adoption/test_operators.py",
    ),
    "brax": Package(
        "brax==0.14.2", "PPO's networks, CNN, spectral norm",
        tests="brax.training.types_test brax.training.agents.ppo.losses_test "
        "brax.training.agents.ppo.checkpoint_test",
    ),
    "clu": Package(
        "clu==0.0.12", "parameter overview, metrics",
        tests="clu.parameter_overview_test clu.metrics_test",
    ),
    "e3x": Package("e3x==1.0.2", "message passing, tensor layers, self-attention"),
    "evosax": Package("evosax==0.3.2", "networks"),
    "flaxdiff": Package("flaxdiff==0.2.11", "U-Net, vision transformer of diffusion"),
    "flaxmodels": Package("flaxmodels==0.1.3", "ResNet, VGG"),
    "gemma": Package(
        "lark==1.3.1 immutabledict==4.3.1 einops==0.8.2 jaxtyping==0.3.11 etils[epath,epy]==1.15.0 "
        "sentencepiece==0.2.3 typeguard==4.6.1",
        "a small transformer, LoRA, its cache", alone="gemma==3.3.0 kauldron==1.4.2",
    ),
    "jax_resnet": Package("jax-resnet==0.0.4", "ResNet, ResNeSt"),
    "netket": Package(
        "netket==3.23.0", "RBM, GCNN, autoregressive models with caches, three steps of VMC"
    ),
    "numpyro": Package(
        "numpyro==0.22.0", "flax_module with batch norm, random_flax_module, SVI, NUTS"
    ),
    "orbax": Package(
        "orbax-checkpoint==0.12.8", "a TrainState, boxed and with batch norm, saved in four ways"
    ),
    "ott_jax": Package("ott-jax==0.6.0 diffrax==0.7.2", "potentials, ICNN"),
    "rejax": Package("rejax==0.1.3 gymnax==0.0.9", "PPO and DQN, trained, under vmap and jit"),
    "transformers": Package(
        "transformers==4.57.6", "Bert, Roberta with remat, GPT-2 that generates, Llama, ViT, ResNet"
    ),
}  # fmt: skip


class Found(NamedTuple):
    """What came of one package: trees and arrays, the first difference, tests that pass."""

    lines: int = 0
    arrays: int = 0
    differs: str = ""
    tests: str = "-"


def pip(*args: str) -> None:
    call = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *args]
    subprocess.run(call, check=True)


def install(names: list[str]) -> None:
    """Installs packages into this environment, and liftax with flax."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    own = "jax|jaxlib|flax|numpy|optax|orbax-checkpoint|pytest|hypothesis"
    wanted = [line for line in pins if re.match(rf"({own})==", line)]
    wanted += [pin for name in names for pin in PACKAGES[name].pins.split()]
    known = ["--constraint", str(CONSTRAINTS)] if sys.version_info[:2] == (3, 11) else []
    pip("install", *known, "--editable", f"{ROOT}[cli]", *wanted)
    alone = [pin for name in names for pin in PACKAGES[name].alone.split()]
    if alone:
        pip("install", "--no-deps", *alone)


def python(*args: str, cwd: Path = USES.parent) -> subprocess.CompletedProcess[str]:
    # Sets of strings are walked in the order of their hashes, by some of the packages too.
    env = {**os.environ, "PYTHONHASHSEED": "0", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = str(ROOT / "src")
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, cwd=cwd)


def passed(package: Package, *options: str) -> set[str]:
    """The tests of a package that pass."""
    call = ["-m", "pytest", "-q", "-rp", "--tb=no", "-p", "no:cacheprovider", *options]
    # In a folder of its own, where no conftest of liftax's is.
    with tempfile.TemporaryDirectory() as folder:
        place = ["-c", os.devnull, "--rootdir", "/", "--pyargs", *package.tests.split()]
        done = python(*call, *place, cwd=Path(folder))
    return set(re.findall(r"^PASSED (.+)$", done.stdout, re.MULTILINE))


def run(name: str, tests: bool) -> Found:
    """Runs one package with flax and with liftax."""
    package = PACKAGES[name]
    theirs = python(str(USES), name)
    if theirs.returncode:
        last = theirs.stderr.strip().splitlines()[-1]
        return Found(differs=f"does not run on flax: {last}")
    ours = python("-m", "liftax", "run", str(USES), name)
    lines = theirs.stdout.splitlines()
    arrays = sum(map(int, re.findall(r": (\d+) arrays ", theirs.stdout)))
    differs = ""
    if ours.returncode:
        differs = ours.stderr.strip()[-400:]
    elif ours.stdout != theirs.stdout:
        both = zip(lines, ours.stdout.splitlines(), strict=False)
        differs = next((f"{a} / {b}" for a, b in both if a != b), "another number of lines")
    if package.beside and not differs:
        call = ["-m", "pytest", "-q", "-p", "no:cacheprovider", package.beside]
        beside = python(*call, cwd=ROOT)
        differs = beside.stdout.strip()[-400:] if beside.returncode else ""
    found = Found(len(lines), arrays, differs)
    if tests and package.tests:
        expected = passed(package)
        lost = expected - passed(package, "-p", "liftax.adopt.pytest")
        told = f"{len(expected) - len(lost)} of {len(expected)}"
        differs = found.differs or ", ".join(sorted(lost))
        if not expected:
            differs = "its tests do not run on flax"
        found = found._replace(tests=told, differs=differs)
    return found


def version(name: str) -> str:
    pin = (PACKAGES[name].alone or PACKAGES[name].pins).split()[0]
    distribution = pin.partition("==")[0]
    return f"{distribution} {importlib.metadata.version(distribution)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PACKAGES)}; all by default")
    parser.add_argument("--install", action="store_true", help="install them here first")
    parser.add_argument("--tests", action="store_true", help="run their own tests too")
    parser.add_argument("--docs", action="store_true", help="write the table into its page")
    given = parser.parse_args()
    names = given.names or list(PACKAGES)
    if given.install:
        install(names)
    # Where liftax traces what flax traces, its programs are compiled already.
    with tempfile.TemporaryDirectory() as compiled:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
        os.environ.setdefault("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0")
        return report(names, given.tests, given.docs)


def report(names: list[str], tests: bool, docs: bool) -> int:
    """Runs packages, prints the table, and returns 1 where one differs."""
    rows = [
        "| package | what runs | trees, arrays | its own tests | bits |",
        "|---|---|---|---|---|",
    ]
    wrong = {}
    for name in names:
        start = time.monotonic()
        found = run(name, tests)
        same = "the same" if not found.differs else "differ"
        wrong |= {name: found.differs} if found.differs else {}
        trees = f"{found.lines}, {found.arrays}" if found.lines else "-"
        rows.append(
            f"| {version(name)} | {PACKAGES[name].what} | {trees} | {found.tests} | {same} |"
        )
        print(f"{rows[-1]} {time.monotonic() - start:.0f} s", flush=True)
    print("\n".join(rows))
    for name, text in wrong.items():
        print(f"\n{name}: {text}")
    if docs:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2]
        table = "\n".join(rows)
        PAGE.write_text(f"{before}{START}{table}\n{END}{after}", encoding="utf-8")
    # The line by which CI knows that tests ran.
    print(f"\n{len(rows) - 2 - len(wrong)} passed, {len(wrong)} failed")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
