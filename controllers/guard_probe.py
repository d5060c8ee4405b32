"""The guard's probe: now and then a block of the fallback's rounds against a block of the controller's."""

from __future__ import annotations

import math
import statistics

_FIRST_INTERVAL = 1 / 16
"""Of the usual interval, before the first probe; it doubles with every probe."""


class Probe:
    """Compares tokens per second of two blocks of rounds that follow each other, with batches of like size.

    The first round of each block is left out: it pays or is spared what the other block left behind (the drafter's
    lag). A probe in which the batch comes to less than half or more than twice its first size, or the controller
    fails, says nothing and is repeated.
    """

    def __init__(self, every: int, rounds: int, needed: int) -> None:
        """``every``: rounds between probes, 0 for none; ``rounds``: of each block; ``needed``: probes to conclude."""
        self._every, self._rounds, self._needed = every, rounds, needed
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._interval = self._every * _FIRST_INTERVAL
        self._until = int(self._interval)
        self._ratios = list[float]()
        self._reset()

    def _reset(self) -> None:
        self._step, self._size = 0, 0
        self._tokens, self._seconds = [0, 0], [0.0, 0.0]

    def abandon(self) -> None:
        """Give up a probe under way and try again later."""
        if self._step:
            self._until = max(1, int(self._interval))
            self._reset()

    @property
    def rounds_before(self) -> float:
        """Rounds after the one that has begun and before the next probe; 0 in one."""
        return max(0, self._until - 1) if self._every > 0 else math.inf

    def wants_fallback(self, batch: int) -> bool:
        """Whether the fallback should decide the coming round of ``batch`` requests."""
        if self._every == 0 or self._until > 0:
            return False
        if self._step == 0:
            self._size = batch
        elif not self._size <= 2 * batch <= 4 * self._size:
            self.abandon()
            return False
        return self._step < self._rounds

    def rests(self) -> bool:
        """Note a round of no probe; False where one is under way, which `enter` notes."""
        if self._every == 0:
            return True
        if self._until > 0:
            self._until -= 1
            return True
        return False

    def enter(self, tokens: int, seconds: float) -> bool:
        """Note a round of a probe; True where it has completed it."""
        block, number = divmod(self._step, self._rounds)
        if number > 0:
            self._tokens[block] += tokens
            self._seconds[block] += seconds
        self._step += 1
        if self._step < 2 * self._rounds:
            return False
        return self._conclude()

    def _conclude(self) -> bool:
        (static, own), (static_seconds, own_seconds) = self._tokens, self._seconds
        told = min(static, own) > 0 and min(static_seconds, own_seconds) > 0
        if told and math.isfinite(static_seconds + own_seconds):
            self._ratios.append(own / own_seconds * static_seconds / static)
            del self._ratios[: -(2 * self._needed - 1)]
            self._interval = min(float(self._every), 2 * self._interval)
        self._until = max(1, int(self._interval))
        self._reset()
        return told

    @property
    def speed_ratio(self) -> float:
        """Median over the last probes of the controller's tokens per second over the fallback's; NaN before."""
        return statistics.median(self._ratios) if self._ratios else math.nan

    @property
    def is_conclusive(self) -> bool:
        """Whether there were enough probes."""
        return len(self._ratios) >= self._needed
