"""What a module consists of, as data (`summary`), as a table (`tabulate`) and by path.

All three trace `init` with `jax.eval_shape`: nothing is computed and no array is made, whatever the
size of the model. Every call of every method is a row, in the order in which the calls begin. A
variable is counted once: by the first row of the module that owns it or, if that row is not shown,
by the nearest module above it that is. The counts of the rows always add up to the total.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from ..core.filters import Filter
from ..core.trees import abstract
from ..core.types import Function
from ..errors import MissingExtraError
from ..installed import how_to_install
from ..pytrees import Rest, floats, is_array, is_inexact, split
from .bound import Variables
from .methods import InterceptorContext
from .run import INIT_COLLECTIONS, Rngs
from .state import LIFTED, intercept_methods
from .summary_table import draw
from .work import estimated, with_loops

T = TypeVar("T")
Path = tuple[str, ...]
Tree = dict[str, Any]
"""Variables as shapes, by name: a tree for the user to look into."""
_Owned = dict[Path, dict[str, Tree]]


def size_and_bytes(tree: object) -> tuple[int, int]:
    """How many numbers the arrays of ``tree`` hold, and how many bytes."""
    leaves = list(filter(is_array, jax.tree.leaves(tree)))
    sizes = [int(np.prod(x.shape, dtype=np.int64)) for x in leaves]
    return sum(sizes), sum(n * x.dtype.itemsize for n, x in zip(sizes, leaves, strict=True))


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

    path: Path
    module_copy: Any
    method: str
    inputs: Any
    outputs: Any
    module_variables: dict[str, Tree]
    counted_variables: dict[str, Tree]
    flops: int | None = None
    vjp_flops: int | None = None

    @property
    def class_name(self) -> str:
        """The name of the module's class."""
        return type(self.module_copy).__name__

    def count(self, collection: str) -> tuple[int, int]:
        """How many numbers this row counts in ``collection``, and how many bytes."""
        return size_and_bytes(self.counted_variables.get(collection, {}))


@dataclasses.dataclass(frozen=True)
class Summary(Sequence[Row]):
    """The rows of a module, and all its variables as shapes, collection by collection."""

    module: Any
    variables: dict[str, Tree]
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


@dataclasses.dataclass(frozen=True)
class _Call:
    path: Path
    module: Any
    method: str
    args: tuple[object, ...]
    kwargs: dict[str, object]
    outputs: object


def _shapes(tree: T) -> T:
    """The same tree with shapes for arrays; other leaves stay."""
    shapes: T = jax.tree.map(lambda x: abstract(x) if is_array(x) else x, tree)
    return shapes


def _trace(
    module: Any, rngs: Rngs, mutable: Filter, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[list[_Call], dict[str, Tree]]:
    """Runs `init` on shapes; returns its calls in the order of their beginnings, and the variables.

    Both leave by the side, since neither need be made of arrays only.
    """
    calls: list[_Call | None] = []
    variables: dict[str, Tree] = {}

    # A pure function of shapes alone would not do: methods are called on modules, with whatever
    # arguments, so the calls are heard of by an interceptor while `init` is traced.
    def record(
        next_fun: Function,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        context: InterceptorContext,
    ) -> object:
        called = context.module
        # A lifted method has no row beside that of the method inside.
        if context.method_name in ("setup", LIFTED) or called.scope is None:
            return next_fun(*args, **kwargs)
        # The place is kept now, and the row filled in when the call has an output. The copy is of
        # now too: the module goes on.
        at = len(calls)
        calls.append(None)
        copy = called.clone(name=None, _deep_clone=True, _reset_names=True)
        args_in, kwargs_in = _shapes((args, kwargs))
        out = next_fun(*args, **kwargs)
        calls[at] = _Call(called.path, copy, context.method_name, args_in, kwargs_in, _shapes(out))
        return out

    arrays, rest = _arrays((rngs, args, kwargs))

    def init(arrays: list[jax.Array]) -> None:
        rngs, args, kwargs = rest.filled(arrays)
        with intercept_methods(record):
            variables.update(_shapes(module.init(rngs, *args, mutable=mutable, **kwargs)))

    jax.eval_shape(init, arrays)
    return [call for call in calls if call is not None], variables


def _arrays(tree: object) -> tuple[list[jax.ShapeDtypeStruct], Rest]:
    """The arrays of a tree as shapes, and the rest of it, to be filled with others."""
    arrays, rest = split(tree, is_array)
    return _shapes(arrays), rest


def _first_of_each_path(calls: list[_Call]) -> list[_Call]:
    first: dict[Path, _Call] = {}
    for call in calls:
        first.setdefault(call.path, call)
    return list(first.values())


def module_paths(
    module: Variables,
    rngs: Rngs,
    show_repeated: bool = False,
    mutable: Filter = INIT_COLLECTIONS,
    **kwargs: object,
) -> Callable[..., dict[str, Any]]:
    """Returns a function of the arguments of a call that maps paths to unbound copies of modules.

    It has an entry for every module that runs in `init`.

    Args:
      module: an unbound module.
      rngs: the keys, as for `init`.
      show_repeated: take a module as it was called last, rather than first.
      mutable: the collections that may change, as for `init`.
      **kwargs: further arguments of `init`, such as `method`.

    Example:
      >>> import jax, liftax as nn
      >>> x = jax.ShapeDtypeStruct((2, 3), "float32")
      >>> paths = nn.Sequential([nn.Dense(4), nn.Dense(1)]).module_paths(jax.random.key(0), x)
      >>> {path: type(module).__name__ for path, module in paths.items()}
      {'': 'Sequential', 'layers_0': 'Dense', 'layers_1': 'Dense'}
    """
    init_kwargs = kwargs

    def find(*args: object, **kwargs: object) -> dict[str, Any]:
        calls, _ = _trace(module, rngs, mutable, args, {**init_kwargs, **kwargs})
        if not show_repeated:
            calls = _first_of_each_path(calls)
        return {"/".join(call.path): call.module for call in calls}

    return find


def summary(
    module: Variables,
    rngs: Rngs,
    depth: int | None = None,
    show_repeated: bool = False,
    mutable: Filter = INIT_COLLECTIONS,
    compute_flops: bool = False,
    compute_vjp_flops: bool = False,
    **kwargs: object,
) -> Callable[..., Summary]:
    """Returns a function that takes the arguments of a call and returns the rows of the module.

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
      ValueError: ``depth`` is negative.

    Example:
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
    counts = (("flops", compute_flops, _cost), ("vjp_flops", compute_vjp_flops, _vjp_cost))
    asked = {name: count for name, wanted, count in counts if wanted}

    def summarize(*args: object, **kwargs: object) -> Summary:
        calls, variables = _trace(module, rngs, mutable, args, {**init_kwargs, **kwargs})
        shown = calls if show_repeated else _first_of_each_path(calls)
        if depth is not None:
            shown = [call for call in shown if len(call.path) <= depth]

        # A variable belongs to its module, and is counted by the nearest row at or above that.
        owned = _by_owner(variables, {call.path for call in calls})
        counted = _by_owner(variables, {call.path for call in shown})
        rows = []
        costs: dict[Hashable, dict[str, int | None]] = {}
        for call in shown:
            key = _same_cost(call) if asked else None
            if key is None or key not in costs:
                costs[key] = _costs(call, rngs, mutable, asked)
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
                    **costs[key],
                )
            )
        return Summary(module, variables, tuple(rows))

    return summarize


def _inputs(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    if kwargs and not args:
        return kwargs
    everything = (*args, kwargs) if kwargs else args
    return everything[0] if len(everything) == 1 else everything


def _by_owner(variables: Mapping[str, Tree], paths: set[Path]) -> _Owned:
    """Divides the variables among modules: each goes to the nearest of ``paths`` at or above it."""
    owned: _Owned = {}
    for collection, tree in variables.items():
        _divide(tree, (), (), collection, paths, owned)
    return owned


def _divide(
    tree: object, path: Path, owner: Path, collection: str, paths: set[Path], owned: _Owned
) -> None:
    if path in paths:
        owner = path
    if isinstance(tree, Mapping) and (tree or not path):
        for name, value in tree.items():
            _divide(value, (*path, name), owner, collection, paths, owned)
        return
    into = owned.setdefault(owner, {}).setdefault(collection, {})
    *parents, name = path[len(owner) :] or ("",)
    for parent in parents:
        into = into.setdefault(parent, {})
    if path != owner:
        into[name] = tree


def _same_cost(call: _Call) -> Hashable:
    """A key: equal for calls that are the same program; None where that is not known."""
    leaves, treedef = jax.tree.flatten((call.args, call.kwargs))
    # A shape is equal to another of that shape and dtype; 1 and True are equal and not the same.
    key = (call.module, call.method, treedef, *((type(leaf), leaf) for leaf in leaves))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _costs(
    call: _Call, rngs: Rngs, mutable: Filter, asked: Mapping[str, Callable[..., int | None]]
) -> dict[str, int | None]:
    if not asked:
        return {}
    try:
        run, operands = _repeated(call, rngs, mutable)
    # The call went well inside the model. If it fails alone, it needs something from around it:
    # an axis name of a vmap, a bound module. That is no mistake of anybody.
    except Exception:
        return {}
    return {name: count(run, operands) for name, count in asked.items()}


_Arrays = list[jax.Array] | list[jax.ShapeDtypeStruct]
_Run = Callable[[tuple[_Arrays, _Arrays, _Arrays]], list[jax.Array]]


def _repeated(
    call: _Call, rngs: Rngs, mutable: Filter
) -> tuple[_Run, tuple[_Arrays, _Arrays, _Arrays]]:
    """One call as a function of (variables, arguments, keys), and the shapes of those."""
    keys, rest_of_keys = _arrays(rngs)
    arrays, rest = _arrays((call.args, call.kwargs))
    initial: dict[str, Tree] = {}

    def method(module: object, arrays: Sequence[object]) -> object:
        args, kwargs = rest.filled(arrays)
        return getattr(module, call.method)(*args, **kwargs)

    def init(arrays: list[jax.Array], keys: list[jax.Array]) -> None:
        rngs = rest_of_keys.filled(keys)
        initial.update(_shapes(call.module.init(rngs, arrays, method=method, mutable=mutable)))

    jax.eval_shape(init, arrays, keys)
    variables, rest_of_variables = _arrays(initial)

    def run(operands: tuple[_Arrays, _Arrays, _Arrays]) -> list[jax.Array]:
        variables, arrays, keys = operands
        out = call.module.apply(
            rest_of_variables.filled(variables),
            arrays,
            rngs=rest_of_keys.filled(keys),
            method=method,
            mutable=mutable,
        )
        return [leaf for leaf in jax.tree.leaves(out) if isinstance(leaf, jax.Array)]

    operands = variables, arrays, keys
    jax.eval_shape(run, operands)
    return run, operands


def _cost(fn: Function, operands: object) -> int | None:
    """XLA's estimate of the floating-point operations, with loops as often as they run."""
    # Lowered and not compiled: an estimate is asked for, of every call in a model.
    closed = jax.make_jaxpr(fn)(operands)
    once = estimated(closed)
    return None if once is None else int(with_loops(closed, once, estimated).flops)


def _vjp_cost(run: _Run, operands: tuple[_Arrays, _Arrays, _Arrays]) -> int | None:
    # Keys are no numbers, so they are not among what is differentiated, as integers are not.
    if not any(map(is_inexact, jax.tree.leaves(operands))):
        return 0
    if not any(map(is_inexact, jax.eval_shape(run, operands))):
        return 0

    def back(operands: tuple[_Arrays, _Arrays, _Arrays]) -> object:
        chosen, rest = split(operands, is_inexact)
        out, pull = jax.vjp(lambda chosen: floats(run(rest.filled(chosen))), chosen)
        return pull(out)

    try:
        return _cost(back, operands)
    except (ValueError, TypeError, NotImplementedError):
        return None  # it has no reverse-mode derivative, as for a while loop


def tabulate(
    module: Variables,
    rngs: Rngs,
    depth: int | None = None,
    show_repeated: bool = False,
    mutable: Filter = INIT_COLLECTIONS,
    console_kwargs: Mapping[str, object] | None = None,
    table_kwargs: Mapping[str, object] = {},
    column_kwargs: Mapping[str, object] = {},
    compute_flops: bool = False,
    compute_vjp_flops: bool = False,
    **kwargs: object,
) -> Callable[..., str]:
    """Returns a function that takes the arguments of a call and returns a table of the module.

    The other arguments are those of `summary`; these are about looks:

    Args:
      console_kwargs: for `rich.console.Console`, for example `{"width": 120}`. By default
        `{"force_terminal": True, "force_jupyter": False}`, which means colours.
      table_kwargs: for `rich.table.Table`.
      column_kwargs: for `rich.table.Table.add_column`.

    Raises:
      MissingExtraError: rich is not installed.

    Example:
      >>> import jax, liftax as nn
      >>> x = jax.ShapeDtypeStruct((2, 3), "float32")
      >>> plain = {"force_terminal": False, "width": 80}
      >>> table = nn.tabulate(nn.Dense(4), jax.random.key(0), console_kwargs=plain)(x)
      >>> table.split()[:2]
      ['Dense', 'Summary']
    """
    if importlib.util.find_spec("rich") is None:
        raise MissingExtraError(
            f"tabulate draws its table with rich, which is not installed: {how_to_install('cli')}; "
            f"or take the same data from liftax.summary"
        )
    rows = summary(
        module, rngs, depth, show_repeated, mutable, compute_flops, compute_vjp_flops, **kwargs
    )

    def drawn(*args: object, **kwargs: object) -> str:
        costs = {"flops": compute_flops, "vjp_flops": compute_vjp_flops}
        shown = tuple(name for name, wanted in costs.items() if wanted)
        table = rows(*args, **kwargs)
        return draw(table, shown, console_kwargs or {}, table_kwargs, column_kwargs)

    return drawn
