"""Priced controllers of every kind, with random weights, on cost surfaces of known seconds."""

from __future__ import annotations

from typing import Any

import numpy as np

from specpilot.controllers import (
    LEVEL_FEATURES,
    AcceptancePredictor,
    Action,
    Controller,
    CostSurface,
    DraftLevel,
    FixedPolicy,
    MlpPolicy,
    Policy,
    PricedController,
    RoundOutcome,
    RoundState,
    TreePolicy,
)
from specpilot.controllers.acceptance import LEVEL_INPUTS
from specpilot.controllers.acceptance_history import HISTORY_DEPTHS, HISTORY_INPUTS
from specpilot.controllers.policies import factored_tiers

from .rounds import memory_bound, round_state

LENGTHS, PRICES = (0, 2, 4, 8), (0.5, 1.0, 2.0)


def random_predictor(seed: int = 0, hidden: int = 4) -> AcceptancePredictor:
    """Chances that depend on everything."""
    rng = np.random.default_rng(seed)
    return AcceptancePredictor(
        {
            "hidden_weight": rng.normal(size=(len(LEVEL_INPUTS), hidden)) * 0.3,
            "hidden_bias": rng.normal(size=hidden),
            "output_weight": rng.normal(size=(hidden, 2)),
            "output_bias": rng.normal(size=2) + 1,
            "history_weight": rng.normal(size=(HISTORY_DEPTHS, len(HISTORY_INPUTS))),
            "history_bias": rng.normal(size=HISTORY_DEPTHS) + 1,
            "carry": [0.6],
        }
    )


def random_tree(seed: int = 0, num_splits: int = 12) -> TreePolicy:
    """Splits of random features at plausible thresholds; a leaf for every tier, more or less."""
    rng = np.random.default_rng(seed)
    names = ["decoding", "acceptance_1", "gain", "first_chance_mean", "log_lag_mean", "context_longest", "verify_cost"]
    tiers = factored_tiers(LENGTHS, PRICES)
    feature, left, right = [-1], [0], [0]
    for _ in range(num_splits):
        node = int(rng.choice([index for index, own in enumerate(feature) if own < 0]))
        feature[node] = int(rng.integers(len(names)))
        left[node], right[node] = len(feature), len(feature) + 1
        feature, left, right = [*feature, -1, -1], [*left, 0, 0], [*right, 0, 0]
    threshold = rng.uniform(0, 1, len(feature)).round(2)
    return TreePolicy(
        names, tiers, feature, threshold.tolist(), left, right, rng.integers(0, 12, len(feature)).tolist()
    )


def random_mlp(seed: int = 0, names: tuple[str, ...] = ("decoding", "gain", "kv_free"), hidden: int = 5) -> MlpPolicy:
    """Two hidden layers, a head for lengths and one for prices."""
    rng = np.random.default_rng(seed)
    sizes = (len(names), hidden, hidden, len(LENGTHS) + len(PRICES))
    layers = [(rng.normal(size=(sizes[n + 1], sizes[n])), rng.normal(size=sizes[n + 1])) for n in range(3)]
    mean, scale = rng.normal(size=len(names)), rng.uniform(0.5, 2, len(names))
    tiers = factored_tiers(LENGTHS, PRICES)
    return MlpPolicy(names, tiers, (len(LENGTHS), len(PRICES)), mean, scale, 10.0, layers)


def controller(policy: Policy | None = None, surface: CostSurface | None = None, **settings: Any) -> PricedController:
    """A priced controller for small batches and contexts, so that it is made in a moment."""
    settings = {"predictor": random_predictor(), "max_batch": 8, "max_context": 96} | settings
    predictor = settings.pop("predictor")
    return PricedController(policy or FixedPolicy(Action(8, 1.0, 8)), predictor, surface or memory_bound(), **settings)


def random_state(batch: int, rng: np.random.Generator) -> RoundState:
    """Requests that differ in everything."""
    return round_state(
        batch,
        context_length=rng.integers(20, 120, batch),
        lag=rng.choice([0, 1, 1, 7, 40], batch),
        tokens_left=rng.integers(1, 60, batch),
        max_num_speculative_tokens=rng.integers(0, 9, batch),
        acceptance_rate=rng.choice([np.nan, 0.1, 0.6, 0.9], batch),
        temperature=rng.choice([0.0, 0.6, 1.0], batch),
        running=batch + int(rng.integers(3)),
        waiting=int(rng.integers(5)),
        kv_free=float(rng.random()),
        arrival_rates=(float(rng.random() * 9), float(rng.random())),
    )


def random_level(depth: int, requests: np.ndarray, rng: np.random.Generator, sure: float = 0.5) -> DraftLevel:
    """Confidences of ``requests``; ``sure``: where they lie."""
    count = len(requests)
    top1 = np.clip(rng.normal(sure, 0.2, count), 0.01, 0.99)
    return DraftLevel(
        depth, requests, top1, 2 * (1 - top1), 8 * top1, rng.choice([-1.0, 0.0, 1.0], count, p=[0.1, 0.3, 0.6])
    )


def play(own: Controller, state: RoundState, rng: np.random.Generator, sure: float = 0.5) -> tuple[list[int], ...]:
    """One round as the engine plays it: lengths, drafted and verified tokens. All answers depend on ``rng`` alone."""
    batch = len(state.request_ids)
    confidences = [random_level(depth, np.arange(batch), rng, sure) for depth in range(1, 9)]
    agreed = rng.integers(0, 9, batch)
    lengths = np.minimum(own.decide(state).num_speculative_tokens, state.max_num_speculative_tokens)
    now, drafted, active = lengths.copy(), np.zeros(batch, dtype=np.int64), np.flatnonzero(lengths)
    for depth in range(1, int(lengths.max()) + 1):
        if not len(active):
            break
        drafted[active] = depth
        if depth > own.asked_levels:
            active = active[now[active] > depth]
            continue
        whole, asked = confidences[depth - 1], active if own.trims else active[lengths[active] > depth]
        if len(asked):
            told = DraftLevel(depth, asked, *(getattr(whole, name)[asked] for name in LEVEL_FEATURES))
            now[asked] = np.minimum(own.new_lengths(told), lengths[asked])
        active = active[now[active] > depth]
    verified = own.verify_lengths(drafted) if own.trims and drafted.any() else drafted
    kept = np.minimum(verified, agreed)
    own.observe(RoundOutcome(drafted, verified, kept, kept + 1, 0.004, 0.006, 0.001, 0.001))
    return lengths.tolist(), drafted.tolist(), verified.tolist()
