"""Errors of replay's predictions: of the speed itself, and of what does not depend on how fast the machine is now."""

from __future__ import annotations

import pytest

from specpilot.benchmarks.sim_to_real import Speeds, errors, overall


@pytest.mark.parametrize("slow", [1.0, 2.0])
def test_a_machine_that_is_slow_for_all_shows_in_the_speed_and_not_in_the_choice(slow: float) -> None:
    off = Speeds(100.0, [100.0 / slow, 80.0 / slow])
    own = errors(Speeds(150.0, [150.0 / slow, 120.0 / slow]), off)
    assert own["relative_error"]["median"] == pytest.approx(0)
    assert own["error"]["median"] == pytest.approx((slow * (1 + 1.25) / 2) - 1)


def test_a_contender_that_is_predicted_too_fast_shows_in_both() -> None:
    found = errors(Speeds(165.0, [150.0, 150.0]), Speeds(100.0, [100.0, 100.0]))
    assert found["error"]["median"] == pytest.approx(0.1)
    assert found["relative_error"]["median"] == pytest.approx(0.1)


def test_over_all_offs_own_ratio_does_not_count() -> None:
    off, own = Speeds(100.0, [80.0]), Speeds(150.0, [100.0])
    batches = {"4": {"contenders": {"off": errors(off, off), "constant_2": errors(own, off)}}}
    assert overall(batches, "relative_error")["median"] == pytest.approx(150 / 100 / (100 / 80) - 1)
    assert overall(batches, "error")["median"] == pytest.approx((0.25 + 0.5) / 2)
