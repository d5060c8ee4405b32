"""Passes of unlike requests: what they are compared with, and what is found of a machine whose costs are known."""

from __future__ import annotations

import numpy as np
import pytest

from specpilot.engine import Engine, EngineConfig, Pair
from specpilot.train.ragged_passes import RaggedTimes, fit_ragged, ragged_passes


@pytest.mark.parametrize("max_length", [2, 3, 8])
def test_a_pass_is_compared_with_one_that_does_as_much_work(max_length: int) -> None:
    passes = ragged_passes(32, max_length, drafts=True)
    assert {own.kind for own in passes} == {"verify", "draft"}
    for own in passes:
        assert own.unlike.sum() == own.alike.sum() and len(set(own.alike)) == 1
        if own.kind == "verify":
            assert len(own.unlike) == len(own.alike) and own.work.padded > 0 == own.work.idle
            assert 1 <= own.unlike.min() < own.unlike.max() <= max_length + 1
        else:
            assert own.work.idle == len(own.unlike) - len(own.alike) > 0 == own.work.padded
            assert own.unlike[0] == own.unlike[-1] == own.alike[0] == 1 < len(own.alike)


def test_nothing_is_ragged_where_nobody_drafts_or_few_are_served() -> None:
    assert not ragged_passes(32, 0, drafts=False) and not ragged_passes(2, 8, drafts=True)
    assert {own.kind for own in ragged_passes(4, 8, drafts=False)} == {"verify"}
    assert fit_ragged([], np.empty((0, 2))) == {"per_padded_token": 0.0, "per_idle_request": 0.0}


def test_known_costs_are_found_beside_noise() -> None:
    rng, passes = np.random.default_rng(0), ragged_passes(32, 8, drafts=True)
    seconds = np.empty((len(passes), 2))
    for at, own in enumerate(passes):
        total = 3e-3 + 2e-4 * own.unlike.sum()
        extra = 4e-5 * float(own.work.padded) + 2e-5 * float(own.work.idle)  # type: ignore[arg-type]
        seconds[at] = extra + 0.002 * total * rng.standard_normal(), total
    found = fit_ragged(passes, seconds)
    assert found["per_padded_token"] == pytest.approx(4e-5, rel=0.1)
    assert found["per_idle_request"] == pytest.approx(2e-5, rel=0.1)


def test_an_engine_is_measured_and_left_empty(tiny_pair: Pair) -> None:
    engine = Engine(tiny_pair, EngineConfig(max_num_seqs=4, max_num_speculative_tokens=3))
    times = RaggedTimes(engine, seed=0)
    seconds = times.measure()
    assert seconds.shape == (len(times.passes), 2) and (seconds[:, 1] > 0).all() and not engine.has_work
    assert all(value >= 0 for value in times.costs(slowness=1.0).values())
