"""What being off costs in vLLM: always K = 0, with the lazy drafter and with the stock one, against no speculation.

    .venv-vllm/bin/python -m specpilot.benchmarks.vllm_off

The engines live in one process and take turns, so that a change of the machine's speed meets all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specpilot.engine import SHIPPED_PAIR

WAYS = ("none", "lazy", "stock")
"""No speculation; K = 0 with the drafter not run; K = 0 as vLLM has it."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}
"""One process with one thread, unless the caller's environment says otherwise."""


@dataclass(frozen=True)
class OffCost:
    """Medians over the repetitions at one number of requests."""

    requests: int
    tokens_per_second: dict[str, float]
    """By way."""
    share_of_none: dict[str, float]
    """Median of each repetition's ratio to the run without speculation beside it."""
    share_of_none_by_cpu_time: dict[str, float]
    """The same in tokens per CPU second: what it is where others use the machine too."""


def build(way: str, directory: Path, eager: bool) -> Any:
    """A vLLM engine (``vllm.LLM``) with the pair in ``directory`` that goes one of `WAYS`."""
    from vllm import LLM

    options: dict[str, Any] = {}
    if way != "none":
        options["speculative_config"] = {
            "method": "draft_model",
            "model": str(directory / "drafter"),
            "num_speculative_tokens": 4,
            "num_speculative_tokens_per_batch_size": [[1, 4096, 0]],
        }
    return LLM(
        str(directory / "target"),
        skip_tokenizer_init=True,
        max_model_len=1024,
        dtype="float32",
        max_num_seqs=16,
        enforce_eager=eager,
        enable_prefix_caching=False,
        additional_config={"specpilot": {"lazy_catch_up": way == "lazy"}},
        **options,
    )


def throughput(engine: Any, prompts: Sequence[Sequence[int]], num_tokens: int) -> tuple[float, float]:
    """Tokens per second, and per second of this process's CPU time, of ``prompts`` served together, greedily."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    start, used = time.perf_counter(), time.process_time()
    engine.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], parameters, use_tqdm=False)
    count = len(prompts) * num_tokens
    return count / (time.perf_counter() - start), count / (time.process_time() - used)


def measure(
    engines: dict[str, Any], prompts: list[list[int]], loads: Sequence[int], repetitions: int, num_tokens: int
) -> list[OffCost]:
    """`OffCost` of ``engines`` (by way, with "none" among them) at each number of requests in ``loads``."""
    costs = []
    for load in loads:
        rates: dict[str, list[tuple[float, float]]] = {way: [] for way in engines}
        for repetition in range(repetitions + 1):
            for way, engine in engines.items():
                rate = throughput(engine, prompts[:load], num_tokens)
                if repetition:  # the first is warm-up
                    rates[way].append(rate)
        seconds = {way: statistics.median(rate for rate, _ in values) for way, values in rates.items()}
        costs.append(OffCost(load, seconds, _shares(rates, 0), _shares(rates, 1)))
    return costs


def _shares(rates: dict[str, list[tuple[float, float]]], kind: int) -> dict[str, float]:
    """Median by way of the ratio to "none" of the same repetition; ``kind``: which of `throughput`'s two."""
    base = [rate[kind] for rate in rates["none"]]
    return {
        way: statistics.median(rate[kind] / other for rate, other in zip(values, base, strict=True))
        for way, values in rates.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON line per load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", type=Path, default=SHIPPED_PAIR)
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--eager", action="store_true", help="without torch.compile: starts faster, runs slower")
    given = parser.parse_args(arguments)

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from specpilot.engine.vllm import lazy_hooks

    if not lazy_hooks.install():
        sys.exit("this vLLM cannot be lazy; see the warning above")
    prompts = [
        prompt["token_ids"] for prompt in json.loads((given.pair / "evaluation_prompts.json").read_text())["prompts"]
    ]
    ways = ["none", *(way for way in given.ways if way != "none")]
    engines = {way: build(way, given.pair, given.eager) for way in ways}
    for cost in measure(engines, prompts, given.loads, given.repetitions, given.tokens):
        print(json.dumps(asdict(cost)), flush=True)


if __name__ == "__main__":
    main()
