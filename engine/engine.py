"""The embedded inference engine: continuous batching around one pair."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch

from ..controllers import ConstantController, Controller, RoundOutcome, RoundState
from ..controllers.arrivals import ArrivalMeter
from .config import EngineConfig
from .controller_answers import ask_decision
from .delivery import Delivery
from .drafter import Drafter
from .forward_batch import Segment, build_batch
from .intake import Prompt, read_prompt
from .model_drafter import ModelDrafter
from .models import build_runner
from .ngram_drafter import NgramDrafter
from .pair import Pair
from .profiler import EngineProfiler
from .request import FinishReason, Phase, Request, RequestOutput, RequestStats, StreamChunk
from .round_state import round_state, update_history
from .sampling_params import RequestError, SamplingParams
from .scheduler import Scheduler
from .speculation import CatchUp, RoundResult, Speculator, synchronize
from .stats import EngineStats, RoundRecord
from .text import commit_tokens
from .token_tree import TokenTree


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
        num_slots = self._num_slots(sum(runner.cache_bytes_per_slot(slot_length) for runner in runners))
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
            config.greedy_drafts,
        )
        drafter_bytes = 0 if self.drafter is None else self.drafter.num_bytes
        self.stats = EngineStats(kv_cache_bytes=self.cache.num_bytes + drafter_bytes)
        self._requests: dict[str, Request] = {}
        self._delivery = Delivery(pair.tokenizer)
        self._eos = pair.eos_token_ids
        self._num_added = 0
        self.measure_arrivals()

    def measure_arrivals(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Forget the arrivals so far, and measure new ones by ``clock``, in seconds.

        A clock of your own is for engines that take turns.
        """
        self._clock, self._arrivals = clock, ArrivalMeter()

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
    def instrument_seconds(self) -> float:
        """See `ServingEngine`: 0, for the text depends on the seed alone here without more ado."""
        return 0.0

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
        request_id = self._own_id() if request_id is None else request_id
        token_ids = self._checked(prompt, params, request_id)
        seed = self._own_seed() if params.seed is None else params.seed
        self._num_added += 1
        self.stats.num_requests += 1
        request = Request(request_id, token_ids, len(token_ids), params, seed)
        self._requests[request_id] = request
        self._arrivals.add(self._clock())
        if stream:
            self._delivery.start_text(request)
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
        return self._delivery.take_result(request_id)

    def _checked(self, prompt: Prompt, params: SamplingParams, request_id: str | None = None) -> list[int]:
        """The prompt's tokens, if the request can be served; a refusal is counted."""
        try:
            if request_id is not None and (request_id in self._requests or request_id in self._delivery):
                raise RequestError(f"request id {request_id!r} is already in use")
            params.check(self.config.max_num_speculative_tokens)
            return read_prompt(prompt, self.pair, self.max_model_len, params.max_tokens)
        except RequestError:
            self.stats.num_refused += 1
            raise

    def _own_id(self) -> str:
        names = (f"request-{number}" for number in itertools.count(self._num_added))
        return next(name for name in names if name not in self._requests and name not in self._delivery)

    def _own_seed(self) -> int:
        return int(np.random.default_rng((self.config.seed, self._num_added)).integers(2**62))

    def profiler(self) -> EngineProfiler:
        """Time single passes, for `CostSurface.measure`; ``RuntimeError`` while a request waits or runs."""
        return EngineProfiler(self)

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

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[StreamChunk]:
        """Serve one request and yield its text as it comes, with whatever else the engine has to do.

        The request is queued when the first chunk is asked for; leaving the iterator early cancels it. Raises
        `RequestError` at once if the prompt or a parameter is invalid.
        """
        return self._stream(self._checked(prompt, params or SamplingParams()), params)

    def _stream(self, prompt: Prompt, params: SamplingParams | None) -> Generator[StreamChunk]:
        request_id = self.add_request(prompt, params, stream=True)
        chunks = self._delivery.open_reader(request_id)
        try:
            while chunks or request_id in self._requests:
                while chunks:
                    yield chunks.popleft()
                if request_id in self._requests:
                    self.step()
        finally:
            if request_id in self._requests:
                self._drop(self._requests[request_id])
            self._delivery.close_reader(request_id)

    def step(self) -> list[StreamChunk]:
        """Do one step: drop the cancelled, admit, prefill a chunk, run one round. Returns what each request gained."""
        start = time.perf_counter()
        chunks = self._drop_cancelled()
        for request in self.scheduler.admit():
            request.stats.queue_seconds = start - request.arrival
            if self.drafter is not None:
                self.drafter.start(request)
        if not self.scheduler.running:
            if chunks:  # the queue has changed, and the gauges must say so
                self._record(start, None, RoundResult.empty(), 0, 0, (0, 0.0))
            return chunks
        prefill = self._prefill()
        requests = self.scheduler.decoding()
        if not requests:
            self._record(start, None, RoundResult.empty(), 0, 0, prefill)
            return chunks
        return chunks + self._round(requests, start, prefill)

    # ------------------------------------------------------------------ parts of a step

    def _round(self, requests: list[Request], start: float, prefill: tuple[int, float]) -> list[StreamChunk]:
        """Ask the controller, run the round, commit what it found and tell the controller."""
        rates = self._arrivals.rates(self._clock())
        state = round_state(requests, self.scheduler, self.drafter, self.config, 1 - self._kv_use(), rates)
        catch_up = CatchUp()
        try:
            decision = ask_decision(self.controller, state)
            catch_up = self.speculator.catch_up(requests, decision.num_speculative_tokens)
            result = self.speculator.run(requests, decision, self.stats.num_rounds, catch_up)
        except Exception:  # the round can be repeated, but prefill and catch-up have happened
            if prefill[0] or catch_up.tokens:
                self._record(start, None, RoundResult.empty(catch_up), 0, 0, prefill)
            raise
        switches = update_history(requests, result)
        chunks = [self._commit(request, tokens) for request, tokens in zip(requests, result.new_tokens, strict=True)]
        committed = [len(chunk.token_ids) for chunk in chunks]
        record = self._record(start, state, result, sum(committed), switches, prefill)
        self.controller.observe(
            RoundOutcome(
                num_drafted=np.asarray(result.num_drafted),
                num_verified=np.asarray(result.num_verified),
                accepted_length=np.asarray(result.accepted_length),
                num_committed=np.asarray(committed),
                draft_seconds=result.draft_seconds,
                verify_seconds=result.verify_seconds,
                catch_up_seconds=result.catch_up.seconds,
                host_seconds=record.host_seconds,
            )
        )
        return chunks

    def _commit(self, request: Request, tokens: list[int]) -> StreamChunk:
        new = commit_tokens(request, tokens, self.pair.tokenizer, self._eos)
        chunk = self._delivery.chunk(request, new)
        if request.finish_reason is not None:
            self._finish(request)
        return chunk

    def _drop_cancelled(self) -> list[StreamChunk]:
        return [self._drop(request) for request in list(self._requests.values()) if request.cancelled]

    def _drop(self, request: Request) -> StreamChunk:
        request.finish_reason = FinishReason.CANCELLED
        chunk = self._delivery.chunk(request, [])
        self._finish(request)
        return chunk

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

    def _kv_use(self) -> float:
        return sum(request.num_cached for request in self.scheduler.running) / (
            self.scheduler.num_slots * self.max_model_len
        )

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
        self._delivery.keep_result(request)
        del self._requests[request.request_id]

    def _move_slot(self, source: int, destination: int, length: int) -> None:
        self.cache.move_slot(source, destination, length)
        if self.drafter is not None:
            self.drafter.move_slot(source, destination)

    def _record(
        self,
        start: float,
        state: RoundState | None,
        result: RoundResult,
        num_committed: int,
        switches: int,
        prefill: tuple[int, float],
    ) -> RoundRecord:
        record = RoundRecord(
            index=self.stats.num_rounds,
            request_ids=() if state is None else state.request_ids,
            num_drafted=tuple(result.num_drafted),
            num_verified=tuple(result.num_verified),
            accepted_length=tuple(result.accepted_length),
            lag=() if state is None else tuple(state.lag.tolist()),
            num_committed=num_committed,
            catch_up_tokens=result.catch_up.tokens,
            prefill_tokens=prefill[0],
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_use=self._kv_use(),
            switches=switches,
            draft_seconds=result.draft_seconds,
            asking_seconds=result.asking_seconds,
            verify_seconds=result.verify_seconds,
            catch_up_seconds=result.catch_up.seconds,
            prefill_seconds=prefill[1],
            host_seconds=max(0.0, time.perf_counter() - start - result.model_seconds - prefill[1]),
        )
        self.stats.add(record)
        return record


def _refused(message: str) -> RequestOutput:
    return RequestOutput("", (), (), "", FinishReason.ERROR, RequestStats(), message)
