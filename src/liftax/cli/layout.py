"""`liftax layout`: where the variables of an importable module lie.

liftax layout package.module:Model --args 'f32[8,64]'
liftax layout model.py:Model --field features=64 --args 'f32[8,64], train=False' --html out.html
liftax layout model.safetensors
liftax layout model.py:Model --args 'f32[8,64]' --diff model.safetensors
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..words import did_you_mean
from ._console import CommandError, Console

if TYPE_CHECKING:
    import numpy as np

    from ..layout.shown import Layout

EPILOG = """\
arguments are written as a call would have them, arrays as dtype[shape]:

  --args 'f32[8,64]'                      one array
  --args 'i32[8,128], train=False'        an array, and an argument by name
  --args '(f32[8,5], f32[8,5]), f32[20,8,3]'   a tuple of two arrays, and an array

dtypes: bool, i8 i16 i32 i64, u8 u16 u32 u64, f16 bf16 f32 f64, c64 c128, or their long names
"""

_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}


HELP = "show where each variable of a model lies, and which lift each axis came from"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG

    # The model, and the call of which its variables come.
    parser.add_argument(
        "target", help="package.module:Model, file.py:Model, or a checkpoint (file or directory)"
    )
    parser.add_argument(
        "--args", default="", metavar="ARGS", help="the arguments of the call (see below)"
    )
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the module's constructor; may be given more than once",
    )
    parser.add_argument(
        "--rngs",
        default="params",
        metavar="NAMES",
        help="the streams that have a key, as in params,dropout (params alone by default)",
    )
    parser.add_argument(
        "--diff", metavar="OTHER", help="show how OTHER, a model or a checkpoint, differs"
    )
    parser.add_argument(
        "--values", action="store_true", help="of a checkpoint: what the numbers are like"
    )
    parser.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="CODES",
        help="exit with 1 where there is a finding of these, as in LX903,LX202, or any warning",
    )
    parser.add_argument("--html", metavar="FILE", help="write the page to FILE")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--cost", action="store_true", help="compile one forward pass and add what it costs"
    )
    parser.add_argument(
        "--grads", action="store_true", help="add what a backward pass keeps, and what is cheap"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Builds the layout and prints or writes it."""
    codes = failing(args.fail_on)
    # Before the work: to trace a large model may take a minute.
    if args.html and not Path(args.html).resolve().parent.is_dir():
        raise CommandError(f"--html: there is no directory {str(Path(args.html).parent)!r}")

    from ..layout.progress import always

    # Where stderr is no terminal too: the log of a command may say what took so long.
    token = always.set(True)
    try:
        found = read(args.target, args)
        if args.diff is not None:
            return show_diff(found, args, console)
    finally:
        always.reset(token)
    show(found, args, console)
    failed = [f.code for f in found.findings if f.code in codes or f.severity in codes]
    if failed:
        listed = ", ".join(f"{failed.count(code)} of {code}" for code in dict.fromkeys(failed))
        print(f"liftax layout: found {listed} (--fail-on)", file=sys.stderr)
    return 1 if failed else 0


def show(found: Layout, args: argparse.Namespace, console: Console) -> None:
    """Prints the layout, or writes its page."""
    from ..layout.table import as_text

    if args.html:
        try:
            found.to_html(args.html)
        except OSError as error:
            raise CommandError(f"--html {args.html}: {error.strerror or error}") from error
    if args.json:
        console.line(json.dumps(found.to_dict(), indent=2))
    elif args.html:
        console.line(f"{found!r}\nwritten to {args.html}")
    elif console.fancy:
        console.rich(found)
    else:
        console.line(as_text(found))


def read(target: str, args: argparse.Namespace) -> Layout:
    """The layout of a model, or of a checkpoint."""
    if Path(target).exists() and not target.endswith(".py"):
        return read_checkpoint(target, args)
    if args.values:
        raise CommandError("--values is for a checkpoint: a model has no numbers yet")
    given = find(target)
    fields = dict(parse_field(text) for text in args.field)
    positional, named = parse_args(args.args)

    import jax

    from ..layout import layout

    module = build(target, given, fields)
    # The shape of a key: nothing is computed for a layout.
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        rngs = dict.fromkeys(streams(args.rngs), key)
        found = layout(module, rngs, *positional, grads=args.grads, **named)
        return found.with_cost() if args.cost else found
    except Exception as error:  # whatever the user's module raises is what the user must read
        raise CommandError(f"{type(module).__name__}({args.args}): {in_one_line(error)}") from error


def read_checkpoint(source: str, args: argparse.Namespace) -> Layout:
    """The layout of a file or directory, by what it says itself."""
    from ..checkpoint.layouts import read_layout
    from ..errors import LiftaxError

    for option in ("cost", "grads"):
        if getattr(args, option):
            raise CommandError(f"--{option} is for a model: a checkpoint has no forward pass")
    try:
        return read_layout(source, values=args.values)
    except (LiftaxError, OSError) as error:
        raise CommandError(in_one_line(error)) from error


def show_diff(found: Layout, args: argparse.Namespace, console: Console) -> int:
    """Prints how another target differs; 1 where it does, as `diff` has it."""
    import shutil

    from ..checkpoint.layouts import layout_diff

    # A file of Python's has a model in it; any other that is there is a checkpoint.
    stored = Path(args.diff).exists() and not args.diff.endswith(".py")
    other = args.diff if stored else read(args.diff, args)
    # A checkpoint by its name again, so that its tree can be brought into the other's storage.
    first = args.target if not found.traced else found
    differences = layout_diff(first, other, names=(args.target, args.diff))
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    console.line(differences.to_text(width))
    return 1 if differences else 0


# --- reading what was typed ---------------------------------------------------


def failing(texts: list[str]) -> set[str]:
    """The codes, and severities, that `--fail-on` names."""
    from ..errors import RULES

    # An error ends the trace, so that none is ever among the findings.
    known = {code for code, rule in RULES.items() if rule.severity != "error"} | {"warning", "note"}
    codes = {code.strip() for text in texts for code in text.split(",")}
    for code in sorted(codes - known):
        raise CommandError(f"--fail-on {code}: no finding has that code{did_you_mean(code, known)}")
    return codes


def streams(text: str) -> list[str]:
    """The names of the streams that `--rngs` gives."""
    names = [name.strip() for name in text.split(",")]
    if not all(name.isidentifier() for name in names):
        raise CommandError(f"--rngs {text!r}: expected names of streams, as in params,dropout")
    return names


def find(target: str) -> Any:
    """The object that `package.module:Name` or `file.py:Name` names."""
    source, colon, name = target.rpartition(":")
    if not colon or not source or not name:
        raise CommandError(f"{target!r}: expected package.module:Model, e.g. my_models.vit:ViT")
    # A console script has its own folder there, and not the one that the user stands in.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = load_file(source) if source.endswith(".py") else importlib.import_module(source)
    except CommandError:
        raise
    except ModuleNotFoundError as error:
        # Whether the module that was asked for is missing, or one that it imports.
        if error.name and source.split(".")[: error.name.count(".") + 1] == error.name.split("."):
            raise CommandError(f"{target!r}: there is no module {error.name!r}") from error
        raise CommandError(
            f"{target!r}: importing {source} failed: {in_one_line(error)}"
        ) from error
    # A script may end the process when it is imported.
    except (Exception, SystemExit) as error:
        raise CommandError(
            f"{target!r}: importing {source} failed: {in_one_line(error)}"
        ) from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, dir(found))
            raise CommandError(f"{target!r}: {source} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def load_file(source: str) -> ModuleType:
    """Imports a file by its path."""
    path = Path(source)
    if not path.is_file():
        raise CommandError(f"{source!r}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{source!r}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up there.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def build(name: str, target: Any, fields: dict[str, Any]) -> Any:
    """The module instance: of a class, from a function without arguments, or as it is."""
    from ..module import Module

    if isinstance(target, Module):
        if fields:
            raise CommandError(f"{name!r} is an instance already; --field only goes with a class")
        return target
    is_class = isinstance(target, type) and issubclass(target, Module)
    if not callable(target) or (isinstance(target, type) and not is_class):
        raise CommandError(f"{name!r} is {kind_of(target)}, expected a liftax Module")
    if is_class:
        known = [f.name for f in dataclasses.fields(target) if f.init]
        # Where the module stands is found by itself.
        known = [name for name in known if name not in ("parent", "name")]
        for field in fields:
            if field not in known:
                listed = ", ".join(known) or "none"
                raise CommandError(
                    f"--field {field}: {name} has no such field (its fields: {listed})"
                )
    try:
        module = target(**fields)
    except Exception as error:
        # Most likely a field without a default.
        hint = "; give fields as --field name=value" if isinstance(error, TypeError) else ""
        raise CommandError(f"{name}: {in_one_line(error)}{hint}") from error
    if not isinstance(module, Module):
        raise CommandError(f"{name!r} made {kind_of(module)}, expected a liftax Module")
    return module


def parse_field(text: str) -> tuple[str, object]:
    """`features=64` as a pair; what is no Python literal is a string."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name.isidentifier():
        raise CommandError(f"--field {text!r}: expected name=value")
    try:
        return name, ast.literal_eval(value.strip())
    except (SyntaxError, ValueError):
        return name, value


def parse_args(text: str) -> tuple[list[object], dict[str, object]]:
    """`f32[8,64], train=False` as positional and named arguments."""
    try:
        # The empty brackets of a scalar are the one thing here that Python does not read.
        readable = re.sub(r"(?<=\w)\[\s*\]", "[()]", text)
        call = ast.parse(f"_({readable})", mode="eval").body
    except SyntaxError as error:
        raise CommandError(f"--args {text!r}: cannot be read; write it like 'f32[8,64]'") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise CommandError(f"--args {text!r}: cannot be read; write it like 'f32[8,64]'")
    named = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise CommandError(f"--args {text!r}: ** is not understood here")
        named[keyword.arg] = value_of(keyword.value, text)
    return [value_of(arg, text) for arg in call.args], named


def value_of(node: ast.expr, text: str) -> object:
    """The value of one piece of `--args`."""
    import jax

    match node:
        case ast.Subscript(value=ast.Name(id=name)):
            shape = sizes(node.slice, text)
            # A shape is all that a layout needs.
            return jax.ShapeDtypeStruct(shape, dtype(name, text))
        case ast.Tuple(elts=parts):
            return tuple(value_of(part, text) for part in parts)
        case ast.List(elts=parts):
            return [value_of(part, text) for part in parts]
        case ast.Dict(keys=keys, values=values):
            return {
                ast.literal_eval(key): value_of(value, text)
                for key, value in zip(keys, values, strict=True)
                if isinstance(key, ast.Constant)
            }
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        piece = ast.unparse(node)
        raise CommandError(
            f"--args: {piece!r} is neither an array like f32[8,64] nor a Python literal"
        ) from error


def sizes(node: ast.expr, text: str) -> tuple[int, ...]:
    """The sizes between the brackets."""
    try:
        found = ast.literal_eval(node)
    except (ValueError, TypeError):
        found = None
    shape = found if isinstance(found, tuple) else (found,)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise CommandError(f"--args {text!r}: a shape is made of whole numbers, as in f32[8,64]")
    return shape


def dtype(name: str, text: str) -> np.dtype:
    """The dtype that a short or long name means."""
    import jax.numpy as jnp

    short = re.fullmatch(r"(bf|f|i|u|c)(\d+)", name)
    long = name
    if short:
        kind, bits = short.groups()
        long = "bfloat16" if kind == "bf" and bits == "16" else f"{_KINDS.get(kind, name)}{bits}"
    try:
        return jnp.dtype(long)
    except TypeError as error:
        raise CommandError(f"--args {text!r}: there is no dtype {name!r}, use e.g. f32") from error


def kind_of(value: object) -> str:
    """`the class 'Foo'`, `a function`, `an int`, for messages."""
    if isinstance(value, type):
        return f"the class {value.__name__!r}"
    word = type(value).__name__
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def in_one_line(error: BaseException) -> str:
    """The kind of an error and what it says, on one line: all of it where it is liftax's own."""
    from ..errors import LiftaxError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = "; ".join(lines if isinstance(error, LiftaxError) else lines[:1])
    code = error.code if isinstance(error, LiftaxError) else None
    page = f" (liftax explain {code})" if code else ""
    return f"{type(error).__name__}: {said or 'no further word'}{page}"
