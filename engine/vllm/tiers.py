"""vLLM's table from batch size to K, used to name every K that a controller may choose."""

from __future__ import annotations

from typing import Any

Rows = list[tuple[int, int, int]]


def tier_table(longest: int, max_num_seqs: int) -> Rows:
    """Rows ``(low, high, K)`` that name each K from 0 to ``longest``.

    vLLM pads no request and captures graphs for each K of the table, up to the largest batch that has it, so the tiers
    stand at the upper end. All smaller batches have ``longest``, which is what vLLM does without a table. Where there
    are fewer batch sizes than tiers the smallest K go unnamed.
    """
    first = max(1, max_num_seqs - longest)
    return [(1, first, longest)] + [(first + n, first + n, longest - n) for n in range(1, longest + 1)]


def is_own_table(vllm_config: Any) -> bool:
    """Whether the engine's table is the plugin's list of tiers rather than its user's wish."""
    speculation = vllm_config.speculative_config
    table = getattr(speculation, "num_speculative_tokens_per_batch_size", None)
    own = tier_table(speculation.num_speculative_tokens, vllm_config.scheduler_config.max_num_seqs)
    return table is not None and [tuple(row) for row in table] == own
