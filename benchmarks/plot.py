"""A picture of a table: bars of the ratio to the hand-written model, or lines over depth."""

from __future__ import annotations

from pathlib import Path

from benchmarks.table import BASELINE, Table


def draw(table: Table, folder: Path) -> Path | None:
    """Write ``NAME.png``; a table without ratios gives no picture. Needs matplotlib."""
    rows = {
        name: {c: cell.ratio for c, cell in row.items() if cell.ratio}
        for name, row in table.cells.items()
    }
    rows = {name: ratios for name, ratios in rows.items() if ratios}
    if not rows:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peers = [c for c in table.columns if any(c in ratios for ratios in rows.values())]
    height = 0.8 / len(peers)
    figure, axes = pyplot.subplots(
        figsize=(8, 1.2 + 0.25 * len(rows) * len(peers)), layout="constrained"
    )
    for i, peer in enumerate(peers):
        places = [j + i * height for j, ratios in enumerate(rows.values()) if peer in ratios]
        widths = [ratios[peer] for ratios in rows.values() if peer in ratios]
        axes.barh(places, widths, height=height, label=peer)
        for place, width in zip(places, widths, strict=True):
            axes.text(width, place, f" {width:.2f}", va="center", fontsize=7)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks([j + 0.4 - height / 2 for j in range(len(rows))], list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(f"ratio to {BASELINE}")
    axes.set_title(table.title, fontsize=10)
    axes.legend(fontsize=8)
    path = folder / f"{table.name}.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
