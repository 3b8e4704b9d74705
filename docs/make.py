"""Builds the site: gathers the pages of the repository, then runs Sphinx with warnings as errors.

Pages lie where a reader of the repository looks for them: the findings in the package, which prints
them, the changes and the contributing at the top. Here they are copied into one tree, and the links
between them are turned so that each leads where it led.

    python docs/make.py              # build/docs/html/index.html, opens from disk
    python docs/make.py --no-run     # the same without running the tutorials
    python docs/make.py --no-build   # the gathered sources alone
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BUILD = ROOT / "build" / "docs"
SOURCE, HTML = BUILD / "source", BUILD / "html"

FINDINGS = ROOT / "src/liftax/findings"
ELSEWHERE = {
    ROOT / "CHANGELOG.md": "changes.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "examples/README.md": "examples.md",
    FINDINGS / "README.md": "errors/index.md",
    **{page: f"errors/{page.name}" for page in FINDINGS.glob("LX*.md")},
}
# A link to the README is a link to where the site begins.
ALIASES = {ROOT / "README.md": "index.md", ROOT / "examples": "examples.md"}
CONTENTS = "\n```{toctree}\n:hidden:\n:glob:\n\nLX*\n```\n"

INSTALL = "%pip install --quiet 'liftax[train,practice]'  # or, in a checkout, '.[train,practice]'"

LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")
FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2[ \t]*$", re.DOTALL | re.MULTILINE)


def places() -> dict[Path, str]:
    """Each file of the site: where it lies in the repository, and where in the site."""
    own = [path for path in DOCS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path: path.relative_to(DOCS).as_posix() for path in own} | ELSEWHERE


def turned(text: str, page: Path, target: str, known: dict[Path, str]) -> str:
    """The text of a page with its links as they are to be in the site."""

    def link(found: re.Match[str]) -> str:
        start, address, end = found.groups()
        path = Path(os.path.normpath(page.parent / address))
        if "://" in address or not path.exists():
            return found[0]  # Sphinx says of a page that does not exist where it is named
        place = known.get(path)
        if place is None:  # a file that is no page: the site keeps a copy
            place = f"files/{path.relative_to(ROOT).as_posix()}"
            (SOURCE / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, SOURCE / place)
        return start + os.path.relpath(place, Path(target).parent) + end

    parts, last = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(link, text[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, LINK.sub(link, text[last:])])


def with_notebook(text: str, target: str) -> str:
    """A tutorial with a link to it as a notebook, which is written beside it."""
    import nbformat
    from myst_nb.core.read import read_myst_markdown_notebook
    from myst_parser.config.main import MdParserConfig

    book = read_myst_markdown_notebook(text, MdParserConfig(), add_source_map=False)
    book.cells.insert(0, nbformat.v4.new_code_cell(INSTALL, id="install"))
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
    name = Path(target).with_suffix(".ipynb").name
    (SOURCE / "files").mkdir(exist_ok=True)
    nbformat.write(book, SOURCE / "files" / name)
    title, rest = re.split(r"(?<=\n)(?=\n)", text[text.index("\n# ") + 1 :], maxsplit=1)
    link = f"\nThis page as a {{download}}`notebook <../files/{name}>`.\n"
    return text[: text.index("\n# ") + 1] + title + link + rest


def gather() -> None:
    """Writes the sources of the site."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    pages = places()
    for path, target in pages.items():
        (SOURCE / target).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".md":
            shutil.copyfile(path, SOURCE / target)
            continue
        text = turned(path.read_text(encoding="utf-8"), path, target, pages | ALIASES)
        if target.startswith("tutorials/") and is_notebook(text):
            text = with_notebook(text, target)
        if target == "errors/index.md":
            text += CONTENTS
        (SOURCE / target).write_text(text, encoding="utf-8")


def is_notebook(text: str) -> bool:
    return text.startswith("---") and "kernelspec" in text.split("---")[1]


def loose() -> Iterator[str]:
    """Links of the built pages to files that are not there."""
    for page in HTML.rglob("*.html"):
        for address in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", address) and not (page.parent / address).exists():
                yield f"{page.relative_to(HTML)}: {address}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--no-run", action="store_true", help="do not run the tutorials")
    parser.add_argument("--no-build", action="store_true", help="gather the sources alone")
    arguments = parser.parse_args()
    gather()
    if arguments.no_build:
        return 0
    # What Sphinx keeps of the last build it compares by time of change, and all is new here.
    shutil.rmtree(HTML, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(BUILD / "doctrees"), "-E", str(SOURCE), str(HTML)]
    if arguments.no_run:
        command += ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer"]
    rc = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}).returncode
    broken = [] if rc else sorted(set(loose()))
    if broken:
        print("links to nowhere:", *broken, sep="\n  ", file=sys.stderr)
    if not rc and not broken:
        print(f"built {HTML.relative_to(ROOT)}/index.html")
    return rc or bool(broken)


if __name__ == "__main__":
    sys.exit(main())
