"""Tables, verdicts and plot of the engine benchmark, made from its JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY_LIMIT_MEGABYTES = 2000.0
Results = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """One thing the engine aims at."""

    name: str
    value: float
    bound: float
    at_least: bool
    """True: the value must reach the bound; False: it must stay at or below it."""
    unit: str = "x"
    low: float | None = None
    """Smallest and largest value over repeats, where there were several."""
    high: float | None = None

    @property
    def met(self) -> bool:
        """Whether the median reaches the aim."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def bars(results: Results) -> list[Bar]:
    """Compare what was measured with what was aimed at; a section that is missing has no bars."""
    sections, found = results["sections"], []

    def ratio(name: str, spread: dict[str, Any], bound: float, at_least: bool = True) -> None:
        found.append(Bar(name, spread["median"], bound, at_least, "x", spread["min"], spread["max"]))

    plain = sections.get("plain", {})
    for batch, bound in (("1", 1.8), ("16", 2.0)):
        if batch in plain:
            speed = plain[batch]["arms"]["engine"]["speed_relative_to_generate"]
            ratio(f"plain decoding against `generate`, batch {batch}", speed, bound)
    greedy = sections.get("speculation", {}).get("0")
    if greedy is not None:
        name = f"best constant K ({greedy['best_length']})"
        ratio(f"{name} against plain decoding, batch 1", greedy["best_relative_to_plain"], 1.5)
        ratio(f"{name} against the best assisted generation", greedy["best_relative_to_assisted"], 1.3)
    if "memory" in sections:
        peak, limit = sections["memory"]["peak_megabytes"], MEMORY_LIMIT_MEGABYTES
        found.append(Bar("peak memory of the process", peak, limit, False, " MB"))
    if "step" in sections:
        ratio("drafter step against target step", sections["step"]["drafter_relative_to_target"], 1 / 6, False)
    return found


def markdown(results: Results, plot: str | None) -> str:
    """The whole report as Markdown. ``plot``: file name of the picture, None where there is none."""
    sections = results["sections"]
    parts = [origin(results), "### Aims\n\n" + bar_table(bars(results))]
    if "plain" in sections:
        parts.append("### Plain decoding\n\n" + _plain_table(sections["plain"]))
    if "speculation" in sections:
        parts.append("### Speculation at batch 1\n\n" + speculation_table(sections["speculation"]))
    for temperature, rows in sections.get("table", {}).items():
        parts.append(
            f"### Decode throughput over batch and K, temperature {temperature}\n\n"
            "Speed relative to K = 0 (median of paired repeats, min … max below it in small print), over the rounds in "
            "which the whole batch decodes; the target's prefill is left out, the drafter's is not.\n\n"
            + batch_table(rows)
        )
    if plot is not None and "table" in sections:
        parts.append(f"![Speed relative to K = 0 over K]({plot})")
    if "step" in sections or "memory" in sections:
        parts.append("### Step times and memory\n\n" + _costs(sections))
    return "\n\n".join(parts) + "\n"


def origin(results: Results) -> str:
    """When, where and on which versions it was measured."""
    versions, threads = results["versions"], results["machine"]["torch_threads"]
    quick = "**Smoke run: the numbers mean nothing.** " if results["quick"] else ""
    return (
        f"{quick}Measured {results['date'][:10]} on {results['hardware']}, {threads} torch threads; "
        f"Python {versions['python']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, specpilot {versions['specpilot']} ({results['git_revision']}); "
        f"{sum(results['section_seconds'].values()) / 60:.0f} minutes. "
        "Every ratio is the median over interleaved repeats (min … max in brackets)."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all but its first column to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(spread: dict[str, Any]) -> str:
    return f"{spread['median']:.2f} ({spread['min']:.2f} … {spread['max']:.2f})"


def _rate(spread: dict[str, Any]) -> str:
    return f"{spread['median']:.0f}"


def bar_table(found: Sequence[Bar]) -> str:
    """What was aimed at, what was measured, and whether it is met."""
    rows = []
    for bar in found:
        digits = 0 if bar.unit == " MB" else 2 if bar.bound >= 1 else 3
        value = f"{bar.value:.{digits}f}{bar.unit}"
        if bar.low is not None and bar.high is not None:
            value += f" ({bar.low:.{digits}f} … {bar.high:.{digits}f})"
        bound = f"{'≥' if bar.at_least else '≤'} {bar.bound:.{digits}f}{bar.unit}"
        rows.append([bar.name, bound, value, "met" if bar.met else "not met"])
    return table(["what", "aimed at", "measured", "verdict"], rows)


def _plain_table(section: dict[str, Any]) -> str:
    rows = []
    for batch, entry in section.items():
        arms, agreement = entry["arms"], entry["agreement"]["arms"]["engine"]
        rows.append(
            [
                batch,
                _rate(arms["engine"]["tokens_per_second"]),
                _rate(arms["generate"]["tokens_per_second"]),
                _ratio(arms["engine"]["speed_relative_to_generate"]),
                _ratio(entry["k0_with_drafter_relative_to_without"]),
                _mismatches(agreement),
            ]
        )
    header = ["batch", "engine, tokens/s", "`generate`, tokens/s", "ratio", "drafter loaded / none", "other text"]
    return table(header, rows)


def _mismatches(agreement: dict[str, Any]) -> str:
    gaps = agreement.get("logit_gaps") or []
    largest = f" (largest logit gap {max(gaps):.1e})" if gaps else ""
    return f"{agreement['mismatching']} of {agreement['requests']}{largest}"


def speculation_table(section: dict[str, Any]) -> str:
    """One request at a time: every arm against plain decoding."""
    rows = []
    for temperature, entry in section.items():
        for name, arm in entry["arms"].items():
            label = {"best K": f"K = {entry['best_length']}", "best assisted": entry.get("best_schedule", "")}
            agreement = entry["agreement"]["arms"].get(name)
            rows.append(
                [
                    temperature,
                    label.get(name, name),
                    _rate(arm["tokens_per_second"]),
                    _ratio(arm["speed_relative_to_plain"]),
                    "reference" if agreement is None else _mismatches(agreement),
                ]
            )
    return table(["temperature", "what", "tokens/s", "relative to plain", "other text"], rows)


def batch_table(rows: dict[str, Any]) -> str:
    """Batch by K: speed relative to K = 0, the best K of each batch in bold."""
    lengths = list(next(iter(rows.values())))
    body = []
    for batch, cells in rows.items():
        speeds = {length: float(cells[length]["speed_relative_to_k0"]["median"]) for length in lengths}
        best = max(lengths, key=speeds.__getitem__)
        line = [batch, _rate(cells["0"]["tokens_per_second"])]
        for length in lengths:
            speed = cells[length]["speed_relative_to_k0"]
            middle = f"**{speed['median']:.2f}**" if length == best else f"{speed['median']:.2f}"
            small = "" if length == "0" else f"<br><sub>{speed['min']:.2f} … {speed['max']:.2f}</sub>"
            line.append(middle + small)
        body.append(line)
    accepted = ["accepted length", ""]
    for length in lengths:
        accepted.append(f"{sum(cells[length]['mean_accepted_length'] for cells in rows.values()) / len(rows):.2f}")
    cells_table = table(["batch", "K=0, tokens/s", *(f"K={length}" for length in lengths)], [*body, accepted])
    different = sum(cell["mismatching"] for cells in rows.values() for cell in cells.values())
    requests = sum(cells[length]["requests"] for cells in rows.values() for length in lengths if length != "0")
    return f"{cells_table}\n\nRequests whose text differs from K = 0: {different} of {requests}."


def _costs(sections: dict[str, Any]) -> str:
    lines = []
    if "step" in sections:
        step = sections["step"]
        lines.append(
            f"- Target pass of one token {step['target_seconds']['median'] * 1e3:.2f} ms, drafter level "
            f"(averaged over a chain) {step['drafter_seconds']['median'] * 1e3:.2f} ms: ratio "
            f"{step['drafter_relative_to_target']['median']:.3f}."
        )
    if "memory" in sections:
        memory = sections["memory"]
        lines.append(
            f"- Peak memory {memory['peak_megabytes']:.0f} MB, of which {memory['imports_megabytes']:.0f} MB before "
            f"the pair is loaded and {memory['kv_cache_megabytes']:.0f} MB KV cache."
        )
    return "\n".join(lines)


def render(results: Results, path: Path) -> str:
    """Write ``.md`` and ``.png`` beside the results at ``path``; returns the Markdown."""
    from .plot import plot_table

    picture = path.with_suffix(".png")
    drawn = plot_table(results, picture)
    text = markdown(results, picture.name if drawn else None)
    path.with_suffix(".md").write_text(text)
    return text
