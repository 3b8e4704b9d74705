"""Lifts that are called at once: branches, while loops, derivatives; and map_variables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

import liftax as nn
from liftax import errors

from .misuse import ENDS, assert_passes, assert_refused, cases_of, misuse


def double(mdl, x):
    return 2 * x


def negate(mdl, x):
    return -x


def dense(mdl, x):
    return mdl(x)


# --- cond and switch -------------------------------------------------------------------


@misuse(errors.ConditionError, "cond of double", "pred", "scalar", "bool[2,4]")
def condition_per_example(mdl, x, wrong):
    return nn.cond(x > 0 if wrong else x.sum() > 0, double, negate, mdl, x)


@misuse(errors.ConditionError, "cond of double", "pred", "str")
def condition_is_a_word(mdl, x, wrong):
    return nn.cond("yes" if wrong else True, double, negate, mdl, x)


@misuse(errors.ConditionError, "cond of double", "pred", "found: type")
def condition_is_a_dtype(mdl, x, wrong):
    return nn.cond(np.bool_ if wrong else np.bool_(True), double, negate, mdl, x)


@misuse(errors.BranchError, "cond", "found: float32[2,8] from branch 1", "float32[2,4]")
def branches_of_other_shapes(mdl, x, wrong):
    def wide(mdl, x):
        return nn.Dense(8 if wrong else 4, name="wide")(x)

    return nn.cond(True, double, wide, mdl, x)


@misuse(errors.BranchError, "cond", "found: float32[2,8] from branch 1", "float32[2,4]", apply=True)
def branches_of_other_shapes_in_apply(mdl, x, wrong):
    def wide(mdl, x):
        return jnp.concatenate([x, x], 1) if wrong else x

    return nn.cond(True, double, wide, mdl, x)


@misuse(errors.BranchError, "switch", "found: int32[2,4] from branch 2", apply=True)
def branches_of_other_dtypes(mdl, x, wrong):
    def counted(mdl, x):
        return x.astype(jnp.int32) if wrong else x

    return nn.switch(1, [double, negate, counted], mdl, x)


@misuse(errors.BranchError, "switch", "different structures", "from branch 1", "branch 0")
def branches_of_other_structures(mdl, x, wrong):
    def pair(mdl, x):
        return (x, x) if wrong else x

    return nn.switch(1, [double, pair], mdl, x)


@misuse(errors.BranchError, "switch", "different structures", "from branch 1", apply=True)
def branches_of_other_structures_in_apply(mdl, x, wrong):
    def pair(mdl, x):
        return {"x": x} if wrong else x

    return nn.switch(1, [double, pair], mdl, x)


@misuse(
    errors.BranchError,
    "cond",
    "variable state/h",
    "float32[2]",
    "float32[2,4]",
    apply={"mutable": ["state"]},
)
def branches_write_other_shapes(mdl, x, wrong):
    h = mdl.variable("state", "h", jnp.zeros, (2, 4))
    del h

    def write(mdl, x):
        mdl.put_variable("state", "h", x)
        return x

    def sums(mdl, x):
        mdl.put_variable("state", "h", x.sum(1) if wrong else x)
        return x

    return nn.cond(True, write, sums, mdl, x)


@misuse(errors.BranchError, "switch: branches is empty", at=None)
def no_branches(mdl, x, wrong):
    return nn.switch(0, [] if wrong else [double], mdl, x)


@misuse(errors.ConditionError, "switch of double", "index", "int", "float")
def index_is_a_float(mdl, x, wrong):
    return nn.switch(1.0 if wrong else 1, [double, negate], mdl, x)


@misuse(errors.ConditionError, "switch of double", "index", "scalar", "int32[2]")
def index_per_example(mdl, x, wrong):
    index = jnp.zeros(2, jnp.int32)
    return nn.switch(index if wrong else index[0], [double, negate], mdl, x)


@misuse(errors.TransformTargetError, "cond", "function", "found float32[2,4]", at=None)
def branch_already_called(mdl, x, wrong):
    return nn.cond(True, double, negate(mdl, x) if wrong else negate, mdl, x)


@misuse(errors.TransformTargetError, "cond", "module", at=None)
def module_forgotten_in_cond(mdl, x, wrong):
    return nn.cond(True, double, negate, x) if wrong else nn.cond(True, double, negate, mdl, x)


@misuse(errors.UnnamedCollectionError, "'params'", "cond of", "variables='params'", at="wide")
def parameters_left_out_of_cond(mdl, x, wrong):
    def wide(mdl, x):
        return nn.Dense(4, name="wide")(x)

    return nn.cond(True, double, wide, mdl, x, variables="state" if wrong else True)


# --- while_loop -----------------------------------------------------------------------------


def below(mdl, carry):
    return carry[1] < 3


def looping(name, step, error, *says, **options):
    """A while loop whose body returns something else."""

    def body_of(mdl, x, wrong):
        def body(mdl, carry):
            x, i = carry
            return step(x, i) if wrong else (x, i + 1)

        return nn.while_loop(below, body, mdl, (x, 0))[0]

    body_of.__name__ = name
    return misuse(error, "while_loop of body", *says, **options)(body_of)


carry_gets_wider = looping(
    "carry_gets_wider",
    lambda x, i: (jnp.concatenate([x, x], 1), i + 1),
    errors.CarryError,
    "carry[0]",
    "found: float32[2,8]",
    "expected: float32[2,4]",
)
carry_changes_dtype = looping(
    "carry_changes_dtype",
    lambda x, i: (x.astype(jnp.bfloat16), i + 1),
    errors.CarryError,
    "carry[0]",
    "found: bfloat16[2,4]",
    "expected: float32[2,4]",
)
carry_loses_a_part = looping(
    "carry_loses_a_part",
    lambda x, i: x,
    errors.CarryError,
    "carry changes its structure",
    "found: float32[2,4]",
    "expected: tuple of 2 values",
)
carry_is_a_pair_as_in_scan = looping(
    "carry_is_a_pair_as_in_scan",
    lambda x, i: ((x, i + 1), None),
    errors.CarryError,
    "carry[0] changes its structure",
    "found: tuple of 2 values",
    "expected: float32[2,4]",
)


@misuse(errors.CarryError, "while_loop of body", "variable state/h", "found: float32[2]")
def carried_variable_changes_shape(mdl, x, wrong):
    mdl.variable("state", "h", jnp.zeros, (2, 4))

    def body(mdl, i):
        mdl.put_variable("state", "h", x.sum(1) if wrong else x)
        return i + 1

    nn.while_loop(lambda mdl, i: i < 3, body, mdl, 0, carry_variables="state")
    return x


@misuse(errors.ConditionError, "while_loop of body", "cond_fn", "bool", "found: bool[2,4]")
def condition_of_a_loop_per_example(mdl, x, wrong):
    def small(mdl, x):
        return x < 9 if wrong else x.sum() < 9

    def body(mdl, x):
        return x + 1

    return nn.while_loop(small, body, mdl, x)


@misuse(errors.ConditionError, "while_loop of body", "cond_fn", "bool", "found: float32[]")
def condition_of_a_loop_is_a_number(mdl, x, wrong):
    def small(mdl, x):
        return x.sum() if wrong else x.sum() < 9

    def body(mdl, x):
        return x + 1

    return nn.while_loop(small, body, mdl, x)


@misuse(errors.ConditionError, "while_loop of body", "cond_fn", "bool", "found: tuple of 2 values")
def condition_of_a_loop_is_a_pair(mdl, x, wrong):
    def small(mdl, x):
        return (x.sum() < 9, x) if wrong else x.sum() < 9

    def body(mdl, x):
        return x + 1

    return nn.while_loop(small, body, mdl, x)


@misuse(
    errors.ScopeVariableNotFoundError,
    "while_loop of body",
    "state/steps",
    "before the loop",
)
def variable_made_in_a_while_loop(mdl, x, wrong):
    def body(mdl, x):
        mdl.variable("state", "steps", lambda: 0).value += 1
        return x + 1

    if not wrong:
        mdl.variable("state", "steps", lambda: 0)
        mdl.scope.reservations.clear()
    return nn.while_loop(lambda mdl, x: x.sum() < 9, body, mdl, x, carry_variables="state")


@misuse(
    errors.UnnamedCollectionError,
    "collection 'state'",
    "while_loop of body",
    "carry_variables='state'",
    apply={"mutable": ["state"]},
)
def write_to_a_shared_collection(mdl, x, wrong):
    mdl.variable("state", "steps", lambda: 0)

    def body(mdl, x):
        mdl.put_variable("state", "steps", mdl.get_variable("state", "steps") + 1)
        return x + 1

    carried = False if wrong else "state"
    return nn.while_loop(lambda mdl, x: x.sum() < 9, body, mdl, x, carry_variables=carried)


# --- derivatives --------------------------------------------------------------------------------


@misuse(errors.DifferentiationError, "grad of dense", "scalar", "float32[2,4]", at="layer")
def gradient_of_an_array(mdl, x, wrong):
    layer = nn.Dense(4, name="layer")

    def dense(mdl, x):
        return mdl(x) if wrong else mdl(x).sum()

    return nn.grad(dense, layer, x)[0]


@misuse(errors.DifferentiationError, "grad of dense", "scalar", "tuple of 2 values", at="layer")
def gradient_of_a_pair(mdl, x, wrong):
    def dense(mdl, x):
        return mdl(x).sum(), x

    out = nn.value_and_grad(dense, nn.Dense(4, name="layer"), x, has_aux=not wrong)
    return out[1][0]


@misuse(errors.DifferentiationError, "has_aux", "pair", "found: float32[]", at="layer")
def aux_that_is_missing(mdl, x, wrong):
    def dense(mdl, x):
        return mdl(x).sum()

    layer = nn.Dense(4, name="layer")
    if wrong:
        return nn.grad(dense, layer, x, has_aux=True)[0][0]
    return nn.grad(dense, layer, x)[0]


@misuse(errors.DifferentiationError, "vjp of dense", "has_aux", "pair", at="layer")
def aux_of_vjp_that_is_missing(mdl, x, wrong):
    def dense(mdl, x):
        return mdl(x)

    y, pull, *_ = nn.vjp(dense, nn.Dense(4, name="layer"), x, has_aux=wrong)
    return pull(y)[1]


@misuse(errors.DifferentiationError, "grad", "reduce_axes", "jax.lax.psum", at=None)
def axes_reduced_in_grad(mdl, x, wrong):
    def total(mdl, x):
        return x.sum()

    return nn.grad(total, mdl, x, reduce_axes=("batch",) if wrong else ())[0]


@misuse(errors.DifferentiationError, "vjp", "multi_scope=True", at=None)
def cotangents_of_two_modules(mdl, x, wrong):
    a, b = nn.Dense(4, name="a"), nn.Dense(4, name="b")

    def both(modules, x):
        return modules[0](modules[1](x))

    y, pull = nn.vjp(both, (a, b), x, multi_scope=not wrong)
    return pull(y)[1]


@misuse(
    errors.DifferentiationError,
    "vjp of dense",
    "found: float32[2,8]",
    "expected: float32[2,4]",
    cause=ValueError,
    at="layer",
)
def cotangent_of_another_shape(mdl, x, wrong):
    y, pull = nn.vjp(dense, nn.Dense(4, name="layer"), x)
    return pull(jnp.ones((2, 8 if wrong else 4)))[1]


@misuse(
    errors.DifferentiationError,
    "jvp of dense",
    "tangents[0]",
    "found: float32[4]",
    "expected: float32[2,4]",
    cause=ValueError,
    at="layer",
)
def tangent_of_another_shape(mdl, x, wrong):
    layer = nn.Dense(4, name="layer")
    return nn.jvp(dense, layer, (x,), (x[0] if wrong else x,), {})[1]


@misuse(errors.DifferentiationError, "jvp of dense", "1 primals", "2 tangents", at="layer")
def one_tangent_too_many(mdl, x, wrong):
    layer = nn.Dense(4, name="layer")
    return nn.jvp(dense, layer, (x,), (x, x) if wrong else (x,), {})[1]


@misuse(
    errors.DifferentiationError,
    "variable_tangents has 'params/weight'",
    "'kernel'",
    at="layer",
    apply=True,
)
def tangent_of_no_variable(mdl, x, wrong):
    name = "weight" if wrong else "kernel"
    tangents = {"params": {name: jnp.ones((4, 4))}} if not mdl.is_initializing() else {}
    return nn.jvp(dense, nn.Dense(4, name="layer"), (x,), (x,), tangents)[1]


@misuse(
    errors.DifferentiationError,
    "variable_tangents",
    "'parms'",
    "'params'",
    at="layer",
    apply=True,
)
def tangents_of_no_collection(mdl, x, wrong):
    name = "parms" if wrong else "params"
    tangents = {name: {"kernel": jnp.ones((4, 4))}} if not mdl.is_initializing() else {}
    return nn.jvp(dense, nn.Dense(4, name="layer"), (x,), (x,), tangents)[1]


@misuse(
    errors.DifferentiationError,
    "variable_tangents",
    "params/kernel",
    "found: float32[4]",
    "expected: float32[4,4]",
    at="layer",
    apply=True,
)
def variable_tangent_of_another_shape(mdl, x, wrong):
    kernel = jnp.ones(4) if wrong else jnp.ones((4, 4))
    tangents = {"params": {"kernel": kernel}} if not mdl.is_initializing() else {}
    return nn.jvp(dense, nn.Dense(4, name="layer"), (x,), (x,), tangents)[1]


@misuse(errors.DifferentiationError, "variable_tangents", "2 scopes", "found 1", at="a")
def tangents_of_one_of_two_modules(mdl, x, wrong):
    def both(modules, x):
        return modules[0](modules[1](x))

    modules = (nn.Dense(4, name="a"), nn.Dense(4, name="b"))
    return nn.jvp(both, modules, (x,), (x,), {} if wrong else [{}, {}])[1]


@misuse(errors.DifferentiationError, "jacrev of dense", "primals[1]", "found: int32[2]", at="layer")
def jacobian_by_whole_numbers(mdl, x, wrong):
    ids = jnp.arange(2)

    def dense(mdl, x, ids=ids):
        return mdl(x) * ids[:, None]

    primals = (x, ids) if wrong else (x,)
    return nn.jacrev(dense, nn.Dense(4, name="layer"), *primals)[0].sum((2, 3))


@misuse(errors.DifferentiationError, "jacfwd of dense", "primals[1]", "found: str", at="layer")
def jacobian_by_a_word(mdl, x, wrong):
    def dense(layer, x, *word):
        return layer(x)

    primals = (x, "word") if wrong else (x,)
    return nn.jacfwd(dense, nn.Dense(4, name="layer"), *primals)[0].sum((2, 3))


@misuse(errors.DifferentiationError, "jacfwd of dense", "the output", "bool[2,4]", at="layer")
def jacobian_of_a_mask(mdl, x, wrong):
    def dense(mdl, x):
        return mdl(x) > 0 if wrong else mdl(x)

    return nn.jacfwd(dense, nn.Dense(4, name="layer"), x)[0].sum((2, 3))


@misuse(errors.DifferentiationError, "jacrev of dense", "primals has no arrays", at="layer")
def jacobian_by_nothing(mdl, x, wrong):
    def dense(mdl, y=x):
        return mdl(y)

    layer = nn.Dense(4, name="layer")
    return x if not nn.jacrev(dense, layer, *(() if wrong else (x,))) else x


@misuse(errors.DifferentiationError, "jacfwd of dense", "has_aux", "pair", at="layer")
def aux_of_a_jacobian_that_is_missing(mdl, x, wrong):
    def dense(mdl, x):
        return mdl(x)

    found = nn.jacfwd(dense, nn.Dense(4, name="layer"), x, has_aux=wrong)
    return found[0].sum((2, 3))


@misuse(
    errors.UnnamedCollectionError,
    "collection 'params'",
    "jacrev of dense",
    "variables=",
    at="layer",
)
def jacobian_without_parameters(mdl, x, wrong):
    def dense(mdl, x):
        return mdl(x)

    variables = "stats" if wrong else True
    found = nn.jacrev(dense, nn.Dense(4, name="layer"), x, variables=variables)
    return found[0].sum((2, 3))


# --- checkify -------------------------------------------------------------------------------------


@misuse(errors.LiftOptionError, "checkify", "found: errors='nan'", "checkify.all_checks", at=None)
def checks_by_name(mdl, x, wrong):
    checks = "nan" if wrong else checkify.nan_checks
    return nn.checkify(nn.Dense, errors=checks)(4)(x)[1]


@misuse(errors.UnnamedCollectionError, "collection 'params'", "checkify of Dense", at="layer")
def checks_without_parameters(mdl, x, wrong):
    return nn.checkify(nn.Dense, variables="stats" if wrong else True)(4, name="layer")(x)[1]


# --- custom_vjp -----------------------------------------------------------------------------------


def custom(name, forward, backward, *says, cause=None):
    """A custom derivative of a layer; the twin's functions are the right ones."""

    def right_forward(mdl, x):
        return nn.vjp(dense, mdl, x)

    def right_backward(pull, y_bar):
        return pull(y_bar)

    def body(mdl, x, wrong):
        run = nn.custom_vjp(
            dense,
            forward if wrong and forward else right_forward,
            backward if wrong and backward else right_backward,
        )

        def loss(mdl, x):
            return run(mdl, x).sum()

        return nn.grad(loss, nn.Dense(4, name="layer"), x)[0]

    body.__name__ = name
    file = misuse(
        errors.DifferentiationError,
        "custom_vjp of dense",
        *says,
        at="layer",
        apply=True,
        cause=cause,
    )
    return file(body)


forward_without_residuals = custom(
    "forward_without_residuals",
    lambda mdl, x: mdl(x),
    None,
    "forward_fn must return a pair (y, residuals)",
    "found: float32[2,4]",
)
backward_without_the_variables = custom(
    "backward_without_the_variables",
    None,
    lambda pull, y_bar: pull(y_bar)[1],
    "backward_fn must return",
    "(variables_bar, *args_bar)",
)
backward_with_too_few = custom(
    "backward_with_too_few",
    None,
    lambda pull, y_bar: pull(y_bar)[:1],
    "backward_fn must return",
    "1 argument",
    "found: tuple of 1 value",
)
backward_of_another_shape = custom(
    "backward_of_another_shape",
    None,
    lambda pull, y_bar: (pull(y_bar)[0], y_bar[0]),
    "backward_fn",
    "args_bar[0]",
    "found: float32[4]",
    "expected: float32[2,4]",
)
backward_without_a_parameter = custom(
    "backward_without_a_parameter",
    None,
    lambda pull, y_bar: ({"params": {"kernel": pull(y_bar)[0]["params"]["kernel"]}}, y_bar),
    "backward_fn",
    "params/bias",
)


@misuse(errors.StaticArgumentError, "custom_vjp of dense", "nondiff_argnums has 3", at=None)
def nondiff_argument_out_of_range(mdl, x, wrong):
    def dense(mdl, x, train):
        return mdl(x)

    def forward(mdl, x, train):
        y, pull = nn.vjp(lambda mdl, x: mdl(x), mdl, x)
        return y, pull

    def backward(train, pull, y_bar):
        return pull(y_bar)

    run = nn.custom_vjp(dense, forward, backward, nondiff_argnums=(3 if wrong else 2,))
    return run(nn.Dense(4, name="layer"), x, True)


@misuse(errors.StaticArgumentError, "custom_vjp", "nondiff_argnums has 0", "module", at=None)
def module_as_nondiff_argument(mdl, x, wrong):
    def forward(mdl, x):
        return nn.vjp(dense, mdl, x)

    def backward(*args):
        return args[-2](args[-1])

    run = nn.custom_vjp(dense, forward, backward, nondiff_argnums=(0,) if wrong else ())
    return run(nn.Dense(4, name="layer"), x)


# --- map_variables ---


@misuse(
    errors.ApplyScopeInvalidVariablesTypeError,
    "map_variables of Dense",
    "trans_in_fn",
    "mapping of collections",
    "found: None",
    at="tied",
    apply=True,
)
def map_that_returns_nothing(mdl, x, wrong):
    def double(variables):
        doubled = jax.tree.map(lambda w: 2 * w, variables)
        return None if wrong else doubled

    return nn.map_variables(nn.Dense, "params", double, init=True)(4, name="tied")(x)


@misuse(
    errors.ApplyScopeInvalidVariablesTypeError,
    "trans_in_fn",
    "{'params': ...}",
    "dict with keys 'bias', 'kernel'",
    at="tied",
    apply=True,
)
def map_that_loses_the_collection(mdl, x, wrong):
    def unwrap(variables):
        return variables["params"] if wrong and variables else variables

    return nn.map_variables(nn.Dense, "params", unwrap, init=True)(4, name="tied")(x)


@misuse(
    errors.UnnamedCollectionError,
    "collection 'params'",
    "map_variables of Dense",
    "init=True",
    at="tied",
)
def map_without_init(mdl, x, wrong):
    def double(variables):
        return jax.tree.map(lambda w: 2 * w, variables)

    return nn.map_variables(nn.Dense, "params", double, init=not wrong)(4, name="tied")(x)


@misuse(
    errors.UnnamedCollectionError,
    "collection 'batch_stats'",
    "map_variables of BatchNorm",
    "mutable=True",
    at="norm",
    apply={"mutable": ["batch_stats"]},
)
def map_without_mutable(mdl, x, wrong):
    new = mdl.is_initializing()
    norm = nn.map_variables(nn.BatchNorm, "batch_stats", init=new, mutable=not wrong)
    return norm(use_running_average=False, name="norm")(x)


@misuse(
    errors.UnusedFilterError,
    "map_variables of Dense",
    "mapped_collections names 'parms'",
    "did you mean 'params'?",
    at="tied",
)
def map_of_no_collection(mdl, x, wrong):
    tied = nn.map_variables(nn.Dense, "parms" if wrong else "params", init=True)
    return tied(4, name="tied")(x)


@misuse(errors.RoleError, "map_variables", "mapped_collections", "variables", at=None)
def mapped_and_handed_through(mdl, x, wrong):
    variables = ["params", "state"] if wrong else ["state"]
    tied = nn.map_variables(nn.Dense, "params", init=True, variables=variables)
    return tied(4, name="tied")(x)


@cases_of(globals())
def test_refused(case, nest):
    assert_refused(case, nest)


@cases_of(globals(), ENDS)
def test_twin_passes(case, nest):
    assert_passes(case, nest)
