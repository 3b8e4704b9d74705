"""What is published: an sdist, and from it a wheel that works in an environment of its own."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
SOURCES = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src/liftax").rglob("*")
           if p.is_file() and p.suffix != ".pyc"}  # fmt: skip

TWELVE_LINES = """
import importlib.metadata, jax, jax.numpy as jnp, liftax as nn

class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(4)(x)), None

Layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
shapes = jax.eval_shape(Layers().init, jax.random.key(0), jnp.ones((2, 4)), None)
kernel = shapes["params"]["Dense_0"]["kernel"]
print(nn.__file__, importlib.metadata.version("liftax"), kernel.shape)
"""


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from what is in it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    make = "import hatchling.build as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    sdist = folder / run(sys.executable, "-c", make, "build_sdist", folder, cwd=ROOT).split()[-1]
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    inside = folder / sdist.name.removesuffix(".tar.gz")
    wheel = folder / run(sys.executable, "-c", make, "build_wheel", folder, cwd=inside).split()[-1]
    return inside, wheel


def test_the_version_has_a_section_of_its_own():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == VERSION


def test_the_page_on_installing_names_the_versions_that_are_tested():
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for version in re.findall(r"^(?:jax|flax)==([\d.]+)", pins, re.MULTILINE):
        assert f"| {version} |" in page
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in extras["optional-dependencies"]:
        assert f"`liftax[{extra}]`" in page


def test_the_sdist_has_what_the_tests_need(built):
    inside, _ = built
    for name in ("src", "tests", "docs", "examples", "benchmarks", "tools", "constraints.txt"):
        assert (inside / name).exists(), name
    assert not list(inside.rglob("*.pyc"))


def test_the_wheel_has_pages_stubs_and_data(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == SOURCES
    for name in ("py.typed", "__init__.pyi", "findings/LX102.md", "practice/verdict.css"):
        assert f"liftax/{name}" in names


def test_the_wheel_works_where_nothing_else_of_liftax_is(built, tmp_path):
    """An environment of its own, which borrows jax and numpy of this one."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--quiet", built[1])  # fmt: skip
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    file, version, *shape = run(python, "-I", "-c", TWELVE_LINES, cwd=tmp_path).split()
    assert Path(file).is_relative_to(site)
    assert version == VERSION
    assert " ".join(shape) == "(3, 4, 4)"
    command = tmp_path / "env/bin/liftax"
    assert run(command, "--version").strip() == f"liftax {VERSION}"
    assert "# LX102" in run(command, "explain", "LX102")
