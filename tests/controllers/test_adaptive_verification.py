"""Adaptive verification: the logistic learns, the budget is the best one, and what is verified is a prefix."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from specpilot.controllers import AdaptiveVerificationController, CostSurface, DraftLevel
from specpilot.controllers.adaptive_verification import MarginLogistic
from specpilot.tests.support.rounds import compute_bound, memory_bound, outcome, round_state, surface


def draft(controller: AdaptiveVerificationController, margin: np.ndarray) -> None:
    """A round up to verification, with these margins ``[B, K]``."""
    batch, depths = margin.shape
    controller.decide(round_state(batch))
    unknown = np.full(batch, np.nan)
    for depth in range(depths):
        level = DraftLevel(depth + 1, np.arange(batch), unknown, unknown, margin[:, depth], unknown)
        assert (controller.new_lengths(level) > level.depth).all()


def trained(costs: CostSurface, weight: list[float], bias: list[float]) -> AdaptiveVerificationController:
    controller = AdaptiveVerificationController(costs, len(weight), full_refits=0)
    controller.logistic.weight, controller.logistic.bias = np.asarray(weight), np.asarray(bias)
    return controller


def test_the_logistic_recovers_the_parameters_of_each_depth() -> None:
    rng = np.random.default_rng(0)
    weight, bias = np.asarray([0.5, 1.0, 0.3]), np.asarray([0.5, -1.0, 0.0])
    logistic = MarginLogistic(3)
    for _ in range(12):
        margin = rng.exponential(2.0, (20_000, 3))
        accepted = rng.random(margin.shape) < 1 / (1 + np.exp(-(weight * margin + bias)))
        logistic.add(margin, accepted, np.ones_like(accepted))
        logistic.refit()
    np.testing.assert_allclose(logistic.weight, weight, atol=0.06)
    np.testing.assert_allclose(logistic.bias, bias, atol=0.06)


def test_what_was_not_seen_teaches_nothing_and_few_observations_change_nothing() -> None:
    rng = np.random.default_rng(0)
    margin = rng.exponential(2.0, (400, 2))
    accepted, seen = margin > rng.exponential(2.0, (400, 2)), np.zeros((400, 2), dtype=np.bool_)
    seen[:, 0], seen[:49, 1] = True, True
    logistic = MarginLogistic(2)
    margin[~seen] = np.nan
    logistic.add(margin, accepted, seen)
    logistic.refit()
    assert logistic.bias[0] != 1.5 and (logistic.weight[1], logistic.bias[1]) == (0, 1.5)


def test_a_weight_that_would_turn_negative_is_not_believed() -> None:
    margin = np.repeat([[0.0], [4.0]], 100, axis=0)
    logistic = MarginLogistic(1)
    logistic.add(margin, margin == 0, np.ones_like(margin, dtype=np.bool_))
    logistic.refit()
    assert (logistic.weight[0], logistic.bias[0]) == (0, 1.5)


@pytest.mark.parametrize("seed", range(20))
def test_it_verifies_the_prefixes_of_highest_expected_tokens_per_second(seed: int) -> None:
    rng = np.random.default_rng(seed)
    per_token = rng.choice([0.05, 0.5, 2.0])
    costs = surface(lambda batch, tokens: 0.3, lambda batch, tokens: 4 + per_token * batch * tokens)
    controller = trained(costs, [0.8, 0.6, 0.9], [-0.5, 0.2, -1.0])
    margin = rng.exponential(1.5, (3, 3))
    draft(controller, margin)
    survival = controller.logistic.predict(margin).cumprod(axis=1)

    def worth(lengths: tuple[int, ...]) -> float:
        tokens = 3 + sum(survival[number, :length].sum() for number, length in enumerate(lengths))
        seconds = costs.round_seconds([3] * 3, [64] * 3, [0] * 3, verified=list(lengths))
        return float(tokens / seconds)

    found = controller.verify_lengths(np.full(3, 3))
    best = max(itertools.product(range(4), repeat=3), key=worth)
    assert worth(tuple(found.tolist())) == pytest.approx(worth(best))


def test_cheap_verification_keeps_all_and_dear_verification_keeps_the_sure_ones() -> None:
    margin = np.asarray([[9.0, 9.0], [0.0, 0.0]])
    for costs, expected in ((memory_bound(), [2, 2]), (compute_bound(), [2, 0])):
        controller = trained(costs, [1.0, 1.0], [-1.0, -1.0])
        draft(controller, margin)
        assert controller.verify_lengths(np.asarray([2, 2])).tolist() == expected


def test_no_request_verifies_more_than_it_drafted() -> None:
    controller = trained(memory_bound(), [1.0] * 3, [5.0] * 3)
    draft(controller, np.full((3, 3), 2.0))
    assert controller.verify_lengths(np.asarray([1, 0, 3])).tolist() == [1, 0, 3]


def test_everything_is_verified_until_the_logistic_was_fitted_often_enough() -> None:
    rng = np.random.default_rng(0)
    controller = AdaptiveVerificationController(compute_bound(), 2, refit_interval=4, full_refits=2, min_observations=8)
    assert controller.trims and controller.asked_levels and tuple(controller.level_features) == ("margin",)
    trimmed = []
    for _ in range(12):
        draft(controller, rng.exponential(1.0, (8, 2)))
        verified = controller.verify_lengths(np.full(8, 2))
        trimmed.append(int(verified.sum()) < 16)
        controller.observe(outcome([2] * 8, rng.integers(0, 2, 8).clip(max=verified).tolist(), verified.tolist()))
    assert trimmed[:8] == [False] * 8 and all(trimmed[8:])


def test_what_was_trimmed_away_is_not_taken_for_rejected() -> None:
    controller = AdaptiveVerificationController(memory_bound(), 2, refit_interval=1, full_refits=0, min_observations=1)
    draft(controller, np.ones((4, 2)))
    controller.observe(outcome([2] * 4, [1] * 4, [1] * 4))
    assert controller.logistic.bias[0] > 1.5 and controller.logistic.bias[1] == 1.5
