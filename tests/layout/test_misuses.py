"""Misuses, each at several depths of nesting, and their correct twins."""

from __future__ import annotations

from typing import Any

import jax
import pytest

import liftax as nn
from liftax.errors import LiftaxError

from .misuses_of_modules import MISUSES

OPTIONS = {
    "variable_axes": dict.fromkeys(["params", "state", "batch_stats"], 0),
    "split_rngs": {"params": True},
    "metadata_params": {nn.PARTITION_NAME: "outer"},
}


class Net(nn.Module):
    """Calls a misuse."""

    call: Any
    wrong: bool

    @nn.compact
    def __call__(self, x):
        return self.call(self, x, self.wrong)


class Body(nn.Module):
    """The same as the body of a scan."""

    call: Any
    wrong: bool

    @nn.compact
    def __call__(self, x, _):
        Net(self.call, self.wrong, name="net")(x)
        return x, None


class Outer(nn.Module):
    call: Any
    wrong: bool

    @nn.compact
    def __call__(self, x):
        return Net(self.call, self.wrong, name="inside")(x)


Scanned = nn.scan(Body, length=2, **OPTIONS)
Mapped = nn.vmap(nn.remat(Scanned), in_axes=(0, None), **OPTIONS)
# Name -> module, and the shape and rest of its arguments.
DEPTHS = {
    "by itself": (Net, (2, 4)),
    "in a module": (Outer, (2, 4)),
    "in a scan": (Scanned, (2, 4), None),
    "in a scan in a remat in a vmap": (Mapped, (3, 2, 4), None),
}


def init(depth: str, misuse: Any, wrong: bool) -> Any:
    cls, shape, *rest = DEPTHS[depth]
    module = cls(misuse.call, wrong)
    x = jax.ShapeDtypeStruct(shape, "float32")
    return jax.eval_shape(lambda key, x: module.init(key, x, *rest), jax.random.key(0), x)


def test_there_are_sixty():
    assert len({misuse.name for misuse in MISUSES}) == len(MISUSES) >= 60


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("misuse", MISUSES, ids=[m.name for m in MISUSES])
def test_misuse(misuse, depth):
    with pytest.raises(misuse.error, match=misuse.match) as caught:
        init(depth, misuse, True)
    message = str(caught.value)
    assert len(message.splitlines()) <= 12
    assert "Array(" not in message and "Traced<" not in message
    if isinstance(caught.value, LiftaxError):
        assert caught.value.code is not None


@pytest.mark.parametrize("depth", ["by itself", "in a scan in a remat in a vmap"])
@pytest.mark.parametrize("misuse", MISUSES, ids=[m.name for m in MISUSES])
def test_correct_twin(misuse, depth):
    init(depth, misuse, False)
