"""The modules of a layout as a tree: what each holds, costs, takes and gives, and who shares it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from .data import LayoutData, ModuleNode
from .fold import ENOUGH, common_name, numberless
from .grouped import grouped

Path = tuple[str, ...]


@dataclass
class Branch:
    """A module, or several alike under a name such as `Block_{0…9}`, with those inside.

    Attributes:
      name: the name, `Block_{0…9}` for `times` of them.
      path: the path of the first.
      node: what the trace told of it; None where there was none, or where a path has no module.
      parameters, bytes: of all of them with what is inside; `bytes` of all collections.
      flops: None where they were not counted.
      below: the modules inside.
      times: how many it stands for.
    """

    name: str
    path: Path
    node: ModuleNode | None = None
    parameters: int = 0
    bytes: int = 0
    flops: float | None = None
    below: list[Branch] = field(default_factory=list)
    times: int = 1

    @property
    def uses(self) -> int:
        """How many calls there are from other modules: two or more are shared use."""
        return len(self.node.uses) if self.node is not None else 0

    def downward(self, depth: int = 0) -> Iterator[tuple[int, Branch]]:
        """Each branch with its depth, before what is inside of it."""
        yield depth, self
        for branch in self.below:
            yield from branch.downward(depth + 1)


def module_tree(layout: LayoutData) -> Branch:
    """The modules of a layout from the root down, alike ones beside each other as one."""
    branches: dict[Path, Branch] = {(): Branch(layout.module, ())}

    for node in layout.modules:
        branch = _at(node.path, branches)
        branch.node, branch.flops = node, node.flops
    for v in layout.variables:
        owner = v.path[:-1]
        # A module's parameters are those of all inside of it, so each counts for all above.
        for end in range(len(owner) + 1):
            branch = _at(owner[:end], branches)
            branch.bytes += v.bytes
            branch.parameters += v.elements if v.collection == "params" else 0
    _fold(branches[()], {})
    return branches[()]


def _at(path: Path, branches: dict[Path, Branch]) -> Branch:
    found = branches.get(path)
    if found is None:
        # Also where no module was called: a scope between two, or a stack's container.
        found = branches[path] = Branch(path[-1], path)
        _at(path[:-1], branches).below.append(found)
    return found


def _fold(branch: Branch, kinds: dict[Hashable, int]) -> int:
    """Folds what is below a branch; returns a number, the same for branches that are alike."""
    groups = grouped(branch.below, lambda one: _fold(one, kinds))
    branch.below = [
        made
        for group in groups.values()
        for made in (group if len(group) < ENOUGH else [_together(group)])
    ]
    node = branch.node
    # Calls count too: one that is shared is not like one that isn't.
    told = (node.layer, node.takes, node.gives, len(node.uses)) if node is not None else None
    below = tuple((kind, len(group)) for kind, group in groups.items())
    # Those below by number of their kind, from the leaves upward: each branch is compared once.
    key = (numberless(branch.name), told, branch.parameters, branch.bytes, branch.flops, below)
    return kinds.setdefault(key, len(kinds))


def _together(group: list[Branch]) -> Branch:
    first = group[0]
    # The first stands for all, so its subtree must hold the sums of all.
    times = len(group)
    first.name, first.times = common_name([one.name for one in group]), times
    for _, branch in first.downward():
        branch.parameters *= times
        branch.bytes *= times
        branch.flops = None if branch.flops is None else branch.flops * times
    return first
