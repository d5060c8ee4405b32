"""Record a pair on requests through vLLM: each request's text, and what the drafter proposes at every position of it.

Every step drafts as far as asked, and its drafts are dropped before verification: the step after it commits one token
and drafts again. A draft is compared with the text that followed. vLLM gives no confidences and no draft before the
first token, which comes out of the prefill (`Trace.tokens_from_prefill`).

Above temperature 0 vLLM's own text is another with every draft, but a recording has the right distribution. vLLM drafts
the most likely token (``draft_sample_method: greedy``, its default); verification keeps such a token with the
probability that the target gives it, and else draws another in proportion
(`arXiv 2211.17192 <https://arxiv.org/abs/2211.17192>`_).
To draw the target's token first, and to keep the draft where it is the same, is the same law. Requests with a seed have
their recorded text again, whatever is drafted (`engine.vllm.seeded_sampling`).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpilot.controllers import CostSurface
from specpilot.engine import EngineConfig
from specpilot.engine.vllm.engine import VllmEngine, VllmEngineConfig
from specpilot.envs.trace import Trace
from specpilot.train.recording import Progress, RecordingError, TextRequest
from specpilot.train.vllm_costs import StepGrid, measure_steps

SCHEDULER = "specpilot.engine.vllm.draft_recorder.RecordingScheduler"
Drafts = dict[str, dict[int, list[int]]]
"""By request, by the tokens that it had generated."""


class VllmRecorder:
    """Records and measures through one vLLM, started when first needed."""

    def __init__(self, target: str, drafter: str, engine: EngineConfig, dtype: str) -> None:
        """``engine``: of it, the slots, the prefill chunk and the longest drafts."""
        self._config = VllmEngineConfig(
            target=target,
            drafter=drafter,
            max_num_seqs=engine.max_num_seqs,
            prefill_chunk=engine.prefill_chunk,
            max_num_speculative_tokens=engine.max_num_speculative_tokens,
            scheduler=SCHEDULER,
            dtype=dtype,
        )

    @cached_property
    def engine(self) -> VllmEngine:
        """With the `RecordingScheduler`. Raises `VllmEngineError` where vLLM is not installed."""
        return VllmEngine(self._config)

    @cached_property
    def tokenizer(self) -> Any:
        """The target's."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._config.target)

    def record(self, requests: Sequence[TextRequest], progress: Progress | None = None) -> Trace:
        """See `record_vllm_requests`."""
        return record_vllm_requests(self.engine, requests, progress)

    def measure(self, seed: int, repeats: int) -> CostSurface:
        """See `measure_steps`; the whole grid is gone over ``repeats`` times."""
        return measure_steps(self.engine, seed, StepGrid(sweeps=repeats), progress=True)


def record_vllm_requests(
    engine: VllmEngine, requests: Sequence[TextRequest], progress: Progress | None = None
) -> Trace:
    """Record ``requests`` with drafts of ``engine.config.max_num_speculative_tokens`` tokens.

    ``engine``: idle, with the `RecordingScheduler`. A request that ends with its first token is left out: it has no
    round. Raises `RecordingError` for a temperature above 0 where drafts are not the most likely tokens: a text does
    not tell what would have been accepted then.
    """
    hottest = max((request.params.temperature for request in requests), default=0.0)
    if hottest > 0 and not engine.drafts_greedily:
        raise RecordingError(
            f"vLLM samples its drafts, so that requests of temperature {hottest:g} cannot be recorded; set "
            "draft_sample_method to greedy, or mix.temperatures to [0.0]"
        )
    longest = engine.config.max_num_speculative_tokens
    texts, drafts = _serve(engine, requests, longest, progress or (lambda stage, done, total: None))
    accepted = [_accepted(text, own, longest) for text, own in zip(texts, drafts, strict=True)]
    kept = [number for number, text in enumerate(texts) if len(text) > 1]
    if not kept:
        raise RecordingError("every text ends with its first token; record other prompts, or raise max_tokens")
    return _trace(longest, [requests[n] for n in kept], [texts[n] for n in kept], [accepted[n] for n in kept])


def _serve(
    engine: VllmEngine, requests: Sequence[TextRequest], longest: int, report: Progress
) -> tuple[list[tuple[int, ...]], list[dict[int, list[int]]]]:
    """Every request's text and drafts."""
    drafts: Drafts = {}
    scheduler = engine.scheduler
    scheduler.length, scheduler.verify = longest, False

    def note(name: str, generated: int, tokens: list[int]) -> None:
        drafts[name][generated] = tokens

    names = list[str]()
    for request in requests:
        names.append(engine.add_request(request.prompt, request.params))
        drafts[names[-1]] = {}
    scheduler.on_draft, done = note, 0
    try:
        while engine.has_work:
            done += sum(chunk.finish_reason is not None for chunk in engine.step())
            report("drafts", done, len(requests))
    finally:
        scheduler.on_draft = None
    return [engine.take_result(name).token_ids for name in names], [drafts[name] for name in names]


def _accepted(text: Sequence[int], drafts: dict[int, list[int]], longest: int) -> NDArray[np.uint8]:
    """``[T]`` accepted length of the draft from every position. Raises `RecordingError` where one is missing."""
    found = np.zeros(len(text), dtype=np.uint8)
    for position in range(1, len(text)):
        draft = drafts.get(position, [])
        if len(draft) != longest:
            raise RecordingError(
                f"vLLM drafted {len(draft)} of {longest} tokens at position {position} of a text; lower max_tokens "
                "so that prompts, texts and drafts fit the model's context"
            )
        pairs = zip(draft, text[position:], strict=False)
        agreed = next((depth for depth, (own, true) in enumerate(pairs) if own != true), longest)
        found[position] = min(agreed, len(text) - position)
    return found


def _trace(
    longest: int,
    requests: Sequence[TextRequest],
    texts: Sequence[tuple[int, ...]],
    accepted: Sequence[NDArray[np.uint8]],
) -> Trace:
    categories = tuple(sorted({request.category for request in requests}))
    return Trace(
        max_num_speculative_tokens=longest,
        prompt_tokens=np.asarray([len(request.prompt) for request in requests], dtype=np.int32),
        output_tokens=np.asarray([len(text) for text in texts], dtype=np.int32),
        accepted_length=np.concatenate(accepted),
        temperature=np.asarray([request.params.temperature for request in requests], dtype=np.float32),
        category=np.asarray([categories.index(request.category) for request in requests], dtype=np.uint8),
        categories=categories,
        seed=np.asarray([request.params.seed or 0 for request in requests], dtype=np.int64),
        prompt_token_ids=np.concatenate([np.asarray(request.prompt, dtype=np.int32) for request in requests]),
        max_tokens=np.asarray([request.params.max_tokens for request in requests], dtype=np.int32),
        tokens_from_prefill=1,
        facts={
            "engine": "vllm",
            "recorded": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )
