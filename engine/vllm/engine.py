"""vLLM in this process, behind the part of the embedded engine's interface that environments and evaluation use.

Tried with vLLM 0.32.0 on CPU. Serving belongs into vLLM's own server; this is for recording, training and comparing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ...controllers import Controller
from ..request import FinishReason, RequestOutput, RequestStats, StreamChunk
from ..sampling_params import RequestError, SamplingParams
from .engine_config import STEERED, STOCK, VllmEngineConfig
from .seeded_sampling import SeededSampling

if TYPE_CHECKING:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler

__all__ = ["STEERED", "STOCK", "VllmEngine", "VllmEngineConfig", "VllmEngineError"]
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""Set where the user has not: gigabytes of cache; one thread, without which the engine is several times slower."""


class VllmEngineError(ValueError):
    """vLLM cannot be had or used as asked; the message is one line with the fix."""


class VllmEngine:
    """One in-process vLLM; a step is a step of vLLM. Not thread-safe: one thread at a time drives it.

    A step verifies what the step before has drafted; a decision takes effect with the next verification. Requests whose
    result has not been taken are kept. Those that sample with a seed have one text, whatever is drafted
    (`seeded_sampling`).
    """

    def __init__(self, config: VllmEngineConfig, controller: Controller | None = None) -> None:
        """Raises `VllmEngineError` where vLLM is not installed or lacks its in-process mode."""
        self.config = config
        self._vllm = _start(config)
        # Once collected it would end the process groups, which all engines of this process share.
        self._vllm.engine_core._finalizer.detach()
        if config.drafter is not None and config.lazy_catch_up and config.scheduler not in (STOCK, STEERED):
            _make_lazy(self.model_runner)  # The plugin does it for its own schedulers alone.
        self.scheduler: Scheduler = self._vllm.engine_core.engine_core.scheduler
        """vLLM's: ``running`` and ``waiting`` have lengths."""
        self.max_model_len = config.max_model_len
        self._seeded = SeededSampling(self.model_runner, config.max_num_speculative_tokens)
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._tokens: dict[str, list[int]] = {}
        self._cancelled: list[str] = []
        self._results: dict[str, RequestOutput] = {}
        self._num_added = 0
        self._thread, self._num_threads = threading.get_ident(), torch.get_num_threads()
        if controller is not None:
            self.controller = controller

    @property
    def steering(self) -> Any:
        """What chooses K in the scheduler. Raises `VllmEngineError` where none does."""
        if not self._is_steered:
            raise VllmEngineError(f"the scheduler {self.config.scheduler!r} takes no controller; use {STEERED!r}")
        return self.scheduler.steering

    @property
    def controller(self) -> Controller:
        """Who chooses the speculation; may be replaced between steps."""
        controller: Controller = self.steering.controller
        return controller

    @controller.setter
    def controller(self, controller: Controller) -> None:
        self.steering.controller = controller

    def measure_arrivals(self, clock: Callable[[], float] = time.monotonic) -> None:
        """See `Engine.measure_arrivals`; nothing where nobody steers."""
        if self._is_steered:
            self.steering.measure_arrivals(clock)

    @property
    def plugin_seconds(self) -> float:
        """Of all steps so far: what the plugin took, decisions included; 0 where nobody steers."""
        return float(self.steering.counts.seconds) if self._is_steered else 0.0

    @property
    def instrument_seconds(self) -> float:
        """Of all steps so far: what `seeded_sampling` took, which serves comparisons alone."""
        return self._seeded.seconds

    @property
    def _is_steered(self) -> bool:
        return hasattr(self.scheduler, "steering")

    @property
    def model_runner(self) -> Any:
        """vLLM's, with its ``drafter`` (``v1/worker/gpu_model_runner.py``)."""
        worker = self._vllm.engine_core.engine_core.model_executor.driver_worker
        return getattr(worker, "worker", worker).model_runner

    @property
    def drafts_greedily(self) -> bool:
        """The drafter proposes its most likely tokens at every temperature: vLLM's default."""
        own = self.scheduler.vllm_config.speculative_config
        return own is None or getattr(own, "draft_sample_method", "greedy") == "greedy"

    @property
    def has_work(self) -> bool:
        """True while a request waits or runs."""
        return bool(self._tokens)

    def add_request(
        self, prompt: Sequence[int], params: SamplingParams | None = None, request_id: str | None = None
    ) -> str:
        """Queue a request of token ids and return its id. Raises `RequestError` where it can never fit."""
        params = params or SamplingParams()
        params.check(self.config.max_num_speculative_tokens)
        name = f"request-{self._num_added}" if request_id is None else request_id
        if name in self._tokens or name in self._results:
            raise RequestError(f"request id {name!r} is already in use")
        if not prompt or len(prompt) + params.max_tokens > self.max_model_len:
            raise RequestError(
                f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens} must be 1 or more and fit "
                f"max_model_len {self.max_model_len}; shorten one of them"
            )
        self._num_added += 1
        self._prompts[name], self._tokens[name] = tuple(prompt), []
        self._seeded.add(name, params, len(prompt))
        self._vllm.add_request(name, {"prompt_token_ids": list(prompt)}, _sampling(params))
        return name

    def cancel(self, request_id: str) -> bool:
        """Stop a request before the next step; what it has generated is its result. False if it is not running."""
        if request_id not in self._tokens or request_id in self._cancelled:
            return False
        self._cancelled.append(request_id)
        return True

    def take_result(self, request_id: str) -> RequestOutput:
        """Hand over (and forget) the result of a finished request; ``KeyError`` if it has none. It holds no text."""
        return self._results.pop(request_id)

    def step(self) -> list[StreamChunk]:
        """Drop the cancelled and do one step of vLLM. Returns what each request gained."""
        self._enter_thread()
        chunks = [self._chunk(name, (), FinishReason.CANCELLED) for name in self._cancelled]
        if self._cancelled:
            self._vllm.abort_request(self._cancelled)
            self._cancelled = []
        if self._vllm.has_unfinished_requests():
            for output in self._vllm.step():
                (own,) = output.outputs
                reason = FinishReason(own.finish_reason) if own.finish_reason is not None else None
                chunks.append(self._chunk(output.request_id, tuple(own.token_ids), reason))
        return chunks

    def _enter_thread(self) -> None:
        """vLLM's attention on CPU demands as many threads as there were at start; every thread has its own number."""
        if threading.get_ident() != self._thread:
            self._thread = threading.get_ident()
            torch._C.set_num_threads(self._num_threads)  # vLLM replaces torch's own by one that only warns.

    def _chunk(self, name: str, tokens: tuple[int, ...], reason: FinishReason | None) -> StreamChunk:
        self._tokens[name].extend(tokens)
        if reason is not None:
            found, prompt = tuple(self._tokens.pop(name)), self._prompts.pop(name)
            self._seeded.drop(name)
            self._results[name] = RequestOutput(name, prompt, found, "", reason, RequestStats())
        return StreamChunk(name, tokens, "", reason)


def _make_lazy(model_runner: Any) -> None:
    from . import plugin
    from .lazy_hooks import lazy_drafter_of

    plugin.install_part("lazy_catch_up")
    lazy_drafter_of(model_runner, lambda vllm_config: True)


def _start(config: VllmEngineConfig) -> Any:
    """An ``LLMEngine`` whose core runs in this process."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        from vllm import EngineArgs, LLMEngine

        from . import plugin
    except ImportError as error:
        raise VllmEngineError(
            f"vLLM cannot be imported ({error}); make vllm-env makes an environment with it"
        ) from None
    plugin.register()  # vLLM does it too, where the package was installed with its entry point.
    arguments = EngineArgs(
        model=config.target,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.prefill_chunk,
        enable_prefix_caching=config.prefix_caching,
        enforce_eager=True,  # Drafts of every length, no compilation at start.
        async_scheduling=False,
        disable_log_stats=True,
        scheduler_cls=None if config.scheduler == STOCK else config.scheduler,
        speculative_config=config.speculative_config(),
        additional_config=config.plugin_settings(),
    )
    with numba_looked_at():
        return LLMEngine.from_engine_args(arguments)


@contextmanager
def numba_looked_at() -> Iterator[None]:
    """Let vLLM look at the objects of all modules, numba's among them.

    On CPU ``triton_utils/dispatcher.py`` (`_rebind_kernels`) reads every object's ``__dict__``; llvmlite's library has
    none, and answers with a function that it takes for one of its own.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    library: Any = getattr(ffi, "_lib_wrapper", None)
    stock = getattr(library, "__getattr__", None)
    if stock is None:
        yield
        return

    def looked_up(self: Any, name: str) -> Any:
        if name == "__dict__":
            raise AttributeError(name)
        return stock(self, name)

    library.__getattr__ = looked_up
    try:
        yield
    finally:
        library.__getattr__ = stock


def _sampling(params: SamplingParams) -> VllmSamplingParams:
    """Without the seed, which is `SeededSampling`'s."""
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    return VllmSamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        max_tokens=params.max_tokens,
        stop=list(params.stop_strings),
        ignore_eos=params.ignore_eos,
        detokenize=bool(params.stop_strings),
        output_kind=RequestOutputKind.DELTA,
    )
