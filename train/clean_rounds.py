"""Rounds that differ in one thing at a time: requests alike, served by controllers in turn, between timed passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from specpilot.controllers import (
    KINDS,
    AcceptancePredictor,
    Action,
    ConstantController,
    Controller,
    CostSurface,
    FixedPolicy,
    PricedController,
)
from specpilot.controllers.acceptance import LEVEL_INPUTS
from specpilot.controllers.acceptance_history import HISTORY_DEPTHS, HISTORY_INPUTS
from specpilot.controllers.controller import FloatArray, IntArray
from specpilot.engine import Engine, SamplingParams
from specpilot.envs.live import drop_requests
from specpilot.train.live_rounds import LiveRound, RoundMeter, WatchedController

WARM_UP, COUNTED = 2, 3
"""Rounds of each turn of a plan, one after the other, and how many after the first few count: code and weights that
were not used a moment ago are not in the processor's caches, and a controller that asks does so round after round."""
ROUNDS = WARM_UP + COUNTED
HELD_ROUNDS = 1000
"""More than a block has."""
NO_PRICE = 1e-9
"""Of a second: nothing is worth stopping for."""
MAX_PROMPT = 96
EXPECTED_TOKENS = 100
"""About half of what a request gains in a block: passes are timed at that context."""


class Plan(NamedTuple):
    """What all requests of a round do."""

    length: int
    verified: int
    """Drafted tokens of each request that are verified."""
    looks: int = 0
    """The controller looks after so many levels (and stops at none)."""
    temperature: float = 0.0
    planned: bool = False
    """By a controller that plans; only these look."""


@dataclass(frozen=True)
class Block:
    """Rounds of ``batch`` requests, and how slow the machine's passes were around them."""

    batch: int
    rounds: dict[Plan, list[LiveRound]]
    """Without prefill and catch-up; rounds of plans that were served in turn stand at the same index."""
    moving: list[LiveRound]
    """Rounds with a prefill or a catch-up."""
    slowness: dict[tuple[str, int], float]
    """See `RoundMeter.slowness`; by kind of pass, and tokens per request."""
    machine_slowness: float
    """Of the same passes for all blocks, so that errors of the surface at one batch do not look like a slow machine:
    see `RoundMeter.machine_slowness`."""

    def seconds_now(self, plan: Plan, own: LiveRound) -> FloatArray:
        """``[4]`` seconds (`KINDS`) of a round's passes by the cost surface, on the machine as it was in this block."""
        draft = self.slowness.get(("draft", 1), 1.0)
        ratios = {"draft": draft, "verify": self.slowness["verify", plan.verified + 1]}
        return np.asarray([ratios.get(kind, 1.0) * own for kind, own in zip(KINDS, own.passes, strict=True)])


class TrimmedController(ConstantController):
    """The same length for all, and fewer tokens verified."""

    trims = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.length)
        self.plan = plan

    def verify_lengths(self, num_drafted: IntArray) -> IntArray:
        """See `Controller.verify_lengths`."""
        return np.minimum(num_drafted, self.plan.verified)


def trusting_predictor(hidden: int = 16) -> AcceptancePredictor:
    """Reads margin and agreement, as a fitted one does, and expects every token to be accepted."""
    weight = np.zeros((len(LEVEL_INPUTS), hidden))
    for name in ("margin", "agreement", "log_margin", "log_agreement"):
        weight[LEVEL_INPUTS.index(name)] = 1e-3
    return AcceptancePredictor(
        {
            "hidden_weight": weight,
            "hidden_bias": np.zeros(hidden),
            "output_weight": np.full((hidden, 2), 1e-3),
            "output_bias": [12.0, 12.0],
            "history_weight": np.zeros((HISTORY_DEPTHS, len(HISTORY_INPUTS))),
            "history_bias": np.full(HISTORY_DEPTHS, 12.0),
            "carry": [0.6],
        }
    )


class CleanRounds:
    """Serves blocks on one idle engine."""

    def __init__(self, meter: RoundMeter, prompts: Sequence[Sequence[int]], seed: int) -> None:
        """Prompts are cut to at most `MAX_PROMPT` tokens."""
        self.meter, self.engine, self.prompts = meter, meter.engine, prompts
        self.rng = np.random.default_rng((seed, 6))
        most, slots = self.engine.config.max_num_speculative_tokens, self.engine.cache.num_slots
        self.batches = sorted({min(2**power, slots) for power in range(slots.bit_length() + 1)})
        lengths = sorted({max(1, most // 4), max(1, most // 2), most}) if most else []
        self.plain = [Plan(0, 0), Plan(0, 0, temperature=1.0)]
        # What is compared is served one after the other.
        self.drafting = [Plan(length, length, temperature=own) for length in lengths for own in (0.0, 1.0)]
        if most:
            short = lengths[0]
            # After the last level that was decided on there is nothing to ask.
            looking = {(own, min(looks, own - 1)) for own in (short, most) for looks in (0, 1, most)}
            planned = [Plan(own, own, looks, planned=True) for own, looks in sorted(looking)]
            trimmed = dict.fromkeys((Plan(most, most // 4), Plan(most, most // 2)))
            self.drafting += [*planned, *trimmed]
        self._planning = {
            own: _planning_controller(self.engine, meter.surface, own) for own in self.drafting if own.planned
        }

    @property
    def rounds_per_sweep(self) -> int:
        """Steps that one block of every batch takes."""
        return len(self.batches) * ROUNDS * (2 * len(self.plain) + 2 * len(self.drafting) + 2)

    def serve(self, batch: int) -> Block:
        """One block."""
        machine, before = [self.meter.machine_slowness()], self._slowness(batch)
        names = [self._add() for _ in range(batch)]
        rounds, moving = defaultdict[Plan, list[LiveRound]](list), list[LiveRound]()
        # The first round prefills, the first that drafts catches up. Forth and back: a machine that grows faster or
        # slower, and contexts that grow longer, do so for both plans of a pair.
        turns = self.plain[:1] + self.plain + self.drafting[:1] + self.drafting + self.drafting[::-1] + self.plain[::-1]
        for plan, counts in ((plan, number >= WARM_UP) for plan in turns for number in range(ROUNDS)):
            for request in self.engine.scheduler.running:
                request.params = replace(request.params, temperature=plan.temperature)
            own = self.meter.step(self._controller(plan))
            if own is None or own.work.requests != batch:
                continue
            if own.phases[2] or own.phases[3]:
                moving.append(own)
            elif counts and own.work.drafted == plan.length * batch:
                rounds[plan].append(own)
        drop_requests(self.engine, names)
        after = self._slowness(batch)
        machine.append(self.meter.machine_slowness())
        slowness = {key: (before[key] + after[key]) / 2 for key in before}
        return Block(batch, dict(rounds), moving, slowness, sum(machine) / 2)

    def _controller(self, plan: Plan) -> WatchedController:
        inner: Controller = ConstantController(plan.length) if plan.verified == plan.length else TrimmedController(plan)
        return WatchedController(self._planning[plan] if plan.planned else inner)

    def _slowness(self, batch: int) -> dict[tuple[str, int], float]:
        tokens = sorted({plan.verified + 1 for plan in self.plain + self.drafting})
        passes = [("verify", own) for own in tokens]
        if self.drafting and "draft" in self.engine.profiler().kinds:
            passes.append(("draft", 1))
        context = min(MAX_PROMPT + EXPECTED_TOKENS, self.engine.max_model_len // 2)
        return {(kind, own): self.meter.slowness(kind, batch, own, context) for kind, own in passes}

    def _add(self) -> str:
        most = max(1, min(MAX_PROMPT, self.engine.max_model_len // 4))
        prompt = list(self.prompts[int(self.rng.integers(len(self.prompts)))])[:most]
        params = SamplingParams(
            seed=int(self.rng.integers(2**62)), max_tokens=self.engine.max_model_len - len(prompt), ignore_eos=True
        )
        return self.engine.add_request(prompt, params)


def _planning_controller(engine: Engine, surface: CostSurface, plan: Plan) -> Controller:
    most, slots = engine.config.max_num_speculative_tokens, engine.cache.num_slots
    policy = FixedPolicy(Action(plan.length, NO_PRICE, plan.looks))
    hold = HELD_ROUNDS if plan.looks else 1  # What looks cost is measured without planning, which is known then.
    return PricedController(policy, trusting_predictor(), surface, most, slots, engine.max_model_len, hold)
