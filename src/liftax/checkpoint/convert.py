"""Variables of a stack as one subtree, or as one subtree a layer: there and back without loss.

`to_layers` and `to_stacked` walk any pytree. In it they look for *roots*: mappings in which a
subtree of a stacking lies, that is the tree of a collection, or a copy of it as optimizers keep
them. Everything else in the pytree stays as it is. Within a root the stackings are applied
outermost first on the way to layers, innermost first on the way back.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax

from ..stack.arrays import Array
from ..stack.convert import Converter, Form
from .find import as_stackings
from .roots import Root, roots_replaced
from .states import check_states


def to_layers(
    variables: object, layout: object, *, collection: str | None = None, donate: bool = False
) -> Any:
    """Gives each layer a subtree of its own.

    Args:
      variables: the variables of a model, one collection, or any pytree in which such trees occur
        (the state of an optimizer, a train state). Leaves are JAX arrays, numpy arrays or memory
        maps, or `jax.ShapeDtypeStruct`; boxes lose the name of the layer axis. Slices of numpy
        arrays are views. A leaf that is no array (a label, a bool) goes to every layer.
      layout: which subtrees are stacked, along which axis: a `Stack` (as the whole model), what
        `nn.stack_layouts`, `nn.stackings_of` or `nn.layout` found in a model, or
        `nn.Stacking.of(...)`.
      collection: the collection that every stacked subtree in ``variables`` belongs to; by default
        the name under which its tree is found, `"params"` for those in the state of an optimizer.
      donate: delete each stacked JAX array once its slices are made, so that no more than one
        array exists twice. Arrays that occur more than once in the tree are kept.

    Returns:
      The pytree with plain dicts where the layers are; arrays that are in no stack are the same
      objects. Stacks that are in this form already stay.

    Raises:
      StackingError: there is no stacked variable; an array has another size along the axis than
        there are layers; the names of layers are taken. The message names the first variable.
      PartitioningMismatchError: a box calls the axis otherwise than the layout does.

    Example:
      >>> import numpy as np, liftax as nn
      >>> blocks = nn.Stacking.of("blocks", 2)
      >>> variables = {"params": {"blocks": {"kernel": np.arange(6).reshape(2, 3)}}}
      >>> nn.to_layers(variables, blocks)["params"]["blocks"]["layers_1"]
      {'kernel': array([3, 4, 5])}
    """
    return _converted("layers", variables, layout, collection, donate)


def to_stacked(
    variables: object, layout: object, *, collection: str | None = None, donate: bool = False
) -> Any:
    """Stacks the subtrees of the layers: the inverse of `to_layers`.

    Args:
      variables: as for `to_layers`, in the layers form. Layers have the same variables with the
        same shapes and dtypes; boxes gain the name of the layer axis.
      layout: as for `to_layers`.
      collection: as for `to_layers`.
      donate: delete the JAX arrays of the layers once they are stacked.

    Returns:
      The pytree with one subtree for each stacking. Stacks in this form already stay.

    Raises:
      StackingError: there is no layer; one is missing or is one too many; two layers differ in
        their variables, shapes, dtypes or metadata. The message names the first variable.

    Example:
      >>> import numpy as np, liftax as nn
      >>> blocks = nn.Stacking.of("", 2, axis=1, names="Block_{}")
      >>> layers = {"Block_0": {"bias": np.zeros(3)}, "Block_1": {"bias": np.ones(3)}}
      >>> nn.to_stacked({"params": layers}, blocks)["params"]["bias"].shape
      (3, 2)
    """
    return _converted("stacked", variables, layout, collection, donate)


def _converted(
    form: Form, variables: object, layout: object, collection: str | None, donate: bool
) -> object:
    stackings = as_stackings(layout)
    uses = Counter(id(leaf) for leaf in jax.tree.leaves(variables)) if donate else Counter()

    def done(array: Array) -> None:
        # What lies in two places is read again; a tracer has nothing to be deleted.
        if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer):
            if uses[id(array)] == 1:
                array.delete()

    def change(root: Root) -> object:
        return Converter(form, root.collection, done)(root.tree, stackings, root.path)

    check_states(variables, stackings, collection)
    return roots_replaced(variables, stackings, collection, change)
