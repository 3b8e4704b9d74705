"""map_layers, layer_norms and layer_counts: the same in both forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import liftax as nn
from liftax.errors import StackingError

AT = nn.Stack(
    [nn.Dense(3), nn.Dense(3)], repeats=2, before=[nn.Dense(3)], after=[nn.Dense(3)], param_axis=1
)


def params(seed=0):
    rng = np.random.default_rng(seed)
    layers = {
        f"layers_{i}": {
            "kernel": rng.normal(size=(3, 3)).astype("f4"),
            "bias": rng.normal(size=3).astype("f4"),
        }
        for i in range(6)
    }
    return nn.to_stacked({"params": layers, "other": {"table": np.ones(2)}}, AT)


def check(one, other):
    jax.tree.map(np.testing.assert_allclose, one, other)


def test_order_and_places():
    """The function sees the layers as they run, whatever part of the pattern they are."""
    variables = params()
    layers = nn.to_layers(variables, AT)
    seen = {}

    def fn(layer, tree):
        assert layer.depth == 6
        assert layer.stack == "the root"
        assert list(tree) == ["params"]
        seen[layer.index] = tree["params"]["bias"]
        return tree

    check(nn.map_layers(fn, variables, layout=AT), variables)
    for i in range(6):
        np.testing.assert_array_equal(seen[i], layers["params"][f"layers_{i}"]["bias"])


def test_deltas_of_low_rank():
    """Another tree goes along, in whatever form it is."""
    variables, layers = params(), nn.to_layers(params(), AT)
    rng = np.random.default_rng(1)
    deltas = {
        "params": {
            f"layers_{i}": {"kernel": {"a": rng.normal(size=(3, 1)), "b": rng.normal(size=(1, 3))}}
            for i in range(6)
        }
    }

    def add(layer, tree, delta):
        factors = delta["params"]["kernel"]
        own = dict(tree["params"])
        own["kernel"] = own["kernel"] + factors["a"] @ factors["b"]
        return {"params": own}

    expected = nn.map_layers(add, layers, deltas, layout=AT)
    check(nn.to_layers(nn.map_layers(add, variables, deltas, layout=AT), AT), expected)
    stacked_deltas = nn.to_stacked(deltas, AT)
    check(nn.map_layers(add, layers, stacked_deltas, layout=AT), expected)
    kernel = layers["params"]["layers_4"]["kernel"]
    factors = deltas["params"]["layers_4"]["kernel"]
    np.testing.assert_allclose(
        expected["params"]["layers_4"]["kernel"], kernel + factors["a"] @ factors["b"]
    )


def test_learning_rates():
    """One number a layer multiplies the updates of that layer, in both forms alike."""
    variables = params()["params"]
    layers = nn.to_layers(variables, AT)

    def rate(layer, _):
        return 0.5**layer.index

    rates = nn.map_layers(rate, variables, layout=AT)
    assert rates["block_1"]["kernel"].shape == (1, 2, 1)
    assert rates["block_1"]["bias"].shape == (1, 2)
    scaled = jax.tree.map(lambda r, p: r * p, rates, variables)
    by_layer = nn.map_layers(rate, layers, layout=AT)
    check(nn.to_layers(scaled, AT), jax.tree.map(lambda r, p: r * p, by_layer, layers))


def test_labels():
    """Labels and masks stay labels and masks: Muon for matrices, Adam for the rest."""
    variables = {"params": {**params()["params"], "head": {"kernel": np.ones((3, 2), np.float32)}}}

    def label(layer, tree):
        return jax.tree.map(lambda a: "muon" if a.ndim == 2 else "adam", tree)

    labels = nn.map_layers(
        label, variables, layout=AT, outside=lambda tree: jax.tree.map(lambda _: "adam", tree)
    )
    assert labels["params"]["block_0"] == {"kernel": "muon", "bias": "adam"}
    assert labels["params"]["head"] == {"kernel": "adam"}
    optimizer = optax.partition(
        {"muon": optax.sgd(0.1, momentum=0.9), "adam": optax.adam(0.1)}, labels["params"]
    )
    state = optimizer.init(variables["params"])
    layers = nn.to_layers(state, AT)
    assert jax.tree.structure(nn.to_stacked(layers, AT)) == jax.tree.structure(state)

    masks = nn.map_layers(lambda layer, tree: True, variables, layout=AT, outside=lambda t: False)
    assert masks["params"]["block_1"] == {"kernel": True, "bias": True}
    assert masks["params"]["head"] == {"kernel": False}


def test_labels_that_differ_need_layers():
    variables = params()

    def label(layer, tree):
        return "frozen" if layer.index < 2 else "adam"

    with pytest.raises(StackingError, match="layers_1/bias got 'frozen' and .*layers_3/bias got '"):
        nn.map_layers(label, variables, layout=AT)
    labels = nn.map_layers(label, nn.to_layers(variables, AT), layout=AT)
    assert labels["params"]["layers_1"] == {"kernel": "frozen", "bias": "frozen"}
    assert labels["params"]["layers_2"]["bias"] == "adam"


def test_new_and_kept_collections():
    variables = params()

    def masks(layer, tree):
        return {"masks": {"kernel": tree["params"]["kernel"] > 0}}

    made = nn.map_layers(masks, variables, layout=AT)
    check(made["params"], variables["params"])
    assert made["masks"]["block_0"]["kernel"].shape == (2, 3, 3)  # other collections: axis 0
    made = nn.map_layers(masks, nn.to_layers(variables, AT), layout=AT)
    assert made["masks"]["layers_5"]["kernel"].shape == (3, 3)
    assert made["other"]["table"] is variables["other"]["table"]

    def sometimes(layer, tree):
        return {"masks": {}} if layer.index == 1 else {}

    with pytest.raises(StackingError, match="'masks' for some layers of the root, but not for all"):
        nn.map_layers(sometimes, variables, layout=AT)


def test_boxes():
    box = nn.Partitioned(np.ones((2, 3, 4)), ("layers", "in", None))
    blocks = nn.Stacking.of("blocks", 2, metadata_params={nn.PARTITION_NAME: "layers"})
    tree = {"blocks": {"w": box}}
    doubled = nn.map_layers(lambda layer, t: jax.tree.map(lambda a: a * 2, t), tree, layout=blocks)
    assert doubled["blocks"]["w"].names == ("layers", "in", None)
    rates = nn.map_layers(lambda layer, t: 1.0, tree, layout=blocks)
    assert rates["blocks"]["w"].shape == (2, 1, 1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"params": {"elsewhere": {}}}, "no stack found"),
        ([1], "no stack found"),
    ],
)
def test_refused(variables, message):
    with pytest.raises(StackingError, match=message):
        nn.map_layers(lambda layer, tree: tree, variables, layout=AT)


def test_results_that_differ():
    def wrong(layer, tree):
        size = 2 if layer.index == 3 else 3
        return {"params": {"bias": np.zeros(size)}}

    with pytest.raises(StackingError, match=r"layers_3/bias is float64\[2\], but .*layers_1"):
        nn.map_layers(wrong, params(), layout=AT)


def test_norms_and_counts():
    variables = params()
    layers = nn.to_layers(variables, AT)
    expected = [
        np.sqrt(sum((a.astype("f8") ** 2).sum() for a in jax.tree.leaves(layers["params"][name])))
        for name in (f"layers_{i}" for i in range(6))
    ]
    for tree in (variables, layers, jax.tree.map(jnp.asarray, variables)):
        norms = nn.layer_norms(tree, AT)
        assert list(norms) == ["params"]
        np.testing.assert_allclose(norms["params"], expected, rtol=1e-6)
        assert nn.layer_counts(tree, AT) == {"params": (12,) * 6}
    assert list(nn.layer_norms(variables["params"], AT)) == ["/"]
    # In a training step, on gradients.
    traced = jax.jit(lambda tree: nn.layer_norms(tree, AT))(variables)
    np.testing.assert_allclose(traced["params"], expected, rtol=1e-6)
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, variables))
    assert nn.layer_counts(shapes, AT) == {"params": (12,) * 6}


def test_norms_of_half_precision_and_what_is_no_number():
    blocks = nn.Stacking.of("blocks", 2)
    tree = {
        "blocks": {
            "w": jnp.full((2, 1000), 10, jnp.bfloat16),
            "z": np.array([3 + 4j, 0]),
            "keys": jax.random.split(jax.random.key(0), 2),
            "on": np.ones((2, 2), bool),
            "label": "x",
        }
    }
    norms = nn.layer_norms(tree, blocks)["blocks"]
    assert norms.dtype == jnp.float32
    np.testing.assert_allclose(norms, [np.sqrt(100_025), np.sqrt(100_000)], rtol=1e-6)
