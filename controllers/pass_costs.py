"""Seconds of one kind of model pass over batch, tokens and context: the grid, the monotone fit, the interpolation."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from .controller import FloatArray

KINDS = ("draft", "verify", "catch_up", "prefill")
REQUIRED_FIELDS = ("hardware", "dtype", "versions")
Axes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class CostSurfaceError(ValueError):
    """A cost surface cannot be loaded or lacks what is asked of it; the message is one line with the fix."""


class PassLimits(NamedTuple):
    """What an engine can do in one pass."""

    max_batch: int
    max_context: int
    """Cached and new tokens of a request together, 2 or more."""


class PassTimer(Protocol):
    """Times model passes of an idle engine. All requests of a pass are alike."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of `KINDS` that the engine has; ``verify`` and ``prefill`` always, the others with a model drafter."""

    @property
    def limits(self) -> PassLimits:
        """Largest pass."""

    def time_pass(self, kind: str, batch: int, tokens: int, context: int) -> float:
        """Run one pass of ``batch`` requests, ``tokens`` new on ``context`` cached tokens each; returns seconds."""

    def fingerprint_fields(self) -> dict[str, str]:
        """Everything the seconds depend on: `REQUIRED_FIELDS`, model shapes and what else matters."""


@runtime_checkable
class ProfiledEngine(Protocol):
    """An engine that can hand out a `PassTimer`."""

    def profiler(self) -> PassTimer:
        """Time passes of this engine."""


@dataclass(frozen=True)
class CostGrid:
    """Where to measure. The defaults are meant to take a CPU of two cores one to two minutes on a small pair."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Requests per ``draft`` and ``verify`` pass."""
    chunk_batches: tuple[int, ...] = (1, 4)
    """Requests per ``catch_up`` and ``prefill`` pass: bound by compute, hence nearly linear, so two points do."""
    verify_tokens: tuple[int, ...] = (1, 2, 3, 5, 9)
    """Tokens per request, the root included."""
    draft_tokens: tuple[int, ...] = (1, 2)
    """1: a usual level; 2: the first level after a round in which every draft was accepted."""
    catch_up_tokens: tuple[int, ...] = (16, 64, 256)
    prefill_tokens: tuple[int, ...] = (16, 64, 256)
    contexts: tuple[int, ...] = (64, 256, 512)
    """Cached tokens of each request before the pass."""
    repeats: int = 7

    def __post_init__(self) -> None:
        for name in ("batches", "chunk_batches", *(f"{kind}_tokens" for kind in KINDS), "contexts"):
            try:
                check_axis(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")

    def axes(self, kind: str, limits: PassLimits) -> Axes:
        """Batches, tokens and contexts of ``kind``, cut to what an engine can do.

        Points beyond a limit move to the limit, so that it is measured too: batches to ``max_batch``, tokens to half
        of ``max_context``, contexts to what the kind's most tokens leave of it. The grid stays a full box.
        """
        tokens = _cut(getattr(self, f"{kind}_tokens"), max(1, limits.max_context // 2))
        batches = self.batches if kind in ("draft", "verify") else self.chunk_batches
        return _cut(batches, limits.max_batch), tokens, _cut(self.contexts, limits.max_context - tokens[-1])


def check_axis(points: Any) -> tuple[int, ...] | list[int]:
    """Return ``points`` if they are positive, strictly increasing integers; ``ValueError`` says what is wrong."""
    if not isinstance(points, list | tuple) or not points or any(type(point) is not int for point in points):
        raise ValueError(f"must be one or more integers, got {points!r}")
    if points[0] < 1 or any(low >= high for low, high in itertools.pairwise(points)) or points[-1] >= 2**31:
        raise ValueError(f"must be positive, strictly increasing and below 2**31, got {points!r}")
    return points


def _cut(points: tuple[int, ...], limit: int) -> tuple[int, ...]:
    return tuple(sorted({min(point, limit) for point in points}))


@dataclass(frozen=True, eq=False)
class PassCosts:
    """Seconds of one kind of pass on a box of grid points, and their continuation to all others."""

    axes: Axes
    """Batches, tokens per request, contexts."""
    samples: FloatArray
    """``[batches, tokens, contexts, repeats]`` seconds as measured."""
    median: FloatArray = field(init=False)
    """``[batches, tokens, contexts]`` seconds."""
    spread: FloatArray = field(init=False)
    """Interquartile range of the samples, same shape, seconds."""
    fitted: FloatArray = field(init=False)
    """The median made monotone (`_monotone`), same shape, seconds."""
    _points: list[FloatArray] = field(init=False)
    _terms: dict[tuple[int, ...], FloatArray] = field(init=False)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.samples).all() and (self.samples > 0).all()):
            raise CostSurfaceError("a pass took no time or no finite time; use a clock of finer resolution")
        low, middle, high = np.quantile(self.samples, [0.25, 0.5, 0.75], axis=-1)
        fitted = _monotone(middle)
        # An axis of one point is given a second one, where the cost is the same.
        points = [np.asarray(own if len(own) > 1 else (own[0], own[0] + 1), dtype=np.float64) for own in self.axes]
        values = {"median": middle, "spread": high - low, "fitted": fitted}
        for name, value in {**values, "_points": points, "_terms": _terms(points, fitted)}.items():
            object.__setattr__(self, name, value)

    def seconds(self, batch: ArrayLike, tokens: ArrayLike, context: ArrayLike) -> FloatArray:
        """See `CostSurface.seconds`; always an array, of the broadcast shape."""
        where = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (batch, tokens, context)))
        cells, weights, excess = [], [], []
        for points, value in zip(self._points, where, strict=True):
            inside = np.clip(value, points[0], points[-1])
            cell = np.clip(np.searchsorted(points, inside, side="right") - 1, 0, len(points) - 2)
            weight = (inside - points[cell]) / (points[cell + 1] - points[cell])
            cells.append(cell)
            weights.append((1 - weight, weight))
            excess.append(value.clip(points[-1]) - points[-1])
        total = np.zeros(where[0].shape)
        beyond = [bool(np.any(value > 0)) for value in excess]
        for axes, table in self._terms.items():
            if not all(beyond[axis] for axis in axes):
                continue
            reach = math.prod((excess[axis] for axis in axes), start=np.ones(()))
            for corner in itertools.product((0, 1), repeat=3):
                share = math.prod((weights[axis][side] for axis, side in enumerate(corner)), start=reach)
                total += share * table[tuple(cell + side for cell, side in zip(cells, corner, strict=True))]
        return np.where((where[0] > 0) & (where[1] > 0), total, 0.0)


def _monotone(values: FloatArray) -> FloatArray:
    """The mean of the least non-decreasing function above ``values`` and the greatest below, along all axes.

    Both are monotone, hence so is their mean; where ``values`` already is, nothing changes.
    """
    upper, lower = values, values
    for axis in range(values.ndim):
        upper = np.maximum.accumulate(upper, axis=axis)
        lower = np.flip(np.minimum.accumulate(np.flip(lower, axis), axis=axis), axis)
    return (upper + lower) / 2


def _terms(points: list[FloatArray], fitted: FloatArray) -> dict[tuple[int, ...], FloatArray]:
    """For each set of axes, what a step of one beyond their last points adds, as a table over all grid points.

    A table is the mixed slope of the last segments, made non-negative and monotone in the other axes. A sum of such
    tables times steps never decreases; with the bare slopes it could, where they fall along another axis.
    """
    for axis, own in enumerate(points):
        if fitted.shape[axis] < len(own):
            fitted = fitted.repeat(2, axis=axis)
    terms = {}
    for axes in itertools.chain.from_iterable(itertools.combinations(range(3), size) for size in range(4)):
        table = fitted
        for axis in axes:
            low, high = table.take([-2], axis=axis), table.take([-1], axis=axis)
            table = (high - low) / (points[axis][-1] - points[axis][-2])
        table = _monotone(np.maximum(table, 0.0)) if axes else table
        terms[axes] = np.broadcast_to(table, fitted.shape)
    return terms
