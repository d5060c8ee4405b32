"""What one drafter level and one target pass of a single token cost at batch 1."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ..engine import Pair, TokenTree
from ..engine.forward_batch import Segment, build_batch, build_step
from ..engine.kv_cache import KVCache
from ..engine.models import ModelRunner, build_runner
from .engine_config import StepSettings
from .measurement import Prompts, spread


def measure_step(settings: StepSettings, pair: Pair, prompts: Prompts, tick: Callable[[], object]) -> dict[str, Any]:
    """(e) Median seconds of both, pass by pass in turn, timed as a round does: build, forward, arg max, to the host."""
    if pair.drafter is None:
        raise ValueError("the step measurement needs a drafter model")
    runners = {"target": build_runner(pair.target), "drafter": build_runner(pair.drafter)}
    caches = {name: runner.new_cache(1, settings.context + 1) for name, runner in runners.items()}
    text = [token for prompt in prompts.take(0, 256) for token in prompt.token_ids][: settings.context]
    if len(text) < settings.context:
        raise ValueError(f"step.context is {settings.context} tokens, the prompts hold only {len(text)}")
    for name, runner in runners.items():
        batch = build_batch([Segment(0, 0, TokenTree.chain(text))], settings.context + 1, runner.device)
        runner.forward(batch, caches[name], rows=torch.empty(0, dtype=torch.long))
    medians: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(settings.repeats):
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(settings.passes):
            for name, runner in runners.items():
                seconds[name].append(
                    _one_token(runner, caches[name], text[-1], settings.context, pair.vocab_size, name == "drafter")
                )
        for name, values in seconds.items():
            medians[name].append(statistics.median(values))
        tick()
    return {
        "target_seconds": spread(medians["target"]),
        "drafter_seconds": spread(medians["drafter"]),
        "drafter_relative_to_target": spread(
            [drafter / target for drafter, target in zip(medians["drafter"], medians["target"], strict=True)]
        ),
    }


def _one_token(runner: ModelRunner, cache: KVCache, token: int, context: int, vocab_size: int, drafts: bool) -> float:
    """Seconds of one pass, assembled the way the engine assembles it for this model."""
    start = time.perf_counter()
    if drafts:
        batch = build_step([token], [0], [context], cache.slot_length, runner.device)
    else:
        batch = build_batch([Segment(0, context, TokenTree.chain([token]))], cache.slot_length, runner.device)
    runner.forward(batch, cache)[:, :vocab_size].argmax(-1).tolist()
    return time.perf_counter() - start
