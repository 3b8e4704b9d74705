"""Modules in lifts: targets, methods, closures, ties, tracers, static arguments."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import liftax as nn
from liftax import errors

from .misuse import ENDS, assert_passes, assert_refused, cases_of, misuse

STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
LOOP_SHARED = {"variable_broadcast": "params", "split_rngs": {"params": False}}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, *_):
        return nn.relu(nn.Dense(4)(x)), None


class Coder(nn.Module):
    def setup(self):
        self.code = nn.Dense(4)

    def encode(self, x):
        return self.code(x)

    def decode(self, x):
        return self.code(x)


class Switchable(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(4)(x) if train else x


# --- what is lifted --------------------------------------------------------------------


@misuse(
    errors.TransformTargetError,
    "scan: expected a module class",
    "an instance of Layer",
    "nn.scan(Layer, ...)(...)",
    at=None,
)
def instance_for_a_class(mdl, x, wrong):
    target = Layer(parent=None) if wrong else Layer
    stack = nn.scan(target, **STACKED, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(errors.TransformTargetError, "jit: expected a module class", "instance of Dense", at=None)
def instance_in_jit(mdl, x, wrong):
    layer = nn.Dense(4, name="layer")
    if wrong:
        return nn.jit(layer)(x)
    return nn.jit(lambda layer, x: layer(x))(layer, x)


@misuse(errors.TransformTargetError, "vmap: expected a module class", "found float32[2,4]", at=None)
def array_for_a_class(mdl, x, wrong):
    return nn.vmap(x if wrong else Layer, **STACKED)(name="each")(x)[0]


@misuse(errors.TransformTargetError, "remat: expected a module class", "found str", at=None)
def name_for_a_class(mdl, x, wrong):
    return nn.remat("Layer" if wrong else Layer)(name="saved")(x)[0]


@misuse(
    errors.TransformTargetError,
    "scan of body: the first argument",
    "found: float32[2,4]",
    "self",
    at=None,
)
def module_forgotten(mdl, x, wrong):
    def body(mdl, x, _):
        return x, None

    run = nn.scan(body, length=3)
    return run(x, None)[0] if wrong else run(mdl, x, None)[0]


@misuse(errors.CallCompactUnboundModuleError, "Dense", "unbound", at=None)
def unbound_module_in_a_lifted_function(mdl, x, wrong):
    def body(layer, x):
        return layer(x)

    layer = nn.Dense(4, parent=None) if wrong else nn.Dense(4, name="layer")
    return nn.remat(body)(layer, x)


@misuse(
    errors.TransformTargetError, "remat of body", "found: list of 1 value", "container", at=None
)
def unbound_modules_in_a_container(mdl, x, wrong):
    def body(layers, x):
        return layers[0](x)

    layer = nn.Dense(4, parent=None) if wrong else nn.Dense(4, name="layer")
    return nn.remat(body)([layer], x)


@misuse(
    errors.LiftMethodError,
    "vmap: methods names 'encod'",
    "Coder",
    "did you mean 'encode'?",
    at=None,
)
def method_misspelt(mdl, x, wrong):
    methods = ["encod" if wrong else "encode", "decode"]
    return nn.vmap(Coder, **SHARED, methods=methods)(name="coder").encode(x)


@misuse(errors.LiftMethodError, "scan: methods names 'step_'", "step", at=None)
def method_misspelt_in_a_mapping(mdl, x, wrong):
    class Cell(nn.Module):
        @nn.compact
        def step(self, x, _):
            return nn.Dense(4)(x), None

    methods = {"step_" if wrong else "step": {"length": 3}}
    return nn.scan(Cell, **STACKED, methods=methods)(name="cell").step(x, None)[0]


@misuse(errors.LiftMethodError, "scan", "argument 'lenght'", "did you mean 'length'?", at=None)
def argument_of_a_method_misspelt(mdl, x, wrong):
    class Cell(nn.Module):
        @nn.compact
        def step(self, x, _):
            return nn.Dense(4)(x), None

    methods = {"step": {"lenght" if wrong else "length": 3}}
    return nn.scan(Cell, **STACKED, methods=methods)(name="cell").step(x, None)[0]


@misuse(
    errors.LiftMethodError,
    "remat: methods names 'code', which is no method of Named",
    "expected: methods= of 'encode'",
    at=None,
)
def field_for_a_method(mdl, x, wrong):
    class Named(nn.Module):
        code: str = "utf-8"

        @nn.compact
        def encode(self, x):
            return nn.Dense(4)(x)

    lifted = nn.remat(Named, methods=["code" if wrong else "encode"])
    return lifted(name="coder").encode(x)


@misuse(errors.TransformTargetError, "vmap: methods= goes with a module class", at=None)
def methods_of_a_function(mdl, x, wrong):
    def body(mdl, x):
        return 2 * x

    return nn.vmap(body, methods=["__call__"] if wrong else None)(mdl, x)


@misuse(errors.TransformTargetError, "remat: methods expected a list of names", at=None)
def arguments_for_methods_of_remat(mdl, x, wrong):
    methods = {"encode": {"policy": None}} if wrong else ["encode"]
    return nn.remat(Coder, methods=methods)(name="coder").encode(x)


@misuse(errors.TransformedMethodReturnValueError, "body", "Dense", "return arrays", at=None)
def module_returned(mdl, x, wrong):
    def body(mdl, x):
        layer = nn.Dense(4, name="layer")
        return (layer(x), layer) if wrong else (layer(x), None)

    return nn.remat(body)(mdl, x)[0]


@misuse(errors.TransformedMethodReturnValueError, "Dense", "return arrays", at=None)
def module_returned_in_a_dict(mdl, x, wrong):
    def body(mdl, x):
        layer = nn.Dense(4, name="layer")
        y = layer(x)
        return {"y": y, "layer": layer} if wrong else {"y": y}

    return nn.remat(body)(mdl, x)["y"]


@misuse(errors.TransformedMethodReturnValueError, "Variable", "a variable's value", at=None)
def variable_returned(mdl, x, wrong):
    def body(mdl, x):
        h = mdl.variable("state", "h", jnp.zeros, (4,))
        return h if wrong else h.value

    return x + nn.remat(body)(mdl, x)


# --- closed over --------------------------------------------------------------------------


def closing(name, lift, *args, **options):
    """A lifted function that uses a module from outside; the twin gets it as an argument."""

    def body_of(mdl, x, wrong):
        layer = nn.Dense(4, name="layer")
        layer(x)  # made outside, so that ties are no matter

        def outside(mdl, x, *_):
            return (layer(x), None) if name == "scan" else layer(x)

        def inside(layer, x, *_):
            return (layer(x), None) if name == "scan" else layer(x)

        run = lift(outside if wrong else inside)
        y = run(mdl if wrong else layer, x, *args)
        return y[0] if name == "scan" else y

    body_of.__name__ = f"closed_over_in_{name}"
    return misuse(
        errors.ClosedOverModuleError,
        f"used inside {name} of outside",
        "def outside(mdl, layer, ...)",
        at="layer",
        **options,
    )(body_of)


closed_over_in_scan = closing("scan", lambda f: nn.scan(f, **LOOP_SHARED, length=3), None)
closed_over_in_vmap = closing("vmap", lambda f: nn.vmap(f, **SHARED))
closed_over_in_remat = closing("remat", nn.remat)
closed_over_in_jit = closing("jit", nn.jit)
closed_over_in_map_variables = closing(
    "map_variables", lambda f: nn.map_variables(f, "batch_stats")
)
closed_over_in_fold_rngs = closing("fold_rngs", nn.fold_rngs)


def closing_at_once(name, call):
    """The same for lifts that are called with their function."""

    def body_of(mdl, x, wrong):
        layer = nn.Dense(4, name="layer")
        layer(x)

        def outside(mdl, x, *_):
            return layer(x)

        def inside(layer, x, *_):
            return layer(x)

        return call(outside if wrong else inside, mdl if wrong else layer, x)

    body_of.__name__ = f"closed_over_in_{name}"
    return misuse(
        errors.ClosedOverModuleError,
        f"used inside {name} of outside",
        "def outside(mdl, layer, ...)",
        at="layer",
    )(body_of)


closed_over_in_cond = closing_at_once("cond", lambda f, m, x: nn.cond(True, f, f, m, x))
closed_over_in_switch = closing_at_once("switch", lambda f, m, x: nn.switch(0, [f, f], m, x))
closed_over_in_vjp = closing_at_once("vjp", lambda f, m, x: nn.vjp(f, m, x)[0])
closed_over_in_jvp = closing_at_once("jvp", lambda f, m, x: nn.jvp(f, m, (x,), (x,), {})[0])
closed_over_in_custom_vjp = closing_at_once(
    "custom_vjp",
    lambda f, m, x: nn.custom_vjp(f, lambda m, x: nn.vjp(f, m, x), lambda pull, y: pull(y))(m, x),
)
closed_over_in_while_loop = closing_at_once(
    "while_loop",
    lambda f, m, x: nn.while_loop(lambda m, x: x.sum() < 0, f, m, x),
)


@misuse(errors.ClosedOverModuleError, "used inside value_and_grad of energy", at="layer")
def closed_over_in_grad(mdl, x, wrong):
    layer = nn.Dense(4, name="layer")
    layer(x)

    def energy(mdl, x):
        return layer(x).sum() if wrong else mdl(x).sum()

    return nn.grad(energy, mdl if wrong else layer, x)[0]


@misuse(errors.ClosedOverModuleError, "used inside scan of Layer", at="layer")
def closed_over_in_a_method(mdl, x, wrong):
    layer = nn.Dense(4, name="layer")
    layer(x)

    class Layer(nn.Module):
        inner: nn.Module

        @nn.compact
        def __call__(self, x, _):
            return (layer if wrong else self.inner)(x), None

    inner = None if wrong else layer
    return nn.scan(Layer, **LOOP_SHARED, length=3)(inner, name="stack")(x, None)[0]


@misuse(
    errors.ClosedOverModuleError,
    "used inside scan of body",
    "not its own first argument",
    "def body(mdl, ...)",
)
def self_instead_of_the_argument(mdl, x, wrong):
    def body(inner, x, _):
        w = (mdl if wrong else inner).param("w", nn.initializers.ones, (4,))
        return x * w, None

    return nn.scan(body, **STACKED, length=3)(mdl, x, None)[0]


@misuse(errors.ClosedOverModuleError, "used inside scan of body")
def variable_written_from_outside(mdl, x, wrong):
    h = mdl.variable("state", "h", jnp.zeros, (4,))

    def body(mdl, x, _):
        if wrong:
            h.value = x[0]
        else:
            mdl.put_variable("state", "h", x[0])
        return x, None

    return nn.scan(body, variable_carry="state", length=3)(mdl, x, None)[0]


@misuse(errors.ClosedOverModuleError, "used inside scan of body", apply={"mutable": ["state"]})
def stale_value_read_from_outside(mdl, x, wrong):
    h = mdl.variable("state", "h", jnp.zeros, (4,))

    def body(inner, x, _):
        old = h.value if wrong else inner.get_variable("state", "h")
        inner.put_variable("state", "h", old + 1)
        return x, None

    return nn.scan(body, variable_carry="state", length=3)(mdl, x, None)[0]


@misuse(errors.ClosedOverModuleError, "used inside vmap of body", apply=True)
def whole_stack_read_from_outside(mdl, x, wrong):
    def body(inner, x):
        if inner.is_initializing():
            inner.variable("state", "h", jnp.zeros, ())
        return x + (mdl if wrong else inner).get_variable("state", "h")

    return nn.vmap(body, variable_axes={"state": 0})(mdl, x)


@misuse(errors.ClosedOverModuleError, "used inside remat of body")
def key_drawn_outside(mdl, x, wrong):
    def body(inner, x):
        key = (mdl if wrong else inner).make_rng("params")
        return x + jax.random.normal(key, x.shape)

    return nn.remat(body)(mdl, x)


@misuse(errors.ClosedOverModuleError, "used inside vmap of body", at=None)
def submodule_made_of_the_outer_module(mdl, x, wrong):
    def body(inner, x):
        return nn.Dense(4, name="layer", parent=mdl if wrong else inner)(x)

    return nn.vmap(body, **STACKED)(mdl, x)


# --- ties ------------------------------------------------------------------------------------


class Around(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x, *_):
        return self.inner(x), None


@misuse(
    errors.TiedModulesError,
    "scan of Around",
    "shared/kernel",
    "axis 0",
    "variable_broadcast='params'",
    at="stack",
)
def tied_module_in_scan(mdl, x, wrong):
    shared = nn.Dense(4, name="shared")
    x = shared(x)
    roles = STACKED if wrong else LOOP_SHARED
    return nn.scan(Around, **roles, length=3)(shared, name="stack")(x, None)[0]


@misuse(
    errors.TiedModulesError,
    "vmap of Around",
    "shared/kernel",
    "variable_axes={'params': None}",
    at="each",
)
def tied_module_in_vmap(mdl, x, wrong):
    shared = nn.Dense(4, name="shared")
    x = shared(x)
    return nn.vmap(Around, **(STACKED if wrong else SHARED))(shared, name="each")(x)[0]


@misuse(errors.TiedModulesError, "scan of body", "shared/kernel", "axis 1", at="shared")
def tied_module_as_an_argument(mdl, x, wrong):
    shared = nn.Dense(4, name="shared")
    x = shared(x)

    def body(layer, x, _):
        return layer(x), None

    if wrong:
        run = nn.scan(body, variable_axes={"params": 1}, split_rngs={"params": True}, length=3)
    else:
        run = nn.scan(body, **LOOP_SHARED, length=3)
    return run(shared, x, None)[0]


@misuse(
    errors.TiedModulesError,
    "shared/kernel",
    "shape (3, 4, 4)",
    "variable_broadcast='params'",
    at="shared",
)
def tied_module_used_after_the_lift(mdl, x, wrong):
    shared = nn.Dense(4, name="shared")
    roles = STACKED if wrong else LOOP_SHARED
    x, _ = nn.scan(Around, **roles, length=3)(shared, name="stack")(x, None)
    return shared(x)


# --- tracers ---------------------------------------------------------------------------------


def leaking(name, transform):
    """A variable written inside a bare JAX transformation."""

    def body(mdl, x, wrong):
        h = mdl.variable("state", "h", jnp.zeros, (2, 4))

        def run(x):
            if wrong:
                h.value = 2 * x
            return 2 * x

        y = transform(run, x)
        h.value = 2 * x
        return y

    body.__name__ = f"written_in_{name}"
    return misuse(
        errors.LeakedTracerError,
        "variable 'h' of collection 'state'",
        "found: float32",
        "nn.vmap for jax.vmap",
    )(body)


written_in_jit = leaking("jit", lambda f, x: jax.jit(f)(x))
written_in_vmap = leaking("vmap", lambda f, x: jax.vmap(f)(x))
written_in_checkpoint = leaking("checkpoint", lambda f, x: jax.checkpoint(f)(x))
written_in_grad = leaking("grad", lambda f, x: jax.grad(lambda x: f(x).sum())(x))
written_in_cond = leaking("cond", lambda f, x: jax.lax.cond(True, f, lambda x: x, x))
written_in_scan = leaking(
    "scan", lambda f, x: jax.lax.scan(lambda c, _: (f(c), None), x, None, 2)[0]
)


@misuse(
    errors.LeakedTracerError,
    "variable 'mean' of collection 'intermediates'",
    apply={"mutable": ["intermediates"]},
)
def sown_in_jax_vmap(mdl, x, wrong):
    def run(x):
        if wrong:
            mdl.sow("intermediates", "mean", x.mean())
        return x

    y = jax.vmap(run)(x)
    if not wrong:
        mdl.sow("intermediates", "mean", x.mean(1))
    return y


@misuse(errors.LeakedTracerError, "variable 'h' of collection 'state'")
def kept_from_a_scan(mdl, x, wrong):
    kept = [x]

    def body(mdl, x, _):
        kept.append(x + 1)
        return x + 1, None

    y, _ = nn.scan(body, length=3)(mdl, x, None)
    mdl.variable("state", "h", lambda: kept[-1] if wrong else y)
    return x


@misuse(errors.LeakedTracerError, "variable 'h' of collection 'state'")
def kept_from_a_vmap(mdl, x, wrong):
    kept = [x]

    def body(mdl, x):
        kept.append(x + 1)
        return x + 1

    y = nn.vmap(body)(mdl, x)
    mdl.variable("state", "h", lambda: kept[-1] if wrong else y)
    return x


@misuse(errors.LeakedTracerError, "variable 'h' of collection 'state'")
def kept_from_a_remat(mdl, x, wrong):
    kept = [x]

    def body(mdl, x):
        kept.append(x + 1)
        return x + 1

    y = nn.remat(body)(mdl, x)
    mdl.put_variable("state", "h", kept[-1] if wrong else y)
    return x


@misuse(
    errors.LeakedTracerError,
    "variable 'h' of collection 'state'",
    "a value that the transformed function returns",
    apply={"mutable": ["state"]},
)
def kept_sown(mdl, x, wrong):
    kept = [x]

    def body(mdl, x):
        kept.append(x + 1)
        return x + 1

    y = nn.jit(body)(mdl, x)
    mdl.sow("state", "h", kept[-1] if wrong else y)
    return x


def creating(name, transform):
    """A module whose variables are made inside a bare JAX transformation."""

    def body(mdl, x, wrong):
        layer = nn.Dense(4, name="layer")
        if not wrong:
            layer(x)  # made outside; there is nothing left to make inside
        return transform(layer, x)

    body.__name__ = f"made_in_{name}"
    return misuse(
        errors.JaxTransformError,
        "variable 'kernel' of collection 'params' is made inside a JAX transformation",
        "nn.scan for jax.lax.scan",
        at="layer",
    )(body)


made_in_jit = creating("jit", lambda f, x: jax.jit(lambda x: f(x))(x))
made_in_scan = creating("scan", lambda f, x: jax.lax.scan(lambda c, _: (f(c), None), x, None, 2)[0])
made_in_cond = creating("cond", lambda f, x: jax.lax.cond(True, lambda x: f(x), jnp.sin, x))
made_in_checkpoint = creating("checkpoint", lambda f, x: jax.checkpoint(lambda x: f(x))(x))


@misuse(
    errors.JaxTransformError,
    "variable 'w' of collection 'params' is made inside a JAX transformation",
)
def parameter_of_the_example(mdl, x, wrong):
    def row(row):
        return row * mdl.param("w", lambda key: row if wrong else jnp.ones(4))

    return jax.vmap(row)(x)


# --- static arguments ---------------------------------------------------------------------------


@misuse(errors.StaticArgumentError, "remat of Switchable", "static_argnums has 5", at="saved")
def static_argument_out_of_range(mdl, x, wrong):
    return nn.remat(Switchable, static_argnums=5 if wrong else 2)(name="saved")(x, True)


@misuse(errors.StaticArgumentError, "jit of Switchable", "static_argnums has -4", at="fast")
def negative_static_argument_out_of_range(mdl, x, wrong):
    return nn.jit(Switchable, static_argnums=-4 if wrong else -1)(name="fast")(x, True)


class Unkeyed:
    """What compares, and has no hash."""

    __hash__ = None

    def __eq__(self, other):
        return isinstance(other, Unkeyed)

    def __len__(self):
        return 1


@misuse(
    errors.StaticArgumentError, "jit of body", "argument 'names'", "type Unkeyed", cause=TypeError
)
def static_argument_without_a_hash(mdl, x, wrong):
    def body(mdl, x, names):
        return x * len(names)

    return nn.jit(body, static_argnums=2)(mdl, x, Unkeyed() if wrong else (1,))


@misuse(
    errors.StaticArgumentError,
    "jit: static_argnums expected positions",
    "found str",
    "static_argnames",
    at=None,
)
def static_argument_by_name(mdl, x, wrong):
    def body(mdl, x, train):
        return 2 * x if train else x

    if wrong:
        return nn.jit(body, static_argnums="train")(mdl, x, True)
    return nn.jit(body, static_argnames="train")(mdl, x, train=True)


@misuse(errors.StaticArgumentError, "jit of body", "donate_argnums has 4", "1 to 1", at=None)
def donated_argument_out_of_range(mdl, x, wrong):
    def body(mdl, x):
        return 2 * x

    return nn.jit(body, donate_argnums=4 if wrong else ())(mdl, x)


@misuse(
    errors.StaticArgumentError,
    "jit of Switchable",
    "argument 'train'",
    "found: bool[]",
    "static_argnums",
    cause=jax.errors.TracerBoolConversionError,
    at="fast",
)
def branch_on_a_traced_argument(mdl, x, wrong):
    fast = nn.jit(Switchable, static_argnums=() if wrong else 2)(name="fast")
    return fast(x, True)


@misuse(
    errors.StaticArgumentError,
    "remat of Switchable",
    "argument 'train'",
    "static_argnums",
    cause=jax.errors.TracerBoolConversionError,
    at="saved",
    apply=True,
)
def branch_on_a_traced_argument_of_remat(mdl, x, wrong):
    saved = nn.remat(Switchable, static_argnums=() if wrong else 2)(name="saved")
    return saved(x, True)


@misuse(
    errors.StaticArgumentError,
    "jit of body",
    "argument 'n'",
    "static_argnames",
    cause=TypeError,
)
def shape_of_a_traced_argument(mdl, x, wrong):
    def body(mdl, x, *, n):
        return x + jnp.zeros(n).sum()

    return nn.jit(body, static_argnames=() if wrong else "n")(mdl, x, n=3)


@misuse(errors.TransformTargetError, "jit: methods expected a list of names", at=None)
def arguments_for_methods_of_jit(mdl, x, wrong):
    methods = {"encode": {"inline": True}} if wrong else ["encode"]
    return nn.jit(Coder, methods=methods)(name="coder").encode(x)


@misuse(errors.LiftMethodError, "vmap: methods expected names", "found int", at=None)
def methods_by_number(mdl, x, wrong):
    methods = 1 if wrong else "encode"
    return nn.vmap(Coder, **SHARED, methods=methods)(name="coder").encode(x)


@misuse(errors.LiftMethodError, "remat: methods names '__call__'", "expected: methods=", at=None)
def class_without_a_call(mdl, x, wrong):
    methods = None if wrong else ["encode"]
    return nn.remat(Coder, methods=methods)(name="coder").encode(x)


@cases_of(globals())
def test_refused(case, nest):
    assert_refused(case, nest)


@cases_of(globals(), ENDS)
def test_twin_passes(case, nest):
    assert_passes(case, nest)
