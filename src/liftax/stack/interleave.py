"""A stack's loss and gradients from one pipelined loop that runs forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef

from ..core.lift.automatic import automatic
from ..core.lift.pipeline import Objective
from ..core.lift.schedule import Pipeline
from ..core.types import Tree
from ..errors import PipelineError
from ..words import class_or_type, describe, shown
from .declaration import Declaration
from .options import parse_run

SCHEDULES = ("1f1b", "gpipe")
LossFn = Callable[..., jax.Array]


class Asked:
    """What a pipeline is asked to differentiate: the loss, as the user has it."""

    def __init__(self, loss_fn: LossFn, args: tuple[Tree, ...], whole: Sequence[int]):
        self.loss_fn, self.args, self.whole = loss_fn, args, whole
        self.objective: Objective | None = None

    def of(self, pipeline: Pipeline, carry: PyTreeDef, beside: bool) -> Objective:
        """Returns it as a pipeline has it, in leaves.

        Args:
          pipeline: whose microbatches are meant.
          carry: the structure of what goes through the layers.
          beside: whether that is x and arguments that go along.
        """
        leaves, args_def = jax.tree.flatten(self.args)
        # By leaf: an argument is one tree to the user, and the loop takes arrays alone.
        cut = [i not in self.whole for i, a in enumerate(self.args) for _ in jax.tree.leaves(a)]
        count = pipeline.microbatches
        parts = [
            (microbatches(leaf, count) if c else jnp.asarray(leaf), c)
            for leaf, c in zip(leaves, cut, strict=True)
        ]

        def loss(y: list[jax.Array], args: list[jax.Array]) -> jax.Array:
            # Behind the carry are variables that go along with their microbatch: no business of the
            # loss.
            out: Any = jax.tree.unflatten(carry, y[: carry.num_leaves])
            found = self.loss_fn(out[0] if beside else out, *jax.tree.unflatten(args_def, args))
            return scalar(found)

        self.objective = Objective(loss, parts)
        return self.objective


# The loop is made deep inside `stack.apply`, by the lift, and knows no caller. What is asked of it
# reaches it by context, as no argument of the model could.
ASKED: ContextVar[Asked | None] = ContextVar("liftax_pipeline_objective", default=None)
"""What the next pipeline that is traced is asked to differentiate."""


def microbatches(leaf: Any, count: int) -> jax.Array:
    """An argument of the loss by microbatches."""
    leaf = jnp.asarray(leaf)
    # Unequal parts would have unequal weights in the mean.
    if leaf.ndim == 0 or leaf.shape[0] % count:
        raise PipelineError(
            f"pipeline_value_and_grad: an argument of the loss cannot be cut into {count} "
            f"microbatches.\n"
            f"found: {describe(leaf)}\n"
            f"expected: the batch along the first axis; or whole=, with the argument's number"
        )
    return leaf.reshape(count, -1, *leaf.shape[1:])


def scalar(loss: Any) -> jax.Array:
    """A loss, which is to be one number."""
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise PipelineError(
            f"pipeline_value_and_grad: loss_fn expected to return one number; found "
            f"{describe(loss)}"
        )
    return jnp.asarray(loss)


def pipeline_value_and_grad(
    stack: Declaration,
    loss_fn: LossFn,
    schedule: str = "1f1b",
    *,
    argnums: int | tuple[int, ...] = 0,
    whole: int | Sequence[int] = (),
) -> Callable[..., tuple[jax.Array, Any]]:
    """The loss of a pipelined stack, and its gradients, with the memory of a few microbatches.

    A pipeline that runs forward for all microbatches and then backward stores what came into every
    stage for each of them. With ``"1f1b"`` each step of one loop runs one microbatch forward and
    another one backward, so that a stage keeps no more than ``2 * stages * repeats - 1`` of them,
    and computes its layers again from that. It is that many because every stage runs both parts in
    every step: a microbatch is at the last stage ``stages - 1`` steps after the first one, and back
    as many steps later, and in each of them another one comes in. (A ring of ``stages`` takes
    stages that run a forward part while others run a backward part; in one program for all stages
    that costs both parts in each.) With repeats, ``stages`` microbatches at a time go around all of
    them, and back around. There are ``repeats * (microbatches + stages) + stages - 2`` steps.
    Where all stages are on one device, each microbatch goes forward and back before the next one.

    The loss is the mean over the microbatches,

    .. code-block:: python

      mean([loss_fn(stack.apply(variables, x[m]), *args[m]) for m in range(microbatches)])

    Args:
      stack: a `Stack` whose ``run`` is a `Pipeline`; with ``"1f1b"`` and repeats its microbatches
        are a multiple of its stages.
      loss_fn: ``(y, *args) -> loss``, of one microbatch.
      schedule: ``"1f1b"``, or ``"gpipe"`` for all forward and then all backward.
      argnums: by which arguments to differentiate: 0 the variables, 1 ``x``, then ``args``.
      whole: the numbers of those ``args``, counted as ``argnums`` counts, that each microbatch
        gets whole: parameters of the loss. All others are cut as ``x`` is.

    Returns:
      ``(variables, x, *args, rngs=None, **kwargs) -> (loss, gradients)``; ``kwargs`` are those of
      the layers.

    Raises:
      PipelineError: the stack is no such pipeline; its layers write variables or return outputs.

    Example:
      >>> import jax, liftax as nn
      >>> stack = nn.Stack(nn.Dense(4), depth=4, run=nn.Pipeline(stages=2, microbatches=8))
      >>> x = jax.numpy.ones((16, 4))
      >>> variables = stack.init(jax.random.key(0), x)
      >>> step = nn.pipeline_value_and_grad(stack, lambda y, to: ((y - to) ** 2).mean())
      >>> loss, grads = step(variables, x, x)
      >>> jax.tree.map(jax.numpy.shape, grads)
      {'params': {'block_0': {'bias': (4, 4), 'kernel': (4, 4, 4)}}}
    """
    pipeline = _pipeline(stack, schedule)
    # Counted as users count: variables are 0, x is 1.
    rest = [n - 2 for n in ((whole,) if isinstance(whole, int) else whole)]
    if any(n < 0 for n in rest):
        raise PipelineError(
            f"pipeline_value_and_grad: whole={whole!r} names the variables (0) or x (1); expected "
            f"numbers of arguments of the loss, from 2"
        )

    def run(
        variables: Tree, x: Tree, *args: Tree, rngs: Any = None, **kwargs: object
    ) -> tuple[jax.Array, Any]:
        def total(given: Any, rngs: Any, kwargs: Any) -> jax.Array:
            variables, x, args = given
            apply: Any = stack.apply
            if schedule == "gpipe":
                y = apply(variables, x, rngs=rngs, **kwargs)
                return _mean(loss_fn, pipeline.microbatches, y, args, rest)
            asked = Asked(loss_fn, args, rest)
            # Each trace asks anew: `value_and_grad` may be traced again under a jit.
            token = ASKED.set(asked)
            try:
                apply(variables, x, rngs=rngs, **kwargs)
            finally:
                ASKED.reset(token)
            assert asked.objective is not None and asked.objective.total is not None
            return asked.objective.total

        def loss(variables: Tree, x: Tree, *args: Tree) -> jax.Array:
            given = variables, x, args
            return automatic(total, given, rngs, kwargs, place="pipeline_value_and_grad")

        # The loop has made the derivatives already; its rule for them hands those out, so that this
        # is where argnums, x and other arguments are sorted as users know it from JAX.
        return jax.value_and_grad(loss, argnums)(variables, x, *args)

    return run


def _mean(
    loss_fn: LossFn, count: int, y: Tree, args: tuple[Tree, ...], whole: Sequence[int]
) -> jax.Array:
    """The mean loss of the microbatches of what has come out."""

    def parts(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: microbatches(leaf, count), tree)

    def one(cut: Any) -> jax.Array:
        y, given = cut
        return scalar(loss_fn(y, *[given.get(i, arg) for i, arg in enumerate(args)]))

    cut = {i: parts(arg) for i, arg in enumerate(args) if i not in whole}
    return jnp.mean(jax.lax.map(one, (parts(y), cut)))


def _pipeline(stack: Declaration, schedule: str) -> Pipeline:
    """Reads how a stack runs."""
    name = "pipeline_value_and_grad"
    if schedule not in SCHEDULES:
        raise PipelineError(f"{name}: schedule expected '1f1b' or 'gpipe'; found {shown(schedule)}")
    if not isinstance(stack, Declaration):
        raise PipelineError(f"{name}: expected a Stack; found {class_or_type(stack)}")
    pipeline = parse_run(stack.run, stack.unroll).pipeline
    if pipeline is None:
        raise PipelineError(
            f"{name}: expected a Stack with run=Pipeline(...); found run={stack.run!r}"
        )
    # How long a stage keeps what came in, and in which step its derivatives come back, is counted
    # for one way through the stages, each a step after the one before.
    if schedule == "1f1b" and pipeline.delay > 1:
        raise PipelineError(
            f"{name}: schedule='1f1b' takes a Pipeline whose microbatches go on by a stage a step; "
            f"found delay={pipeline.delay}; expected 1, or schedule='gpipe'"
        )
    # As many as there are stages go around together, so that nobody waits for the next ones.
    if schedule == "1f1b" and pipeline.repeats > 1 and pipeline.microbatches % pipeline.stages:
        raise PipelineError(
            f"{name}: with repeats, schedule='1f1b' takes as many microbatches around at a time as "
            f"there are stages.\n"
            f"found: microbatches={pipeline.microbatches}, stages={pipeline.stages}\n"
            f"expected: a multiple of {pipeline.stages} microbatches, or schedule='gpipe'"
        )
    if stack.after or stack.outputs:
        raise PipelineError(
            f"{name}: the loss is of what comes out of the last stage; found a Stack with "
            f"{'after' if stack.after else 'outputs'}=; expected these layers in loss_fn, their "
            f"parameters as an argument in whole="
        )
    return pipeline
