"""A controller that sets a price for time, and lets every request earn its own speculation length under it."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .acceptance import AcceptancePredictor
from .action import Action, Features, FixedPolicy, Policy
from .controller import Controller, Decision, DraftLevel, FloatArray, IntArray, Looks, RoundOutcome, RoundState
from .cost_surface import CostSurface
from .cost_table import CostTable
from .held_lengths import HeldLengths
from .observation import gain_of, new_history
from .round_costs import RoundCosts
from .round_features import RoundFeatures, note_round

if TYPE_CHECKING:
    from .planned_round import PlannedRound

__all__ = ["Action", "FixedPolicy", "Policy", "PricedController"]


class PricedController(Controller):
    """Per-request lengths from one action per round.

    Lengths are planned before the round, from what each request's history promises and what a round takes on this
    machine at the action's price (`price_rule`). An action with looks plans them anew after each of the first levels,
    from what the drafter tells of its tokens. At price 0 time costs nothing: every request gets the action's length.
    """

    asked_levels: int
    trims: bool
    """Both change: a round with looks asks, and where a look finds that a token is not even worth verifying, trims."""

    def __init__(
        self,
        policy: Policy,
        predictor: AcceptancePredictor,
        surface: CostSurface,
        max_num_speculative_tokens: int = 8,
        max_batch: int = 32,
        max_context: int = 1024,
        hold: int = 1,
    ) -> None:
        """``max_batch`` and ``max_context`` bound the cost table.

        Larger batches cost what the largest one does; beyond the last context costs go on with their last slope.
        ``hold``: rounds that a decision holds (`HeldLengths`); of one with looks, who drafts at most how much. Rounds
        in which it only holds are not noted in the history.
        """
        if hold < 1:
            raise ValueError(f"hold must be 1 or more rounds, got {hold}")
        self.policy = policy
        self.predictor = predictor
        self.surface = surface
        self.level_features = predictor.level_features
        self.costs = CostTable.bake(surface, max_batch, max_num_speculative_tokens, max_context)
        self.maximum = max_num_speculative_tokens
        self.max_batch, self.max_context = max_batch, max_context
        self.history: list[float] = new_history().tolist()
        """As `observation.new_history`."""
        self.action = Action(0, 1.0)
        """Of the last decision."""
        self._costs = RoundCosts(self.costs)
        self.features = RoundFeatures(self.costs, self._costs, self.history, self._first_chances)
        """Of the last decision's round."""
        self._round: PlannedRound | None = None
        self._longest_length = 0
        self._held = HeldLengths(hold)
        self._holds = False
        self._ask(max(tier.asked_levels for tier in policy.tiers))
        self._compiled: ModuleType | None = None
        if any(tier.price > 0 for tier in policy.tiers):
            from . import planned_round  # Here, because constant lengths need no compiler.

            planned_round.warm_up()
            self._compiled = planned_round

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        allowed = np.minimum(state.max_num_speculative_tokens, self.maximum)
        held = self._held.lengths(state.request_ids)
        self._holds = held is not None
        if held is not None:
            return self._hold(state, np.minimum(held, allowed))
        requests = len(state.request_ids)
        self._costs.enter(requests, float(max(state.context_length.tolist())))
        self.features.enter(state)
        seen: Features = self.features
        if self._compiled is not None and requests > 1 and self.policy.feature_names:
            seen = self._compiled.round_features(state, self._first_chances(state), self.history, self.costs)
        self.action = action = self.policy.act(seen)
        self._round, self.plans = None, action.price > 0
        self._ask(action.asked_levels)
        if action.price == 0:
            lengths = np.minimum(allowed, action.max_length)
        elif action.max_length > 0 and max(allowed.tolist()) > 0:
            lengths = self._plan(state, allowed)
        else:
            lengths = np.zeros(requests, dtype=np.int64)
        given: list[int] = lengths.tolist()
        self._longest_length = max(given)
        # Not what is left of a request's tokens, but what is left of its length.
        if action.price == 0:
            given = [action.max_length] * requests
        elif self.asked_levels:
            given = [action.max_length if length else 0 for length in given]
        self._held.note(state.request_ids, given)
        return Decision(lengths, self._looks())

    def _hold(self, state: RoundState, lengths: IntArray) -> Decision:
        """A round of the last decision: who drafts at most how much. Looks are taken anew."""
        self._round, self.plans = None, False
        self._ask(self.action.asked_levels)
        if self.asked_levels and max(lengths.tolist()) > 0:
            self._begin(self.action).begin(state, lengths)
        return Decision(lengths, self._looks())

    def _plan(self, state: RoundState, allowed: IntArray) -> IntArray:
        if self.asked_levels:
            return self._begin(self.action).plan(state, allowed)
        assert self._compiled is not None
        lengths: IntArray = self._compiled.planned_lengths(
            self.costs, self.action, self.predictor.history, state, allowed
        )
        return lengths

    def _first_chances(self, state: RoundState) -> FloatArray:
        """``[B]`` that each request's first draft is accepted, from its history."""
        logistics = self.predictor.history
        if self._compiled is None:
            return logistics.of_state(state)[:, 0]
        chances: FloatArray = self._compiled.first_chances(logistics, state)
        return chances

    def _looks(self) -> Looks | None:
        """The round itself, if the engine can ask it without the detour through this controller."""
        if self._round is None or not self.asked_levels or self.predictor.table is None:
            return None
        looks: Looks = self._round
        return looks

    @property
    def hold(self) -> int:
        """Rounds that a decision holds; may be set."""
        return self._held.rounds

    @hold.setter
    def hold(self, rounds: int) -> None:
        self._held = HeldLengths(rounds)

    def _ask(self, levels: int) -> None:
        # A predictor that reads nothing of a level has nothing to learn by a look.
        self.asked_levels = levels if self.predictor.level_features else 0
        self.trims = False

    def _begin(self, action: Action) -> PlannedRound:
        assert self._compiled is not None
        self._round = self._compiled.PlannedRound(self.costs, action, self.predictor, self.asked_levels)
        return self._round

    def new_lengths(self, level: DraftLevel) -> IntArray:
        """See `Controller.new_lengths`."""
        if self._round is None:
            return super().new_lengths(level)
        lengths = self._round.look(level)
        self.trims = self._round.trims
        return lengths

    def verify_lengths(self, num_drafted: IntArray) -> IntArray:
        """See `Controller.verify_lengths`."""
        return num_drafted if self._round is None else self._round.verified(num_drafted)

    def observe(self, outcome: RoundOutcome) -> None:
        """See `Controller.observe`."""
        if self._holds:
            return
        seconds = outcome.draft_seconds + outcome.verify_seconds + outcome.catch_up_seconds + outcome.host_seconds
        tokens: int = sum(outcome.num_committed.tolist())  # NumPy's own sum takes longer for the few that there are.
        plain = self._costs.batch * seconds / self._costs.plain
        if not outcome.is_timed:  # It went as those before it.
            plain = tokens / gain_of(self.history)  # type: ignore[arg-type]
        note_round(
            self.history,
            outcome.num_drafted.tolist(),
            outcome.num_verified.tolist(),
            outcome.accepted_length.tolist(),
            tokens,
            plain,
            self._longest_length,
            self.action.price,
        )


def feature_array(controller: PricedController) -> FloatArray:
    """``[NUM_FEATURES]`` that the last decision was based on, those that the policy did not read included."""
    return controller.features.array()
