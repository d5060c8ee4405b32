"""Looks at drafts while they are drafted, compiled: what a level tells, and the plan anew. For controllers and replay.

In a process in which passes of models have emptied the caches, a call of NumPy takes several microseconds; a look would
take a hundred of them. Arrays are over the round's ``B`` requests, or over the ``A`` that are asked about.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .acceptance_history import LOWEST_RATE
from .acceptance_table import DEPTHS
from .compiled import compiled, idle_requests, interpolate, plain_round_seconds, plan_lengths, step_of, verify_curve
from .controller import BoolArray, FloatArray, IntArray
from .cost_table import CostTable
from .price_rule import (
    ANSWER,
    ASKED,
    ASKING,
    DRAFTING,
    IDLE,
    LEVEL,
    NOISE,
    NOISY_DRAFTING,
    PADDED,
    REQUEST_LEVEL,
    VERIFIED,
    RoundSeconds,
)


class Drafting(NamedTuple):
    """A round that is being drafted; its arrays change with every look."""

    prior: FloatArray
    """``[B, D]`` chances by depth, from each request's history."""
    chance: FloatArray
    """``[B, D]`` the same with what the looks have told; starts as a copy of ``prior``."""
    noisy: BoolArray
    """``[B]`` who samples."""
    bound: IntArray
    """``[B]`` most tokens; 0: sits this round out."""
    length: IntArray
    """``[B]`` tokens that each is to draft, as things stand; starts as a copy of ``bound``."""
    planned: IntArray
    """``[B]`` tokens that each is to verify, as things stand."""
    spent: FloatArray
    """``[1]`` seconds of the round so far, with verification of no drafts."""
    trims: BoolArray
    """``[1]`` whether fewer tokens shall be verified than are drafted, by the last look."""


@compiled
def log_odds(chance: float) -> float:
    """Of a chance, which is kept away from 0 and 1."""
    inside = min(max(chance, LOWEST_RATE), 1 - LOWEST_RATE)
    return math.log(inside / (1 - inside))


@compiled
def history_chances(
    numbers: FloatArray, acceptance_rate: FloatArray, whole: IntArray, temperature: FloatArray
) -> FloatArray:
    """``[B, D]`` by depth, as `HistoryLogistics.chances`; ``numbers`` are its first ``D`` `numbers`, ``whole`` ``[B]``
    0 or 1."""
    found = np.empty((len(acceptance_rate), len(numbers)))
    for row in range(len(found)):
        known = not np.isnan(acceptance_rate[row])
        odds = log_odds(acceptance_rate[row]) if known else 0.0
        for depth in range(len(numbers)):
            own = numbers[depth]
            score = own[0] * odds + own[2] * whole[row] + own[3] * temperature[row] + own[5]
            if not known:
                score += own[1]
            if temperature[row] == 0:
                score += own[4]
            found[row, depth] = 1.0 / (1.0 + math.exp(-score))
    return found


@compiled
def state_chances(
    numbers: FloatArray, acceptance_rate: FloatArray, drafted: IntArray, accepted: IntArray, temperature: FloatArray
) -> FloatArray:
    """`history_chances`; ``drafted`` and ``accepted`` ``[B]`` tokens of each request's last round."""
    whole = np.empty(len(drafted), dtype=np.int64)
    for row in range(len(drafted)):
        whole[row] = drafted[row] > 0 and accepted[row] == drafted[row]
    return history_chances(numbers, acceptance_rate, whole, temperature)


@compiled
def round_prices(
    costs: CostTable, requests: int, longest: float, max_length: int, asks: bool, samples: bool
) -> RoundSeconds:
    """What a round of so many ``requests`` can cost, its longest context being ``longest`` tokens.

    ``asks``: in a round with looks; ``samples``: a request has a temperature. More requests than the table knows cost
    what the most that it knows do.
    """
    batch, work = min(requests, len(costs.verify) - 1), costs.overhead
    draft, verify = np.zeros(requests + 1), np.empty(costs.verify.shape[1])
    for count in range(1, requests + 1):
        drafting = batch if costs.drafts_whole_batch else min(count, batch)
        draft[count] = interpolate(costs.draft, drafting, 1.0, longest) + work[REQUEST_LEVEL] * count
        draft[count] += work[IDLE] * idle_requests(count, requests)
    for tokens in range(len(verify)):
        verify[tokens] = interpolate(costs.verify, batch, float(tokens), longest)
    most = requests * max_length
    curve = verify_curve(verify, batch, most) + work[VERIFIED] * np.arange(most + 1)
    plain, stop = plain_round_seconds(costs, batch, longest), interpolate(costs.catch_up, 1, 1.0, longest)
    fixed = work[DRAFTING] + asks * work[ASKING] + samples * work[NOISY_DRAFTING]
    per_level, noise = work[LEVEL], work[NOISE]
    return RoundSeconds(plain, draft, curve, fixed, per_level, noise, stop, work[ASKED], work[ANSWER], work[PADDED])


@compiled
def open_round(
    costs: CostTable,
    numbers: FloatArray,
    acceptance_rate: FloatArray,
    last_drafted: IntArray,
    last_accepted: IntArray,
    temperature: FloatArray,
    lag: IntArray,
    context: IntArray,
    allowed: IntArray,
    max_length: int,
    price: float,
    looks: int,
    plans: bool,
) -> tuple[Drafting, RoundSeconds]:
    """A round before its first level: each request's plan, and what it drafts at most (``bound``).

    Arrays are ``[B]`` as of `RoundState`; ``allowed``: most tokens; ``numbers`` as of `state_chances`. ``plans``: False
    where ``allowed`` is what was given to each and stays. In a round with looks those that draft may draft all that is
    allowed: the looks say when to stop.
    """
    batch = len(allowed)
    noisy, none = temperature > 0, np.zeros(batch, dtype=np.int64)
    seconds = round_prices(costs, batch, float(context.max()), max_length, looks > 0, bool(noisy.any()))
    prior = state_chances(numbers, acceptance_rate, last_drafted, last_accepted, temperature)
    spent = seconds.plain + seconds.noise * np.sum(noisy)
    bound = np.minimum(np.maximum(allowed, 0), max_length)
    planned = bound
    if plans:
        planned = plan_lengths(prior, allowed, none, lag <= 1, noisy, seconds, spent, max_length, price, 0)
        bound = np.where(planned > 0, bound, 0) if looks > 0 else planned
    begun, trims = np.array([spent + seconds.fixed]), np.zeros(1, dtype=np.bool_)
    return Drafting(prior, prior.copy(), noisy, bound, bound.copy(), planned.copy(), begun, trims), seconds


@compiled
def plan_round(
    draft: FloatArray,
    verify: FloatArray,
    catch_up: FloatArray,
    prefill: FloatArray,
    overhead: FloatArray,
    drafts_whole_batch: bool,
    numbers: FloatArray,
    acceptance_rate: FloatArray,
    last_drafted: IntArray,
    last_accepted: IntArray,
    temperature: FloatArray,
    lag: IntArray,
    context: IntArray,
    allowed: IntArray,
    max_length: int,
    price: float,
) -> IntArray:
    """``[B]`` lengths of a round without looks: `open_round`.

    The fields of `CostTable` come one by one, and nothing but the lengths goes back: handing over named tuples takes
    longer than the plan.
    """
    costs = CostTable(draft, verify, catch_up, prefill, overhead, drafts_whole_batch)
    own = (acceptance_rate, last_drafted, last_accepted, temperature, lag, context, allowed)
    drafting, _ = open_round(costs, numbers, *own, max_length, price, 0, True)
    return drafting.bound


@compiled
def look_up(
    chances: NDArray[np.float32], rows: IntArray, margin: FloatArray, agreement: FloatArray, depth: int
) -> NDArray[np.float32]:
    """``[A, 2]`` as `AcceptanceTable.level`; ``rows`` ``[A]``. NaN where margin or agreement is."""
    found = np.empty((len(rows), 2), dtype=np.float32)
    for at in range(len(rows)):
        if np.isnan(margin[at]) or np.isnan(agreement[at]):
            found[at] = np.nan
        else:
            column = min(max(int(agreement[at] + 1.5), 0), 2)  # Nothing checks the bounds of compiled code.
            found[at] = chances[rows[at], min(depth, DEPTHS) - 1, column, step_of(margin[at])]
    return found


@compiled
def learn(drafting: Drafting, requests: IntArray, told: NDArray[np.float32], depth: int, carry: float) -> None:
    """Enter what level ``depth`` tells of ``requests`` ``[A]`` into their chances.

    ``told`` ``[A, 2]``: the chance that the token is accepted, and the next one then. What the next one's says beyond
    the request's history counts for those behind it too, in log odds, each time by a factor of ``carry`` less.
    """
    prior, chance = drafting.prior, drafting.chance
    depths = chance.shape[1]
    for at in range(len(requests)):
        own = requests[at]
        chance[own, min(depth, depths) - 1] = told[at, 0]
        if depth < depths:
            chance[own, depth] = told[at, 1]
            news = log_odds(told[at, 1]) - log_odds(prior[own, depth])
            for further in range(depth + 1, depths):
                news *= carry
                chance[own, further] = 1 / (1 + math.exp(-log_odds(prior[own, further]) - news))


@compiled
def look(
    drafting: Drafting,
    requests: IntArray,
    told: NDArray[np.float32],
    depth: int,
    carry: float,
    seconds: RoundSeconds,
    max_length: int,
    price: float,
) -> IntArray:
    """``[A]`` new lengths of ``requests`` after level ``depth``: `learn`, and `price_rule.plan_lengths` anew."""
    learn(drafting, requests, told, depth, carry)
    length, spent = drafting.length, seconds.per_level + seconds.look + seconds.answer * len(requests)
    at_level: int = 0
    for own in range(len(length)):
        if length[own] >= depth:
            at_level += 1
            spent += seconds.noise * drafting.noisy[own]
    drafting.spent[0] += spent + seconds.draft[at_level]
    drafted = np.minimum(length, depth)
    allowed = drafted.copy()
    allowed[requests] = drafting.bound[requests]
    planned = plan_lengths(
        drafting.chance,
        allowed,
        drafted,
        np.zeros(len(length), dtype=np.bool_),
        drafting.noisy,
        seconds,
        drafting.spent[0],
        max_length,
        price,
        depth,
    )
    drafting.planned[:] = planned
    length[requests] = np.maximum(planned[requests], depth)
    drafting.trims[0] = np.any(planned < length)
    return length[requests]


@compiled
def look_by_table(
    depth: int,
    requests: IntArray,
    margin: FloatArray,
    agreement: FloatArray,
    chances: NDArray[np.float32],
    rows: IntArray,
    carry: float,
    max_length: int,
    price: float,
    prior: FloatArray,
    chance: FloatArray,
    noisy: BoolArray,
    bound: IntArray,
    length: IntArray,
    planned: IntArray,
    spent: FloatArray,
    trims: BoolArray,
    plain: float,
    draft: FloatArray,
    curve: FloatArray,
    fixed: float,
    per_level: float,
    noise: float,
    stop: float,
    look_seconds: float,
    answer: float,
    padded: float,
) -> IntArray:
    """`look` with `look_up`; ``rows`` ``[B]``. Returns none where margin or agreement is NaN.

    The fields of `Drafting`, from ``prior`` on, and of `RoundSeconds`, from ``plain`` on, come one by one:
    handing over a named tuple takes longer.
    """
    told = look_up(chances, rows[requests], margin, agreement, depth)
    if np.isnan(np.sum(told)):
        return requests[:0]
    drafting = Drafting(prior, chance, noisy, bound, length, planned, spent, trims)
    seconds = RoundSeconds(plain, draft, curve, fixed, per_level, noise, stop, look_seconds, answer, padded)
    return look(drafting, requests, told, depth, carry, seconds, max_length, price)
