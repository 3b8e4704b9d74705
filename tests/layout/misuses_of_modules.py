"""More misuses, of modules in lifts and by themselves; see `misuses`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import liftax as nn
from liftax import errors

from .misuses import MAPPED, MISUSES, SHARED, STACKED, misuse

__all__ = ["MISUSES"]


# -- modules in lifts --------------------------------------------------------------------------


def closes_over(lift, *args):
    def call(mdl, x, wrong):
        dense = nn.Dense(4, name="dense")
        if wrong:
            return lift(lambda mdl, x, *_: (dense(x), None))(mdl, x, *args)
        return lift(lambda dense, x, *_: (dense(x), None))(dense, x, *args)

    return call


for _name, _lift, _args in (
    ("scan", lambda body: nn.scan(body, **STACKED, length=3), (None,)),
    ("vmap", lambda body: nn.vmap(body, **MAPPED), ()),
    ("remat", nn.remat, ()),
    ("jit", nn.jit, ()),
):
    _call = closes_over(_lift, *_args)
    _call.__name__ = f"{_name}_over_a_closed_over_module"
    misuse(errors.ClosedOverModuleError, r"/dense\b.*: used inside")(_call)


class Holds(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x, *_):
        return self.inner(x), None


@misuse(errors.TiedModulesError, r"one module used both inside and outside of scan")
def module_tied_into_a_scan(mdl, x, wrong):
    shared = nn.Dense(4, name="shared")
    x = shared(x)
    return nn.scan(Holds, **(STACKED if wrong else SHARED), length=3)(shared)(x, None)


@misuse(errors.TiedModulesError, r"one module used both inside and outside of vmap")
def module_tied_into_a_map(mdl, x, wrong):
    shared = nn.Dense(4, name="shared")
    x = shared(x)
    return nn.vmap(Holds, **(STACKED if wrong else MAPPED))(shared)(x)


@misuse(errors.TransformTargetError, r"an instance of Dense")
def lift_of_an_instance(mdl, x, wrong):
    if wrong:
        return nn.remat(nn.Dense(4, parent=None))(x)
    return nn.remat(nn.Dense)(4)(x)


@misuse(errors.TransformTargetError, r"found int")
def lift_of_a_number(mdl, x, wrong):
    return nn.vmap(3 if wrong else nn.Dense, **MAPPED)(4)(x)


@misuse(errors.LiftMethodError, r"'encoed'")
def method_misspelt(mdl, x, wrong):
    class Coder(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)

        def encode(self, x):
            return self.dense(x)

    lifted = nn.vmap(Coder, **MAPPED, methods=["encoed" if wrong else "encode"])
    return lifted().encode(x)


def returns_a_module(lift):
    def call(mdl, x, wrong):
        def body(mdl, x):
            dense = nn.Dense(4, name="dense", parent=mdl)
            return (dense(x), dense) if wrong else dense(x)

        return lift(body)(mdl, x)

    return call


for _name, _lift in (
    ("jit", nn.jit),
    ("remat", nn.remat),
    ("vmap", lambda body: nn.vmap(body, **MAPPED)),
):
    _call = returns_a_module(_lift)
    _call.__name__ = f"module_returned_from_{_name}"
    misuse(errors.TransformedMethodReturnValueError, r"cannot leave the lift")(_call)


class Chooses(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(4)(x) if train else x


@misuse(errors.StaticArgumentError, r"static_argnums")
def static_argument_out_of_range(mdl, x, wrong):
    return nn.remat(Chooses, static_argnums=(5 if wrong else 1,))()(x, True)


@misuse(errors.StaticArgumentError, r"static_argnums")
def static_argument_of_jit_out_of_range(mdl, x, wrong):
    return nn.jit(Chooses, static_argnums=(-5 if wrong else -1,))()(x, True)


@misuse(errors.StaticArgumentError, r"static_argnums")
def the_module_as_a_static_argument(mdl, x, wrong):
    def body(mdl, x, train):
        return x if train else -x

    return nn.remat(body, static_argnums=(0 if wrong else 2,))(mdl, x, True)


def leaks(transform):
    def call(mdl, x, wrong):
        last = mdl.variable("state", "last", jnp.zeros, (4,))

        def keep(x):
            if wrong:
                last.value = x
            return x

        y = transform(keep, x)
        last.value = x[0]
        return y

    return call


for _name, _transform in (
    ("vmap", lambda f, x: jax.vmap(f)(x)),
    ("scan", lambda f, x: jax.lax.scan(lambda c, x: (c, f(x)), None, x)[1]),
    ("jit", lambda f, x: jax.jit(f)(x[0])),
    ("grad", lambda f, x: jax.grad(lambda x: f(x).sum())(x[0])),
):
    _call = leaks(_transform)
    _call.__name__ = f"tracer_out_of_jax_{_name}"
    misuse(errors.LeakedTracerError, r"variable 'last' of collection 'state'")(_call)


@misuse(errors.BranchError, r"float32\[2,8\]")
def branches_of_two_widths(mdl, x, wrong):
    def branch(width, name):
        return lambda mdl, x: nn.Dense(width, name=name, parent=mdl)(x)

    return nn.cond(True, branch(8 if wrong else 4, "a"), branch(4, "b"), mdl, x)


@misuse(errors.BranchError, r"int32")
def branches_of_two_dtypes(mdl, x, wrong):
    def second(mdl, x):
        return x.astype(jnp.int32) if wrong else 2 * x

    return nn.switch(1, [lambda mdl, x: x, second], mdl, x)


# -- modules by themselves ---------------------------------------------------------------------


@misuse(errors.NameInUseError, r"'same'")
def one_name_for_two_layers(mdl, x, wrong):
    return nn.Dense(4, name="same")(nn.Dense(4, name="same" if wrong else "other")(x))


@misuse(errors.SetAttributeFrozenModuleError, r"'late'")
def attribute_set_in_a_call(mdl, x, wrong):
    if wrong:
        mdl.late = 3
    return x


@misuse(errors.AssignSubModuleError, r"Dense")
def layer_in_a_method_that_is_not_compact(mdl, x, wrong):
    class Net(nn.Module):
        def __call__(self, x):
            return nn.Dense(4)(x)

        @nn.compact
        def right(self, x):
            return nn.Dense(4)(x)

    return Net(name="net")(x) if wrong else Net(name="net").right(x)


@misuse(errors.UndeclaredError, r"'w'")
def parameter_in_a_method_that_is_not_compact(mdl, x, wrong):
    class Net(nn.Module):
        def __call__(self, x):
            return x * self.param("w", nn.initializers.ones, (4,))

        @nn.compact
        def right(self, x):
            return x * self.param("w", nn.initializers.ones, (4,))

    return Net(name="net")(x) if wrong else Net(name="net").right(x)


@misuse(errors.SetAttributeInModuleSetupError, r"'width'")
def field_changed_in_setup(mdl, x, wrong):
    class Net(nn.Module):
        width: int = 2

        def setup(self):
            if wrong:
                self.width = 3
            self.dense = nn.Dense(self.width)

        def __call__(self, x):
            return self.dense(x)

    return Net(name="net")(x)


@misuse(errors.LayerError, r"num_heads=3 does not divide the 4 features")
def heads_that_do_not_divide(mdl, x, wrong):
    return nn.MultiHeadDotProductAttention(num_heads=3 if wrong else 2)(x)
