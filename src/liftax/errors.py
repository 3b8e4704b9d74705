"""Every error that liftax raises, one class per mistake, under :class:`LiftaxError`.

The class names are those that Linen users already catch. A message names the
module's path, the lift, the collection or stream, what was found, what was
expected and the argument to change; it never prints array contents.

``code`` is the stable code of the rule that was broken, where the rule has a
page in the documentation, and ``None`` elsewhere. A traceback shows it below the
message, as a note. The table of all codes stands at the end: an *error* is raised
where the result would be wrong or lost; a *warning* (`LiftWarning`) is issued where
something may be meant; a *note* stands only among the findings of a `Layout`.

A rule that goes away leaves a gap. LX1xx are about a lift's arguments and its body,
LX2xx about random streams, LX3xx about what is lifted and what comes out of it, LX4xx
about modules and their variables, LX5xx about stacks and checkpoints, LX9xx are notes.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable
from dataclasses import dataclass


class LiftaxError(Exception):
    """The base class of all errors of liftax.

    Example:
      >>> import liftax as nn
      >>> issubclass(nn.errors.ScopeParamShapeError, nn.errors.LiftaxError)
      True
    """

    code: str | None = None

    def __init__(self, *args: object):
        super().__init__(*args)
        if self.code is not None:
            self.add_note(f"{self.code}: `liftax explain {self.code}` shows an example and the fix")


FlaxError = LiftaxError
"""The name under which Linen users catch the base class."""


def where(path: Iterable[str], lift: str | None = None) -> str:
    """Names a place in the model: ``module /encoder/block`` and the lift in force.

    Args:
      path: names from the root module down to the place; empty for the root.
      lift: the lift in force there, e.g. ``"scan"``, or None.

    Example:
      >>> where(('encoder', 'block'), 'scan')
      'module /encoder/block, inside scan'
    """
    text = "module /" + "/".join(path)
    return f"{text}, inside {lift}" if lift else text


# --- scopes, variables and streams -----------------------------------------


class InvalidScopeError(LiftaxError):
    """A scope was used after the call that it belongs to had ended."""

    code = "LX414"


class InvalidFilterError(LiftaxError):
    """A collection filter is not a bool, a name, a container of names or a DenyList."""

    code = "LX111"


class InvalidRngError(LiftaxError):
    """A stream is missing, or what was handed in is not a key."""

    code = "LX203"


class InvalidKeyError(InvalidRngError, ValueError):
    """What was handed in for a stream is no key."""


class LazyInitError(LiftaxError):
    """A variable's initial value depends on an input of which only the shape is known."""

    code = "LX428"


class ApplyScopeInvalidVariablesTypeError(LiftaxError):
    """The variables given to apply are not a mapping of collections."""

    code = "LX426"


class ApplyScopeInvalidVariablesStructureError(LiftaxError):
    """The variables given to apply have a collection nested in itself."""

    code = "LX427"


class ScopeParamNotFoundError(LiftaxError):
    """A parameter is missing and may not be created here."""

    code = "LX421"


class ScopeCollectionNotFound(LiftaxError):
    """A whole collection is missing and may not be created here."""

    code = "LX422"


class ScopeParamShapeError(LiftaxError):
    """A parameter's shape is not the one its initializer declares."""

    code = "LX424"


class ScopeVariableNotFoundError(LiftaxError):
    """A variable is missing and may not be created here."""

    code = "LX423"


class PerturbationNotFoundError(ScopeVariableNotFoundError, ValueError):
    """Some perturbations were given, and not the one that is added here."""


class ModifyScopeVariableError(LiftaxError):
    """A variable was written in a collection that is not mutable."""

    code = "LX425"


class ImmutableVariableError(ModifyScopeVariableError):
    """A variable was written in a collection that this call may only read."""


class JaxTransformError(LiftaxError):
    """A module or scope was used inside a JAX transformation that it knows nothing of."""

    code = "LX308"


class TraceContextError(JaxTransformError):
    """A value was used outside the trace that it belongs to."""


class LeakedTracerError(JaxTransformError):
    """A traced value was about to come back as a variable."""

    code = "LX303"


class PartitioningUnspecifiedError(LiftaxError):
    """A lift adds an axis to boxed variables but no name was given for it."""

    code = "LX112"


# --- modules ----------------------------------------------------------------


class NameInUseError(LiftaxError):
    """A name was given to two different things in one module."""

    code = "LX403"


class InvalidNameError(NameInUseError, TypeError):
    """The name of a submodule or variable is no text."""


class AssignSubModuleError(LiftaxError):
    """A submodule was made outside ``setup`` and outside a compact method."""

    code = "LX404"


class InvalidParentError(AssignSubModuleError, ValueError):
    """``parent=`` is neither None nor a module nor a scope."""


class SetAttributeInModuleSetupError(LiftaxError):
    """A field of the dataclass was assigned in ``setup``."""

    code = "LX402"


class SetAttributeFrozenModuleError(LiftaxError):
    """An attribute was assigned outside ``setup``; modules are frozen."""

    code = "LX401"


class MultipleMethodsCompactError(LiftaxError):
    """A name that Linen users may catch; several ``@compact`` methods are no mistake here."""


class ReservedModuleAttributeError(LiftaxError):
    """A module defines a field called ``parent`` or ``name``."""

    code = "LX406"


class ApplyModuleInvalidMethodError(LiftaxError, AttributeError):
    """``method=`` is neither a method of the module nor a function of it."""

    code = "LX407"


class NotCallableMethodError(ApplyModuleInvalidMethodError, TypeError):
    """``method=`` is, or names, something that cannot be called."""


class CallCompactUnboundModuleError(LiftaxError):
    """A module was called outside ``init``, ``apply`` or ``bind``."""

    code = "LX408"


class CallSetupUnboundModuleError(LiftaxError):
    """``setup`` was called by hand on an unbound module."""

    code = "LX409"


class CallUnbindOnUnboundModuleError(LiftaxError):
    """``unbind`` was called on a module that is not bound."""

    code = "LX410"


class CallShareScopeOnUnboundModuleError(LiftaxError):
    """``share_scope`` was called with a module that is not bound."""

    code = "LX415"


class InvalidInstanceModuleError(LiftaxError):
    """``init`` or ``apply`` was called on a class instead of an instance."""

    code = "LX411"


class IncorrectPostInitOverrideError(LiftaxError):
    """``__post_init__`` was overridden without calling the base class's."""

    code = "LX412"


class UnboundModuleError(LiftaxError, ValueError):
    """Variables or keys of a module were asked for that is not bound."""

    code = "LX417"


class UndeclaredError(LiftaxError, ValueError):
    """A variable was declared outside ``setup`` and outside a compact method."""

    code = "LX416"


class DescriptorAttributeError(LiftaxError):
    """A descriptor of a module raised ``AttributeError`` while it was read."""

    code = "LX413"


# --- lifts ------------------------------------------------------------------


class LiftError(LiftaxError):
    """The base class of the mistakes that only a lift can meet."""


class TransformTargetError(LiftError):
    """A lift was given something that is neither a module class nor a function."""

    code = "LX304"


class TransformedMethodReturnValueError(LiftError):
    """A lifted method returned a module or a variable."""

    code = "LX306"


class LiftMethodError(LiftError, AttributeError):
    """An entry of ``methods=`` names no method of the target."""

    code = "LX305"


class RoleError(LiftError, ValueError):
    """The table of roles contradicts itself: one collection, two roles."""

    code = "LX108"


class UnnamedCollectionError(LiftError):
    """A collection is used inside a lift but none of its arguments names it."""

    code = "LX101"


class UnusedFilterError(LiftError, ValueError):
    """A key of ``variable_axes`` or ``split_rngs`` matched nothing."""

    code = "LX107"


class CarryError(LiftError, TypeError):
    """The carry changes its structure, shape or dtype from one iteration to the next."""

    code = "LX102"


class BodyReturnError(LiftError, TypeError):
    """The body of a scan returned something other than a pair ``(carry, ys)``."""

    code = "LX103"


class LengthError(LiftError, ValueError):
    """The number of iterations is missing, contradictory or negative."""

    code = "LX104"


class AxisError(LiftError, ValueError):
    """An axis is out of range for the array that it is applied to."""

    code = "LX105"


class AxisNameError(LiftError, NameError):
    """A collective uses the name of an axis that no lift around it gives."""

    code = "LX114"


class AxesTreeError(LiftError, ValueError):
    """``in_axes`` or ``out_axes`` is not a prefix of the tree that it describes."""

    code = "LX106"


class LoopDependentError(LiftError, ValueError):
    """A value declared ``broadcast`` depends on the carry or on a scanned value."""

    code = "LX110"


class LiftOptionError(LiftError, ValueError):
    """An option of a lift has a value that means nothing: ``unroll=0``, ``reverse='yes'``."""

    code = "LX117"


class SplitSharedError(LiftError, ValueError):
    """A shared variable would be initialised differently in each iteration."""

    code = "LX201"


class ClosedOverModuleError(LiftError):
    """A lifted function uses a bound module that was not passed to it."""

    code = "LX301"


class TiedModulesError(LiftError):
    """A lift would give two copies to what is one shared module outside it."""

    code = "LX302"


class BranchError(LiftError, TypeError):
    """The branches of a conditional disagree on what they return or create."""

    code = "LX109"


class ConditionError(BranchError):
    """The condition of a cond, switch or while loop is not one bool, or not one index."""

    code = "LX115"


class DifferentiationError(LiftError, TypeError):
    """A function, its tangents or its cotangents do not fit the derivative asked for."""

    code = "LX116"


class StaticArgumentError(LiftError, ValueError):
    """A static argument is out of range, unhashable, or named twice."""

    code = "LX307"


class PartitioningMismatchError(LiftaxError, ValueError):
    """The axis names of a boxed variable contradict its array, the mesh or the lift."""

    code = "LX113"


# --- warnings ---------------------------------------------------------------


class LiftWarning(UserWarning):
    """Something that may be meant, and may be a slip; the text starts with the rule's code.

    Args:
      code: the rule's stable code.
      text: what was found, and the argument to change.

    Example:
      One rule can be silenced by its code, or made an error.

      >>> import warnings
      >>> warnings.filterwarnings('ignore', 'LX202', LiftWarning)
      >>> warnings.warn(LiftWarning('LX202', 'stream params is not split'))
    """

    def __init__(self, code: str, text: str):
        super().__init__(f"{code}: {text}")
        self.code = code
        self._given = code, text

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), self._given


# --- layers -----------------------------------------------------------------


class LayerError(LiftaxError, ValueError):
    """A layer's options contradict each other, or do not fit the shape of its input."""

    code = "LX429"


class MissingExtraError(LiftaxError, ImportError):
    """A feature needs an optional package that is not installed; the message names the extra."""

    code = "LX504"


# --- stacks and checkpoints -------------------------------------------------


class StackingError(LiftaxError, ValueError):
    """Variables and the description of how their layers are stacked contradict each other."""

    code = "LX502"


class CheckpointError(LiftaxError, ValueError):
    """A checkpoint is damaged, is of another kind, or disagrees with what was asked for."""

    code = "LX503"


class StackError(LiftError, ValueError):
    """A stack's options contradict each other, or do not fit its layers."""

    code = "LX501"


# --- the table of codes and pages ---------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    `error` is the name of the class in `liftax.errors` that carries the code, `None` for warnings
    and notes.
    """

    code: str
    severity: str
    title: str
    error: str | None = None

    @property
    def page(self) -> str:
        """The command that shows the page: there wherever liftax is installed."""
        return f"liftax explain {self.code}"

    def text(self) -> str:
        """Returns the page, in Markdown: what the rule is about, an example and the fix."""
        page = importlib.resources.files(__package__) / "findings" / f"{self.code}.md"
        return page.read_text(encoding="utf-8")


_ERRORS = {
    "LX101": ("UnnamedCollectionError", "A collection that no argument of the lift names"),
    "LX102": ("CarryError", "The carry changes from one iteration to the next"),
    "LX103": ("BodyReturnError", "The body of a scan does not return a pair"),
    "LX104": ("LengthError", "The number of iterations is missing, contradictory or negative"),
    "LX105": ("AxisError", "An axis is out of range"),
    "LX106": ("AxesTreeError", "in_axes or out_axes does not fit the arguments"),
    "LX107": ("UnusedFilterError", "A name that matches nothing, much like one that would"),
    "LX108": ("RoleError", "One collection under two roles"),
    "LX109": ("BranchError", "Branches that disagree"),
    "LX110": ("LoopDependentError", "A broadcast value depends on the loop"),
    "LX111": ("InvalidFilterError", "Not a collection filter"),
    "LX112": ("PartitioningUnspecifiedError", "A lift adds an unnamed axis to boxed variables"),
    "LX113": ("PartitioningMismatchError", "Axis names that contradict the array or the lift"),
    "LX114": ("AxisNameError", "A collective over the name of an axis that no lift gives"),
    "LX115": ("ConditionError", "A condition that is not one value"),
    "LX116": ("DifferentiationError", "A function that does not fit the derivative asked for"),
    "LX117": ("LiftOptionError", "An option of a lift that means nothing"),
    "LX201": ("SplitSharedError", "A stream is split while its variables are shared"),
    "LX203": ("InvalidRngError", "A stream without a key"),
    "LX301": ("ClosedOverModuleError", "A bound module closed over by a lifted function"),
    "LX302": ("TiedModulesError", "A lift would untie a shared module"),
    "LX303": ("LeakedTracerError", "A tracer leaves its transformation"),
    "LX304": ("TransformTargetError", "The target of a lift is no module and no function"),
    "LX305": ("LiftMethodError", "methods names no method of the target"),
    "LX306": ("TransformedMethodReturnValueError", "A lifted method returns a module"),
    "LX307": ("StaticArgumentError", "A static argument that does not exist or cannot be static"),
    "LX308": ("JaxTransformError", "A bare JAX transformation around a bound module"),
    "LX401": ("SetAttributeFrozenModuleError", "A frozen module is changed in place"),
    "LX402": ("SetAttributeInModuleSetupError", "setup changes a field"),
    "LX403": ("NameInUseError", "One name for two things"),
    "LX404": ("AssignSubModuleError", "A submodule made in a method that is not compact"),
    "LX406": ("ReservedModuleAttributeError", "A field with a reserved name"),
    "LX407": ("ApplyModuleInvalidMethodError", "method is no method of the module"),
    "LX408": ("CallCompactUnboundModuleError", "A module called outside init and apply"),
    "LX409": ("CallSetupUnboundModuleError", "setup called by hand"),
    "LX410": ("CallUnbindOnUnboundModuleError", "unbind of a module that is not bound"),
    "LX411": ("InvalidInstanceModuleError", "init or apply called on a class"),
    "LX412": ("IncorrectPostInitOverrideError", "__post_init__ without super"),
    "LX413": ("DescriptorAttributeError", "A descriptor that raises AttributeError"),
    "LX414": ("InvalidScopeError", "A scope or bound module used after its call"),
    "LX415": ("CallShareScopeOnUnboundModuleError", "share_scope with an unbound module"),
    "LX416": ("UndeclaredError", "A variable declared in a method that is not compact"),
    "LX417": ("UnboundModuleError", "Variables or keys of a module that is not bound"),
    "LX421": ("ScopeParamNotFoundError", "A parameter is missing"),
    "LX422": ("ScopeCollectionNotFound", "A collection is missing"),
    "LX423": ("ScopeVariableNotFoundError", "A variable is missing"),
    "LX424": ("ScopeParamShapeError", "A parameter has another shape than declared"),
    "LX425": ("ModifyScopeVariableError", "A write to a collection that is not mutable"),
    "LX426": ("ApplyScopeInvalidVariablesTypeError", "variables is not a mapping of collections"),
    "LX427": ("ApplyScopeInvalidVariablesStructureError", "A collection nested in itself"),
    "LX428": ("LazyInitError", "lazy_init needs a value of which only the shape is given"),
    "LX429": ("LayerError", "A layer's options that do not fit each other or the input"),
    "LX501": ("StackError", "A stack whose options contradict each other or its layers"),
    "LX502": ("StackingError", "Variables that are not stacked as their description says"),
    "LX503": ("CheckpointError", "A checkpoint that is damaged or of another kind"),
    "LX504": ("MissingExtraError", "An optional package that is not installed"),
}


_WARNINGS = {
    "LX202": "A stream is not split while its parameters are stacked",
    "LX207": "The carry of a recurrent cell has another width than the cell's features",
    "LX208": "Classes of flax's Module, made before liftax stood in its place",
}


_NOTES = {
    "LX901": "Parameters stacked along a mapped axis: an ensemble",
    "LX902": "vmap inside scan where the variables would be those of scan inside vmap",
    "LX903": "A stream draws the same numbers in every iteration",
}


RULES: dict[str, Rule] = {
    **{code: Rule(code, "error", title, error) for code, (error, title) in _ERRORS.items()},
    **{code: Rule(code, "warning", title) for code, title in _WARNINGS.items()},
    **{code: Rule(code, "note", title) for code, title in _NOTES.items()},
}
"""Code -> rule."""


_BY_CLASS = {rule.error: rule for rule in RULES.values() if rule.error}


def rule_of(error: LiftaxError | type[LiftaxError]) -> Rule | None:
    """The rule that an error belongs to: by its code, else by its class or a class above it.

    Example:
      >>> from liftax import errors
      >>> rule_of(errors.CarryError).code
      'LX102'
    """
    code = getattr(error, "code", None)
    if code in RULES:
        return RULES[code]
    cls = error if isinstance(error, type) else type(error)
    for base in cls.__mro__:
        if base.__name__ in _BY_CLASS:
            return _BY_CLASS[base.__name__]
    return None
