"""Module: a layer as a dataclass with variables.

A module is a value: its fields say what it computes, and two with equal fields are equal. It is
bound by being cloned onto a scope, and so the module that the user made is never changed. What it
does with variables stands in bound.py, how it finds its place in attach.py, what happens around the
calls of its methods in methods.py.
"""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

from ..core import run
from ..core.filters import Filter
from ..core.scope import Scope, Variable
from ..core.types import Function
from ..errors import (
    CallUnbindOnUnboundModuleError,
    DescriptorAttributeError,
    SetAttributeFrozenModuleError,
    SetAttributeInModuleSetupError,
)
from ..tracebacks import boundary
from ..treescoped import shown
from . import fields
from .attach import is_module, place, register
from .bound import Clones, Variables, whose
from .detach import fingerprint
from .methods import no_post_init, wrap_methods
from .run import INIT_COLLECTIONS, Rngs, apply, check_instance, function_of, init, init_with_output
from .state import DONE, NEW, RUNNING, Standing, State, local, state_of

M = TypeVar("M", bound="Module")
B = TypeVar("B", bound=Variables)


def _is_variable(value: object) -> TypeGuard[Variable]:
    return isinstance(value, Variable)


class Module(Variables):
    """The base class of layers and models.

    A subclass declares its settings as dataclass fields and its computation as
    methods. Submodules and variables are declared in ``setup``, or in a method
    marked with ``compact``. A module holds no arrays: ``init`` makes its
    variables, a dict of collections, and ``apply`` computes with them.

    Attributes:
      parent: the module or scope that it belongs to; found by itself.
      name: its name in the parent; found by itself where None.
      scope: its view of the variables, None while it is unbound.
      preserve_adopted_names: True in a class lets modules that are given to its fields keep
        the ``name`` that they were made with.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import liftax as nn
      >>> class Scale(nn.Module):
      ...     start: float = 1.0
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return x * self.param('scale', nn.initializers.constant(self.start), (1,))
      >>> variables = Scale(3.0).init(jax.random.key(0), jnp.ones(2))
      >>> Scale(3.0).apply(variables, jnp.ones(2)).tolist()
      [3.0, 3.0]
    """

    preserve_adopted_names = False
    scope = None
    # Not annotated: what has an annotation stands among the fields of the dataclass.
    _liftax_module = True
    _plain_init = True

    if typing.TYPE_CHECKING:
        parent: Any = dataclasses.field(default=None, kw_only=True, repr=False)
        name: str | None = dataclasses.field(default=None, kw_only=True)
        _state: State = dataclasses.field(init=False, repr=False)

    @boundary
    def __init_subclass__(
        cls, kw_only: bool = False, _as_base: bool = False, **kwargs: object
    ) -> None:
        super().__init_subclass__(**kwargs)
        if _as_base:  # a lifted class: its fields and other methods are the target's
            return
        written = list(cls.__dict__)
        fields.declare(cls, kw_only)
        known = cls.__dataclass_fields__
        wrap_methods(cls, [name for name in written if name not in known])

    def __post_init__(self) -> None:
        own = self.__dict__
        if "parent" not in own:
            raise no_post_init(self)
        own["_state"] = State()
        # Made in a method without a parent said, a module belongs to the module whose method runs.
        if own["parent"] is fields.UNSET:
            own["parent"] = local.stack[-1]
        if own["parent"] is not None:
            place(self)
            if self.scope is not None:
                self._adopt_fields()

    def _adopt_fields(self, names: Iterable[str] | None = None) -> None:
        """Takes the modules in the fields as submodules, once this module is bound.

        Args:
          names: the fields that may have modules in them, where that is known.
        """
        own = self.__dict__
        held = own["_state"].held = []
        for name in self._field_names if names is None else names:
            value = own.get(name)
            # Fields are read in this order, and so their modules get their automatic names.
            if type(value) not in fields.ATOMS:
                kept, has_modules = register(self, name, value)
                if has_modules:
                    held.append(name)
                if kept is not value:
                    own[name] = kept

    def _rebound(
        self, cls: type[B], scope: Scope, changes: dict[str, object], standing: Standing
    ) -> B:
        """Returns this bound module once more, on another scope.

        Args:
          cls: its class.
          changes: fields with other values.
          standing: where it goes on from.
        """
        own, state = self.__dict__, self._state
        values = {name: own[name] for name in cls._clone_names}
        values.update(changes)
        values["parent"] = scope
        if cls._plain_init and cls.__post_init__ is Module.__post_init__:
            # The quick way to the same end: the place is known, and which fields hold modules.
            made = object.__new__(cls)
            made.__dict__.update(values, scope=scope, _state=State())
            made._adopt_fields(state.held)
        else:
            made = fields.remake(cls, values)
        made_state = state_of(made)
        made_state.go_on(standing)
        if standing.within is not None:
            made_state.within = scope.push(standing.within, reuse=True)
        return made

    def __copy__(self: M) -> M:
        # The fields are shared, what the module remembers of its call is not.
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, _state=self._state.twin())
        return made

    def __deepcopy__(self: M, memo: dict[int, Any]) -> M:
        made = copy.copy(self)
        memo[id(self)] = made
        own = made.__dict__
        # In a call a copy stands where the module does: what it calls goes on there. What `bind`
        # returned, and nobody calls now, is copied with its variables.
        place = [] if local.stack[-1] is None else ["parent", "scope"]
        for name in place:
            own[name] = memo.get(id(own.get(name)), own.get(name))
        for name, value in own.items():
            if name not in place and name != "_state":
                for handle in fields.leaves(value, _is_variable):
                    memo[id(handle)] = handle
                own[name] = copy.deepcopy(value, memo)
        return made

    def __setattr__(self, name: str, value: object) -> None:
        state = self.__dict__.get("_state")
        if state is not None and not name.startswith("__"):
            if state.in_setup:
                field = type(self).__dataclass_fields__.get(name)
                if field is not None and field.init:
                    raise SetAttributeInModuleSetupError(
                        f"{whose(self)}: setup assigns the field {name!r}; fields are set when "
                        f"the module is made, give the attribute another name"
                    )
                value, _ = register(self, name, value)
            elif self.scope is not None:
                if name in fields.RESERVED:
                    raise SetAttributeFrozenModuleError(
                        f"{whose(self)}: {name} was assigned after the module had taken its place; "
                        f"it is settled when the module is made.\n"
                        f"found: self.{name} = ..., after super().__post_init__()\n"
                        f"expected: {type(self).__name__}({name}=...) where it is made, or the "
                        f"assignment before super().__post_init__()"
                    )
                # What a call would leave there, the next one would not find: it has a clone.
                raise SetAttributeFrozenModuleError(
                    f"{whose(self)}: attribute {name!r} was assigned outside setup. Modules "
                    f"are frozen: return the value, or keep it with self.variable('cache', "
                    f"{name!r}, ...) or self.sow"
                )
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        # Called only for what is not there: perhaps setup has still to make it.
        own = self.__dict__
        state = own.get("_state")
        if state is not None and not name.startswith("__"):
            if state.setup == NEW and self.scope is not None:
                self._try_setup()
                if name in own:
                    return own[name]
            found = fields.descriptor_of(type(self), name)
            if found is not None:
                raise DescriptorAttributeError(
                    f"{whose(self)}: the {found} {name!r} reads an attribute that does not exist"
                )
        made_by = fields.own_init_of(type(self))
        if made_by is not None and name in vars(made_by)["__init__"].__code__.co_names:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}: {made_by.__name__} has "
                f"an __init__ of its own, which the copies that init and apply make do not run. "
                f"Declare {name!r} as a field of the class, or make it in setup"
            )
        # No full stop: Python goes on with one, where it knows a name that may have been meant.
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}. What setup defines is "
            f"there only inside init and apply, or on a bound module"
        )

    def __dir__(self) -> list[str]:
        if self.__dict__.get("_state") is not None:
            self._try_setup()
        return sorted({*super().__dir__(), *self.__dict__})

    def __repr__(self) -> str:
        return fields.show(self)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        parts = fields.said(self) | ({} if self.name is None else {"name": self.name})
        if self.scope is not None:
            parts["variables"] = self.variables
        return shown(self, parts, path, subtree_renderer)

    def setup(self) -> None:
        """Declares submodules and variables as attributes; override it.

        It runs once, before the first method of a bound module.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import liftax as nn
          >>> class Mlp(nn.Module):
          ...     def setup(self):
          ...         self.layers = [nn.Dense(4), nn.Dense(2)]
          ...     def __call__(self, x):
          ...         for layer in self.layers:
          ...             x = layer(x)
          ...         return x
          >>> sorted(Mlp().init(jax.random.key(0), jnp.ones(3))['params'])
          ['layers_0', 'layers_1']
        """

    def _try_setup(self) -> None:
        state = self._state
        if state.setup != NEW or self.scope is None:
            return
        # Most modules have none: there is no attribute that could appear.
        if type(self).setup is Module.setup:
            state.setup = DONE
            return
        state.setup, state.in_setup = RUNNING, True
        local.stack.append(self)
        try:
            self.setup()
        # What failed half way is to be run again, not to be taken for done.
        except BaseException:
            state.setup = NEW
            raise
        finally:
            local.stack.pop()
            state.in_setup = False
        state.setup = DONE

    def clone(
        self: M,
        *,
        parent: object = None,
        _deep_clone: bool | Clones = False,
        _reset_names: bool = False,
        **updates: object,
    ) -> M:
        """Returns a copy of the module with other fields.

        Args:
          parent: the copy's parent; None leaves it unbound.
          **updates: fields to change.

        Example:
          >>> import liftax as nn
          >>> nn.Dense(3).clone(features=5).features
          5
        """
        own = self.__dict__
        if "_state" not in own:
            raise no_post_init(self)
        attrs = {name: own[name] for name in self._clone_names}
        if updates:
            # dataclasses.replace would say it of __init__, which the user did not call.
            unknown = updates.keys() - attrs.keys()
            if unknown:
                raise TypeError(
                    f"{type(self).__name__}.clone: no field is called {sorted(unknown)[0]!r}"
                )
            attrs.update(updates)
        attrs["parent"] = parent
        if _deep_clone is not False:
            # Each module in fields is cloned once, in however many places it stands: a tie of
            # weights is one instance in two places, and must be one in the clone.
            memo: Clones = _deep_clone if isinstance(_deep_clone, dict) else {}

            def copy(module: Variables) -> Variables:
                if id(module) not in memo:
                    name = {"name": None} if _reset_names else {}
                    cloned = module.clone(_deep_clone=memo, _reset_names=_reset_names, **name)
                    memo[id(module)] = (module, cloned)
                return memo[id(module)][1]

            for name, value in attrs.items():
                if name != "parent" and type(value) not in fields.ATOMS:
                    attrs[name] = fields.replaced(value, is_module, copy)
        return fields.remake(type(self), attrs)

    @boundary
    def copy(
        self: M, *, parent: object = fields.UNSET, name: str | None = None, **updates: object
    ) -> M:
        """Like `clone`, for use as a submodule of the module that runs now.

        Example:
          >>> import liftax as nn
          >>> nn.Dense(3).copy(use_bias=False).use_bias
          False
        """
        return self.clone(parent=parent, name=name, _deep_clone=True, _reset_names=False, **updates)

    @boundary
    def bind(
        self: M,
        variables: Mapping[str, object],
        *args: object,
        rngs: Rngs = None,
        mutable: Filter = False,
    ) -> M:
        """Returns the module bound to variables, for interactive use.

        Args:
          variables: collection -> nested mapping.
          *args: not used, as in Linen.
          rngs: stream -> key.
          mutable: which collections may be written.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import liftax as nn
          >>> dense = nn.Dense(2)
          >>> bound = dense.bind(dense.init(jax.random.key(0), jnp.ones(3)))
          >>> bound(jnp.ones(3)).shape
          (2,)
        """
        check_instance(self)
        return self.clone(parent=run.bind(variables, rngs, mutable), _deep_clone=True)

    @boundary
    def unbind(self: M) -> tuple[M, dict[str, Any]]:
        """Returns an unbound copy of the module and its variables.

        Raises:
          CallUnbindOnUnboundModuleError: the module is not bound.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import liftax as nn
          >>> model = nn.Sequential([nn.Dense(4), nn.Dense(2)])
          >>> bound = model.bind(model.init(jax.random.key(0), jnp.ones(3)))
          >>> last, variables = bound.layers[1].unbind()
          >>> last.apply(variables, jnp.ones(4)).shape
          (2,)
        """
        if self.scope is None:
            raise CallUnbindOnUnboundModuleError(
                f"{type(self).__name__}: unbind was called on a module that is not bound; call "
                f"it on what bind returned"
            )
        variables = self.variables
        return self.clone(name=None, _deep_clone=True, _reset_names=True), variables

    @boundary
    def apply(
        self,
        variables: Mapping[str, object],
        *args: object,
        rngs: Rngs = None,
        method: Function | str | None = None,
        mutable: Filter = False,
        capture_intermediates: bool | Callable[[Module, str], bool] = False,
        **kwargs: object,
    ) -> Any:
        """Calls a method of the module with variables.

        Args:
          variables: collection -> nested mapping.
          *args: the method's arguments.
          rngs: stream -> key, or one key for ``params``.
          method: the method, its name, or a function of the module; ``__call__``
            where None.
          mutable: the collections that may be written.
          capture_intermediates: True, or a function of (module, method name),
            stores what methods return in the collection ``intermediates``.

        Returns:
          what the method returns; with ``mutable`` (or captures) a pair of that
          and the mutable collections afterwards.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import liftax as nn
          >>> variables = nn.Dense(2).init(jax.random.key(0), jnp.ones(3))
          >>> nn.Dense(2).apply(variables, jnp.ones((4, 3))).shape
          (4, 2)
        """
        run = apply(function_of(self, method), self, mutable, capture_intermediates)
        return run(variables, *args, rngs=rngs, **kwargs)

    @boundary
    def init_with_output(
        self,
        rngs: Rngs,
        *args: object,
        method: Function | str | None = None,
        mutable: Filter = INIT_COLLECTIONS,
        capture_intermediates: bool | Callable[[Module, str], bool] = False,
        **kwargs: object,
    ) -> tuple[Any, dict[str, Any]]:
        """Makes the module's variables; returns what the method returns and them.

        Args are those of `init`. The whole method is computed.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import liftax as nn
          >>> y, variables = nn.Dense(2).init_with_output(jax.random.key(0), jnp.ones(3))
          >>> y.shape
          (2,)
        """
        fn = function_of(self, method)
        return init_with_output(fn, self, mutable, capture_intermediates)(rngs, *args, **kwargs)

    @boundary
    def init(
        self,
        rngs: Rngs,
        *args: object,
        method: Function | str | None = None,
        mutable: Filter = INIT_COLLECTIONS,
        capture_intermediates: bool | Callable[[Module, str], bool] = False,
        **kwargs: object,
    ) -> dict[str, Any]:
        """Makes the module's variables.

        Only what makes variables is computed: the method is traced once, and
        the rest of it, such as products with the inputs, is left out. A method
        that looks at values is run as it is, as `init_with_output` does.

        Args:
          rngs: a key for the stream ``params``, or stream -> key.
          *args: the method's arguments.
          method: as in `apply`.
          mutable: the collections that may be made; all but ``intermediates``.
          capture_intermediates: as in `apply`.

        Returns:
          collection -> nested dict of variables.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import liftax as nn
          >>> variables = nn.Dense(2).init(jax.random.key(0), jnp.ones(3))
          >>> jax.tree.map(jnp.shape, variables)
          {'params': {'bias': (2,), 'kernel': (3, 2)}}
        """
        fn = function_of(self, method)
        return init(fn, self, mutable, capture_intermediates)(rngs, *args, **kwargs)

    @boundary
    def lazy_init(
        self,
        rngs: Rngs,
        *args: object,
        method: Function | None = None,
        mutable: Filter = INIT_COLLECTIONS,
        **kwargs: object,
    ) -> dict[str, Any]:
        """Makes the module's variables from the shapes of the inputs.

        Args:
          rngs: as in `init`.
          *args: arrays, or ``jax.ShapeDtypeStruct`` in their place.

        Raises:
          LazyInitError: an initial value depends on an input's values.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import liftax as nn
          >>> x = jax.ShapeDtypeStruct((8, 3), jnp.float32)
          >>> nn.Dense(2).lazy_init(jax.random.key(0), x)['params']['kernel'].shape
          (3, 2)
        """
        fn = function_of(self, method)
        return init(fn, self, mutable)(rngs, *args, **kwargs)

    def _fingerprint(self) -> Hashable:
        """Returns a key: equal for modules that compute alike, whatever their names."""
        return fingerprint(self, {})

    @boundary
    def tabulate(
        self,
        rngs: Rngs,
        *args: object,
        depth: int | None = None,
        show_repeated: bool = False,
        mutable: Filter = INIT_COLLECTIONS,
        console_kwargs: Mapping[str, object] | None = None,
        table_kwargs: Mapping[str, object] = {},
        column_kwargs: Mapping[str, object] = {},
        compute_flops: bool = False,
        compute_vjp_flops: bool = False,
        **kwargs: object,
    ) -> str:
        """Returns a table of the module and its submodules; see `liftax.tabulate`."""
        # Here and below in the method: few programs ask for it, and all of them import this file.
        from .summary import tabulate

        table = tabulate(
            self, rngs, depth, show_repeated, mutable, console_kwargs, table_kwargs, column_kwargs,
            compute_flops, compute_vjp_flops,
        )  # fmt: skip
        return table(*args, **kwargs)

    @boundary
    def module_paths(
        self,
        rngs: Rngs,
        *args: object,
        show_repeated: bool = False,
        mutable: Filter = INIT_COLLECTIONS,
        **kwargs: object,
    ) -> dict[str, Module]:
        """Returns path -> module for the modules that ``init`` calls, unbound."""
        from .summary import module_paths

        paths = module_paths(self, rngs, show_repeated=show_repeated, mutable=mutable)
        return paths(*args, **kwargs)


fields.declare(Module, False)
