"""How well replay predicts the engine: tokens per second of the same requests, replayed and live.

    python -m specpilot.benchmarks.sim_to_real --config configs/evaluate/pystdlib.yaml [--batches 1,4,16,32]

Writes ``sim_to_real.json`` and ``sim_to_real.md`` to the configuration's output folder after every batch size; those
that are there are not measured again. Off, every constant length, the price rule and the configuration's controller
files serve the evaluation recording's requests, all temperatures mixed, in closed loop, one after another on one
engine, in another order each time. A machine's speed drifts after its cost surface was measured, so errors are given as
they are and of the speed relative to off, which is what choosing between contenders depends on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from specpilot.configs import load_config
from specpilot.train.contenders import OFF, PRICE_RULE, Field, constant_name
from specpilot.train.evaluation import EvaluateConfig, ReplayEvaluation, digest
from specpilot.train.evaluation_table import write_text
from specpilot.train.live_evaluation import Contest, live_makers
from specpilot.train.run_record import run_record, write_json
from specpilot.train.scenarios import closed_loop

from .measurement import machine_state, spread

GOAL = 0.05
"""Of the median absolute error."""
KINDS_OF_ERROR = ("error", "relative_error")
MIN_REQUESTS = 4


def compare(contest: Contest, field: Field, batch: int, requests: int, repeats: int, seed: int) -> dict[str, Any]:
    """Predicted and live tokens per second of every contender at one batch size."""
    scenario = closed_loop("mix", (), batch, EvaluateConfig("", "").scenarios)._replace(num_requests=requests)
    schedule = field.stage.schedule(scenario, seed)
    constants = [constant_name(length) for length in range(field.longest + 1)]
    makers = live_makers(field, [*constants, PRICE_RULE, *(own.name for own in field.files)])
    predicted = {name: field.stage.engine(schedule).serve(make()).tokens_per_second for name, make in makers.items()}
    live: dict[str, list[float]] = {name: [] for name in makers}
    for _ in tqdm(range(repeats), desc=f"batch {batch}"):
        for name, run in contest.serve_one_by_one(schedule, makers).items():
            live[name].append(run.tokens_per_second)
    speeds = {name: Speeds(predicted[name], own) for name, own in live.items()}
    return {"contenders": {name: errors(own, speeds[OFF]) for name, own in speeds.items()}}


@dataclass(frozen=True)
class Speeds:
    """Tokens per second of one contender at one batch size."""

    predicted: float
    live: Sequence[float]
    """By repeat."""


def errors(own: Speeds, off: Speeds) -> dict[str, Any]:
    """Relative errors of a prediction: as it is, and of the speed over ``off``'s in the same repeat."""
    ratios = [one / base for one, base in zip(own.live, off.live, strict=True)]
    return {
        "predicted": own.predicted,
        "live": spread(own.live),
        "error": spread([own.predicted / speed - 1 for speed in own.live]),
        "relative_error": spread([own.predicted / off.predicted / ratio - 1 for ratio in ratios]),
    }


def overall(batches: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Spread of the absolute median errors over contenders and batches."""
    contenders = [own for cells in batches.values() for own in cells["contenders"].items()]
    kept = [own for name, own in contenders if not (key == "relative_error" and name == OFF)]
    return spread([abs(own[key]["median"]) for own in kept])


def markdown(results: Mapping[str, Any]) -> str:
    """One line for every batch and contender."""
    lines = ["| batch | contender | predicted | live | error | min … max | over off |", "|---" * 7 + "|"]
    for batch, measured in results["batches"].items():
        for name, own in measured["contenders"].items():
            plain = own["error"]
            cells = [f"{own['predicted']:.0f}", f"{own['live']['median']:.0f}", f"{plain['median']:+.1%}"]
            cells.append(f"{plain['min']:+.1%} … {plain['max']:+.1%}")
            lines.append(f"| {batch} | {name} | " + " | ".join(cells) + f" | {own['relative_error']['median']:+.1%} |")
    for key in KINDS_OF_ERROR:
        own = results[key]
        lines.append(f"\nabsolute {key.replace('_', ' ')}: median {own['median']:.1%}, largest {own['max']:.1%}")
    return "\n".join(lines) + f"\n\nGoal: a median of at most {GOAL:.0%}.\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration of train/evaluate.py")
    parser.add_argument("--batches", default="1,4,16,32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests-per-slot", type=int, default=3)
    options = parser.parse_args(arguments)
    config, state = load_config(EvaluateConfig, options.config), machine_state()
    evaluation = ReplayEvaluation(config)
    field = evaluation.contest
    contest = Contest(config, "live", field.stage.trace)
    path, settings = Path(config.output) / "sim_to_real.json", [options.repeats, options.requests_per_slot]
    key = digest([evaluation.key, settings])
    batches = _measured(path, key)
    for batch in map(int, options.batches.split(",")):
        if str(batch) in batches:
            continue
        requests = max(MIN_REQUESTS, options.requests_per_slot * batch)
        batches[str(batch)] = compare(contest, field, batch, requests, options.repeats, config.seed)
        sums = {kind: overall(batches, kind) for kind in KINDS_OF_ERROR}
        results = run_record(config, key=key, machine=state, batches=batches, **sums)
        write_json(path, results)
        write_text(path.with_suffix(".md"), markdown(results))
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


def _measured(path: Path, key: str) -> dict[str, Any]:
    """Results by batch size of an earlier run with the same inputs."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(earlier["batches"]) if isinstance(earlier, dict) and earlier.get("key") == key else {}


if __name__ == "__main__":
    main()
