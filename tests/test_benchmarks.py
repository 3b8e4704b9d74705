"""The benchmarks measure the same model in every library, and say so when one is missing."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import (
    checks,
    convert,
    depth,
    eager,
    gpu,
    imports,
    inits,
    plans,
    plot,
    profile,
    programs,
    steps,
    timing,
    trace_time,
    traces,
)
from benchmarks.peers import BASELINE, NAMES, Config, Missing, by_hand, load, registry
from benchmarks.peers.common import BODIES, gradient
from benchmarks.table import Cell, Table, seconds, show
from benchmarks.timing import Sample, Settings

SMALL: dict[str, Any] = {"dim": 8, "heads": 2, "expand": 2, "batch": 2, "positions": 3}
CONFIGS = {
    "scanned": Config(lengths=(2,), **SMALL),
    "scanned+remat": Config(lengths=(2,), remat=True, **SMALL),
    "unrolled": Config(lengths=(), unrolled=2, **SMALL),
    "nested": Config(body="dense", lengths=(2, 3), **SMALL),
    "bfloat16": Config(lengths=(2,), dtype="bfloat16", **SMALL),
}
# liftax and flax.linen are always there in development; the others come with the bench extra.
REQUIRED = {BASELINE: None, "liftax": None, "flax.linen": None, "flax.nnx": None}
OTHERS = {"equinox": "equinox", "haiku": "haiku"}

pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning"),
    pytest.mark.usefixtures("compiled_quickly"),
]


def peer_or_skip(name: str) -> Any:
    if name in OTHERS:
        pytest.importorskip(OTHERS[name])
    return load(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CONFIGS)
def test_peers_agree(name: str, case: str) -> None:
    peer, config = peer_or_skip(name), CONFIGS[case]
    if name == "haiku" and config.dtype != "float32":
        with pytest.raises(Missing, match="dtype from a policy"):
            peer.build(config)
        return
    found = checks.checked(name, peer, config, gradients=case in ("scanned", "nested"))
    assert isinstance(found, checks.Ready), found


@functools.cache
def losses(peer: Any, config: Config) -> list[float]:
    """The loss at each of three training steps."""
    params = jax.tree.map(jax.numpy.copy, by_hand.noisy(config))
    state, step = peer.stepper(config, params)
    x = config.input()
    found = []
    for _ in range(3):
        state, loss = step(state, x, jax.numpy.zeros_like(x))
        found.append(float(loss))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_training_steps_agree(name: str) -> None:
    config = CONFIGS["nested"]
    found = losses(peer_or_skip(name), config)
    assert found[0] > found[1] > found[2]
    np.testing.assert_allclose(found, losses(by_hand, config), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_eager_mlps_agree(name: str) -> None:
    params = eager.parameters()
    x = jax.numpy.asarray(np.random.default_rng(0).standard_normal((2, eager.SIZES[0]), np.float32))
    expected = by_hand.mlp(params)(x)
    np.testing.assert_allclose(peer_or_skip(name).mlp(params)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_init_makes_as_many_arrays(name: str) -> None:
    config = CONFIGS["nested"]
    shapes = jax.eval_shape(peer_or_skip(name).init_arrays(config), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2 * 3 * (8 * 8 + 8)


def test_a_trace_is_never_taken_from_a_cache() -> None:
    ready = checks.checked(BASELINE, by_hand, CONFIGS["scanned"])
    assert isinstance(ready, checks.Ready)
    trace = trace_time.tracer(ready, grad=False)
    assert [BODIES.count(trace) for _ in range(3)] == [1, 1, 1]


def test_a_disagreeing_peer_is_left_out() -> None:
    config = CONFIGS["nested"]

    class Wrong:
        @staticmethod
        def build(config: Config) -> Any:
            right = by_hand.build(config)
            return checks.Model(lambda p, x: 1.1 * right.forward(p, x), right.adopt)

    found = checks.checked("wrong", Wrong, config)  # type: ignore[arg-type]
    assert isinstance(found, str)
    assert "left out, its output is off by" in found


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODULES, "haiku", "no_such_module")
    table = Table("t", "title", [])
    peers, missing = checks.wanted(Settings(peers=("haiku",)))
    table.note_missing(missing)
    assert list(peers) == [BASELINE]
    assert table.notes[0].startswith("haiku: missing, cannot be imported: No module named")


def test_config_refuses_contradictions() -> None:
    with pytest.raises(ValueError, match="either scanned lengths or a number of unrolled"):
        Config(lengths=(2,), unrolled=2)
    with pytest.raises(ValueError, match="body is 'conv'"):
        Config(body="conv")
    with pytest.raises(ValueError, match="rounds is 0"):
        Settings(rounds=0)
    with pytest.raises(ValueError, match="no peer is called 'torch'"):
        load("torch")


def test_body_traces_of_liftax() -> None:
    import liftax as nn

    levels = (traces.vmap, traces.scan)
    assert traces.body_calls(nn, levels, 3, grad=True) == {"init": 1, "apply": 1, "grad": 1}


def test_body_traces_of_linen_double() -> None:
    import flax.linen as nn

    assert traces.body_calls(nn, (traces.scan,), 3, grad=False) == {"init": 8, "apply": 8}


def test_program_figures() -> None:
    ready = checks.checked(BASELINE, by_hand, CONFIGS["nested"])
    assert isinstance(ready, checks.Ready)
    found = programs.figures(ready, grad=True)
    assert set(found) == set(programs.FIGURES)
    assert all(value is None or value > 0 for value in found.values())

    trace = jax.jit(lambda x: jax.lax.scan(lambda c, _: (c + 1, None), x, None, length=3)[0]).trace
    names = [e.primitive.name for e in programs.equations(trace(1.0).jaxpr)]
    assert names == ["scan", "add"]


def test_depth_does_not_change_the_program() -> None:
    nested = CONFIGS["nested"]
    sizes = {
        n: depth.compile_once(depth.tracer(by_hand, dataclasses.replace(nested, lengths=(n,))))[1]
        for n in (4, 8)
    }
    assert sizes[4] == sizes[8] > 0


def test_gpu_rows_on_any_device() -> None:
    rows = (f"train: {BASELINE}", "train: best plan", "decode", "init: liftax")
    taken = {row: gpu.ROWS[row](gpu.TINY, 1) for row in rows}
    assert json.loads(json.dumps(taken)) == taken and all(map(gpu.said, taken.values()))
    by_hand, best, *_ = taken.values()
    assert best["loss"] == pytest.approx(by_hand["loss"], rel=0.05)
    made = {table.name: table for table in gpu.tables(taken)}
    assert made["gpu"].cells["training step"]["best plan"].ratio is not None
    assert set(made["gpu-decode"].cells["one token"]) > {BASELINE, "scan", "loop"}
    assert made["gpu-init"].cells["first call"]["liftax"].value == taken["init: liftax"]["first"]


def test_gpu_sizes_and_what_is_said_without_one() -> None:
    weights = sum(a * b for a, b in gpu.LARGE.denses.values()) * gpu.LARGE.layers
    assert 290e6 < weights < 310e6
    tokens = gpu.LARGE.batch * gpu.LARGE.positions
    assert gpu.model_flops(gpu.LARGE) > 6 * weights * tokens
    (table,) = gpu.run(Settings())
    assert table.notes == [f"skipped: needs a GPU, and there is {jax.devices()[0].device_kind}"]


def test_conversions_are_timed_beside_cp() -> None:
    (table,) = convert.run(Settings(rounds=1), width=32)
    assert set(convert.CASES) < set(table.cells) and "cp" in table.cells["layers to axis 1"]


def test_plans_are_compared_with_their_loop() -> None:
    small = Config(dim=16, batch=1, positions=8)
    (table,) = plans.run(Settings(rounds=1, min_sample=0.0), small, (2,))
    assert set(table.cells) == {f"2 layers, {of}" for of in ("step", "compile", "temporary memory")}
    assert table.cells["2 layers, step"][plans.PLAN].ratio is not None


def test_interleaving_takes_turns() -> None:
    order: list[str] = []
    cases = {name: lambda name=name: order.append(name) for name in "ab"}
    found = timing.interleave(cases, Settings(rounds=2, min_sample=0.0), warm_up=0)
    assert [len(sample.seconds) for sample in found.values()] == [2, 2]
    assert order[2:] == ["a", "b", "b", "a"]


def test_ratios_are_medians_of_rounds() -> None:
    mine, base = Sample((2.0, 40.0, 6.0)), Sample((1.0, 10.0, 3.0))
    assert mine.ratio(base) == 2.0
    assert mine.median == 6.0
    assert mine.spread == 9.5
    assert Sample((1.0,)).spread == 0.0


def test_table_shows_what_it_has(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    table = Table("t", "a title", ["by hand", "liftax", "haiku"])
    table.put_samples("row", {"by hand": Sample((1e-3,)), "liftax": Sample((2e-3,))})
    table.put_counts("count", {"by hand": 1000, "liftax": 1500})
    table.targets["row"] = "<= 1.25x"
    table.note("haiku: missing, not installed")
    table.note("haiku: missing, not installed")
    show(table)
    out = capsys.readouterr().out
    assert "2 ms (2.00x)" in out
    assert "1,500 (1.50x)" in out
    assert out.count("haiku: missing, not installed") == 1
    assert table.markdown().splitlines()[2] == "| row | 1 ms | 2 ms (2.00x) | <= 1.25x |"
    json.dumps(table.as_json())
    picture = plot.draw(table, tmp_path)
    assert picture is not None
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert plot.draw(Table("none", "no ratios", []), tmp_path) is None
    assert table.cells["row"]["by hand"] == Cell("1 ms", 1e-3, None, 0.0)


def test_times_are_short() -> None:
    assert [seconds(s) for s in (1.5, 0.9995, 0.01234, 1.2e-6, 3e-9)] == [
        "1.5 s",
        "1000 ms",
        "12.3 ms",
        "1.2 us",
        "3 ns",
    ]


def test_command_lists_saves_and_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("traces ")
    with pytest.raises(SystemExit):
        command.main(["no-such-table"])
    assert "no table is called 'no-such-table'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["eager", "--peers", "torch"])
    assert "no peer is called 'torch'" in capsys.readouterr().err

    arguments = ["eager", "--rounds", "1", "--peers", "liftax", "--results", str(tmp_path)]
    assert command.main(arguments) == 0
    assert "three-layer MLP" in capsys.readouterr().out
    saved = json.loads((tmp_path / "results.json").read_text())
    assert list(saved["tables"][0]["cells"]["three-layer MLP"]) == ["by hand", "liftax"]
    assert (tmp_path / "eager.png").exists()


def test_figures_go_into_their_place_in_a_page(tmp_path: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- figures: t -->\nold\n<!-- end of figures -->\nb\n")
    table, other = Table("t", "title", ["liftax"]), Table("u", "title", ["liftax"])
    for t in (table, other):
        t.put_counts("row", {"liftax": 1}, base=None)
    assert command.fill_docs(page, [table, other], "a machine") == 1
    text = page.read_text()
    assert text.startswith("a\n<!-- figures: t -->\n")
    assert text.endswith("- taken on a machine\n\n<!-- end of figures -->\nb\n")
    assert "| row | 1 |" in text
    assert "old" not in text


def test_profile_sorts(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["eager", "--repeats", "1", "--lines", "3"]) == 0
    out = capsys.readouterr().out
    assert "liftax, eager:" in out
    assert "liftax/module" in out


def test_tables_name_functions_that_exist() -> None:
    modules = {
        "traces": traces,
        "trace_time": trace_time,
        "programs": programs,
        "steps": steps,
        "inits": inits,
        "eager": eager,
        "imports": imports,
        "depth": depth,
        "gpu": gpu,
    }
    for name, (module, function, what) in command.TABLES.items():
        assert what
        if module in modules:
            assert callable(getattr(modules[module], function)), name
    assert callable(gradient(by_hand.build(CONFIGS["nested"])))
