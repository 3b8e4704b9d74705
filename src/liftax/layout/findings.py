"""The table of rules: what liftax tells its users, under which code, and how severely.

An *error* is raised where the result would be wrong or lost; the error class and the code of a
rule belong together (`error.code`). A *warning* (`LiftWarning`) is issued where something may be
meant. A *note* stands only among the findings of a `Layout`. Each rule has a page of its name
under `docs/findings/`.

Codes are stable: a rule that goes away leaves a gap. LX1xx are about a lift's arguments and its
body, LX2xx about random streams, LX3xx about what is lifted and what comes out of it, LX4xx about
modules and their variables, LX5xx about stacks and checkpoints, and LX9xx are notes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LiftaxError


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
        """The page in the documentation."""
        return f"docs/findings/{self.code}.md"


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
    "LX206": "static_argnums counted with the module, as Linen counts",
    "LX207": "The carry of a recurrent cell has another width than the cell's features",
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
