"""Features of Module beyond the everyday ones, beside flax.linen: classes, methods, wrappers."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, Generic, TypeVar

import cloudpickle
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import Library, both
from helpers.models import WIDTH, block, cheap
from helpers.run import everything, keys, ramp

X = ramp(WIDTH)


def dense(lib: Library, features: int = WIDTH, **kwargs: Any) -> Any:
    return lib.nn.Dense(features, kernel_init=cheap, **kwargs)


def test_keyword_only_fields_inheritance_and_defaults() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Base(nn.Module):
            width: int = 4
            scale: float = dataclasses.field(default=2.0, kw_only=True)
            items: Any = dataclasses.field(default_factory=lambda: [1, 2])

        class Derived(Base):
            depth: int = 2

            @nn.compact
            def __call__(self, x):
                for _ in range(self.depth):
                    x = dense(lib, self.width)(x) * self.scale
                return x

        class Required(nn.Module, kw_only=True):
            first: int
            second: int = 3

            @nn.compact
            def __call__(self, x):
                return dense(lib, self.first + self.second)(x)

        class After(Required):
            third: int

            @nn.compact
            def __call__(self, x):
                return dense(lib, self.first + self.third)(x)

        model = Derived(3, [5], 1, scale=0.5)
        with pytest.raises(TypeError, match="first"):
            Required()
        return (
            everything(model, (X,)),
            everything(Required(first=2), (X,)),
            everything(After(3, first=2), (X,)),
            [f.name for f in dataclasses.fields(Derived)],
            [f.name for f in dataclasses.fields(After)],
            Derived().items,
        )

    both(run)


def test_post_init_override() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            width: int
            double: Any = None

            def __post_init__(self):
                if self.double is None:
                    self.double = self.width * 2
                super().__post_init__()

            @nn.compact
            def __call__(self, x):
                return dense(lib, self.double)(x)

        class Parent(nn.Module):
            @nn.compact
            def __call__(self, x):
                return Model(2)(Model(3)(x))

        return everything(Model(2), (X,)), everything(Parent(), (X,))

    both(run)


def test_generic_modules() -> None:
    T = TypeVar("T")

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Box(nn.Module, Generic[T]):
            inner: T

            @nn.compact
            def __call__(self, x):
                return self.inner(x)

        class Concrete(Box[Any]):
            @nn.compact
            def __call__(self, x):
                return self.inner(x) * 2.0

        first = everything(Box[Any](dense(lib)), (X,))
        return first, everything(Concrete(dense(lib)), (X,)), Box.__name__

    both(run)


def test_methods_by_name_by_function_and_from_outside() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                self.a = dense(lib)
                self.b = dense(lib, 2)

            def encode(self, x):
                return self.a(x)

            def __call__(self, x):
                return self.b(self.encode(x))

        def outside(mdl, x, *, times=1.0):
            return mdl.encode(x) * times

        model = Model()
        variables = model.init(keys(), X)
        return (
            variables,
            model.init(keys(), X, method="encode"),
            model.init(keys(), X, method=Model.encode),
            model.apply(variables, X, method="encode"),
            model.apply(variables, X, method=Model.encode),
            model.apply(variables, X, method=model.encode),
            model.apply(variables, X, method=outside, times=3.0),
            model.init_with_output(keys(), X),
            model.init_with_output(keys(), X, method=outside),
            nn.apply(outside, model)(variables, X),
            nn.init(outside, model)(keys(), X),
            nn.init_with_output(outside, model)(keys(), X),
        )

    both(run)


def test_methods_of_children_through_apply() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                self.a = dense(lib)

            def __call__(self, x):
                return self.a(x)

        model = Model()
        variables = model.init(keys(), X)
        return model.apply(variables, X, method=lambda mdl, x: mdl.a(x) + mdl(x))

    both(run)


def test_share_scope() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Wide(nn.Module):
            def setup(self):
                self.w = dense(lib)

            def __call__(self, x):
                return jnp.tanh(self.w(x))

        class Wrapper(nn.Module):
            inner: Any

            def setup(self):
                nn.share_scope(self, self.inner)
                self.more = dense(lib)

            def __call__(self, x):
                return self.more(self.inner(x))

        class Model(nn.Module):
            def setup(self):
                self.wrapped = Wrapper(Wide())

            def __call__(self, x):
                return self.wrapped(x)

        return everything(Model(), (X,)), everything(Wrapper(Wide()), (X,))

    found, _ = both(run)
    assert set(found["variables"]["params"]["wrapped"]) == {"w", "more"}


def test_several_compact_methods() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                return dense(lib)(self.other(dense(lib)(x)))

            @nn.compact
            def other(self, x):
                return dense(lib)(x)

        def one_after_the_other(mdl, x):
            return mdl.other(x) + mdl(x)

        model = Model()
        return (
            everything(model, (X,)),
            everything(model, (X,), method="other"),
            everything(model, (X,), method=one_after_the_other),
        )

    both(run)


def test_compact_name_scope() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = self.up(x)
                x = dense(lib)(x)
                return self.down(self.up(x))

            @nn.compact_name_scope
            def up(self, x):
                return dense(lib)(x)

            @nn.compact_name_scope
            def down(self, x):
                return dense(lib)(dense(lib)(x)) * self.param("scale", cheap, ())

        return everything(Model(), (X,))

    assert {"up", "down", "Dense_0", "scale"} == set(both(run)["variables"]["params"])


def test_a_dtype_of_numpy_is_an_argument() -> None:
    def run(lib: Library) -> Any:
        class Model(lib.nn.Module):
            @lib.nn.compact
            def __call__(self, x, dtype):
                return dense(lib, dtype=dtype)(x)

        # A class that has a shape and a dtype, for its instances.
        variables = Model().init(keys(), X, np.float16)
        return variables, Model().apply(variables, X, dtype=np.float16)

    both(run)


def test_nowrap() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            width: int = WIDTH

            @nn.nowrap
            def make(self, name=None):
                return nn.Dense(self.width, kernel_init=cheap, name=name)

            @nn.compact
            def __call__(self, x):
                return self.make("given")(self.make()(x))

        return everything(Model(), (X,)), Model(5).make().features

    both(run)


@pytest.mark.parametrize("capture", [True, "dense", "methods"])
def test_capture_intermediates(capture: Any) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                self.a = dense(lib)
                self.b = block("dense", lib)()

            def helper(self, x):
                return self.a(x)

            def __call__(self, x):
                return self.b(self.helper(x), self.a(x))

        keep = {
            True: True,
            "dense": lambda mdl, name: isinstance(mdl, nn.Dense),
            "methods": lambda mdl, name: name in ("helper", "__call__"),
        }[capture]
        model = Model()
        variables = model.init(keys(), X)
        return (
            model.apply(variables, X, capture_intermediates=keep),
            model.apply(variables, X, capture_intermediates=keep, mutable=["intermediates"]),
            model.init(keys(), X, capture_intermediates=keep),
        )

    both(run)


def test_intercept_methods() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn
        seen: list[Any] = []

        def note(f, args, kwargs, context):
            kind = type(context.module).__name__
            seen.append((context.method_name, kind, context.module.path, len(args), sorted(kwargs)))
            return f(*args, **kwargs)

        def double(f, args, kwargs, context):
            out = f(*args, **kwargs)
            return out * 2.0 if isinstance(context.module, nn.Dense) else out

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x, *, bias=0.0):
                return dense(lib)(x) + bias

        model = Model()
        variables = model.init(keys(), X)
        with nn.intercept_methods(note), nn.intercept_methods(double):
            out = model.apply(variables, X, bias=1.0)
        return out, model.apply(variables, X), seen

    both(run)


def test_copies_and_pickles() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn
        ones = nn.initializers.ones  # the default initialisers are closures: pickle refuses them
        layer = nn.Dense(WIDTH, use_bias=False, kernel_init=ones)
        stack = nn.Sequential([layer, nn.Dense(2, kernel_init=ones)])
        variables = stack.init(keys(), X)
        out = stack.apply(variables, X)
        again = []
        for twin in (copy.copy(stack), copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
            assert twin == stack
            again.append(twin.apply(variables, X))

        class Local(nn.Module):
            width: int

            @nn.compact
            def __call__(self, x):
                return dense(lib, self.width)(x)

        local = cloudpickle.loads(cloudpickle.dumps(Local(2)))
        bound = stack.bind(variables)
        return out, again, local.init(keys(), X), copy.copy(bound)(X)

    both(run)


def test_a_lifted_class_travels_by_cloudpickle() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        # its own class: cloudpickle writes what it loads over a class that is still there
        class Local(nn.Module):
            width: int

            @nn.compact
            def __call__(self, c, x):
                return dense(lib, self.width)(c) + x, x

        lifted = nn.vmap(Local, variable_axes={"params": 0}, split_rngs={"params": True})
        model = lifted(WIDTH)
        twin = cloudpickle.loads(cloudpickle.dumps(model))
        args = (ramp(2, WIDTH), ramp(2, WIDTH))
        return model.init(keys(), *args), twin.init(keys(), *args)

    both(run)


def test_modules_passed_as_arguments() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Uses(nn.Module):
            @nn.compact
            def __call__(self, other, x):
                return other(dense(lib)(x)) + self.param("b", cheap, (WIDTH,))

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                other = dense(lib, name="other")
                return Uses()(other, Uses(name="u")(other, x))

        return everything(Model(), (X,))

    both(run)


def test_attributes_set_in_setup_and_computed_properties() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            width: int = WIDTH

            def setup(self):
                self.twice = self.width * 2
                self.w = self.param("w", cheap, (self.twice,))
                self.state = self.variable("state", "n", jnp.zeros, ())
                self.layer = dense(lib)

            @property
            def half(self):
                return self.layer(self.w[: self.width]) / 2.0

            def __call__(self, x):
                if self.is_mutable_collection("state") and not self.is_initializing():
                    self.state.value = self.state.value + 1.0
                return x * self.half + self.twice

        return everything(Model(), (X,))

    both(run)


def test_setup_runs_when_an_attribute_is_read() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Table(nn.Module):
            def setup(self):
                self.embedding = self.param("embedding", cheap, (4, WIDTH))

            def __call__(self, i):
                return self.embedding[i]

        class Model(nn.Module):
            def setup(self):
                self.table = Table()

            def __call__(self, x):
                return x @ self.table.embedding.T

        return everything(Model(), (X,))

    both(run)
