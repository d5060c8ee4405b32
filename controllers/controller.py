"""The boundary between an engine and whatever chooses the speculation: state in, decision out, outcome back.

Everything per request is an array over the requests that decode in this round, in the same order in all four classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class RoundState:
    """What the engine knows before a round. ``B`` requests decode; arrays are ``[B]``."""

    request_ids: tuple[str, ...]
    context_length: IntArray
    """Tokens committed so far, prompt included."""
    num_generated: IntArray
    """Of these, tokens generated."""
    lag: IntArray
    """Committed tokens that the drafter's cache has not seen (0 or 1 in steady speculation); catching up is paid."""
    max_num_speculative_tokens: IntArray
    """Largest length allowed this round: the engine's, the request's own cap, and what max_tokens leaves."""
    last_num_speculative_tokens: IntArray
    """Tokens drafted for the request in its last round; -1 before its first."""
    last_accepted_length: IntArray
    """Of these, tokens accepted; -1 before its first round."""
    acceptance_rate: FloatArray
    """Exponential average (weight 0.2) of accepted/drafted over the request's rounds that drafted; NaN before."""
    temperature: FloatArray
    running: int
    """Requests that hold a slot, those in prefill included."""
    waiting: int
    """Requests in the queue."""
    kv_free: float
    """Share of the cache's tokens that is free, 0 … 1."""


@dataclass(frozen=True)
class Decision:
    """What to do in a round."""

    num_speculative_tokens: IntArray
    """``[B]`` speculation length per request, 0 … ``max_num_speculative_tokens`` of the engine; 0 turns it off."""


@dataclass(frozen=True)
class DraftLevel:
    """What is known after a draft level, for the requests that could go on. ``A`` of the ``B`` requests; ``[A]``."""

    depth: int
    """Tokens drafted so far, 1 or more."""
    requests: IntArray
    """Index of each request in the round's `RoundState`."""
    top1_probability: FloatArray
    """Drafter's probability of its most likely token, after temperature."""
    entropy: FloatArray
    """Entropy of the drafter's distribution in nats."""
    margin: FloatArray
    """Difference of the two best perturbed logits: how nearly the draft would have been another token."""


@dataclass(frozen=True)
class RoundOutcome:
    """What a round gained and cost. Arrays are ``[B]``; times are seconds."""

    num_drafted: IntArray
    accepted_length: IntArray
    num_committed: IntArray
    """Tokens gained; accepted + 1 unless the request ended inside them."""
    draft_seconds: float
    verify_seconds: float
    catch_up_seconds: float
    host_seconds: float


class Controller(ABC):
    """Chooses each request's speculation length each round. Subclasses must decide; the rest is optional."""

    asks_every_level: bool = False
    """True: `keep_drafting` is called after every draft level (the engine then computes the level's confidences)."""

    @abstractmethod
    def decide(self, state: RoundState) -> Decision:
        """Choose lengths. The engine cuts each to the request's own maximum; a negative length is an error."""

    def keep_drafting(self, level: DraftLevel) -> BoolArray:
        """``[A]`` bool: which requests draft one token more. Every token drafted so far is verified in any case:
        dropping one after having seen it would change the output distribution in ``rejection`` mode."""
        return np.ones(len(level.requests), dtype=np.bool_)

    def observe(self, outcome: RoundOutcome) -> None:  # noqa: B027 - optional hook
        """Learn what the last decision led to."""
