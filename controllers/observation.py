"""The one state schema: named features of a round, and the running history behind them.

Used by environments, training, distilled models, guard and plugins alike. The functions work on whole arrays with what
NumPy and Numba both know, so that a controller in an engine and the compiled replay run the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .acceptance_rate import START_RATE
from .controller import FloatArray, IntArray
from .cost_table import CHUNK_STEP, CostTable, interpolate

MAX_DEPTH = 8
"""Depths whose acceptance has a feature of its own; deeper ones count as the last."""
DEPTH_DECAY = 0.95
"""Per round, of the pooled acceptance counts: a memory of about 20 rounds."""
RATE_DECAY = 0.98
"""Per round, of tokens and seconds: about 50 rounds."""


@dataclass(frozen=True)
class Feature:
    """One number of the observation."""

    name: str
    unit: str
    low: float
    high: float
    meaning: str


_COST_BATCHES = (1, 8, 32)
FEATURES: tuple[Feature, ...] = (
    Feature("decoding", "requests", 0, 4096, "requests that decode in this round"),
    Feature("prefilling", "requests", 0, 4096, "requests that hold a slot and are still in prefill"),
    Feature("log_waiting", "ln(1 + requests)", 0, 20, "requests in the queue"),
    Feature("arrivals_1s", "ln(1 + requests/s)", 0, 20, "arrival rate over the last second"),
    Feature("arrivals_10s", "ln(1 + requests/s)", 0, 20, "arrival rate over the last ten seconds"),
    Feature("kv_free", "share", 0, 1, "free part of the KV cache"),
    *(
        Feature(f"acceptance_{depth}", "share", 0, 1, f"verified drafts at depth {depth} that were accepted, pooled")
        for depth in range(1, MAX_DEPTH + 1)
    ),
    Feature("accepted_length", "tokens", 0, 255, "mean accepted length of a request that had drafts, pooled"),
    Feature("verified_length", "tokens", 0, 255, "mean drafted tokens sent to verification, pooled"),
    Feature("drafted_length", "tokens", 0, 255, "mean drafted tokens, pooled"),
    Feature("request_acceptance_mean", "share", 0, 1, "mean over requests of their own acceptance rate (0.7 unknown)"),
    Feature("request_acceptance_spread", "share", 0, 1, "standard deviation of the same"),
    Feature("first_chance_mean", "probability", 0, 1, "predicted acceptance of each first draft, mean"),
    Feature("first_chance_best", "probability", 0, 1, "the same, of the most promising request"),
    Feature("first_chance_spread", "probability", 0, 1, "standard deviation of the same"),
    Feature("temperature_mean", "1", 0, 100, "sampling temperature, mean"),
    Feature("greedy_share", "share", 0, 1, "requests at temperature 0"),
    Feature("lagging_share", "share", 0, 1, "requests whose drafter must catch up first"),
    Feature("log_lag_mean", "ln(1 + tokens)", 0, 20, "lag, mean of logarithms"),
    Feature("context_mean", "tokens / 1024", 0, 1024, "context length, mean"),
    Feature("context_longest", "tokens / 1024", 0, 1024, "context length, longest"),
    Feature("draft_cost", "plain rounds", 0, 100, "one draft level for all requests, over a round without speculation"),
    Feature("verify_cost", "plain rounds", 0, 100, "verifying one token more for every request, over the same"),
    Feature("verify_cost_4", "plain rounds", 0, 400, "verifying four tokens more for every request"),
    Feature("catch_up_cost", "plain rounds", 0, 1000, "bringing one drafter up to date with 64 tokens"),
    Feature("log_plain_seconds", "ln s", -20, 10, "seconds of a round without speculation"),
    *(
        Feature(f"{name}_at_{batch}", "plain rounds", 0, 100, f"{meaning} at batch {batch}: a code of the machine")
        for batch in _COST_BATCHES
        for name, meaning in (("draft_cost", "one draft level"), ("verify_cost", "one token more for every request"))
    ),
    Feature("gain", "1", 0, 255, "tokens per second over those of plain decoding at the same batch, running average"),
    Feature("last_length", "tokens", 0, 255, "longest speculation length of the last decision"),
    Feature("last_price", "1", 0, 100, "price of the last decision"),
)
"""Everything a controller may know of a round as a whole, in order."""
NUM_FEATURES = len(FEATURES)
FEATURE_NAMES = tuple(feature.name for feature in FEATURES)

_TOKENS, _PLAIN, _REQUESTS, _ACCEPTED, _VERIFIED, _DRAFTED, _LENGTH, _PRICE = range(2 * MAX_DEPTH, 2 * MAX_DEPTH + 8)
HISTORY_SIZE = 2 * MAX_DEPTH + 8


def new_history() -> FloatArray:
    """``[HISTORY_SIZE]`` before the first round: tries and successes per depth, then decayed sums.

    Starts with the weight of one round at plain speed, so that every ratio exists.
    """
    history = np.zeros(HISTORY_SIZE)
    history[_TOKENS] = 1.0
    history[_PLAIN] = 1.0
    return history


def update_history(
    history: FloatArray,
    drafted: IntArray,
    verified: IntArray,
    accepted: IntArray,
    tokens: int,
    plain_tokens: float,
    length: float,
    price: float,
) -> None:
    """Enter a round in place. ``[B]`` tokens per request; ``tokens`` committed in all; ``plain_tokens``: what plain
    decoding would have committed in the same time; ``length`` and ``price`` of the decision."""
    history[: 2 * MAX_DEPTH] *= DEPTH_DECAY
    for depth in range(int(verified.max()) if len(verified) else 0):
        at = min(depth, MAX_DEPTH - 1)
        history[at] += np.sum((verified > depth) & (accepted >= depth))
        history[MAX_DEPTH + at] += np.sum(accepted > depth)
    history[_TOKENS:_LENGTH] *= RATE_DECAY
    history[_TOKENS] += tokens
    history[_PLAIN] += plain_tokens
    history[_REQUESTS] += np.sum(drafted > 0)
    history[_ACCEPTED] += np.sum(accepted)
    history[_VERIFIED] += np.sum(verified)
    history[_DRAFTED] += np.sum(drafted)
    history[_LENGTH] = length
    history[_PRICE] = price


def gain_of(history: FloatArray) -> float:
    """Tokens per second over those of plain decoding, running average; 1 before the first round."""
    return history[_TOKENS] / history[_PLAIN]  # type: ignore[no-any-return]


def plain_round_seconds(costs: CostTable, batch: int, context: float) -> float:
    """Seconds of a round in which ``batch`` requests decode without speculation."""
    return interpolate(costs.verify, batch, 1.0, context) + costs.overhead[0] + batch * costs.overhead[1]  # type: ignore[no-any-return]


def write_features(
    out: FloatArray,
    context: IntArray,
    lag: IntArray,
    temperature: FloatArray,
    acceptance_rate: FloatArray,
    first_chance: FloatArray,
    running: int,
    waiting: int,
    kv_free: float,
    arrivals_1s: float,
    arrivals_10s: float,
    history: FloatArray,
    costs: CostTable,
) -> None:
    """Fill ``out`` ``[NUM_FEATURES]`` for ``B`` >= 1 decoding requests; per-request arrays are ``[B]``."""
    batch = len(context)
    longest = float(np.max(context))
    known = np.where(np.isnan(acceptance_rate), START_RATE, acceptance_rate)
    out[0] = batch
    out[1] = running - batch
    out[2] = np.log1p(waiting)
    out[3] = np.log1p(arrivals_1s)
    out[4] = np.log1p(arrivals_10s)
    out[5] = kv_free
    out[6 : 6 + MAX_DEPTH] = (history[MAX_DEPTH : 2 * MAX_DEPTH] + 0.5) / (history[:MAX_DEPTH] + 1.0)
    at = 6 + MAX_DEPTH
    per_draft = 1.0 / max(history[_REQUESTS], 1.0)
    out[at] = history[_ACCEPTED] * per_draft
    out[at + 1] = history[_VERIFIED] * per_draft
    out[at + 2] = history[_DRAFTED] * per_draft
    out[at + 3] = np.mean(known)
    out[at + 4] = np.std(known)
    out[at + 5] = np.mean(first_chance)
    out[at + 6] = np.max(first_chance)
    out[at + 7] = np.std(first_chance)
    out[at + 8] = np.mean(temperature)
    out[at + 9] = np.mean(temperature == 0)
    out[at + 10] = np.mean(lag > 1)
    out[at + 11] = np.mean(np.log1p(lag))
    out[at + 12] = np.mean(context) / 1024
    out[at + 13] = longest / 1024
    priced = min(batch, len(costs.verify) - 1)  # Beyond the table a batch costs what the largest one does.
    plain = plain_round_seconds(costs, priced, longest)
    verify = interpolate(costs.verify, priced, 1.0, longest)
    out[at + 14] = interpolate(costs.draft, priced, 1.0, longest) / plain
    out[at + 15] = (interpolate(costs.verify, priced, 2.0, longest) - verify) / plain
    out[at + 16] = (interpolate(costs.verify, priced, 5.0, longest) - verify) / plain
    out[at + 17] = interpolate(costs.catch_up, 1, 64 / CHUNK_STEP, longest) / plain
    out[at + 18] = np.log(plain)
    at += 19
    for number in range(3):
        own = min((1, 8, 32)[number], len(costs.verify) - 1)
        base = plain_round_seconds(costs, own, 256.0)
        out[at] = interpolate(costs.draft, own, 1.0, 256.0) / base
        out[at + 1] = (interpolate(costs.verify, own, 2.0, 256.0) - interpolate(costs.verify, own, 1.0, 256.0)) / base
        at += 2
    out[at] = gain_of(history)
    out[at + 1] = history[_LENGTH]
    out[at + 2] = history[_PRICE]
