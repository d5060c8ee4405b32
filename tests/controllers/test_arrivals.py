"""The arrival meter is the sum over all arrivals that it stands for, and refuses a clock that runs backwards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from specpilot.controllers.arrivals import ArrivalMeter


def direct(times: list[float], now: float, scale: float) -> float:
    return sum(math.exp(-(now - time) / scale) / scale for time in times if time <= now)


@pytest.mark.parametrize("scales", [(1.0, 10.0), (0.1, 300.0)])
def test_rates_are_the_direct_sum(scales: tuple[float, float]) -> None:
    rng = np.random.default_rng(2)
    times = np.cumsum(rng.exponential(0.2, size=200) * (rng.random(200) < 0.8)).tolist()  # some at the same moment
    meter, added = ArrivalMeter(scales), list[float]()
    for time in times:
        meter.add(time)
        added.append(time)
        for now in (time, time + 0.05, time + 7.0):
            expected = [direct(added, now, scale) for scale in scales]
            assert meter.rates(now) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_steady_stream_has_its_own_rate() -> None:
    meter = ArrivalMeter()
    for index in range(8000):
        meter.add(index / 50)
    assert meter.rates(160.0) == pytest.approx((50, 50), rel=0.01)


def test_no_arrival_is_no_rate_and_reading_changes_nothing() -> None:
    meter = ArrivalMeter()
    assert meter.rates(-1e9) == meter.rates(123.0) == (0.0, 0.0)
    meter.add(-5.0)
    assert meter.rates(0.0) == meter.rates(0.0)
    assert meter.rates(-5.0) == (1.0, 0.1)


def test_a_clock_that_runs_backwards_and_bad_scales_are_refused() -> None:
    meter = ArrivalMeter()
    meter.add(3.0)
    for act in (meter.add, meter.rates):
        for time in (2.0, math.nan):
            with pytest.raises(ValueError, match="backwards"):
                act(time)
    for scales in ((0.0, 1.0), (1.0, -1.0), (math.inf, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="scales"):
            ArrivalMeter(scales)
