"""Picture of the engine benchmark: speed relative to K = 0 over K, one line per batch size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def plot_table(results: dict[str, Any], path: Path) -> bool:
    """Draw the table section to ``path`` (PNG); False, with a message, where that is impossible."""
    tables = results["sections"].get("table")
    if not tables:
        return False
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot (pip install matplotlib, then --report)")
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tables), figsize=(6.4 * len(tables), 4.2), squeeze=False)
    for axis, (temperature, rows) in zip(axes[0], tables.items(), strict=True):
        colors = matplotlib.colormaps["viridis"]
        for number, (batch, cells) in enumerate(rows.items()):
            lengths = [int(length) for length in cells]
            speeds = [cell["speed_relative_to_k0"] for cell in cells.values()]
            color = colors(0.9 * number / max(1, len(rows) - 1))
            middle = [speed["median"] for speed in speeds]
            axis.plot(lengths, middle, marker="o", markersize=4, color=color, label=batch)
            low, high = [speed["min"] for speed in speeds], [speed["max"] for speed in speeds]
            axis.fill_between(lengths, low, high, color=color, alpha=0.12, linewidth=0)
        axis.axhline(1.0, color="0.4", linewidth=0.8, linestyle="--")
        axis.set_xticks(lengths)
        axis.set_xlabel("speculation length K (tokens)")
        axis.set_ylabel("decode throughput relative to K = 0")
        axis.set_title(f"temperature {temperature}")
        axis.legend(title="batch", frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)
    os.replace(temporary, path)
    return True
