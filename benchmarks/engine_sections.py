"""The measurements of the engine benchmark, one function per section of the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..controllers import ConstantController
from ..engine import Engine, EngineConfig, Pair, SamplingParams
from .engine_config import EngineBenchmark
from .engine_steps import measure_step
from .engine_table import measure_table
from .measurement import (
    ROOT,
    Arm,
    Prompt,
    Prompts,
    Run,
    differing,
    interleave,
    speed_ratio,
    spread,
)
from .peak_memory import measure_in_subprocess
from .transformers_baselines import assisted_arm, first_difference_gap, generate_arm


@dataclass(frozen=True)
class Context:
    """What every section needs."""

    config: EngineBenchmark
    directories: dict[str, str]
    """Arguments of ``load_pair``."""
    pair: Pair
    prompts: Prompts
    tick: Callable[[], object]
    """Called after every repeat: the progress bar."""

    def engine(self, max_num_seqs: int, with_drafter: bool = True) -> Engine:
        """Build an engine on the pair; everything but its size is the default."""
        pair = self.pair if with_drafter else Pair(self.pair.target, None, self.pair.tokenizer, self.pair.vocab_size)
        length = self.config.max_length
        return Engine(pair, EngineConfig(max_num_seqs=max_num_seqs, max_num_speculative_tokens=length))


def engine_arm(engine: Engine, length: int, new_tokens: int, temperature: float = 0.0) -> Arm:
    """Serve a group as one batch at K = ``length``."""

    def run(prompts: Sequence[Prompt]) -> Run:
        engine.controller = ConstantController(length)
        params = [
            SamplingParams(temperature=temperature, seed=prompt.index, max_tokens=new_tokens, ignore_eos=True)
            for prompt in prompts
        ]
        start = time.perf_counter()
        results = engine.generate([prompt.token_ids for prompt in prompts], params)
        seconds = time.perf_counter() - start
        assert all(result.error is None for result in results), [result.error for result in results if result.error]
        return Run(seconds, [list(result.token_ids) for result in results])

    return run


class Samples:
    """Per-repeat seconds and outputs of several arms."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.outputs: dict[str, list[list[int]]] = {}
        self.prompts: list[Prompt] = []

    def add(self, runs: dict[str, Run], groups: Sequence[Sequence[Prompt]]) -> None:
        """Add one repeat."""
        self.prompts += [prompt for group in groups for prompt in group]
        for name, run in runs.items():
            self.seconds.setdefault(name, []).append(run.seconds)
            self.outputs.setdefault(name, []).extend(run.outputs)

    def fastest(self, names: Sequence[str], base: str) -> str:
        """Name of the arm with the best median ratio to ``base``."""
        return max(names, key=lambda name: float(speed_ratio(self.seconds[name], self.seconds[base])["median"]))

    def throughput(self, name: str) -> dict[str, Any]:
        """Tokens per second of wall time, over repeats."""
        tokens = sum(map(len, self.outputs[name])) / len(self.seconds[name])
        return spread([tokens / seconds for seconds in self.seconds[name]])

    def arms(self, base: str) -> dict[str, Any]:
        """Raw seconds, throughput and ratio to ``base`` of every arm."""
        return {
            name: {
                "seconds": seconds,
                "tokens_per_second": self.throughput(name),
                f"speed_relative_to_{base}": speed_ratio(seconds, self.seconds[base]),
            }
            for name, seconds in self.seconds.items()
        }

    def agreement(self, pair: Pair, names: Sequence[str], reference: str) -> dict[str, Any]:
        """How many requests of each arm got other tokens than ``reference``, and whether those were ties."""
        found = {}
        for name in names:
            outputs, wanted = self.outputs[name], self.outputs[reference]
            where = differing(outputs, wanted)
            gaps = [first_difference_gap(pair, self.prompts[i], outputs[i], wanted[i]) for i in where]
            found[name] = {"requests": len(outputs), "mismatching": len(where), "logit_gaps": gaps}
        return {"reference": reference, "arms": found}


def measure_plain(context: Context) -> dict[str, Any]:
    """(a, b, f) Plain decoding against ``generate``, with a drafter loaded and without; prefill included."""
    settings, result = context.config.plain, {}
    for batch in settings.batches:
        arms = {
            "engine": engine_arm(context.engine(batch), 0, settings.new_tokens),
            "engine without drafter": engine_arm(context.engine(batch, False), 0, settings.new_tokens),
            "generate": generate_arm(context.pair, settings.new_tokens),
        }
        interleave(arms, [context.prompts.take(0, batch)])  # warm-up: first calls allocate and choose kernels
        samples = Samples()
        for repeat in range(settings.repeats):
            groups = context.prompts.groups(repeat, settings.requests, batch)
            samples.add(interleave(arms, groups, repeat), groups)
            context.tick()
        result[str(batch)] = {
            "arms": samples.arms("generate"),
            "k0_with_drafter_relative_to_without": speed_ratio(
                samples.seconds["engine"], samples.seconds["engine without drafter"]
            ),
            "agreement": samples.agreement(context.pair, ["engine", "engine without drafter"], "generate"),
        }
    return result


def measure_speculation(context: Context) -> dict[str, Any]:
    """(c) Best constant K at batch 1 against plain decoding and, at temperature 0, assisted generation."""
    settings = context.config.speculation
    engine = context.engine(1)
    lookup = Engine(context.pair, EngineConfig(max_num_seqs=1, drafter="ngram"))
    result = {}
    for temperature in settings.temperatures:
        greedy = temperature == 0
        arms = {f"K={k}": engine_arm(engine, k, settings.new_tokens, temperature) for k in (0, *settings.lengths)}
        lengths = [name for name in arms if name != "K=0"]
        lookups = {f"n-gram K={k}": engine_arm(lookup, k, settings.new_tokens, temperature) for k in settings.lookups}
        schedules = {s.name: assisted_arm(context.pair, settings.new_tokens, s) for s in settings.schedules if greedy}
        screen = _repeat(context, arms | lookups | schedules, range(settings.screen_repeats))
        best = screen.fastest(lengths, "K=0")
        best_lookup = screen.fastest(list(lookups), "K=0")
        chosen = {"plain": arms["K=0"], "best K": arms[best], best_lookup: lookups[best_lookup]}
        if schedules:
            best_schedule = screen.fastest(list(schedules), "K=0")
            chosen["best assisted"] = schedules[best_schedule]
            chosen["generate"] = generate_arm(context.pair, settings.new_tokens)
        # Compared on other prompts: the best of many noisy medians, measured again, is not flattered by its noise.
        later = range(settings.screen_repeats, settings.screen_repeats + settings.repeats)
        samples = _repeat(context, chosen, later)
        reference = "generate" if schedules else "plain"
        entry = {
            "best_length": int(best.removeprefix("K=")),
            "screen": screen.arms("K=0"),
            "arms": samples.arms("plain"),
            "best_relative_to_plain": speed_ratio(samples.seconds["best K"], samples.seconds["plain"]),
            "agreement": samples.agreement(context.pair, [name for name in chosen if name != reference], reference)
            if greedy
            else _same_text(samples, ["best K", best_lookup], "plain"),
            "screen_agreement": _same_text(screen, [*lengths, *lookups], "K=0"),
        }
        if schedules:
            entry["best_schedule"] = best_schedule
            entry["best_relative_to_assisted"] = speed_ratio(
                samples.seconds["best K"], samples.seconds["best assisted"]
            )
        result[f"{temperature:g}"] = entry
    return result


def _repeat(context: Context, arms: dict[str, Arm], repeats: range) -> Samples:
    settings, samples = context.config.speculation, Samples()
    interleave(arms, [context.prompts.take(0, 1)])  # warm-up
    for repeat in repeats:
        groups = context.prompts.groups(repeat, settings.requests, 1)
        samples.add(interleave(arms, groups, repeat), groups)
        context.tick()
    return samples


def _same_text(samples: Samples, names: Sequence[str], reference: str) -> dict[str, Any]:
    """As `Samples.agreement` without the gaps: at T > 0 the noise of the request belongs to the logits."""
    wanted = samples.outputs[reference]
    counts = {name: len(differing(samples.outputs[name], wanted)) for name in names}
    return {
        "reference": reference,
        "arms": {name: {"requests": len(wanted), "mismatching": count} for name, count in counts.items()},
    }


def measure_memory(context: Context) -> dict[str, Any]:
    """(g) Peak memory of a process of its own."""
    config = context.config
    path = ROOT / config.prompts
    memory = config.memory
    result = measure_in_subprocess(
        context.directories, path, config.seed, memory.batch, memory.length, memory.new_tokens
    )
    context.tick()
    return result


def _table(context: Context) -> dict[str, Any]:
    return measure_table(context.config, context.pair, context.prompts, context.tick)


def _step(context: Context) -> dict[str, Any]:
    return measure_step(context.config.step, context.pair, context.prompts, context.tick)


SECTIONS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "memory": measure_memory,
    "step": _step,
    "plain": measure_plain,
    "speculation": measure_speculation,
    "table": _table,
}


def section_ticks(config: EngineBenchmark) -> dict[str, int]:
    """Repeats in each section: the length of the progress bar."""
    speculation, table = config.speculation, config.table
    return {
        "memory": 1,
        "step": config.step.repeats,
        "plain": len(config.plain.batches) * config.plain.repeats,
        "speculation": len(speculation.temperatures) * (speculation.screen_repeats + speculation.repeats),
        "table": len(table.temperatures) * len(table.batches) * table.repeats,
    }
