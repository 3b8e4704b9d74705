"""What Module promises, beside flax.linen: names, styles, variables, binding, cloning."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both, ours, shapes
from helpers.models import WIDTH, block, cheap, key_bits
from helpers.run import everything, keys, ramp

X = ramp(WIDTH)


def dense(lib: Library, features: int = WIDTH, **kwargs: Any) -> Any:
    return lib.nn.Dense(features, kernel_init=cheap, **kwargs)


def test_automatic_names_count_by_class() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Inner(nn.Module):
            @nn.compact
            def __call__(self, x):
                return dense(lib)(x)

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = dense(lib)(x)
                x = Inner()(x)
                x = dense(lib, name="mine")(x)
                x = Inner()(x)
                return dense(lib)(x)

        return everything(Model(), (X,))

    names = ["Dense_0", "Dense_1", "Inner_0", "Inner_1", "mine"]
    assert sorted(both(run)["variables"]["params"]) == names


def test_setup_names_attributes_lists_tuples_and_dicts() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                self.single = dense(lib)
                self.row = [dense(lib), [dense(lib)], dense(lib)]
                self.pair = (dense(lib), dense(lib))
                self.table = {"a": dense(lib), "b": {"c": dense(lib)}}
                self.unused = dense(lib)
                self.plain = {"not": 1, "modules": (2, 3)}

            def __call__(self, x):
                x = self.row[1][0](self.row[0](self.single(x)))
                x = self.table["b"]["c"](self.table["a"](self.pair[1](x)))
                return self.row[2](x) * self.plain["modules"][0]

        return everything(Model(), (X,))

    both(run)


def test_submodules_in_fields() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            first: Any
            several: Any
            table: Any

            @nn.compact
            def __call__(self, x):
                x = self.first(x)
                for layer in self.several:
                    x = layer(x)
                return self.table["k"](x)

        model = Model(dense(lib), [dense(lib), dense(lib, name="given")], {"k": dense(lib)})
        return everything(model, (X,))

    both(run)


def test_one_module_in_two_fields_is_one_set_of_variables() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Uses(nn.Module):
            inner: Any

            @nn.compact
            def __call__(self, x):
                return self.inner(x) * self.param("scale", cheap, ())

        class Model(nn.Module):
            def setup(self):
                self.shared = dense(lib)
                self.a = Uses(self.shared)
                self.b = Uses(self.shared)

            def __call__(self, x):
                return self.b(self.a(x)) + self.shared(x)

        return everything(Model(), (X,))

    assert set(both(run)["variables"]["params"]) == {"shared", "a", "b"}


def test_a_module_handed_to_two_compact_ones() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Uses(nn.Module):
            inner: Any

            @nn.compact
            def __call__(self, x):
                return self.inner(dense(lib)(x))

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                shared = dense(lib)
                return Uses(shared)(x) + Uses(shared, name="second")(x)

        return everything(Model(), (X,))

    both(run)


def test_param_in_every_form() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                a = self.param("a", cheap, (WIDTH,))
                b = self.param("b", lambda key: cheap(key, (WIDTH,)))
                c = self.param(
                    "c", lambda key, n, *, scale: cheap(key, (n,)) * scale, WIDTH, scale=2.0
                )
                d = self.param("d", lambda key: {"u": cheap(key, ()), "v": [cheap(key, (2,))]})
                e = self.param("e", nn.initializers.normal(0.1), (2, WIDTH), jnp.bfloat16)
                return x * a + b + c + d["u"] + d["v"][0].sum() + e.astype(x.dtype).sum(0)

        return everything(Model(), (X,))

    both(run)


def test_variables_in_every_form() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                seen = [self.has_variable("state", "count"), self.is_initializing()]
                count = self.variable("state", "count", lambda: jnp.zeros((), jnp.int32))
                total = self.variable("state", "total", jnp.zeros, (WIDTH,))
                tree = self.variable("cache", "tree", lambda: {"k": x, "v": (x, x * 2.0)})
                writable = [
                    self.is_mutable_collection(name) for name in ("state", "cache", "params")
                ]
                if self.is_mutable_collection("state"):
                    count.value += 1
                    self.put_variable("state", "total", total.value + x)
                got = self.get_variable("state", "total")
                missing = self.get_variable("state", "nothing", default=None)
                assert missing is None
                seen = jnp.array([*seen, *writable])
                return got, tree.value["v"][1], count.value, seen

        model = Model()
        variables = model.init(keys(), X)
        return (
            variables,
            model.apply(variables, X),
            model.apply(variables, X, mutable=["state"]),
            model.apply(variables, X, mutable=True),
            model.apply(variables, X, mutable="cache"),
            model.apply(variables, X, mutable=lib.core.DenyList("cache")),
            model.apply(variables, X, mutable=lib.core.DenyList(["cache", "params"])),
        )

    both(run)


def test_sow_and_its_reduction() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                for _ in range(3):
                    x = dense(lib)(x)
                    kept = self.sow("intermediates", "h", x)
                    self.sow(
                        "sums",
                        "s",
                        x,
                        init_fn=lambda: jnp.zeros(WIDTH),
                        reduce_fn=lambda a, b: a + b,
                    )
                self.sow("last", "x", x, reduce_fn=lambda old, new: (*old[:0], new))
                return x, jnp.array(kept)

        model = Model()
        variables = model.init(keys(), X)
        params = {"params": variables["params"]}
        return (
            variables,
            model.apply(params, X),
            model.apply(params, X, mutable=["intermediates", "sums", "last"]),
            model.apply(variables, X, mutable=["intermediates", "sums"]),
        )

    both(run)


@pytest.mark.parametrize("deep", [False, True])
def test_perturb(deep: bool) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Inner(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = dense(lib)(x)
                x = self.perturb("hidden", x)
                return self.perturb("again", x * 2.0, collection="probes")

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                return Inner()(x) if deep else Inner(name="in")(x) ** 2

        model = Model()
        variables = model.init(keys(), X)
        kept = {k: v for k, v in variables.items() if k != "params"}

        def loss(kept):
            return model.apply({"params": variables["params"], **kept}, X).sum()

        without = model.apply({"params": variables["params"]}, X)
        return variables, jax.grad(loss)(kept), without

    both(run)


def test_bind_and_unbind() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                self.encoder = dense(lib)
                self.decoder = [dense(lib), dense(lib)]

            def __call__(self, x):
                return self.decoder[1](self.encoder(x))

        model = Model()
        variables = model.init(keys(), X)
        bound = model.bind(variables)
        encoder, its = bound.encoder.unbind()
        decoder, others = bound.decoder[1].unbind()
        module, all_of_it = bound.unbind()
        assert module.scope is None
        assert encoder.name == "encoder" or encoder.name is None
        return (
            bound(X),
            bound.encoder(X),
            bound.variables,
            bound.encoder.variables,
            its,
            others,
            all_of_it,
            encoder.apply(its, X),
            encoder.name,
            decoder.name,
        )

    both(run)


def test_bind_mutable_with_rngs() -> None:
    def run(lib: Library) -> Any:
        model = block("direct_rng", lib)()
        variables = model.init(keys(), X, X)
        bound = model.bind(variables, rngs={"dropout": jax.random.key(3)}, mutable=["state"])
        first = bound(X, X)
        stat = block("state", lib)()
        made = stat.init(keys(), X, X)
        running = stat.bind(made, mutable=["batch_stats"])
        running(X, X)
        return first, bound.has_rng("dropout"), bound.has_rng("none"), running.variables

    both(run)


def test_clone_and_equality() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn
        layer = nn.Dense(3, use_bias=False)
        copy = layer.clone(features=5, name="n")
        inner = block("dense", lib)(features=2)
        again = inner.clone()
        return (
            copy.features,
            copy.use_bias,
            copy.name,
            layer.features,
            inner == again,
            inner == block("dense", lib)(features=3),
            hash(inner) == hash(again),
            inner is again,
            dataclasses.fields(inner)[0].name,
            [f.name for f in dataclasses.fields(type(inner))],
            dataclasses.replace(inner, features=9).features,
        )

    both(run)


def test_keys_and_paths() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Leaf(nn.Module):
            @nn.compact
            def __call__(self):
                first = key_bits(self.make_rng("dropout"))
                second = key_bits(self.make_rng("dropout"))
                return jnp.stack([first, second]), self.path, self.name

        class Model(nn.Module):
            def setup(self):
                self.leaves = {"k": [Leaf(), Leaf()]}

            def __call__(self):
                mine = key_bits(self.make_rng("dropout")), key_bits(self.make_rng("params"))
                return [leaf() for leaf in self.leaves["k"]], mine, self.path, self.name

        return Model().apply({}, rngs=keys(2))

    both(run)


def test_missing_stream_falls_back_to_params() -> None:
    def run(lib: Library) -> Any:
        model = block("direct_rng", lib)()
        made = model.init(jax.random.key(0), X, X)
        return made, model.apply(made, X, X, rngs={"params": jax.random.key(4)})

    both(run)


@pytest.mark.parametrize("typed", [True, False])
def test_default_initialisers_and_key_styles(typed: bool) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.relu(nn.Dense(5)(x))
                return nn.Dropout(0.5, deterministic=False)(nn.LayerNorm()(x))

        return everything(Model(), (X,), keys(9, typed=typed))

    both(run)


def test_lazy_init() -> None:
    def run(lib: Library) -> Any:
        model = block("nested", lib)()
        spec = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
        return model.lazy_init(keys(), spec, spec), model.init(keys(), X, X)

    lazy, eager = both(run)
    assert jax.tree.structure(lazy) == jax.tree.structure(eager)


def test_module_paths() -> None:
    def run(lib: Library) -> Any:
        paths = block("nested", lib)().module_paths(keys(), X, X)
        return {path: type(mdl).__name__ for path, mdl in paths.items()}

    both(run)


def test_merge_param() -> None:
    def run(lib: Library) -> Any:
        merge = lib.nn.merge_param
        with pytest.raises(ValueError, match="train"):
            merge("train", None, None)
        with pytest.raises(ValueError, match="train"):
            merge("train", True, False)
        return merge("train", True, None), merge("train", None, False)

    both(run)


def test_batch_apply() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.BatchApply(dense(lib))(x)

        return everything(Model(), (ramp(2, 2, WIDTH),))

    both(run)


def test_sequential_passes_tuples_and_dicts_on() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Pair(nn.Module):
            @nn.compact
            def __call__(self, x):
                return dense(lib)(x), x

        class Named(nn.Module):
            @nn.compact
            def __call__(self, a, b):
                return {"left": dense(lib)(a), "right": b}

        class Join(nn.Module):
            @nn.compact
            def __call__(self, left, right):
                return left + right

        return everything(nn.Sequential([Pair(), Named(), Join(), dense(lib), jnp.tanh]), (X,))

    both(run)


def test_functions_of_a_module_as_init_and_apply() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                self.a = dense(lib)

            def __call__(self, x):
                return self.a(x)

        def f(mdl, x):
            mdl.sow("intermediates", "x", x)
            return mdl(x) * 2.0

        model = Model()
        variables = nn.init(f, model)(keys(), X)
        return (
            variables,
            nn.apply(f, model, mutable=["intermediates"])(variables, X),
            nn.init_with_output(f, model, mutable=["params"])(keys(), X),
            nn.apply(f, model, capture_intermediates=True)(variables, X),
        )

    both(run)


def test_mappings_of_any_kind_go_in_and_dicts_come_out() -> None:
    lib = ours()
    model = block("dense", lib)()
    variables = model.init(keys(), X, X)
    assert type(variables) is dict
    assert type(variables["params"]["Dense_0"]) is dict
    frozen = types.MappingProxyType(
        {"params": types.MappingProxyType({"Dense_0": variables["params"]["Dense_0"]})}
    )
    out, changed = model.apply(frozen, X, X, mutable=["state"])
    assert type(changed) is dict
    assert shapes(out) == ((WIDTH,), (WIDTH,))
