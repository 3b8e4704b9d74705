"""What the documentation shows is run: the docstrings' examples and the pages' Python blocks."""

import doctest
import importlib
import inspect
import operator
import pkgutil
import re
import runpy
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

import liftax

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(liftax.__path__, "liftax.")
    if not module.name.endswith("__main__")
)
# The pages of the findings show what goes wrong; their own test runs them.
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
pytestmark = pytest.mark.usefixtures("compiled_quickly")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run(test: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=OPTIONS)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


# It puts liftax in flax's place, which is not to be changed under the tests of a process that have
# classes of flax's.
ALONE = "liftax.adopt.standing"


def test_examples_that_need_a_process():
    code = (
        f"import doctest, {ALONE} as m; r = doctest.testmod(m); assert r.attempted and not r.failed"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["liftax", *(name for name in MODULES if name != ALONE)])
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    tests = [t for t in doctest.DocTestFinder(exclude_empty=True).find(module) if t.examples]
    for test in tests:
        run(test)


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page with the line that each starts on.

    A block after the comment `<!-- not run -->` is left out.
    """
    text = page.read_text(encoding="utf-8")
    pattern = r"(<!-- not run -->\n)?^( *)```python\n(.*?)^\2```"
    return [
        (text[: m.start(3)].count("\n") + 1, textwrap.dedent(m[3]))
        for m in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
        if m[1] is None
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_in_pages(page, monkeypatch, tmp_path):
    """The blocks of one page run one after the other, in one module and an empty folder."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    namespace = vars(module)
    for line, source in blocks(page):
        where = f"{page.relative_to(ROOT)}:{line}"
        if ">>>" in source:
            run(doctest.DocTestParser().get_doctest(source, namespace, where, where, line))
        else:
            exec(compile("\n" * (line - 1) + source, str(page), "exec"), namespace)


def test_links_between_pages():
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_public_names_are_documented():
    silent = []
    for name in liftax.__all__:
        value = getattr(liftax, name)
        own = (getattr(value, "__module__", None) or "").startswith("liftax")
        if (
            own
            and (inspect.isclass(value) or inspect.isroutine(value))
            and not inspect.getdoc(value)
        ):
            silent.append(name)
    assert not silent


def test_each_public_name_is_on_a_page_of_the_reference():
    """A new name goes where a person looks for it: onto one of the pages of docs/reference."""
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md")]
    shown = re.findall(r"^\.\. auto\w+:: (?:liftax\.)?(\w+)$", "\n".join(pages), re.MULTILINE)
    named = re.findall(r"`(?:nn\.)?(\w+)`", "\n".join(pages))
    for name in liftax.__all__:
        value = getattr(liftax, name)
        own = inspect.isclass(value) or inspect.isroutine(value)
        own = own and value.__module__.startswith("liftax")
        assert name in (shown if own else [*shown, *named]), name


def test_each_public_name_has_an_example():
    for name in liftax.__all__:
        value = getattr(liftax, name)
        if (inspect.isclass(value) or inspect.isroutine(value)) and (
            value.__module__.startswith("liftax")
        ):
            assert ">>> " in (inspect.getdoc(value) or ""), name


def test_the_figures_are_drawn_from_the_tables():
    """Where the tables were written anew: `python docs/images/make_benchmarks.py`."""
    drawn = runpy.run_path(str(ROOT / "docs/images/make_benchmarks.py"))["draw"]()
    for name, picture in drawn.items():
        assert (ROOT / "docs/images" / name).read_text(encoding="utf-8") == picture, name


@pytest.mark.parametrize(
    ("page", "short", "library"),
    [("haiku", "hk", "haiku"), ("equinox", "eqx", "equinox"), ("nnx", "nnx", "flax.nnx")],
)
def test_names_of_other_libraries_exist(page, short, library):
    text = (ROOT / "docs/guides" / f"{page}.md").read_text(encoding="utf-8")
    for name in set(re.findall(rf"\b{short}\.([\w.]*\w)", text)):
        operator.attrgetter(name)(importlib.import_module(library))


def test_each_command_is_in_the_reference():
    page = (ROOT / "docs/reference/command.md").read_text(encoding="utf-8")
    commands = {m.name for m in pkgutil.iter_modules([str(ROOT / "src/liftax/cli")])}
    shown = set(re.findall(r'^show\("(\w+)"\)$', page, re.MULTILINE))
    assert shown == {name for name in commands if not name.startswith("_")}


@pytest.mark.parametrize("folder", ["guides", "tutorials", "reference"])
def test_each_page_stands_in_the_contents(folder):
    """In the `toctree` of its index, which Sphinx asks for, too, in `make docs`."""
    index = (ROOT / "docs" / folder / "index.md").read_text(encoding="utf-8")
    listed = re.search(r"```\{toctree\}\n(?:.*\n)*?\n((?:[\w-]+\n)+)```", index)[1].split()
    pages = {page.stem for page in (ROOT / "docs" / folder).glob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages)


def test_links_lead_where_they_led_when_pages_are_gathered():
    """A page may lie elsewhere in the site than in the repository: `docs/make.py`."""
    make = runpy.run_path(str(ROOT / "docs/make.py"))
    known = make["places"]() | make["ALIASES"]
    for page, text, turned in [
        ("docs/guides/stacks.md", "[a](performance.md#b)", "[a](performance.md#b)"),
        ("docs/guides/stacks.md", "[a](../../examples)", "[a](../examples.md)"),
        ("docs/internals.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("CONTRIBUTING.md", "[a](docs/internals.md)", "[a](internals.md)"),
        ("src/liftax/findings/README.md", "[a](LX101.md)", "[a](LX101.md)"),
        ("src/liftax/findings/README.md", "[a](../../../docs/index.md)", "[a](../index.md)"),
        ("docs/index.md", "[a](https://jax.dev) `](b.md)`", "[a](https://jax.dev) `](b.md)`"),
        ("docs/index.md", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
    ]:
        assert make["turned"](text, ROOT / page, known[ROOT / page], known) == turned
