"""Chances from a request's history: what the logistics see, the same for one request and for many, the running rate."""

from __future__ import annotations

import numpy as np
import pytest

from specpilot.controllers.acceptance_history import HistoryLogistics, history_inputs, kept_all
from specpilot.controllers.acceptance_rate import next_rate
from specpilot.tests.support.priced import random_state
from specpilot.tests.support.rounds import seen_rate


def logistics() -> HistoryLogistics:
    rng = np.random.default_rng(0)
    return HistoryLogistics(rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=8).astype(np.float32))


def test_no_history_is_a_case_of_its_own_and_certainty_is_bounded() -> None:
    inputs = history_inputs([0.5, np.nan, 1.0, 0.0], [False, False, True, False], [0.0, 0.6, 1.0, 0.0])
    most = np.log(0.98 / 0.02)
    expected = [[0, 0, 0, 0, 1], [0, 1, 0, 0.6, 0], [most, 0, 1, 1, 0], [-most, 0, 0, 0, 1]]
    np.testing.assert_allclose(inputs, expected)


def test_each_depth_is_a_logistic_of_the_inputs() -> None:
    own, inputs = logistics(), history_inputs([0.3, np.nan], [True, False], [0.0, 1.0])
    expected = 1 / (1 + np.exp(-(inputs @ own.numbers[:, :5].T + own.numbers[:, 5])))
    np.testing.assert_allclose(own.chances([0.3, np.nan], [True, False], [0.0, 1.0]), expected, rtol=1e-12)


def test_one_request_gets_what_it_gets_among_others() -> None:
    own, rng = logistics(), np.random.default_rng(1)
    for _ in range(50):
        state = random_state(1, rng)
        whole = kept_all(state.last_num_speculative_tokens, state.last_accepted_length)
        expected = own.chances(state.acceptance_rate, whole, state.temperature)
        np.testing.assert_allclose(own.of_state(state), expected, rtol=1e-12)
        assert own.of_one(state, 3) == pytest.approx(expected[0, :3].tolist(), rel=1e-12)


def test_a_round_without_drafts_kept_nothing_and_the_first_round_has_no_last() -> None:
    assert kept_all([0, -1, 3, 3], [0, -1, 3, 2]).tolist() == [False, False, True, False]


def test_the_rate_moves_with_every_token_whose_fate_was_seen() -> None:
    rng, rate = np.random.default_rng(2), float("nan")
    expected: float | None = None
    for _ in range(100):
        verified = int(rng.integers(0, 9))
        accepted = int(rng.integers(0, verified + 1))
        before, rate = rate, next_rate(rate, accepted, verified)
        if verified == 0:
            assert rate == before or (np.isnan(rate) and np.isnan(before))
            continue
        expected = seen_rate(expected, accepted, verified)
        assert rate == pytest.approx(expected, rel=1e-12)


def test_tokens_after_a_rejection_say_nothing() -> None:
    assert next_rate(0.5, 2, 3) == next_rate(0.5, 2, 8) < next_rate(0.5, 2, 2)
