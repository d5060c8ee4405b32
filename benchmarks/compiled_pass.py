"""What torch.compile would win on one request's target pass, and what it costs to start.

    python benchmarks/compiled_pass.py    # three minutes; writes benchmarks/results/compiled_pass.json

A negative result kept reproducible. The engine's forward pass does not compile well as it is (complex rotation and
strided views of a cache that the graph changes make inductor copy the cache), so this is the same arithmetic written
for the compiler: one request, real rotation, a cache of its own, context length as a dynamic dimension.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from specpilot.benchmarks.measurement import ROOT, machine_state, speed_ratio, spread
from specpilot.engine import load_pair
from specpilot.engine.forward_batch import Segment, build_batch
from specpilot.engine.kv_cache import KVCache
from specpilot.engine.models.llama import LlamaRunner
from specpilot.engine.token_tree import TokenTree
from specpilot.train.run_record import run_record, write_json


@dataclass(frozen=True)
class Settings:
    """What is timed."""

    tokens: tuple[int, ...] = (1, 5, 9)
    """Tokens per pass: plain decoding, K = 4, K = 8."""
    context: int = 200
    repeats: int = 15
    passes: int = 10
    """Passes per repeat, each one token of context longer than the last."""


class CompilablePass:
    """A target pass over one request's own cache."""

    def __init__(self, runner: LlamaRunner, length: int) -> None:
        self.runner = runner
        self.rotation = torch.view_as_real(runner.rotation[:, 0])
        width = 2 * runner.num_kv_heads * runner.head_dim
        self.caches = [torch.zeros(length, width) for _ in runner.layers]

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, length: int) -> torch.Tensor:
        """Logits ``[n, vocab_size]`` of ``tokens`` ``[n]``.

        ``mask`` ``[n * query heads per key head, length]`` is additive; ``length`` counts context and new tokens.
        """
        runner, count = self.runner, tokens.shape[0]
        heads, groups, dim = runner.num_heads, runner.num_kv_heads, runner.head_dim
        hidden = F.embedding(tokens, runner.embedding)
        cos, sin = self.rotation[positions].unsqueeze(1).unbind(-1)
        for layer, cache in zip(runner.layers, self.caches, strict=True):
            qkv = torch.mm(runner._norm(hidden, layer.input_norm), layer.qkv).view(count, heads + 2 * groups, dim)
            real, imaginary = qkv[:, : heads + groups].unflatten(-1, (-1, 2)).unbind(-1)
            rotated = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), -1).flatten(-2)
            cache.index_copy_(0, positions, torch.cat((rotated[:, heads:], qkv[:, heads + groups :]), 1).flatten(1))
            key, value = cache[:length].unflatten(-1, (2, groups, dim)).permute(1, 2, 0, 3)
            query = rotated[:, :heads].unflatten(1, (groups, -1)).transpose(0, 1).flatten(1, 2)
            attended = F.scaled_dot_product_attention(query[None], key[None], value[None], mask, scale=runner.scale)
            attended = attended.view(groups, count, heads // groups * dim).transpose(0, 1).reshape(count, -1)
            hidden = torch.addmm(hidden, attended, layer.output)
            normed = runner._norm(hidden, layer.post_norm)
            gated = F.silu(torch.mm(normed, layer.gate)) * torch.mm(normed, layer.up)
            hidden = torch.addmm(hidden, gated, layer.down)
        return torch.mm(runner._norm(hidden, runner.final_norm), runner.head)


def inputs(runner: LlamaRunner, count: int, context: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Arguments of a `CompilablePass` of ``count`` tokens behind ``context``."""
    positions, length = torch.arange(context, context + count), context + count
    mask = torch.zeros(count, length).masked_fill_(torch.arange(length) > positions[:, None], -torch.inf)
    repeats = runner.num_heads // runner.num_kv_heads
    return torch.full((count,), 5), positions, mask.repeat_interleave(repeats, 0), length


def engine_pass(runner: LlamaRunner, cache: KVCache, count: int, context: int) -> torch.Tensor:
    """The same pass as the engine does it."""
    segment = Segment(0, context, TokenTree.chain([5] * count))
    return runner.forward(build_batch([segment], cache.slot_length, runner.device), cache)


@torch.no_grad()
def measure(settings: Settings) -> dict[str, Any]:
    """Start-up seconds, and paired seconds per pass of the engine's and of the compiled pass."""
    runner = LlamaRunner(load_pair(drafter=None).target)
    length = settings.context + settings.passes + max(settings.tokens)
    own, cache = CompilablePass(runner, length), runner.new_cache(1, length)
    for position in range(settings.context):  # both caches must hold the same context
        torch.testing.assert_close(own(*inputs(runner, 1, position)), engine_pass(runner, cache, 1, position))
    compiled: Callable[..., torch.Tensor] = torch.compile(own.__call__, dynamic=True)
    start = time.perf_counter()
    for count in settings.tokens:
        for context in (settings.context // 2, settings.context // 2 + 1):
            torch.testing.assert_close(
                compiled(*inputs(runner, count, context)), engine_pass(runner, cache, count, context)
            )
    results: dict[str, Any] = {"start_up_seconds": time.perf_counter() - start, "passes": {}}
    for count in tqdm(settings.tokens, desc="tokens per pass"):
        seconds: dict[str, list[float]] = {"engine": [], "compiled": []}
        for _ in range(settings.repeats):
            for name, samples in seconds.items():
                start = time.perf_counter()
                for context in range(settings.context, settings.context + settings.passes):
                    if name == "engine":
                        engine_pass(runner, cache, count, context)
                    else:
                        compiled(*inputs(runner, count, context))
                samples.append((time.perf_counter() - start) / settings.passes)
        results["passes"][str(count)] = {name: spread(samples) for name, samples in seconds.items()} | {
            "compiled_relative_to_engine": speed_ratio(seconds["compiled"], seconds["engine"])
        }
    return results


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/compiled_pass.json")
    arguments = parser.parse_args()
    settings = Settings()
    results = run_record(settings, machine=machine_state()) | measure(settings)
    write_json(arguments.output, results)
    print(f"start-up {results['start_up_seconds']:.0f} s")
    for count, entry in results["passes"].items():
        ratio = entry["compiled_relative_to_engine"]
        print(f"{count} tokens: {ratio['median']:.2f}x the engine's speed ({ratio['min']:.2f} … {ratio['max']:.2f})")


if __name__ == "__main__":
    main()
