"""The priced controller: its choices are those of the price rule, and move the way a price and a machine say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specpilot.controllers import (
    AcceptancePredictor,
    Action,
    Controller,
    Decision,
    DraftLevel,
    FixedPolicy,
    MissingFeatureError,
    PricedController,
    RoundState,
)
from specpilot.controllers.cost_table import CHUNK_STEP, interpolate
from specpilot.controllers.price_rule import (
    choose_going,
    choose_starters,
    choose_verified,
    descending,
    request_weights,
    verify_curve,
)
from specpilot.tests.support.priced import controller, play, random_level, random_mlp, random_state, random_tree
from specpilot.tests.support.rounds import compute_bound, memory_bound, moderate, outcome, round_state


class ByTheRule(Controller):
    """The functions of `price_rule` one after the other, for what ``model`` has chosen as its action."""

    asks_every_level = trims = True

    def __init__(self, model: PricedController) -> None:
        self.model, self.costs = model, model.costs

    def decide(self, state: RoundState) -> Decision:
        costs, requests, gain = self.costs, len(state.request_ids), self.model.history[16] / self.model.history[17]
        batch, longest = min(requests, costs.max_batch), float(state.context_length.max())
        action = self.model.policy.act(np.zeros(0))
        work = costs.overhead
        plain = interpolate(costs.verify, batch, 1.0, longest) + work[0] + batch * work[1]
        self.worth = action.price * gain * batch / plain
        counts = np.arange(requests + 1)
        level = [interpolate(costs.draft, min(int(n), costs.max_batch), 1.0, longest) for n in counts]
        self.draft = np.asarray(level) + (work[3] + work[6]) * counts
        verify = np.asarray([interpolate(costs.verify, batch, float(n), longest) for n in range(costs.verify.shape[1])])
        self.curve = verify_curve(verify, batch, requests * action.max_length)
        self.curve = self.curve + work[4] * np.arange(len(self.curve))
        self.per_level = work[2] + work[5]
        self.state, self.survival, self.planned = state, np.ones(requests), 0
        self.survivals = np.zeros((requests, action.max_length))
        chances = self.model.predictor.history.of_state(state)
        chance, weight = chances[:, 0], request_weights(chances, action.max_length)
        self.weight = weight
        allowed = np.minimum(state.max_num_speculative_tokens, self.model.maximum)
        able = np.flatnonzero(allowed > 0)
        behind = np.zeros(requests)
        for row in np.flatnonzero(state.lag > 1):
            seconds = interpolate(costs.catch_up, 1, max(state.lag[row] / CHUNK_STEP, 1.0), longest)
            behind[row] = seconds / max(state.tokens_left[row] / gain, 1.0)
        self.lengths = np.zeros(requests, dtype=np.int64)
        if len(able):
            able = able[descending(weight[able] * chance[able] - self.worth * behind[able])]
            drafts = self.draft[: len(able) + 1]
            fixed, most = float(work[8]), action.max_length
            count = choose_starters(
                chance[able], weight[able], behind[able], drafts, self.curve, fixed, self.per_level, most, self.worth
            )
            self.lengths[able[:count]] = np.minimum(allowed[able[:count]], most)
        return Decision(self.lengths)

    def keep_drafting(self, level: DraftLevel) -> np.ndarray:
        own = level.requests
        told = np.stack([level.top1_probability, level.entropy, level.margin, level.agreement], axis=1)
        accepted, following = self.model.predictor.level(told, self.state.temperature[own], level.depth)
        self.survival[own] *= accepted
        weighted = self.survival[own] * self.weight[own]
        self.survivals[own, level.depth - 1] = weighted
        self.planned += len(own)
        hope = np.where(self.lengths[own] > level.depth, weighted * following, -1.0)
        order = descending(hope)[: np.count_nonzero(hope >= 0)]
        start = min(self.planned, len(self.curve) - 1 - len(order))
        curve = self.curve[start : start + len(order) + 1]
        going = np.zeros(len(own), dtype=bool)
        if len(order):
            count = choose_going(hope[order], self.draft[: len(order) + 1], curve, self.per_level, self.worth)
            going[order[:count]] = True
        return going

    def verify_lengths(self, num_drafted: np.ndarray) -> np.ndarray:
        flat = np.sort(self.survivals[self.survivals > 0])[::-1]
        kept = choose_verified(flat, self.curve[: len(flat) + 1], self.worth)
        return (self.survivals >= flat[kept - 1]).sum(axis=1) if kept else np.zeros_like(num_drafted)


@pytest.mark.parametrize("costs", [moderate, memory_bound, compute_bound])
@pytest.mark.parametrize("batch", [1, 2, 5, 8, 13])
def test_every_choice_is_that_of_the_price_rule(batch: int, costs: Any) -> None:
    rng, drafted, trimmed = np.random.default_rng(batch), 0, 0
    for trial in range(90):
        policy = FixedPolicy(Action(int(rng.integers(1, 9)), float(rng.choice([0.25, 0.5, 1.0, 2.0]))))
        own = controller(policy, costs())
        own.history[16] = float(rng.uniform(0.8, 3))
        state, seed = random_state(batch, rng), (batch, trial)
        expected = play(ByTheRule(own), state, np.random.default_rng(seed), 0.7)
        assert play(own, state, np.random.default_rng(seed), 0.7) == expected
        drafted += sum(expected[1])
        trimmed += sum(expected[1]) - sum(expected[2])
    assert costs is compute_bound or (drafted > 60 and (batch == 1 or trimmed > 0 or costs is memory_bound))


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_it_is_off_where_verification_is_compute_bound_and_on_where_it_is_memory_bound(batch: int) -> None:
    sure = AcceptancePredictor.uninformed(0.8)
    state = round_state(batch, acceptance_rate=0.8)
    off = controller(surface=compute_bound(), predictor=sure).decide(state)
    on = controller(surface=memory_bound(), predictor=sure).decide(state)
    assert off.num_speculative_tokens.tolist() == [0] * batch
    assert on.num_speculative_tokens.tolist() == [8] * batch


@pytest.mark.parametrize("batch", [1, 6])
def test_a_higher_price_never_drafts_more_and_somewhere_less(batch: int) -> None:
    totals = []
    for price in (0.25, 0.5, 1.0, 1.5, 2.5, 5.0):
        rng, total = np.random.default_rng(1), 0
        for trial in range(15):
            own = controller(FixedPolicy(Action(8, price)), moderate())
            total += sum(play(own, random_state(batch, rng), np.random.default_rng(trial), 0.7)[1])
        totals.append(total)
    assert totals == sorted(totals, reverse=True) and totals[0] > 2 * totals[-1]


@pytest.mark.parametrize("batch", [1, 6])
def test_confident_drafts_grow_longer(batch: int) -> None:
    # Of the features only the probability counts.
    inside = np.zeros((12, 1))
    inside[0] = 4.0
    weights: dict[str, Any] = {"hidden_weight": inside, "hidden_bias": [-2.0], "output_weight": np.full((1, 2), 4.0)}
    history = {"history_weight": np.zeros((8, 5)), "history_bias": np.ones(8)}
    predictor = AcceptancePredictor(weights | {"output_bias": [0.0, 0.0]} | history)
    drafted = []
    for sure in (0.1, 0.5, 0.95):
        rounds = [
            play(
                controller(surface=moderate(), predictor=predictor), round_state(batch), np.random.default_rng(n), sure
            )
            for n in range(10)
        ]
        drafted.append(sum(sum(own) for _, own, _ in rounds))
    assert drafted[0] < drafted[1] < drafted[2]


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_no_length_exceeds_what_is_allowed_or_the_action(batch: int) -> None:
    rng = np.random.default_rng(2)
    for most in (1, 3, 8):
        own = controller(random_tree(most), max_num_speculative_tokens=most)
        for _ in range(20):
            state = random_state(batch, rng)
            lengths, drafted, verified = map(np.asarray, play(own, state, rng))
            bound = np.minimum(np.minimum(state.max_num_speculative_tokens, most), own.action.max_length)
            assert (lengths <= bound).all() and (drafted <= lengths).all() and (verified <= drafted).all()


def test_it_is_deterministic() -> None:
    def run() -> list[tuple[list[int], ...]]:
        rng, own = np.random.default_rng(4), controller(random_mlp(2))
        return [play(own, random_state(1 + number % 9, rng), rng) for number in range(60)]

    first = run()
    assert first == run() and any(sum(drafted) for _, drafted, _ in first)


def test_batches_and_contexts_beyond_the_cost_table_are_decided_too() -> None:
    own = controller(FixedPolicy(Action(8, 1.0)), max_batch=4, predictor=AcceptancePredictor.uninformed(0.8))
    for batch in (5, 9, 64):
        lengths, drafted, _ = play(own, round_state(batch, context_length=5000), np.random.default_rng(batch))
        assert lengths == [8] * batch and min(drafted) > 0


def test_off_by_its_action_it_drafts_nothing_and_remembers_the_round() -> None:
    own = controller(FixedPolicy(Action(0, 1.0)))
    assert own.decide(round_state(3)).num_speculative_tokens.tolist() == [0, 0, 0]
    before = list(own.history)
    own.observe(outcome([0, 0, 0], [0, 0, 0]))
    assert own.history[16] == before[16] * 0.98 + 3 and own.history[-2] == 0


def test_a_confidence_that_is_no_number_is_named() -> None:
    for batch in (1, 4):
        own = controller(predictor=controller().predictor)
        own.decide(round_state(batch))
        level = random_level(1, np.arange(batch), np.random.default_rng(0))
        level.margin[0] = np.nan
        with pytest.raises(MissingFeatureError, match="'margin'"):
            own.keep_drafting(level)
