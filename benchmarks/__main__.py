"""``python -m benchmarks [names...]``: measure, print, and on request save the tables."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import NAMES
from benchmarks.table import Table, machine, show
from benchmarks.timing import CLOCKS, Settings

# name -> module, function, what it measures
TABLES: dict[str, tuple[str, str, str]] = {
    "traces": ("traces", "run", "calls of the body as Python, by lift and depth"),
    "trace": ("trace_time", "run", "trace time of a 12-layer transformer and its gradient"),
    "nested": ("trace_time", "run_nested", "trace time of nested scans, depth 1 to 6"),
    "programs": ("programs", "run", "operations, FLOPs and bytes of the compiled programs"),
    "steps": ("steps", "run", "time of the compiled training step"),
    "init": ("inits", "run", "init: cold and warm time, and its program"),
    "eager": ("eager", "run", "eager apply of a three-layer MLP"),
    "imports": ("imports", "run", "import time"),
    "depth": ("depth", "run", "trace and compile time of 4 to 1,024 scanned layers"),
    "layout": ("layout", "run", "layout() beside one abstract init"),
    "layers": ("layers", "run", "the layers, one by one"),
    "stack": ("stack", "run", "every way to run a stack: trace, compile, step, memory"),
    "plans": ("plans", "run", "a stack as it is beside its loop, by depth"),
    "pipeline": ("pipeline", "run", "pipelines beside the loop over microbatches"),
    "decode": ("decode", "run", "one token through a stack with a cache, by run and storage"),
    "growth": ("growth", "run", "what grows with values, leaves and layers"),
    "convert": ("convert", "run", "liftax convert beside cp"),
    "gpu": ("gpu", "run", "a 300M-parameter transformer; needs a GPU"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        width = max(map(len, TABLES))
        for name, (_, _, what) in TABLES.items():
            print(f"{name.ljust(width)}  {what}")
        return 0
    settings = Settings(
        rounds=options.rounds,
        clock=options.clock,
        peers=tuple(options.peers.split(",")) if options.peers else None,
    )
    described = machine()
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    print(f"{options.rounds} rounds, {options.clock} clock, medians; ratios are to by hand")
    tables: list[Table] = []
    for name in options.names or TABLES:
        start = time.perf_counter()
        for table in measure(name, settings):
            show(table)
            tables.append(table)
        print(f"  ({name} took {time.perf_counter() - start:.0f} s)", flush=True)
    if options.results:
        save(tables, described, options, Path(options.results))
    if options.docs:
        how = (
            f"{described['processor']}, {described['cores']} cores, Python {described['python']}, "
            f"jax {described['jax']}; {options.rounds} rounds, {options.clock} clock"
        )
        print(f"wrote {fill_docs(Path(options.docs), tables, how)} tables into {options.docs}")
    return 0


def fill_docs(path: Path, tables: Sequence[Table], how: str) -> int:
    """Replace the figures of these tables in a page, and say how many had a place there."""
    text, filled = path.read_text(), 0
    for table in tables:
        if not table.cells:
            continue
        start, end = f"<!-- figures: {table.name} -->\n", "<!-- end of figures -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if found and closed:
            notes = "".join(f"- {note}\n" for note in table.notes)
            body = f"\n{table.markdown()}\n\n{notes}- taken on {how}\n\n"
            text = before + start + body + end + after
            filled += 1
    path.write_text(text)
    return filled


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="tables to make; all by default")
    parser.add_argument("--list", action="store_true", help="say which tables there are")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="default %(default)s")
    parser.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default=Settings.clock,
        help="cpu counts this process's time alone, for a machine that others use too",
    )
    parser.add_argument("--peers", help="comma-separated; by hand always takes part")
    parser.add_argument(
        "--results", metavar="DIR", help="also write results.json, results.md and plots there"
    )
    parser.add_argument(
        "--docs",
        metavar="FILE",
        help="put the tables into FILE, between <!-- figures: NAME --> and <!-- end of figures -->",
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in TABLES:
            parser.error(f"no table is called {name!r}; there are {', '.join(TABLES)}")
    for name in options.peers.split(",") if options.peers else ():
        if name not in NAMES:
            parser.error(f"no peer is called {name!r}; there are {', '.join(NAMES)}")
    return options


def measure(name: str, settings: Settings) -> list[Table]:
    """The tables of one name; a module that is not there is a table that says so."""
    module_name, function_name, what = TABLES[name]
    try:
        module = importlib.import_module(f"benchmarks.{module_name}")
    except ImportError as error:
        return [Table(name, what, [], notes=[f"skipped: {error}"])]
    function: Callable[..., Any] = getattr(module, function_name)
    return list(function(settings))


def save(
    tables: list[Table], described: dict[str, Any], options: argparse.Namespace, folder: Path
) -> None:
    from benchmarks.plot import draw

    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": described,
        "versions": versions(),
        "rounds": options.rounds,
        "clock": options.clock,
        "tables": [table.as_json() for table in tables],
    }
    (folder / "results.json").write_text(json.dumps(content, indent=1))
    parts = [f"## {t.title}\n\n{t.markdown()}\n" for t in tables if t.cells]
    (folder / "results.md").write_text("\n".join(parts))
    try:
        pictures = [path for table in tables if (path := draw(table, folder))]
    except ImportError as error:
        print(f"no plots: {error}")
        pictures = []
    print(f"wrote results.json, results.md and {len(pictures)} plots to {folder}")


def versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "liftax", "flax", "equinox", "dm-haiku", "haliax", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main())
