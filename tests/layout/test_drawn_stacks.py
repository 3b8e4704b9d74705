"""Layouts of stacks that nobody here thought of: each is drawn, copied and pickled."""

from __future__ import annotations

import copy
import json
import pickle
import re

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liftax as nn
from liftax.checkpoint.find import from_layout
from liftax.layout.fold import alike_lifts, fold
from liftax.layout.shown import Layout

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY, X = jax.random.key(0), jax.ShapeDtypeStruct((2,), "float32")


class Plain(nn.Module):
    """Some parameters at its own path, none at all where it has none."""

    size: int = 1

    @nn.compact
    def __call__(self, x):
        for i in range(self.size):
            x = x + self.param(f"w_{i}", nn.initializers.zeros, x.shape)
        return x


class Deeper(nn.Module):
    """Modules within, called alike up to their numbers."""

    depth: int = 2

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = Plain(1 + i // 2, name=f"part_{i}" if i else "block_7")(x)
        return x


class Counts(nn.Module):
    """A collection besides the parameters."""

    @nn.compact
    def __call__(self, x):
        self.variable("state", "count_1", lambda: jax.numpy.zeros(2))
        return Plain()(x)


def body(mdl, x, _):
    return Plain(name="inner")(x), None


class Scanned(nn.Module):
    """A scan of its own."""

    @nn.compact
    def __call__(self, x):
        loop = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return loop(self, x, None)[0]


@st.composite
def layers(draw, nested=True):
    kind = draw(st.integers(0, 5 if nested else 4))
    if kind == 5:
        return draw(stacks(nested=False))
    makers = [Plain, Deeper, Counts, Scanned, lambda: Plain(draw(st.integers(0, 2)))]
    return makers[kind]()


@st.composite
def stacks(draw, nested=True):
    kinds = draw(st.lists(layers(nested), min_size=1, max_size=2))
    pattern = [kind for kind in kinds for _ in range(draw(st.integers(1, 3)))]
    return nn.Stack(
        pattern,
        repeats=draw(st.integers(1, 5)),
        before=[draw(layers(nested)) for _ in range(draw(st.integers(0, 2)))],
        after=[kinds[0]] * draw(st.integers(0, 2)),
        store=draw(st.sampled_from(["stacked", "layers"])),
        variable_broadcast=draw(st.sampled_from([False, "params", "state"])),
    )


class Inside(nn.Module):
    stack: nn.Stack

    @nn.compact
    def __call__(self, x):
        return Plain(2, name="head_1")(self.stack(Plain(name="head_0")(x)))


def drawn(layout):
    """Holds every form of a layout against the layout."""
    page, cell, text = layout.to_html(), layout._repr_html_(), str(layout)
    alike = alike_lifts(layout)
    folds = fold(layout.variables, 4, alike.same)
    rows = sum(1 if len(group) > 100 else len(group) for group in folds)
    assert page.count('<li class="row') == rows
    drawn = set(alike.same.values())
    assert page.count('data-hot="') - page.count('.lx[data-hot="') == len(drawn)
    ids = set(re.findall(r' id="(v\d+)"', page))
    assert len(ids) == rows
    assert set(re.findall(r'href="#(v\d+)"', page)) <= ids
    for collection in layout.collections:
        assert collection.collection in text and collection.collection in cell
    copies = [pickle.loads(pickle.dumps(layout)), copy.copy(layout), copy.deepcopy(layout)]
    copies.append(Layout.from_dict(json.loads(json.dumps(layout.to_dict()))))
    assert all(other == layout and str(other) == text for other in copies)
    plain = [[part.to_dict(["params", "state"]) for part in from_layout(one)] for one in copies]
    assert all(one == plain[0] for one in plain)


@settings(max_examples=200, deadline=None)
@given(stacks(), st.booleans())
def test_a_stack_is_drawn(stack, inside):
    drawn(nn.layout(Inside(stack) if inside else stack, KEY, X))


@pytest.mark.parametrize("alike", [2, 5])
def test_alike_layers_of_a_pattern_are_one_chip(alike):
    stack = nn.Stack([Plain()] * alike + [Deeper()], repeats=2)
    page = nn.layout(stack, KEY, X).to_html()
    assert f"{alike} alike" in page


def test_a_copy_can_still_be_measured_and_a_pickle_says_why_not():
    layout = nn.layout(nn.Stack(Plain(), depth=2), KEY, X)
    assert copy.deepcopy(layout).with_cost().cost is not None
    with pytest.raises(ValueError, match="was not made by liftax.layout"):
        pickle.loads(pickle.dumps(layout)).with_cost()


def test_layout_is_the_function_whatever_is_imported():
    import types

    assert isinstance(nn.layout, types.FunctionType)
    assert pickle.loads(pickle.dumps(nn.layout)) is nn.layout


def examples():
    from examples import gemma3, gpt2, lstm, vit
    from liftax import recipes

    ids, image = jax.ShapeDtypeStruct((2, 8), "int32"), jax.ShapeDtypeStruct((2, 8, 8), "float32")
    return {
        "gemma3": (gemma3.Gemma3(11), ids),
        "gpt2": (gpt2.GPT2(11), ids),
        "lstm": (lstm.DeepLSTM(), ids),
        "vit": (vit.ViT(), image),
        "recipes": (recipes.composed_lifts(3, 4), jax.ShapeDtypeStruct((2, 4), "float32")),
    }


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "lstm", "vit", "recipes"])
def test_an_example_is_drawn(name):
    model, *args = examples()[name]
    args += [None] * (name == "recipes")
    drawn(nn.layout(model, KEY, *args))


@pytest.mark.parametrize("frozen", [True, [0]])
def test_frozen_layers_are_drawn_as_the_others(frozen):
    x = jax.ShapeDtypeStruct((2, 4), "float32")
    key = jax.random.key(0)
    plain, held = (
        nn.layout(nn.Stack(nn.Dense(4), depth=3, frozen=which), key, x) for which in (False, frozen)
    )
    assert [v.axes for v in held.variables] == [v.axes for v in plain.variables]
    assert "stack × 3 over Dense" in str(held)
