"""What an editor and a prompt show of modules, variables and of liftax itself."""

from __future__ import annotations

import dataclasses
import inspect
import rlcompleter

import flax.linen
import jax.numpy as jnp

import liftax as nn
from liftax.core.scope import Variable


def test_a_variable_shows_its_place_and_no_contents():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            total = self.variable("state", "total", lambda: {"a": jnp.zeros(3), "b": 7.25})
            return repr(total), repr(Variable(self.scope, "state", "late"))

    shown, later = Model().apply({}, 0, mutable="state")[0]
    assert shown == "Variable(state/total: float32[3], float)"
    assert later == "Variable(state/late: no value yet)"


def test_completion_offers_what_is_public():
    import liftax.lazy

    assert "lazy" in vars(liftax) and "lazy" not in dir(nn)
    assert {"Dense", "scan", "layout", "errors"} <= set(dir(nn))
    assert not [name for name in dir(nn) if name.startswith("_") and not name.endswith("__")]


def fields_of(lib):
    """Three classes: plain, with fields that are keywords, and one that inherits from those."""

    class Plain(lib.Module):
        zeta: int
        alpha: int = 1

    class Keywords(Plain):
        _: dataclasses.KW_ONLY
        more: int = 2

    class Below(Keywords):
        beta: int = 3

    class All(lib.Module, kw_only=True):
        zeta: int
        alpha: int = 1

    return Plain, Keywords, Below, All


def test_completion_lists_fields_before_parent_and_name():
    """Where an editor looks: the signature, what a pattern matches, what a prompt completes."""
    for cls, theirs in zip(fields_of(nn), fields_of(flax.linen), strict=True):
        signature = inspect.signature(cls)
        assert list(signature.parameters)[-2:] == ["parent", "name"]
        assert set(signature.parameters) == set(inspect.signature(theirs).parameters)
        assert [f.name for f in dataclasses.fields(cls)][-2:] == ["parent", "name"]
        assert cls.__match_args__ == theirs.__match_args__
    for cls in (nn.Dense, nn.LSTMCell, nn.MultiHeadDotProductAttention, nn.Stack):
        assert list(inspect.signature(cls).parameters)[-2:] == ["parent", "name"]
    module = fields_of(nn)[2](7)
    offered = rlcompleter.Completer({"module": module}).attr_matches("module.")
    assert {"module.zeta", "module.alpha", "module.more", "module.beta"} <= set(offered)
    assert not [name for name in offered if name.startswith("module._")]


def test_a_module_shows_what_differs_from_its_defaults():
    assert repr(nn.Dense(4)) == "Dense(\n    # attributes\n    features = 4\n)"
    assert "use_bias = False" in repr(nn.Dense(4, use_bias=False))
    assert repr(nn.LayerNorm()) == "LayerNorm()"

    class Fields(nn.Module):
        plain: int = 3
        listed: tuple = (1, 2)
        made: dict = dataclasses.field(default_factory=dict)
        other: bool = True
        array: object = None

    assert repr(Fields()) == repr(Fields(3, (1, 2), {}, True)) == "Fields()"
    shown = repr(Fields(4, (1, 3), {"a": 1}, 1, jnp.zeros(3)))
    for text in ("plain = 4", "listed = (1, 3)", "made = {'a': 1}", "other = 1", "float32[3]"):
        assert text in shown
