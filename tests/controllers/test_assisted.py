"""transformers' rules: up by 2, down by 1, from 5; and stop where the drafter doubts."""

from __future__ import annotations

import numpy as np
import pytest

from specpilot.controllers import EVERY_LEVEL, ConfidenceThresholdController, DraftLevel, HeuristicScheduleController
from specpilot.tests.support.rounds import round_state


def lengths(controller: HeuristicScheduleController, drafted: list[int], accepted: list[int]) -> list[int]:
    state = round_state(len(drafted), last_num_speculative_tokens=drafted, last_accepted_length=accepted)
    return controller.decide(state).num_speculative_tokens.tolist()


def test_each_request_rises_by_two_when_all_was_accepted_and_falls_by_one_otherwise() -> None:
    controller = HeuristicScheduleController(8)
    assert lengths(controller, [-1, -1], [-1, -1]) == [5, 5]
    assert lengths(controller, [5, 5], [5, 4]) == [7, 4]
    assert lengths(controller, [7, 4], [7, 0]) == [8, 3]
    assert lengths(controller, [8, 3], [7, 3]) == [7, 5]


def test_the_length_stays_between_the_minimum_and_the_maximum() -> None:
    controller = HeuristicScheduleController(8)
    for _ in range(10):
        found = lengths(controller, [5, 5], [5, 0])
    assert found == [8, 1]


def test_a_round_without_a_draft_changes_nothing_and_a_request_that_left_starts_anew() -> None:
    controller = HeuristicScheduleController(8)
    lengths(controller, [-1, -1], [-1, -1])
    assert lengths(controller, [5, 0], [0, 0]) == [4, 5]
    assert lengths(controller, [0], [0]) == [4]
    assert lengths(controller, [0, 5], [0, 5]) == [4, 5]


def test_it_drafts_on_where_the_best_token_is_at_least_as_likely_as_the_threshold() -> None:
    controller = ConfidenceThresholdController(6)
    assert controller.asked_levels and tuple(controller.level_features) == ("top1_probability",)
    assert controller.decide(round_state(2)).num_speculative_tokens.tolist() == [6, 6]
    unknown = np.full(3, np.nan)
    level = DraftLevel(1, np.arange(3), np.asarray([0.39, 0.4, 0.9]), unknown, unknown, unknown)
    assert controller.new_lengths(level).tolist() == [1, EVERY_LEVEL, EVERY_LEVEL]


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="minimum must be 1 … max_num_speculative_tokens"):
        HeuristicScheduleController(0)
    with pytest.raises(ValueError, match="increase and decrease"):
        HeuristicScheduleController(8, decrease=-1)
    with pytest.raises(ValueError, match="threshold must be a probability"):
        ConfidenceThresholdController(8, threshold=1.5)
    with pytest.raises(ValueError, match="num_speculative_tokens must be 1"):
        ConfidenceThresholdController(0)
