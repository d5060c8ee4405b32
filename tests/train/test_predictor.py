"""Fitting: what a recording with a known truth must yield, and what must not be learned from."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from specpilot.controllers import AcceptancePredictor
from specpilot.envs.trace import Trace
from specpilot.train.predictor import (
    CeilingPredictor,
    fit_ceiling,
    fit_history,
    fit_predictor,
    history_rows,
    judge,
    level_rows,
    quality,
)

K = 4


def made_trace(seed: int, requests: int = 60, length: int = 80) -> tuple[Trace, np.ndarray]:
    """A recording whose tokens are accepted with known chances ``[P, K]``, which its confidences tell.

    The chance is the sigmoid of margin - 1 plus 2 for agreement and minus 1 at temperature 1; deeper margins are drawn
    near the ones before, so that a token also tells about its successor.
    """
    rng = np.random.default_rng(seed)
    temperature = np.tile([0.0, 1.0], requests // 2).astype(np.float32)
    positions = requests * length
    margin = np.abs(rng.normal(0, 1.5, (positions, 1)) + rng.normal(0, 0.4, (positions, K)).cumsum(axis=1)) * 1.5
    agreement = rng.choice([-1, 0, 1], (positions, K), p=[0.1, 0.6, 0.3])
    score = margin - 1 + 2 * agreement - np.repeat(temperature, length)[:, None]
    chance = 1 / (1 + np.exp(-score))
    kept = np.logical_and.accumulate(rng.random((positions, K)) < chance, axis=1).sum(axis=1)
    left = np.tile(length - np.arange(length), requests)
    top1 = 1 / (1 + np.exp(-margin))
    confidence = np.stack([top1, np.log(2) - 0.1 * margin.clip(0, 6), margin, agreement], axis=-1)
    trace = Trace(
        max_num_speculative_tokens=K,
        prompt_tokens=np.full(requests, 5, dtype=np.int32),
        output_tokens=np.full(requests, length, dtype=np.int32),
        accepted_length=np.minimum(kept, left).astype(np.uint8),
        temperature=temperature,
        category=np.zeros(requests, dtype=np.uint8),
        confidence=confidence.astype(np.float32),
    )
    return trace, chance


@pytest.fixture(scope="module")
def train() -> Trace:
    return made_trace(0)[0]


@pytest.fixture(scope="module")
def fitted(train: Trace) -> AcceptancePredictor:
    return fit_predictor(train, seed=0, steps=400)


def test_rows_are_the_tokens_that_were_reached_and_lie_within_the_output() -> None:
    trace = replace(
        made_trace(0, requests=2, length=3)[0],
        max_num_speculative_tokens=2,
        accepted_length=np.asarray([2, 0, 1, 1, 1, 0], dtype=np.uint8),
        confidence=None,
    )
    rows = level_rows(trace)
    found = list(zip(rows.position.tolist(), rows.depth.tolist(), rows.accepted.tolist(), strict=True))
    assert found == [
        (0, 1, True),
        (0, 2, True),
        (1, 1, False),
        (2, 1, True),  # The last token: no depth 2.
        (3, 1, True),
        (3, 2, False),
        (4, 1, True),
        (4, 2, False),
        (5, 1, False),
    ]
    followed = {found[index][:2]: bool(rows.following[index]) for index in np.flatnonzero(rows.has_following)}
    assert followed == {(0, 1): True, (3, 1): False, (4, 1): False}
    assert rows.temperature.tolist() == [0.0] * 4 + [1.0] * 5


def test_a_request_has_no_history_in_its_first_round_and_its_own_afterwards() -> None:
    trace = made_trace(0, requests=4, length=30)[0]
    rows = history_rows(replace(trace, accepted_length=np.minimum(trace.accepted_length, 0)), seed=0)
    assert np.isnan(rows.acceptance_rate).sum() == 4 * 4
    known = rows.acceptance_rate[~np.isnan(rows.acceptance_rate)]
    assert set(known.round(9).tolist()) == {round(0.7 * 0.94**rounds, 9) for rounds in range(1, 30)}
    assert not rows.kept.any() and not rows.whole.any()
    assert rows.reaching(1).all() and not rows.reaching(2).any()


@pytest.mark.parametrize("given", [0, 1])
def test_half_of_the_histories_begin_somewhere_in_the_text_and_none_before_there_are_drafts(given: int) -> None:
    trace = replace(made_trace(0, requests=40, length=30)[0], tokens_from_prefill=given)
    rows = history_rows(trace, seed=0)
    begun = (rows.position % 30)[np.isnan(rows.acceptance_rate)]
    assert (begun == given).sum() == pytest.approx(80, abs=12) and len(begun) == 160
    assert begun.min() == given and len(np.unique(begun)) > 20
    assert (rows.position % 30).min() == given and (level_rows(trace).position % 30).min() == given


def test_the_fit_comes_close_to_the_truth_on_other_requests(fitted: AcceptancePredictor) -> None:
    trace, chance = made_trace(1)
    rows = level_rows(trace)
    found = quality(fitted, trace)
    assert set(found) == {0.0, 1.0}
    for temperature, own in found.items():
        mask = rows.temperature == temperature
        best = judge(chance[rows.position[mask], rows.depth[mask] - 1], rows.accepted[mask])
        assert own.rows == mask.sum() and own.base_rate == best.base_rate
        assert own.auc > best.auc - 0.01 and own.log_loss < best.log_loss + 0.01
        assert own.calibration_error < 0.03


def test_a_token_tells_about_its_successor(fitted: AcceptancePredictor) -> None:
    for own in quality(fitted, made_trace(1)[0], "following").values():
        assert own.auc > 0.6 and own.calibration_error < 0.05


def test_the_first_token_is_predicted_from_history(fitted: AcceptancePredictor) -> None:
    for own in quality(fitted, made_trace(1)[0], "first").values():
        assert own.calibration_error < 0.05
    cold, hot = fitted.history.chances([0.5, 0.5], [False, False], [0.0, 1.0])
    assert (cold[:2] > hot[:2]).all()


def test_a_recording_without_confidence_teaches_what_histories_promise(train: Trace) -> None:
    bare = replace(train, confidence=None)
    predictor, rows = fit_history(bare, 0), history_rows(bare, 0)
    assert not predictor.level_features
    chances = predictor.history.chances(rows.acceptance_rate, rows.whole, rows.temperature)
    for depth in range(1, 4):
        own = rows.reaching(depth)
        assert judge(chances[own, depth - 1], rows.kept[own] >= depth).calibration_error < 0.05


def test_the_ceiling_is_as_good_and_uses_earlier_levels_where_they_help() -> None:
    rng = np.random.default_rng(0)

    def hinting(seed: int) -> Trace:
        # Whether the second token is accepted depends on the first one's entropy alone.
        trace = made_trace(seed, requests=40)[0]
        confidence = np.asarray(trace.confidence).copy()
        confidence[:, 0, 1] = rng.integers(0, 2, len(confidence))
        second = trace.accepted_length >= 1
        left = trace.output_tokens[0] - np.tile(np.arange(80), 40)
        accepted = np.where(second, 1 + confidence[:, 0, 1], 0)
        return replace(trace, confidence=confidence, accepted_length=np.minimum(accepted, left).astype(np.uint8))

    ceiling, other = fit_ceiling(hinting(0)), hinting(1)
    assert isinstance(ceiling, CeilingPredictor)
    first, second = (np.asarray(other.confidence)[other.accepted_length >= 1][:, depth] for depth in (0, 1))
    likely, _ = ceiling.level(second, np.zeros(len(second)), 2, first[:, None])
    blind, _ = ceiling.level(second, np.zeros(len(second)), 2)
    hint = first[:, 1] > 0
    assert likely[hint].mean() > 0.9 and likely[~hint].mean() < 0.1
    assert abs(blind[hint].mean() - blind[~hint].mean()) < 0.2
    without = quality(fit_predictor(hinting(0), seed=0, steps=300), other)
    for temperature, own in quality(ceiling, other).items():
        assert own.log_loss < without[temperature].log_loss


def test_the_same_seed_fits_the_same_predictor_and_it_survives_its_document(train: Trace) -> None:
    small = train.select(np.arange(10))
    one, again = (fit_predictor(small, seed=3, steps=30) for _ in range(2))
    assert one.document() == again.document() != fit_predictor(small, seed=4, steps=30).document()
    parsed = AcceptancePredictor.parse(json.loads(json.dumps(one.document())))
    assert quality(parsed, small) == quality(one, small)


def test_judgement_of_known_chances() -> None:
    labels = np.tile([True, True, True, False], 25)
    constant = judge(np.full(100, 0.75), labels)
    assert constant.auc == 0.5 and constant.calibration_error == pytest.approx(0) and constant.base_rate == 0.75
    assert constant.log_loss == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert judge(np.full(100, 0.25), labels).calibration_error == pytest.approx(0.5)
    assert judge(np.where(labels, 0.9, 0.8), labels).auc == 1.0
    assert np.isnan(judge(np.full(3, 0.5), np.ones(3)).auc)


def test_a_recording_without_confidence_is_refused(train: Trace, fitted: AcceptancePredictor) -> None:
    bare = replace(train, confidence=None)
    for call in (lambda: fit_predictor(bare, 0), lambda: fit_ceiling(bare), lambda: quality(fitted, bare)):
        with pytest.raises(ValueError, match="holds no confidence"):
            call()
    assert AcceptancePredictor.uninformed(0.5) and quality(AcceptancePredictor.uninformed(0.5), bare, "first")
