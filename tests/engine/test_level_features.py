"""A controller is told what it asks for, the same whatever else it asks for, and asking changes no draft."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from specpilot.controllers import EVERY_LEVEL, LEVEL_FEATURES, ConstantController, DraftLevel
from specpilot.engine import ControllerError, Engine, EngineConfig, Pair, SamplingParams
from specpilot.engine.draft_growth import ChosenTokens
from specpilot.engine.level_features import draft_level

SUBSETS = [subset for size in range(5) for subset in itertools.combinations(LEVEL_FEATURES, size)]


class Noting(ConstantController):
    """Drafts five tokens and notes every level."""

    asked_levels = EVERY_LEVEL

    def __init__(self, features: Collection[str]) -> None:
        super().__init__(5)
        self.level_features = features
        self.levels: list[DraftLevel] = []

    def new_lengths(self, level: DraftLevel) -> NDArray[np.int64]:
        self.levels.append(level)
        return level.going_on((level.requests + level.depth) % 5 != 0)


def serve(pair: Pair, controller: ConstantController, temperatures: list[float]) -> list[tuple[int, ...]]:
    engine = Engine(pair, EngineConfig(max_model_len=96, max_num_seqs=8), controller)
    params = [
        SamplingParams(temperature=t, seed=n, max_tokens=24, top_k=5 * (n % 2), ignore_eos=True)
        for n, t in enumerate(temperatures)
    ]
    outputs = engine.generate([[1 + n, 5, 9, 5, 9] for n in range(len(params))], params)
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("temperatures", [[0.0], [0.0] * 3, [0.0, 0.7, 1.0, 1.0]], ids=repr)
def test_what_is_asked_for_is_as_with_everything_and_the_rest_is_nan(
    tiny_pair: Pair, temperatures: list[float]
) -> None:
    full = Noting(LEVEL_FEATURES)
    text = serve(tiny_pair, full, temperatures)
    assert len(full.levels) > 20
    assert all(np.isfinite([getattr(level, name) for name in LEVEL_FEATURES]).all() for level in full.levels)
    for subset in SUBSETS:
        part = Noting(subset)
        assert serve(tiny_pair, part, temperatures) == text
        for level, expected in zip(part.levels, full.levels, strict=True):
            assert level.depth == expected.depth and (level.requests == expected.requests).all()
            for name in LEVEL_FEATURES:
                value = getattr(level, name)
                assert value.dtype == np.float64 and value.shape == level.requests.shape
                assert (value == getattr(expected, name)).all() if name in subset else np.isnan(value).all()


def test_features_are_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    tempered = 3 * torch.randn(6, 50, generator=generator)
    tempered[3:, 4:] = -torch.inf
    scores = tempered + torch.randn(6, 50, generator=generator)
    chosen = ChosenTokens.choose(np.arange(6), scores, 1, None, np.zeros(6, dtype=np.bool_), with_margin=True)
    assert (chosen.tokens[:, 0] == scores.argmax(-1)).all()
    level = draft_level(2, np.arange(6), tempered, chosen.margin, LEVEL_FEATURES, np.asarray([1.0, 0, -1, 0, 1, 1]))
    probability = torch.softmax(tempered.double(), -1).numpy()
    ordered = np.sort(scores.double().numpy(), axis=-1)
    assert level.top1_probability == pytest.approx(probability.max(-1), rel=1e-5)
    logarithm = np.log(np.where(probability > 0, probability, 1.0))
    assert level.entropy == pytest.approx(-(probability * logarithm).sum(-1), rel=1e-4)
    assert level.margin == pytest.approx(ordered[:, -1] - ordered[:, -2], rel=1e-5)
    assert level.agreement.tolist() == [1, 0, -1, 0, 1, 1]


@pytest.mark.parametrize("features", ["margin", ("margin", "surprise")])
def test_a_feature_that_does_not_exist_is_refused(tiny_pair: Pair, features: Collection[str]) -> None:
    with pytest.raises(ControllerError, match=r"Noting\.level_features"):
        serve(tiny_pair, Noting(features), [0.0])
