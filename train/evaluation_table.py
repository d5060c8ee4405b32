"""What the numbers of an evaluation come to: relative figures, shares of the ceilings' gaps, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specpilot.train.contenders import CEILING, OFF, PAYING, REQUEST, constant_name

LEAST_GAP = 0.002
"""Of the best constant: a smaller gap has no shares worth naming."""
RATIOS = (
    "relative_to_off",
    "relative_to_best_constant",
    "share_of_oracle_gap",
    "share_of_ceiling_gap",
    "share_of_paying_gap",
)
SECONDARY = (
    "tokens_per_second",
    "request_tokens_per_second",
    "first_token_p50",
    "first_token_p99",
    "accepted_per_round",
    "drafted_per_round",
)

Row = Mapping[str, Any]
"""One contender on one schedule: ``contender``, ``seed``, ``figure`` (the main one) and `SECONDARY`."""


def share_of_gap(value: float, base: float, ceiling: float) -> float:
    """``(value - base) / (ceiling - base)``; NaN where the ceiling is not above the base by `LEAST_GAP` of it."""
    gap = ceiling - base
    return (value - base) / gap if gap > LEAST_GAP * base else float("nan")


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Median, least and largest of the seeds that have a value; None where none has."""
    known = [own for own in values if np.isfinite(own)]
    if not known:
        return {"median": None, "min": None, "max": None}
    return {"median": float(np.median(known)), "min": min(known), "max": max(known)}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """One scenario. The best constant (length 0 included) is the one with the best median over its own seeds."""
    figures: dict[str, dict[int, float]] = {}
    for row in rows:
        figures.setdefault(row["contender"], {})[row["seed"]] = row["figure"]
    constants = [name for name in figures if name == OFF or name in _constants(figures)]
    best = max(constants, key=lambda name: float(np.median(list(figures[name].values()))))
    return {
        "best_constant": best,
        "contenders": {
            name: {
                "figure": interval(list(figures[name].values())),
                **_ratios(figures, name, best),
                **{own: _secondary(rows, name, own) for own in SECONDARY},
            }
            for name in figures
        },
    }


def _constants(names: Iterable[str]) -> set[str]:
    return set(names) & {constant_name(length) for length in range(256)}


def _ratios(figures: Mapping[str, Mapping[int, float]], name: str, best: str) -> dict[str, Any]:
    own, off, base = figures[name], figures[OFF], figures[best]
    found: dict[str, Any] = {
        "relative_to_off": interval([own[seed] / off[seed] for seed in own]),
        "relative_to_best_constant": interval([own[seed] / base[seed] for seed in own]),
    }
    for key, ceiling in (
        ("share_of_oracle_gap", REQUEST),
        ("share_of_ceiling_gap", CEILING),
        ("share_of_paying_gap", PAYING),
    ):
        top = figures.get(ceiling, {})
        found[key] = interval([share_of_gap(own[seed], base[seed], top[seed]) for seed in own if seed in top])
    return found


def _secondary(rows: Sequence[Row], name: str, key: str) -> float | None:
    values = [row[key] for row in rows if row["contender"] == name and row.get(key) is not None]
    return float(np.median(values)) if values else None


def csv_text(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for every scenario and contender."""
    buffer = io.StringIO()
    parts = ("median", "min", "max")
    wide = [f"{key}_{part}" for key in ("figure", *RATIOS) for part in parts]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["scenario", "contender", "is_best_constant", *wide, *SECONDARY])
    for scenario, summary in summaries.items():
        for name, own in summary["contenders"].items():
            numbers = [own[key][part] for key in ("figure", *RATIOS) for part in parts]
            writer.writerow(
                [scenario, name, int(name == summary["best_constant"]), *numbers, *(own[key] for key in SECONDARY)]
            )
    return buffer.getvalue()


def markdown(summaries: Mapping[str, Mapping[str, Any]], quality: Mapping[str, Any]) -> str:
    """Tables: speed over the best constant, share of the oracle's gap, waiting under arrivals, the predictors."""
    text = [
        _grid("Speed over the best constant of the scenario (median of seeds)", summaries, "relative_to_best_constant"),
        _grid("Speed over off", summaries, "relative_to_off"),
        _grid("Share of the per-request oracle's gap", summaries, "share_of_oracle_gap"),
        _grid("Share of the informed ceiling's gap", summaries, "share_of_ceiling_gap"),
        _grid("Share of the gap of the informed ceiling that pays for its looks", summaries, "share_of_paying_gap"),
        _grid("99th percentile of seconds to the first token (arrivals)", summaries, "first_token_p99"),
    ]
    if quality:
        lines = ["| predictor | temperature | AUC | calibration error | log loss |", "|---|---|---|---|---|"]
        for name, temperatures in quality.items():
            for temperature, own in temperatures.items():
                numbers = (own["auc"], own["calibration_error"], own["log_loss"])
                lines.append(f"| {name} | {temperature} | " + " | ".join(map(_number, numbers)) + " |")
        text.append("### Acceptance predictors on evaluation prompts\n\n" + "\n".join(lines))
    return "\n\n".join(own for own in text if own) + "\n"


def _grid(title: str, summaries: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """Contenders down, scenarios across; scenarios without any value are left out."""

    def value(scenario: str, name: str) -> float | None:
        own = summaries[scenario]["contenders"].get(name, {}).get(key)
        found: float | None = own["median"] if isinstance(own, Mapping) else own
        return found

    names = list(dict.fromkeys(name for own in summaries.values() for name in own["contenders"]))
    shown = [own for own in summaries if any(value(own, name) is not None for name in names)]
    if not shown:
        return ""
    head = ["| contender | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    body = [f"| {name} | " + " | ".join(_number(value(own, name)) for own in shown) + " |" for name in names]
    return f"### {title}\n\n" + "\n".join(head + body)


def _number(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
