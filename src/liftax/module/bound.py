"""What a module does with its variables and keys.

Each method asks the module's scope, and says first what only a module can get wrong: that it is
bound to no variables, or declares one in a method that is not compact.
"""

from __future__ import annotations

import dataclasses
import operator
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..core.scope import Scope, Variable
from ..core.types import Function
from ..errors import NameInUseError, PerturbationNotFoundError, UnboundModuleError, UndeclaredError
from ..tracebacks import boundary
from .state import DONE, Standing, State

T = TypeVar("T")
M = TypeVar("M", bound="Variables")
Clones = dict[int, tuple[object, "Variables"]]
"""By its identity, a module (held, so that the identity stays its own) and its clone."""


def _appended(values: Iterable[object], value: object) -> tuple[object, ...]:
    # To unpack a tuple copies it twice, and thousands may be gathered one by one.
    return values + (value,) if type(values) is tuple else (*values, value)


@typing.dataclass_transform(field_specifiers=(dataclasses.field,))
class Variables:
    """The methods of a module that read and write variables."""

    scope: Scope | None
    parent: Any
    name: str | None
    _state: State

    if typing.TYPE_CHECKING:  # what Module adds, for the files between this one and it
        preserve_adopted_names: typing.ClassVar[bool]
        _field_names: typing.ClassVar[tuple[str, ...]]
        _compared: typing.ClassVar[operator.attrgetter[object]]
        _clone_names: typing.ClassVar[tuple[str, ...]]
        _plain_init: typing.ClassVar[bool]

        def __post_init__(self) -> None: ...
        def clone(
            self: M,
            *,
            parent: object = None,
            _deep_clone: bool | Clones = False,
            _reset_names: bool = False,
            **updates: object,
        ) -> M: ...
        def _adopt_fields(self, names: Iterable[str] | None = None) -> None: ...
        def _rebound(
            self, cls: type[M], scope: Scope, changes: dict[str, object], standing: Standing
        ) -> M: ...
        def _try_setup(self) -> None: ...

    def _bound_scope(self, use: str) -> Scope:
        if self.scope is None:
            raise UnboundModuleError(
                f"{type(self).__name__}: {use} needs a bound module; use it inside init or "
                f"apply, or on what bind returned"
            )
        return self.scope

    def _declaring_scope(self, what: str, name: str, col: str) -> Scope:
        scope = self._bound_scope(what)
        state = self._state
        # In any other method a second call would meet the name that the first one took: names are
        # free again at the end of a compact method only.
        if not (state.in_compact or state.in_setup):
            raise UndeclaredError(
                f"{whose(self)}: {what} {name!r} was declared outside setup and outside a "
                f"compact method; move it to setup, or decorate the method with @nn.compact"
            )
        # The scope would refuse it too, but it cannot say which module this is.
        if scope.name_reserved(name, col):
            raise NameInUseError(
                f"{whose(self)}: the name {name!r} is in use and cannot also be {what} {name!r}"
            )
        return scope

    @property
    def _initialization_allowed(self) -> bool:
        # Linen's name, which interceptors of public code ask: the setup ran, and no compact method
        # runs, so nothing can be declared.
        state = self._state
        return state.setup != DONE or state.in_setup or state.in_compact

    def param(
        self,
        name: str,
        init_fn: Function,
        *init_args: object,
        unbox: bool = True,
        **init_kwargs: object,
    ) -> Any:
        """Declares a parameter and returns its value; see ``Scope.param``.

        Args:
          name: the parameter's name in this module.
          init_fn: called as ``init_fn(key, *init_args, **init_kwargs)`` where the
            parameter is missing and may be made.
          unbox: False returns the metadata box around the value.

        Raises:
          ScopeParamNotFoundError, ScopeParamShapeError, NameInUseError.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import liftax as nn
          >>> class Bias(nn.Module):
          ...     @nn.compact
          ...     def __call__(self, x):
          ...         return x + self.param('bias', nn.initializers.zeros, (x.shape[-1],))
          >>> Bias().init(jax.random.key(0), jnp.ones((2, 3)))['params']['bias'].shape
          (3,)
        """
        scope = self._declaring_scope("parameter", name, "params")
        value = scope.param(name, init_fn, *init_args, unbox=unbox, **init_kwargs)
        self._state.children[name] = None
        return value

    def variable(
        self,
        col: str,
        name: str,
        init_fn: Function | None = None,
        *init_args: object,
        unbox: bool = True,
        **init_kwargs: object,
    ) -> Variable:
        """Declares a variable in a collection; see ``Scope.variable``.

        Args:
          col: the collection.
          name: the variable's name in this module.
          init_fn: called as ``init_fn(*init_args, **init_kwargs)`` where the
            variable is missing and may be made.
          unbox: False keeps the metadata box around ``value``.

        Example:
          >>> import liftax as nn
          >>> class Count(nn.Module):
          ...     @nn.compact
          ...     def __call__(self):
          ...         calls = self.variable('state', 'calls', lambda: 0)
          ...         calls.value += 1
          >>> Count().apply({'state': {'calls': 4}}, mutable='state')[1]
          {'state': {'calls': 5}}
        """
        scope = self._declaring_scope("variable", name, col)
        made = scope.variable(col, name, init_fn, *init_args, unbox=unbox, **init_kwargs)
        self._state.children[name] = None
        return made

    def has_variable(self, col: str, name: str) -> bool:
        """Tells whether the module has the variable."""
        return self._bound_scope("has_variable").has_variable(col, name)

    def get_variable(self, col: str, name: str, default: object = None) -> Any:
        """Returns a variable's value, boxed if it is, or ``default`` if it is missing."""
        return self._bound_scope("get_variable").get_variable(col, name, default)

    def put_variable(self, col: str, name: str, value: object) -> None:
        """Writes a variable of a mutable collection, making it if it is missing."""
        self._bound_scope("put_variable").put_variable(col, name, value)

    def is_mutable_collection(self, col: str) -> bool:
        """Tells whether the collection may be written in this call."""
        return self._bound_scope("is_mutable_collection").is_mutable_collection(col)

    def has_rng(self, name: str) -> bool:
        """Tells whether a key was handed in for the stream."""
        return self._bound_scope("has_rng").has_rng(name)

    def make_rng(self, name: str = "params") -> jax.Array:
        """Draws the next key of a stream; see ``Scope.make_rng``.

        Args:
          name: the stream; one that was not handed in falls back on ``params``.

        Raises:
          InvalidRngError: there is no key for it.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import liftax as nn
          >>> class Noise(nn.Module):
          ...     def __call__(self, x):
          ...         return x + jax.random.normal(self.make_rng('noise'), x.shape)
          >>> Noise().apply({}, jnp.ones(3), rngs={'noise': jax.random.key(0)}).shape
          (3,)
        """
        return self._bound_scope("make_rng").make_rng(name)

    def is_initializing(self) -> bool:
        """Tells whether this call makes variables: ``init``, not ``apply``."""
        return self._bound_scope("is_initializing").get_flag("initializing", False)

    @property
    @boundary
    def variables(self) -> dict[str, Any]:
        """The module's variables, collection -> nested dict."""
        return self._bound_scope("variables").variables()

    @property
    @boundary
    def path(self) -> tuple[str, ...]:
        """The names from the root module down to this one."""
        return self._bound_scope("path").path

    def sow(
        self,
        col: str,
        name: str,
        value: object,
        reduce_fn: Callable[[Any, Any], object] = _appended,
        init_fn: Callable[[], object] = tuple,
    ) -> bool:
        """Stores a value in a collection, if the caller asked for that collection.

        Args:
          col: the collection.
          name: where; values sown under one name are gathered.
          value: the value.
          reduce_fn: ``(gathered, value) -> gathered``; appends to a tuple.
          init_fn: makes the first ``gathered``.

        Returns:
          whether the collection is mutable, so the value was stored.

        Raises:
          UnnamedCollectionError: a lift in force would lose the value.

        Example:
          >>> import liftax as nn
          >>> class Probe(nn.Module):
          ...     def __call__(self, x):
          ...         self.sow('intermediates', 'x', x)
          ...         return x
          >>> Probe().apply({}, 3.0, mutable='intermediates')
          (3.0, {'intermediates': {'x': (3.0,)}})
        """
        # A lift that leaves the collection outside would lose the value: that is no False.
        scope = self._bound_scope("sow")
        if not scope.is_mutable_collection(col):
            scope.check_named(col)
            return False
        if scope.has_variable(col, name):
            gathered = scope.get_variable(col, name)
        else:
            scope.reserve(name, col)
            self._state.children[name] = None
            gathered = init_fn()
        scope.put_variable(col, name, reduce_fn(gathered, value))
        return True

    @boundary
    def perturb(self, name: str, value: T, collection: str = "perturbations") -> T:
        """Adds a zero variable to a value, so that its gradient can be taken.

        Args:
          name: the perturbation's name.
          value: an array, or a pytree of arrays.
          collection: where the zeros live; without it in ``apply`` the value is
            returned as it is.

        Raises:
          PerturbationNotFoundError: others of the collection are given, this one is not.

        Example:
          >>> import jax
          >>> import liftax as nn
          >>> class Square(nn.Module):
          ...     def __call__(self, x):
          ...         return self.perturb('h', x) ** 2
          >>> variables = Square().init(jax.random.key(0), 3.0)
          >>> def loss(perturbations):
          ...     return Square().apply({'perturbations': perturbations}, 3.0)
          >>> float(jax.grad(loss)(variables['perturbations'])['h'])
          6.0
        """
        # The zeros are there, or are made now, or nobody asked for any; that some were given and
        # not these is a mistake, since the gradient would be of something else.
        scope = self._bound_scope("perturb")
        if not scope.has_variable(collection, name):
            if not scope.is_mutable_collection(collection):
                scope.check_named(collection)
                if collection in scope.collections():
                    raise PerturbationNotFoundError(
                        f"{whose(self)}: perturbation {name!r} is missing in collection "
                        f"{collection!r}, which is given; pass all that init made, or leave the "
                        f"collection out"
                    )
                return value
            scope.reserve(name, collection)
            self._state.children[name] = None
            scope.put_variable(collection, name, jax.tree.map(jnp.zeros_like, value))
        return jax.tree.map(jnp.add, value, scope.get_variable(collection, name))


def whose(module: Variables) -> str:
    """Names a module by its place, the lift in force there and its class, for messages."""
    if module.scope is None:
        return f"module {type(module).__name__} (unbound)"
    return f"{module.scope.where()} ({type(module).__name__})"
