"""The priced controller: its choices are those of the price rule, and move the way a price and a machine say."""

from __future__ import annotations

from dataclasses import replace
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
from specpilot.controllers.acceptance_history import LOWEST_RATE
from specpilot.controllers.cost_table import interpolate
from specpilot.controllers.held_lengths import HeldLengths
from specpilot.controllers.price_rule import RoundSeconds, plan_lengths, verify_curve
from specpilot.tests.support.priced import controller, play, random_level, random_mlp, random_state, random_tree
from specpilot.tests.support.rounds import compute_bound, memory_bound, moderate, outcome, round_state


class ByTheRule(Controller):
    """`price_rule.plan_lengths` before the round and after every look, for what ``model`` has chosen as its action."""

    def __init__(self, model: PricedController) -> None:
        self.model, self.costs = model, model.costs
        self.action = model.policy.act(np.zeros(0))
        self.asked_levels = self.action.asked_levels

    def decide(self, state: RoundState) -> Decision:
        requests = len(state.request_ids)
        self.state, self.noisy = state, state.temperature > 0
        self.seconds = self.prices(requests, float(state.context_length.max()))
        self.prior = self.model.predictor.history.of_state(state)
        self.chance = self.prior.copy()
        self.spent = self.seconds.plain + self.seconds.noise * self.noisy.sum()
        allowed = np.minimum(state.max_num_speculative_tokens, self.model.maximum)
        self.planned = self.plan(allowed, np.zeros(requests, dtype=np.int64), state.lag <= 1, 0)
        self.spent += self.seconds.fixed
        self.bound = np.minimum(allowed, self.action.max_length) * (self.planned > 0)
        if not self.asked_levels:
            self.bound = self.planned
        self.now, self.trims = self.bound.copy(), False
        return Decision(self.bound)

    def prices(self, requests: int, longest: float) -> RoundSeconds:
        costs, work = self.costs, self.costs.overhead
        batch, counts = min(requests, costs.max_batch), np.arange(requests + 1)
        level = [interpolate(costs.draft, min(int(n), costs.max_batch), 1.0, longest) for n in counts]
        verify = np.asarray([interpolate(costs.verify, batch, float(n), longest) for n in range(costs.verify.shape[1])])
        curve = verify_curve(verify, batch, requests * self.action.max_length)
        return RoundSeconds(
            plain=interpolate(costs.verify, batch, 1.0, longest) + work[0] + batch * work[1],
            draft=(np.asarray(level) + work[3] * counts) * (counts > 0) + work[13] * (requests - counts) * (counts > 1),
            curve=curve + work[4] * np.arange(len(curve)),
            fixed=work[8] + work[12] * (self.asked_levels > 0),
            per_level=work[2],
            noise=work[7],
            stop=interpolate(costs.catch_up, 1, 1.0, longest),
            look=work[5],
            answer=work[6],
            padded=work[11],
        )

    def plan(self, allowed: np.ndarray, drafted: np.ndarray, warm: np.ndarray, depth: int) -> np.ndarray:
        length, price = self.action.max_length, self.action.price
        return plan_lengths(
            self.chance, allowed, drafted, warm, self.noisy, self.seconds, self.spent, length, price, depth
        )

    def new_lengths(self, level: DraftLevel) -> np.ndarray:
        own, depth = level.requests, level.depth
        told = np.stack([level.top1_probability, level.entropy, level.margin, level.agreement], axis=1)
        accepted, following = self.model.predictor.level(told, self.state.temperature[own], depth)
        self.chance[own, depth - 1] = accepted
        if depth < 8:
            self.chance[own, depth] = following
            news = odds(following) - odds(self.prior[own, depth])
            for further in range(depth + 1, 8):
                carried = self.model.predictor.carry ** (further - depth) * news
                self.chance[own, further] = 1 / (1 + np.exp(-odds(self.prior[own, further]) - carried))
        going = self.now >= depth
        self.spent += self.seconds.draft[going.sum()] + self.seconds.per_level + self.seconds.look
        self.spent += self.seconds.noise * (going & self.noisy).sum() + self.seconds.answer * len(own)
        drafted = np.minimum(self.now, depth)
        allowed = drafted.copy()
        allowed[own] = self.bound[own]
        self.planned = self.plan(allowed, drafted, np.zeros(len(going), dtype=bool), depth)
        self.now[own] = np.maximum(self.planned[own], depth)
        self.trims = bool((self.planned < self.now).any())
        return self.now[own]

    def verify_lengths(self, num_drafted: np.ndarray) -> np.ndarray:
        return np.minimum(self.planned, num_drafted)


def odds(chance: np.ndarray) -> np.ndarray:
    inside = np.clip(chance, LOWEST_RATE, 1 - LOWEST_RATE)
    return np.log(inside / (1 - inside))


@pytest.mark.parametrize("costs", [moderate, memory_bound, compute_bound])
@pytest.mark.parametrize("batch", [1, 2, 5, 8, 13])
def test_every_choice_is_that_of_the_price_rule(batch: int, costs: Any) -> None:
    rng, drafted, trimmed, stopped, seen = np.random.default_rng(batch), 0, 0, 0, set[int]()
    for trial in range(120):
        action = Action(
            int(rng.integers(1, 9)), float(rng.choice([0.25, 0.5, 1.0, 2.0])), int(rng.choice([0, 1, 2, 8]))
        )
        own = controller(FixedPolicy(action), costs())
        state, seed = random_state(batch, rng), (batch, trial)
        expected = play(ByTheRule(own), state, np.random.default_rng(seed), 0.7)
        assert play(own, state, np.random.default_rng(seed), 0.7) == expected
        drafted += sum(expected[1])
        stopped += sum(expected[0]) - sum(expected[1])
        trimmed += sum(expected[1]) - sum(expected[2])
        seen |= set(expected[1])
    assert costs is compute_bound or (drafted > 100 and stopped > 20 and len(seen) > 2)
    assert costs is not moderate or batch < 5 or trimmed > 0


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_it_is_off_where_verification_is_compute_bound_and_on_where_it_is_memory_bound(batch: int) -> None:
    likely, sure = AcceptancePredictor.uninformed(0.8), AcceptancePredictor.uninformed(0.97)
    state = round_state(batch, acceptance_rate=0.8)
    off = controller(surface=compute_bound(), predictor=likely).decide(state)
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
    history = {"history_weight": np.zeros((8, 5)), "history_bias": np.ones(8), "carry": [0.6]}
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
    own = controller(FixedPolicy(Action(8, 1.0)), max_batch=4, predictor=AcceptancePredictor.uninformed(0.97))
    for batch in (5, 9, 64):
        lengths, drafted, _ = play(own, round_state(batch, context_length=5000), np.random.default_rng(batch))
        assert lengths == [8] * batch and min(drafted) > 0


def test_off_by_its_action_it_drafts_nothing_and_remembers_the_round() -> None:
    own = controller(FixedPolicy(Action(0, 1.0)))
    assert own.decide(round_state(3)).num_speculative_tokens.tolist() == [0, 0, 0]
    before = list(own.history)
    own.observe(outcome([0, 0, 0], [0, 0, 0]))
    assert own.history[16] == before[16] * 0.98 + 3 and own.history[-2] == 0


def test_a_round_without_a_time_of_its_own_says_nothing_about_the_gain() -> None:
    own, told = controller(FixedPolicy(Action(3, 1.0))), outcome([3, 3], [1, 2])
    gains = list[float]()
    for is_timed in (True, False, True):
        own.decide(round_state(2))
        own.observe(replace(told, verify_seconds=9.0 if is_timed else 1e6, is_timed=is_timed))
        gains.append(own.history[16] / own.history[17])
    assert gains[0] == pytest.approx(gains[1]) and gains[2] < gains[1] < 1
    assert own.history[18] > 4, "what was drafted is noted all the same"


def test_a_confidence_that_is_no_number_is_named() -> None:
    for batch in (1, 4):
        own = controller(predictor=controller().predictor)
        own.decide(round_state(batch))
        level = random_level(1, np.arange(batch), np.random.default_rng(0))
        level.margin[0] = np.nan
        with pytest.raises(MissingFeatureError, match="'margin'"):
            own.new_lengths(level)


@pytest.mark.parametrize("batch", [1, 5, 9])
def test_a_decision_holds_for_some_rounds_and_costs_and_notes_nothing_in_between(batch: int) -> None:
    own = controller(FixedPolicy(Action(6, 1.0)), moderate(), hold=3)
    rng, decided = np.random.default_rng(batch), list[list[int]]()
    for _ in range(12):
        state = random_state(batch, rng)
        before = list(own.history)
        lengths = play(own, state, rng)[0]
        if own.plans:
            decided.append(lengths)
            assert own.history != before
        else:
            assert own.history == before and not own.asked_levels and not own.trims
            allowed = np.minimum(state.max_num_speculative_tokens, own.maximum)
            assert all(now <= min(was, most) for now, was, most in zip(lengths, decided[-1], allowed, strict=True))
    assert len(decided) == 4


def test_in_a_decision_with_looks_that_holds_the_same_requests_draft_and_looks_are_taken_anew() -> None:
    own, rng = controller(FixedPolicy(Action(6, 1.0, 2)), moderate(), hold=3), np.random.default_rng(0)
    decided, stopped = list[list[bool]](), 0
    for _ in range(30):
        state = random_state(5, rng)
        before = list(own.history)
        lengths, drafted, _ = play(own, state, rng)
        assert own.asked_levels == 2
        if own.plans:
            decided.append([length > 0 for length in lengths])
            continue
        assert own.history == before
        allowed = np.minimum(state.max_num_speculative_tokens, 6)
        assert lengths == [most * drafts for most, drafts in zip(allowed.tolist(), decided[-1], strict=True)]
        stopped += sum(lengths) - sum(drafted)
    assert len(decided) == 10 and stopped > 0
    assert any(not all(drafts) for drafts in decided) and any(map(any, decided))


def test_who_comes_while_a_decision_holds_gets_what_the_others_have() -> None:
    held = HeldLengths(10)
    assert held.lengths("abcd") is None
    held.note("abcd", [4, 2, 6, 0])
    assert held.lengths("abcd") == [4, 2, 6, 0]
    assert held.lengths("dcea") == [0, 6, 3, 4] and held.lengths("eac") == [3, 4, 6]
    assert held.lengths("abfg") is None  # Too many have come.
    assert held.lengths("abcd") is None  # The decision that was due has failed.
