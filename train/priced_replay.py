"""The price rule in compiled replay, with any predictor's chances; with the best one it is the informed ceiling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from specpilot.controllers import AcceptancePredictor, Action, ConstantController
from specpilot.controllers.compiled import compiled
from specpilot.controllers.cost_table import CostTable
from specpilot.controllers.price_rule import ANSWER, ASKED, PLANNED_REQUEST, PLANNING
from specpilot.envs.replay import Served
from specpilot.envs.replay_kernel import price_round
from specpilot.envs.replay_queue import begin
from specpilot.envs.replay_state import Fleet, Recording, Schedule
from specpilot.envs.trace import Trace
from specpilot.train.predictor import CeilingPredictor
from specpilot.train.scenarios import Stage

_DECIDING = (ASKED, ANSWER, PLANNING, PLANNED_REQUEST)


@compiled
def _serve(
    recording: Recording,
    schedule: Schedule,
    fleet: Fleet,
    costs: CostTable,
    prefill_chunk: int,
    max_length: int,
    price: float,
    looks: int,
    hold: int,
) -> None:
    while begin(recording, schedule, fleet, costs, prefill_chunk, 0):
        price_round(recording, schedule, fleet, costs, 0, max_length, price, looks, hold)


def serve_priced(stage: Stage, recording: Recording, schedule: Schedule, action: Action, hold: int = 1) -> Served:
    """Serve ``schedule`` as `PricedController` with a fixed ``action`` would, with the chances of ``recording``.

    The counts of rounds and tokens drafted in the result are 0.
    """
    engine = stage.engine(schedule)
    chunk = stage.config.prefill_chunk
    length, price = action.max_length, float(action.price)
    _serve(recording, schedule, engine.fleet, engine.costs, chunk, length, price, action.asked_levels, hold)
    return engine.serve(ConstantController(0), max_rounds=0)


def ceiling_recording(ceiling: CeilingPredictor, first: AcceptancePredictor, trace: Trace) -> Recording:
    """``trace`` with the chances of the best predictor, which also sees a draft's earlier levels.

    ``first`` says what a request's first token promises: both predictors know only its history then. Raises
    `ValueError` where the recording holds no confidence.
    """
    plain = Recording.of(trace, first)
    assert trace.confidence is not None  # Recording.of has looked.
    temperature = trace.temperature[trace.request_of_position()]
    chance, following = np.empty_like(plain.chance), np.empty_like(plain.following)
    for depth in range(1, trace.max_num_speculative_tokens + 1):
        own, earlier = trace.confidence[:, depth - 1], trace.confidence[:, : depth - 1]
        chance[:, depth - 1], following[:, depth - 1] = ceiling.level(own, temperature, depth, earlier)
    return plain._replace(chance=chance, following=following)


def without_deciding(stage: Stage) -> Stage:
    """The same machine where planning and looking cost nothing."""
    overhead = stage.costs.overhead.copy()
    overhead[list(_DECIDING)] = 0.0
    return replace(stage, costs=stage.costs._replace(overhead=overhead))
