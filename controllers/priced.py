"""A controller that sets a price for time, and lets every request earn its own speculation length under it."""

from __future__ import annotations

import numpy as np

from .acceptance import AcceptancePredictor
from .action import Action, FixedPolicy, Policy
from .controller import BoolArray, Controller, Decision, DraftLevel, FloatArray, IntArray, RoundOutcome, RoundState
from .cost_surface import CostSurface
from .cost_table import CostTable
from .observation import gain_of, new_history
from .planned_round import planned_lengths
from .priced_round import PricedRound, SingleRound
from .round_costs import RoundCosts
from .round_features import RoundFeatures, note_round

__all__ = ["Action", "FixedPolicy", "Policy", "PricedController"]


class PricedController(Controller):
    """Per-request lengths from one action per round.

    A token is drafted, and verified, where its predicted chance of being accepted is worth its seconds on this
    machine at the action's price (`price_rule`). The price's unit is what the engine earns per second at this batch
    size: plain decoding's tokens per second times the running gain. At price 0 time costs nothing: every request gets
    the action's length, and no question is asked, which would cost time too. An action that does not ask plans all
    lengths before the round (`planned_round`).
    """

    asks_every_level: bool
    trims: bool
    """Both change with the action: True where it asks."""

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
        self._round: PricedRound | None = None
        self._longest_length = 0
        if any(tier.price > 0 for tier in policy.tiers):
            from .batch_round import warm_up  # Here, because constant lengths need no compiler.

            warm_up()

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        requests, costs = len(state.request_ids), self._costs
        costs.enter(requests, float(max(state.context_length.tolist())))
        chances = self.predictor.history.of_state(state)
        chance = chances[:, 0]
        self.features.enter(state, chance, costs)
        self.action = action = self.policy.act(self.features)
        self._round = None
        self.asks_every_level = self.trims = action.has_questions
        allowed = np.minimum(state.max_num_speculative_tokens, self.maximum)
        if action.price == 0:
            lengths = np.minimum(allowed, action.max_length)
        elif not action.asks:
            lengths = planned_lengths(costs, state, chances, allowed, action)
        elif action.max_length > 0 and max(allowed.tolist()) > 0:
            lengths = self._begin(requests, action).start(state, chances, allowed, self._gain)
        else:
            lengths = np.zeros(requests, dtype=np.int64)
        self._longest_length = max(lengths.tolist())
        return Decision(lengths)

    def _begin(self, requests: int, action: Action) -> PricedRound:
        costs = self._costs
        worth = action.price * self._gain * costs.batch / costs.plain
        if requests == 1:
            self._round = SingleRound(costs, action.max_length, worth, self.predictor)
        else:
            from .batch_round import BatchRound

            self._round = BatchRound(costs, action.max_length, worth, self.predictor)
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
