"""Times single model passes of an idle engine, over its own caches and runners: what a cost surface is made of."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import PreTrainedModel

from .. import __version__
from ..controllers import PassLimits
from .forward_batch import Segment, build_batch
from .kv_cache import KVCache
from .model_drafter import ModelDrafter
from .models import ModelRunner
from .speculation import synchronize
from .token_tree import TokenTree

if TYPE_CHECKING:
    from .engine import Engine

NO_ROWS = torch.empty(0, dtype=torch.long)


class EngineProfiler:
    """The `PassTimer` of an `Engine`. Passes overwrite its caches, which hold nothing of use while it is idle.

    A pass is timed as the engine runs it: building the batch, the forward pass and, where the round waits for them,
    fetching the most likely tokens. Sampling noise and the work of the engine itself are not in it.
    """

    def __init__(self, engine: Engine) -> None:
        """Raises ``RuntimeError`` if the engine has requests."""
        self.engine = engine
        drafter = engine.drafter
        self._drafter = drafter if isinstance(drafter, ModelDrafter) else None
        self._check_idle()

    @property
    def kinds(self) -> tuple[str, ...]:
        """See `PassTimer.kinds`."""
        return ("verify", "prefill") if self._drafter is None else ("draft", "verify", "catch_up", "prefill")

    @property
    def limits(self) -> PassLimits:
        """See `PassTimer.limits`: the engine's slots and its ``max_model_len``."""
        return PassLimits(self.engine.cache.num_slots, self.engine.max_model_len)

    def time_pass(self, kind: str, batch: int, tokens: int, context: int) -> float:
        """Run one pass and return its wall time in seconds.

        Kinds: ``verify`` the target over chains of ``tokens`` nodes; ``draft`` the drafter, logits after the last
        token of each request; ``prefill`` and ``catch_up`` the target and the drafter without logits, always in one
        pass. Raises ``RuntimeError`` if the engine has requests, ``ValueError`` for a pass it cannot do.
        """
        self._check_size(kind, batch, tokens, context)
        return self._timed(kind, {slot: tokens for slot in range(batch)}, [context] * batch)

    def time_ragged_pass(self, kind: str, tokens: Sequence[int], contexts: Sequence[int]) -> float:
        """The same for requests that are not alike: ``tokens`` ``[B]`` new on ``contexts`` ``[B]`` cached ones.

        0 tokens: the request sits the pass out, and the cache's row between those of others is idle.
        """
        self._check_size(kind, len(tokens), max(tokens), max(contexts))
        return self._timed(kind, {slot: own for slot, own in enumerate(tokens) if own}, contexts)

    def _timed(self, kind: str, tokens: Mapping[int, int], contexts: Sequence[int]) -> float:
        """``tokens`` by slot, in order; ``contexts`` of all slots."""
        self._check_idle()
        runner, cache = self._parts(kind)
        rows: torch.Tensor | None = None
        if kind in ("prefill", "catch_up"):
            rows = NO_ROWS
        elif kind == "draft" and max(tokens.values()) > 1:
            rows = torch.tensor(list(tokens.values()), device=runner.device).cumsum(0) - 1
        # Token values do not matter for time, but one embedding row for all would stay in the processor's cache.
        vocab_size = self.engine.pair.vocab_size
        trees = {
            slot: TokenTree.chain([(slot * own + i) * 7919 % vocab_size for i in range(own)])
            for slot, own in tokens.items()
        }
        synchronize(runner.device)
        start = time.perf_counter()
        segments = [Segment(slot, contexts[slot], tree) for slot, tree in trees.items()]
        logits = runner.forward(build_batch(segments, cache.slot_length, runner.device), cache, rows)
        if rows is not NO_ROWS:
            logits.argmax(-1).tolist()
        synchronize(runner.device)
        return time.perf_counter() - start

    def fingerprint_fields(self) -> dict[str, str]:
        """See `PassTimer.fingerprint_fields`."""
        runner, pair = self.engine.runner, self.engine.pair
        own = None if self._drafter is None else self._drafter.runner
        return {
            "hardware": _hardware(runner.device),
            "dtype": str(runner.dtype).removeprefix("torch."),
            "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}, specpilot {__version__}",
            "target": _shape(runner, pair.target),
            "drafter": "no model" if own is None else _shape(own, pair.drafter),
        }

    def _parts(self, kind: str) -> tuple[ModelRunner, KVCache]:
        if kind in ("draft", "catch_up") and self._drafter is not None:
            return self._drafter.runner, self._drafter.cache
        return self.engine.runner, self.engine.cache

    def _check_idle(self) -> None:
        if self.engine.has_work:
            raise RuntimeError("the engine has requests; finish or cancel them before timing its passes")

    def _check_size(self, kind: str, batch: int, tokens: int, context: int) -> None:
        if kind not in self.kinds:
            raise ValueError(f"kind must be one of {self.kinds}, got {kind!r}")
        limits = self.limits
        if not 1 <= batch <= limits.max_batch:
            raise ValueError(f"batch must be 1 … {limits.max_batch} (the engine's slots), got {batch}")
        if tokens < 1 or context < 0 or context + tokens > limits.max_context:
            raise ValueError(
                f"context {context} plus tokens {tokens} must fit max_model_len {limits.max_context}, "
                "with tokens at least 1 and context at least 0"
            )


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _shape(runner: ModelRunner, model: PreTrainedModel | None) -> str:
    parameters = "" if model is None else f", {model.num_parameters()} parameters"
    return (
        f"{type(runner).__name__}, {runner.num_layers} layers, {runner.num_heads} heads of {runner.head_dim} "
        f"({runner.num_kv_heads} for keys), vocabulary {runner.vocab_size}{parameters}"
    )
