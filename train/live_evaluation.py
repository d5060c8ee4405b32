"""Serve recorded requests on real engines in closed loop, contenders in turns, and compare pair by pair."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from specpilot.controllers import ConstantController, Controller
from specpilot.engine import EngineConfig
from specpilot.envs.live import ServingEngine, build_engine, recorded_params
from specpilot.envs.replay_state import Schedule
from specpilot.envs.trace import Trace
from specpilot.train.contenders import OFF, PRICE_RULE, constant_name
from specpilot.train.evaluation import EvaluateConfig, ReplayEvaluation
from specpilot.train.evaluation_table import write_text
from specpilot.train.run_record import run_record, write_json
from specpilot.train.scenarios import closed_loop
from specpilot.train.turns import Run, Service, take_turns

if TYPE_CHECKING:
    from specpilot.train.contenders import Field

Maker = Callable[[], Controller]


class Contest:
    """Contenders on real engines, as many as there are of them, which take turns.

    Engines alike differ in speed by some percent, by where their memory lies; so every service gives each contender
    another one.
    """

    def __init__(self, config: EvaluateConfig, backend: str, trace: Trace) -> None:
        """``trace``: its prompts, seeds, temperatures and token limits are served, so that the texts are its own."""
        self._config, self._backend, self.trace = config, backend, trace
        self._engines, self._services = list[ServingEngine](), 0

    def engine(self, number: int) -> ServingEngine:
        """The engine of this number, from 0 on; made when it is first asked for, with those before, and warm."""
        while len(self._engines) <= number:
            own = replayed_engine(self._config, self._backend, self.trace)
            own.controller = ConstantController(1)
            warm = own.add_request(self.trace.prompt(0), recorded_params(self.trace, 0))
            while own.has_work:
                own.step()
            own.take_result(warm)
            self._engines.append(own)
        return self._engines[number]

    def serve(self, schedule: Schedule, makers: Mapping[str, Maker]) -> dict[str, Run]:
        """Every contender serves ``schedule``, each with a fresh controller."""
        services = {}
        for place, (name, make) in enumerate(makers.items()):
            engine = self.engine((place + self._services) % len(makers))
            engine.controller = make()
            services[name] = Service(engine, self.trace, schedule)
        self._services += 1
        take_turns(services)
        return {name: own.run() for name, own in services.items()}

    def serve_one_by_one(self, schedule: Schedule, makers: Mapping[str, Maker]) -> dict[str, Run]:
        """Every contender serves ``schedule`` to its end on the same engine, in a new order each time.

        As in a server of its own: in short turns each finds the memory of the others in the caches, which makes all of
        them slower.
        """
        engine, found = self.engine(0), dict[str, Run]()
        for name in random.Random(self._services).sample([*makers], len(makers)):
            engine.controller = makers[name]()
            service = Service(engine, self.trace, schedule)
            take_turns({name: service})
            found[name] = service.run()
        self._services += 1
        return found


def live_makers(field: Field, names: Sequence[str]) -> dict[str, Maker]:
    """Makers of these contenders. Raises `ValueError` for a name that has no controller."""
    known: dict[str, Maker] = {**field.controllers(), PRICE_RULE: field.price_rule}
    for name in names:
        if name not in known:
            raise ValueError(f"no live contender is called {name!r}; there are {', '.join(known)}")
    return {name: known[name] for name in names}


def replayed_engine(config: EvaluateConfig, backend: str, trace: Trace) -> ServingEngine:
    """The engine that replay of ``trace`` replays."""
    live = config.live
    if live.threads:
        torch.set_num_threads(live.threads)
    settings = EngineConfig(
        max_num_seqs=config.engine.max_num_seqs,
        max_num_speculative_tokens=trace.max_num_speculative_tokens,
        prefill_chunk=config.engine.prefill_chunk,
    )
    return build_engine(backend, live.target, live.drafter, settings)


def evaluate_live(config: EvaluateConfig, backend: str = "live") -> dict[str, Any]:
    """Off, the best constant by replay and the contenders of ``config.live``, on the mix at each concurrency.

    ``backend``: ``live`` (the embedded engine) or ``vllm``. Writes ``live.json`` and ``live.md`` (or ``vllm.json`` and
    ``vllm.md``); returns what the former holds.
    """
    field, live = ReplayEvaluation(config).contest, config.live
    contest, results = Contest(config, backend, field.stage.trace), {}
    for concurrency in live.concurrencies:
        scenario = closed_loop("mix", (), concurrency, config.scenarios)._replace(num_requests=live.requests)
        schedule = field.stage.schedule(scenario, config.seed)
        best = _best_constant(field, schedule)
        makers = live_makers(field, list(dict.fromkeys((OFF, best, *live.contenders))))
        runs = [contest.serve(schedule, makers) for _ in tqdm(range(live.repeats), desc=scenario.name)]
        results[scenario.name] = {"best_constant": best, "contenders": _compare(runs, best)}
    record = run_record(config, scenarios=results)
    write_json(Path(config.output) / f"{backend}.json", record)
    table = _markdown(results)
    write_text(Path(config.output) / f"{backend}.md", table)
    print(table)
    return json.loads(json.dumps(record))  # type: ignore[no-any-return]


def _best_constant(field: Field, schedule: Schedule) -> str:
    """By replay of the very requests."""
    speeds = {
        constant_name(own): field.stage.engine(schedule).serve(ConstantController(own)).tokens_per_second
        for own in range(field.longest + 1)
    }
    return max(speeds, key=lambda name: speeds[name])


def _compare(runs: Sequence[Mapping[str, Run]], best: str) -> dict[str, Any]:
    """Ratios by repeat; ``same_texts``: every output is off's of the same repeat."""

    def ratios(name: str, base: str) -> dict[str, float]:
        own = [run[name].tokens_per_second / run[base].tokens_per_second for run in runs]
        return {"median": statistics.median(own), "min": min(own), "max": max(own)}

    return {
        name: {
            "tokens_per_second": [run[name].tokens_per_second for run in runs],
            "relative_to_off": ratios(name, OFF),
            "relative_to_best_constant": ratios(name, best),
            "same_texts": all(run[name].outputs == run[OFF].outputs for run in runs),
        }
        for name in runs[0]
    }


def _markdown(results: Mapping[str, Any]) -> str:
    lines = ["| scenario | contender | over off | min … max | over the best constant | min … max | same texts |"]
    lines.append("|---" * 7 + "|")
    for scenario, result in results.items():
        for name, own in result["contenders"].items():
            shown = name + " (best constant)" * (name == result["best_constant"])
            cells = [f"| {scenario} | {shown} "]
            for key in ("relative_to_off", "relative_to_best_constant"):
                ratio = own[key]
                cells.append(f"| {ratio['median']:.3f} | {ratio['min']:.3f} … {ratio['max']:.3f} ")
            lines.append("".join(cells) + f"| {'yes' if own['same_texts'] else 'NO'} |")
    return "\n".join(lines) + "\n"
