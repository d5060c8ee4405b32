"""What the engine is compared with: transformers' ``generate``, plain and assisted, with the same pair."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from ..engine import Pair
from .engine_config import AssistedSchedule
from .measurement import Arm, Prompt, Run


def generate_arm(pair: Pair, new_tokens: int) -> Arm:
    """Greedy ``generate`` with its default (dynamic) cache; several prompts are padded on the left."""

    def run(prompts: Sequence[Prompt]) -> Run:
        return _timed(pair, prompts, new_tokens)

    return run


def assisted_arm(pair: Pair, new_tokens: int, schedule: AssistedSchedule) -> Arm:
    """Greedy assisted generation, one prompt at a time (it knows no batches)."""
    drafter: Any = pair.drafter
    if drafter is None:
        raise ValueError("assisted generation needs a drafter")
    # One config per arm: the `heuristic` schedule keeps its length there from call to call, and must not find the
    # length that another arm has left.
    own: GenerationConfig = copy.deepcopy(drafter.generation_config)
    own.num_assistant_tokens = schedule.tokens
    own.num_assistant_tokens_schedule = schedule.schedule
    own.assistant_confidence_threshold = schedule.confidence
    own.eos_token_id = None

    def run(prompts: Sequence[Prompt]) -> Run:
        before = drafter.generation_config
        drafter.generation_config = own
        try:
            runs = [_timed(pair, [prompt], new_tokens, assistant_model=drafter) for prompt in prompts]
        finally:
            drafter.generation_config = before
        return Run(sum(run.seconds for run in runs), [output for run in runs for output in run.outputs])

    return run


def _timed(pair: Pair, prompts: Sequence[Prompt], new_tokens: int, **options: Any) -> Run:
    width = max(len(prompt.token_ids) for prompt in prompts)
    padding = [width - len(prompt.token_ids) for prompt in prompts]
    model: Any = pair.target
    start = time.perf_counter()
    rows = [[0] * pad + list(prompt.token_ids) for pad, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in padding]
    # No end-of-text token at all: `min_new_tokens` would forbid the token instead of ignoring it, which is another
    # text than the engine's `ignore_eos`, and would cost transformers a logits processor per token.
    result = model.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    outputs: list[list[int]] = result[:, width:].tolist()
    seconds = time.perf_counter() - start
    short = [len(output) for output in outputs if len(output) != new_tokens]
    assert not short, f"generate ended after {short} tokens where {new_tokens} were asked for"
    return Run(seconds, outputs)


@torch.inference_mode()
def first_difference_gap(pair: Pair, prompt: Prompt, output: Sequence[int], reference: Sequence[int]) -> float:
    """Target's logit difference (nats) between two texts' tokens where they first differ.

    Both are arg max choices of the same model, so a gap of about 1e-4 or less is a tie that rounding broke.
    """
    index = next(i for i, (a, b) in enumerate(zip(output, reference, strict=True)) if a != b)
    model: Any = pair.target
    logits = model(torch.tensor([[*prompt.token_ids, *reference[:index]]])).logits[0, -1].double()
    return float((logits[output[index]] - logits[reference[index]]).abs())
