"""Oracles: the optimum by brute force, with the true cost of the round."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from specpilot.controllers import CostSurface, RequestOracle, RoundState, UniformOracle
from specpilot.controllers.controller import IntArray
from specpilot.controllers.round_overhead import RoundOverhead
from specpilot.tests.support.rounds import compute_bound, memory_bound, outcome, round_state, surface


class Known:
    """A future in which request i accepts ``accepted[i]``."""

    def __init__(self, accepted: Sequence[int]) -> None:
        self.accepted = np.asarray(accepted)

    def accepted_length(self, request_ids: Sequence[str], num_generated: IntArray) -> IntArray:
        return self.accepted[: len(request_ids)]


def value(
    costs: CostSurface,
    lengths: Sequence[int],
    accepted: Sequence[int],
    state: RoundState,
    price: float,
    weights: Sequence[float] = (1.0,) * 4,
) -> float:
    tokens = sum(own * min(length, kept) for length, kept, own in zip(lengths, accepted, weights, strict=False))
    seconds = costs.round_seconds(lengths, state.context_length, state.lag, temperatures=state.temperature)
    return tokens - price * seconds


def random_round(seed: int, max_lag: int) -> tuple[CostSurface, list[int], RoundState, float]:
    """Costs with steps and kinks, a future of up to 3 tokens for up to 4 requests, and a price near break-even."""
    rng = np.random.default_rng(seed)
    draft, verify = np.sort(rng.uniform(0.2, 2.0, (9, 3)), axis=0), rng.uniform(0, 1.0, 40).cumsum()
    draft.sort(axis=1)
    costs = surface(
        lambda batch, tokens: float(draft[batch, tokens]),
        lambda batch, tokens: float(3 + verify[min(batch * tokens, 39)] * 0.7),
        lambda batch, tokens: 0.02 * batch * tokens + 0.1,
    )
    overhead = RoundOverhead(constant=0.5, per_level=0.2, per_verified_token=0.05, drafting=0.3)
    # Noise is shared out evenly, which is not exact: not both at a time.
    more = {"per_padded_token": 0.15, "per_idle_request": 0.05} if seed % 2 else {"per_noise_row": 0.01}
    batch = int(rng.integers(1, 5))
    state = round_state(batch, lag=rng.integers(0, max_lag + 1, batch), temperature=rng.integers(0, 2, batch))
    accepted = rng.integers(0, 4, batch).tolist()
    return replace(costs, overhead=replace(overhead, **more)), accepted, state, float(rng.uniform(0.1, 1.5))


@pytest.mark.parametrize("seed", range(30))
def test_the_request_oracle_finds_the_best_of_all_lengths(seed: int) -> None:
    costs, accepted, state, price = random_round(seed, max_lag=0)
    oracle = RequestOracle(Known(accepted), costs, 3, price)
    found = oracle.decide(state).num_speculative_tokens
    best = max(
        value(costs, lengths, accepted, state, price)
        for lengths in itertools.product(*(range(kept + 1) for kept in accepted))
    )
    assert value(costs, found.tolist(), accepted, state, price) == pytest.approx(best)


@pytest.mark.parametrize("max_lag", [0, 40])
def test_where_requests_tokens_count_differently_the_request_oracle_still_finds_the_best(max_lag: int) -> None:
    changed = 0
    for seed in range(40):
        costs, accepted, state, price = random_round(seed, max_lag)
        weights = np.random.default_rng(seed).uniform(0.5, 2.0, 4).tolist()
        named = dict(zip(state.request_ids, weights, strict=False))
        oracle, plain = (RequestOracle(Known(accepted), costs, 3, price, weights=own) for own in (named, None))
        found = oracle.decide(state).num_speculative_tokens
        best = max(
            value(costs, lengths, accepted, state, price, weights)
            for lengths in itertools.product(*(range(kept + 1) for kept in accepted))
        )
        assert value(costs, found.tolist(), accepted, state, price, weights) == pytest.approx(best), seed
        changed += found.tolist() != plain.decide(state).num_speculative_tokens.tolist()
    assert changed > 2


def test_weights_are_one_over_what_a_request_made_of_its_rounds() -> None:
    oracle = UniformOracle(Known([3, 0]), memory_bound(), 4)
    for _ in range(5):
        oracle.decide(round_state(2))
        oracle.observe(outcome([3, 3], [3, 0]))
    first, second = round_state(2).request_ids
    assert oracle.weights == pytest.approx({first: 2.5 / 4, second: 2.5})


@pytest.mark.parametrize("max_lag", [1, 40])
def test_where_drafters_lag_the_request_oracle_still_finds_the_best(max_lag: int) -> None:
    for seed in range(20):
        costs, accepted, state, price = random_round(seed, max_lag)
        found = RequestOracle(Known(accepted), costs, 3, price).decide(state).num_speculative_tokens
        best = max(
            value(costs, lengths, accepted, state, price)
            for lengths in itertools.product(*(range(kept + 1) for kept in accepted))
        )
        assert value(costs, found.tolist(), accepted, state, price) == pytest.approx(best), seed


@pytest.mark.parametrize("seed", range(20))
def test_the_uniform_oracle_finds_the_best_common_length(seed: int) -> None:
    costs, accepted, state, price = random_round(seed, max_lag=40)
    found = UniformOracle(Known(accepted), costs, 3, price).decide(state).num_speculative_tokens.tolist()
    batch = len(accepted)
    best = max(value(costs, [length] * batch, accepted, state, price) for length in range(4))
    assert len(set(found)) == 1
    assert value(costs, found, accepted, state, price) == pytest.approx(best)


def test_with_a_shortest_length_it_never_leaves_a_drafter_behind() -> None:
    oracle = UniformOracle(Known([0, 0]), compute_bound(), 4, price=100.0)
    assert oracle.decide(round_state(2)).num_speculative_tokens.tolist() == [0, 0]
    oracle.shortest = 1
    assert oracle.decide(round_state(2)).num_speculative_tokens.tolist() == [1, 1]
    nearly_done = round_state(2, max_num_speculative_tokens=[0, 6])
    assert oracle.decide(nearly_done).num_speculative_tokens.tolist() == [0, 1]


def test_no_oracle_exceeds_what_a_request_may_draft() -> None:
    state = round_state(2, max_num_speculative_tokens=[1, 6])
    for kind in (UniformOracle, RequestOracle):
        found = kind(Known([8, 8]), memory_bound(), 4, price=100.0).decide(state).num_speculative_tokens
        assert found.tolist() == [1, 4]


def test_the_request_oracle_drafts_what_will_be_accepted_where_it_is_cheap_and_nothing_where_it_is_dear() -> None:
    for costs, price, expected in ((memory_bound(), 100.0, [3, 0, 8]), (compute_bound(), 100.0, [0, 0, 0])):
        oracle = RequestOracle(Known([3, 0, 8]), costs, 8, price)
        assert oracle.decide(round_state(3)).num_speculative_tokens.tolist() == expected


def test_the_price_is_what_its_own_rounds_earned_and_plain_decoding_before() -> None:
    oracle = UniformOracle(Known([1, 1]), memory_bound(), 4)
    setting = oracle._costs.setting(round_state(2))
    assert oracle.price(setting) == pytest.approx(2 / memory_bound().round_seconds([0, 0], [64, 64], [0, 0]))
    oracle.decide(round_state(2))
    for _ in range(3):
        oracle.observe(outcome([1, 1], [1, 0]))
    assert oracle.price(setting) == pytest.approx(3.0)
    for _ in range(2000):
        oracle.observe(outcome([1, 1], [1, 1]))
    assert oracle.price(setting) == pytest.approx(4.0, rel=1e-3)


def test_impossible_parameters_are_refused() -> None:
    for options, message in (({"price": -1.0}, "price"), ({"price": float("nan")}, "price"), ({"memory": 0}, "memory")):
        with pytest.raises(ValueError, match=message):
            RequestOracle(Known([1]), memory_bound(), 4, **options)
    with pytest.raises(ValueError, match="max_num_speculative_tokens"):
        UniformOracle(Known([1]), memory_bound(), 0)
