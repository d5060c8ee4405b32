"""Requests with a seed on an in-process vLLM: one seed, one text, whatever is drafted.

vLLM's own text of a request that samples is another with every draft, even with a seed, so that two ways to speculate
cannot be compared on it. Here the token at a position is the largest of the target's logits plus Gumbel noise that is a
function of seed and position alone, as in the embedded engine's ``coupled`` verification (drafter-invariant speculative
decoding, `arXiv 2408.07978 <https://arxiv.org/abs/2408.07978>`_); a drafted token is kept where it is that token. Of
greedy drafts as many are accepted as by vLLM's rejection sampling, in law (`arXiv 2211.17192
<https://arxiv.org/abs/2211.17192>`_): either keeps one with the probability that the target gives it.

vLLM's own sampling still runs, so that the time it takes is in every step; its tokens are overwritten. What the
overwriting takes is counted, so that a comparison can leave it out.
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..noise import TARGET_STREAM, gumbel_noise, noise_keys
from ..sampler import MIN_TEMPERATURE, RowSampling, temper
from ..sampling_params import SamplingParams

ID_SUFFIX = 9
"""Characters that vLLM appends to a request's id (``v1/engine/input_processor.py``, `assign_request_id`)."""


@functools.lru_cache(maxsize=256)
def _noise(seed: int, position: int, count: int, vocab_size: int, device: torch.device) -> Tensor:
    """``[count, vocab_size]`` of the positions from ``position`` on. Cached: contenders serve the same requests."""
    keys = noise_keys(np.asarray(seed), np.arange(position, position + count), TARGET_STREAM)
    return gumbel_noise(keys, vocab_size, device)


class _Seeded(NamedTuple):
    """A request with the noise ``[max_tokens and drafts, vocab_size]`` of all that may follow its prompt."""

    params: SamplingParams
    prompt_tokens: int
    noise: Tensor

    def rows(self, known_tokens: int, count: int) -> Tensor:
        """``[count, vocab_size]`` noise of the tokens that follow ``known_tokens``."""
        start = known_tokens - self.prompt_tokens
        return self.noise[start : start + count]


class SeededSampling:
    """Stands in for `_sample` of vLLM's model runner (``v1/worker/gpu_model_runner.py``)."""

    def __init__(self, model_runner: Any, longest: int) -> None:
        """``longest``: tokens that a step drafts at most."""
        self._runner, self._longest = model_runner, longest
        self._requests: dict[str, _Seeded] = {}
        self.seconds = 0.0
        """Of all steps so far, beside vLLM's own sampling."""
        self._stock = model_runner._sample
        model_runner._sample = self._sample

    def add(self, name: str, params: SamplingParams, prompt_tokens: int) -> None:
        """A request is about to be added; greedy ones and those without a seed are vLLM's own."""
        if params.seed is None or params.temperature < MIN_TEMPERATURE:
            return
        count = params.max_tokens + self._longest + 1  # Drafts may reach past the end.
        vocabulary, device = self._runner.input_batch.vocab_size, self._runner.device
        noise = _noise(params.seed, prompt_tokens, count, vocabulary, device)
        self._requests[name] = _Seeded(params, prompt_tokens, noise)

    def drop(self, name: str) -> None:
        """A request has ended."""
        self._requests.pop(name, None)

    def _sample(self, logits: Tensor, metadata: Any) -> Any:
        """``logits``: a row for each request, or with ``metadata`` one for each drafted token and one more."""
        places = [
            (place, name, own)
            for place, name in enumerate(self._runner.input_batch.req_ids)
            if (own := self._requests.get(name[:-ID_SUFFIX])) is not None
        ]
        if not places:
            return self._stock(logits, metadata)
        start = time.perf_counter()
        drafted = [0] * len(logits) if metadata is None else metadata.num_draft_tokens
        first = np.cumsum([0, *drafted])  # Of each request's drafts.
        drawn = self._draw(logits, places, first)  # Before vLLM changes logits in place.
        begun = time.perf_counter()
        output = self._stock(logits, metadata)
        ended = time.perf_counter()
        drafts: list[int] = [] if metadata is None else metadata.draft_token_ids.tolist()
        width = output.sampled_token_ids.shape[1]
        for (place, _, _), tokens in zip(places, drawn, strict=True):
            kept = _kept(tokens, drafts[first[place] : first[place + 1]])
            row = torch.tensor(kept + [-1] * (width - len(kept)), dtype=output.sampled_token_ids.dtype)
            output.sampled_token_ids[place] = row
        self.seconds += begun - start + time.perf_counter() - ended
        return output

    def _draw(
        self, logits: Tensor, places: list[tuple[int, str, _Seeded]], first: NDArray[np.int64]
    ) -> list[list[int]]:
        """Each request's tokens as far as it drafted and one more, provided that the drafts before are right."""
        counts = [int(first[place + 1] - first[place]) + 1 for place, _, _ in places]
        # Every request before has a row more than drafts.
        starts = [first[place] + place for place, _, _ in places]
        rows = np.concatenate([np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])
        owners = np.repeat(np.arange(len(places)), counts)
        sampling = RowSampling.of([own.params for _, _, own in places], [0] * len(places)).take(owners)
        known = [self._runner.requests[name].num_tokens for _, name, _ in places]
        noise = torch.cat([own.rows(n, c) for (_, _, own), n, c in zip(places, known, counts, strict=True)])
        tempered = temper(logits[torch.from_numpy(rows).to(logits.device)].float(), sampling)
        tokens: list[int] = (tempered + noise).argmax(-1).tolist()
        ends = np.cumsum(counts)
        return [tokens[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _kept(tokens: list[int], draft: list[int]) -> list[int]:
    """Of ``tokens`` those up to the first that ``draft`` had not foreseen."""
    agreed = next((depth for depth, own in enumerate(draft) if own != tokens[depth]), len(draft))
    return tokens[: agreed + 1]
