"""``make demo``: serve the shipped pair with and without speculation and print both speeds."""

from __future__ import annotations

import argparse
import json
import statistics
import time

from transformers.utils import logging as transformers_logging

from specpilot.controllers import ConstantController
from specpilot.engine import SHIPPED_PAIR, Engine, EngineConfig, RequestOutput, SamplingParams, load_pair
from specpilot.engine.text import decode

MAX_TOKENS = 96


def timed(engine: Engine, length: int, prompts: list[list[int]]) -> tuple[float, list[RequestOutput]]:
    """Serve ``prompts`` at one speculation length; returns tokens per second of wall time, prefill included."""
    engine.controller = ConstantController(length)
    params = [SamplingParams(max_tokens=MAX_TOKENS, seed=seed) for seed in range(len(prompts))]
    start = time.perf_counter()
    outputs = engine.generate(prompts, params)
    return sum(len(output.token_ids) for output in outputs) / (time.perf_counter() - start), outputs


def main() -> None:
    """Interleave plain decoding and speculation over the same evaluation prompts, alone and in a batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=4, help="speculation length K")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    records = json.loads((SHIPPED_PAIR / "evaluation_prompts.json").read_text())["prompts"]
    pair = load_pair()
    print(f"pair: {SHIPPED_PAIR.name}; temperature 0; {MAX_TOKENS} tokens a request; K = {options.length}")
    print("batch   plain tok/s   speculating tok/s   ratio (median of pairs)   accepted length   same text")
    for batch in (1, 4, 16):
        prompts = [record["token_ids"] for record in records[:batch]]
        engine = Engine(pair, EngineConfig(max_num_seqs=batch))
        timed(engine, options.length, prompts)  # warm-up
        pairs = [(timed(engine, 0, prompts), timed(engine, options.length, prompts)) for _ in range(options.repeats)]
        plain = statistics.median(off[0] for off, _ in pairs)
        fast = statistics.median(on[0] for _, on in pairs)
        ratio = statistics.median(on[0] / off[0] for off, on in pairs)
        same = all(a.token_ids == b.token_ids for off, on in pairs for a, b in zip(off[1], on[1], strict=True))
        accepted = statistics.mean(output.stats.mean_accepted_length for output in pairs[-1][1][1])
        print(
            f"{batch:5d}   {plain:11.0f}   {fast:17.0f}   {ratio:23.2f}   {accepted:15.2f}   {'yes' if same else 'NO'}"
        )
    print("\nfirst prompt and what the target writes:\n")
    print(decode(pair.tokenizer, records[0]["token_ids"]) + "\x1b[1m" + pairs[-1][1][1][0].text + "\x1b[0m")


if __name__ == "__main__":
    main()
