"""Draft in full, verify what is worth it: vLLM's adaptive verification with its online acceptance estimator."""

from __future__ import annotations

import numpy as np

from .controller import (
    EVERY_LEVEL,
    BoolArray,
    Controller,
    Decision,
    DraftLevel,
    FloatArray,
    IntArray,
    RoundOutcome,
    RoundState,
)
from .cost_lookup import CostLookup, RoundSetting
from .cost_surface import CostSurface

MAX_MARGIN = 40.0
_RIDGE = 1e-3


class MarginLogistic:
    """For each depth the chance ``sigmoid(weight · margin + bias)`` that a token is accepted, fitted while serving.

    Observations are not stored: each adds to the gradient and the curvature of its depth, and `refit` takes one Newton
    step and forgets them. A depth seen fewer than ``min_observations`` times keeps its parameters, and so does one
    whose weight would turn negative (vLLM's rules; they start at weight 0 and bias 1.5).
    """

    def __init__(self, depths: int, min_observations: int = 50) -> None:
        self.weight = np.zeros(depths)
        self.bias = np.full(depths, 1.5)
        self.min_observations = min_observations
        self._forget()

    def predict(self, margin: FloatArray) -> FloatArray:
        """``[..., K]`` chances for margins ``[..., K]`` in the order of depths."""
        score = self.weight * np.minimum(margin, MAX_MARGIN) + self.bias
        chance: FloatArray = 0.5 + 0.5 * np.tanh(0.5 * score)
        return chance

    def add(self, margin: FloatArray, accepted: BoolArray, seen: BoolArray) -> None:
        """Count the tokens ``[B, K]`` whose fate was ``seen``."""
        margin = np.where(seen, np.minimum(margin, MAX_MARGIN), 0.0)
        chance = self.predict(margin)
        error = np.where(seen, accepted - chance, 0.0)
        curvature = np.where(seen, chance * (1 - chance), 0.0)
        self._gradient += np.stack([(error * margin).sum(axis=0), error.sum(axis=0)])
        weighted = curvature * margin
        self._curvature += np.stack([(weighted * margin).sum(axis=0), weighted.sum(axis=0), curvature.sum(axis=0)])
        self._count += seen.sum(axis=0)

    def refit(self) -> None:
        """One Newton step per depth, then start counting anew."""
        steepest, cross, flattest = self._curvature + np.asarray([[_RIDGE], [0.0], [_RIDGE]])
        by_weight, by_bias = self._gradient
        determinant = np.maximum(steepest * flattest - cross**2, 1e-12)
        weight = self.weight + (flattest * by_weight - cross * by_bias) / determinant
        bias = self.bias + (steepest * by_bias - cross * by_weight) / determinant
        good = (self._count >= self.min_observations) & (weight >= 0) & np.isfinite(weight) & np.isfinite(bias)
        self.weight, self.bias = np.where(good, weight, self.weight), np.where(good, bias, self.bias)
        self._forget()

    def _forget(self) -> None:
        depths = len(self.bias)
        self._gradient, self._curvature, self._count = np.zeros((2, depths)), np.zeros((3, depths)), np.zeros(depths)


class AdaptiveVerificationController(Controller):
    """vLLM's ``enable_adaptive_verification`` for drafters without a confidence head (pull requests 47808, 52228).

    Every request drafts K tokens. Request i's token at depth j survives with the product of its chances up to j; the b
    best tokens of the batch are verified, with b maximising (requests + their survival) / (draft + verify seconds).
    The chances are a `MarginLogistic`, refitted every ``refit_interval`` rounds; before ``full_refits`` refits
    everything is verified, so that what it learns from is not what it chose.

    vLLM sizes b from an earlier step's margins, to save a synchronisation; this uses the round's own. It takes the
    margin of the perturbed logits, which is the plain one at temperature 0, and the cost at the batch's own context.
    In ``rejection`` mode an engine verifies everything, and this is a constant length.
    """

    asked_levels = EVERY_LEVEL
    level_features = ("margin",)
    trims = True

    def __init__(
        self,
        surface: CostSurface,
        num_speculative_tokens: int,
        refit_interval: int = 100,
        full_refits: int = 3,
        min_observations: int = 50,
    ) -> None:
        for name, value in (("num_speculative_tokens", num_speculative_tokens), ("refit_interval", refit_interval)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.num_speculative_tokens = num_speculative_tokens
        self.refit_interval = refit_interval
        self.full_refits = full_refits
        self.logistic = MarginLogistic(num_speculative_tokens, min_observations)
        self.refits = 0
        self._rounds = 0
        self._costs = CostLookup(surface)
        self._setting: RoundSetting | None = None
        self._margin = np.empty((0, num_speculative_tokens))

    def decide(self, state: RoundState) -> Decision:
        """K for every request."""
        self._setting = self._costs.setting(state, asks_every_level=True)
        self._margin = np.full((len(state.request_ids), self.num_speculative_tokens), np.nan)
        return Decision(np.full(len(state.request_ids), self.num_speculative_tokens, dtype=np.int64))

    def new_lengths(self, level: DraftLevel) -> IntArray:
        """Note the margins; never stop."""
        if level.depth <= self.num_speculative_tokens:
            self._margin[level.requests, level.depth - 1] = level.margin
        return super().new_lengths(level)

    def verify_lengths(self, num_drafted: IntArray) -> IntArray:
        """The tokens whose survival pays for their verification."""
        if self.refits < self.full_refits or self._setting is None:
            return num_drafted
        batch, depths = self._margin.shape
        drafted = num_drafted[:, None] > np.arange(depths)  # [B, K]
        # A token whose margin was not told is never worth more than the one before it.
        chance = np.where(np.isnan(self._margin), 1.0, self.logistic.predict(self._margin))
        survival = np.where(drafted, chance.cumprod(axis=1), -1.0).ravel()
        total = int(num_drafted.sum())
        best = np.argsort(-survival, kind="stable")[:total]  # Stable: of two equals the shallower comes first.
        tokens = batch + np.concatenate([[0.0], survival[best].cumsum()])
        draft = self._costs.levels(self._setting, drafted.sum(axis=0))
        verify = self._costs.verify(self._setting, batch * depths)[: total + 1]
        budget = int((tokens / (draft + verify)).argmax())
        return np.bincount(best[:budget] // depths, minlength=batch)

    def observe(self, outcome: RoundOutcome) -> None:
        """Count the tokens whose fate was seen: the accepted ones and the first rejected one."""
        depth = np.arange(self.num_speculative_tokens)
        accepted = outcome.accepted_length[:, None] > depth
        seen = (depth <= outcome.accepted_length[:, None]) & (depth < outcome.num_verified[:, None])
        self.logistic.add(self._margin, accepted, seen & ~np.isnan(self._margin))
        self._rounds += 1
        if self._rounds % self.refit_interval == 0:
            self.logistic.refit()
            self.refits += 1
