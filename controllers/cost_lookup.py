"""Tables of a cost surface, so that a controller prices many decisions in a round without interpolating again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .controller import BoolArray, FloatArray, IntArray, RoundState
from .cost_surface import CostSurface
from .price_rule import idle_requests
from .round_overhead import padding

_MAX_TABLES = 4096


class RoundSetting(NamedTuple):
    """What the price of a round depends on besides the decision."""

    batch: int
    context: int
    """At which all passes are priced: cached tokens of the longest request, rounded to the lookup's step."""
    lag: IntArray
    """``[B]`` as in `RoundState`."""
    per_level: float
    """Seconds beyond the pass of every draft level: the controller's answers if it is asked."""
    per_draft: float
    """Seconds of noise for every drafted token, as the mean over requests (exact where all sample or none)."""
    noise: float
    """Seconds of the noise that a round needs even without drafts."""
    drafting: float
    """Seconds of drafting at all."""


class CostLookup:
    """Seconds of rounds, from tables that are filled from a `CostSurface` the first time they are needed.

    Same approximations as `CostSurface.round_seconds`, and three more: every pass of a round is priced at one context,
    a controller that is asked is asked about every request after every level, and noise is shared out evenly.
    """

    def __init__(self, surface: CostSurface, context_step: int = 64) -> None:
        if context_step < 1:
            raise ValueError(f"context_step must be 1 or more tokens, got {context_step}")
        self.surface = surface
        self.context_step = context_step
        self._tables: dict[tuple[str, int, int, int], FloatArray] = {}

    def setting(self, state: RoundState, asks_every_level: bool = False) -> RoundSetting:
        """What a round of ``state`` depends on."""
        batch, overhead = len(state.request_ids), self.surface.overhead
        longest = int(state.context_length.max(initial=1)) - 1
        context = round(longest / self.context_step) * self.context_step
        noisy = np.count_nonzero(state.temperature > 0)
        noise, drafting = overhead.per_noise_row * float(noisy), overhead.drafting
        if noisy:
            drafting += overhead.noisy_drafting
        per_level = overhead.per_asked_level + overhead.per_asked_token * batch if asks_every_level else 0.0
        return RoundSetting(batch, context, state.lag, per_level, noise / max(batch, 1), noise, drafting)

    def verify(self, setting: RoundSetting, max_drafted: int) -> FloatArray:
        """``[max_drafted + 1]`` seconds of a round that verifies 0, 1, … drafted tokens in all, without drafting."""
        batch, context = setting.batch, setting.context
        key = ("verify", batch, max_drafted, context)
        if key not in self._tables:
            overhead, drafted = self.surface.overhead, np.arange(max_drafted + 1)
            passes = self.surface.seconds("verify", batch, 1 + drafted / max(batch, 1), context)
            beyond = overhead.constant + overhead.per_request * batch + overhead.per_verified_token * drafted
            self._keep(key, overhead.verify_factor * passes + beyond)
        return self._tables[key] + setting.noise

    def draft(self, setting: RoundSetting, tokens: int = 1) -> FloatArray:
        """``[B + 1]`` seconds of a draft level of 0, 1, … B requests with ``tokens`` new ones each."""
        key = ("draft", setting.batch, tokens, setting.context)
        if key not in self._tables:
            overhead, requests = self.surface.overhead, np.arange(setting.batch + 1)
            level = overhead.per_drafted_token * requests + overhead.per_level * (requests > 0)
            if "draft" in self.surface.costs:
                drafting = setting.batch * (requests > 0) if self.surface.drafts_whole_batch else requests
                level += overhead.draft_factor * self.surface.seconds("draft", drafting, tokens, setting.context)
            level += overhead.per_idle_request * idle_requests(requests, setting.batch)
            self._keep(key, level)
        if not setting.per_level and not setting.per_draft:
            return self._tables[key]
        seconds: FloatArray = self._tables[key] + setting.per_level + setting.per_draft * np.arange(setting.batch + 1)
        seconds[0] = 0.0
        return seconds

    def levels(self, setting: RoundSetting, counts: IntArray) -> FloatArray:
        """``[...]`` seconds of draft levels with ``counts[..., j]`` requests each, one new token per request."""
        seconds = self.draft(setting)[counts].sum(axis=-1)
        return np.asarray(seconds + setting.drafting * (counts[..., 0] > 0))

    def round_seconds(self, setting: RoundSetting, lengths: IntArray) -> FloatArray:
        """``[C]`` seconds of rounds that draft and verify ``lengths`` ``[C, B]``."""
        batch, deepest = setting.batch, max(int(lengths.max(initial=0)), 1)
        counts = (lengths[:, :, None] > np.arange(deepest)).sum(axis=1)  # [C, levels]
        verify = self.verify(setting, batch * deepest)[lengths.sum(axis=1)]
        padded = self.surface.overhead.per_padded_token * padding(lengths)
        lagging = self._lag_seconds(setting, lengths > 0, counts[:, 0])
        seconds: FloatArray = self.levels(setting, counts) + verify + padded + lagging
        return seconds

    def _lag_seconds(self, setting: RoundSetting, chosen: BoolArray, first: IntArray) -> FloatArray:
        """``[C]`` seconds more that the lag of the ``chosen`` ``[C, B]`` costs; ``first`` ``[C]`` is their number."""
        lag, kinds = setting.lag, self.surface.costs
        if "draft" not in kinds or not lag.any():
            return np.zeros(len(chosen))
        share = (chosen & (lag == 1)).sum(axis=1) / np.maximum(first, 1)  # Of those that feed two tokens at level 1.
        seconds: FloatArray = share * (self.draft(setting, 2)[first] - self.draft(setting)[first])
        behind = chosen & (lag > 1)
        if behind.any():
            requests = behind.sum(axis=1)
            tokens = (behind * lag).sum(axis=1) / np.maximum(requests, 1)
            seen = np.maximum(setting.context - tokens, 0)
            seconds += self.surface.overhead.catch_up_factor * self.surface.seconds("catch_up", requests, tokens, seen)
        return seconds

    def _keep(self, key: tuple[str, int, int, int], table: FloatArray) -> None:
        if len(self._tables) >= _MAX_TABLES:
            self._tables.clear()
        self._tables[key] = table
