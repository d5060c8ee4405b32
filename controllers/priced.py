"""A controller that sets a price for time, and lets every request earn its own speculation length under it."""

from __future__ import annotations

import math

import numpy as np

from .acceptance import AcceptancePredictor
from .action import Action, FixedPolicy, Policy
from .controller import BoolArray, Controller, Decision, DraftLevel, FloatArray, IntArray, RoundOutcome, RoundState
from .cost_surface import CostSurface
from .cost_table import CostTable
from .observation import gain_of, new_history
from .priced_round import BatchRound, PricedRound, SingleRound
from .round_costs import RoundCosts
from .round_features import RoundFeatures, note_round

__all__ = ["Action", "FixedPolicy", "Policy", "PricedController"]


class PricedController(Controller):
    """Per-request lengths from one action per round.

    A token is drafted, and verified, where its predicted chance of being accepted is worth its seconds on this
    machine at the action's price (`price_rule`). The price's unit is what the engine earns per second at this batch
    size: plain decoding's tokens per second times the running gain. At price 0 time costs nothing: every request gets
    the action's length, and no question is asked, which would cost time too.
    """

    asks_every_level: bool
    trims: bool
    """Both change with the action: False at price 0."""

    def __init__(
        self,
        policy: Policy,
        predictor: AcceptancePredictor,
        surface: CostSurface,
        max_num_speculative_tokens: int = 8,
        max_batch: int = 32,
        max_context: int = 1024,
    ) -> None:
        """``max_batch`` and ``max_context`` bound the cost table.

        Larger batches cost what the largest one does; beyond the last context costs go on with their last slope.
        """
        self.asks_every_level = self.trims = True
        self.policy = policy
        self.predictor = predictor
        self.surface = surface
        self.level_features = predictor.level_features
        self.costs = CostTable.bake(surface, max_batch, max_num_speculative_tokens, max_context)
        self.maximum = max_num_speculative_tokens
        self.max_batch, self.max_context = max_batch, max_context
        self.history: list[float] = new_history().tolist()
        """As `observation.new_history`."""
        self.features = RoundFeatures(self.costs, self.history)
        """Of the last decision's round."""
        self.action = Action(0, 1.0)
        """Of the last decision."""
        self._costs = RoundCosts(self.costs)
        self._first_numbers = predictor.first_numbers
        self._round: PricedRound | None = None
        self._longest_length = 0

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        requests, costs = len(state.request_ids), self._costs
        costs.enter(requests, float(max(state.context_length.tolist())))
        chance = self._first_chances(state)
        self.features.enter(state, chance, costs)
        self.action = action = self.policy.act(self.features)
        self._round = None
        self.asks_every_level = self.trims = action.price > 0
        allowed = np.minimum(state.max_num_speculative_tokens, self.maximum)
        if action.price == 0:
            lengths = np.minimum(allowed, action.max_length)
        elif action.max_length > 0 and max(allowed.tolist()) > 0:
            lengths = self._begin(requests, action).start(state, chance, allowed, self._gain)
        else:
            lengths = np.zeros(requests, dtype=np.int64)
        self._longest_length = max(lengths.tolist())
        return Decision(lengths)

    def _first_chances(self, state: RoundState) -> FloatArray:
        """``[B]`` `AcceptancePredictor.first` in float64, as the compiled replay has it, and in fewer steps."""
        of_rate, of_none, of_temperature, of_greedy, constant = self._first_numbers
        rate, temperature = state.acceptance_rate, state.temperature
        if len(rate) == 1:
            own, heat = rate.item(), temperature.item()
            score = constant + of_temperature * heat + (of_greedy if heat == 0 else 0.0)
            score += of_none if own != own else of_rate * own
            return np.asarray([0.5 + 0.5 * math.tanh(0.5 * score)])
        scores: FloatArray = np.where(rate != rate, of_none, of_rate * rate)
        scores += of_temperature * temperature
        scores += of_greedy * (temperature == 0)
        scores += constant
        scores *= 0.5
        np.tanh(scores, out=scores)
        scores *= 0.5
        scores += 0.5
        return scores

    def _begin(self, requests: int, action: Action) -> PricedRound:
        costs = self._costs
        worth = action.price * self._gain * costs.batch / costs.plain
        kind = SingleRound if requests == 1 else BatchRound
        self._round = kind(costs, action.max_length, worth, self.predictor)
        return self._round

    @property
    def _gain(self) -> float:
        return gain_of(self.history)  # type: ignore[arg-type]

    def keep_drafting(self, level: DraftLevel) -> BoolArray:
        """See `Controller.keep_drafting`."""
        if self._round is None:
            return np.zeros(len(level.requests), dtype=np.bool_)
        return self._round.keep(level)

    def verify_lengths(self, num_drafted: IntArray) -> IntArray:
        """See `Controller.verify_lengths`."""
        return num_drafted if self._round is None else self._round.verified(num_drafted)

    def observe(self, outcome: RoundOutcome) -> None:
        """See `Controller.observe`."""
        seconds = outcome.draft_seconds + outcome.verify_seconds + outcome.catch_up_seconds + outcome.host_seconds
        note_round(
            self.history,
            outcome.num_drafted.tolist(),
            outcome.num_verified.tolist(),
            outcome.accepted_length.tolist(),
            int(outcome.num_committed.sum()),
            self._costs.batch * seconds / self._costs.plain,
            self._longest_length,
            self.action.price,
        )


def feature_array(controller: PricedController) -> FloatArray:
    """``[NUM_FEATURES]`` that the last decision was based on, those that the policy did not read included."""
    return controller.features.array()
