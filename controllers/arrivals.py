"""How fast requests arrive: exponentially weighted rates in constant memory."""

from __future__ import annotations

import math


class ArrivalMeter:
    """Arrivals per second at two time scales.

    The rate at time ``t`` is the sum over all arrivals ``t_i <= t`` of ``exp(-(t - t_i) / tau) / tau``: for a steady
    stream it is the stream's rate, and an arrival counts for about ``tau`` seconds. One number per scale is kept.
    """

    def __init__(self, scales: tuple[float, float] = (1.0, 10.0)) -> None:
        """``scales``: ``tau`` in seconds, each positive; else ``ValueError``."""
        if not all(0 < scale < math.inf for scale in scales):
            raise ValueError(f"time scales must be positive and finite, got {scales}")
        self.scales = scales
        self._rates = (0.0, 0.0)
        self._last = -math.inf  # time of the newest arrival, of which the rates are

    def add(self, time: float) -> None:
        """A request arrived at ``time`` (seconds on any clock). ``ValueError`` if that is before the last arrival."""
        fast, slow = self.rates(time)
        self._rates = (fast + 1 / self.scales[0], slow + 1 / self.scales[1])
        self._last = time

    def rates(self, time: float) -> tuple[float, float]:
        """Requests per second at ``time``, one per scale. ``ValueError`` if that is before the last arrival."""
        elapsed = time - self._last
        if not elapsed >= 0:
            raise ValueError(f"time must not run backwards, got {time} after an arrival at {self._last}")
        fast, slow = self._rates
        return fast * math.exp(-elapsed / self.scales[0]), slow * math.exp(-elapsed / self.scales[1])
