"""Oracles on replay: price and result found together, by Dinkelbach's iteration."""

from __future__ import annotations

from specpilot.controllers import CostSurface, Decision, RequestOracle, RoundState, UniformOracle
from specpilot.controllers.cost_lookup import RoundSetting
from specpilot.controllers.oracle import Foresight
from specpilot.envs.replay import Served
from specpilot.envs.replay_state import Schedule
from specpilot.train.scenarios import Scenario, Stage

PASSES = 3


class _CrowdPrice:
    """A second is worth what each request in the system earns in it, times their number: waiting counts too."""

    worth: float
    """Tokens per request-second."""
    in_system = 1

    def note(self, state: RoundState) -> None:
        self.in_system = state.running + state.waiting

    def price(self, setting: RoundSetting) -> float:
        """See `_Oracle.price`."""
        return self.worth * self.in_system


class UniformCrowdOracle(_CrowdPrice, UniformOracle):
    """`UniformOracle` for traffic that queues."""

    def __init__(self, foresight: Foresight, surface: CostSurface, longest: int, worth: float) -> None:
        UniformOracle.__init__(self, foresight, surface, longest)
        self.worth = worth

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        self.note(state)
        return super().decide(state)


class RequestCrowdOracle(_CrowdPrice, RequestOracle):
    """`RequestOracle` for traffic that queues."""

    def __init__(self, foresight: Foresight, surface: CostSurface, longest: int, worth: float) -> None:
        RequestOracle.__init__(self, foresight, surface, longest)
        self.worth = worth

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        self.note(state)
        return super().decide(state)


def serve_oracle(
    stage: Stage, scenario: Scenario, schedule: Schedule, per_request: bool, price: float, passes: int = PASSES
) -> Served:
    """The best of ``passes`` passes, each priced with what the best before it earned; ``price`` is the first's.

    Prices and results are in the scenario's figure: tokens per second, or per request-second where requests queue.
    """
    longest, best = stage.trace.max_num_speculative_tokens, None
    for _ in range(passes):
        engine = stage.engine(schedule)
        if scenario.is_open:
            crowd = RequestCrowdOracle if per_request else UniformCrowdOracle
            served = engine.serve(crowd(engine, stage.surface, longest, price))
        else:
            kind = RequestOracle if per_request else UniformOracle
            served = engine.serve(kind(engine, stage.surface, longest, price))
        if best is not None and getattr(served, scenario.figure) <= getattr(best, scenario.figure):
            break
        best, price = served, getattr(served, scenario.figure)
    assert best is not None
    return best
