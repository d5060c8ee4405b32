"""How many decisions a second the compiled replay makes: requests that decode, summed over rounds, per second.

    python benchmarks/replay_speed.py --record runs/record/pystdlib    # half a minute; writes benchmarks/results/

One thread and several, each with a fleet of its own: the compiled step lets other threads run.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specpilot.benchmarks.measurement import ROOT, machine_state, spread
from specpilot.controllers import AcceptancePredictor, Action, CostSurface
from specpilot.envs.fleet import FleetConfig, ReplayFleet
from specpilot.envs.replay import ReplayConfig
from specpilot.envs.scenario import load_predictor
from specpilot.envs.trace import Trace
from specpilot.envs.traffic import Traffic
from specpilot.train.run_record import run_record, write_json

GOAL = 500_000
WARM_UP_STEPS = 5


@dataclass(frozen=True)
class ReplaySpeedConfig:
    """What is measured."""

    record: Path
    """Folder that train/record.py wrote."""
    predictor: Path | None = None
    """JSON of a predictor; None: an uninformed one."""
    batch: int = 32
    num_envs: int = 8
    """Engines in each thread's fleet."""
    threads: int = 2
    steps: int = 200
    """Of each sample."""
    samples: int = 7
    max_length: int = 8
    price: float = 1.0
    looks: int = 0


def run(config: ReplaySpeedConfig) -> dict[str, Any]:
    """Measure; decisions per second with one thread and with ``threads``, samples interleaved."""
    trace, surface = Trace.load(config.record / "train.npz"), CostSurface.load(config.record / "cost_surface.json")
    predictor = load_predictor(config.predictor, trace)
    fleets = [_fleet(config, trace, surface, predictor, seed) for seed in range(config.threads)]
    for fleet in fleets:
        _play(fleet, config, WARM_UP_STEPS)
    rates: dict[str, list[float]] = {"1": [], str(config.threads): []}
    with ThreadPoolExecutor(config.threads) as pool:
        for _ in range(config.samples):
            for count, own in rates.items():
                start = time.perf_counter()
                decisions = sum(pool.map(lambda fleet: _play(fleet, config, config.steps), fleets[: int(count)]))
                own.append(decisions / (time.perf_counter() - start))
    return {count: spread(own) for count, own in rates.items()}


def _fleet(
    config: ReplaySpeedConfig, trace: Trace, surface: CostSurface, predictor: AcceptancePredictor, seed: int
) -> ReplayFleet:
    traffic = FleetConfig((Traffic(concurrency=config.batch),), max_rounds=1000)
    fleet = ReplayFleet(
        trace, surface, predictor, traffic, ReplayConfig(max_num_seqs=config.batch), config.num_envs, seed
    )
    for e in range(config.num_envs):
        fleet.reset(e)
    return fleet


def _play(fleet: ReplayFleet, config: ReplaySpeedConfig, steps: int) -> int:
    """Play ``steps`` rounds everywhere and return the decisions; episodes that end begin again."""
    actions, decisions = [Action(config.max_length, config.price, config.looks)] * fleet.num_envs, 0.0
    for _ in range(steps):
        _, served, late = fleet.step(actions)
        decisions += fleet.gained[:, 3].sum()
        for e in np.flatnonzero(served | late).tolist():
            fleet.reset(e)
    return int(decisions)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--predictor", type=Path)
    parser.add_argument("--max-length", type=int, default=8)
    parser.add_argument("--price", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "replay_speed.json")
    arguments = parser.parse_args()
    config = ReplaySpeedConfig(
        arguments.record,
        arguments.predictor,
        samples=arguments.samples,
        max_length=arguments.max_length,
        price=arguments.price,
    )
    state = machine_state()
    rates = run(config)
    for count, own in rates.items():
        low, high = own["min"], own["max"]
        print(f"{count} thread(s): {own['median']:,.0f} decisions/s ({low:,.0f} … {high:,.0f}), goal {GOAL:,}")
    record = run_record(config, machine=state, decisions_per_second=rates)
    record["config"] = {
        name: str(value) if isinstance(value, Path) else value for name, value in record["config"].items()
    }
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
