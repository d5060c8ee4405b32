"""The goodput rule: the uniform length that promises most tokens per second."""

from __future__ import annotations

import numpy as np

from .controller import Controller, Decision, FloatArray, RoundOutcome, RoundState
from .cost_lookup import CostLookup
from .cost_surface import CostSurface


class TurboSpecController(Controller):
    """SmartSpec / TurboSpec (arXiv 2406.14066): argmax over k of sum_i E[tokens | alpha_i, k] / seconds(k).

    A request's next draft token is accepted with the chance alpha_i, whatever its depth, so that a draft of k gains
    ``1 + alpha + … + alpha^k`` tokens. alpha is a moving average of what was observed: accepted tokens over tokens
    whose fate was seen, the accepted ones and the first rejected one (accepted over proposed would be too low under the
    rule's own model). Seconds are k draft levels and one verification; the paper prices no catch-up, nor does this.

    Once it has chosen 0 it observes nothing more. ``probe_interval`` rounds later, if given, it drafts
    ``probe_length`` tokens for one round.
    """

    plans = True  # It takes more time to decide than a plan (benchmarks/decision.py).

    def __init__(
        self,
        surface: CostSurface,
        max_num_speculative_tokens: int,
        weight: float = 0.1,
        initial_rate: float = 0.7,
        probe_interval: int | None = None,
        probe_length: int = 1,
    ) -> None:
        """``weight``: of a new observation in the averages; ``initial_rate``: alpha before any observation."""
        if max_num_speculative_tokens < 1:
            raise ValueError(f"max_num_speculative_tokens must be 1 or more, got {max_num_speculative_tokens}")
        if not (0 < weight <= 1 and 0 <= initial_rate <= 1):
            raise ValueError(f"weight and initial_rate must be within 0 … 1, got {weight} and {initial_rate}")
        if probe_interval is not None and probe_interval < 1:
            raise ValueError(f"probe_interval must be 1 or more rounds or None, got {probe_interval}")
        self.maximum = max_num_speculative_tokens
        self.weight = weight
        self.probe_interval = probe_interval
        self.probe_length = probe_length
        self._costs = CostLookup(surface)
        self._requests: tuple[str, ...] = ()
        self._pooled = np.asarray([initial_rate, 1.0])  # Averages of accepted and of seen tokens.
        self._history: dict[str, FloatArray] = {}
        self._rounds_off = 0

    def rates(self, requests: tuple[str, ...]) -> FloatArray:
        """``[B]`` alpha of each request, which starts at the pooled one."""
        averages = np.asarray([self._history.get(request, self._pooled) for request in requests])
        rates: FloatArray = averages[:, 0] / averages[:, 1]
        return rates

    def goodput(self, state: RoundState) -> FloatArray:
        """``[K + 1]`` tokens per second that lengths 0 … K promise; a request drafts no more than it may."""
        lengths = np.arange(self.maximum + 1)
        powers = self.rates(state.request_ids)[:, None] ** lengths
        allowed = np.minimum(lengths, state.max_num_speculative_tokens[:, None])  # [B, K + 1]
        tokens = np.take_along_axis(powers.cumsum(axis=1), allowed, axis=1).sum(axis=0)
        setting = self._costs.setting(state)
        levels = (state.max_num_speculative_tokens[:, None] > lengths[:-1]).sum(axis=0)  # [K] requests per level
        counts = np.where(lengths[:-1] < lengths[:, None], levels, 0)  # [K + 1, K]
        verify = self._costs.verify(setting, setting.batch * self.maximum)[allowed.sum(axis=0)]
        goodput: FloatArray = tokens / (self._costs.levels(setting, counts) + verify)
        return goodput

    def decide(self, state: RoundState) -> Decision:
        """The best length for all requests, or a probe."""
        self._requests = state.request_ids
        length = int(self.goodput(state).argmax())
        self._rounds_off = self._rounds_off + 1 if length == 0 else 0
        if self.probe_interval is not None and self._rounds_off > self.probe_interval:
            length, self._rounds_off = self.probe_length, 0
        return Decision(np.full(len(state.request_ids), length, dtype=np.int64))

    def observe(self, outcome: RoundOutcome) -> None:
        """Update the averages of the requests that verified a draft, and the pooled ones."""
        kept = {request: self._history[request] for request in self._requests if request in self._history}
        accepted = outcome.accepted_length.astype(np.float64)
        seen = accepted + (outcome.accepted_length < outcome.num_verified)
        for index in np.flatnonzero(seen).tolist():
            new, request = np.asarray([accepted[index], seen[index]]), self._requests[index]
            before = kept.get(request, self._pooled)
            kept[request] = before + self.weight * (new - before)
        self._history = kept
        if seen.any():
            pooled = np.asarray([accepted.sum(), seen.sum()]) / np.count_nonzero(seen)
            self._pooled = self._pooled + self.weight * (pooled - self._pooled)
