"""What one drafter level and one target pass of a single token cost at batch 1."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from ..controllers import ConstantController
from ..engine import Engine, EngineConfig, Pair, SamplingParams
from .engine_config import StepSettings
from .measurement import Prompt, Prompts, spread


def measure_step(settings: StepSettings, pair: Pair, prompts: Prompts, tick: Callable[[], object]) -> dict[str, Any]:
    """(e) Seconds of both as the engine runs them, one request at a time, the same requests in turn.

    ``drafter_seconds``: drafting time over levels drafted, in rounds that draft ``settings.length`` levels, the first
    with what it takes to start; ``target_seconds``: verification time of rounds that draft nothing. Medians over
    rounds.
    """
    if pair.drafter is None:
        raise ValueError("the step measurement needs a drafter model")
    lengths = {"target": 0, "drafter": settings.length}
    engines = {
        name: Engine(
            pair, EngineConfig(max_num_seqs=1, max_num_speculative_tokens=settings.length), ConstantController(length)
        )
        for name, length in lengths.items()
    }
    medians: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(settings.repeats):
        chosen = prompts.take(repeat, settings.requests)
        for name, engine in engines.items():
            medians[name].append(_median_step(engine, chosen, settings.new_tokens, lengths[name]))
        tick()
    return {
        "target_seconds": spread(medians["target"]),
        "drafter_seconds": spread(medians["drafter"]),
        "drafter_relative_to_target": spread(
            [drafter / target for drafter, target in zip(medians["drafter"], medians["target"], strict=True)]
        ),
    }


def _median_step(engine: Engine, prompts: list[Prompt], new_tokens: int, length: int) -> float:
    """Median seconds of a drafter level (``length`` > 0) or of a target pass over the rounds of some requests."""
    before = engine.stats.num_rounds
    for prompt in prompts:
        engine.generate([prompt.token_ids], SamplingParams(max_tokens=new_tokens, ignore_eos=True))
    rounds = [record for record in engine.stats.rounds if record.index >= before]
    if length == 0:
        return statistics.median(record.verify_seconds for record in rounds)
    return statistics.median(record.draft_seconds / length for record in rounds if record.num_drafted == (length,))
