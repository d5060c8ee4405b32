"""Replay is exact: the rounds of the live engine, the choices of the controllers, the seconds of the cost surface."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import (
    Action,
    ConstantController,
    Controller,
    Decision,
    FixedPolicy,
    PricedController,
    RoundOutcome,
    RoundState,
    compiled,
)
from specpilot.controllers.action import Features
from specpilot.controllers.cost_table import CostTable
from specpilot.controllers.observation import FEATURE_NAMES, HISTORY_SIZE, NUM_FEATURES, write_features
from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams
from specpilot.envs.replay import ReplayConfig, ReplayEngine
from specpilot.envs.replay_kernel import observe, price_round
from specpilot.envs.replay_queue import begin
from specpilot.envs.replay_state import Fleet, Recording, Schedule, token_weights
from specpilot.envs.trace import Trace
from specpilot.envs.traffic import Traffic, make_schedule
from specpilot.tests.support.controllers import RandomController, TrimmingController
from specpilot.tests.support.priced import random_predictor
from specpilot.tests.support.traces import (
    LONGEST,
    MAX_BATCH,
    MAX_CONTEXT,
    all_at_once,
    random_trace,
    rich_costs,
    rich_surface,
)
from specpilot.train.recording import TextRequest, record_requests

CONFIG = ReplayConfig(max_num_seqs=MAX_BATCH, max_model_len=MAX_CONTEXT, prefill_chunk=64)


# ---------------------------------------------------------------------- the engine's rounds


class HashedController(Controller):
    """A length that is a function of (request, tokens generated) alone; notes every round."""

    def __init__(self, longest: int, output_tokens: Any) -> None:
        self.longest, self.output_tokens = longest, output_tokens
        self.rounds: list[list[tuple[int, ...]]] = []

    def decide(self, state: RoundState) -> Decision:
        self.state = state
        keys = zip(state.request_ids, state.num_generated.tolist(), strict=True)
        digests = [hashlib.blake2b(f"{name},{count}".encode()).digest()[0] for name, count in keys]
        return Decision(np.asarray(digests) % (self.longest + 1))

    def observe(self, outcome: RoundOutcome) -> None:
        state, requests = self.state, [int(name) for name in self.state.request_ids]
        left = np.asarray([self.output_tokens[number] for number in requests]) - state.num_generated
        columns = (
            requests,
            state.num_generated,
            state.lag,
            state.max_num_speculative_tokens,
            state.last_accepted_length,
            outcome.num_drafted,
            np.minimum(outcome.accepted_length, left),  # The engine sees the end only after the last token.
            outcome.num_committed,
        )
        self.rounds.append([tuple(map(int, row)) for row in zip(*columns, strict=True)])


def test_replay_plays_the_live_engines_rounds_request_by_request(
    pair: Pair, evaluation_prompts: list[list[int]]
) -> None:
    prompts = sorted(evaluation_prompts, key=len)[:102]
    requests = [
        TextRequest(tuple(prompt), SamplingParams(temperature=(0.0, 0.6, 1.0)[n % 3], seed=n, max_tokens=16 + n % 5))
        for n, prompt in enumerate(prompts)
    ]
    config = EngineConfig(max_num_seqs=34, max_model_len=128, max_num_speculative_tokens=4, prefill_chunk=256)
    trace = record_requests(pair, config, requests)

    live = HashedController(4, trace.output_tokens)
    engine = Engine(pair, config, live)
    for number, request in enumerate(requests):
        engine.add_request(request.prompt, request.params, request_id=str(number))
    while engine.has_work:
        engine.step()

    replayed = HashedController(4, trace.output_tokens)
    costs = CostTable.bake(rich_surface(), 34, 4, 128)
    ReplayEngine(trace, costs, all_at_once(trace), ReplayConfig(34, 128, 256)).serve(replayed)
    assert replayed.rounds == live.rounds
    played = [row for rows in live.rounds for row in rows]
    assert {row[0] for row in played} == set(range(102))
    assert {row[5] for row in played} == {0, 1, 2, 3, 4} and max(row[6] for row in played) == 4
    assert max(row[2] for row in played) > 16, "some drafter must have lagged by a prompt"


# ---------------------------------------------------------------------- the price rule, compiled


def serve_compiled(
    trace: Trace, schedule: Schedule, costs: CostTable, action: Action, hold: int = 1
) -> tuple[int, int, float, float]:
    """Tokens, rounds, busy seconds and request-seconds of the compiled rule."""
    recording, fleet = Recording.of(trace, random_predictor()), Fleet.new(schedule, CONFIG.max_num_seqs)
    rounds = 0
    while begin(recording, schedule, fleet, costs, CONFIG.prefill_chunk, 0):
        price_round(recording, schedule, fleet, costs, 0, action.max_length, action.price, action.asked_levels, hold)
        rounds += 1
    return int(fleet.tokens[0]), rounds, float(fleet.seconds[0]), float(fleet.weight[0])


TRAFFICS = [Traffic(concurrency=n) for n in (1, 3, 8, 12)] + [Traffic("poisson", load=load) for load in (0.5, 1.3)]


@pytest.mark.parametrize(("hold", "whole_batch"), [(1, False), (3, False), (1, True)])
@pytest.mark.parametrize("traffic", TRAFFICS, ids=lambda own: own.label)
def test_compiled_rule_serves_like_the_priced_controller(traffic: Traffic, hold: int, whole_batch: bool) -> None:
    trace, surface = random_trace(), rich_surface(whole_batch)
    costs = rich_costs(whole_batch)
    schedule = make_schedule(trace, traffic, costs, CONFIG.max_num_seqs, 40, np.random.default_rng(1))
    seen = set()
    planned = (Action(0, 1.0), Action(2, 0.5), Action(6, 1.0), Action(4, 3.0))
    looking = (Action(0, 1.0, 1), Action(2, 0.5, 1), Action(6, 0.7, 2), Action(6, 1.0, 1), Action(4, 3.0, 6))
    for action in planned + looking:
        controller = PricedController(
            FixedPolicy(action), random_predictor(), surface, LONGEST, MAX_BATCH, MAX_CONTEXT, hold
        )
        served = ReplayEngine(trace, costs, schedule, CONFIG).serve(controller)
        tokens, rounds, seconds, weight = serve_compiled(trace, schedule, costs, action, hold)
        assert (tokens, rounds) == (served.tokens, served.rounds)
        assert seconds == pytest.approx(served.busy_seconds, rel=1e-9)
        assert weight == pytest.approx(served.latency_seconds, rel=1e-9)
        seen.add(rounds)
    assert len(seen) > 2, "actions must differ in what they do"


@pytest.mark.parametrize("length", [0, 1, 3, 6])
def test_price_zero_is_a_constant_length_without_questions(length: int) -> None:
    trace, costs = random_trace(), rich_costs()
    schedule = make_schedule(trace, Traffic(concurrency=5), costs, MAX_BATCH, 40, np.random.default_rng(2))
    served = ReplayEngine(trace, costs, schedule, CONFIG).serve(ConstantController(length))
    found = serve_compiled(trace, schedule, costs, Action(length, 0.0))
    assert found == pytest.approx((served.tokens, served.rounds, served.busy_seconds, served.latency_seconds), rel=1e-9)


# ---------------------------------------------------------------------- seconds


class Watching(RandomController):
    """Keeps the states it decided on."""

    def decide(self, state: RoundState) -> Decision:
        self.state = state
        return super().decide(state)


@pytest.mark.parametrize("whole_batch", [False, True])
def test_seconds_of_a_round_are_the_cost_surfaces(whole_batch: bool) -> None:
    trace, surface, costs = random_trace(), rich_surface(whole_batch), rich_costs(whole_batch)
    schedule = make_schedule(trace, Traffic(concurrency=6), costs, MAX_BATCH, 40, np.random.default_rng(3))
    engine = ReplayEngine(trace, costs, schedule, CONFIG)
    controller, lagging = Watching(0, LONGEST, stop_probability=0.0), 0
    while engine.advance():
        prefill = float(engine.fleet.prefill_seconds[0])
        before = float(engine.fleet.clock[0])
        outcome = engine.play_round(controller)
        state = controller.state
        expected = surface.round_seconds(
            outcome.num_drafted, state.context_length, state.lag, temperatures=state.temperature
        )
        parts = outcome.draft_seconds, outcome.verify_seconds, outcome.catch_up_seconds, outcome.host_seconds
        assert sum(parts) == pytest.approx(expected, rel=1e-9)
        assert float(engine.fleet.clock[0]) - before == pytest.approx(expected + prefill, rel=1e-9)
        lagging += outcome.catch_up_seconds > 0
    assert lagging > 5


def test_a_token_of_the_prefill_is_served_like_one_of_the_prompt() -> None:
    whole = random_trace(confidence=False)
    whole = whole.select(whole.output_tokens > 1)
    given = replace(whole, tokens_from_prefill=1)
    moved = replace(
        whole,
        prompt_tokens=whole.prompt_tokens + 1,
        output_tokens=whole.output_tokens - 1,
        accepted_length=whole.accepted_length[given.has_draft()],
        max_tokens=whole.token_limit - 1,
    )
    for traffic in (Traffic(concurrency=3), Traffic("poisson", load=1.0)):
        schedules = [
            make_schedule(own, traffic, rich_costs(), 8, 40, np.random.default_rng(4)) for own in (given, moved)
        ]
        schedules[0] = schedules[0]._replace(arrival=schedules[1].arrival)  # Loads are shares of what can be served.
        served = [
            ReplayEngine(own, rich_costs(), schedule, CONFIG).serve(RandomController(5, LONGEST))
            for own, schedule in zip((given, moved), schedules, strict=True)
        ]
        assert served[0] == served[1]
        assert served[0].accepted > 20 and served[0].tokens == int(schedules[1].length.sum())


def test_a_trimmed_draft_is_paid_for_and_what_is_cut_is_not_gained() -> None:
    trace = random_trace()
    schedule = all_at_once(trace)
    engine = ReplayEngine(trace, rich_costs(), schedule, CONFIG)
    controller = TrimmingController(0, LONGEST)
    trimmed = 0
    while engine.advance():
        outcome = engine.play_round(controller)
        assert (outcome.accepted_length <= outcome.num_verified).all()
        trimmed += int((outcome.num_drafted - outcome.num_verified).sum())
    assert trimmed == controller.num_trimmed > 0
    assert int(engine.fleet.tokens[0]) == int(trace.output_tokens.sum())


# ---------------------------------------------------------------------- the queue


@pytest.mark.parametrize("traffic", [Traffic(concurrency=20), Traffic("poisson", load=1.5)], ids=lambda own: own.mode)
def test_requests_are_served_in_order_within_the_slots(traffic: Traffic) -> None:
    trace, costs = random_trace(), rich_costs()
    schedule = make_schedule(trace, traffic, costs, MAX_BATCH, 60, np.random.default_rng(4))
    engine = ReplayEngine(trace, costs, schedule, CONFIG)
    controller, fleet, waited = ConstantController(2), engine.fleet, 0
    entered: list[int] = []
    while engine.advance():
        running = fleet.request[0, : fleet.running[0]].tolist()
        entered += sorted(set(running) - set(entered))
        state, _ = engine.state()
        assert state.running == len(running) <= MAX_BATCH and 0 <= state.kv_free <= 1
        assert state.waiting == 0 or state.running == MAX_BATCH, "nobody waits while a slot is free"
        if traffic.mode == "closed":
            left = int(schedule.count[0] - fleet.finished[0])
            assert state.running + state.waiting == min(20, left)
        waited += state.waiting
        engine.play_round(controller)
    assert entered == list(range(60)) and waited > 0
    assert not np.isnan(fleet.finish[0]).any() and fleet.finished[0] == 60 and fleet.running[0] == 0
    assert int(fleet.tokens[0]) == int(schedule.length[0].sum())


def test_idle_time_passes_at_once_and_is_not_busy() -> None:
    trace = random_trace(2)
    schedule = all_at_once(trace)._replace(arrival=np.asarray([[0.0, 1000.0]]), concurrency=np.asarray([0]))
    served = ReplayEngine(trace, rich_costs(), schedule, CONFIG).serve(ConstantController(0))
    alone = ReplayEngine(trace, rich_costs(), all_at_once(trace), ReplayConfig(1, MAX_CONTEXT, 64))
    assert served.busy_seconds == pytest.approx(alone.serve(ConstantController(0)).busy_seconds, rel=1e-9)
    assert served.makespan_seconds > 1000 > served.busy_seconds
    assert served.latency_seconds == pytest.approx(served.busy_seconds), "one request in the system at any time"


def test_more_load_means_longer_waits() -> None:
    trace, costs = random_trace(64), rich_costs()
    waits = []
    for load in (0.3, 0.9, 2.0):
        schedule = make_schedule(trace, Traffic("poisson", load=load), costs, 8, 300, np.random.default_rng(5))
        served = ReplayEngine(trace, costs, schedule, CONFIG).serve(ConstantController(0))
        waits.append(np.mean(served.first_token_seconds))
    assert waits[0] < waits[1] < waits[2] / 2


# ---------------------------------------------------------------------- features


class Noting:
    """A fixed action; keeps the features of every round."""

    feature_names = FEATURE_NAMES
    tiers = (Action(4, 1.0),)

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def act(self, features: Features) -> Action:
        self.seen.append([features[index] for index in range(NUM_FEATURES)])
        return Action(4, 1.0)


def test_a_controllers_features_are_the_compiled_ones() -> None:
    trace, costs = random_trace(), rich_costs()
    schedule = make_schedule(trace, Traffic("poisson", load=1.0), costs, MAX_BATCH, 40, np.random.default_rng(6))
    engine = ReplayEngine(trace, costs, schedule, CONFIG)
    policy = Noting()
    controller = PricedController(policy, random_predictor(), rich_surface(), LONGEST, MAX_BATCH, MAX_CONTEXT)
    recording, expected = Recording.of(trace, random_predictor()), []
    while engine.advance():
        out = np.zeros(NUM_FEATURES)
        observe(recording, schedule, engine.fleet, costs, MAX_BATCH * MAX_CONTEXT, 0, out)
        expected.append(out)
        engine.play_round(controller)
    assert len(expected) > 50
    np.testing.assert_allclose(policy.seen, expected, rtol=1e-5, atol=1e-6)


def test_compiled_features_are_those_of_python() -> None:
    rng, costs = np.random.default_rng(7), rich_costs()
    for batch in (1, 2, 8):
        arguments = (
            rng.integers(1, 250, batch),
            rng.integers(0, 30, batch),
            rng.choice([0.0, 0.6], batch),
            rng.choice([np.nan, 0.3, 0.9], batch),
            rng.random(batch),
            batch + 2,
            3,
            0.4,
            2.5,
            1.5,
            rng.random(HISTORY_SIZE) + 1,
            costs,
        )
        found, expected = np.zeros(NUM_FEATURES), np.zeros(NUM_FEATURES)
        compiled.write_features(found, *arguments)
        write_features(expected, *arguments)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert np.isfinite(found).all()


def test_a_token_counts_as_one_over_its_requests_tokens_per_round() -> None:
    trace = random_trace(seed=5)
    tokens, rounds = [], []
    for request in range(len(trace)):
        done = count = 0
        while done < trace.output_tokens[request]:
            done += min(int(trace.accepted_length[trace.first[request] + done]), 4) + 1
            count += 1
        tokens.append(int(trace.output_tokens[request]))
        rounds.append(count)
    mean = sum(tokens) / sum(rounds)
    assert token_weights(trace, 4) == pytest.approx(
        [mean * own / made for made, own in zip(tokens, rounds, strict=True)]
    )
    assert token_weights(trace, 0) == pytest.approx(np.ones(len(trace)))
