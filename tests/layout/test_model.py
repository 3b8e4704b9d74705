"""The data itself: look-ups, totals, and the way to JSON and back."""

import json

import pytest

from liftax.layout.fold import fold
from liftax.layout.shown import Layout
from liftax.layout.wording import human_bytes, human_count, short_file_line

from . import samples


@pytest.mark.parametrize("name", ["empty", "plain", "decoder", "alike", "deep"])
def test_json_round_trip(name):
    layout = getattr(samples, name)()
    again = Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again == layout


def test_look_up_by_name():
    layout = samples.plain()
    assert layout["params/Dense_0/kernel"].shape == (3, 4)
    assert "state/step" in layout and len(layout) == 3
    with pytest.raises(KeyError, match="no variable 'params/Dense_0/kernal'; did you mean"):
        layout["params/Dense_0/kernal"]


def test_totals():
    layout = samples.decoder()
    params = [v for v in layout if v.collection == "params"]
    assert layout.parameters == sum(v.elements for v in params)
    assert [t.collection for t in layout.collections] == ["params", "cache", "stats"]
    vmap, scan, experts = layout.by_lift
    inside = 12 * 64 * 64 + 12 * 4 * 64 * 256
    assert (vmap.parameters, vmap.per_iteration, vmap.shared) == (inside, inside, inside)
    assert (scan.parameters, scan.per_iteration, scan.if_shared) == (
        inside, inside // 12, inside // 12,
    )  # fmt: skip
    assert experts.parameters == 4 * experts.per_iteration == 12 * 4 * 64 * 256


def test_repr_is_one_line():
    assert repr(samples.plain()) == (
        "<Layout of Plain: 3 variables, 16 parameters, 0 lifts, 0 findings; print it for the table>"
    )


def test_fold_joins_only_what_is_alike():
    folds = fold(samples.alike(20).variables)
    assert [(f.name, len(f)) for f in folds] == [
        ("Block_{0…9}/kernel", 10), ("Block_{0…9}/bias", 10),
    ]  # fmt: skip
    assert len(fold(samples.large(50).variables)) == 50


def test_cost_needs_the_model():
    with pytest.raises(ValueError, match="was not made by liftax.layout"):
        samples.plain().with_cost()


def test_words():
    assert human_bytes(0) == "0 B" and human_bytes(1536) == "1.5 KiB"
    assert human_count(99_999) == "99,999" and human_count(1_234_567) == "1.23 M"
    assert short_file_line(None) == ""
    assert short_file_line("/a/b/c/d.py:12") == "c/d.py:12"
