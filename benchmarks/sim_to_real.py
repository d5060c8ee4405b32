"""How well replay predicts the engine: tokens per second of the same requests, replayed and live.

    python -m specpilot.benchmarks.sim_to_real --config configs/evaluate/pystdlib.yaml [--batches 1,4,16,32]

Writes ``sim_to_real.json`` and ``sim_to_real.md`` to the configuration's output folder. Off, every constant length, the
price rule and the configuration's controller files serve the evaluation recording's requests, all temperatures mixed,
in closed loop, one after the other in every repeat. A machine's speed drifts after its cost surface was measured, so a
few reference passes are timed before and after every repeat; errors are given as they are and with the predictions
divided by that factor.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from specpilot.configs import load_config
from specpilot.controllers import ConstantController
from specpilot.engine import Engine
from specpilot.train.contenders import PRICE_RULE, Field, constant_name
from specpilot.train.evaluation import EvaluateConfig, ReplayEvaluation
from specpilot.train.evaluation_table import write_text
from specpilot.train.live_evaluation import interleaved, live_makers, replayed_engine, serve_live
from specpilot.train.live_rounds import RoundMeter
from specpilot.train.run_record import run_record, write_json
from specpilot.train.scenarios import closed_loop

from .measurement import machine_state, spread

GOAL = 0.05
"""Of the median absolute error."""


def compare(engine: Engine, contest: Field, batch: int, requests: int, repeats: int, seed: int) -> dict[str, Any]:
    """Predicted and live tokens per second of every contender at one batch size."""
    scenario = closed_loop("mix", (), batch, EvaluateConfig("", "").scenarios)._replace(num_requests=requests)
    schedule, trace = contest.stage.schedule(scenario, seed), contest.stage.trace
    constants = [constant_name(length) for length in range(contest.longest + 1)]
    makers = live_makers(contest, [*constants, PRICE_RULE, *(own.name for own in contest.files)])
    predicted = {name: contest.stage.engine(schedule).serve(make()).tokens_per_second for name, make in makers.items()}
    serve_live(engine, trace, schedule, ConstantController(1))  # Warms up.
    live: dict[str, list[float]] = {name: [] for name in makers}
    slowness = []
    for repeat in tqdm(range(repeats), desc=f"batch {batch}"):
        meter = RoundMeter(engine, contest.stage.surface)
        before = meter.machine_slowness()
        for name, run in interleaved(engine, trace, schedule, makers, repeat).items():
            live[name].append(run.tokens_per_second)
        slowness.append((before + meter.machine_slowness()) / 2)
    return {
        "slowness": spread(slowness),
        "contenders": {name: errors(predicted[name], live[name], slowness) for name in makers},
    }


def errors(predicted: float, live: Sequence[float], slowness: Sequence[float]) -> dict[str, Any]:
    """Relative errors of a prediction in tokens per second, as it is and corrected for the machine's speed."""
    return {
        "predicted": predicted,
        "live": spread(live),
        "error": spread([predicted / own - 1 for own in live]),
        "corrected_error": spread([predicted / slow / own - 1 for own, slow in zip(live, slowness, strict=True)]),
    }


def overall(batches: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Spread of the absolute median errors over contenders and batches."""
    return spread([abs(own[key]["median"]) for cells in batches.values() for own in cells["contenders"].values()])


def markdown(results: Mapping[str, Any]) -> str:
    """One line for every batch and contender."""
    lines = ["| batch | contender | predicted | live | error | corrected | min … max |", "|---" * 7 + "|"]
    for batch, cells in results["batches"].items():
        for name, own in cells["contenders"].items():
            fixed = own["corrected_error"]
            cells = [f"{own['predicted']:.0f}", f"{own['live']['median']:.0f}", f"{own['error']['median']:+.1%}"]
            cells += [f"{fixed['median']:+.1%}", f"{fixed['min']:+.1%} … {fixed['max']:+.1%}"]
            lines.append(f"| {batch} | {name} | " + " | ".join(cells) + " |")
    for key in ("error", "corrected_error"):
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
    contest, engine = ReplayEvaluation(config).contest, replayed_engine(config, "live")
    assert isinstance(engine, Engine)
    batches = {}
    for batch in map(int, options.batches.split(",")):
        requests = max(8, options.requests_per_slot * batch)
        batches[str(batch)] = compare(engine, contest, batch, requests, options.repeats, config.seed)
    sums = {key: overall(batches, key) for key in ("error", "corrected_error")}
    results = run_record(config, machine=state, batches=batches, **sums)
    write_json(Path(config.output) / "sim_to_real.json", results)
    table = markdown(results)
    write_text(Path(config.output) / "sim_to_real.md", table)
    print(table)


if __name__ == "__main__":
    main()
