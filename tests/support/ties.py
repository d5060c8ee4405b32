"""Proof that two texts differ only because two tokens' scores tie in floating point.

Float arithmetic depends on the shape of a batch, so at a position where the two best perturbed logits differ by less
than rounding, plain and speculative decoding may choose differently, and both are right. A difference counts as a
tie only if that is shown, by transformers' own forward pass on the text before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specpilot.engine import Pair, SamplingParams
from specpilot.engine.noise import TARGET_STREAM
from specpilot.engine.sampler import RowSampling, temper

TOLERANCE = 1e-4


@torch.inference_mode()
def target_logits(pair: Pair, token_ids: Sequence[int]) -> torch.Tensor:
    """Logits ``[vocab_size]`` of the next token by transformers' own forward pass."""
    logits: torch.Tensor = pair.target(torch.tensor([list(token_ids)], device=pair.target.device)).logits
    return logits[0, -1, : pair.vocab_size].float().cpu()


def is_tie(pair: Pair, prefix: Sequence[int], first: int, second: int, params: SamplingParams, seed: int) -> bool:
    """True if ``first`` and ``second`` score the same after ``prefix`` but for rounding, or lie on a filter's edge."""
    logits = target_logits(pair, prefix)[None]
    sampling = RowSampling.of([params], [seed])
    positions = RowSampling.of([params], [len(prefix)]).seed
    scores = temper(logits, sampling)
    noise = sampling.noise(positions, pair.vocab_size, logits.device, TARGET_STREAM)
    scores = (scores if noise is None else scores + noise)[0]
    # The better of the two must be the best of all: an arbitrary pair of equal scores proves nothing.
    best = float(scores[torch.isfinite(scores)].max())
    pair_scores = [float(scores[token]) for token in (first, second)]
    if all(best - score <= TOLERANCE for score in pair_scores):
        return True
    return params.temperature > 0 and any(_on_cut(logits[0], token, params) for token in (first, second))


def _on_cut(logits: torch.Tensor, token: int, params: SamplingParams) -> bool:
    """True if top-k or top-p keeps or cuts ``token`` by less than rounding."""
    scaled = logits.double() / params.temperature
    if 0 < params.top_k < len(scaled):
        edge = scaled.sort(descending=True).values[params.top_k - 1 : params.top_k + 1]
        if abs(float(edge[0] - edge[1])) <= TOLERANCE and abs(float(scaled[token] - edge[0])) <= TOLERANCE:
            return True
        scaled = scaled.masked_fill(scaled < edge[0], -torch.inf)
    if params.top_p < 1:
        probability = scaled.softmax(-1)
        before = float(probability[probability > probability[token]].sum())
        return abs(before - params.top_p) <= TOLERANCE
    return False


def assert_same_text(
    pair: Pair,
    prompt: Sequence[int],
    expected: Sequence[int],
    actual: Sequence[int],
    params: SamplingParams,
    seed: int,
    prefix_suffices: bool = False,
) -> int:
    """Fail unless ``actual`` is ``expected`` (or a prefix, where that suffices) or parts from it in a tie: gives 1."""
    common = next((i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b), None)
    if common is None:
        assert len(actual) == len(expected) or (prefix_suffices and len(actual) < len(expected)), (
            f"one text ends at {len(actual)} tokens, the other at {len(expected)}"
        )
        return 0
    prefix = [*prompt, *expected[:common]]
    tie = is_tie(pair, prefix, expected[common], actual[common], params, seed)
    assert tie, (
        f"token {common} is {actual[common]}, plain decoding has {expected[common]}, and that is no tie: {params}"
    )
    return 1
