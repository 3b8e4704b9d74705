"""Transformations of optax on stacked parameters, as on layers that are written out.

How it works
------------
A parameter of a stack belongs to a *group*: how many layers the stacks around it have. For each
group the transformation sees the whole tree with one layer in the place of all; `jax.vmap` maps it
over the layers of the group, and only what belongs to the group is taken from it. What belongs to
no layer (parameters outside of stacks, a count of steps) is a group too, without a map. That is
right for whatever treats each parameter for itself, which is read from its program beforehand.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef

from .. import equations, jax_private
from ..checkpoint.find import as_stackings
from ..checkpoint.roots import find_roots
from ..core.types import Function, Path, Tree
from ..errors import PerLayerError, StackingError
from ..installed import needed
from ..stack.convert import LayerAxis, form_of
from ..stack.stacking import NONE_GONE, Stacking, Stackings, name_of
from ..words import described, names_on

if TYPE_CHECKING:
    import optax


class PerLayerState(NamedTuple):
    """The state of a transformation that acts layer by layer.

    Attributes:
      by_layer: the transformation's own state. Where it keeps something for a parameter of a stack,
        the layers have an axis in it where they have one in the parameter.

    Example:
      >>> import jax, jax.numpy as jnp, optax, liftax as nn
      >>> stack = nn.Stack(nn.Dense(4), depth=3)
      >>> params = stack.init(jax.random.key(0), jnp.ones(4))["params"]
      >>> state = nn.per_layer(optax.trace(0.9), stack).init(params)
      >>> state.by_layer.trace["block_0"]["kernel"].shape
      (3, 4, 4)
    """

    by_layer: Any


def per_layer(
    tx: optax.GradientTransformation, layout: object
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation act on each layer of a stack by itself.

    Stacked, the kernels of twelve layers are one array. A transformation that looks at an array as
    a whole then takes them for one parameter: its norm is that of all (lamb, lars, adafactor,
    ``clip_by_block_rms``), its axes are others (``adaptive_grad_clip``, the factors of adafactor),
    or it is no matrix any more (muon). This one gives each layer the update that it had alone.

    Args:
      tx: any transformation that treats each parameter for itself, chains of such as well. One that
        acts on all at once, as `optax.clip_by_global_norm`, is the same for either storage and
        stands outside: ``optax.chain(optax.clip_by_global_norm(1.0), nn.per_layer(tx, layout))``.
        Masks and labels are for the stacked parameters.
      layout: which subtrees are stacked, as for `nn.to_layers`: a `Stack` (as the whole model),
        what `nn.stackings_of` or `nn.layout` found in a model, or a `Stacking`.

    Returns:
      a transformation of the stacked parameters; its state is a `PerLayerState`, which
      `nn.to_layers` and `nn.to_stacked` convert along with the variables.

    Raises:
      PerLayerError: by ``update``, where ``tx`` makes the update of one parameter depend on
        another, or draws random numbers, which would be the same in all layers.
      StackingError: the layout has no stack.
      MissingExtraError: optax is not installed.

    Example:
      >>> import jax, optax, liftax as nn
      >>> stack = nn.Stack(nn.Dense(4), depth=3)
      >>> x = jax.numpy.ones((2, 4))
      >>> params = stack.init(jax.random.key(0), x)["params"]
      >>> grads = jax.grad(lambda p: stack.apply({"params": p}, x).sum())(params)
      >>> tx = nn.per_layer(optax.lamb(1e-2), stack)
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> apart = optax.lamb(1e-2)  # the same, written out
      >>> params, grads = (nn.to_layers(tree, stack) for tree in (params, grads))
      >>> written, _ = apart.update(grads, apart.init(params), params)
      >>> same = jax.tree.map(jax.numpy.allclose, nn.to_layers(updates, stack), written)
      >>> all(jax.tree.leaves(same))
      True
    """
    optax = needed("optax", "train", "nn.per_layer is for transformations of optax")
    stackings = as_stackings(layout)
    # One call for both kinds: what takes no extra arguments leaves them alone then.
    inner = optax.with_extra_args_support(tx)
    checked: list[object] = []  # the shapes of which `_check` has found nothing wrong

    def init(params: Tree) -> PerLayerState:
        values = _View.of_parameters(params, stackings)
        # Only shapes of one layer are needed to see what a transformation keeps, and of which
        # parameter.
        state = values.state(jax.eval_shape(inner.init, values.one_layer()), has_axes=False)
        made = list(state.leaves)

        def one(group: Group, given: Leaves) -> tuple[Leaves]:
            leaves = jax.tree.leaves(inner.init(values.filled(group, given)))
            return ([leaves[i] for i in state.of(group)],)

        for group in values.groups():
            (found,) = _mapped(group, one, [values], [state])
            for i, value in zip(state.of(group), found, strict=True):
                made[i] = value
        return PerLayerState(jax.tree.unflatten(state.treedef, made))

    def update(
        updates: Tree, state: PerLayerState, params: Tree = None, **extra: object
    ) -> tuple[Any, PerLayerState]:
        grads = _View.of_parameters(updates, stackings)
        views = [grads, grads.state(state.by_layer)]
        if params is not None:
            views.append(_View.of_parameters(params, stackings))
        shapes = [view.one_layer() for view in views]
        key = (
            jax.tree.structure((shapes, extra)),
            [(x.shape, x.dtype) for x in jax.tree.leaves(shapes)],
        )
        # The check traces the transformation, so it is made once for each set of shapes, and not in
        # each step.
        if checked != [key]:
            _check(lambda *given: inner.update(*given, **extra), shapes, views)
            checked[:] = [key]
        made = [list(view.leaves) for view in views[:2]]

        def one(group: Group, *given: Leaves) -> tuple[Leaves, ...]:
            trees = [v.filled(group, part) for v, part in zip(views, given, strict=True)]
            leaves = map(jax.tree.leaves, inner.update(*trees, **extra))
            return tuple([of[i] for i in v.of(group)] for of, v in zip(leaves, views, strict=False))

        for group in grads.groups():
            found = _mapped(group, one, views, views[:2])
            for leaves, view, values in zip(made, views[:2], found, strict=True):
                for i, value in zip(view.of(group), values, strict=True):
                    leaves[i] = value
        new = [
            jax.tree.unflatten(v.treedef, leaves) for v, leaves in zip(views[:2], made, strict=True)
        ]
        return new[0], PerLayerState(new[1])

    return optax.GradientTransformationExtraArgs(init, update)


def layer_axes(tree: Tree, layout: object) -> list[tuple[Path, list[int]]]:
    """Finds path and layer axes of each parameter, outermost first, each in what those before left.

    Args:
      tree: the parameters, or a tree like them.
      layout: as for `per_layer`; None for a model without a stack.
    """
    if layout is None:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return [(names_on(keys), []) for keys, _ in leaves]
    view = _View.of_parameters(tree, as_stackings(layout))
    return [(path, view.axes(i)) for i, path in enumerate(view.paths)]


def mixed_layers(tx: optax.GradientTransformation, params: Tree, layout: object) -> list[str]:
    """Finds the stacked parameters that a transformation takes for one where they are many.

    It is tried on small arrays in the place of the parameters: two layers, and no axis over 128.

    Args:
      tx: the transformation, as it is used.
      params: the parameters, or their shapes.
      layout: as for `per_layer`.

    Returns:
      the paths of those whose update is another one layer by layer. None for a transformation
      that acts on several parameters at once, of which this cannot be told, and for one of
      `per_layer`.
    """
    stackings = as_stackings(layout)
    view = _View.of_parameters(params, stackings)
    # Two layers are enough to tell one parameter from many, and cost nothing to try.
    two = tuple(map(_of_two, stackings))
    numbers = np.random.default_rng(0)

    def made(i: int) -> jax.Array:
        shape = [min(n, _SMALL) for n in np.shape(view.leaves[i])]
        # The axes are those of the array that the outer ones have left.
        whole = list(range(len(shape)))
        for axis in view.axes(i):
            at = whole.pop(axis)
            shape[at] = min(np.shape(view.leaves[i])[at], 2)
        # Layers of unlike size: where all are alike, a norm of all of them hides what it mixes.
        spread = np.linspace(0.1, 3.0, max(math.prod(shape), 1)).reshape(shape)
        return jnp.asarray(numbers.normal(size=shape) * spread, jnp.result_type(view.leaves[i]))

    def tree() -> Tree:
        return jax.tree.unflatten(view.treedef, list(map(made, range(len(view.leaves)))))

    def steps(
        tx: optax.GradientTransformation, weights: Tree, grads: Sequence[Tree]
    ) -> list[Leaves]:
        found, state = [], tx.init(weights)
        for grad in grads:  # several: the first ones of a warm-up move nothing
            updates, state = tx.update(grad, state, weights)
            found.append(jax.tree.leaves(updates))
        return found

    weights, grads = tree(), [tree() for _ in range(3)]
    state = jax.eval_shape(tx.init, params)
    if any(map(_is_ours, jax.tree.leaves(state, is_leaf=_is_ours))):
        return []  # who uses `per_layer` has said what acts on each layer, and what on all
    try:
        apart = steps(per_layer(tx, two), weights, grads)
    except PerLayerError:
        return []
    bare = steps(tx, weights, grads)

    def differs(i: int) -> bool:
        pairs = [(np.asarray(a[i]), np.asarray(b[i])) for a, b in zip(apart, bare, strict=True)]
        # Rounding alone is a thousand times less than this.
        return any(np.abs(a - b).max() > 1e-3 * np.abs(a).max() for a, b in pairs)

    stacked = [i for i, chain in enumerate(view.chains) if chain]
    return [name_of(view.paths[i]) for i in stacked if differs(i)]


def _of_two(s: Stacking) -> Stacking:
    inside = tuple(map(_of_two, s.inside))
    return dataclasses.replace(s, layers=s.layers[:2], numbers=s.numbers[:2], inside=inside)


def _is_ours(node: object) -> bool:
    return isinstance(node, PerLayerState)


_SMALL = 128  # adafactor keeps factors of axes from here on

Leaves = list[jax.Array]
Group = tuple[int, ...]
"""How many layers each of the stacks around a parameter has, outermost first."""


@dataclass(frozen=True)
class _View:
    """A tree of parameters, or a state, and what of it belongs to which layers.

    Attributes:
      leaves, treedef: the tree.
      paths: where each leaf lies.
      chains: the layer axes of each leaf, those of the outermost stack first.
      owners: which parameter each leaf is of, None for what is of none.
      has_axes: whether the leaves have these axes, or are those of one layer.
    """

    leaves: Leaves
    treedef: PyTreeDef
    paths: list[Path]
    chains: list[tuple[LayerAxis, ...]]
    owners: list[int | None]
    has_axes: bool = True

    @classmethod
    def of_parameters(cls, tree: Tree, stackings: Stackings) -> _View:
        # Parameters alone, or whole variables: optax is given either.
        bare, names, roots = find_roots(tree, stackings, None)
        found, treedef = jax.tree_util.tree_flatten_with_path(tree)
        paths = [names_on(keys) for keys, _ in found]
        # A stack may be stored layer by layer, and then has nothing to be taken apart.
        there = {
            name: [s for s in stackings if form_of(s, roots[name], collection) == "stacked"]
            for name, collection in names.items()
        }

        def chain(path: Path) -> tuple[LayerAxis, ...]:
            name, rest = (next(iter(names)), path) if bare else (path[0], path[1:])
            if name not in there:
                return ()
            return tuple(_axes(rest, tuple(there[name]), names[name], NONE_GONE))

        leaves = [leaf for _, leaf in found]
        made = cls(leaves, treedef, paths, list(map(chain, paths)), list(range(len(leaves))))
        made.check_sizes()
        return made

    def check_sizes(self) -> None:
        """Makes sure that the arrays have as many layers as the layout."""
        for i, leaf in enumerate(self.leaves):
            shape = list(np.shape(leaf))
            for axis, layers in zip(self.axes(i), self.chains[i], strict=True):
                if shape.pop(axis) != layers.count:
                    raise StackingError(
                        f"nn.per_layer: {name_of(self.paths[i])} is {described(leaf)}, where the "
                        f"layout has {layers.count} layers for {name_of(layers.stacking.path)}"
                    )

    def state(self, tree: Tree, has_axes: bool = True) -> _View:
        """Returns the view of a state; what lies at the place of a parameter belongs to that."""
        found, treedef = jax.tree_util.tree_flatten_with_path(tree)
        paths = [names_on(keys) for keys, _ in found]
        # By part of the path: optax keeps trees like the parameters at places of its own.
        places = {path: i for i, path in enumerate(self.paths)}
        owners = [next((places[p] for p in _parts(path) if p in places), None) for path in paths]
        chains = [() if i is None else self.chains[i] for i in owners]
        return _View([leaf for _, leaf in found], treedef, paths, chains, owners, has_axes)

    def group(self, i: int) -> Group:
        """The group of a leaf: those of one group are mapped together."""
        return tuple(axis.count for axis in self.chains[i])

    def groups(self) -> dict[Group, None]:
        """The groups that there are, each once; what is in no layer is one of them."""
        return {(): None} | dict.fromkeys(map(self.group, range(len(self.leaves))))

    def of(self, group: Group) -> list[int]:
        """The leaves of a group."""
        return [i for i in range(len(self.leaves)) if self.group(i) == group]

    def axes(self, i: int) -> list[int]:
        """The layer axes of a leaf, outermost first, each in what those before have left."""
        chain, found = self.chains[i], []
        ndim = np.ndim(self.leaves[i]) - (len(chain) if self.has_axes else 0)
        for level, axis in enumerate(reversed(chain), 1):
            found.append(axis.places(ndim + level, self.paths[i]).axis)
        return found[::-1]

    def shape(self, i: int) -> jax.ShapeDtypeStruct:
        """What one layer has of a leaf."""
        leaf = self.leaves[i]
        shape = list(np.shape(leaf))
        for axis in self.axes(i) if self.has_axes else ():
            del shape[axis]
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))

    def one_layer(self) -> Tree:
        """The tree, with shapes, as one layer has it."""
        return jax.tree.unflatten(self.treedef, map(self.shape, range(len(self.leaves))))

    def filled(self, group: Group, values: Sequence[jax.Array]) -> Tree:
        """The tree as one layer of a group has it.

        What is in other layers is zero there: nothing is computed of that in the end.
        """
        given = iter(values)
        leaves = [
            next(given) if self.group(i) == group else _zero(self.shape(i)) if at else leaf
            for i, (leaf, at) in enumerate(zip(self.leaves, self.chains, strict=True))
        ]
        return jax.tree.unflatten(self.treedef, leaves)


def _zero(shape: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(shape.shape, shape.dtype)


def _axes(
    path: Path, stackings: Stackings, collection: str, removed: frozenset[Path]
) -> Iterator[LayerAxis]:
    for s in stackings:
        if path[: len(s.path)] == s.path:
            if s.stacks(collection):
                yield LayerAxis(s, collection, removed)
                removed |= {s.mark}
            yield from _axes(path[len(s.path) :], s.inside, collection, removed)
            return


def _parts(path: Path) -> Iterator[Path]:
    """Yields the parts of a path, the longest first."""
    for size in range(len(path), 0, -1):
        for start in range(len(path) - size + 1):
            yield path[start : start + size]


def _mapped(
    group: Group,
    one: Callable[..., tuple[Leaves, ...]],
    given: Sequence[_View],
    made: Sequence[_View],
) -> tuple[Leaves, ...]:
    """Runs a function on all layers of a group at once.

    Args:
      group: the group.
      one: takes the group and what one layer has of each of ``given``; it returns a tuple of what
        that has of each of ``made``.
    """
    run: Callable[..., tuple[Leaves, ...]] = functools.partial(one, group)
    for level in reversed(range(len(group))):
        ins, outs = (
            tuple([view.axes(i)[level] for i in view.of(group)] for view in views)
            for views in (given, made)
        )
        run = jax.vmap(run, in_axes=ins, out_axes=outs)
    return run(*([view.leaves[i] for i in view.of(group)] for view in given))


def _check(update: Function, shapes: Sequence[Tree], views: Sequence[_View]) -> None:
    """Makes sure that a transformation treats each parameter for itself."""
    closed = jax.make_jaxpr(update)(*shapes)
    program = jax_private.consts_as_inputs(closed)
    if any(map(equations.draws, equations.all_of(program))):
        raise PerLayerError(
            "nn.per_layer: the transformation draws random numbers, which would be the same in all "
            "layers.\nPut it around: optax.chain(it, nn.per_layer(rest, layout))."
        )
    owners = [None] * len(closed.consts) + [i for view in views for i in view.owners]
    results = [
        (i, path) for view in views[:2] for i, path in zip(view.owners, view.paths, strict=True)
    ]
    for n, (owner, path) in enumerate(results):
        _, used = jax_private.prune(program, [n == k for k in range(len(results))])
        for other, is_used in zip(owners, used, strict=True):
            if is_used and other is not None and other != owner:
                what = "the update of" if n < len(views[0].leaves) else "the state"
                raise PerLayerError(
                    f"nn.per_layer: {what} {name_of(path)} depends on the parameter "
                    f"{name_of(views[0].paths[other])}.\n"
                    f"found: a transformation that acts on several parameters at once\n"
                    f"expected: one that treats each for itself. The others are the same for "
                    f"either storage: optax.chain(optax.clip_by_global_norm(1.0), "
                    f"nn.per_layer(rest, layout))"
                )
