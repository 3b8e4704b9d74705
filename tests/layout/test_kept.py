"""A layout with `grads=True`: what a backward pass keeps, and the finding where it is much."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

import liftax as nn
from liftax.cli import main
from liftax.layout import Layout, residuals
from liftax.layout.kept import by_module

from .test_residuals import KEY, Block, Model, X, shapes_of


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block(name="block")(x), None


LOOP = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}


class Two(nn.Module):
    """Two loops of one length in one module: over a function, and over a class."""

    @nn.compact
    def __call__(self, x):
        def body(module, x, _):
            return Block(name="first")(x), None

        x, _ = nn.scan(body, **LOOP)(self, x, None)
        return nn.scan(Body, **LOOP)(name="second")(x, None)[0]


def layout(module, *args, **kwargs):
    return nn.layout(module, KEY, *args, grads=True, **kwargs)


def about(module, *args):
    """The titles of the lifts of which LX904 speaks."""
    found = layout(module, *args)
    return [[found.lifts[i].target for i in f.lifts] for f in found.findings if f.code == "LX904"]


def test_it_is_what_saved_residuals_says():
    found = layout(Model(), X)
    assert found.kept == nn.saved_residuals(Model(), shapes_of(Model(), X), X)
    assert nn.layout(Model(), KEY, X).kept is None


def test_a_model_without_parameters_keeps_nothing():
    assert layout(nn.Dropout(0.5, deterministic=True), X).kept.rows == ()


def test_it_is_drawn_everywhere():
    found = layout(Model(nn.Remat("products")), X)
    text = str(found)
    assert "kept for the backward pass" in text and found.kept.total in text
    assert "deep/block_0/up" in text.split("kept for")[1]
    for page in (found.to_html(), found._repr_html_()):
        assert "Kept for the backward pass" in page and "the model itself" in page
    assert [one.name for one in by_module(found.kept)] == ["", "deep/block_0/up", "deep"]
    again = Layout.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.kept == found.kept and str(again) == text


def test_modules_alike_share_a_row():
    class Unrolled(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(5):
                x = Block()(x)
            return x

    rows = by_module(layout(Unrolled(), X).kept)
    assert ("Block_{0…4}/up", 5) in [(row.name, row.times) for row in rows]
    assert sum(row.bytes for row in rows) == layout(Unrolled(), X).kept.bytes


def test_which_loops_keep_too_much():
    stack = nn.Stack(Block(), depth=4, remat=None)
    assert about(stack, X) == [["Block"]]
    for cheaper in (nn.Remat("products"), nn.Remat(), "auto"):
        assert about(stack.clone(remat=cheaper), X) == []
    assert about(stack.clone(run="scan of 2"), X) == [["Block"]]
    assert about(stack.clone(run="loop"), X) == []  # the compiler keeps there what it likes
    assert about(Two(), X) == [["body"], ["Body"]]
    with nn.silenced("LX904"):
        quiet = nn.scan(Body, **LOOP)
    assert about(quiet(), X, None) == []


def test_a_loop_by_hand_is_told_by_its_place():
    class ByHand(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jax.lax.scan(lambda x, _: (jnp.sin(jnp.cos(x)) * x, None), x, length=9)[0]

    class Around(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ByHand(name="inner")(nn.Dense(4)(x))

    (found,) = layout(Around(), X).findings
    assert (found.code, found.lifts) == ("LX904", ())
    assert found.message.startswith("module /inner, a loop × 9: a backward pass keeps")
    assert "LX904" in layout(Around(), X).to_html()


def test_what_is_written_to_variables_is_not_differentiated():
    class Sums(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(4, use_bias=False)(x)
            total = self.variable("state", "total", jnp.zeros, ())
            total.value = jnp.sin(y).sum()
            return y

    assert layout(Sums(), X).kept.rows == ()


def test_each_program_is_read_once(monkeypatch):
    read = []

    class Makers(residuals._Makers):
        def __missing__(self, program):
            read.append(program)
            return super().__missing__(program)

    monkeypatch.setattr(residuals, "_Makers", Makers)
    found = layout(nn.Stack(Block(), depth=4, remat=None), X)
    assert len(found.kept.rows) > 10 and len(read) == len(set(map(id, read))) < 8


@pytest.mark.parametrize("remat", ["None", "nn.Remat('products')"])
def test_on_the_command_line(remat, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept_model.py").write_text(
        "import liftax as nn\n"
        "class Block(nn.Module):\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        "        return x + nn.Dense(4)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))\n"
        f"model = nn.Stack(Block(), depth=3, remat={remat})\n"
    )
    command = ["layout", "kept_model.py:model", "--args", "f32[8,4]", "--grads"]
    assert main([*command, "--fail-on", "LX904"]) == (remat == "None")
    out = capsys.readouterr().out
    assert ("note LX904" in out) == (remat == "None") and "kept for the backward pass" in out


def test_layers_stored_apart_are_told_where_they_are_scanned():
    def told(**options):
        options = {"depth": 3, "store": "layers", **options}
        found = nn.layout(nn.Stack(nn.Dense(4), **options), KEY, X)
        assert ("stored apart and scanned" in found.to_html()) == bool(found.brought_together)
        return "stored apart and scanned: /" in str(found)

    assert told()
    for other in ({"run": "loop"}, {"store": "stacked"}, {"depth": 1}):
        assert not told(**other)
    with nn.override_stacks(run="loop"):
        assert not told()
