"""Values, types, paths and sources put in words, for every message."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping


def array_text(value: object) -> str | None:
    """Names an array, or whatever has a shape and a dtype; None for anything else.

    Example:
      >>> import jax
      >>> array_text(jax.ShapeDtypeStruct((2, 3), 'float32')), array_text('text')
      ('float32[2,3]', None)
    """
    # The classes of numpy's scalars have both, for their instances.
    if isinstance(value, type):
        return None
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return None if shape is None or dtype is None else f"{dtype}[{','.join(map(str, shape))}]"


def describe(value: object) -> str:
    """Names a value by type, dtype and shape, never by its contents.

    Example:
      >>> import numpy as np
      >>> describe(np.zeros((2, 3)))
      'float64[2,3]'
    """
    return array_text(value) or type(value).__name__


def described(leaf: object) -> str:
    """Names a leaf of a tree: an array as `describe` does, a short value by itself.

    Example:
      >>> import numpy as np
      >>> described(np.zeros((4, 3))), described("decay")
      ('float64[4,3]', "'decay'")
    """
    text = array_text(leaf) or repr(leaf)
    return text if len(text) <= 40 or array_text(leaf) else type(leaf).__name__


def shown(value: object) -> str:
    """Shows an option's value: what it is if it is short and plain, else as `describe` does.

    Example:
      >>> import jax
      >>> shown('yes'), shown((2, 0.5)), shown(jax.numpy.zeros((2, 3)))
      ("'yes'", '(2, 0.5)', 'float32[2,3]')
    """
    plain = (str, int, float, type(None))
    parts = value if isinstance(value, (tuple, list)) else (value,)
    text = repr(value) if all(isinstance(part, plain) for part in parts) else ""
    if isinstance(value, type):
        return class_or_type(value)
    return text if 0 < len(text) <= 60 else describe(value)


def kind_of(value: object) -> str:
    """Names a value by its container, or by its dtype and shape; never by its contents."""
    if value is None:
        return "None"
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, list(value)[:8]))
        return f"{type(value).__name__} with keys {keys}" if value else "an empty dict"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)} value{'s' * (len(value) != 1)}"
    return describe(value)


def class_or_type(value: object) -> str:
    """Names a class by its name, and any other value by its type.

    Example:
      >>> class_or_type(int), class_or_type(3)
      ('the class int', 'int')
    """
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def did_you_mean(name: object, known: Iterable[str], like: float = 0.6) -> str:
    """Asks back where a name is much like a known one, else is empty.

    Args:
      name: what was given.
      known: the names that there are.
      like: how much they must be alike, from 0 to 1.

    Example:
      >>> did_you_mean('kernal', ['bias', 'kernel']), did_you_mean('x', ['bias'])
      ("; did you mean 'kernel'?", '')
    """
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=like)
    return f"; did you mean {near[0]!r}?" if near else ""


def structure_of(treedef: object) -> str:
    """Names the structure of a tree, as JAX writes it, cut where it gets long."""
    text = str(treedef).removeprefix("PyTreeDef(").removesuffix(")")
    return text if len(text) <= 120 else text[:117] + "..."


def names_on(path: Iterable[object]) -> tuple[str, ...]:
    """Returns the names on a path of JAX's, as text.

    Example:
      >>> import jax
      >>> names_on(jax.tree.leaves_with_path({"a": [1]})[0][0])
      ('a', '0')
    """
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def argument_text(target: object, number: int) -> str:
    """Names an argument by position of a lifted function: by its name in the signature.

    Args:
      target: the function, or what holds the user's as `method`.
      number: the argument's, counted from 0; the module or scope is the first.

    Example:
      >>> def body(mdl, carry, *xs): ...
      >>> argument_text(body, 1), argument_text(body, 3)
      ("argument 'carry'", 'argument xs[1]')
    """
    method = getattr(target, "method", target)
    try:
        parameters = list(inspect.signature(method).parameters.values())  # type: ignore[arg-type]
    except (TypeError, ValueError):
        # A function in C may have no signature to be read.
        parameters = []
    for i, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return f"argument {parameter.name}[{number - i}]"
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            break
        if i == number:
            return f"argument {parameter.name!r}"
    return f"argument {number} (the module is 0)"
