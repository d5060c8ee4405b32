"""Record a pair on requests: their text, and what the drafter would have proposed at every position of it.

In ``coupled`` verification a request's text is a function of its seed, so it is served once, by plain decoding, and the
drafter alone then walks along it: at every position it drafts under the noise a live round would use, and one token of
the text is committed.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from specpilot.controllers import LEVEL_FEATURES, ConstantController, DraftLevel
from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams
from specpilot.engine.drafter import Draft, DraftContext
from specpilot.engine.model_drafter import ModelDrafter
from specpilot.engine.noise import TARGET_STREAM
from specpilot.engine.request import Phase, Request
from specpilot.engine.sampler import RowSampling
from specpilot.envs.trace import Trace

LARGEST = float(np.finfo(np.float32).max)
Progress = Callable[[str, int, int], None]
"""Called with a stage ("text" or "drafts"), requests done in it, requests in all."""


class RecordingError(ValueError):
    """A pair or a request cannot be recorded; the message is one line with the fix."""


@dataclass(frozen=True)
class TextRequest:
    """One request to record."""

    prompt: tuple[int, ...]
    params: SamplingParams
    """With a seed: it makes the text."""
    category: str = "unknown"


@dataclass(frozen=True)
class DraftedText:
    """What the drafter proposed along one text of ``T`` tokens, ``K`` tokens from each position."""

    accepted_length: NDArray[np.uint8]
    """``[T]``."""
    confidence: NDArray[np.float32]
    """``[T, K, 4]``, in the order of `LEVEL_FEATURES`."""


def record_requests(
    pair: Pair, engine_config: EngineConfig, requests: Sequence[TextRequest], progress: Progress | None = None
) -> Trace:
    """Record ``requests`` with drafts of ``engine_config.max_num_speculative_tokens`` tokens.

    Raises `RecordingError` where the configuration is not ``coupled`` with one candidate, the pair has no drafter
    model, or a request has no seed or leaves its drafts no room in ``max_model_len``; `RequestError` where the engine
    refuses it.
    """
    _check_config(pair, engine_config)
    engine = Engine(pair, engine_config, ConstantController(0))
    for number, request in enumerate(requests):
        _check_request(number, request, engine)
    report = progress or (lambda stage, done, total: None)
    texts = _serve(engine, requests, report)
    drafted = _draft_along(engine, requests, texts, report)
    return _trace(engine_config.max_num_speculative_tokens, requests, texts, drafted)


def _check_config(pair: Pair, config: EngineConfig) -> None:
    if config.verification != "coupled" or config.greedy_drafts or config.num_candidates != 1:
        raise RecordingError(
            "a recording needs verification 'coupled', greedy_drafts False and num_candidates 1: "
            "otherwise the text or the drafts depend on the rounds"
        )
    if pair.drafter is None or config.drafter != "model":
        raise RecordingError("a recording needs a pair with a drafter model and drafter 'model'")
    if config.max_num_speculative_tokens < 1:
        raise RecordingError("max_num_speculative_tokens must be at least 1 to record drafts, got 0")


def _check_request(number: int, request: TextRequest, engine: Engine) -> None:
    if request.params.seed is None:
        raise RecordingError(f"request {number} has no seed; give one, it makes the text")
    needed = len(request.prompt) + request.params.max_tokens + engine.config.max_num_speculative_tokens
    if needed > engine.max_model_len:
        raise RecordingError(
            f"request {number} needs {needed} tokens with its last draft, max_model_len is {engine.max_model_len}; "
            "lower max_tokens"
        )


def _serve(engine: Engine, requests: Sequence[TextRequest], report: Progress) -> list[tuple[int, ...]]:
    """The text of every request, by plain decoding."""
    names = [engine.add_request(request.prompt, request.params) for request in requests]
    while engine.has_work:
        engine.step()
        report("text", engine.stats.num_finished, len(requests))
    return [engine.take_result(name).token_ids for name in names]


def _draft_along(
    engine: Engine, requests: Sequence[TextRequest], texts: Sequence[tuple[int, ...]], report: Progress
) -> list[DraftedText]:
    """Draft from every position of every text, ``max_num_seqs`` texts side by side.

    Texts of like length run together, so that few slots stay empty, the longest first: what goes on fills the slots
    without a gap, as in the engine.
    """
    order = sorted(range(len(requests)), key=lambda index: -len(texts[index]))
    found: list[DraftedText | None] = [None] * len(requests)
    size, done = engine.cache.num_slots, 0
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        walker = DraftWalker(engine, [requests[index] for index in chosen], [texts[index] for index in chosen])
        for position in walker.walk():
            ended = sum(len(texts[index]) <= position for index in chosen)
            report("drafts", done + ended, len(requests))
        for index, drafted in zip(chosen, walker.drafted(), strict=True):
            found[index] = drafted
        done += len(chosen)
    return [drafted for drafted in found if drafted is not None]


class DraftWalker:
    """Walks the engine's drafter along texts, one token a step, and collects the draft from every position.

    It uses the slots of an idle engine; the target does not run.
    """

    def __init__(self, engine: Engine, requests: Sequence[TextRequest], texts: Sequence[tuple[int, ...]]) -> None:
        assert isinstance(engine.drafter, ModelDrafter)
        self.drafter = engine.drafter
        self.longest = engine.config.max_num_speculative_tokens
        self.vocab_size = engine.pair.vocab_size
        self.device = engine.runner.device
        self.texts = texts
        self.requests = [_running(request, slot) for slot, request in enumerate(requests)]
        self.accepted = [np.zeros(len(text), dtype=np.uint8) for text in texts]
        shape = (self.longest, len(LEVEL_FEATURES))
        self.confidence = [np.zeros((len(text), *shape), dtype=np.float32) for text in texts]

    def walk(self) -> Iterator[int]:
        """Walk to the end of every text; yields how many positions are done."""
        for request in self.requests:
            self.drafter.start(request)
        for position in range(max(map(len, self.texts))):
            self._step([index for index, text in enumerate(self.texts) if position < len(text)], position)
            yield position + 1
        for request in self.requests:
            self.drafter.forget(request)

    def drafted(self) -> list[DraftedText]:
        """What was found, per text, once `walk` is at its end."""
        return [DraftedText(*found) for found in zip(self.accepted, self.confidence, strict=True)]

    @torch.inference_mode()
    def _step(self, going: Sequence[int], position: int) -> None:
        requests = [self.requests[index] for index in going]
        self.drafter.catch_up(requests)
        levels: list[DraftLevel] = []
        lengths = np.full(len(requests), self.longest, dtype=np.int64)
        for index, draft in zip(
            going, self.drafter.propose(requests, lengths, self._context(requests, levels)), strict=True
        ):
            self.accepted[index][position] = _agreement(draft, self.texts[index][position:])
            self.drafter.commit(self.requests[index], draft, ())  # The one token committed is the text's, not a draft.
            self.requests[index].token_ids.append(self.texts[index][position])
        for level in levels:
            features = np.stack([getattr(level, name) for name in LEVEL_FEATURES], axis=-1)
            features = features.clip(max=LARGEST)  # A filter that leaves one token makes the margin infinite.
            for row, feature in zip(level.requests.tolist(), features, strict=True):
                self.confidence[going[row]][position, level.depth - 1] = feature

    def _context(self, requests: Sequence[Request], levels: list[DraftLevel]) -> DraftContext:
        """What a live round would give the drafter, with every level noted in ``levels``."""
        sampling = RowSampling.of([request.params for request in requests], [request.seed for request in requests])
        ahead = np.asarray([len(request.token_ids) for request in requests])[:, None] + np.arange(self.longest)
        noise = sampling.noise(ahead, self.vocab_size, self.device, TARGET_STREAM)  # [B, K, vocab_size]

        def shared_noise(rows: NDArray[np.int64], depth: int) -> torch.Tensor | None:
            return None if noise is None else noise[torch.from_numpy(rows), depth - 1]

        def new_lengths(level: DraftLevel) -> NDArray[np.int64]:
            levels.append(level)
            return np.full(len(level.requests), self.longest)

        return DraftContext(sampling, 0, shared_noise, new_lengths, self.longest, asks_last_level=True)


def _running(request: TextRequest, slot: int) -> Request:
    """An engine-side request that decodes in ``slot``."""
    assert request.params.seed is not None
    prompt = list(request.prompt)
    return Request(
        f"text-{slot}", prompt, len(prompt), request.params, request.params.seed, phase=Phase.DECODE, slot=slot
    )


def _agreement(draft: Draft, text: Sequence[int]) -> int:
    """Tokens of the draft's main chain that are the text's next ones."""
    tokens = [draft.tree.tokens[node] for node in draft.main_chain]
    pairs = zip(tokens, text, strict=False)
    return next((depth for depth, (own, true) in enumerate(pairs) if own != true), min(len(tokens), len(text)))


def _trace(
    longest: int,
    requests: Sequence[TextRequest],
    texts: Sequence[tuple[int, ...]],
    drafted: Sequence[DraftedText],
) -> Trace:
    categories = tuple(sorted({request.category for request in requests}))
    return Trace(
        max_num_speculative_tokens=longest,
        prompt_tokens=np.asarray([len(request.prompt) for request in requests], dtype=np.int32),
        output_tokens=np.asarray([len(text) for text in texts], dtype=np.int32),
        accepted_length=np.concatenate([own.accepted_length for own in drafted]),
        temperature=np.asarray([request.params.temperature for request in requests], dtype=np.float32),
        category=np.asarray([categories.index(request.category) for request in requests], dtype=np.uint8),
        categories=categories,
        confidence=np.concatenate([own.confidence for own in drafted]),
        seed=np.asarray([request.params.seed for request in requests], dtype=np.int64),
        prompt_token_ids=np.concatenate([np.asarray(request.prompt, dtype=np.int32) for request in requests]),
        max_tokens=np.asarray([request.params.max_tokens for request in requests], dtype=np.int32),
        facts={"recorded": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")},
    )


def with_facts(trace: Trace, **facts: object) -> Trace:
    """The trace with more facts about where it comes from."""
    return replace(trace, facts={**trace.facts, **facts})
