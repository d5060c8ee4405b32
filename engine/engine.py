"""The embedded inference engine: continuous batching around one pair."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..controllers import ConstantController, Controller, RoundOutcome, RoundState
from .config import EngineConfig
from .drafter import Drafter
from .forward_batch import Segment, build_batch
from .model_drafter import ModelDrafter
from .models import build_runner
from .ngram_drafter import NgramDrafter
from .pair import Pair
from .request import FinishReason, Phase, Request, RequestOutput, RequestStats, StreamChunk
from .sampling_params import RequestError, SamplingParams
from .scheduler import Scheduler
from .speculation import RoundResult, Speculator, synchronize
from .stats import EngineStats, RoundRecord
from .text import TextStream, decode, stop_text
from .token_tree import TokenTree

Prompt = str | Sequence[int]
ACCEPTANCE_WEIGHT = 0.2  # of the newest round in a request's running acceptance rate


class Engine:
    """Serves requests with a pair; the controller says how far to speculate for each, every round.

    Requests may be added and cancelled between steps; one step prefills a bounded chunk and runs one round for all
    requests that decode. Not thread-safe: one thread drives it.

    >>> engine = Engine(load_pair(), controller=ConstantController(4))             # doctest: +SKIP
    >>> engine.generate(["def main():"], SamplingParams(max_tokens=32))[0].text    # doctest: +SKIP
    """

    def __init__(
        self,
        pair: Pair,
        config: EngineConfig | None = None,
        controller: Controller | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """``controller`` defaults to no speculation; ``drafter`` overrides the one that ``config`` names."""
        self.pair = pair
        self.config = config = config or EngineConfig()
        self.runner = build_runner(pair.target, config.fused)
        wants_model = drafter is None and config.drafter == "model" and pair.drafter is not None
        draft_runner = build_runner(pair.drafter, config.fused) if wants_model and pair.drafter is not None else None
        runners = [self.runner, *([draft_runner] if draft_runner else [])]
        self.max_model_len = self._model_len([runner.max_position_embeddings for runner in runners])
        slot_length = self.max_model_len + config.max_tree_nodes
        num_slots = self._num_slots(
            sum(
                self.runner.new_cache(0, 0).bytes_per_slot(
                    r.num_layers, slot_length, r.num_kv_heads, r.head_dim, r.dtype
                )
                for r in runners
            )
        )
        self.cache = self.runner.new_cache(num_slots, slot_length)
        self.drafter = drafter
        if draft_runner is not None:
            self.drafter = ModelDrafter(
                draft_runner, num_slots, slot_length, pair.vocab_size, config.num_candidates, config.catch_up_chunk
            )
        elif drafter is None and config.drafter == "ngram":
            self.drafter = NgramDrafter()
        self.scheduler = Scheduler(num_slots, config.prefill_chunk)
        self.speculator = Speculator(
            self.runner,
            self.cache,
            self.drafter,
            controller or ConstantController(0),
            pair.vocab_size,
            config.verification,
            config.max_tree_nodes,
        )
        drafter_bytes = 0 if self.drafter is None else self.drafter.num_bytes
        self.stats = EngineStats(kv_cache_bytes=self.cache.num_bytes + drafter_bytes)
        self._requests: dict[str, Request] = {}
        self._results: dict[str, RequestOutput] = {}
        self._streams: dict[str, TextStream] = {}
        self._eos = pair.eos_token_ids
        self._num_added = 0

    def _model_len(self, limits: list[int]) -> int:
        wanted = self.config.max_model_len
        if wanted is not None and wanted > min(limits):
            raise ValueError(f"max_model_len {wanted} exceeds what the models were built for ({min(limits)})")
        return min(limits) if wanted is None else wanted

    def _num_slots(self, bytes_per_slot: int) -> int:
        bound = self.config.kv_cache_bytes
        if bound is None:
            return self.config.max_num_seqs
        if bound < bytes_per_slot:
            raise ValueError(
                f"kv_cache_bytes {bound} holds no request of max_model_len {self.max_model_len} "
                f"({bytes_per_slot} bytes); raise it or lower max_model_len"
            )
        return min(self.config.max_num_seqs, bound // bytes_per_slot)

    @property
    def controller(self) -> Controller:
        """Who chooses the speculation; may be replaced between steps."""
        return self.speculator.controller

    @controller.setter
    def controller(self, controller: Controller) -> None:
        self.speculator.controller = controller

    @property
    def has_work(self) -> bool:
        """True while a request waits or runs."""
        return bool(self._requests)

    # ------------------------------------------------------------------ requests

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        stream: bool = False,
    ) -> str:
        """Queue a request and return its id. ``stream``: chunks of `step` carry text.

        Raises `RequestError`, and changes nothing, if the prompt or a parameter is invalid or can never fit.
        """
        params = params or SamplingParams()
        request_id = request_id if request_id is not None else f"request-{self._num_added}"
        try:
            if request_id in self._requests or request_id in self._results:
                raise RequestError(f"request id {request_id!r} is already in use")
            params.check(self.config.max_num_speculative_tokens)
            token_ids = self._tokenize(prompt)
            self._check_size(len(token_ids), params.max_tokens)
        except RequestError:
            self.stats.num_refused += 1
            raise
        seed = self._own_seed() if params.seed is None else params.seed
        self._num_added += 1
        self.stats.num_requests += 1
        request = Request(request_id, token_ids, len(token_ids), params, seed)
        self._requests[request_id] = request
        if stream:
            self._streams[request_id] = TextStream(self.pair.tokenizer, params.stop_strings)
        self.scheduler.waiting.append(request)
        return request_id

    def cancel(self, request_id: str) -> bool:
        """Stop a request before the next step; what it has generated is its result. False if it is not running."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        request.cancelled = True
        return True

    def take_result(self, request_id: str) -> RequestOutput:
        """Hand over (and forget) the result of a finished request; ``KeyError`` if it has none."""
        return self._results.pop(request_id)

    def _tokenize(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            tokens: list[int] = self.pair.tokenizer(prompt)["input_ids"]
        elif all(isinstance(token, int | np.integer) and not isinstance(token, bool) for token in prompt):
            tokens = [int(token) for token in prompt]
        else:
            raise RequestError("a prompt is a string or a sequence of token ids (integers)")
        if not tokens:
            raise RequestError("the prompt is empty; give at least one token")
        outside = [token for token in tokens if not 0 <= token < self.pair.vocab_size]
        if outside:
            raise RequestError(f"token id {outside[0]} is outside the vocabulary of {self.pair.vocab_size}")
        return tokens

    def _check_size(self, num_prompt_tokens: int, max_tokens: int) -> None:
        if num_prompt_tokens >= self.max_model_len:
            raise RequestError(
                f"the prompt has {num_prompt_tokens} tokens, the engine takes at most {self.max_model_len - 1} "
                "(max_model_len - 1); shorten it"
            )
        if num_prompt_tokens + max_tokens > self.max_model_len:
            raise RequestError(
                f"prompt ({num_prompt_tokens}) plus max_tokens ({max_tokens}) exceed the KV capacity of a request "
                f"({self.max_model_len} tokens); lower max_tokens to {self.max_model_len - num_prompt_tokens}"
            )

    def _own_seed(self) -> int:
        return int(np.random.default_rng((self.config.seed, self._num_added)).integers(2**62))

    # ------------------------------------------------------------------ serving

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Serve ``prompts`` to the end and return their results in order.

        An invalid request comes back with ``finish_reason == "error"`` and its message; the others are served.
        """
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} SamplingParams")
        results: list[RequestOutput | str] = []
        for prompt, own in zip(prompts, each, strict=True):
            try:
                results.append(self.add_request(prompt, own))
            except RequestError as error:
                results.append(_refused(str(error)))
        while self.has_work:
            self.step()
        return [self.take_result(result) if isinstance(result, str) else result for result in results]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamChunk]:
        """Serve one request and yield its text as it comes, with whatever else the engine has to do.

        Leaving the iterator early cancels the request.
        """
        request_id = self.add_request(prompt, params, stream=True)
        try:
            while request_id in self._requests:
                yield from (chunk for chunk in self.step() if chunk.request_id == request_id)
        finally:
            if self.cancel(request_id):
                self._drop_cancelled()
            self._results.pop(request_id, None)

    def step(self) -> list[StreamChunk]:
        """Do one step: drop the cancelled, admit, prefill a chunk, run one round. Returns what each request gained."""
        start = time.perf_counter()
        chunks = self._drop_cancelled()
        for request in self.scheduler.admit():
            request.stats.queue_seconds = start - request.arrival
            if self.drafter is not None:
                self.drafter.start(request)
        if not self.scheduler.running:
            return chunks
        prefill_tokens, prefill_seconds = self._prefill()
        requests = self.scheduler.decoding()
        if not requests:
            self._record(start, (), None, None, 0, 0, prefill_tokens, prefill_seconds)
            return chunks
        state = self._state(requests)
        lengths = self.speculator.decide(state)
        result = self.speculator.run(requests, lengths, self.stats.num_rounds)
        switches = self._count_switches(requests, result)
        committed = []
        for request, tokens in zip(requests, result.new_tokens, strict=True):
            new = self._append(request, tokens)
            committed.append(len(new))
            chunks.append(self._chunk(request, new))
            if request.finish_reason is not None:
                self._finish(request)
        record = self._record(
            start, state.request_ids, state, result, sum(committed), switches, prefill_tokens, prefill_seconds
        )
        self.controller.observe(
            RoundOutcome(
                num_drafted=np.asarray(result.num_drafted),
                accepted_length=np.asarray(result.accepted_length),
                num_committed=np.asarray(committed),
                draft_seconds=result.draft_seconds,
                verify_seconds=result.verify_seconds,
                catch_up_seconds=result.catch_up_seconds,
                host_seconds=record.host_seconds,
            )
        )
        return chunks

    # ------------------------------------------------------------------ parts of a step

    def _drop_cancelled(self) -> list[StreamChunk]:
        cancelled = [request for request in self._requests.values() if request.cancelled]
        chunks = []
        for request in cancelled:
            request.finish_reason = FinishReason.CANCELLED
            chunks.append(self._chunk(request, []))
            self._finish(request)
        return chunks

    def _prefill(self) -> tuple[int, float]:
        plan = self.scheduler.prefill_plan()
        if not plan:
            return 0, 0.0
        start = time.perf_counter()
        segments = []
        for request, count in plan:
            tokens = request.token_ids[request.num_cached : request.num_cached + count]
            segments.append(Segment(request.slot, request.num_cached, TokenTree.chain(tokens)))
            request.num_cached += count
            if request.num_cached == request.num_prompt_tokens - 1:
                request.phase = Phase.DECODE
        batch = build_batch(segments, self.cache.slot_length, self.runner.device)
        self.runner.forward(batch, self.cache, rows=torch.empty(0, dtype=torch.long))
        synchronize(self.runner.device)
        return sum(count for _, count in plan), time.perf_counter() - start

    def _state(self, requests: Sequence[Request]) -> RoundState:
        def limit(request: Request) -> int:
            if self.drafter is None:
                return 0
            cap = request.params.num_speculative_tokens
            # A round gains one token more than it accepts, so the last token needs no draft.
            left = request.params.max_tokens - request.num_generated - 1
            return min(left, self.config.max_num_speculative_tokens if cap is None else cap)

        drafter = self.drafter
        return RoundState(
            request_ids=tuple(request.request_id for request in requests),
            context_length=np.asarray([len(request.token_ids) for request in requests]),
            num_generated=np.asarray([request.num_generated for request in requests]),
            lag=np.asarray([0 if drafter is None else drafter.lag(request) for request in requests]),
            max_num_speculative_tokens=np.asarray([limit(request) for request in requests]),
            last_num_speculative_tokens=np.asarray([request.last_length for request in requests]),
            last_accepted_length=np.asarray([request.last_accepted for request in requests]),
            acceptance_rate=np.asarray([request.acceptance_rate for request in requests]),
            temperature=np.asarray([float(request.params.temperature) for request in requests]),
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_free=1 - self._kv_use(),
        )

    def _kv_use(self) -> float:
        return sum(request.num_cached for request in self.scheduler.running) / (
            self.scheduler.num_slots * self.max_model_len
        )

    def _count_switches(self, requests: Sequence[Request], result: RoundResult) -> int:
        """Update each request's history; returns how many went from off to on or back."""
        switches = 0
        for request, drafted, accepted in zip(requests, result.num_drafted, result.accepted_length, strict=True):
            switched = request.last_length >= 0 and (request.last_length > 0) != (drafted > 0)
            switches += switched
            request.stats.num_rounds += 1
            request.stats.num_drafted += drafted
            request.stats.num_accepted += accepted
            request.stats.num_switches += switched
            request.last_length, request.last_accepted = drafted, accepted
            if drafted:
                rate, old = accepted / drafted, request.acceptance_rate
                request.acceptance_rate = rate if old != old else old + ACCEPTANCE_WEIGHT * (rate - old)
        return switches

    def _append(self, request: Request, tokens: Sequence[int]) -> list[int]:
        """Commit tokens one by one until the request ends; what comes after is dropped, so K never shows in the text."""
        if request.num_generated == 0:
            request.stats.first_token_seconds = time.perf_counter() - request.arrival
        taken = []
        for token in tokens:
            request.token_ids.append(token)
            taken.append(token)
            if token in self._eos and not request.params.ignore_eos:
                request.finish_reason = FinishReason.STOP
            elif (text := stop_text(self.pair.tokenizer, request)) is not None:
                request.text, request.finish_reason = text, FinishReason.STOP
            elif request.num_generated >= request.params.max_tokens:
                request.finish_reason = FinishReason.LENGTH
            if request.finish_reason is not None:
                break
        return taken

    def _final_text(self, request: Request) -> str:
        if request.text is None:
            request.text = decode(self.pair.tokenizer, request.output_token_ids)
        return request.text

    def _chunk(self, request: Request, tokens: Sequence[int]) -> StreamChunk:
        text, stream = "", self._streams.get(request.request_id)
        if stream is not None:
            text = stream.push(request, None if request.finish_reason is None else self._final_text(request))
        return StreamChunk(request.request_id, tuple(tokens), text, request.finish_reason)

    def _finish(self, request: Request) -> None:
        """Free everything a request holds and keep its result."""
        assert request.finish_reason is not None
        if request.phase is Phase.WAITING:
            self.scheduler.waiting.remove(request)
        else:
            if self.drafter is not None:
                self.drafter.forget(request)
            self.scheduler.release(request, self._move_slot)
        request.phase = Phase.FINISHED
        request.stats.total_seconds = time.perf_counter() - request.arrival
        self.stats.num_finished += 1
        self._results[request.request_id] = RequestOutput(
            request_id=request.request_id,
            prompt_token_ids=tuple(request.token_ids[: request.num_prompt_tokens]),
            token_ids=tuple(request.output_token_ids),
            text=self._final_text(request),
            finish_reason=request.finish_reason,
            stats=replace(request.stats),
        )
        del self._requests[request.request_id]
        self._streams.pop(request.request_id, None)

    def _move_slot(self, source: int, destination: int, length: int) -> None:
        self.cache.move_slot(source, destination, length)
        if self.drafter is not None:
            self.drafter.move_slot(source, destination)

    def _record(
        self,
        start: float,
        request_ids: tuple[str, ...],
        state: RoundState | None,
        result: RoundResult | None,
        num_committed: int,
        switches: int,
        prefill_tokens: int,
        prefill_seconds: float,
    ) -> RoundRecord:
        draft, verify, catch_up = (
            (0.0, 0.0, 0.0)
            if result is None
            else (result.draft_seconds, result.verify_seconds, result.catch_up_seconds)
        )
        elapsed = time.perf_counter() - start
        record = RoundRecord(
            index=self.stats.num_rounds,
            request_ids=request_ids,
            num_drafted=() if result is None else tuple(result.num_drafted),
            accepted_length=() if result is None else tuple(result.accepted_length),
            lag=() if state is None else tuple(state.lag.tolist()),
            num_committed=num_committed,
            catch_up_tokens=0 if result is None else result.catch_up_tokens,
            prefill_tokens=prefill_tokens,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_use=self._kv_use(),
            switches=switches,
            draft_seconds=draft,
            verify_seconds=verify,
            catch_up_seconds=catch_up,
            prefill_seconds=prefill_seconds,
            host_seconds=max(0.0, elapsed - draft - verify - catch_up - prefill_seconds),
        )
        self.stats.add(record)
        return record


def _refused(message: str) -> RequestOutput:
    return RequestOutput("", (), (), "", FinishReason.ERROR, RequestStats(), message)
