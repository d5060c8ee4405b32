"""Settings of an engine."""

from __future__ import annotations

from dataclasses import dataclass

VERIFICATION_MODES = ("coupled", "rejection")
DRAFTERS = ("model", "ngram")


@dataclass(frozen=True)
class EngineConfig:
    """One field per tunable. Wrong values raise ``ValueError`` with the value and the fix."""

    max_num_seqs: int = 16
    """Requests that can run at once: slots of the KV cache."""
    max_model_len: int | None = None
    """Prompt plus generated tokens of a request at most; None: what the models were built for."""
    kv_cache_bytes: int | None = None
    """Memory for both KV caches; fewer slots are made where ``max_num_seqs`` would need more. None: no bound."""
    max_num_speculative_tokens: int = 8
    """Largest speculation length a controller or a request may use."""
    num_candidates: int = 1
    """Candidates per draft level: the best continues the chain, the others are leaves beside it."""
    drafter: str = "model"
    """``model``: the pair's drafter; ``ngram``: prompt lookup."""
    verification: str = "coupled"
    """``coupled``: same seed, same text, whatever is drafted. ``rejection``: the standard rule."""
    greedy_drafts: bool = False
    """Draft the drafter's most likely tokens whatever the temperature, instead of coupled or sampled ones."""
    prefill_chunk: int = 1024
    """Prompt tokens prefilled per step at most, over all requests."""
    catch_up_chunk: int = 256
    """Tokens per pass when the drafter catches up."""
    fused: bool | None = None
    """None: the fused Llama/Qwen path where it applies. False: transformers' own classes. True: demand the path."""
    seed: int = 0
    """Seeds of requests that bring none are drawn from this."""

    def __post_init__(self) -> None:
        for name, low in (
            ("max_num_seqs", 1),
            ("max_num_speculative_tokens", 0),
            ("num_candidates", 1),
            ("prefill_chunk", 1),
            ("catch_up_chunk", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("max_model_len", "kv_cache_bytes"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be at least 2 or None, got {value}")
        if self.verification not in VERIFICATION_MODES:
            raise ValueError(f"verification must be one of {VERIFICATION_MODES}, got {self.verification!r}")
        if self.drafter not in DRAFTERS:
            raise ValueError(f"drafter must be one of {DRAFTERS}, got {self.drafter!r}")

    @property
    def max_tree_nodes(self) -> int:
        """Nodes of the largest tree sent to verification, its root included."""
        return 1 + self.max_num_speculative_tokens * self.num_candidates
