"""The steered scheduler: the text is that of the target alone whatever K is, and K is what the controller says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import (
    Action,
    ConstantController,
    Controller,
    Decision,
    FixedPolicy,
    LengthTableController,
    RoundOutcome,
    RoundState,
    save_controller,
)
from specpilot.tests.engine.vllm.conftest import LONGEST, STEERED, UNPACED, Served
from specpilot.tests.support.priced import controller as priced_controller

vllm = pytest.importorskip("vllm")

Prompts = list[list[int]]


class Watched(Controller):
    """Notes what it is shown and told."""

    def __init__(self, choose: Callable[[RoundState, int], Sequence[int]]) -> None:
        self.choose, self.step = choose, 0
        self.states: list[RoundState] = []
        self.decisions: list[list[int]] = []
        self.outcomes: list[RoundOutcome] = []
        self.told: list[int] = []
        """Outcomes that were known at each decision."""

    def decide(self, state: RoundState) -> Decision:
        self.told.append(len(self.outcomes))
        lengths = np.asarray(self.choose(state, self.step), dtype=np.int64)
        self.step += 1
        self.states.append(state)
        self.decisions.append(lengths.tolist())
        return Decision(lengths)

    def observe(self, outcome: RoundOutcome) -> None:
        self.outcomes.append(outcome)


def of_everyone(length: int) -> Watched:
    return Watched(lambda state, step: [length] * len(state.request_ids))


def random_each(seed: int) -> Watched:
    rng = np.random.default_rng(seed)
    return Watched(lambda state, step: rng.integers(0, LONGEST + 1, size=len(state.request_ids)).tolist())


def random_uniform(seed: int) -> Watched:
    rng = np.random.default_rng(seed)
    return Watched(lambda state, step: [int(rng.integers(0, LONGEST + 1))] * len(state.request_ids))


def oscillating(period: int) -> Watched:
    return Watched(lambda state, step: [LONGEST * (step // period % 2)] * len(state.request_ids))


def by_load() -> Watched:
    return Watched(lambda state, step: [0 if state.running > 4 else 3] * len(state.request_ids))


CONTROLLERS: dict[str, Callable[[], Watched]] = {
    "random_each": lambda: random_each(0),
    "random_uniform": lambda: random_uniform(1),
    "oscillating_every_step": lambda: oscillating(1),
    "oscillating_slowly": lambda: oscillating(7),
    "by_load": by_load,
    "off": lambda: of_everyone(0),
    "longest": lambda: of_everyone(LONGEST),
}


@pytest.fixture(scope="module")
def prompts(evaluation_prompts: Prompts) -> Prompts:
    """More than there are slots, so that requests queue; several lengths."""
    return evaluation_prompts[:14]


@pytest.fixture(scope="module")
def texts(plain: Served, prompts: Prompts) -> Prompts:
    return plain.texts(prompts)


# ---------------------------------------------------------------------- lossless


@pytest.mark.parametrize("name", CONTROLLERS)
def test_texts_are_the_targets_own_while_requests_queue(
    name: str, steered: Served, prompts: Prompts, texts: Prompts
) -> None:
    own = CONTROLLERS[name]()
    steered.steering.controller = own
    assert steered.texts(prompts) == texts
    assert steered.steering.guard.report.faults.total() == 0 and steered.steering.problem is None
    assert any(state.waiting > 0 for state in own.states)


SCARCE = {"num_gpu_blocks_override": 12, "block_size": 32, "max_model_len": 256}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "chunked_prefill": {"max_num_batched_tokens": 64, "max_num_seqs": 6},
    "preemption": SCARCE | {"enable_prefix_caching": False},
    "preemption_with_prefix_caching": SCARCE,
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_texts_are_the_targets_own_under(
    configuration: str, serve: Callable[..., Served], prompts: Prompts, texts: Prompts
) -> None:
    served = serve(UNPACED, scheduler_cls=STEERED, **CONFIGURATIONS[configuration])
    preempted, stock = list[str](), served.scheduler._preempt_request

    def preempt(request: Any, *more: Any, **named: Any) -> None:
        preempted.append(request.request_id)
        stock(request, *more, **named)

    served.scheduler._preempt_request = preempt
    for own in (random_each(2), oscillating(3), by_load()):
        served.steering.controller = own
        assert served.texts(prompts) == texts
        assert served.steering.guard.report.faults.total() == 0 and served.steering.problem is None
    assert bool(preempted) == configuration.startswith("preemption")


def test_prefix_caching_reuses_blocks_and_texts_stay(steered: Served, plain: Served, prompts: Prompts) -> None:
    shared = [prompts[0] + prompts[1][: 8 * n] for n in range(1, 7)]
    wanted = plain.texts(shared)
    for seed in range(3):
        steered.steering.controller = oscillating(4) if seed else of_everyone(0)
        assert steered.texts(shared) == wanted
    assert steered.scheduler.kv_cache_manager.usage == 0.0


_BY_NGRAMS = """
import json, sys
from specpilot.tests.engine.vllm.conftest import LONGEST, STEERED, UNPACED, Served
from specpilot.tests.engine.vllm.test_scheduler import random_each
from vllm import LLM

directory, prompts = json.load(sys.stdin)
ngram = {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 2, "num_speculative_tokens": LONGEST}
engine = {"max_num_seqs": 8, "max_model_len": 512, "dtype": "float32", "enforce_eager": True}
own = {"additional_config": {"specpilot": UNPACED}, "scheduler_cls": STEERED}
served = Served(LLM(f"{directory}/target", speculative_config=ngram, **engine, **own))
served.steering.controller = controller = random_each(5)
texts = served.texts(prompts)
accepted = sum(int(outcome.accepted_length.sum()) for outcome in controller.outcomes)
print(json.dumps([texts, served.steering.problem, accepted]))
"""


def test_texts_are_the_targets_own_with_ngrams(pair_directory: Path, prompts: Prompts, texts: Prompts) -> None:
    # In a process of its own: vLLM's n-grams load numba, after which it cannot build another engine.
    told = subprocess.run(
        [sys.executable, "-c", _BY_NGRAMS],
        input=json.dumps([str(pair_directory), prompts]),
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    got, problem, accepted = json.loads(told.stdout.splitlines()[-1])
    assert (got, problem) == (texts, None) and accepted > 0


# ---------------------------------------------------------------------- K is what was asked for


def test_each_step_drafts_what_the_controller_asked_for(steered: Served, prompts: Prompts) -> None:
    own = random_uniform(6)
    steered.steering.controller = own
    steered.texts(prompts[:1], 48)
    rounds = zip(own.decisions, own.states, strict=True)
    # At the end there is no room for more than max_tokens leaves.
    asked = [min(lengths[0], int(state.max_num_speculative_tokens[0])) for lengths, state in rounds]
    drafted = [int(outcome.num_drafted[0]) for outcome in own.outcomes]
    assert len(asked) == len(drafted) > 10 and len(set(asked)) > 3
    # Decided in one step, verified in the next.
    assert drafted[0] == 0 and drafted[1:] == asked[:-1]


def test_requests_verify_no_more_than_their_own_length(steered: Served, prompts: Prompts) -> None:
    own = Watched(lambda state, step: [number % (LONGEST + 1) for number in range(len(state.request_ids))])
    steered.steering.controller = own
    steered.texts(prompts[:6], 30)
    seen = 0
    for (state, lengths), (after, outcome) in _rounds(own):
        given = dict(zip(state.request_ids, lengths, strict=True))
        longest = max(map(min, lengths, state.max_num_speculative_tokens.tolist()))
        for name, drafted, verified in zip(
            after.request_ids, outcome.num_drafted.tolist(), outcome.num_verified.tolist(), strict=True
        ):
            if name in given and drafted:
                assert verified <= min(given[name], drafted) and drafted == longest
                seen += verified < drafted
    assert seen > 20


def _rounds(own: Watched) -> list[tuple[tuple[RoundState, list[int]], tuple[RoundState, RoundOutcome]]]:
    """What was decided in a step with what came of it in the next."""
    decided = list(zip(own.states, own.decisions, strict=True))
    observed = list(zip(own.states, own.outcomes, strict=True))
    return list(zip(decided[:-1], observed[1:], strict=True))


def test_without_trimming_all_verify_the_steps_length(serve: Callable[..., Served], prompts: Prompts) -> None:
    served = serve(UNPACED | {"trim": False, "self_test": False}, scheduler_cls=STEERED)
    own = Watched(lambda state, step: [number % (LONGEST + 1) for number in range(len(state.request_ids))])
    served.steering.controller = own
    served.texts(prompts[:6], 30)
    for outcome in own.outcomes:
        assert (outcome.num_verified == outcome.num_drafted).all()


def test_a_table_is_followed_by_the_number_of_running_requests(steered: Served, prompts: Prompts) -> None:
    table = LengthTableController([(1, 2, 4), (3, 4, 2), (5, None, 0)])
    own = Watched(lambda state, step: table.decide(state).num_speculative_tokens.tolist())
    steered.steering.controller = own
    steered.texts(prompts[:8], [8 + 6 * n for n in range(8)])
    asked = {state.running: max(lengths) for state, lengths in zip(own.states, own.decisions, strict=True)}
    assert asked[8] == 0 and asked[3] == 2 and asked[2] == 4


def test_outcomes_add_up_to_the_texts(steered: Served, prompts: Prompts) -> None:
    own = random_each(7)
    steered.steering.controller = own
    got = steered.texts(prompts, [5 + n for n in range(len(prompts))])
    assert sum(int(outcome.num_committed.sum()) for outcome in own.outcomes) == sum(map(len, got))
    for outcome in own.outcomes:
        assert (outcome.num_verified <= outcome.num_drafted).all()
        assert (outcome.accepted_length <= outcome.num_verified).all()
        assert (outcome.num_committed <= outcome.accepted_length + 1).all()
        assert outcome.verify_seconds > 0


# ---------------------------------------------------------------------- faults


class Faulty(Controller):
    """Fails in its own way now and then, or always."""

    def __init__(self, kind: str, every: int) -> None:
        self.kind, self.every, self.step = kind, every, 0

    def decide(self, state: RoundState) -> Decision:
        self.step += 1
        wanted: Any = np.full(len(state.request_ids), 3)
        if self.step % self.every == 0:
            if self.kind == "raise":
                raise RuntimeError("no idea")
            wanted = {
                "nan": wanted * math.nan,
                "shape": wanted[:-1],
                "negative": wanted - 9,
                "huge": wanted + 10**6,
                "none": None,
            }[self.kind]
        return Decision(wanted)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", ["raise", "nan", "shape", "negative", "huge", "none"])
def test_a_faulty_controller_loses_no_request(
    kind: str, every: int, steered: Served, prompts: Prompts, texts: Prompts
) -> None:
    steered.steering.controller = Faulty(kind, every)
    assert steered.texts(prompts[:6]) == texts[:6]
    assert steered.steering.guard.report.faults.total() > 0
    assert steered.steering.problem is None


def test_a_controller_that_cannot_observe_loses_no_request(steered: Served, prompts: Prompts, texts: Prompts) -> None:
    class Deaf(ConstantController):
        def observe(self, outcome: RoundOutcome) -> None:
            raise RuntimeError("what?")

    steered.steering.controller = Deaf(2)
    assert steered.texts(prompts[:6]) == texts[:6]
    assert steered.steering.guard.report.faults["error"] > 0


def test_a_fault_of_the_plugin_itself_ends_steering_and_loses_no_request(
    serve: Callable[..., Served], prompts: Prompts, texts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(UNPACED, scheduler_cls=STEERED)
    own = of_everyone(1)
    served.steering.controller = own
    served.texts(prompts[:2], 20)
    served.steering._histories = None
    with caplog.at_level("WARNING", "specpilot"):
        assert served.texts(prompts[:6]) == texts[:6]
    assert served.steering.problem is not None
    assert len([record for record in caplog.records if record.name.startswith("specpilot")]) == 1
    asked = own.step
    assert served.texts(prompts[:6]) == texts[:6] and own.step == asked


# ---------------------------------------------------------------------- pace and controllers that are data


@pytest.fixture(scope="module")
def paced(serve: Callable[..., Served]) -> Served:
    """A steered engine at the pace that the settings have by default."""
    return serve({"self_test": False}, scheduler_cls=STEERED)


def test_an_oscillating_controller_does_not_make_k_flap(paced: Served, prompts: Prompts) -> None:
    own = oscillating(1)
    paced.steering.controller = own
    paced.texts(prompts[:2], 60)
    assert len(own.outcomes) > 30
    drafted = {int(count) for outcome in own.outcomes[2:] for count in outcome.num_drafted}
    assert drafted == {0}


def test_a_steady_controller_is_asked_seldom_and_told_of_every_round_in_order(paced: Served, prompts: Prompts) -> None:
    own = of_everyone(3)
    paced.steering.controller = own
    (text,) = paced.texts(prompts[:1], 150)
    assert 2 * len(own.decisions) < len(own.outcomes)
    assert sum(int(outcome.num_committed.sum()) for outcome in own.outcomes) == len(text) == 150
    generated = 0
    # A state counts what all rounds before it gained, of which the controller has been told.
    for state, told in zip(own.states, own.told, strict=True):
        generated = sum(int(outcome.num_committed[0]) for outcome in own.outcomes[:told])
        assert state.num_generated[0] == generated
        if told:
            assert state.last_num_speculative_tokens[0] == own.outcomes[told - 1].num_drafted[0]
    assert 0 < generated < 150 and paced.steering.guard.report.rounds == len(own.outcomes)


def test_a_plugin_that_may_take_hardly_any_time_asks_seldom_and_writes_the_same_text(
    serve: Callable[..., Served], prompts: Prompts, texts: Prompts
) -> None:
    asked = dict[float, float]()
    for share in (0.0, 1e-9):
        served, own = serve({"self_test": False, "time_share": share}, scheduler_cls=STEERED), of_everyone(2)
        served.steering.controller = own
        for _ in range(8):
            served.texts(prompts[:4], 150)
        asked[share] = len(own.decisions) / len(own.outcomes)
        assert served.texts(prompts) == texts
    assert asked[1e-9] < 0.5 * asked[0.0] < 0.15


@pytest.mark.parametrize(("length", "is_asked_always"), [(0, False), (2, True)])
def test_while_requests_wait_only_speculation_is_asked_about_in_every_step(
    paced: Served, prompts: Prompts, length: int, is_asked_always: bool
) -> None:
    own = of_everyone(length)
    paced.steering.controller = own
    before = paced.steering.counts.steps
    paced.texts(prompts[:14], 30)
    steps = paced.steering.counts.steps - before
    seen = [state.waiting > 0 for state in own.states]
    assert any(seen)
    assert (sum(seen) > steps / 3) if is_asked_always else (len(own.states) < steps / 2)


def test_requests_keep_their_own_lengths_while_nobody_is_asked(paced: Served, prompts: Prompts) -> None:
    given = dict[str, int]()

    def lengths_of(state: RoundState, step: int) -> list[int]:
        return [given.setdefault(name, 1 + len(given) % 3) for name in state.request_ids]

    own = Watched(lengths_of)
    paced.steering.controller = own
    paced.texts(prompts[:3], 60)
    assert 2 * len(own.decisions) < len(own.outcomes)
    several = [outcome for outcome in own.outcomes if len(outcome.num_drafted) == 3 and outcome.num_drafted.all()]
    assert len(several) > 10
    for outcome in several:
        assert outcome.num_drafted.tolist() == [3, 3, 3] and (outcome.num_verified <= [1, 2, 3]).all()
    assert [max(own.num_verified.tolist()[row] for own in several) for row in range(3)] == [1, 2, 3]


def test_a_priced_controller_without_prices_steers(steered: Served, prompts: Prompts, texts: Prompts) -> None:
    own = priced_controller(FixedPolicy(Action(4, 0.0)), hold=4)
    steered.steering.controller = own
    assert own.hold == 1  # The plugin's own pacing says how often it is asked.
    assert steered.texts(prompts) == texts
    guard = steered.steering.guard
    assert guard.report.faults.total() == 0
    assert guard.inner.history[0] > 0  # depths tried: it was told what its drafts led to


def test_a_controller_that_reads_drafts_is_refused_with_the_features_names(steered: Served) -> None:
    before = steered.steering.guard
    with pytest.raises(ValueError, match="top1_probability, entropy, margin, agreement"):
        steered.steering.controller = priced_controller(FixedPolicy(Action(4, 1.0, 1)))
    assert steered.steering.guard is before


def test_controllers_come_from_files(
    serve: Callable[..., Served], tmp_path: Path, prompts: Prompts, texts: Prompts
) -> None:
    path = save_controller(ConstantController(2), tmp_path / "two.json")
    served = serve({"controller": str(path)})
    assert type(served.scheduler).__name__ == "SteeredScheduler"
    assert served.texts(prompts) == texts
    assert served.steering.self_test.problem is None and not served.steering.self_test.under_way
    assert served.steering.guard.report.faults.total() == 0 and served.steering.counts.drafted_tokens > 0
