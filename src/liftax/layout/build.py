"""`layout`: a model's layout from one abstract trace of its initialisation.

What is seen in that trace is in `record`; here is the call: its arguments, the trace itself, and
what is asked for besides: a gradient, the cost of a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from ..core.events import class_line, recorder
from ..core.filters import Filter
from ..core.trees import abstract
from ..core.types import Function, Path, Tree
from ..errors import TransformTargetError
from ..module import Module, intercept_methods
from ..module.bound import Variables
from ..module.summary import summary
from ..pytrees import is_array, split
from .cost import forward_cost
from .data import LiftNode, Measured, ModuleNode
from .notes import findings_of
from .progress import said
from .record import Record
from .residuals import residuals_of
from .shapes import call_text
from .shown import Layout


def layout(
    module: Variables | type,
    rngs: Tree,
    *args: object,
    grads: bool = False,
    **kwargs: object,
) -> Layout:
    """Where every variable of a model would lie, before anything runs.

    The model is initialised abstractly, with one trace: no array is made, nothing is computed.

    Args:
      module: the model, not bound.
      rngs: a key, or a mapping of stream to key, as for `module.init`; shapes will do.
      *args: arguments of the model; arrays or `jax.ShapeDtypeStruct`.
      grads: whether to trace a gradient of the outputs too, and to tell what its backward pass
        keeps, module by module, and what of that is cheap to compute again: `kept`.
      **kwargs: further arguments, as for `module.init` (`method` and `mutable` included).

    Returns:
      A `Layout`. Print it for a table, `to_html(path)` writes a page, `with_cost()` adds what a
      forward pass costs.

    Raises:
      TransformTargetError: ``module`` is no module.
      Whatever `module.init` raises for the same arguments.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...   @nn.compact
      ...   def __call__(self, x, _):
      ...     return nn.relu(nn.Dense(4)(x)), None
      >>> stack = nn.scan(
      ...     Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)()
      >>> x = jax.ShapeDtypeStruct((2, 4), 'float32')
      >>> kernel = nn.layout(stack, jax.random.key(0), x, None)['params/Dense_0/kernel']
      >>> [(axis.label, axis.size) for axis in kernel.axes]
      [('scan', 3), ('in', 4), ('out', 4)]
    """
    if not isinstance(module, (type, Module)):
        raise TransformTargetError(
            f"layout: expected a module, e.g. Model(...); found {type(module).__name__}"
        )
    call = _Call(module, rngs, args, kwargs)
    record = Record()
    # The recorder hears the engine, the interceptor the modules: the core knows scopes alone.
    token = recorder.set(record)
    try:
        with (
            intercept_methods(record.see_layer),
            said(f"tracing {type(module).__name__}", lambda: f"{len(record.called):,} modules"),
        ):
            variables = call.abstract_init()
    finally:
        recorder.reset(token)
    lifts, modules = record.lifts(variables), record.modules()

    # A second trace, of a gradient, which may cost as much again: only where it is asked for.
    kept = None
    if grads:
        with said("tracing a gradient"):
            kept = residuals_of(*call.forward(variables), call.mutable(variables) is not False)

    # Compiling takes longer than all else, so it waits until somebody asks for the cost.
    def measure() -> Measured:
        with said("compiling one forward pass"):
            cost = forward_cost(*call.forward(variables))
        with said("counting the FLOPs of each module"):
            return cost, call.flops(modules, lifts)

    found = Layout(
        module=type(module).__name__,
        variables=record.variables(variables),
        lifts=lifts,
        stacks=record.stacks(variables),
        arguments=call.text(),
        file_line=class_line(type(module)),
        modules=modules,
        absent=tuple(sorted(record.asked - {*call.streams()})),
        kept=kept,
        measure=measure,
    )
    return found.replace(findings=findings_of(found))


_OF_INIT = ("method", "mutable", "capture_intermediates")


class _Call:
    """The arguments of an initialisation, with arrays told from everything else."""

    def __init__(
        self, module: Any, rngs: Tree, args: tuple[object, ...], kwargs: dict[str, object]
    ):
        self.module = module
        # Taken apart once: `init`, the forward pass and the counting of FLOPs are functions of the
        # same arrays, with everything else closed over.
        arrays, rest = split((rngs, args, kwargs), is_array)
        self.filled = rest.filled
        # The layout may outlive the arrays that it was made for, so only their shapes are kept.
        self.arrays = [abstract(array) for array in arrays]
        self.rngs, self.args, self.options = self.filled(self.arrays)
        self.kwargs = {k: v for k, v in self.options.items() if k not in _OF_INIT}

    def streams(self) -> Iterable[str]:
        """The names of the streams that were given."""
        return self.rngs if isinstance(self.rngs, Mapping) else ("params",)

    def abstract_init(self) -> Mapping[str, Tree]:
        def init(arrays: list[jax.Array]) -> Mapping[str, Tree]:
            rngs, args, kwargs = self.filled(arrays)
            return self.module.init_with_output(rngs, *args, **kwargs)[1]

        return jax.eval_shape(init, self.arrays)

    def mutable(self, variables: Mapping[str, Tree]) -> Filter:
        """What a forward pass may write: all but the parameters, where nothing else was said."""
        states = [name for name in variables if name != "params"]
        return self.options.get("mutable", states or False)

    def forward(
        self, variables: Mapping[str, Tree]
    ) -> tuple[Function, Mapping[str, Tree], list[jax.ShapeDtypeStruct]]:
        """The forward pass as a function of variables and arrays, and both as shapes."""
        mutable = self.mutable(variables)

        def apply(variables: Mapping[str, Tree], arrays: list[jax.Array]) -> object:
            rngs, args, kwargs = self.filled(arrays)
            kwargs = {**kwargs, "mutable": mutable}
            # `init` takes one key for all streams, `apply` wants to know them by name.
            streams = dict(rngs) if isinstance(rngs, Mapping) else {"params": rngs}
            return self.module.apply(variables, *args, rngs=streams, **kwargs)

        return apply, variables, self.arrays

    def flops(self, modules: Iterable[ModuleNode], lifts: Sequence[LiftNode]) -> dict[Path, float]:
        """The FLOPs of each module's calls by its path, as often as the lifts around it run."""
        # The lifts multiply: a summary counts what one iteration of a module does.
        rows = summary(self.module, self.rngs, show_repeated=True, compute_flops=True)
        times = {node.path: math.prod(lifts[i].size or 1 for i in node.lifts) for node in modules}
        found: dict[Path, float] = {}
        for row in rows(*self.args, **self.kwargs):
            # One that cannot be counted alone, in a vmap whose axis it names, is left out.
            if row.flops is not None and row.path in times:
                found[row.path] = found.get(row.path, 0) + times[row.path] * row.flops
        return found

    def text(self) -> str:
        """`f32[8,64], train=False`."""
        return call_text(self.args, self.kwargs)
