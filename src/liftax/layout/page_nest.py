"""The nest of lifts as boxes in boxes, and the modules as a tree."""

from __future__ import annotations

from html import escape

from .data import LiftNode, VariableLayout
from .fold import common_name, numberless
from .grouped import grouped
from .modules import module_tree
from .page_details import Details
from .table import lift_where
from .wording import human_bytes, human_count, short_file_line

_CHIPS = 24
_MODULES = 400


class Nest(Details):
    """The boxes and the tree of one layout."""

    def nest(self) -> str:
        layout = self.layout
        where = short_file_line(layout.file_line)
        head = (
            f'<div class="bhead"><span class="kind" style="background:var(--neutral)">'
            f"{escape(layout.module)}</span>"
            + (f'<span class="where">{escape(where)}</span>' if where else "")
            + "</div>"
        )
        inner = "".join(self.box(i) for i in self.alike.drawn(layout, None))
        return (
            '<section><h2>The nest of lifts</h2><div class="nest">'
            f'<div class="box">{head}{self.chips(None)}{inner}</div></div></section>'
        )

    def box(self, index: int) -> str:
        lift = self.layout.lifts[index]
        classes = ["box lift many" if lift.size is not None else "box lift flat"]
        loop = ""
        if lift.carry:
            classes.append("loops")
            loop = (
                '<div class="loop" aria-hidden="true"><svg viewBox="0 0 12 12">'
                '<path d="M0 6 11 0.5 8.5 6 11 11.5Z"/></svg><i>carry</i></div>'
            )
        at = lift_where(lift)
        where = f'<span class="where">{escape(at)}</span>' if at else ""
        many = len(self.alike.members.get(index, ()))
        # Escaped like all that a user wrote: names of modules may hold anything.
        path = escape(self.alike.path(self.layout, index))
        alike = f' <em class="times">{many:,} alike: {path}</em>' if many else ""
        size = "" if lift.size is None else f" × {lift.size}"
        named = f"<b>{escape(lift.axis_name)}</b>" if lift.axis_name else ""
        said = lift.title + (", with a carry" if lift.carry else "")
        inner = "".join(self.box(i) for i in self.alike.drawn(self.layout, index))
        return (
            f'<div{self.tint(index, " ".join(classes))} tabindex="0" role="group" '
            f'aria-label="{escape(said)}" data-hot="{index}" '
            f'data-name="{escape(lift.title)}" data-k="{self.kind(self.lift_details(lift))}">'
            f'<div class="bhead"><span class="kind">{escape(lift.kind)}{size}</span>{named}'
            f"<span>over <code>{escape(lift.target)}</code></span>{alike}{where}</div>"
            f"{_shapes(lift)}{_roles(lift)}{self.chips(index)}{inner}{loop}</div>"
        )

    def chips(self, index: int | None) -> str:
        """The modules whose variables live right here, alike ones together."""
        modules = grouped(self.layout.inside.get(index, ()), lambda v: v.path[:-1])
        prefix = () if index is None else self.layout.lifts[index].path
        alike: dict[object, list[tuple[str, list[VariableLayout]]]] = {}
        for path, vs in modules.items():
            shape = tuple(sorted((v.collection, v.path[-1], v.shape, v.dtype) for v in vs))
            # Alike by the name that is shown: only some of them may lie below the lift's path.
            name = "/".join(_below(path, prefix))
            alike.setdefault((numberless(name), shape), []).append((name, vs))
        chips = []
        for members in alike.values():
            group = [v for _, vs in members for v in vs]
            name = common_name([name for name, _ in members])
            facts = [group[0].layer or "", f"{human_count(sum(v.elements for v in group))}"]
            facts += [f"{len(members)} alike"] if len(members) > 1 else []
            chips.append(
                f'<a class="chip" href="#{self.ids[id(group[0])]}"><code>'
                f"{breakable(name or 'itself')}</code>"
                f"<span>{escape(' · '.join(f for f in facts if f))}</span></a>"
            )
        # A box has to fit on a screen; the table below has them all.
        if len(chips) > _CHIPS:
            rest = len(chips) - _CHIPS
            chips[_CHIPS:] = [f'<span class="chip soft">and {rest:,} more</span>']
        return f'<div class="chips">{"".join(chips)}</div>' if chips else ""

    def modules(self) -> str:
        """The tree of modules: what each holds and costs, takes and gives."""
        tree = module_tree(self.layout)
        if not self.layout.modules or not tree.below:
            return ""
        most = tree.parameters or 1
        # A column that would be empty is not drawn.
        counted = any(branch.flops is not None for _, branch in tree.downward())
        rows: list[str] = []
        for depth, branch in tree.downward():
            # A browser takes seconds to lay out a table of thousands of rows.
            if len(rows) == _MODULES:
                rows.append('<tr><td class="soft">and more</td></tr>')
                break
            node = branch.node
            times = f' <em class="times">×{branch.times:,}</em>' if branch.times > 1 else ""
            layer = f' <span class="soft">{escape(node.layer)}</span>' if node and depth else ""
            shared = ""
            if branch.uses > 1 and node:
                by = escape(", ".join(dict.fromkeys(node.uses)))
                shared = f' <em class="times" title="{by}">⇄ shared by {branch.uses} calls</em>'
            shapes = f"{escape(node.takes)} → {escape(node.gives)}" if node else ""
            flops = "" if branch.flops is None else human_count(branch.flops)
            rows.append(
                f'<tr><td style="padding-left:{2 + 18 * depth}px"><code>'
                f"{breakable(branch.name)}</code>{times}{layer}{shared}"
                f"{bar(branch.parameters / most)}</td>"
                f"<td>{branch.parameters:,}</td><td>{human_bytes(branch.bytes)}</td>"
                + (f"<td>{flops}</td>" if counted else "")
                + f'<td class="shapes mono">{shapes}</td></tr>'
            )
        titles = ("Module", "parameters", "bytes", *(["FLOPs"] if counted else []), "takes → gives")
        return f"<section><h2>Modules</h2>{html_table(titles, ''.join(rows))}</section>"


def breakable(path: str) -> str:
    """A path that a browser may break after slashes and underscores."""
    # Names are long and have no spaces; without this they would widen the column.
    return escape(path).replace("/", "/<wbr>").replace("_", "_<wbr>")


def bar(part: float) -> str:
    """A bar that is full where ``part`` is 1."""
    return f'<span class="bar"><i style="width:{100 * part:.1f}%"></i></span>'


def html_table(titles: tuple[str, ...], rows: str) -> str:
    """A table that scrolls where it is too wide."""
    shapes = ' class="shapes"'
    head = "".join(
        f'<th scope="col"{shapes if "→" in title else ""}>{title}</th>' for title in titles
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{titles[0]} totals">'
        f'<table class="num"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _shapes(lift: LiftNode) -> str:
    """What an iteration carries, takes and gives."""
    named = (("carry", lift.carries), ("takes", lift.takes), ("gives", lift.gives))
    said = "".join(
        f"<span>{word} <code>{escape(text)}</code></span>" for word, text in named if text
    )
    return f'<div class="roles shapes">{said}</div>' if said else ""


def _below(path: tuple[str, ...], prefix: tuple[str, ...]) -> tuple[str, ...]:
    inside = path[: len(prefix)] == prefix and len(path) > len(prefix)
    return path[len(prefix) :] if inside else path


def _roles(lift: LiftNode) -> str:
    parts = [
        f"<span><b>{escape(c)}</b> {escape(r)}</span>"
        for c, r in lift.roles.items()
        if r != "through"
    ]
    split = [s for s, is_split in lift.splits.items() if is_split]
    whole = [s for s, is_split in lift.splits.items() if not is_split and lift.size is not None]
    if whole:
        parts.append(f"<span>keys not split: <b>{escape(', '.join(whole))}</b></span>")
    if split:
        parts.append(f"<span>keys split: <b>{escape(', '.join(split))}</b></span>")
    return f'<div class="roles">{"".join(parts)}</div>' if parts else ""
