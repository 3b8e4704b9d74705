"""Runs a stack whose variables are stacked: the layers before, the loop, the layers after."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from .. import jax_private
from ..core import boxes
from ..core.lift.scan import Plan, Scan
from ..core.lift.schedule import Pipeline
from ..core.roles import Roles, broadcast
from ..core.scope import Scope
from ..core.streams import Stream
from ..core.types import Function
from ..errors import StackError
from ..module.bound import whose
from ..module.detach import Detached, Inputs, without_modules
from .arguments import Arguments, Block, ByPosition, Slices, gathered, split_pair
from .chosen import Chosen, Way, chosen, kept
from .declaration import Declaration
from .fsdp import FSDP, Loop
from .interleave import ASKED
from .microbatches import Batched
from .nest import Runner
from .options import Auto, Run, in_stage, levels
from .storage import StackLayout
from .templates import shared_outside


def check_outside(stack: Declaration, scopes: Sequence[Scope]) -> None:
    """Raises StackError where a module around the stack was handed to it."""
    assert stack.scope is not None
    here = stack.scope.path
    # A layer that could reach its own stack would have its variables twice: as those of the loop,
    # with an axis, and through the module around it, whole.
    for scope in scopes:
        if scope.call is stack.scope.call and here[: len(scope.path)] == scope.path:
            raise StackError(
                f"{whose(stack)}: the layers were handed a module or variable of "
                f"{scope.path_text}, which contains the stack.\n"
                f"expected: a module beside the stack, or a variable's value"
            )


def takes_stages(stack: Declaration, way: Way) -> bool:
    """Tells whether the layers run as the pipeline by whose stages they are stored."""
    made = stack.is_initializing() or not stack.repeats
    if stack.store != "circular" or made or way.layers is not None or way.reverse:
        return False
    run, _ = stack._in_force()
    return run.pipeline is not None and run.pipeline.order == stack._order


def run_stacked(
    stack: Declaration,
    x: object,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    way: Way,
    by_stage: bool = False,
) -> object:
    """Runs a stack whose variables are stacked, by stages where `takes_stages`."""
    place = whose(stack)
    at = stack._stack_layout(stack.path)

    # Options in force where the stack is called, not where it was declared, say how it runs.
    run, remat = stack._in_force()
    if stack.is_initializing() or not stack.repeats:
        run = dataclasses.replace(run, pipeline=None)  # variables are made of the whole batch

    made = _is_made(stack)
    if made:
        levels(run, remat, at.repeats)  # what does not fit is told now, not when it runs
        run, remat = Run(), None if isinstance(remat, Auto) else remat
    some = _chosen(stack, at, way, place)
    if some is not None or way.reverse:
        run = dataclasses.replace(run, pipeline=None)  # a scan of the layers that are asked for

    runner = Runner(run, remat, some, place, by_stage, stack._order if made else None)
    blocks = [*stack.before, *stack._pattern, *stack.after]
    _check_method(blocks, way.method, place)
    call = Arguments(stack._pattern, stack.per_layer, at, place, args, kwargs, way.method)
    before, rows, after = range(at.before), range(at.repeats), range(at.after)
    if some is not None:
        before, rows, after = some.before, some.rows, some.after

    ys: dict[str, dict[int, object]] = {"before": {}, "after": {}}
    ys_block: list[object] = []
    parts = [("before", before), ("block", rows), ("after", after)]
    for part, numbers in parts[:: -1 if way.reverse else 1]:
        if part == "block":
            x, ys_block = _pattern(stack, runner, x, call, way)
            continue
        for j in numbers[:: -1 if way.reverse else 1]:
            layer, slices = getattr(stack, part)[j], call.single(part, j)
            x, ys[part][j] = _single(stack, runner, layer, x, call, slices, way.method)

    # Only now: the names that values have are known once all layers have been traced.
    if runner.unseen and (some is None or rows):
        known = ", ".join(sorted(runner.seen)) or "none"
        raise StackError(
            f"{place}: remat names {runner.unseen[0]!r}, but no recomputed layer gives a value "
            f"that name.\n"
            f"found: {known}\n"
            f"expected: jax.ad_checkpoint.checkpoint_name(value, {runner.unseen[0]!r}) in a layer"
        )

    if not stack.outputs:
        return x
    if some is not None and some.on is None:
        ys_block = jax.tree.map(lambda y: y[rows.start : rows.stop], ys_block)
    ends = [tuple(y for _, y in sorted(ys[part].items())) for part in ("before", "after")]
    first = at.before + at.positions * at.repeats
    in_block = [at.before + n for n in range(rows.start * at.positions, rows.stop * at.positions)]
    ran = [*before, *in_block, *(first + j for j in after)]
    found = ByPosition(ends[0], tuple(ys_block), ends[1])
    return x, gathered(found, stack.outputs, ran, place)


def _chosen(stack: Declaration, at: StackLayout, way: Way, place: str) -> Chosen | None:
    """Returns which layers run, None for all of them."""
    assert stack.scope is not None
    call, roles = stack.scope.call, stack._roles()
    # Whoever makes variables makes those of all layers.
    if way.layers is None or stack.is_initializing():
        return None
    rows = {col: roles.of(col) for col in stack.scope.collections() if call.is_mutable(col)}
    kept({c: r.in_place for c, r in rows.items() if r and isinstance(r.role, int)}, place)
    return chosen(way.layers, at, place)


def _check_method(layers: Sequence[object], method: str, place: str) -> None:
    for layer in layers:
        if not callable(getattr(type(layer), method, None)):
            raise StackError(f"{place}: {type(layer).__name__} has no method {method!r}")


def _is_made(stack: Declaration) -> bool:
    """Tells whether the stack's variables are being made by a program.

    Their values are those of one loop, however the layers run afterwards, and one loop is traced,
    compiled and run in the time of a layer. Without a program the layers run one by one, which
    may look at values; and who draws the model is to see the loop that it will have.
    """
    assert stack.scope is not None
    traced = jax_private.current_trace() is not jax_private.EAGER
    return traced and stack.scope.call.rec is None and stack.is_initializing()


def _single(
    stack: Declaration,
    runner: Runner,
    layer: Any,
    x: object,
    call: Arguments,
    slices: Slices,
    method: str,
) -> tuple[object, object]:
    """Runs a layer before or after the pattern."""
    remat = runner.remat
    if remat is None or isinstance(remat, Auto) or remat.positions is not None:
        # Positions are those of the pattern: this layer has none, so nothing of it is recomputed.
        args, kwargs = call.filled(slices, call.args, call.kwargs)
        out = getattr(layer, method)(x, *args, **kwargs)
        return split_pair(out, bool(stack.outputs), layer, whose(stack))
    plain, fill, taken = without_modules(call.args, call.kwargs)
    detached = Detached([layer, *taken])
    check_outside(stack, detached.scopes[1:])

    def body(scopes: Sequence[Scope], x: object) -> tuple[object, object]:
        rebuilt = detached.rebuild(scopes)
        args, kwargs = call.filled(slices, *fill(plain, rebuilt[1:]))
        out = getattr(rebuilt[0], method)(x, *args, **kwargs)
        return split_pair(out, bool(stack.outputs), layer, whose(stack))

    body.__name__ = type(layer).__name__
    return runner.layer(body, detached.scopes, x, in_scan=False)


def _pattern(
    stack: Declaration, runner: Runner, x: object, call: Arguments, way: Way
) -> tuple[object, list[object]]:
    """Runs the repeats of the pattern."""
    plain, fill, taken = without_modules(call.args, call.kwargs)
    blocks = stack._pattern
    detached = Detached([*blocks, *taken])
    shared = shared_outside(stack, detached, taken)
    check_outside(stack, shared)
    paired, place = bool(stack.outputs), whose(stack)
    positions = runner.remat.positions if runner.remat is not None else None
    # XLA writes a scan of one step out, and could then share work between the two passes.
    in_scan = runner.run.kind == "scan" and stack.repeats != 1

    pipeline = runner.run.pipeline
    batched = None if pipeline is None else _batched(pipeline, runner, blocks, call, x, way.method)

    def layer(
        p: int, rebuilt: Sequence[Block], x: object, slices: Slices, given: Inputs
    ) -> tuple[object, object]:
        args, kwargs = call.filled(slices, *fill(given, rebuilt[len(blocks) :]))
        out = getattr(rebuilt[p], way.method)(x, *args, **kwargs)
        return split_pair(out, paired, blocks[p], place, x)

    def turn(
        scopes: Sequence[Scope], x: object, xs: Sequence[Slices], given: Inputs = plain
    ) -> tuple[object, list[object]]:
        rebuilt = detached.rebuild(scopes)
        outputs: list[object] = [None] * len(blocks)
        going: Slices = {}
        if batched is not None and batched.going:
            x, going = x  # type: ignore[misc]
        along = batched.back(going) if batched is not None else {}
        for p in range(len(blocks))[:: -1 if way.reverse else 1]:
            slices = {**(xs[p] if xs else {}), **along}
            if positions is None or p not in positions:
                x, ys = layer(p, rebuilt, x, slices, given)
            else:
                # Modules of its own: this layer runs on other scopes.
                def alone(
                    scopes: Sequence[Scope], x: object, p: int = p, slices: Slices = slices
                ) -> tuple[object, object]:
                    return layer(p, detached.rebuild(scopes), x, slices, given)

                alone.__name__ = type(blocks[p]).__name__
                x, ys = runner.layer(alone, scopes, x, in_scan=in_scan)
            outputs[p] = ys
        return ((x, going) if going else x), outputs

    # A body counts its keys once: a stack is no name of Linen's, so no second trace has to be
    # counted; it is the pattern as a whole that the lifted scan sees.
    options = Scan(
        in_axes=0 if pipeline is None else (0, broadcast),
        length=stack.repeats,
        reverse=way.reverse,
        metadata_params=stack.metadata_params,
        check_constancy_invariants=False,
    )
    # Where the layers are written out, or grouped, or do not all run in their order, the compiler
    # alone says what is gathered when.
    in_order = runner.run == Run() and runner.chosen is None and not way.reverse
    fsdp = stack.fsdp if in_order else None
    loop = Loop(fsdp, runner) if isinstance(fsdp, FSDP) else runner
    parts = None if pipeline is None else pipeline.microbatches
    run = Plan(options, stack._roles(), loop, shared, parts).over(
        _named(turn if pipeline is None else in_stage(turn), blocks)
    )
    if batched is None:
        return run(detached.scopes, x, call.xs)
    # On a mesh of explicit axes the layers of a pipeline close over no array.
    if not batched.going:
        return run(detached.scopes, x, call.xs, plain)
    (x, _), ys = run(detached.scopes, (x, batched.going), call.xs, plain)
    return x, ys


def _batched(
    pipeline: Pipeline,
    runner: Runner,
    blocks: Sequence[Block],
    call: Arguments,
    x: object,
    method: str,
) -> Batched:
    """What has a batch besides ``x``: it goes through a pipeline with its microbatch."""
    found = Batched(pipeline, blocks, call, x, runner.place, method)
    runner.moving = found.moving
    asked = ASKED.get()
    if asked is not None:
        ASKED.set(None)  # a stack inside of this one is none of it
        structure = jax.tree.structure((x, found.going) if found.going else x)
        runner.objective = asked.of(pipeline, structure, bool(found.going))
    return found


def _named(turn: Function, blocks: Sequence[object]) -> Function:
    """Gives the pattern's function the name of its layers, and the layout a line to show for it."""
    names = [type(block).__name__ for block in blocks]
    text = [f"{names.count(k)} {k}" if names.count(k) > 1 else k for k in dict.fromkeys(names)]
    turn.__name__ = turn.__qualname__ = " + ".join(text)
    # One layer is what the user lifted; of several, none is, and the first has the line.
    if len(blocks) == 1:
        turn.func = type(blocks[0])  # type: ignore[attr-defined]
    else:
        turn.source = type(blocks[0]).__call__  # type: ignore[attr-defined]
    return turn


def layer_scope(scope: Scope, at: StackLayout, number: int, roles: Roles, still: bool) -> Scope:
    """Returns a scope of its own for one layer, over its variables and keys."""
    name, repeat = at.as_run.place(number)
    stored, row = at.place(number)
    nodes = {}
    for col in scope.collections():
        node = scope.node(col) or {}
        axis = at.axis_of(col)
        if at.store == "layers" and at.layer_name(number) in node:
            nodes[col] = node[at.layer_name(number)]
        elif stored in node and row is not None and axis is not None:
            nodes[col] = _take_layer(node[stored], axis, row, at.metadata_params)
        elif name in node:
            # Whatever the storage, repeats that share a collection have it at the position.
            nodes[col] = node[name]
    if still and "params" in nodes:
        nodes["params"] = jax.lax.stop_gradient(nodes["params"])
    rngs = {}
    for stream, given in scope.rngs.items():
        key = given.key
        # As the loop does it: split for the repeats, and then folded with the path.
        if repeat is not None and roles.split(stream):
            key = jax.tree.map(lambda k: jax.random.split(k, at.repeats)[repeat], key)
        rngs[stream] = Stream(key, (*given.path, name))
    return Scope(nodes, rngs, name=name, path=(*scope.path, name), flags=scope.flags)


def _take_layer(tree: object, axis: int, index: int, params: Mapping[str, object]) -> object:
    tree = boxes.remove_axis(tree, axis, params)
    return jax.tree.map(lambda x: jax.lax.index_in_dim(x, index, axis, keepdims=False), tree)
