"""What a module consists of, as data (`summary`), as a table (`tabulate`) and by path.

All three trace `init` with `jax.eval_shape`: nothing is computed and no array is made, whatever the
size of the model. Every call of every method is a row, in the order in which the calls begin. A
variable is counted once: by the first row of the module that owns it or, if that row is not shown,
by the nearest module above it that is. The counts of the rows always add up to the total.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ..core.filters import DenyList
from ..core.trees import abstract
from ..errors import MissingExtraError
from .state import LIFTED, intercept_methods
from .summary_table import draw, is_array, size_and_bytes

_NOT_INTERMEDIATES = DenyList("intermediates")


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of one method.

    Attributes:
      path: names from the root module down.
      module_copy: an unbound copy of the module, as it was called.
      method: the name of the method.
      inputs: the arguments, with `jax.ShapeDtypeStruct` for arrays: the argument itself where
        there is one, a tuple where there are several (keyword arguments last, as a dict).
      outputs: what the method returned, in the same way.
      module_variables: collection -> variables that the module itself owns.
      counted_variables: collection -> variables that this row counts: those of `module_variables`
        and those of modules below it that have no row of their own.
      flops: estimated cost of the call alone; None where it was not asked for, or where the call
        cannot be repeated alone (it needs the axis name of a surrounding vmap, or a bound module).
      vjp_flops: the same for the call together with its reverse-mode derivative; 0 where nothing
        is differentiable.
    """

    path: tuple[str, ...]
    module_copy: Any
    method: str
    inputs: Any
    outputs: Any
    module_variables: dict[str, dict[str, Any]]
    counted_variables: dict[str, dict[str, Any]]
    flops: int | None = None
    vjp_flops: int | None = None

    @property
    def class_name(self) -> str:
        """The name of the module's class."""
        return type(self.module_copy).__name__

    def count(self, collection: str) -> tuple[int, int]:
        """How many numbers this row counts in `collection`, and how many bytes."""
        return size_and_bytes(self.counted_variables.get(collection, {}))


@dataclasses.dataclass(frozen=True)
class Summary(Sequence[Row]):
    """The rows of a module, and all its variables as shapes, collection by collection."""

    module: Any
    variables: dict[str, dict[str, Any]]
    rows: tuple[Row, ...]

    @property
    def collections(self) -> tuple[str, ...]:
        """The collections that the module has."""
        return tuple(self.variables)

    def total(self, *collections: str) -> tuple[int, int]:
        """How many numbers there are in these collections (by default all), and how many bytes."""
        return size_and_bytes([self.variables[c] for c in collections or self.collections])

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)


# --- tracing ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Call:
    path: tuple[str, ...]
    module: Any
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any


def _shape(x: Any) -> Any:
    return abstract(x) if is_array(x) else x


def _shapes(tree: Any) -> Any:
    """The same tree with shapes for arrays; other leaves stay."""
    return jax.tree.map(_shape, tree)


def _split(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The arrays of a tree as shapes, and the function that puts other arrays in their place."""
    leaves, structure = jax.tree.flatten(tree)
    at = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def join(arrays: Sequence[Any]) -> Any:
        filled = list(leaves)
        for i, array in zip(at, arrays, strict=True):
            filled[i] = array
        return jax.tree.unflatten(structure, filled)

    return [_shape(leaves[i]) for i in at], join


def _unbound(module: Any) -> Any:
    return module.clone(name=None, _deep_clone=True, _reset_names=True)


def _trace(
    module: Any, rngs: Any, mutable: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[_Call], dict[str, Any]]:
    """Run `init` on shapes; return its calls in the order of their beginnings, and the variables.

    Both leave by the side, since neither need be made of arrays only.
    """
    calls: list[_Call | None] = []
    variables: dict[str, Any] = {}

    def record(
        next_fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> Any:
        called = context.module
        # A lifted method has no row beside that of the method inside.
        if context.method_name in ("setup", LIFTED) or called.scope is None:
            return next_fun(*args, **kwargs)
        at = len(calls)
        calls.append(None)
        copy, path = _unbound(called), tuple(called.path)
        args_in, kwargs_in = _shapes((args, kwargs))
        out = next_fun(*args, **kwargs)
        calls[at] = _Call(path, copy, context.method_name, args_in, kwargs_in, _shapes(out))
        return out

    arrays, join = _split((rngs, args, dict(kwargs)))

    def init(arrays: list[Any]) -> None:
        rngs, args, kwargs = join(arrays)
        with intercept_methods(record):
            variables.update(_shapes(module.init(rngs, *args, mutable=mutable, **kwargs)))

    jax.eval_shape(init, arrays)
    return [call for call in calls if call is not None], variables


def _first_of_each_path(calls: list[_Call]) -> list[_Call]:
    first: dict[tuple[str, ...], _Call] = {}
    for call in calls:
        first.setdefault(call.path, call)
    return list(first.values())


def module_paths(
    module: Any,
    rngs: Any,
    show_repeated: bool = False,
    mutable: Any = _NOT_INTERMEDIATES,
    **kwargs: Any,
) -> Callable[..., dict[str, Any]]:
    """Return a function of the arguments of a call that maps paths to unbound copies of modules.

    It has an entry for every module that runs in `init`.

    Args:
      module: an unbound module.
      rngs: the keys, as for `init`.
      show_repeated: take a module as it was called last, rather than first.
      mutable: the collections that may change, as for `init`.
      **kwargs: further arguments of `init`, such as `method`.

    >>> import jax, liftax as nn
    >>> x = jax.ShapeDtypeStruct((2, 3), "float32")
    >>> paths = nn.Sequential([nn.Dense(4), nn.Dense(1)]).module_paths(jax.random.key(0), x)
    >>> {path: type(module).__name__ for path, module in paths.items()}
    {'': 'Sequential', 'layers_0': 'Dense', 'layers_1': 'Dense'}
    """
    init_kwargs = kwargs

    def find(*args: Any, **kwargs: Any) -> dict[str, Any]:
        calls, _ = _trace(module, rngs, mutable, args, {**init_kwargs, **kwargs})
        if not show_repeated:
            calls = _first_of_each_path(calls)
        return {"/".join(call.path): call.module for call in calls}

    return find


def summary(
    module: Any,
    rngs: Any,
    depth: int | None = None,
    show_repeated: bool = False,
    mutable: Any = _NOT_INTERMEDIATES,
    compute_flops: bool = False,
    compute_vjp_flops: bool = False,
    **kwargs: Any,
) -> Callable[..., Summary]:
    """Return a function that takes the arguments of a call and returns the rows of the module.

    Args:
      module: an unbound module.
      rngs: the keys, as for `init`.
      depth: how many levels of submodules have rows; None means all.
      show_repeated: a row for every call, not only for the first one of each module.
      mutable: the collections that may change, as for `init`.
      compute_flops: estimate what each call costs. XLA analyses each of them, without running any.
      compute_vjp_flops: the same for each call and its reverse-mode derivative.
      **kwargs: further arguments of `init`, such as `method`.

    Raises:
      ValueError: `depth` is negative.

    >>> import jax, liftax as nn
    >>> x = jax.ShapeDtypeStruct((2, 3), "float32")
    >>> for row in nn.summary(nn.Sequential([nn.Dense(4), nn.Dense(1)]), jax.random.key(0))(x):
    ...     print(row.path, row.class_name, row.outputs.shape, row.count("params"))
    () Sequential (2, 1) (0, 0)
    ('layers_0',) Dense (2, 4) (16, 64)
    ('layers_1',) Dense (2, 1) (5, 20)
    """
    if depth is not None and depth < 0:
        raise ValueError(
            f"summary of {type(module).__name__}: depth={depth}, but it counts levels of "
            f"submodules: 0 shows the module alone, None shows all"
        )
    init_kwargs = kwargs

    def summarize(*args: Any, **kwargs: Any) -> Summary:
        calls, variables = _trace(module, rngs, mutable, args, {**init_kwargs, **kwargs})
        shown = calls if show_repeated else _first_of_each_path(calls)
        if depth is not None:
            shown = [call for call in shown if len(call.path) <= depth]
        owned = _by_owner(variables, {call.path for call in calls})
        counted = _by_owner(variables, {call.path for call in shown})
        rows = []
        for call in shown:
            flops, vjp_flops = _costs(call, rngs, mutable, compute_flops, compute_vjp_flops)
            # The second call of a module counts nothing: its variables are counted already.
            own, count = owned.pop(call.path, {}), counted.pop(call.path, {})
            rows.append(
                Row(
                    path=call.path,
                    module_copy=call.module,
                    method=call.method,
                    inputs=_inputs(call.args, call.kwargs),
                    outputs=call.outputs,
                    module_variables={c: own.get(c, {}) for c in variables},
                    counted_variables={c: count.get(c, {}) for c in variables},
                    flops=flops,
                    vjp_flops=vjp_flops,
                )
            )
        return Summary(module, variables, tuple(rows))

    return summarize


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs and not args:
        return kwargs
    everything = (*args, kwargs) if kwargs else args
    return everything[0] if len(everything) == 1 else everything


def _by_owner(
    variables: Mapping[str, Any], paths: set[tuple[str, ...]]
) -> dict[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Divide the variables among modules: each goes to the nearest of `paths` at or above it."""
    owned: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}

    def walk(tree: Any, path: tuple[str, ...], owner: tuple[str, ...], collection: str) -> None:
        if path in paths:
            owner = path
        if isinstance(tree, Mapping) and (tree or not path):
            for name, value in tree.items():
                walk(value, (*path, name), owner, collection)
            return
        into: dict[str, Any] = owned.setdefault(owner, {}).setdefault(collection, {})
        *parents, name = path[len(owner) :] or ("",)
        for parent in parents:
            into = into.setdefault(parent, {})
        if path != owner:
            into[name] = tree

    for collection, tree in variables.items():
        walk(tree, (), (), collection)
    return owned


# --- cost ------------------------------------------------------------------------------------


def _costs(
    call: _Call, rngs: Any, mutable: Any, flops: bool, vjp_flops: bool
) -> tuple[int | None, int | None]:
    if not (flops or vjp_flops):
        return None, None
    try:
        run, variables, arrays, keys = _repeated(call, rngs, mutable)
    # The call went well inside the model. If it fails alone, it needs something from around it:
    # an axis name of a vmap, a bound module. That is no mistake of anybody.
    except Exception:
        return None, None
    forward = both = None
    if flops:
        forward = _cost(run, variables, arrays, keys)
    if vjp_flops:
        both = _vjp_cost(run, variables, arrays, keys)
    return forward, both


def _repeated(
    call: _Call, rngs: Any, mutable: Any
) -> tuple[Callable[..., list[Any]], list[Any], list[Any], list[Any]]:
    """One call as a function of (variables, arrays, keys), with shapes to call it on."""
    keys, join_keys = _split(rngs)
    arrays, join = _split((call.args, call.kwargs))
    initial: dict[str, Any] = {}

    def method(module: Any, arrays: Sequence[Any]) -> Any:
        args, kwargs = join(arrays)
        return getattr(module, call.method)(*args, **kwargs)

    def init(arrays: list[Any], keys: list[Any]) -> None:
        variables = call.module.init(join_keys(keys), arrays, method=method, mutable=mutable)
        initial.update(_shapes(variables))

    jax.eval_shape(init, arrays, keys)
    variables, join_variables = _split(initial)

    def run(variables: list[Any], arrays: list[Any], keys: list[Any]) -> list[Any]:
        out = call.module.apply(
            join_variables(variables), arrays, rngs=join_keys(keys), method=method, mutable=mutable
        )
        return [leaf for leaf in jax.tree.leaves(out) if isinstance(leaf, jax.Array)]

    jax.eval_shape(run, variables, arrays, keys)
    return run, variables, arrays, keys


def _cost(fn: Callable[..., Any], *operands: Any) -> int | None:
    """XLA's estimate of the floating-point operations, before it optimises the program."""
    analysis = jax.jit(fn).lower(*operands).cost_analysis()
    return None if analysis is None else int(analysis.get("flops", 0))


def _vjp_cost(
    run: Callable[..., list[Any]], variables: list[Any], arrays: list[Any], keys: list[Any]
) -> int | None:
    def inexact(x: Any) -> bool:
        return bool(jax.numpy.issubdtype(x.dtype, jax.numpy.inexact))

    operands = [*variables, *arrays]
    at = [i for i, x in enumerate(operands) if inexact(x)]
    if not at or not any(map(inexact, jax.eval_shape(run, variables, arrays, keys))):
        return 0

    def back(operands: list[Any], keys: list[Any]) -> Any:
        def forward(*chosen: Any) -> list[Any]:
            filled = list(operands)
            for i, x in zip(at, chosen, strict=True):
                filled[i] = x
            n = len(variables)
            return [y for y in run(filled[:n], filled[n:], keys) if inexact(y)]

        out, pull = jax.vjp(forward, *(operands[i] for i in at))
        return pull(out)

    try:
        return _cost(back, operands, keys)
    except (ValueError, TypeError, NotImplementedError):
        return None  # it has no reverse-mode derivative, as for a while loop


# --- the table -------------------------------------------------------------------------------


def tabulate(
    module: Any,
    rngs: Any,
    depth: int | None = None,
    show_repeated: bool = False,
    mutable: Any = _NOT_INTERMEDIATES,
    console_kwargs: Mapping[str, Any] | None = None,
    table_kwargs: Mapping[str, Any] = {},
    column_kwargs: Mapping[str, Any] = {},
    compute_flops: bool = False,
    compute_vjp_flops: bool = False,
    **kwargs: Any,
) -> Callable[..., str]:
    """Return a function that takes the arguments of a call and returns a table of the module.

    The other arguments are those of `summary`; these are about looks:

    Args:
      console_kwargs: for `rich.console.Console`, for example `{"width": 120}`. By default
        `{"force_terminal": True, "force_jupyter": False}`, which means colours.
      table_kwargs: for `rich.table.Table`.
      column_kwargs: for `rich.table.Table.add_column`.

    Raises:
      MissingExtraError: rich is not installed.

    >>> import jax, liftax as nn
    >>> x = jax.ShapeDtypeStruct((2, 3), "float32")
    >>> plain = {"force_terminal": False, "width": 80}
    >>> table = nn.tabulate(nn.Dense(4), jax.random.key(0), console_kwargs=plain)(x)
    >>> table.split()[:2]
    ['Dense', 'Summary']
    """
    if importlib.util.find_spec("rich") is None:
        raise MissingExtraError(
            "tabulate draws its table with rich, which is not installed; install liftax[cli], or "
            "take the same data from liftax.summary"
        )
    rows = summary(
        module, rngs, depth, show_repeated, mutable, compute_flops, compute_vjp_flops, **kwargs
    )

    def drawn(*args: Any, **kwargs: Any) -> str:
        costs = {"flops": compute_flops, "vjp_flops": compute_vjp_flops}
        shown = tuple(name for name, wanted in costs.items() if wanted)
        table = rows(*args, **kwargs)
        return draw(table, shown, console_kwargs or {}, table_kwargs, column_kwargs)

    return drawn
