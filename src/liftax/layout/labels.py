"""Names for the axes that layers make themselves: in, out, heads, features, ...

A table by layer class and parameter name. Keys are class names, looked up along the class's bases,
so a user's subclass of `Dense` is labelled too. Boxed variables bring names of their own, which
come first (see `build`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Labels = Sequence[str | None]
Rule = Callable[[Any, int], Labels]


def axis_labels(layer: object, name: str, rank: int) -> tuple[str | None, ...]:
    """The names of the ``rank`` axes that ``layer`` gave to its variable ``name``.

    Args:
      layer: the module that owns the variable, `None` where it is not known.
      name: the variable's name.
      rank: the number of axes without those of lifts.

    Example:
      >>> class Dense: ...
      >>> axis_labels(Dense(), "kernel", 2)
      ('in', 'out')
    """
    # By name, so that no layer has to be imported for its labels.
    for cls in type(layer).__mro__ if layer is not None else ():
        rules = _TABLE.get(cls.__name__)
        if rules is None:
            continue
        rule = rules.get(name) or rules.get("*")
        if rule is not None:
            found = tuple(rule(layer, rank))
            # A rule that does not fit means that the layer is used in a way it was not written for;
            # no name is better than a wrong one.
            return found if len(found) == rank else (None,) * rank
    # An adapter stands beside the kernel of any of these layers.
    return _ADAPTERS[name] if rank == 2 and name in _ADAPTERS else (None,) * rank


def _fixed(*labels: str) -> Rule:
    return lambda layer, rank: labels


def _count(sizes: object) -> int:
    return len(sizes) if isinstance(sizes, (tuple, list)) else 1


def _numbered(word: str, count: int) -> list[str]:
    return [word] if count == 1 else [f"{word} {i}" for i in range(count)]


def _in_attention(layer: object) -> bool:
    # A `DenseGeneral` has no idea that it makes heads; its parent has.
    owner = type(getattr(layer, "parent", None))
    return any(cls.__name__.startswith(("MultiHead", "SelfAtt")) for cls in owner.__mro__)


def _group(layer: object, word: str, count: int) -> list[str]:
    """Two axes of a projection inside attention are the heads and what each of them holds."""
    return ["heads", "head dim"] if count == 2 and _in_attention(layer) else _numbered(word, count)


def _general_bias(layer: Any, rank: int) -> Labels:
    outs = _count(layer.features)
    return [*_numbered("batch", rank - outs), *_group(layer, "out", outs)]


def _general_kernel(layer: Any, rank: int) -> Labels:
    batch, outs = _count(layer.batch_dims or ()), _count(layer.features)
    ins = rank - batch - outs
    inside = _group(layer, "in", ins)
    return [*_numbered("batch", batch), *inside, *_group(layer, "out", outs)]


def _window(*after: str) -> Rule:
    words = {1: ["window"], 2: ["height", "width"], 3: ["depth", "height", "width"]}

    def rule(layer: object, rank: int) -> Labels:
        space = rank - len(after)
        return [*words.get(space, _numbered("window", space)), *after]

    return rule


def _local(layer: object, rank: int) -> Labels:
    space = rank - 2
    return [*(f"place {i}" if space > 1 else "place" for i in range(space)), "window × in", "out"]


def _letters(layer: object, rank: int) -> Labels:
    """An einsum's own letters: `"bd,dhk->bhk"` names the kernel's axes d, h and k."""
    spec = str(getattr(layer, "einsum_str", "") or "").replace(" ", "")
    inputs = spec.split("->")[0].split(",")
    # The kernel is the last operand, as `Einsum` calls it.
    letters = inputs[-1].replace("...", "")
    return list(letters) if len(letters) == rank else [None] * rank


def _cache(layer: object, rank: int) -> Labels:
    return [*_numbered("batch", rank - 3), "length", "heads", "head dim"]


_FEATURES: dict[str, Rule] = {"*": lambda layer, rank: [*[None] * (rank - 1), "features"][:rank]}
_LINEAR: dict[str, Rule] = {"kernel": _fixed("in", "out"), "bias": _fixed("out")}

_ADAPTERS = {"lora_a": ("in", "rank"), "lora_b": ("rank", "out")}

_TABLE: dict[str, dict[str, Rule]] = {
    "Dense": _LINEAR,
    "DenseParams": _LINEAR,
    "DenseGeneral": {"kernel": _general_kernel, "bias": _general_bias},
    "Einsum": {"kernel": _letters},
    "Embed": {"embedding": _fixed("vocabulary", "features")},
    "Conv": {"kernel": _window("in", "out"), "bias": _fixed("out")},
    "ConvTranspose": {"kernel": _window("in", "out"), "bias": _fixed("out")},
    "ConvLocal": {"kernel": _local, "bias": _window("out")},
    "LayerNorm": _FEATURES,
    "RMSNorm": _FEATURES,
    "GroupNorm": _FEATURES,
    "InstanceNorm": _FEATURES,
    "BatchNorm": _FEATURES,
    "WeightNorm": _FEATURES,
    "SpectralNorm": _FEATURES,
    "MultiHeadDotProductAttention": {"cached_key": _cache, "cached_value": _cache},
}
