"""Ways to run a stack, tried one after the other: all are equal, and the best is chosen."""

import copy
import gc
import itertools
import pickle
import weakref

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn
from liftax.debug.tune import _candidates, _run_by
from liftax.errors import StackError

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 4))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(4)(nn.relu(nn.Dense(16)(x)))


class Model(nn.Module):
    features: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(self.deep(x))

    @nn.compact
    def deep(self, x):
        return nn.Stack(Block(), depth=4, name="deep")(x)


STACK = nn.Stack(Block(), depth=4)
V = jax.jit(STACK.init)(KEY, X)


def clock_of(*steps):
    """A clock by which compiling takes a second, and the runs of each candidate what is said."""
    times, now = itertools.chain.from_iterable([1.0, step] for step in steps), [0.0]
    waiting = itertools.count()

    def clock():
        if next(waiting) % 2:
            now[0] += next(times)
        return now[0]

    return clock


def tuned(*steps, model=STACK, variables=V, **options):
    shown = []
    options = {"runs": ["scan", "loop"], "unrolls": [1], "remats": ["off", nn.Remat()], **options}
    clock = clock_of(*steps) if steps else lambda: 0.0
    best = nn.tune_stack(model, variables, X, repeats=1, clock=clock, show=shown.append, **options)
    return best, shown[0]


def ways(table):
    return [(row.options.run, row.options.unroll, row.options.remat) for row in table.rows]


def test_candidates_that_differ():
    runs, unrolls, remats = ["scan", "loop"], [1, 2], ["auto", "off", nn.Remat()]
    found = [(o.run, o.unroll, o.remat) for o in _candidates(runs, unrolls, remats)]
    scans = [("scan", unroll, remat) for unroll in (1, 2) for remat in remats]
    assert found == [*scans, ("loop", None, "off"), ("loop", None, nn.Remat())]


def test_the_fastest_is_chosen_by_the_clock():
    steps = (4, 3, 3, 5)
    best, table = tuned(*steps)
    assert ways(table) == [
        ("scan", 1, "off"),
        ("scan", 1, nn.Remat()),
        ("loop", None, "off"),
        ("loop", None, nn.Remat()),
    ]
    assert [row.step for row in table.rows] == [float(step) for step in steps]
    assert {row.compile for row in table.rows} == {1.0}
    # Of equally fast ones that which holds the least.
    least = min(steps)
    assert table.best.peak == min(r.peak for r in table.rows if r.step == least)
    assert table.best.step == least
    way = table.best.options
    assert (best.run, best.remat) == (way.run, None if way.remat == "off" else way.remat)
    assert best.depth == STACK.depth and type(best) is nn.Stack
    for width in (60, 80, 120):
        lines = table.text(width).splitlines()
        assert all(len(line) <= width for line in lines)
        cells = [" ".join(line.split()) for line in lines]
        assert cells[0] == "run unroll remat compile step peak"
        assert cells[2].startswith("scan 1 off 1 s 4 s")
    assert jax.eval_shape(best.init, KEY, X) == jax.eval_shape(STACK.init, KEY, X)


def test_every_candidate_equals_the_others_to_rounding():
    def gradient(model):
        return jax.jit(jax.value_and_grad(lambda v: (model.apply(v, X) ** 2).mean()))(V)

    expected = gradient(STACK)
    for options in _candidates(["scan", "loop"], [2], [nn.Remat()]):
        found = gradient(_run_by(STACK, options, alone=True))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
        )


def test_a_budget_excludes_what_holds_more():
    _, table = tuned(runs=["scan"])
    peaks = sorted(row.peak for row in table.rows)
    assert peaks[0] < peaks[-1]
    best, table = tuned(memory=peaks[0], runs=["scan"])
    assert all((row.step is None) == (row.peak > peaks[0]) for row in table.rows)
    assert table.best.peak == peaks[0]
    assert "over the budget" in str(table) and "best" in str(table)
    match = rf"none of 2 candidates fits.\nfound: the smallest holds {peaks[0]:,} bytes\nexpected: "
    with pytest.raises(StackError, match=match):
        tuned(memory=peaks[0] - 1, runs=["scan"])


def test_a_model_with_a_stack_inside_keeps_its_class_and_fields():
    model = Model(features=7)
    variables = jax.eval_shape(model.init, KEY, X)
    how = {"model": model, "variables": variables, "remats": ["off"], "loss": jnp.mean}
    best, table = tuned(4, 3, **how)
    assert table.best.options.run == "loop"
    assert isinstance(best, Model) and type(best).__name__ == "Model"
    assert best.features == 7 and best.clone(features=8).features == 8
    values = jax.jit(model.init)(KEY, X)
    assert jax.tree.structure(jax.eval_shape(best.init, KEY, X)) == jax.tree.structure(values)

    def loops(model, **how):
        return "scan[" in str(jax.make_jaxpr(lambda v: model.apply(v, X, **how))(values))

    assert loops(model) and not loops(best)
    assert not loops(best, method="deep") and loops(model, method="deep")
    assert not loops(best.clone(features=8))
    outputs = [jax.jit(one.apply)(values, X) for one in (best, model)]
    np.testing.assert_allclose(*outputs, rtol=1e-5)


def test_a_tuned_model_is_pickled_and_copied():
    model = Model(features=3)
    values = model.init(KEY, X)
    best, table = tuned(4, 3, model=model, variables=values, remats=["off"])
    assert table.best.options.run == "loop"
    ways = {"pickle": lambda m: pickle.loads(pickle.dumps(m)), "copy": copy.deepcopy}
    ways["cloudpickle"] = lambda m: cloudpickle.loads(cloudpickle.dumps(m))
    for name, way in ways.items():
        again = way(best)
        assert (again, hash(again)) == (best, hash(best)), name
        assert again != model and again.features == 3, name
        assert "scan[" not in str(jax.make_jaxpr(again.apply)(values, X)), name
    # The class of the ways that were found is no longer kept when no model is of it.
    made = weakref.ref(type(best))
    del best, again, ways
    gc.collect()
    assert made() is None


def test_what_is_refused_is_told(capsys):
    best = nn.tune_stack(
        STACK, V, X, runs=["scan of 2"], unrolls=[1], remats=[nn.Remat(every=3), "off"], repeats=1
    )
    assert (best.run, best.remat) == ("scan of 2", None)
    assert "the groups overlap" in capsys.readouterr().out
    with pytest.raises(StackError, match="no candidate can be run; the first of 1 is refused"):
        tuned(runs=["scan of 2"], remats=[nn.Remat(every=3)])
    with pytest.raises(StackError, match="tune_stack: Dense runs no Stack here"):
        tuned(model=nn.Dense(4), variables={"params": {"kernel": jnp.ones((4, 4)), "bias": X[0]}})
    assert tuned(1, runs=["scan"], remats=["off"])[0].run == "scan"


def test_a_batch_alone_makes_its_own_variables():
    stack = nn.Stack(nn.Dense(4), depth=3)
    shown = []
    best = nn.tune_stack(stack, X, runs=["scan"], unrolls=[1], remats=["off"], show=shown.append)
    assert best.run == "scan" and len(shown[0].rows) == 1
