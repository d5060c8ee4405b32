"""Fit the overhead of live rounds: robust non-negative least squares on relative errors."""

from __future__ import annotations

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

    def predicted(self, overhead: RoundOverhead) -> FloatArray:
        """``[N]`` seconds with ``overhead``."""
        return overhead.total_seconds(self.work, *self.passes.T)


def fit_overhead(rounds: MeasuredRounds) -> RoundOverhead:
    """The non-negative coefficients and factors that explain the rounds' seconds with the least relative error."""
    columns = np.column_stack([*rounds.work.features(), rounds.passes])
    scale = np.where(columns.max(axis=0) > 0, columns.max(axis=0), 1.0)
    design = columns / scale / rounds.seconds[:, None]
    at = len(COEFFICIENTS) + np.arange(len(KINDS))
    prior = np.zeros((len(KINDS), columns.shape[1]))
    prior[np.arange(len(KINDS)), at] = 1 / scale[at] / FACTOR_DEVIATION
    aim = np.full(len(KINDS), 1 / FACTOR_DEVIATION)
    weights, deviation = np.ones(len(rounds)), 0.1
    for _ in range(ITERATIONS):
        root = np.sqrt(weights)
        rows = np.vstack([design * root[:, None], prior * deviation])
        found, _ = nnls(rows, np.concatenate([root, aim * deviation]))
        residual = np.abs(design @ found - 1)
        deviation = max(1.4826 * float(np.median(residual)), 1e-6)
        weights = np.minimum(1.0, HUBER * deviation / np.maximum(residual, 1e-12)) * (residual < OUTLIER * deviation)
    values = (found / scale).tolist()
    factors = {f"{kind}_factor": max(MIN_FACTOR, values[index]) for kind, index in zip(KINDS, at, strict=True)}
    return RoundOverhead(**dict(zip(COEFFICIENTS, values, strict=False)), **factors)


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
