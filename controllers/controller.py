"""The boundary between an engine and whatever chooses the speculation: state in, decision out, outcome back.

Everything per request is an array over the requests that decode in this round, in the same order in all four classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

EVERY_LEVEL = 255
"""Of `Controller.asked_levels`: no draft is longer."""
LEVEL_FEATURES = ("top1_probability", "entropy", "margin", "agreement")
"""What a `DraftLevel` tells about each drafted token, in the order of a recording's confidence."""


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
    """Exponential average over the request's drafted tokens whose fate was seen (`acceptance_rate.next_rate`); NaN
    before its first draft was verified."""
    temperature: FloatArray
    tokens_left: IntArray
    """Tokens the request may still generate (``max_tokens``); it may end before."""
    running: int
    """Requests that hold a slot, those in prefill included."""
    waiting: int
    """Requests in the queue."""
    kv_free: float
    """Share of the cache's tokens that is free, 0 … 1."""
    arrival_rates: tuple[float, float] = (0.0, 0.0)
    """Requests per second that arrived, exponentially weighted over the last second and the last ten."""


class Looks(Protocol):
    """Answers after the first draft levels of one round, given to the engine with the decision.

    They stand in for `Controller.new_lengths` and `Controller.verify_lengths`, and spare the engine the detour: between
    two levels of a small drafter most of what an answer takes is code that is no longer in the processor's caches.
    """

    levels: int
    """After how many of the first levels `after` is called."""
    trims: bool
    """Whether `verified` is called; may change with every answer."""

    def after(self, depth: int, requests: IntArray, margin: FloatArray, agreement: FloatArray) -> IntArray:
        """See `Controller.new_lengths`; the arguments are those of a `DraftLevel`."""

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `Controller.verify_lengths`."""


@dataclass(frozen=True)
class Decision:
    """What to do in a round."""

    num_speculative_tokens: IntArray
    """``[B]`` speculation length per request, 0 … ``max_num_speculative_tokens`` of the engine; 0 turns it off."""
    looks: Looks | None = None
    """Who is asked between the levels; None: the controller. An engine may ask the controller all the same."""


@dataclass(frozen=True)
class DraftLevel:
    """What is known after a draft level. ``A`` of the ``B`` requests; arrays are ``[A]``.

    The requests are those that drafted at this level and may go on, as far as was decided before the round; where the
    controller trims (`Controller.trims`) and verification is ``coupled`` also the others, whose answer then does not
    matter. A feature that is not among `Controller.level_features` may be NaN.
    """

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
    agreement: FloatArray
    """1 where the drafted token is the one that followed the last earlier occurrence of the 4, 3 or 2 tokens before it
    (the longest that occurred); -1 where it is another; 0 where they did not occur before. The tokens before it may be
    drafts; the occurrence and the token that followed it are looked for in the committed text alone."""

    def going_on(self, keep: BoolArray) -> IntArray:
        """``[A]`` an answer for `Controller.new_lengths`: on to what was decided where ``keep`` ``[A]``, else stop."""
        return np.where(keep, EVERY_LEVEL, self.depth)


@dataclass(frozen=True)
class RoundOutcome:
    """What a round gained and cost. Arrays are ``[B]``; times are seconds."""

    num_drafted: IntArray
    num_verified: IntArray
    """Drafted tokens that were sent to verification: all, unless the controller trimmed."""
    accepted_length: IntArray
    num_committed: IntArray
    """Tokens gained; accepted + 1 unless the request ended inside them."""
    draft_seconds: float
    verify_seconds: float
    catch_up_seconds: float
    host_seconds: float
    is_timed: bool = True
    """False: other work, such as prompts, is in the seconds and cannot be told from them."""


class Controller(ABC):
    """Chooses each request's speculation length each round. Subclasses must decide; the rest is optional."""

    asked_levels: int = 0
    """After how many of the first draft levels `new_lengths` is called (the engine then computes their confidences)."""
    level_features: Collection[str] = LEVEL_FEATURES
    """Those of `LEVEL_FEATURES` that `new_lengths` reads: what is not asked for need not be computed."""
    plans: bool = False
    """True: the last decision planned lengths by a cost table, which replay charges (`RoundOverhead.planning`)."""
    trims: bool = False
    """True: `verify_lengths` is called between drafting and verification."""

    @abstractmethod
    def decide(self, state: RoundState) -> Decision:
        """Choose lengths. The engine cuts each to the request's own maximum; a negative length is an error."""

    def new_lengths(self, level: DraftLevel) -> IntArray:
        """``[A]`` how many tokens each draft is to have now, ``level.depth`` (stop) or more.

        More than was decided counts as that.
        """
        return np.full(len(level.requests), EVERY_LEVEL)

    def verify_lengths(self, num_drafted: IntArray) -> IntArray:
        """``[B]`` how many of each request's ``num_drafted`` tokens to verify, 0 … ``num_drafted``.

        Asked only in ``coupled`` mode, where the text does not depend on what is verified, and only in rounds that
        drafted. In ``rejection`` mode every drafted token is verified: dropping one after having seen it would change
        the output distribution.
        """
        return num_drafted

    def observe(self, outcome: RoundOutcome) -> None:  # noqa: B027 - optional hook
        """Learn what the last decision led to."""
