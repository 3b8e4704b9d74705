"""Names and order of arguments are Linen's: of the lifts, the layers and the methods of Module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import flax.core.lift
import flax.linen as linen
import pytest

import liftax as nn
from liftax.core import lift

# These layers are told how their output lies on a mesh.
OUT_SHARDING = (
    *("Dense", "DenseGeneral", "Einsum", "Embed", "Conv", "ConvLocal", "ConvTranspose", "RNN"),
    *("MultiHeadAttention", "MultiHeadDotProductAttention", "SelfAttention"),
)
# What ours takes besides, by its name alone or after all of Linen's.
MORE = {"jit": ["inline"], "remat": ["static_argnames"], "checkpoint": ["static_argnames"]}
MORE["while_loop"] = ["max_steps"]
MORE |= dict.fromkeys(OUT_SHARDING, ["out_sharding"])
# Of Linen's module, and no lifts.
NO_LIFTS = {"id_fn", "pack", "set_from_dict", "tree_map_rngs"}

CORE = [
    name
    for name, found in vars(flax.core.lift).items()
    if inspect.isfunction(found)
    and found.__module__ == "flax.core.lift"
    and not name.startswith("_")
    and name not in NO_LIFTS
]
PUBLIC = [
    name
    for name in dir(linen)
    if not name.startswith("_") and callable(getattr(linen, name)) and name in dir(nn)
]
METHODS = [
    name
    for name, found in vars(linen.Module).items()
    if not name.startswith("_") and callable(found)
]


def arguments(fn: Any) -> list[str]:
    found = list(inspect.signature(fn).parameters.values())
    return [str(p.replace(annotation=p.empty, default=p.empty)) for p in found]


def check(name: str, ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    try:
        expected = arguments(theirs)
    except ValueError:  # a class of Python's own without a signature
        return
    more, found = MORE.get(name, []), arguments(ours)
    assert [argument for argument in found if argument not in more] == expected
    assert set(more) <= set(found)


@pytest.mark.parametrize("name", CORE)
def test_lifts_of_the_core(name: str) -> None:
    check(name, getattr(lift, name), getattr(flax.core.lift, name))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name: str) -> None:
    if name != "Module":  # its fields are in those of the layers
        check(name, getattr(nn, name), getattr(linen, name))


@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str) -> None:
    check(name, getattr(nn.Module, name), getattr(linen.Module, name))


@pytest.mark.parametrize("name", [*CORE, "add_metadata_axis"])
def test_a_wrong_argument_is_told_as_one_of_the_lift(name: str) -> None:
    called = "remat" if name == "checkpoint" else name
    with pytest.raises(TypeError, match=rf"^{called}\(\) (got an unexpected|missing)"):
        getattr(lift, name)(lambda scope, x: x, misspelt=3)
