"""Every error that liftax raises, one class per mistake, under :class:`LiftaxError`.

The class names are those that Linen users already catch. A message names the
module's path, the lift, the collection or stream, what was found, what was
expected and the argument to change; it never prints array contents.

``code`` is the stable code of the rule that was broken, where the rule has a
page in the documentation, and ``None`` elsewhere. A traceback shows it below the
message, as a note.
"""

from __future__ import annotations

from collections.abc import Iterable


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
            self.add_note(f"{self.code}: docs/findings/{self.code}.md has an example and the fix")


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
