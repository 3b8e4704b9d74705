"""Modules that travel: pickled by value out of `__main__` into another process, and copied."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import pytest
from helpers.compare import ON_FLAX, assert_same

import liftax as nn

X = jnp.ones(2)

PROGRAM = """
import dataclasses, sys
from typing import Any
import cloudpickle, jax
import jax.numpy as jnp
import liftax as nn
from liftax import Module

ones = nn.initializers.ones

class Setup(Module):
    width: int = 2
    inner: Any = None
    def setup(self):
        self.first = nn.Dense(self.width, kernel_init=ones)
        self.more = [nn.Dense(2, kernel_init=ones)]
    def __call__(self, x):
        return self.more[0](self.first(x))

class Below(Setup):
    def setup(self):
        super().setup()
        self.last = Compact()
    def __call__(self, x):
        return self.last(super().__call__(x))

class Compact(Module, kw_only=True):
    width: int = 2
    made: Any = dataclasses.field(init=False)
    def setup(self):
        self.made = self.width * 2
    @property
    def double(self):
        return self.made
    @nn.compact
    def __call__(self, x):
        with nn.override_named_call(False):
            return Setup(name='in')(nn.Dense(self.double)(x))

class Named(Module):
    @nn.compact_name_scope
    def part(self, x):
        return nn.Dense(2)(x)
    def __call__(self, x):
        return self.part(x)

class Decorated(Module):
    @nn.remat
    @nn.compact
    def __call__(self, x):
        return nn.jit(Setup)()(nn.Dense(2)(x))

class Step(Setup):
    def __call__(self, x):
        return super().__call__(x), None

axes = dict(variable_axes={'params': 0}, split_rngs={'params': True})
models = [
    Setup(), Below(), Compact(width=3), Named(), Decorated(), Setup(inner=Compact()),
    nn.remat(Setup)(), nn.jit(Compact)(), nn.vmap(Below, in_axes=None, axis_size=2, **axes)(),
    nn.scan(nn.remat(Step), length=2, **axes)(), nn.map_variables(Setup, 'params', init=True)(),
    nn.Sequential([Setup(), nn.relu]), nn.remat(Setup),
]
x = jnp.ones(2)
made = [(m() if isinstance(m, type) else m).init_with_output(jax.random.key(0), x) for m in models]
with open(sys.argv[1], 'wb') as file:
    cloudpickle.dump((models, jax.device_get(made)), file)
"""


@pytest.mark.skipif(ON_FLAX, reason="about liftax alone")
def test_classes_of_main_go_to_another_process(tmp_path: Path) -> None:
    """Before and after use, with all that their methods refer to."""
    file = tmp_path / "models.pkl"
    path = os.pathsep.join(sys.path)
    environ = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", PROGRAM, str(file)], check=True, env=environ)
    models, expected = cloudpickle.loads(file.read_bytes())
    for model, made in zip(models, expected, strict=True):
        again = model() if isinstance(model, type) else model
        assert_same(jax.device_get(again.init_with_output(jax.random.key(0), X)), made)
        assert isinstance(again, nn.Module)


class Whole(nn.Module):
    width: int = 2
    inner: Any = None

    def setup(self):
        self.dense = nn.Dense(self.width, kernel_init=nn.initializers.ones)

    def __call__(self, x):
        return self.dense(x if self.inner is None else self.inner(x))


def test_instances_are_pickled_and_copied_with_what_they_hold() -> None:
    model = Whole(3, Whole())
    variables = model.init(jax.random.key(0), X)
    for again in (pickle.loads(pickle.dumps(model)), copy.copy(model), copy.deepcopy(model)):
        assert again == model and hash(again) == hash(model)
        assert_same(again.apply(variables, X), model.apply(variables, X))
    assert copy.deepcopy(model).inner is not model.inner


def test_the_package_itself_is_pickled_by_name() -> None:
    """A class of `__main__` refers to it as `nn`."""
    assert cloudpickle.loads(cloudpickle.dumps(nn)) is nn
    assert cloudpickle.loads(cloudpickle.dumps(nn.core)) is nn.core
