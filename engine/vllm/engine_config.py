"""Settings of one in-process vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...controllers.length_table import Row

STEERED, STOCK = "specpilot.engine.vllm.scheduler.SteeredScheduler", "stock"


@dataclass(frozen=True)
class VllmEngineConfig:
    """One vLLM engine. Names are the embedded `EngineConfig`'s where both have the thing."""

    target: str
    """Directory or hub id."""
    drafter: str | None = None
    """None: vLLM without speculation."""
    max_num_seqs: int = 32
    max_model_len: int = 1024
    prefill_chunk: int = 1024
    """vLLM's ``max_num_batched_tokens``; it counts decoded tokens too."""
    max_num_speculative_tokens: int = 8
    table: tuple[Row, ...] = ()
    """vLLM's own ``num_speculative_tokens_per_batch_size``; empty: one row of ``max_num_speculative_tokens``, with
    which vLLM lets something else choose, or the plugin's."""
    scheduler: str = STEERED
    """Dotted name of a scheduler class, or ``stock``: vLLM's own, without a controller."""
    lazy_catch_up: bool = True
    """Whether K = 0 skips the drafter; not of stock engines."""
    confirm_steps: int = 1
    """See `VllmSettings`; by default decisions are followed at once."""
    dwell_steps: int = 0
    prefix_caching: bool = False
    """Off: requests that come again cost the same again."""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_model_len", "prefill_chunk", "max_num_speculative_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def speculative_config(self) -> dict[str, Any] | None:
        """vLLM's ``--speculative-config``."""
        if self.drafter is None:
            return None
        found: dict[str, Any] = {"method": "draft_model", "model": self.drafter}
        longest, slots = self.max_num_speculative_tokens, self.max_num_seqs
        if self.scheduler == STEERED and not self.table:
            return found | {"num_speculative_tokens": longest}
        rows = self.table or ((1, None, longest),)
        table = [[low, slots if high is None else min(high, slots), length] for low, high, length in rows]
        return found | {
            "num_speculative_tokens": max(longest, *(row[2] for row in rows)),
            "num_speculative_tokens_per_batch_size": [row for row in table if row[0] <= row[1]],
        }

    def plugin_settings(self) -> dict[str, Any]:
        """`VllmSettings`, without a self-test; a stock engine's say that what is installed shall leave it alone."""
        if self.scheduler == STOCK:
            return {"specpilot": {"lazy_catch_up": False}}
        names = ("lazy_catch_up", "confirm_steps", "dwell_steps")
        return {"specpilot": {**{name: getattr(self, name) for name in names}, "self_test": False}}
