"""Every error that liftax raises, one class per mistake, under :class:`LiftaxError`.

The class names are those that Linen users already catch. A message names the
module's path, the lift, the collection or stream, what was found, what was
expected and the argument to change; it never prints array contents.

``code`` is the stable code of the rule that was broken, where the rule has a
page in the documentation, and ``None`` elsewhere; ``title`` says in a few words what it
is about. A traceback shows the code below the message, as a note. The table of all codes
is made at the end, from the classes: an *error* is raised
where the result would be wrong or lost; a *warning* (`LiftWarning`) is issued where
something may be meant; a *note* stands only among the findings of a `Layout`.

A rule that goes away leaves a gap. LX1xx are about a lift's arguments and its body,
LX2xx about random streams, LX3xx about what is lifted and what comes out of it, LX4xx
about modules and their variables, LX5xx about stacks and checkpoints, LX6xx about
training, LX9xx are notes.
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
    title: str = ""

    def __init__(self, *args: object):
        super().__init__(*args)
        if self.code is not None:
            # Beside the message, which programs and tests look at.
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


# --- scopes, variables and streams --------------------------------------------


class InvalidScopeError(LiftaxError):
    """A scope was used after the call that it belongs to had ended."""

    code, title = "LX414", "A scope or bound module used after its call"


class InvalidFilterError(LiftaxError):
    """A collection filter is not a bool, a name, a container of names or a DenyList."""

    code, title = "LX111", "Not a collection filter"


class InvalidRngError(LiftaxError):
    """A stream is missing, or what was handed in is not a key."""

    code, title = "LX203", "A stream without a key"


class InvalidKeyError(InvalidRngError, ValueError):
    """What was handed in for a stream is no key."""


class LazyInitError(LiftaxError):
    """A variable's initial value depends on an input of which only the shape is known."""

    code, title = "LX428", "lazy_init needs a value of which only the shape is given"


class ApplyScopeInvalidVariablesTypeError(LiftaxError):
    """The variables given to apply are not a mapping of collections."""

    code, title = "LX426", "variables is not a mapping of collections"


class ApplyScopeInvalidVariablesStructureError(LiftaxError):
    """The variables given to apply have a collection nested in itself."""

    code, title = "LX427", "A collection nested in itself"


class ScopeParamNotFoundError(LiftaxError):
    """A parameter is missing and may not be created here."""

    code, title = "LX421", "A parameter is missing"


class ScopeCollectionNotFound(LiftaxError):
    """A whole collection is missing and may not be created here."""

    code, title = "LX422", "A collection is missing"


class ScopeParamShapeError(LiftaxError):
    """A parameter's shape is not the one its initializer declares."""

    code, title = "LX424", "A parameter has another shape than declared"


class ScopeVariableNotFoundError(LiftaxError):
    """A variable is missing and may not be created here."""

    code, title = "LX423", "A variable is missing"


class PerturbationNotFoundError(ScopeVariableNotFoundError, ValueError):
    """Some perturbations were given, and not the one that is added here."""


class InitializerError(LiftaxError, TypeError):
    """What is to make a variable's initial value cannot be called."""

    code, title = "LX430", "An initializer that is no function"


class ModifyScopeVariableError(LiftaxError):
    """A variable was written in a collection that is not mutable."""

    code, title = "LX425", "A write to a collection that is not mutable"


class ImmutableVariableError(ModifyScopeVariableError):
    """A variable was written in a collection that this call may only read."""


class JaxTransformError(LiftaxError):
    """A module or scope was used inside a JAX transformation that it knows nothing of."""

    code, title = "LX308", "A bare JAX transformation around a bound module"


class TraceContextError(JaxTransformError):
    """A value was used outside the trace that it belongs to."""


class LeakedTracerError(JaxTransformError):
    """A traced value was about to come back as a variable."""

    code, title = "LX303", "A tracer leaves its transformation"


class PartitioningUnspecifiedError(LiftaxError):
    """A lift adds an axis to boxed variables but no name was given for it."""

    code, title = "LX112", "A lift adds an unnamed axis to boxed variables"


# --- modules ------------------------------------------------------------------


class NameInUseError(LiftaxError):
    """A name was given to two different things in one module."""

    code, title = "LX403", "One name for two things"


class InvalidNameError(NameInUseError, TypeError):
    """The name of a submodule or variable is no text."""


class AssignSubModuleError(LiftaxError):
    """A submodule was made outside ``setup`` and outside a compact method."""

    code, title = "LX404", "A submodule made in a method that is not compact"


class InvalidParentError(AssignSubModuleError, ValueError):
    """``parent=`` is neither None nor a module nor a scope."""


class SetAttributeInModuleSetupError(LiftaxError):
    """A field of the dataclass was assigned in ``setup``."""

    code, title = "LX402", "setup changes a field"


class SetAttributeFrozenModuleError(LiftaxError):
    """An attribute was assigned outside ``setup``; modules are frozen."""

    code, title = "LX401", "A frozen module is changed in place"


class MultipleMethodsCompactError(LiftaxError):
    """A name that Linen users may catch; several ``@compact`` methods are no mistake here."""


class ReservedModuleAttributeError(LiftaxError):
    """A module defines a field called ``parent`` or ``name``."""

    code, title = "LX406", "A field with a reserved name"


class ApplyModuleInvalidMethodError(LiftaxError, AttributeError):
    """``method=`` is neither a method of the module nor a function of it."""

    code, title = "LX407", "method is no method of the module"


class NotCallableMethodError(ApplyModuleInvalidMethodError, TypeError):
    """``method=`` is, or names, something that cannot be called."""


class CallCompactUnboundModuleError(LiftaxError):
    """A module was called outside ``init``, ``apply`` or ``bind``."""

    code, title = "LX408", "A module called outside init and apply"


class CallSetupUnboundModuleError(LiftaxError):
    """``setup`` was called by hand on an unbound module."""

    code, title = "LX409", "setup called by hand"


class CallUnbindOnUnboundModuleError(LiftaxError):
    """``unbind`` was called on a module that is not bound."""

    code, title = "LX410", "unbind of a module that is not bound"


class CallShareScopeOnUnboundModuleError(LiftaxError):
    """``share_scope`` was called with a module that is not bound."""

    code, title = "LX415", "share_scope with an unbound module"


class InvalidInstanceModuleError(LiftaxError):
    """``init`` or ``apply`` was called on a class instead of an instance."""

    code, title = "LX411", "init or apply called on a class"


class IncorrectPostInitOverrideError(LiftaxError):
    """``__post_init__`` was overridden without calling the base class's."""

    code, title = "LX412", "__post_init__ without super"


class UnboundModuleError(LiftaxError, ValueError):
    """Variables or keys of a module were asked for that is not bound."""

    code, title = "LX417", "Variables or keys of a module that is not bound"


class ForeignModuleError(LiftaxError, TypeError):
    """A module of flax.linen was used as one of liftax."""

    code, title = "LX418", "A module of flax.linen used as one of liftax"


class UndeclaredError(LiftaxError, ValueError):
    """A variable was declared outside ``setup`` and outside a compact method."""

    code, title = "LX416", "A variable declared in a method that is not compact"


class DescriptorAttributeError(LiftaxError):
    """A descriptor of a module raised ``AttributeError`` while it was read."""

    code, title = "LX413", "A descriptor that raises AttributeError"


# --- lifts --------------------------------------------------------------------


class LiftError(LiftaxError):
    """The base class of the mistakes that only a lift can meet."""


class TransformTargetError(LiftError):
    """A lift was given something that is neither a module class nor a function."""

    code, title = "LX304", "The target of a lift is no module and no function"


class TransformedMethodReturnValueError(LiftError):
    """A lifted method returned a module or a variable."""

    code, title = "LX306", "A lifted method returns a module"


class LiftMethodError(LiftError, AttributeError):
    """An entry of ``methods=`` names no method of the target."""

    code, title = "LX305", "methods names no method of the target"


class RoleError(LiftError, ValueError):
    """The table of roles contradicts itself: one collection, two roles."""

    code, title = "LX108", "One collection under two roles"


class UnnamedCollectionError(LiftError):
    """A collection is used inside a lift but none of its arguments names it."""

    code, title = "LX101", "A collection that no argument of the lift names"


class UnusedFilterError(LiftError, ValueError):
    """A key of ``variable_axes`` or ``split_rngs`` matched nothing."""

    code, title = "LX107", "A name that matches nothing, much like one that would"


class CarryError(LiftError, TypeError):
    """The carry changes its structure, shape or dtype from one iteration to the next."""

    code, title = "LX102", "The carry changes from one iteration to the next"


class BodyReturnError(LiftError, TypeError):
    """The body of a scan returned something other than a pair ``(carry, ys)``."""

    code, title = "LX103", "The body of a scan does not return a pair"


class LengthError(LiftError, ValueError):
    """The number of iterations is missing, contradictory or negative."""

    code, title = "LX104", "The number of iterations is missing, contradictory or negative"


class AxisError(LiftError, ValueError):
    """An axis is out of range for the array that it is applied to."""

    code, title = "LX105", "An axis is out of range"


class AxisNameError(LiftError, NameError):
    """A collective uses the name of an axis that no lift around it gives."""

    code, title = "LX114", "A collective over the name of an axis that no lift gives"


class AxesTreeError(LiftError, ValueError):
    """``in_axes`` or ``out_axes`` is not a prefix of the tree that it describes."""

    code, title = "LX106", "in_axes or out_axes does not fit the arguments"


class LoopDependentError(LiftError, ValueError):
    """A value declared ``broadcast`` depends on the carry or on a scanned value."""

    code, title = "LX110", "A broadcast value depends on the loop"


class LiftOptionError(LiftError, ValueError):
    """An option of a lift has a value that means nothing: ``unroll=0``, ``reverse='yes'``."""

    code, title = "LX117", "An option of a lift that means nothing"


class LostWritesError(LiftError, ValueError):
    """A lift of the user's own does not return what its body wrote."""

    code, title = "LX118", "A lift of one's own that loses what its body wrote"


class SplitAxisError(LiftError, ValueError):
    """What a lift goes over lies split over a mesh along the lift's axis."""

    code, title = "LX119", "An input that is split over a mesh along the axis of a lift"


class SplitSharedError(LiftError, ValueError):
    """A shared variable would be initialised differently in each iteration."""

    code, title = "LX201", "A stream is split while its variables are shared"


class ClosedOverModuleError(LiftError):
    """A lifted function uses a bound module that was not passed to it."""

    code, title = "LX301", "A bound module closed over by a lifted function"


class TiedModulesError(LiftError):
    """A lift would give two copies to what is one shared module outside it."""

    code, title = "LX302", "A lift would untie a shared module"


class BranchError(LiftError, TypeError):
    """The branches of a conditional disagree on what they return or create."""

    code, title = "LX109", "Branches that disagree"


class ConditionError(BranchError):
    """The condition of a cond, switch or while loop is not one bool, or not one index."""

    code, title = "LX115", "A condition that is not one value"


class DifferentiationError(LiftError, TypeError):
    """A function, its tangents or its cotangents do not fit the derivative asked for."""

    code, title = "LX116", "A function that does not fit the derivative asked for"


class StaticArgumentError(LiftError, ValueError):
    """A static argument is out of range, unhashable, or named twice."""

    code, title = "LX307", "A static argument that does not exist or cannot be static"


class PartitioningMismatchError(LiftaxError, ValueError):
    """The axis names of a boxed variable contradict its array, the mesh or the lift."""

    code, title = "LX113", "Axis names that contradict the array or the lift"


# --- warnings -----------------------------------------------------------------


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


# --- layers -------------------------------------------------------------------


class LayerError(LiftaxError, ValueError):
    """A layer's options contradict each other, or do not fit the shape of its input."""

    code, title = "LX429", "A layer's options that do not fit each other or the input"


class MissingExtraError(LiftaxError, ImportError):
    """A feature needs an optional package that is not installed; the message names the extra."""

    code, title = "LX504", "An optional package that is not installed"


# --- stacks and checkpoints ---------------------------------------------------


class StackingError(LiftaxError, ValueError):
    """Variables and the description of how their layers are stacked contradict each other."""

    code, title = "LX502", "Variables that are not stacked as their description says"


class CheckpointError(LiftaxError, ValueError):
    """A checkpoint is damaged, is of another kind, or disagrees with what was asked for."""

    code, title = "LX503", "A checkpoint that is damaged or of another kind"


class StackError(LiftError, ValueError):
    """A stack's options contradict each other, or do not fit its layers."""

    code, title = "LX501", "A stack whose options contradict each other or its layers"


class PipelineError(StackError):
    """A pipeline's options contradict each other, or do not fit its layers or its batch."""

    code, title = "LX505", "A pipeline that does not fit its layers or its batch"


class MicrobatchError(PipelineError):
    """A pipeline cannot tell what belongs to one microbatch, or one needs what another makes."""

    code, title = "LX506", "What a pipeline cannot hand to one microbatch after the other"


# --- training -----------------------------------------------------------------


class NonFiniteError(LiftaxError, FloatingPointError):
    """An operation made NaN; the message says which, in which layer."""

    code, title = "LX601", "An operation that made NaN"

    def __init__(self, *args: object, found: object = None):
        super().__init__(*args)
        self.found = found


class PerLayerError(LiftaxError, ValueError):
    """A transformation of optax that cannot act layer by layer."""

    code, title = "LX602", "An optimizer that cannot act layer by layer"


class AdaptError(LiftaxError, ValueError):
    """An adapter that does not fit the model: no such layer, no kernel, too large a rank."""

    code, title = "LX605", "Adapters that do not fit the model"


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


_WARNINGS = {
    "LX202": "A stream is not split while its parameters are stacked",
    "LX207": "The carry of a recurrent cell has another width than the cell's features",
    "LX208": "Classes of flax's Module, made before liftax stood in its place",
}


_NOTES = {
    "LX901": "Parameters stacked along a mapped axis: an ensemble",
    "LX902": "vmap inside scan where the variables would be those of scan inside vmap",
    "LX903": "A stream draws the same numbers in every iteration",
    "LX904": "A loop stores for the backward pass what is cheap to compute again",
    "LX905": "Parameters that reach no output",
    "LX906": "Parameters that get no gradient",
    "LX907": "One key for two draws",
    "LX908": "A module widens what goes through it",
    "LX909": "An optimizer that takes stacked layers for one parameter",
    "LX910": "A pipeline with a large bubble",
}


# A class that only inherits its code is a special case of the rule, and no rule of its own.
_ERRORS = {
    cls.code: Rule(cls.code, "error", cls.title, name)
    for name, cls in list(globals().items())
    if isinstance(cls, type) and issubclass(cls, LiftaxError) and "title" in vars(cls) and cls.code
}


RULES: dict[str, Rule] = {
    **dict(sorted(_ERRORS.items())),
    **{code: Rule(code, "warning", title) for code, title in _WARNINGS.items()},
    **{code: Rule(code, "note", title) for code, title in _NOTES.items()},
}
"""Code -> rule."""


def rule_of(error: LiftaxError | type[LiftaxError]) -> Rule | None:
    """The rule that an error belongs to: its own, or that of a class above it.

    Example:
      >>> from liftax import errors
      >>> rule_of(errors.CarryError).code
      'LX102'
    """
    return RULES.get(error.code or "")
