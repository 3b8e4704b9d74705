"""What `nn.layout_diff` says of two models, two storages, a model and a checkpoint."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import pytest

import liftax as nn
from liftax.layout.data import Axis

KEY, X = jax.random.key(0), jax.ShapeDtypeStruct((2, 4), "float32")
STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True, "dropout": True}}


class Block(nn.Module):
    width: int = 4
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, _):
        x = nn.Dense(self.width, param_dtype=self.dtype)(x)
        return nn.Dropout(0.5, deterministic=False)(x), None


class Net(nn.Module):
    body: object
    head: str = "head"

    @nn.compact
    def __call__(self, x):
        x, _ = self.body(name="blocks")(x, None)
        return nn.Dense(3, name=self.head)(x)


def scan(length=3, over=Block, **changes):
    return nn.scan(over, **{**STACKED, "length": length, **changes})


def told(a, b, *args, **kwargs):
    found = nn.layout_diff(a, b, {"params": KEY, "dropout": KEY}, *(args or (X,)), **kwargs)
    assert pickle.loads(pickle.dumps(found)) == found
    assert bool(found) == (str(found)[:13] != "no difference")
    return found


def test_alike():
    found = told(Net(scan()), Net(scan()))
    assert not found and found.alike == 4
    assert str(found) == "no difference: 4 variables alike"


def test_a_role_is_one_difference_and_not_an_axis_besides():
    shared = {"variable_axes": {}, "variable_broadcast": "params"}
    shared["split_rngs"] = {"params": False, "dropout": False}
    found = told(Net(scan()), Net(scan(**shared)))
    assert {d.kind for d in found} == {"role", "split"}
    kernel = found.of("role")[0]
    assert (kernel.path, kernel.a, kernel.b) == (
        "params/blocks/Dense_0/kernel",
        "stacked",
        "shared",
    )
    assert kernel.lift.kind == "scan"
    assert kernel.message.endswith(": stacked along scan in a, shared along scan in b")
    assert {d.what for d in found.of("split")} == {"params", "dropout"}
    assert (found.of("split")[0].a, found.of("split")[0].b) == (True, False)
    assert found.alike == 2


def test_an_axis_at_another_place_though_the_sizes_agree():
    found = told(Net(scan(4)), Net(scan(4, variable_axes={"params": 1})))
    (kernel,) = [d for d in found if d.path.endswith("blocks/Dense_0/kernel")]
    assert kernel.kind == "axes"
    assert [axis.lift for axis in kernel.a] == [0, None, None]
    assert [axis.lift for axis in kernel.b] == [None, 0, None]
    assert "the axis of scan is axis 0 in a, 1 in b" in kernel.message


def test_sizes_dtypes_and_lengths():
    found = told(Net(scan(3)), Net(scan(5)), names=("mine", "yours"))
    (lift,) = found.of("lift")
    assert (lift.path, lift.what, lift.a, lift.b) == ("/blocks", "size", 3, 5)
    assert (
        lift.message
        == "/blocks: scan over Block iterates 3 times in mine, iterates 5 times in yours"
    )
    assert len(found.of("axes")) == 2
    (dtype,) = told(Net(scan()), Net(lambda name: scan()(dtype=jnp.bfloat16, name=name))).of(
        "dtype"
    )[:1]
    assert (dtype.a, dtype.b) == ("float32", "bfloat16")


def test_a_lift_that_one_lacks():
    found = told(Net(scan()), Net(scan(over=nn.remat(Block))))
    (lift,) = found
    assert (lift.kind, lift.a, lift.b.kind) == ("lift", None, "remat")
    assert "only in b" in lift.message


def test_the_order_of_lifts():
    batch = {"variable_axes": {"params": None}, "in_axes": (0, None)}
    batch["split_rngs"] = {"params": False, "dropout": True}
    one = nn.vmap(scan(), **batch)()
    other = scan(over=nn.vmap(Block, **batch))()
    found = told(one, other, X, None)
    assert {(d.what, d.a, d.b) for d in found.of("lift")} == {
        ("around", None, "scan at /"),
        ("around", "vmap at /", None),
    }


def test_names_missing_and_extra():
    (found,) = told(Net(scan()), Net(scan(), head="out"))
    assert (found.kind, found.path, found.a, found.b) == ("renamed", "/head", "head", "out")

    class More(Net):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False, name="norm")(Net.__call__(self, x))

    found = told(Net(scan()), More(scan()))
    assert {d.kind for d in found} == {"extra"}
    assert {d.path for d in found} == {
        f"{c}/norm/{n}"
        for c, n in (
            ("params", "scale"),
            ("params", "bias"),
            ("batch_stats", "mean"),
            ("batch_stats", "var"),
        )
    }
    back = told(More(scan()), Net(scan()))
    assert {d.kind for d in back} == {"missing"}
    assert back[0].a.shape == (3,) and back[0].b is None


def test_names_of_boxes():
    def net(*names):
        init = nn.with_partitioning(nn.initializers.ones, names)
        return nn.Dense(3, kernel_init=init)

    (found,) = told(net("embed", "mlp"), net("mlp", "embed"))
    assert (found.kind, found.a, found.b) == ("names", ["embed", "mlp"], ["mlp", "embed"])


class Stacked(nn.Module):
    store: str = "stacked"
    width: int = 4

    @nn.compact
    def __call__(self, x):
        layers = [nn.Dense(4), nn.Dense(4)]
        x = nn.Stack(layers, repeats=3, store=self.store, name="deep")(x)
        return nn.Dense(self.width, name="head")(x)


def test_two_storages():
    (found,) = told(Stacked(), Stacked("layers"))
    assert (found.kind, found.path, found.a, found.b) == ("storage", "/deep", "stacked", "layers")
    found = told(Stacked(), Stacked("layers", width=5))
    assert [(d.kind, d.path) for d in found] == [
        ("storage", "/deep"), ("axes", "params/head/kernel"), ("axes", "params/head/bias"),
    ]  # fmt: skip


@pytest.mark.parametrize("store", ["stacked", "layers"])
def test_a_model_and_a_checkpoint(tmp_path, store):
    model = Stacked(store)
    layout = nn.layout(model, KEY, X)
    variables = model.init(KEY, jnp.ones((2, 4)))
    path = tmp_path / "model.safetensors"
    nn.save_checkpoint(path, variables, layout=layout)
    assert not told(model, path)
    assert not nn.layout_diff(variables, path)
    nn.save_checkpoint(path, variables["params"], layout=layout)
    assert not told(model, path)  # parameters alone
    nn.save_checkpoint(path, {**variables, "step": jnp.zeros((), jnp.int32)}, layout=layout)
    other = {"stacked": "layers", "layers": "stacked"}[store]
    found = told(Stacked(other), path)
    assert [(d.kind, d.path) for d in found] == [("storage", "/deep"), ("extra", "step/")]


def test_alike_paths_share_a_line():
    class Plain(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            for _ in range(6):
                x = nn.Dense(self.width)(x)
            return x

    found = told(Plain(4), Plain(5))
    assert len(found) == 12
    text = found.to_text(60)
    assert "params/Dense_{0…5}/bias (6 of them): (out 4) in a" in text
    assert max(map(len, text.splitlines())) <= 60


def test_what_has_no_layout():
    with pytest.raises(nn.errors.TransformTargetError, match="layout_diff: a module needs keys"):
        nn.layout_diff(Stacked(), Stacked())
    with pytest.raises(nn.errors.TransformTargetError, match="expected a Layout, a module, .* int"):
        nn.layout_diff(nn.layout(Stacked(), KEY, X), 3)


def test_axes_are_plain_data():
    axes = told(nn.Dense(3), nn.Dense(5))[0].a
    assert axes == (Axis(4, "in"), Axis(3, "out"))
