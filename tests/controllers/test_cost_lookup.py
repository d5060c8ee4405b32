"""The lookup prices rounds as the cost surface does, at one context."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from specpilot.controllers.cost_lookup import CostLookup
from specpilot.controllers.round_overhead import RoundOverhead
from specpilot.tests.support.rounds import memory_bound, round_state, surface


@pytest.mark.parametrize("seed", range(20))
def test_a_round_costs_what_the_cost_surface_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = surface(
        lambda batch, tokens: 1 + 0.3 * batch * tokens**2,
        lambda batch, tokens: 5 + 0.1 * (batch * tokens) ** 1.5,
        lambda batch, tokens: 0.1 + 0.01 * batch * tokens,
    )
    deciding = ("per_asked_level", "per_asked_token", "planning", "per_planned_request")
    names = {name.name for name in fields(RoundOverhead)} - {*deciding, "verify_factor", "prefill_factor"}
    own = {name: float(rng.uniform(0, 0.2)) for name in sorted(names)}
    costs = replace(base, overhead=RoundOverhead(**own))
    batch = int(rng.integers(1, 8))
    state = round_state(batch, lag=rng.choice([0, 1, 30], batch), temperature=rng.integers(0, 2))
    lookup = CostLookup(costs, context_step=1)
    lengths = rng.integers(0, 6, (10, batch)) * rng.integers(0, 2, (10, 1))
    expected = [
        costs.round_seconds(own_lengths, state.context_length, state.lag, temperatures=state.temperature)
        for own_lengths in lengths
    ]
    np.testing.assert_allclose(lookup.round_seconds(lookup.setting(state), lengths), expected, rtol=1e-9)


def test_contexts_are_rounded_to_the_step_and_taken_from_the_longest_request() -> None:
    lookup = CostLookup(memory_bound(), context_step=64)
    for longest, expected in ((1, 0), (33, 0), (34, 64), (96, 64), (98, 128)):
        assert lookup.setting(round_state(2, context_length=[1, longest])).context == expected


def test_a_controller_that_is_asked_pays_for_it_at_every_level() -> None:
    costs = replace(memory_bound(), overhead=RoundOverhead(per_asked_level=0.5, per_asked_token=0.25))
    lookup = CostLookup(costs)
    assert lookup.setting(round_state(4)).per_level == 0
    asked = lookup.setting(round_state(4), asks_every_level=True)
    assert asked.per_level == 1.5
    free = lookup.draft(lookup.setting(round_state(4)))
    assert (lookup.draft(asked) - free).tolist() == pytest.approx([0, 1.5, 1.5, 1.5, 1.5])
    with pytest.raises(ValueError, match="context_step must be 1 or more"):
        CostLookup(costs, 0)
