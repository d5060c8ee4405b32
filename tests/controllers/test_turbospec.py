"""The goodput rule: the best uniform length under its own model, off where verification is compute-bound."""

from __future__ import annotations

import numpy as np
import pytest

from specpilot.controllers import CostSurface, TurboSpecController
from specpilot.tests.support.rounds import compute_bound, memory_bound, outcome, round_state, surface


def taught(controller: TurboSpecController, accepted: list[int], drafted: int = 8, rounds: int = 200) -> None:
    for _ in range(rounds):
        controller.decide(round_state(len(accepted)))
        controller.observe(outcome([drafted] * len(accepted), accepted))


def brute_force(costs: CostSurface, rates: np.ndarray, maximum: int, contexts: np.ndarray) -> int:
    batch = len(rates)
    worth = [
        sum(sum(rate**depth for depth in range(length + 1)) for rate in rates)
        / costs.round_seconds([length] * batch, contexts, [0] * batch)
        for length in range(maximum + 1)
    ]
    return int(np.argmax(worth))


@pytest.mark.parametrize("seed", range(20))
def test_it_picks_the_length_of_highest_goodput(seed: int) -> None:
    rng = np.random.default_rng(seed)
    per_level, base, per_token = rng.uniform(0.1, 3), rng.uniform(1, 20), rng.choice([0.01, 0.3, 1.0])
    costs = surface(lambda batch, tokens: per_level, lambda batch, tokens: base + per_token * batch * tokens)
    controller = TurboSpecController(costs, 8)
    batch = int(rng.integers(1, 6))
    taught(controller, rng.integers(0, 9, batch).tolist(), rounds=30)
    state = round_state(batch)
    rates = controller.rates(state.request_ids)
    found = controller.decide(state).num_speculative_tokens
    assert found.tolist() == [brute_force(costs, rates, 8, state.context_length)] * batch


def test_a_request_draws_on_its_own_acceptance_and_a_new_one_on_that_of_all() -> None:
    controller = TurboSpecController(memory_bound(), 8)
    taught(controller, [3, 1])
    rates = controller.rates(("r0", "r1", "new"))
    assert rates[:2] == pytest.approx([3 / 4, 1 / 2])
    assert rates[2] == pytest.approx(4 / 6)


def test_a_draft_that_was_accepted_whole_shows_no_rejection() -> None:
    controller = TurboSpecController(memory_bound(), 8)
    taught(controller, [8])
    assert controller.rates(("r0",)) == pytest.approx([1.0])


def test_it_speculates_where_verification_is_memory_bound_and_not_where_it_is_compute_bound() -> None:
    for costs, expected in ((memory_bound(), 8), (compute_bound(), 0)):
        controller = TurboSpecController(costs, 8)
        taught(controller, [7, 7, 7, 7])
        assert controller.decide(round_state(4)).num_speculative_tokens.tolist() == [expected] * 4


def test_once_off_it_stays_off_without_a_probe_and_probes_at_the_interval_with_one() -> None:
    for interval, expected in ((None, [0] * 9), (3, [0, 0, 0, 2, 0, 0, 0, 2, 0])):
        controller = TurboSpecController(compute_bound(), 8, probe_interval=interval, probe_length=2)
        found = []
        for _ in range(9):
            length = int(controller.decide(round_state(1)).num_speculative_tokens[0])
            controller.observe(outcome([length], [0]))
            found.append(length)
        assert found == expected


def test_a_probe_brings_it_back_when_drafts_are_accepted_again() -> None:
    controller = TurboSpecController(memory_bound(), 8, weight=0.5, probe_interval=2, probe_length=2)
    taught(controller, [0], rounds=20)
    assert controller.goodput(round_state(1)).argmax() == 0
    for _ in range(12):
        length = int(controller.decide(round_state(1)).num_speculative_tokens[0])
        controller.observe(outcome([length], [length]))
    assert length > 2


def test_a_request_that_may_draft_little_counts_for_little() -> None:
    costs = surface(lambda batch, tokens: 1.5, lambda batch, tokens: 4.0)
    controller = TurboSpecController(costs, 8, initial_rate=0.9)
    free = controller.goodput(round_state(2))
    cut = controller.goodput(round_state(2, max_num_speculative_tokens=[1, 8]))
    assert cut[:2] == pytest.approx(free[:2]) and (cut[2:] < free[2:]).all()
    none = controller.goodput(round_state(2, max_num_speculative_tokens=[0, 0]))
    assert none == pytest.approx(np.full(9, none[0]))


def test_impossible_parameters_are_refused() -> None:
    for options, message in (({"weight": 0.0}, "weight"), ({"initial_rate": 1.5}, "initial_rate")):
        with pytest.raises(ValueError, match=message):
            TurboSpecController(memory_bound(), 8, **options)
    with pytest.raises(ValueError, match="probe_interval must be 1 or more"):
        TurboSpecController(memory_bound(), 8, probe_interval=0)
    with pytest.raises(ValueError, match="max_num_speculative_tokens"):
        TurboSpecController(memory_bound(), 0)
