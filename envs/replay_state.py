"""The arrays that a fleet of replayed engines lives in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..controllers.acceptance import AcceptancePredictor
from ..controllers.acceptance_history import HISTORY_DEPTHS, HISTORY_INPUTS
from ..controllers.observation import new_history
from .trace import Trace

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
WEIGHT_LENGTH = 4
"""Of the drafts by which requests are compared: about what pays on most machines."""


class Recording(NamedTuple):
    """A trace and what a predictor says of it. ``N`` requests, ``P`` start positions, drafts of up to ``K``.

    A token that comes out of the prefill (`Trace.tokens_from_prefill`) is here as if it belonged to the prompt.
    """

    prompt: IntArray
    """``[N]`` tokens."""
    output: IntArray
    """``[N]`` tokens."""
    limit: IntArray
    """``[N]`` ``max_tokens`` of the request: what the engine knows of its end."""
    first: IntArray
    """``[N]`` index of the first position."""
    weight: FloatArray
    """``[N]`` what a token of each request counts: `token_weights`."""
    temperature: FloatArray
    """``[N]``."""
    accepted: IntArray
    """``[P]`` accepted length of a draft of K from here."""
    chance: NDArray[np.float32]
    """``[P, K]`` predicted acceptance of the token at each depth, given those before it; ``[P, 0]`` without one."""
    following: NDArray[np.float32]
    """``[P, K]`` predicted acceptance of the next token, before it is drafted."""
    history_numbers: FloatArray
    """``[8, 6]`` the predictor's logistics by depth: `HistoryLogistics.numbers`."""
    carry: float
    """`AcceptancePredictor.carry`."""
    tells: bool
    """Whether the predictor reads anything of a level: without, nothing is learnt by a look."""

    @classmethod
    def of(cls, trace: Trace, predictor: AcceptancePredictor | None = None) -> Recording:
        """Evaluate ``predictor`` on every draft of ``trace``. Raises `ValueError` where it reads what has no record."""
        positions, longest = len(trace.accepted_length), trace.max_num_speculative_tokens
        chance = following = np.zeros((positions, 0), dtype=np.float32)
        numbers, carry, tells = np.zeros((HISTORY_DEPTHS, len(HISTORY_INPUTS) + 1)), 0.0, False
        if predictor is not None:
            confidence = trace.confidence
            if confidence is None:
                if predictor.level_features:
                    raise ValueError("the predictor reads confidences, the recording has none; use one without")
                confidence = np.zeros((positions, longest, 4), dtype=np.float32)
            temperature = trace.temperature[trace.request_of_position()][:, None]
            chance, following = predictor.level(confidence, temperature, np.arange(1, longest + 1)[None, :])
            numbers, carry, tells = predictor.history.numbers, predictor.carry, bool(predictor.level_features)
        given = trace.tokens_from_prefill
        return cls(
            trace.prompt_tokens.astype(np.int64) + given,
            trace.output_tokens.astype(np.int64) - given,
            trace.token_limit.astype(np.int64) - given,
            trace.first + given,
            token_weights(trace),
            trace.temperature.astype(np.float64),
            trace.accepted_length.astype(np.int64),
            np.ascontiguousarray(chance),
            np.ascontiguousarray(following),
            numbers,
            carry,
            tells,
        )


def token_weights(trace: Trace, length: int = WEIGHT_LENGTH) -> FloatArray:
    """``[N]`` mean tokens per round of all requests over each one's own, with drafts of ``length`` (`price_rule`)."""
    output, rounds = trace.output_tokens.astype(np.int64), np.zeros(len(trace), dtype=np.int64)
    done, active = np.full(len(trace), trace.tokens_from_prefill), np.arange(len(trace))
    while active.size:
        accepted = trace.accepted_length[trace.first[active] + done[active]].astype(np.int64)
        done[active] += np.minimum(accepted, length) + 1
        rounds[active] += 1
        active = active[done[active] < output[active]]
    weights: FloatArray = (output.sum() / max(rounds.sum(), 1)) * rounds / np.maximum(output, 1)
    return weights


class Schedule(NamedTuple):
    """What arrives at each of ``E`` engines, at most ``Q`` requests, in order."""

    arrival: FloatArray
    """``[E, Q]`` seconds; not read in closed loop."""
    record: IntArray
    """``[E, Q]`` which recorded request."""
    length: IntArray
    """``[E, Q]`` tokens to generate: the recorded output or less."""
    limit: IntArray
    """``[E, Q]`` ``max_tokens`` as the engine knows it."""
    count: IntArray  # type: ignore[assignment]
    """``[E]`` requests in the schedule."""
    concurrency: IntArray
    """``[E]`` closed loop: requests in the system at any time; 0: they come at their arrival times."""


class Fleet(NamedTuple):
    """State of ``E`` engines of ``S`` slots."""

    clock: FloatArray
    """``[E]`` seconds."""
    arrived: IntArray
    """``[E]`` requests that have come so far."""
    admitted: IntArray
    finished: IntArray
    running: IntArray
    """``[E]`` slots in use: always ``0 … running - 1``."""
    meter: FloatArray
    """``[E, 3]`` the two arrival rates and the time they are of."""
    request: IntArray
    """``[E, S]`` index into the schedule."""
    prefilled: IntArray
    """``[E, S]`` prompt tokens in the target's cache."""
    decoding: NDArray[np.bool_]
    """``[E, S]``."""
    generated: IntArray
    """``[E, S]`` tokens."""
    lag: IntArray
    rate: FloatArray
    """``[E, S]`` acceptance rate of the request; NaN before its first verified draft."""
    last_drafted: IntArray
    last_accepted: IntArray
    phase: IntArray
    """``[E]`` rounds since the last decision of one that is held for some rounds (`FleetConfig.hold`)."""
    held: IntArray
    """``[E, S]`` length that the last decision gave the request; -1: it has come since."""
    action: FloatArray
    """``[E, 3]`` what the last decision was: largest length, price, levels to look at."""
    history: FloatArray
    """``[E, HISTORY_SIZE]``."""
    prefill_seconds: FloatArray
    """``[E]`` of the step that is going on."""
    weight: FloatArray
    """``[E]`` requests in the system (running and waiting), integrated over seconds since it was last read."""
    seconds: FloatArray
    """``[E]`` since it was last read; idle time left out."""
    tokens: IntArray
    """``[E]`` committed since it was last read."""
    worth: FloatArray
    """``[E]`` the same, each times its request's `Recording.weight`."""
    start: FloatArray
    """``[E, Q]`` when each request got its first token."""
    finish: FloatArray
    """``[E, Q]`` when it ended; NaN until then."""

    @classmethod
    def new(cls, schedule: Schedule, num_slots: int) -> Fleet:
        """Idle engines at time 0."""
        engines, requests = schedule.arrival.shape

        def zeros(*shape: int) -> FloatArray:
            return np.zeros((engines, *shape))

        def integers(*shape: int) -> IntArray:
            return np.zeros((engines, *shape), dtype=np.int64)

        slots = num_slots
        return cls(
            clock=zeros(),
            arrived=integers(),
            admitted=integers(),
            finished=integers(),
            running=integers(),
            meter=zeros(3),
            request=integers(slots),
            prefilled=integers(slots),
            decoding=np.zeros((engines, slots), dtype=np.bool_),
            generated=integers(slots),
            lag=integers(slots),
            rate=np.full((engines, slots), np.nan),
            last_drafted=integers(slots),
            last_accepted=integers(slots),
            phase=integers(),
            held=integers(slots),
            action=zeros(3),
            history=np.tile(new_history(), (engines, 1)),
            prefill_seconds=zeros(),
            weight=zeros(),
            seconds=zeros(),
            tokens=integers(),
            worth=zeros(),
            start=np.full((engines, requests), np.nan),
            finish=np.full((engines, requests), np.nan),
        )
