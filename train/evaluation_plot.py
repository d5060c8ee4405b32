"""Picture of an evaluation: speed over off in every scenario, and the share of the oracle's gap on the mix."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpilot.train.contenders import CEILING, OFF, PAYING, PRICE_RULE, REQUEST, UNIFORM

BASELINES = ("length_table", "heuristic", "threshold_tuned", "turbospec", "adaptive_verification")
MAX_SHARE_BELOW = -0.5
"""Shares below are drawn as this."""


def plot(summaries: Mapping[str, Mapping[str, Any]], files: tuple[str, ...], path: Path) -> bool:
    """Draw to ``path`` (PNG); False, with a message, where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot (pip install matplotlib, then run again)")
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(12, 8.4))
    _speeds(top, summaries, files)
    _shares(bottom, summaries, files)
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=140, format="png")
    pyplot.close(figure)
    os.replace(temporary, path)
    return True


def _speeds(axis: Any, summaries: Mapping[str, Mapping[str, Any]], files: tuple[str, ...]) -> None:
    names = list(summaries)
    lines = {"best constant": [own["contenders"][own["best_constant"]] for own in summaries.values()]}
    for name in (*BASELINES, PRICE_RULE, *files, CEILING, PAYING, UNIFORM, REQUEST):
        if all(name in own["contenders"] for own in summaries.values()):
            lines[name] = [own["contenders"][name] for own in summaries.values()]
    for name, own in lines.items():
        ours = name in (PRICE_RULE, *files)
        style = "--" if name in (CEILING, PAYING, UNIFORM, REQUEST) else "-"
        values = [cell["relative_to_off"]["median"] for cell in own]
        axis.plot(values, style, marker="o", markersize=3, linewidth=2.4 if ours else 1.0, label=name)
    axis.axhline(1.0, color="0.4", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axis.set_ylabel(f"speed relative to {OFF}")
    axis.legend(frameon=False, fontsize=7, ncols=2)
    axis.spines[["top", "right"]].set_visible(False)


def _shares(axis: Any, summaries: Mapping[str, Mapping[str, Any]], files: tuple[str, ...]) -> None:
    mixes = [name for name in summaries if name.startswith("mix")] or list(summaries)
    drawn = [name for name in (*BASELINES, PRICE_RULE, *files, CEILING) if name in summaries[mixes[0]]["contenders"]]
    for number, name in enumerate(drawn):
        cells = [summaries[mix]["contenders"][name]["share_of_oracle_gap"]["median"] for mix in mixes]
        values = [max(MAX_SHARE_BELOW, cell if cell is not None else 0.0) for cell in cells]
        axis.bar(
            [place + number / (len(drawn) + 1) for place in range(len(mixes))], values, 0.9 / len(drawn), label=name
        )
    axis.axhline(0.0, color="0.4", linewidth=0.8)
    axis.set_xticks([place + 0.4 for place in range(len(mixes))], mixes)
    axis.set_ylabel("share of the per-request oracle's gap")
    axis.legend(frameon=False, fontsize=7, ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
