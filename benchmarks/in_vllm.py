"""Compare on real vLLM: no speculation, constant lengths, vLLM's own table, and a controller through the plugin.

    .venv-vllm/bin/python benchmarks/in_vllm.py --config configs/benchmark/vllm.yaml             # half an hour, 12 GB
    .venv-vllm/bin/python benchmarks/in_vllm.py --config ... --scenarios c=1 "bursts 0.5"        # only these
    python benchmarks/in_vllm.py --report benchmarks/results/vllm.json                           # the table again

Each contender serves on an engine of its own, all in one process (`make vllm-env`): without speculation; stock vLLM
with its per-batch-size table, tuned on the training requests with our evaluation; with the plugin, as it comes. All
serve the same requests, with the recorded seeds and so with the same texts (`engine.vllm.seeded_sampling`), in short
turns (`vllm_serving.py`). What a file of results holds already is not measured again. Writes JSON with every sample.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from specpilot.benchmarks.measurement import ROOT, machine_state
from specpilot.benchmarks.vllm_config import VllmBenchmark
from specpilot.benchmarks.vllm_report import CONTROLLER, PLUGIN_OFF, TABLE, vllm_block
from specpilot.benchmarks.vllm_serving import decode_seconds, serve_in_turns
from specpilot.configs import ConfigError, load_config
from specpilot.controllers import ConstantController, Controller, CostSurface, load_controller
from specpilot.controllers.length_table import Row
from specpilot.controllers.observation import plain_round_seconds
from specpilot.engine.vllm.engine import STOCK, VllmEngine, VllmEngineConfig
from specpilot.engine.vllm.settings import VllmSettings
from specpilot.envs.replay import ReplayConfig
from specpilot.envs.replay_state import Recording
from specpilot.envs.trace import Trace
from specpilot.envs.traffic import ArrivalFile, Traffic
from specpilot.train.baseline_tuning import BaselineTuning
from specpilot.train.contenders import OFF, constant_name
from specpilot.train.predictor import fit_what_is_told
from specpilot.train.run_record import run_record, write_json
from specpilot.train.scenarios import Scenario, ScenarioConfig, Stage

FORMAT = 2
CONFIRM_STEPS, DWELL_STEPS = VllmSettings().confirm_steps, VllmSettings().dwell_steps
"""The plugin as it comes."""


class Benchmark:
    """The engines, the contenders and what they serve."""

    def __init__(self, config: VllmBenchmark) -> None:
        """Raises what the readers of the files raise."""
        self.config = config
        record = ROOT / config.record
        surface = CostSurface.load(record / "cost_surface.json")
        sizes = ReplayConfig(config.max_num_seqs, config.max_model_len, config.prefill_chunk)
        arrivals = None if config.arrivals is None else ArrivalFile.load(config.arrivals)
        self.train = Stage.build(Trace.load(record / "train.npz"), surface, sizes)
        self.table: tuple[Row, ...] = ()
        """Of the stock engine."""
        self.stage = Stage.build(Trace.load(record / "evaluation.npz"), surface, sizes, arrivals)

    def tuned_table(self) -> tuple[Row, ...]:
        """vLLM's ``num_speculative_tokens_per_batch_size``: the best constant of each batch size, by replay."""
        predictor = fit_what_is_told(self.train.trace, self.config.seed)
        recording = Recording.of(self.train.trace, predictor)
        return BaselineTuning(self.train, recording, ScenarioConfig(temperatures=())).table()

    def scenarios(self) -> list[Scenario]:
        """Closed loops, then bursts."""
        own = self.config
        closed = [
            Scenario(f"c={count}", Traffic(concurrency=count), max(own.requests, round(own.requests_per_slot * count)))
            for count in own.concurrencies
        ]
        mode = "bursty" if own.arrivals is None else "csv"
        bursts = [Traffic(mode, load=load, path=own.arrivals) for load in own.loads]
        return closed + [Scenario(f"bursts {traffic.load:g}", traffic, own.arrival_requests) for traffic in bursts]

    @cached_property
    def _engines(self) -> tuple[dict[str, VllmEngine], list[VllmEngine]]:
        """Stock engines by name, and one with the plugin for each of `_controllers`; all are started here."""
        own = self.config
        torch.set_num_threads(own.threads)
        base = VllmEngineConfig(
            target=str(ROOT / own.target),
            drafter=str(ROOT / own.drafter),
            max_num_seqs=own.max_num_seqs,
            max_model_len=own.max_model_len,
            prefill_chunk=own.prefill_chunk,
            max_num_speculative_tokens=max(own.lengths),
        )
        stock = {
            OFF: VllmEngine(replace(base, drafter=None, scheduler=STOCK)),
            TABLE: VllmEngine(replace(base, scheduler=STOCK, table=self.table)),
        }
        as_it_comes = replace(base, confirm_steps=CONFIRM_STEPS, dwell_steps=DWELL_STEPS)
        steered = [VllmEngine(as_it_comes) for _ in self._controllers]
        for engine in (*stock.values(), *steered):  # The first steps of an engine are slow.
            decode_seconds(engine, self.stage.trace)
        return stock, steered

    @cached_property
    def _controllers(self) -> dict[str, Controller]:
        constants: dict[str, Controller] = {constant_name(k): ConstantController(k) for k in self.config.lengths}
        return {
            PLUGIN_OFF: ConstantController(0),
            **constants,
            CONTROLLER: load_controller(ROOT / self.config.controller),
        }

    def contenders(self, repeat: int) -> dict[str, VllmEngine]:
        """By name. Controllers change engines from repeat to repeat, for engines alike differ by some percent by where
        their memory lies, and in a repeat keep them from load to load: a guard that was just made probes often."""
        stock, steered = self._engines
        names = list(self._controllers)
        seats = {name: steered[(place + repeat) % len(names)] for place, name in enumerate(names)}
        for name, engine in seats.items():
            if engine.controller is not self._controllers[name]:  # Once more it would lose what its guard has seen.
                engine.controller = self._controllers[name]
        return stock | seats

    def slowness(self, plain: VllmEngine) -> float:
        """Seconds of a step of ``plain`` with all slots in use, now, over those of the recorded costs."""
        seconds, context = decode_seconds(plain, self.stage.trace)
        return seconds / plain_round_seconds(self.stage.costs, self.config.max_num_seqs, context)

    def measure(self, scenario: Scenario, repeat: int) -> tuple[float, dict[str, Any]]:
        """`slowness`, and every contender on the same requests. Arrivals come as much later as the machine is slow, for
        a load is a share of what it can serve."""
        contenders = self.contenders(repeat)
        schedule, slowness = self.stage.schedule(scenario, self.config.seed + repeat), self.slowness(contenders[OFF])
        schedule = schedule._replace(arrival=schedule.arrival * slowness)
        runs = serve_in_turns(contenders, self.stage.trace, schedule)
        return slowness, {name: run.document() for name, run in runs.items()}


def measure(config: VllmBenchmark, only: list[str] | None, seconds: float) -> dict[str, Any]:
    """Measure what the output does not hold yet, for about ``seconds``; it is written after every repeat."""
    output, benchmark, start = ROOT / config.output, Benchmark(config), time.monotonic()
    known = {own.name: own for own in benchmark.scenarios()}
    if unknown := [name for name in only or () if name not in known]:
        raise ValueError(f"there is no scenario {unknown[0]!r}; there are {', '.join(known)}")
    results = _begun(output, config)
    if "table" not in results:
        results["table"] = [list(row) for row in benchmark.tuned_table()]
        write_json(output, results)
    benchmark.table = tuple((low, high, length) for low, high, length in results["table"])
    for name, scenario in known.items():
        own = {"is_open": scenario.is_open, "requests": scenario.num_requests, "slowness": [], "repeats": []}
        results["scenarios"].setdefault(name, own)
    for repeat, name in product(range(config.repeats), only or known):
        own = results["scenarios"][name]
        if len(own["repeats"]) > repeat:
            continue
        if time.monotonic() - start > seconds:
            break
        print(f"{name}: repeat {repeat + 1} of {config.repeats}", file=sys.stderr, flush=True)
        slowness, runs = benchmark.measure(known[name], repeat)
        own["slowness"].append(slowness)
        own["repeats"].append(runs)
        write_json(output, results)
    return results


def _begun(output: Path, config: VllmBenchmark) -> dict[str, Any]:
    """The results so far. Raises `ValueError` where they are of another configuration."""
    import vllm

    results: dict[str, Any] = {"format": FORMAT, **run_record(config, machine=machine_state()), "scenarios": {}}
    results["versions"]["vllm"] = vllm.__version__
    if not output.exists():
        return results
    found: dict[str, Any] = json.loads(output.read_text())
    if any(found.get(key) != json.loads(json.dumps(results[key])) for key in ("format", "config", "versions")):
        raise ValueError(f"{output} was made by another configuration or versions; delete it or name another output")
    return found


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/benchmark/vllm.yaml")
    parser.add_argument("--scenarios", nargs="+", help="only these, such as c=1")
    parser.add_argument("--seconds", type=float, default=math.inf, help="go on with the same command after so many")
    parser.add_argument("--report", type=Path, metavar="JSON", help="print the table of these results and end")
    arguments = parser.parse_args()
    try:
        if arguments.report is not None:
            print(vllm_block(json.loads(arguments.report.read_text())))
            return
        config = load_config(VllmBenchmark, arguments.config)
        print(vllm_block(measure(config, arguments.scenarios, arguments.seconds)))
    except (ConfigError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
