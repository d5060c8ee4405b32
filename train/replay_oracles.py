"""Oracles on replay: price, weights and result found together, pass after pass (Dinkelbach's iteration)."""

from __future__ import annotations

from collections.abc import Mapping

from specpilot.controllers import CostSurface, Decision, RequestOracle, RoundState, UniformOracle
from specpilot.controllers.cost_lookup import RoundSetting
from specpilot.controllers.oracle import Foresight, Oracle
from specpilot.envs.replay import Served
from specpilot.envs.replay_state import Schedule
from specpilot.train.scenarios import Scenario, Stage

PASSES = 4
_Given = tuple[Foresight, CostSurface, int, float]
"""Foresight, costs, longest length, price of a second."""


class _CrowdOracle(Oracle):
    """For traffic that queues: a second is worth what each request in the system earns in it, times their number."""

    def __init__(
        self, foresight: Foresight, surface: CostSurface, longest: int, worth: float, weights: Mapping[str, float]
    ) -> None:
        """``worth``: tokens per request-second."""
        super().__init__(foresight, surface, longest, weights=weights)
        self._worth = worth
        self._in_system = 1

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        self._in_system = state.running + state.waiting
        return super().decide(state)

    def price(self, setting: RoundSetting) -> float:
        """See `Oracle.price`; waiting counts too."""
        return self._worth * self._in_system


class UniformCrowdOracle(_CrowdOracle, UniformOracle):
    """`UniformOracle` for traffic that queues."""


class RequestCrowdOracle(_CrowdOracle, RequestOracle):
    """`RequestOracle` for traffic that queues."""


def serve_oracle(
    stage: Stage, scenario: Scenario, schedule: Schedule, per_request: bool, price: float, passes: int = PASSES
) -> Served:
    """The best of ``passes`` passes, each with the price and the weights that the best before it came to.

    Prices and results are in the scenario's figure: tokens per second, or per request-second where requests queue.
    ``price`` is the first pass's; in it all tokens count the same. A common length is chosen both with and without
    leaving drafters behind: who chooses round by round pays for coming back, and so stays off for too long.
    """
    shortest = (0,) if per_request else (0, 1)
    runs = [_serve(stage, scenario, schedule, per_request, price, passes, least) for least in shortest]
    return max(runs, key=lambda own: float(getattr(own, scenario.figure)))


def _serve(
    stage: Stage, scenario: Scenario, schedule: Schedule, per_request: bool, price: float, passes: int, shortest: int
) -> Served:
    best: Served | None = None
    weights: Mapping[str, float] = {}
    for _ in range(passes):
        engine = stage.engine(schedule)
        given: _Given = (engine, stage.surface, stage.trace.max_num_speculative_tokens, price)
        oracle = _by_request(scenario, given, weights) if per_request else _uniform(scenario, given, weights, shortest)
        served = engine.serve(oracle)
        if best is not None and getattr(served, scenario.figure) <= getattr(best, scenario.figure):
            break
        best, price, weights = served, getattr(served, scenario.figure), oracle.weights
    assert best is not None
    return best


def _by_request(scenario: Scenario, given: _Given, weights: Mapping[str, float]) -> Oracle:
    return RequestCrowdOracle(*given, weights) if scenario.is_open else RequestOracle(*given, weights=weights)


def _uniform(scenario: Scenario, given: _Given, weights: Mapping[str, float], shortest: int) -> Oracle:
    own = UniformCrowdOracle(*given, weights) if scenario.is_open else UniformOracle(*given, weights=weights)
    own.shortest = shortest
    return own
