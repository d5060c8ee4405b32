"""Fit the overhead of rounds: robust non-negative least squares on relative errors, some coefficients given or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from specpilot.controllers.controller import FloatArray
from specpilot.controllers.pass_costs import KINDS
from specpilot.controllers.round_overhead import COEFFICIENTS, RoundOverhead, RoundWork

ITERATIONS = 30
HUBER = 1.5
"""Residuals beyond this many robust standard deviations weigh less (Huber, 1964)."""
OUTLIER = 6.0
"""Residuals beyond this many are left out: the machine did something else."""
FACTOR_DEVIATION = 0.03
"""Standard deviation of the prior that factors are 1. Passes and counts grow together, and errors are shared by the
rounds of a slow spell, so that without it the counts take over what the cost surface has measured."""
MIN_FACTOR = 0.05


@dataclass(frozen=True)
class MeasuredRounds:
    """``N`` live rounds: what they did, what the cost surface says of their passes, and what they took."""

    work: RoundWork
    """Arrays are ``[N]``."""
    passes: FloatArray
    """``[N, 4]`` seconds by the cost surface without overhead, in the order of `KINDS`."""
    seconds: FloatArray
    """``[N]`` as measured, at the machine's speed when the cost surface was measured."""

    def __len__(self) -> int:
        return len(self.seconds)

    def select(self, chosen: Any) -> MeasuredRounds:
        """Some rounds only (indices, mask or slice)."""
        work = RoundWork(*(np.asarray(count)[chosen] for count in self.work))
        return MeasuredRounds(work, self.passes[chosen], self.seconds[chosen])

    @classmethod
    def joined(cls, parts: Sequence[MeasuredRounds]) -> MeasuredRounds:
        """The rounds of all ``parts``, one or more, in order."""
        work = RoundWork(*(np.concatenate(counts) for counts in zip(*(own.work for own in parts), strict=True)))
        passes = np.concatenate([own.passes for own in parts])
        return cls(work, passes, np.concatenate([own.seconds for own in parts]))

    def predicted(self, overhead: RoundOverhead) -> FloatArray:
        """``[N]`` seconds with ``overhead``."""
        return overhead.total_seconds(self.work, *self.passes.T)


def fit_units(rounds: MeasuredRounds, extra: FloatArray, names: Sequence[str]) -> dict[str, float]:
    """The coefficients ``names`` (of `COEFFICIENTS`) that explain what rounds took longer than their counterparts.

    ``extra`` ``[N]``: seconds, of pairs of rounds that differ in what these coefficients count and in nothing else;
    ``rounds``: those that took longer. Errors are relative to the seconds of the whole round. 0 without rounds.
    """
    if not len(rounds):
        return dict.fromkeys(names, 0.0)
    columns = np.column_stack(rounds.work.features())[:, [COEFFICIENTS.index(name) for name in names]]
    found = _least_relative_error(columns, extra, rounds.seconds)
    return dict(zip(names, found, strict=True))


def fit_overhead(rounds: MeasuredRounds, known: Mapping[str, float] | None = None) -> RoundOverhead:
    """The non-negative coefficients and factors that explain the rounds' seconds with the least relative error.

    ``known``: values of fields of `RoundOverhead` that are not to be fitted.
    """
    known = dict(known or {})
    names = (*COEFFICIENTS, *(f"{kind}_factor" for kind in KINDS))
    columns = np.column_stack([*rounds.work.features(), rounds.passes])
    given = np.asarray([known.get(name, 0.0) for name in names])
    free = [at for at, name in enumerate(names) if name not in known]
    factors = [at for at, own in enumerate(free) if own >= len(COEFFICIENTS)]
    found = _least_relative_error(columns[:, free], rounds.seconds - columns @ given, rounds.seconds, factors)
    for own, value in zip(free, found, strict=True):
        known[names[own]] = max(MIN_FACTOR, value) if own >= len(COEFFICIENTS) else value
    return RoundOverhead(**known)


def _least_relative_error(
    columns: FloatArray, target: FloatArray, seconds: FloatArray, factors: Sequence[int] = ()
) -> list[float]:
    """``[C]`` weights, 0 or more, of ``columns`` ``[N, C]`` for the least ``|columns @ weights - target| / seconds``.

    ``factors``: columns whose weights have the prior of `FACTOR_DEVIATION`.
    """
    scale = np.where(columns.max(axis=0) > 0, columns.max(axis=0), 1.0)
    design, aim = columns / scale / seconds[:, None], target / seconds
    prior = np.zeros((len(factors), columns.shape[1]))
    prior[np.arange(len(factors)), factors] = 1 / scale[list(factors)] / FACTOR_DEVIATION
    prior_aim = np.full(len(factors), 1 / FACTOR_DEVIATION)
    weights, deviation = np.ones(len(aim)), 0.1
    for _ in range(ITERATIONS):
        root = np.sqrt(weights)
        rows = np.vstack([design * root[:, None], prior * deviation])
        found, _ = nnls(rows, np.concatenate([root * aim, prior_aim * deviation]))
        residual = np.abs(design @ found - aim)
        deviation = max(1.4826 * float(np.median(residual)), 1e-6)
        weights = np.minimum(1.0, HUBER * deviation / np.maximum(residual, 1e-12)) * (residual < OUTLIER * deviation)
    values: list[float] = (found / scale).tolist()
    return values


def fit_report(rounds: MeasuredRounds, overhead: RoundOverhead, window: int = 50) -> dict[str, Any]:
    """Errors of predicted seconds: of single rounds, over all and by requests in the round, and of windows' sums."""
    predicted = rounds.predicted(overhead)
    error = predicted / rounds.seconds - 1
    count = len(rounds) // window * window
    sums = [own[:count].reshape(-1, window).sum(axis=1) for own in (predicted, rounds.seconds)]
    requests = np.asarray(rounds.work.requests)
    edges = (1, 2, 4, 8, 16, 32)
    batches = np.asarray(edges)[np.searchsorted(edges, requests.clip(1, edges[-1]))]
    return {
        "rounds": len(rounds),
        "median_absolute_relative_error": _median(np.abs(error)),
        "by_requests_up_to": {
            str(batch): {
                "rounds": int((batches == batch).sum()),
                "median_absolute_relative_error": _median(np.abs(error[batches == batch])),
                "median_relative_error": _median(error[batches == batch]),
            }
            for batch in edges
        },
        f"windows_of_{window}_rounds": {
            "median_absolute_relative_error": _median(np.abs(sums[0] / sums[1] - 1)),
            "largest_absolute_relative_error": None if not count else float(np.abs(sums[0] / sums[1] - 1).max()),
        },
        "error_of_the_sum": float(predicted.sum() / rounds.seconds.sum() - 1),
    }


def _median(values: FloatArray) -> float | None:
    return float(np.median(values)) if len(values) else None
