"""`liftax convert`: a checkpoint with one subtree a layer, or with its layers stacked.

liftax convert model.msgpack model.safetensors --layout layers --stack decoder/blocks
liftax convert model.safetensors stacked.safetensors --layout stacked --axis 1
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.files import open_checkpoint, open_shards, verify_sums
from ..checkpoint.names import config_beside, table
from ..checkpoint.write import Checkpoint, Plan, kind_of_target, planned
from ..errors import LiftaxError
from ._console import CommandError, Console, Interrupted, require
from ._files import check_output

if TYPE_CHECKING:
    from ..stack.stacking import Stacking, Stackings

EPILOG = """\
SRC is a safetensors file, a msgpack file as Linen writes it, or a directory of Orbax. DST is one of
them too, by its suffix (.safetensors, .msgpack, .orbax or none); a file may be SRC itself. It says
how the layers lie, so that it can be converted again without more being said. Of another SRC, say
which layers are stacked:

  --stack decoder/blocks              decoder/blocks in the stacked form, decoder/blocks/layers_0,
                                      decoder/blocks/layers_1, ... in the layers form
  --stack decoder=decoder/block_{}    decoder/block_0, decoder/block_1, ... in the layers form
  --stack =Block_{}                   the whole model; Block_0, Block_1, ... in the layers form
  --model model.py:Model --args 'f32[8,64]'    as the Stacks and scans of a model have them

With both, --stack is for SRC and --model for DST: say the layers by their paths in the model, as in
--stack ScanBlock_0=Stack_0/layers_{}.

--from-hf gpt2 reads a SRC with the names that Hugging Face gives to GPT-2 (or gemma, llama, qwen),
a file or a folder with its shards, and --to-hf writes them; the models are those of examples/.

Everything else in SRC, states of optimizers included, is taken along; where they have a copy of the
parameters' tree, it is converted with them.
"""

_MOST_EMPTY = 1000

HELP = "convert a checkpoint between stacked layers and one subtree a layer"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG

    # What is converted, and into what.
    parser.add_argument("source", type=Path, metavar="SRC", help="the checkpoint to be read")
    parser.add_argument("target", type=Path, metavar="DST", help="the checkpoint to be made")
    parser.add_argument(
        "--layout",
        choices=("layers", "stacked"),
        help="layers: one subtree a layer; stacked: one array for all layers",
    )
    parser.add_argument(
        "--axis",
        type=_whole,
        metavar="N",
        help="the axis of the layers where they are stacked: in DST, or with --layout layers in "
        "SRC (default: what SRC or the model says, else 0)",
    )
    parser.add_argument(
        "--source-axis",
        type=_whole,
        metavar="N",
        help="the axis of the layers in a stacked SRC that does not say so itself, if not --axis",
    )
    parser.add_argument(
        "--stack",
        action="append",
        default=[],
        metavar="PATH[=LAYERS]",
        help="a stack of layers in SRC (see below); may be given more than once",
    )
    parser.add_argument("--model", metavar="TARGET", help="take the layout from a model")
    parser.add_argument("--args", default="", metavar="ARGS", help="the arguments of its call")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the model; may be given more than once",
    )
    parser.add_argument("--from-hf", metavar="NAME", help="SRC has Hugging Face's names: gpt2, ...")
    parser.add_argument("--to-hf", metavar="NAME", help="give DST Hugging Face's names")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be written, and write nothing"
    )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def run(args: argparse.Namespace, console: Console) -> int:
    """Plans the conversion from shapes, carries it out tensor by tensor, and compares."""
    from ..checkpoint.write import write
    from ..stack.stacking import name_of

    try:
        kind = _check_target(args)
        found = _source(args)
        source, target = layouts(args, found)
        # By shapes: whatever cannot be converted is told before a byte is written.
        plan = _plan(args, found, source, target)
        extra, recorded = found.metadata, found.checksums
        if args.dry_run or args.to_hf:
            verify_sums(found)  # where writing will not: the sums are those of our names
        if args.to_hf:
            theirs = table(args.to_hf).to_theirs(plan.tree)
            plan, extra, recorded = planned(theirs), {"format": "pt"}, {}
        tensors = plan.tensors
        size = sum(tensor.nbytes for tensor in tensors.values())
        _describe(args, found, plan, console)
        if args.dry_run:
            _table(plan, None, console)
            console.line(f"{_counted(tensors)}, {size:,} bytes; nothing written (--dry-run)")
            return 0
        with console.progress(len(tensors), "tensor") as progress:
            write(
                args.target,
                plan,
                kind=kind,
                extra=extra,
                recorded=recorded,
                step=lambda name, size: progress(name=name_of(name), bytes=f"{size:,}"),
            )
    except LiftaxError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        # A full disk has no file name in its error; it is the target that is written.
        place = error.filename if isinstance(error.filename, str) else args.target
        raise CommandError(f"{place}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {args.target} is as it was") from None
    _table(plan, plan.by_layer(), console)
    console.line(
        f"wrote {args.target}: {_counted(tensors)}, {size:,} bytes, read back and compared"
    )
    return 0


def _check_target(args: argparse.Namespace) -> str:
    """The format of the target, which must be one that can be written here."""
    kind = kind_of_target(args.target)
    if args.layout is None and not args.to_hf:
        raise CommandError("the following arguments are required: --layout (or --to-hf)")
    if args.to_hf:
        table(args.to_hf)
        if kind != "safetensors":
            raise CommandError(f"{args.target}: Hugging Face's names go into a .safetensors file")
        if args.layout == "stacked":
            raise CommandError("--to-hf: Hugging Face's layers are not stacked; leave out --layout")
        args.layout = "layers"
    # Before anything is read: what the work needs must be here.
    if kind != "msgpack":
        require({"orbax": "orbax.checkpoint"}.get(kind, kind), "checkpoints")
    if kind == "orbax" and (args.target.exists() or args.target.is_symlink()):
        raise CommandError(f"{args.target}: is there already; a directory is not replaced")
    check_output(args.target, args.target.suffix.lower())
    return kind


def _source(args: argparse.Namespace) -> Checkpoint:
    """The source, with our names."""
    if not args.from_hf:
        return open_checkpoint(args.source)
    names = table(args.from_hf)
    tree = open_shards(args.source)
    try:
        made, stackings = names.to_ours(tree, config_beside(args.source))
    except LiftaxError as error:
        raise CommandError(f"{args.source}: {error}") from error
    if args.layout == "stacked" and not names.alike and not args.model:
        raise CommandError(
            f"--from-hf {args.from_hf}: its layers are not all alike, so a pattern of them is "
            f"stacked: give --model, or --layout layers"
        )
    return Checkpoint(made, f"Hugging Face's names of {args.from_hf}", stackings)


def _plan(
    args: argparse.Namespace, found: Checkpoint, source: Stackings, target: Stackings
) -> Plan:
    try:
        sums = found.checksums
        return planned(found.tree, source, form=args.layout, target=target, recorded=sums)
    except LiftaxError as error:
        raise CommandError(f"{args.source}: {error}") from error


# --- where the layers are -----------------------------------------------------


def layouts(args: argparse.Namespace, found: Checkpoint) -> tuple[Stackings, Stackings]:
    """How the layers of the source are stacked, and how those of the target are to be.

    Raises:
      CommandError: nothing says so, or two things contradict each other.
    """
    # What the source says of itself comes before what the user says, and may not contradict it.
    own, axis = found.stackings, args.axis
    if own:
        if args.stack:
            raise CommandError(f"{args.source} says itself where its layers are: leave out --stack")
        if args.source_axis is not None:
            raise CommandError(
                f"{args.source} says itself along which axis its layers are stacked: leave out "
                f"--source-axis"
            )
        wanted = _of_model(args) if args.model else own
        if args.layout == "layers" and axis is not None:
            _check_axis(args, own)
            return own, wanted
        return own, _along(wanted, axis)
    # With --layout layers only the source has an axis of layers, so --axis can mean no other.
    given = axis if args.layout == "layers" else None
    source_axis = args.source_axis if args.source_axis is not None else given
    if args.layout == "layers" and None not in (axis, args.source_axis):
        raise CommandError(
            "--axis is that of SRC with --layout layers, and so is --source-axis: leave one out"
        )
    if args.model:
        modelled = _of_model(args)
        if args.stack:
            return _stacks(args.stack, found.tree, source_axis or 0), _along(modelled, axis)
        return _along(modelled, source_axis), _along(modelled, axis)
    if not args.stack:
        raise CommandError(
            f"{args.source} does not say where its layers are: give --stack PATH for each stack, "
            f"or --model (see liftax convert --help)"
        )
    stacks = _stacks(args.stack, found.tree, source_axis or 0)
    return stacks, _along(stacks, axis)


def _along(stackings: Stackings, axis: int | None) -> Stackings:
    return stackings if axis is None else tuple(s.along(axis) for s in stackings)


def _check_axis(args: argparse.Namespace, own: Stackings) -> None:
    for s in own:
        said = s.axis_of("params")
        if said is not None and said != args.axis:
            raise CommandError(
                f"--axis {args.axis}: {args.source} says that its layers are stacked along axis "
                f"{said}; with --layout layers, leave out --axis"
            )


def _of_model(args: argparse.Namespace) -> Stackings:
    import jax

    from ..checkpoint.find import stackings_of
    from .layout import build, find, in_one_line, parse_args, parse_field

    target = find(args.model)
    module = build(args.model, target, dict(parse_field(text) for text in args.field))
    positional, named = parse_args(args.args)
    # The model is traced and not initialised: a key without a value will do.
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        found = stackings_of(module, {"params": key}, *positional, **named)
    except Exception as error:  # whatever the user's module raises is what the user must read
        raise CommandError(f"{type(module).__name__}({args.args}): {in_one_line(error)}") from error
    if not found:
        raise CommandError(f"{args.model} has no stacked layers: neither a Stack nor a scan")
    return found


def _stacks(texts: list[str], tree: object, axis: int) -> Stackings:
    """The stacks that `PATH[=LAYERS]` name, with as many layers as the source has."""
    from ..checkpoint.convert import to_layers
    from ..checkpoint.find import as_stackings
    from ..stack.stacking import Stacking

    # Those outside first: what is inside is found in their layers.
    given = sorted((text.partition("=") for text in texts), key=lambda parts: parts[0].count("/"))
    made: list[Stacking] = []
    seen: list[Stacking] = []
    for path, equals, layers in given:
        names = f"/{layers}" if equals else "layers_{}"
        text = path + equals + layers
        if names.count("{}") != 1:
            raise CommandError(
                f"--stack {text!r}: write {{}} for a layer's number, as in 'block_{{}}'"
            )
        # A stack within another one is looked for in the first layer of that.
        there = _located(path, seen)
        layers_there = "/" + _located(names if equals else f"{path}/{names}", seen)
        depth = _depth(there, layers_there, tree, axis)
        if not depth:
            first = layers_there[1:].replace("{}", "0")
            raise CommandError(f"--stack {text!r}: there is neither {path or 'a tree'} nor {first}")
        at = Stacking.of(there, depth, axis=axis, names=layers_there)
        tree = to_layers(tree, at)
        seen.append(at)
        made.append(Stacking.of(path, depth, axis=axis, names=names))
    return as_stackings(made)


def _located(path: str, outer: list[Stacking]) -> str:
    """Where a path of the stacked form lies in the first layers of the stacks around it."""
    from ..stack.stacking import split_path

    parts = split_path(path)
    for stack in outer:
        depth = len(stack.path)
        if len(parts) > depth and parts[:depth] == stack.path:
            parts = (*stack.layers[0], *parts[depth:])
    return "/".join(parts)


def _depth(path: str, layers: str, tree: object, axis: int) -> int:
    """The number of layers that lie at a stack's place, in either form; 0 for none."""
    from ..checkpoint.roots import find_trees
    from ..checkpoint.tensors import flat
    from ..stack.arrays import is_array
    from ..stack.stacking import Stacking, split_path
    from ..stack.trees import get

    for root in find_trees(tree, (Stacking.of(path, 1, names=layers),)):
        # Layers one by one say how many they are; of a stacked array it is a size.
        numbers = _numbers(root.tree, split_path(layers))
        missing = sorted(set(range(len(numbers))) - numbers)
        if missing:
            name, last = (layers[1:].replace("{}", str(i)) for i in (missing[0], max(numbers)))
            raise CommandError(f"{name} is missing, but there is {last}")
        if numbers:
            return len(numbers)
        for _, leaf in flat(get(root.tree, split_path(path))):
            if is_array(leaf) and -leaf.ndim <= axis < leaf.ndim:
                size = int(leaf.shape[axis])
                # An empty array costs nothing in a file, however many layers it says there are.
                if size <= _MOST_EMPTY or 0 not in leaf.shape:
                    return size
                raise CommandError(
                    f"{path or 'the root'}: an empty array of {list(leaf.shape)} does not tell "
                    f"how many layers there are: say it with --model"
                )
    return 0


def _numbers(tree: object, layers: tuple[str, ...]) -> set[int]:
    """The numbers of the layers that lie in a tree at a path with `{}` for the number."""
    from ..stack.trees import MISSING, get

    at = next(i for i, name in enumerate(layers) if "{}" in name)
    before, after = layers[at].split("{}")
    around = get(tree, layers[:at])
    found = set()
    for name in around if isinstance(around, Mapping) else ():
        number = str(name).removeprefix(before).removesuffix(after)
        # The whole of the name: of block_{} neither block_1_old is one nor my_block_1.
        if f"{before}{number}{after}" == name and number.isdecimal():
            if get(around, (name, *layers[at + 1 :])) is not MISSING:
                found.add(int(number))
    return found


# --- what is printed ----------------------------------------------------------


def _describe(args: argparse.Namespace, found: Checkpoint, plan: Plan, console: Console) -> None:
    from ..checkpoint.safetensors import tensors_of
    from ..stack.stacking import name_of

    console.line(f"source: {args.source}, {found.kind}, {_counted(tensors_of(found.tree)[0])}")
    for s in plan.stackings:
        if s.axes is not None:
            form = "one subtree a layer"
            if args.layout == "stacked":
                form = f"stacked along axis {s.axis_of('params')}"
            console.line(f"layers: {name_of(s.path)} x {len(s.layers)}, {form}")


def _counted(tensors: Mapping[str, object]) -> str:
    return "1 tensor" if len(tensors) == 1 else f"{len(tensors):,} tensors"


def _table(plan: Plan, checksums: Mapping[str, str] | None, console: Console) -> None:
    from ..stack.stacking import name_of

    rows = []
    for layer, names in plan.layers.items():
        size = sum(plan.variables[name].nbytes for name in names)
        row = (name_of(layer), f"{len(names):,}", f"{size:,}")
        rows.append(row if checksums is None else (*row, checksums[layer]))
    columns = ("layer", "variables", "bytes") + (() if checksums is None else ("checksum",))
    console.table(columns, rows, right=(1, 2))
