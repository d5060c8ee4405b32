"""What each part of the training contributes: PPO with one thing changed, judged on the same evaluation requests.

    python benchmarks/ablation.py [--config configs/quickstart.yaml] [--steps 250000] [--seeds 2]

Trains every variant in `VARIANTS` with ``train/ppo.py``, serves the evaluation recording with all teachers at once by
``train/evaluate.py``, and writes ``ablation.json`` and ``ablation.md``. A run that is finished is not made again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml

from specpilot.benchmarks.measurement import ROOT
from specpilot.train.evaluation_table import write_text
from specpilot.train.run_record import run_record, write_json

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "reward: per-round ratio": {"reward": "round_ratio"},
    "reward: tokens - price x seconds": {"reward": "throughput"},
    "reward: tokens - price x request-seconds": {"reward": "request_speed"},
    "constant lengths alone": {"planned_lengths": []},
    "no looks": {"looks": [0]},
    "little foresight (gamma 0)": {"gamma": 0.0},
}
"""What is overridden in the configuration of train/ppo.py."""
COMPARED = ("price_rule", "turbospec", "length_table")
"""Of train/evaluate.py's own contenders: the rule without PPO, and two without learning."""


@dataclass(frozen=True)
class AblationConfig:
    """What is trained and judged."""

    config: str = "configs/quickstart.yaml"
    """Of train/ppo.py; variants change it."""
    output: str = "runs/ablation"
    arrivals: str | None = None
    """CSV of real arrivals for the evaluation."""
    steps: int = 250_000
    """Rounds of each training."""
    seeds: int = 2
    """Trainings of each variant."""


def run(script: str, *options: str) -> None:
    """One script of the repository; stops where it fails."""
    print(f"== {script} {' '.join(options)}", flush=True)
    if code := subprocess.run([sys.executable, str(ROOT / script), *options], cwd=ROOT, check=False).returncode:
        sys.exit(code)


def train(options: AblationConfig, output: Path) -> dict[str, list[Path]]:
    """Teachers of every variant, one a seed."""
    teachers = dict[str, list[Path]]()
    for number, (variant, changes) in enumerate(VARIANTS.items()):
        for seed in range(options.seeds):
            folder = output / f"{number}_{seed}"
            overrides = {"output": str(folder), "total_steps": options.steps, "seed": seed, **changes}
            words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
            run("train/ppo.py", "--config", options.config, "--override", *words)
            teachers.setdefault(variant, []).append(folder / "teacher")
    return teachers


def evaluate(record: str, output: Path, teachers: Mapping[str, Sequence[Path]], arrivals: str | None) -> dict[str, Any]:
    """Summaries of every scenario, all teachers among the contenders (``variant #seed``)."""
    files = [
        {"name": f"{variant} #{seed}", "path": str(path)}
        for variant, paths in teachers.items()
        for seed, path in enumerate(paths)
    ]
    scenarios: dict[str, Any] = {
        "temperatures": [0.0, 1.0],
        "seeds": 2,
        "requests_per_slot": 3,
        "arrival_requests": 128,
    }
    if arrivals is not None:
        scenarios["arrivals"] = arrivals
    config = output / "evaluate.yaml"
    own = {"output": str(output / "evaluate"), "record": record, "controllers": files, "scenarios": scenarios}
    write_text(config, yaml.safe_dump(own))
    run("train/evaluate.py", "--config", str(config))
    results: dict[str, Any] = json.loads((output / "evaluate" / "results.json").read_text())["scenarios"]
    return results


def figures(scenarios: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Speed over the scenario's best constant: geometric mean and least over scenarios, of each of ``names``."""
    table = [
        [own["contenders"][name]["relative_to_best_constant"]["median"] for own in scenarios.values()] for name in names
    ]
    means = [float(np.exp(np.mean(np.log(row)))) for row in table]
    return {"mean": float(np.mean(means)), "least": float(np.min(table)), "mean_of_each_seed": means}


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for every variant."""
    lines = ["| variant | mean over scenarios | each seed | least of a scenario |", "|---|---:|---:|---:|"]
    for name, own in found.items():
        each = ", ".join(f"{value:.3f}" for value in own["mean_of_each_seed"])
        lines.append(f"| {name} | {own['mean']:.3f} | {each} | {own['least']:.3f} |")
    return "Speed over the best constant length of the scenario:\n\n" + "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, report."""
    options = tyro.cli(AblationConfig, args=arguments)
    output = ROOT / options.output
    record = yaml.safe_load((ROOT / options.config).read_text())["record"]
    teachers = train(options, output)
    scenarios = evaluate(record, output, teachers, options.arrivals)
    found = {name: figures(scenarios, [f"{name} #{seed}" for seed in range(options.seeds)]) for name in VARIANTS}
    found |= {name: figures(scenarios, [name]) for name in COMPARED}
    results = run_record(options, variants=VARIANTS, results=found, scenarios=list(scenarios))
    write_json(output / "ablation.json", results)
    write_text(output / "ablation.md", markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
