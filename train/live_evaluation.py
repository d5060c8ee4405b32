"""Serve recorded requests on a real engine in closed loop, contenders in turn, and compare pair by pair."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from specpilot.controllers import ConstantController, Controller
from specpilot.engine import EngineConfig, SamplingParams
from specpilot.envs.live import ServingEngine, build_engine
from specpilot.envs.replay_state import Schedule
from specpilot.envs.trace import Trace
from specpilot.train.contenders import OFF, PRICE_RULE, constant_name
from specpilot.train.evaluation import EvaluateConfig, ReplayEvaluation
from specpilot.train.evaluation_table import write_text
from specpilot.train.run_record import run_record, write_json
from specpilot.train.scenarios import closed_loop

if TYPE_CHECKING:
    from specpilot.train.contenders import Field

Maker = Callable[[], Controller]


@dataclass(frozen=True)
class LiveRun:
    """One contender's service of a schedule."""

    seconds: float
    """Wall time, prefill included."""
    outputs: tuple[tuple[int, ...], ...]
    """Generated tokens per request of the schedule."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over wall time."""
        return sum(map(len, self.outputs)) / self.seconds


def serve_live(engine: ServingEngine, trace: Trace, schedule: Schedule, controller: Controller) -> LiveRun:
    """Keep ``schedule``'s concurrency of its recorded requests in the system until all are served.

    Prompts, seeds, temperatures and token limits are the recorded ones, so the texts are too. Raises `TraceError`
    where the recording holds no prompts.
    """
    engine.controller = controller
    records, limit = schedule.record[0].tolist(), int(schedule.concurrency[0])
    prompts = [trace.prompt(record) for record in records]
    params = [_params(trace, record) for record in records]
    names, running, start = list[str](), 0, time.perf_counter()
    while len(names) < len(records) or engine.has_work:
        while running < limit and len(names) < len(records):
            names.append(engine.add_request(prompts[len(names)], params[len(names)]))
            running += 1
        running -= sum(chunk.finish_reason is not None for chunk in engine.step())
    seconds = time.perf_counter() - start
    return LiveRun(seconds, tuple(tuple(engine.take_result(name).token_ids) for name in names))


def _params(trace: Trace, record: int) -> SamplingParams:
    if trace.seed is None:
        raise ValueError("this recording holds no seeds; record with train/record.py to serve it live")
    return SamplingParams(
        temperature=float(round(float(trace.temperature[record]), 4)),
        seed=int(trace.seed[record]),
        max_tokens=int(trace.token_limit[record]),
    )


def interleaved(
    engine: ServingEngine, trace: Trace, schedule: Schedule, makers: Mapping[str, Maker], first: int
) -> dict[str, LiveRun]:
    """Every contender once, each fresh; number ``first`` begins, so that none always follows the same one."""
    return {name: serve_live(engine, trace, schedule, makers[name]()) for name in rotated(makers, first)}


def rotated(names: Iterable[str], first: int) -> list[str]:
    """``names`` from number ``first`` on (round and round), then those before it."""
    all_names = list(names)
    first %= len(all_names)
    return all_names[first:] + all_names[:first]


def live_makers(contest: Field, names: Sequence[str]) -> dict[str, Maker]:
    """Makers of these contenders. Raises `ValueError` for a name that has no controller."""
    known: dict[str, Maker] = {**contest.controllers(), PRICE_RULE: contest.price_rule}
    for name in names:
        if name not in known:
            raise ValueError(f"no live contender is called {name!r}; there are {', '.join(known)}")
    return {name: known[name] for name in names}


def replayed_engine(config: EvaluateConfig, backend: str) -> ServingEngine:
    """The engine that replay replays."""
    live = config.live
    if live.threads:
        torch.set_num_threads(live.threads)
    slots, longest = config.engine.max_num_seqs, Trace.load(Path(config.record) / "evaluation.npz")
    settings = EngineConfig(
        max_num_seqs=slots,
        max_num_speculative_tokens=longest.max_num_speculative_tokens,
        prefill_chunk=config.engine.prefill_chunk,
    )
    return build_engine(backend, live.target, live.drafter, settings)


def evaluate_live(config: EvaluateConfig, backend: str = "live") -> dict[str, Any]:
    """Off, the best constant by replay and the contenders of ``config.live``, on the mix at each concurrency.

    ``backend``: ``live`` (the embedded engine) or ``vllm``. Writes ``live.json`` and ``live.md`` (or ``vllm.json`` and
    ``vllm.md``); returns what the former holds.
    """
    evaluation = ReplayEvaluation(config)
    engine, contest, live = replayed_engine(config, backend), evaluation.contest, config.live
    results = {}
    for concurrency in live.concurrencies:
        scenario = closed_loop("mix", (), concurrency, config.scenarios)._replace(num_requests=live.requests)
        schedule = contest.stage.schedule(scenario, config.seed)
        best = _best_constant(contest, schedule)
        makers = live_makers(contest, list(dict.fromkeys((OFF, best, *live.contenders))))
        serve_live(engine, contest.stage.trace, schedule, ConstantController(1))  # Warms up.
        repeats = tqdm(range(live.repeats), desc=scenario.name)
        runs = [interleaved(engine, contest.stage.trace, schedule, makers, repeat) for repeat in repeats]
        results[scenario.name] = {"best_constant": best, "contenders": _compare(runs, best)}
    record = run_record(config, scenarios=results)
    write_json(Path(config.output) / f"{backend}.json", record)
    table = _markdown(results)
    write_text(Path(config.output) / f"{backend}.md", table)
    print(table)
    return json.loads(json.dumps(record))  # type: ignore[no-any-return]


def _best_constant(contest: Field, schedule: Schedule) -> str:
    """By replay of the very requests."""
    speeds = {
        constant_name(own): contest.stage.engine(schedule).serve(ConstantController(own)).tokens_per_second
        for own in range(contest.longest + 1)
    }
    return max(speeds, key=lambda name: speeds[name])


def _compare(runs: Sequence[Mapping[str, LiveRun]], best: str) -> dict[str, Any]:
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
