"""Lengths planned before a round: as good as trying them all, the same for one request and for many, never too long."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import Action, FixedPolicy
from specpilot.controllers.price_rule import RoundSeconds, plan_lengths
from specpilot.controllers.round_overhead import padding
from specpilot.tests.support.priced import controller, play, random_predictor, random_state
from specpilot.tests.support.rounds import moderate


def drawn(rng: np.random.Generator, batch: int, longest: int, depth: int = 0) -> dict[str, Any]:
    """A round with ``depth`` levels drafted, by some of the requests; its costs and its chances."""
    level, more, verified = rng.uniform(0.05, 0.4), rng.uniform(0, 0.1), rng.uniform(0.01, 0.3)
    draft = level + more * np.arange(batch + 1)
    draft[0] = 0.0
    curve = 1.0 + verified * np.arange(batch * longest + 1)
    drafted = np.minimum(rng.integers(0, longest + 1, batch), depth)
    allowed = np.where(drafted == depth, rng.integers(depth, longest + 1, batch), drafted)
    most = np.asarray([0.1, 0.1, 0.05, 0.3, 0.05, 0.005, 0.02])
    rates = (most * [*rng.uniform(size=4), 1, 1, rng.uniform()]).tolist()
    return {
        "chance": rng.uniform(0.05, 0.99, (batch, longest)),
        "allowed": allowed,
        "drafted": drafted,
        "warm": (rng.random(batch) < 0.6) & (depth == 0),
        "noisy": rng.random(batch) < 0.5,
        "seconds": RoundSeconds(1.3, draft, curve, *rates),
        "spent": 1.3 + 0.2 * depth,
        "max_length": longest,
        "price": float(rng.choice([0.7, 1.0, 1.5])),
        "depth": depth,
    }


def speed(lengths: np.ndarray, own: dict[str, Any]) -> float:
    """Geometric mean of the requests' tokens per second that ``lengths`` promise, told anew."""
    costs, drafted = own["seconds"], own["drafted"]
    seconds = costs.stop * float((own["warm"] & (lengths == 0)).any())
    tokens = np.ones(len(lengths))
    for depth in range(int(lengths.max())):
        going, new = lengths > depth, (lengths > depth) & (drafted <= depth)
        if depth >= own["depth"] and new.any():
            seconds += costs.draft[new.sum()] + costs.per_level
        seconds += costs.noise * (new & own["noisy"]).sum()
        tokens[going] += own["chance"][going, : depth + 1].prod(axis=1)
    if lengths.any():
        seconds += costs.fixed * (own["depth"] == 0) + costs.curve[lengths.sum()] - costs.curve[0]
        seconds += costs.padded * float(padding(lengths))
    return float(np.exp(np.log(tokens).mean()) / (own["spent"] + own["price"] * seconds))


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(("batch", "longest"), [(1, 6), (2, 5), (3, 4), (4, 3)])
def test_no_other_lengths_promise_more_or_only_a_little(batch: int, longest: int, depth: int) -> None:
    rng, exact, drafted = np.random.default_rng(batch), 0, 0
    for _ in range(60):
        own = drawn(rng, batch, longest, depth)
        found = plan_lengths(**own)
        assert (found >= 0).all() and (found <= own["allowed"]).all()
        choices = product(*(range(int(most) + 1) for most in own["allowed"]))
        best = max(speed(np.asarray(lengths), own) for lengths in choices)
        reached = speed(found, own)
        assert reached > 0.97 * best
        exact += reached > best * (1 - 1e-9)
        drafted += int(found.sum())
    assert exact >= 45 and drafted > 20


@pytest.mark.parametrize("batch", [1, 6])
def test_a_plan_asks_nothing_and_verifies_all_it_drafts(batch: int) -> None:
    rng, drafted = np.random.default_rng(4), 0
    for _ in range(20):
        own, state = controller(FixedPolicy(Action(6, 1.0)), moderate()), random_state(batch, rng)
        lengths, made, verified = play(own, state, np.random.default_rng(0), 0.7)
        assert not own.asked_levels and not own.trims
        assert list(lengths) == list(made) == list(verified)
        drafted += sum(made)
    assert drafted > 20


@pytest.mark.parametrize("batch", [1, 6])
def test_a_higher_price_never_drafts_more_and_somewhere_less(batch: int) -> None:
    totals = []
    for price in (0.25, 0.5, 1.0, 2.0, 4.0):
        rng, total = np.random.default_rng(5), 0
        for _ in range(20):
            own = controller(FixedPolicy(Action(8, price)), moderate(), predictor=random_predictor(1))
            total += int(own.decide(random_state(batch, rng)).num_speculative_tokens.sum())
        totals.append(total)
    assert totals == sorted(totals, reverse=True) and totals[0] > 1.5 * totals[-1]


def test_requests_that_promise_more_draft_more() -> None:
    own, rng = drawn(np.random.default_rng(6), 2, 5), np.random.default_rng(7)
    for _ in range(30):
        chance = rng.uniform(0.05, 0.9, (1, 5))
        own |= {
            "chance": np.concatenate([chance, chance + 0.08]),
            "allowed": np.full(2, 5),
            "drafted": np.zeros(2, dtype=np.int64),
        }
        own |= {"warm": np.ones(2, bool), "noisy": np.zeros(2, bool)}
        low, high = plan_lengths(**own)
        assert high >= low
