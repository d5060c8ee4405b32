"""What a controller is shown and told in vLLM: the shared state, also under asynchronous scheduling."""

from __future__ import annotations

import copy
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import RoundState
from specpilot.engine.vllm.state import DecodingBatch
from specpilot.engine.vllm.steering import Steering
from specpilot.engine.vllm.steps import Step
from specpilot.tests.engine.vllm.conftest import LONGEST, STEERED, UNPACED, Served
from specpilot.tests.engine.vllm.test_scheduler import Watched, of_everyone, random_each, random_uniform
from specpilot.tests.support.rounds import seen_rate

vllm = pytest.importorskip("vllm")

Prompts = list[list[int]]


def history_of(own: Watched, request_id: str) -> list[tuple[RoundState, int, Any]]:
    """Each step of a request: the state, its place in it, and what came of the step."""
    found = []
    for state, outcome in zip(own.states, own.outcomes, strict=True):
        if request_id in state.request_ids:
            found.append((state, state.request_ids.index(request_id), outcome))
    return found


def off_for_a_while(seed: int) -> Watched:
    """Lengths of `random_each` in every ninth and tenth step, in the others none."""
    rng = np.random.default_rng(seed)
    return Watched(
        lambda state, step: (rng.integers(0, LONGEST + 1, size=len(state.request_ids)) * (step % 10 > 7)).tolist()
    )


@pytest.mark.parametrize("choose", [random_each, off_for_a_while])
def test_counts_of_a_request_follow_its_text(
    steered: Served, evaluation_prompts: Prompts, choose: Callable[[int], Watched]
) -> None:
    own = choose(0)
    steered.steering.controller = own
    prompts, counts = evaluation_prompts[:5], [9, 17, 25, 33, 41]
    steered.texts(prompts, counts)
    by_length = {len(prompt): count for prompt, count in zip(prompts, counts, strict=True)}
    assert len(by_length) == 5
    for request_id in {name for state in own.states for name in state.request_ids}:
        steps = history_of(own, request_id)
        first, place, _ = steps[0]
        length, generated, last, rate = int(first.context_length[place]), 0, (-1, -1), math.nan
        for state, at, outcome in steps:
            assert state.context_length[at] == length + generated and state.num_generated[at] == generated
            assert state.tokens_left[at] == by_length[length] - generated
            assert state.max_num_speculative_tokens[at] == min(LONGEST, max(0, state.tokens_left[at] - 2))
            assert (state.last_num_speculative_tokens[at], state.last_accepted_length[at]) == last
            assert state.acceptance_rate[at] == pytest.approx(rate, nan_ok=True)
            generated += int(outcome.num_committed[at])
            last = (int(outcome.num_drafted[at]), int(outcome.accepted_length[at]))
            if outcome.num_verified[at]:
                rate = seen_rate(None if math.isnan(rate) else rate, last[1], int(outcome.num_verified[at]))
        assert generated == by_length[length]


@dataclass
class Witness:
    """Sees every step in vLLM's own counts."""

    names: list[tuple[str, ...]] = field(default_factory=list)
    verified: list[list[int]] = field(default_factory=list)
    gained: list[list[int]] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    stood: list[bool] = field(default_factory=list)
    """Nobody was looked at."""


def witnessed(steering: Steering, monkeypatch: pytest.MonkeyPatch) -> Witness:
    own = Witness()
    stands, verified, observe = steering._stands, steering.verified, steering.observe

    def watched_stands(scheduled: Any) -> bool:
        found, shown = stands(scheduled), steering._batch
        if found:
            looked = DecodingBatch.of(steering._scheduler, scheduled, shown, steering._histories)
            assert looked.names == shown.names and not looked.has_prompts
            assert max(looked.rooms(steering.longest, steering._scheduler.max_model_len)) >= steering._length
        own.stood.append(found)
        return found

    def watched_verified(scheduled: Any, output: Any) -> Step | None:
        step = verified(scheduled, output)
        assert step is not None
        own.before = [request.num_output_tokens for request in step.batch.requests]
        return step

    def watched_observe(step: Step | None) -> None:
        assert step is not None
        if step.batch.names:
            rows = zip(step.batch.requests, own.before, strict=True)
            own.gained.append([request.num_output_tokens - before for request, before in rows])
            drafts = step.scheduled.scheduled_spec_decode_tokens
            own.verified.append([len(drafts.get(name, ())) for name in step.batch.names])
            own.names.append(step.batch.names)
        observe(step)

    monkeypatch.setattr(steering, "_stands", watched_stands)
    monkeypatch.setattr(steering, "verified", watched_verified)
    monkeypatch.setattr(steering, "observe", watched_observe)
    return own


PACED: dict[str, Callable[[], Watched]] = {
    "random_each": lambda: random_each(0),
    "off_for_a_while": lambda: off_for_a_while(1),
    "longest": lambda: of_everyone(LONGEST),
    "two": lambda: of_everyone(2),
}


@pytest.fixture(scope="module")
def paced(serve: Callable[..., Served]) -> Served:
    """Steered at the pace that is usual."""
    return serve({"self_test": False}, scheduler_cls=STEERED)


@pytest.mark.parametrize("name", PACED)
@pytest.mark.parametrize("requests", [1, 3, 11])
def test_steps_in_which_nobody_is_looked_at_are_told_as_they_went(
    name: str, requests: int, paced: Served, evaluation_prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, steering = PACED[name](), paced.steering
    steering.controller = own
    seen = witnessed(steering, monkeypatch)
    prompts, counts = evaluation_prompts[:requests], [40, 60, 9, 7, 40, 41, 42, 43, 12, 13, 40][:requests]
    for _ in range(2):
        paced.texts(prompts, counts)
    assert [outcome.num_committed.tolist() for outcome in own.outcomes] == seen.gained
    assert [outcome.num_verified.tolist() for outcome in own.outcomes] == seen.verified
    for outcome, names in zip(own.outcomes, seen.names, strict=True):
        assert len(names) == len(outcome.num_drafted) and (outcome.num_drafted >= outcome.num_verified).all()
        # Where a request has reached its end, what it was given is less than was accepted.
        assert (outcome.accepted_length + 1 >= outcome.num_committed).all()
        assert (outcome.accepted_length <= outcome.num_verified).all()
    number = {name: int(name.split("-")[0]) for names in seen.names for name in names}
    length = {name: len(prompts[(count - min(number.values())) % requests]) for name, count in number.items()}
    for state, known in zip(own.states, own.told, strict=True):
        gained = Counter[str]()
        for names, gains in zip(seen.names[:known], seen.gained[:known], strict=True):
            gained.update(dict(zip(names, gains, strict=True)))
        assert state.num_generated.tolist() == [gained[name] for name in state.request_ids]
        assert state.context_length.tolist() == [length[name] + gained[name] for name in state.request_ids]
    assert len(own.outcomes) == len(seen.gained) > len(own.states) and sum(seen.stood) > 0
    assert steering.problem is None and steering.guard.report.rounds == len(own.outcomes)


def test_rooms_leave_a_token_for_this_step_and_one_for_the_verification() -> None:
    batch = DecodingBatch(contexts=[100, 20, 509, 30], left=[9, 3, 90, 1])
    assert batch.rooms(5, max_model_len=512) == [5, 1, 1, 0]
    assert batch.least_room(512) == -1 and batch.rooms(0, 512) == [0] * 4
    assert DecodingBatch(contexts=[10, 20], left=[7, 9]).rooms(5, 512) == [5, 5]


def test_load_is_seen(steered: Served, evaluation_prompts: Prompts) -> None:
    own = of_everyone(1)
    steered.steering.controller = own
    steered.texts(evaluation_prompts[:14], 20)
    first, last = own.states[0], own.states[-1]
    assert (first.running, first.waiting) == (8, 6) and last.waiting == 0
    assert first.arrival_rates[0] > 0.1 and 0.0 < last.kv_free < 1.0
    assert max(state.kv_free for state in own.states) < 1.0
    assert steered.scheduler.kv_cache_manager.usage == 0.0


def test_what_a_lazy_drafter_has_yet_to_read_of_the_prompts_is_lag(
    steered: Served, evaluation_prompts: Prompts
) -> None:
    """At K = 0 it grows by a token a step; a step that drafts takes it in."""
    own = Watched(lambda state, step: [LONGEST * (step >= 5)] * len(state.request_ids))
    steered.steering.controller = own
    prompts = evaluation_prompts[:3]
    steered.texts(prompts, 20)
    lags = [state.lag.tolist() for state in own.states if len(state.request_ids) == 3]
    assert lags[0] == [len(prompt) - 1 for prompt in prompts]
    assert lags[1:6] == [[lag + step for lag in lags[0]] for step in range(1, 6)]
    assert lags[6] == [0, 0, 0]


def test_requests_that_only_wait_for_their_prompts_turn_are_running(
    serve: Callable[..., Served], evaluation_prompts: Prompts
) -> None:
    served, own = serve(UNPACED, scheduler_cls=STEERED, max_num_batched_tokens=64, max_num_seqs=6), of_everyone(2)
    served.steering.controller = own
    served.texts(evaluation_prompts[:9], 30)
    loads = [(state.running, state.waiting) for state in own.states]
    assert loads[0] == (6, 3) and len(own.states[0].request_ids) < 3
    assert all(own == (6, 3) for own in loads[: loads.index((6, 2))]) and loads[-1][1] == 0
    timed = [outcome.is_timed for outcome in own.outcomes]
    assert not timed[0] and timed[-1]


def test_temperature_is_each_requests_own(steered: Served, evaluation_prompts: Prompts) -> None:
    from vllm import SamplingParams

    own = of_everyone(0)
    steered.steering.controller = own
    wanted = [0.0, 0.5, 1.0]
    steered.llm.generate(
        [{"prompt_token_ids": prompt} for prompt in evaluation_prompts[:3]],
        [SamplingParams(temperature=value, max_tokens=4, ignore_eos=True) for value in wanted],
        use_tqdm=False,
    )
    assert own.states[0].temperature.tolist() == wanted


def test_requests_that_ended_are_forgotten(steered: Served, evaluation_prompts: Prompts) -> None:
    steered.steering.controller = of_everyone(1)
    for _ in range(4):
        steered.texts(evaluation_prompts[:14], 4)
    assert len(steered.steering._histories) <= 2 * 14 + 16 and not steered.steering._steps


# ---------------------------------------------------------------------- asynchronous scheduling


class Echo:
    """Stands in for model and worker: tokens by counting, drafts accepted by chance. vLLM runs no such step on CPU."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.sampled: dict[str, list[int]] = {}

    def run(self, scheduled: Any, prefilling: set[str]) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        names, tokens = list(scheduled.num_scheduled_tokens), []
        for name in names:
            drafts = len(scheduled.scheduled_spec_decode_tokens.get(name, ()))
            count = 0 if name in prefilling else int(self._rng.integers(0, drafts + 1)) + 1
            tokens.append([int(self._rng.integers(5, 2000)) for _ in range(count)])
            self.sampled.setdefault(name, []).extend(tokens[-1])
        return ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: n for n, name in enumerate(names)}, sampled_token_ids=tokens
        )


def asynchronous(steered: Served) -> Any:
    from specpilot.engine.vllm.scheduler import SteeredAsyncScheduler

    config, stock = copy.copy(steered.config), steered.scheduler
    config.scheduler_config = copy.copy(config.scheduler_config)
    object.__setattr__(config.scheduler_config, "async_scheduling", True)
    return SteeredAsyncScheduler(
        vllm_config=config,
        kv_cache_config=stock.kv_cache_config,
        structured_output_manager=stock.structured_output_manager,
        block_size=stock.block_size,
        hash_block_size=stock.hash_block_size,
        log_stats=True,
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_asynchronous_scheduler_plans_what_the_controller_asked_for(
    seed: int, steered: Served, evaluation_prompts: Prompts
) -> None:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    scheduler, echo, own = asynchronous(steered), Echo(seed), random_uniform(seed)
    hasher = steered.llm.llm_engine.engine_core.engine_core.request_block_hasher
    scheduler.steering.controller = own
    requests = []
    for number, prompt in enumerate(evaluation_prompts[:10]):
        params = SamplingParams(temperature=0, max_tokens=20 + number, ignore_eos=True)
        requests.append(Request(str(number), list(prompt), params, None, block_hasher=hasher))
        scheduler.add_request(requests[-1])
    flying: deque[tuple[Any, set[str]]] = deque()
    planned: list[tuple[Any, RoundState | None]] = []
    while scheduler.has_unfinished_requests():
        before = own.step
        scheduled = scheduler.schedule()
        prefilling = {name for name in scheduled.num_scheduled_tokens if scheduler.requests[name].is_prefill_chunk}
        if scheduled.num_scheduled_tokens:
            flying.append((scheduled, prefilling))
            planned.append((scheduled, own.states[-1] if own.step > before else None))
        if len(flying) == 2 or not scheduled.num_scheduled_tokens:
            scheduled, prefilling = flying.popleft()
            scheduler.update_from_output(scheduled, echo.run(scheduled, prefilling))
    for request in requests:
        assert list(request.output_token_ids) == echo.sampled[request.request_id][: request.max_tokens]
        assert len(request.output_token_ids) == request.max_tokens
    assert scheduler.steering.problem is None and scheduler.steering.guard.report.faults.total() == 0
    assert sum(int(outcome.num_committed.sum()) for outcome in own.outcomes) == sum(r.max_tokens for r in requests)
    checked = 0
    for (earlier, state), (later, _) in pairwise(planned):
        for name in () if state is None else state.request_ids:
            if name in later.num_scheduled_tokens:
                drafts = later.scheduled_spec_decode_tokens.get(name, ())
                assert len(drafts) == earlier.num_spec_tokens_to_schedule
                checked += len(drafts) > 0
    assert checked > 30
