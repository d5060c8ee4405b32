"""Write the measured figures into README.md, between its markers, from the committed results alone.

python benchmarks/readme.py            # write
python benchmarks/readme.py --check    # exit status 1 where the README states something else
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specpilot.benchmarks.measurement import ROOT
from specpilot.benchmarks.report import bar_table, bars, batch_table, origin, speculation_table, table
from specpilot.benchmarks.sim_to_real import KINDS_OF_ERROR
from specpilot.benchmarks.vllm_report import vllm_block
from specpilot.train.pair_report import acceptance_cells

README = ROOT / "README.md"
ENGINE_RESULTS = ROOT / "benchmarks/results/engine.json"
COMPILED_RESULTS = ROOT / "benchmarks/results/compiled_pass.json"
EVALUATION_RESULTS = ROOT / "benchmarks/results/evaluation.json"
SIM_TO_REAL_RESULTS = ROOT / "benchmarks/results/sim_to_real.json"
ABLATION_RESULTS = ROOT / "benchmarks/results/ablation.json"
LIVE_RESULTS = ROOT / "benchmarks/results/live.json"
RATIOS = ("relative_to_off", "relative_to_best_constant")
VLLM_RESULTS = ROOT / "benchmarks/results/vllm_mixed.json"
VLLM_GREEDY_RESULTS = ROOT / "benchmarks/results/vllm.json"
PAIR_RECORD = ROOT / "pairs/pystdlib/training.json"


def engine_block(results: dict[str, Any]) -> str:
    """Aims, speculation at batch 1 and the table of batch by K."""
    sections = results["sections"]
    return "\n\n".join(
        [
            origin(results),
            bar_table(bars(results)),
            "One request at a time, against plain decoding of this engine:",
            speculation_table(sections["speculation"]),
            "Decode throughput relative to K = 0 over batch and K, temperature 0: where speculation stops paying.",
            batch_table(sections["table"]["0"]),
            "![Speed relative to K = 0](benchmarks/results/engine.png)",
        ]
    )


def pair_block(record: dict[str, Any]) -> str:
    """Acceptance of the shipped drafter and variety of the target's text, by temperature."""
    rows = acceptance_cells(record["report"])
    rows.append(["evaluation files", "", "", "", f"{record['corpus_distinct_4grams']:.2f}"])
    header = ["temperature", "greedy drafts, per round", "from every position", "coupled drafts", "distinct 4-grams"]
    return table(header, rows)


def compiled_block(results: dict[str, Any]) -> str:
    """What torch.compile wins per pass and costs to start."""
    speeds = ", ".join(
        f"{entry['compiled_relative_to_engine']['median']:.2f}x at {count} token{'s' * (count != '1')}"
        for count, entry in results["passes"].items()
    )
    return f"  {speeds} a pass, after {results['start_up_seconds']:.0f} s of start-up."


CONTENDERS = (
    ("off", "off"),
    ("length_table", "hand-made table"),
    ("heuristic", "heuristic"),
    ("threshold_tuned", "threshold"),
    ("turbospec", "TurboSpec"),
    ("adaptive_verification", "adaptive verification"),
    ("price_rule", "price rule"),
    ("PPO teacher", "PPO teacher"),
    ("tree", "tree"),
    ("network", "network"),
    ("informed_ceiling", "informed ceiling"),
    ("informed_paying", "the same, paying for looks"),
    ("request_oracle", "request oracle"),
)
"""Columns of the evaluation's table: name in the results, heading."""


def evaluation_block(results: dict[str, Any]) -> str:
    """Every scenario's contenders relative to its best constant."""
    rows = []
    for name, summary in results["scenarios"].items():
        own = summary["contenders"]
        cells = [name, summary["best_constant"].replace("constant_", "K = ")]
        for contender, _ in CONTENDERS:
            found = own.get(contender)
            cells.append("" if found is None else f"{found['relative_to_best_constant']['median']:.2f}")
        rows.append(cells)
    made = f"{_made(results)}, {results['seconds']:.0f} s."
    header = ["scenario", "best constant", *(heading for _, heading in CONTENDERS)]
    aims = evaluation_aims(results["scenarios"])
    return "\n\n".join(
        [made, table(header, rows), aims, "![Controllers over scenarios](benchmarks/results/evaluation.png)"]
    )


RULES = ("length_table", "heuristic", "threshold_tuned", "turbospec", "adaptive_verification", "price_rule")


def evaluation_aims(scenarios: dict[str, Any], name: str = "network") -> str:
    """What the controller ``name`` was to reach, medians over seeds."""

    def of(scenario: str, contender: str, key: str = "relative_to_best_constant") -> float:
        return float(scenarios[scenario]["contenders"][contender][key]["median"])

    def least(values: dict[str, float]) -> str:
        where = min(values, key=lambda scenario: values[scenario])
        return f"{values[where]:.3f} ({where})"

    mixes = [own for own in scenarios if own.startswith("mix")]
    streams = [own for own in scenarios if own.startswith("arrivals")]
    rule = {own: max(of(own, contender) for contender in RULES) for own in scenarios}
    over = {own: of(own, name) / rule[own] for own in scenarios}
    rows = [
        ["least over the best constant", "≥ 0.99", least({own: of(own, name) for own in scenarios})],
        ["least over off", "≥ 0.99", least({own: of(own, name, "relative_to_off") for own in scenarios})],
        ["least over the best rule of the scenario", "≥ 1", least(over)],
        ["over the best rule under arrivals", "≥ 1.03", ", ".join(f"{over[own]:.3f}" for own in streams)],
    ]
    for label, key, aim in (
        ("request oracle", "share_of_oracle_gap", "20 %"),
        ("informed ceiling", "share_of_ceiling_gap", "90 %"),
    ):
        shares = (scenarios[own]["contenders"][name].get(key) for own in mixes)
        told = ", ".join("none" if not own or own["median"] is None else f"{own['median']:.0%}" for own in shares)
        rows.append([f"share of the {label}'s gap, {', '.join(mixes)}", f"≥ {aim} at c ≥ 4", told])
    return table([f"the {name}", "aimed at", "measured"], rows)


def sim_to_real_block(results: dict[str, Any]) -> str:
    """How far replay's predictions are off the live engine, by batch."""
    rows = []
    for batch, cells in results["batches"].items():
        found = list(cells["contenders"].values())
        typical = (statistics.median(abs(own[kind]["median"]) for own in found) for kind in KINDS_OF_ERROR)
        rows.append([batch, str(len(found)), *(f"{own:.1%}" for own in typical)])
    rows.append(["all", "", *(f"{results[kind]['median']:.1%}" for kind in KINDS_OF_ERROR)])
    header = ["batch", "controllers", "median absolute error", "of the speed over off"]
    return f"{_made(results)}.\n\n{table(header, rows)}"


def ablation_block(results: dict[str, Any]) -> str:
    """Speed over the best constant of every variant of the training."""
    made = f"{_made(results)}; {results['config']['steps']} decisions a training, {results['config']['seeds']} seeds."
    rows = [
        [
            name,
            f"{own['mean']:.3f}",
            ", ".join(f"{value:.3f}" for value in own["mean_of_each_seed"]),
            f"{own['least']:.3f}",
        ]
        for name, own in results["results"].items()
    ]
    return f"{made}\n\n{table(['PPO alone', 'mean over scenarios', 'each seed', 'least of a scenario'], rows)}"


def live_block(results: dict[str, Any]) -> str:
    """The real engine in closed loop: every contender over off and over the best constant."""
    rows = []
    for scenario, own in results["scenarios"].items():
        for name, found in own["contenders"].items():
            label = "best constant, " + name.replace("constant_", "K = ") if name == own["best_constant"] else name
            cells = [f"{found[key][part]:.2f}" for key in RATIOS for part in ("median", "min", "max")]
            over = [f"{cells[at]} ({cells[at + 1]} … {cells[at + 2]})" for at in (0, 3)]
            rows.append([scenario, label, *over, "yes" if found["same_texts"] else "NO"])
    header = ["scenario", "controller", "over off", "over the best constant", "same texts"]
    return f"{_made(results)}.\n\n{table(header, rows)}"


def _made(results: dict[str, Any]) -> str:
    return f"Made {results['date'][:10]} on {results['hardware']} ({results['git_revision']})"


def _read(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text())
    return results


BLOCKS: dict[str, Callable[[], str]] = {
    "engine benchmark": lambda: engine_block(_read(ENGINE_RESULTS)),
    "evaluation": lambda: evaluation_block(_read(EVALUATION_RESULTS)),
    "sim to real": lambda: sim_to_real_block(_read(SIM_TO_REAL_RESULTS)),
    "ablation": lambda: ablation_block(_read(ABLATION_RESULTS)) if ABLATION_RESULTS.is_file() else "Not run yet.",
    "live": lambda: live_block(_read(LIVE_RESULTS)),
    "vllm": lambda: vllm_block(_read(VLLM_RESULTS)),
    "vllm greedy": lambda: vllm_block(_read(VLLM_GREEDY_RESULTS)),
    "compiled pass": lambda: compiled_block(_read(COMPILED_RESULTS)),
    "shipped pair": lambda: pair_block(_read(PAIR_RECORD)),
}


def filled(text: str) -> str:
    """``text`` with every block made anew; ``ValueError`` where a block's markers are missing."""
    for name, block in BLOCKS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?( *){re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"the README must hold {begin!r} and {end!r} once each")
        found = f"{begin}\n{block()}\n"
        text = pattern.sub(lambda match, found=found, end=end: f"{found}{match[1]}{end}", text)  # type: ignore[misc]
    return text


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README is out of date")
    arguments = parser.parse_args()
    text = README.read_text()
    new = filled(text)
    if arguments.check and new != text:
        sys.exit("error: README.md states other figures than the results; run python benchmarks/readme.py")
    if not arguments.check:
        README.write_text(new)


if __name__ == "__main__":
    main()
