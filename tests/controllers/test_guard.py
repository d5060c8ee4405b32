"""The guard: whatever a controller does, the engine serves every request and writes the same text."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import (
    EVERY_LEVEL,
    Action,
    ConstantController,
    Controller,
    ControllerFileError,
    Decision,
    DraftLevel,
    FixedPolicy,
    GuardedController,
    GuardSettings,
    MissingFeatureError,
    RoundOutcome,
    RoundState,
    load_controller,
)
from specpilot.controllers.controller import FloatArray, IntArray
from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams
from specpilot.tests.support.controllers import TrimmingController
from specpilot.tests.support.priced import controller
from specpilot.tests.support.rounds import round_state

CALLS = ("decide", "new_lengths", "verify_lengths", "observe")
QUIET = GuardSettings(budget_seconds=10.0, faults_in_a_row=10**9, probe_every=0)


def _raise(error: Exception) -> Any:
    raise error


def _slowly(answer: Any) -> Any:
    time.sleep(0.06)
    return answer


FAULTS: dict[str, Callable[[Any], Any]] = {
    "error": lambda answer: _raise(ZeroDivisionError("mine")),
    "missing_feature": lambda answer: _raise(MissingFeatureError("no 'gain'")),
    "not_finite": lambda answer: np.where(answer, math.nan, np.inf),
    "wrong_type": lambda answer: answer.astype("U1"),
    "wrong_shape": lambda answer: np.concatenate([answer, answer[:1]]),
    "out_of_range": lambda answer: answer.astype(np.int64) - 300,
    "overrun": lambda answer: _slowly(answer),
}


class Faulty(TrimmingController):
    """Random lengths, and random faults of ``kinds`` in ``calls``."""

    def __init__(self, kinds: tuple[str, ...], calls: tuple[str, ...] = CALLS, share: float = 0.3) -> None:
        super().__init__(seed=3)
        self.kinds, self.calls, self.share = kinds, calls, share
        self.rng, self.done = np.random.default_rng(1), Counter[str]()

    def _answer(self, call: str, answer: Any) -> Any:
        if call not in self.calls or self.rng.random() >= self.share:
            return answer
        kind = str(self.rng.choice(self.kinds))
        if call == "observe" and kind not in ("error", "missing_feature", "overrun"):
            return answer
        self.done[kind] += 1
        return FAULTS[kind](answer)

    def decide(self, state: RoundState) -> Decision:
        return Decision(self._answer("decide", super().decide(state).num_speculative_tokens))

    def new_lengths(self, level: DraftLevel) -> Any:
        return self._answer("new_lengths", super().new_lengths(level))

    def verify_lengths(self, num_drafted: Any) -> Any:
        return self._answer("verify_lengths", super().verify_lengths(num_drafted))

    def observe(self, outcome: RoundOutcome) -> None:
        self._answer("observe", np.zeros(1))


class FaultyLooks(Faulty):
    """The same, with what is answered between the levels in the hands of its decisions' `Looks`."""

    def decide(self, state: RoundState) -> Decision:
        return replace(super().decide(state), looks=Answers(self))


class Answers:
    """See `FaultyLooks`."""

    levels, trims = EVERY_LEVEL, True

    def __init__(self, own: Faulty) -> None:
        self.own = own

    def after(self, depth: int, requests: IntArray, margin: FloatArray, agreement: FloatArray) -> Any:
        unknown = np.full(len(requests), np.nan)
        return self.own.new_lengths(DraftLevel(depth, requests, unknown, unknown, margin, agreement))

    def verified(self, num_drafted: IntArray) -> Any:
        return self.own.verify_lengths(num_drafted)


def serve(pair: Pair, prompts: list[list[int]], own: Controller, verification: str = "coupled") -> list[Any]:
    """Texts of requests at mixed temperatures, more of them than there are slots."""
    engine = Engine(pair, EngineConfig(max_num_seqs=3, max_model_len=256, verification=verification), own)
    params = [
        SamplingParams(max_tokens=16, temperature=(0.0, 0.6, 1.0)[n % 3], seed=n, ignore_eos=True)
        for n in range(len(prompts))
    ]
    outputs = engine.generate(prompts, params)
    assert engine.stats.num_finished == len(prompts) and not engine.has_work
    return [(output.token_ids, output.finish_reason, output.error) for output in outputs]


@pytest.mark.parametrize("faulty", [Faulty, FaultyLooks])
@pytest.mark.parametrize("kind", FAULTS)
def test_faults_lose_no_request_change_no_text_are_counted_and_logged_once(
    kind: str, faulty: type[Faulty], pair: Pair, evaluation_prompts: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [prompt[:32] for prompt in evaluation_prompts[:4]]
    plain = serve(pair, prompts, ConstantController(0))
    settings = GuardSettings(budget_seconds=0.05, faults_in_a_row=10**9, probe_every=0)
    inner = faulty((kind,))
    guarded = GuardedController(inner, settings=settings)
    with caplog.at_level(logging.WARNING, "specpilot"):
        assert serve(pair, prompts, guarded) == plain
    report = guarded.report
    assert inner.done[kind] > 5
    # A call may overrun by itself on a busy machine; other faults are exactly those that were made.
    assert report.faults - Counter({"overrun": report.faults["overrun"]}) == Counter(
        {name: count for name, count in inner.done.items() if name != "overrun"}
    )
    assert report.faults["overrun"] >= inner.done["overrun"]
    assert 0 < report.fallback_rounds < report.rounds and report.fallback_rounds <= report.faults.total()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(report.faults) and sum(f"{faulty.__name__}: {kind} (" in line for line in said) == 1


def test_all_faults_at_once_change_no_text_on_many_short_rounds(tiny_pair: Pair) -> None:
    prompts = [[3 + number, 5, 9] for number in range(12)]
    plain = serve(tiny_pair, prompts, ConstantController(0))
    kinds = tuple(kind for kind in FAULTS if kind != "overrun")
    for fallback in (ConstantController(0), ConstantController(4), TrimmingController(5)):
        inner = Faulty(kinds, share=0.2)
        guarded = GuardedController(inner, fallback, QUIET)
        assert serve(tiny_pair, prompts, guarded) == plain
        assert guarded.report.faults == inner.done and set(inner.done) == set(kinds)


def test_faults_are_harmless_in_rejection_mode(tiny_pair: Pair) -> None:
    inner = Faulty(("error", "not_finite", "wrong_shape"))
    guarded = GuardedController(inner, settings=QUIET)
    for _, reason, error in serve(tiny_pair, [[3, 5, 9]] * 8, guarded, "rejection"):
        assert reason is not None and error is None
    assert guarded.report.faults == inner.done


def test_a_sound_controller_is_not_interfered_with(tiny_pair: Pair) -> None:
    drafted = []
    for own in (TrimmingController(2), GuardedController(TrimmingController(2), settings=QUIET)):
        engine = Engine(tiny_pair, EngineConfig(max_num_seqs=4, max_model_len=96), own)
        engine.generate([[3 + n, 5, 9] for n in range(8)], SamplingParams(max_tokens=40, seed=1, temperature=1.0))
        drafted.append([(record.num_drafted, record.num_verified) for record in engine.stats.rounds])
    assert drafted[0] == drafted[1]
    assert isinstance(own, GuardedController) and not own.report.faults and own.report.fallback_rounds == 0


def test_what_the_engine_reads_is_that_of_who_decided() -> None:
    inner = controller(FixedPolicy(Action(8, 1.0, 2)))
    inner.level_features = ("margin",)
    guarded = GuardedController(inner, ConstantController(2), GuardSettings(probe_every=0, suspended_rounds=2))
    guarded.decide(round_state(2))
    assert (guarded.asked_levels, guarded.trims, guarded.level_features) == (2, False, ("margin",))
    decision = guarded.decide(round_state(2, kv_free=math.nan, acceptance_rate=math.inf, context_length=-(10**9)))
    assert decision.num_speculative_tokens.tolist() == [2, 2] and guarded.report.faults.total() == 1
    assert (guarded.asked_levels, guarded.trims) == (0, False)
    guarded.decide(round_state(2))
    assert guarded.asked_levels == 2
    inner.level_features = ("moon_phase",)
    assert guarded.decide(round_state(2)).num_speculative_tokens.tolist() == [2, 2]
    assert guarded.report.faults["missing_feature"] == 1


def test_after_faults_in_a_row_it_is_left_alone_for_a_while() -> None:
    class Counting(ConstantController):
        asked = 0

        def decide(self, state: RoundState) -> Decision:
            self.asked += 1
            return Decision(np.full(3, np.nan) if self.asked <= 3 else np.full(3, 4))

    inner = Counting(0)
    settings = GuardSettings(10.0, faults_in_a_row=3, suspended_rounds=20, probe_every=0)
    guarded = GuardedController(inner, ConstantController(1), settings)
    lengths = []
    for _ in range(30):
        lengths.append(guarded.decide(round_state(3)).num_speculative_tokens.tolist())
        guarded.observe(ended(3, 3, 0.01))
    assert lengths == [[1] * 3] * 23 + [[4] * 3] * 7 and inner.asked == 10
    assert guarded.report.suspensions == 1 and guarded.report.faults == Counter(not_finite=3)
    assert guarded.report.fallback_rounds == 23 and guarded.report.rounds == 30


def ended(batch: int, tokens: int, seconds: float) -> RoundOutcome:
    none = np.zeros(batch, dtype=np.int64)
    committed = none.copy()
    committed[0] = tokens
    return RoundOutcome(none, none, none, committed, 0.0, seconds, 0.0, 0.0)


def simulate(speed: float, rounds: int, batches: Callable[[int], int] = lambda number: 4) -> GuardedController:
    """``speed``: of the inner controller over the fallback's, in a world with noise."""
    rng = np.random.default_rng(0)
    settings = GuardSettings(10.0, probe_every=160, demoted_rounds=1000)
    guarded = GuardedController(ConstantController(4), ConstantController(0), settings)
    for number in range(rounds):
        batch = batches(number)
        own = guarded.decide(round_state(batch)).num_speculative_tokens[0] == 4
        seconds = 0.01 * rng.uniform(0.9, 1.1) * batch
        guarded.observe(ended(batch, round(1000 * batch * (speed if own else 1)), seconds))
    return guarded


@pytest.mark.parametrize(("speed", "demotions"), [(0.5, 2), (0.9, 2), (1.0, 0), (1.5, 0)])
def test_a_controller_is_demoted_if_and_only_if_it_is_slower_than_the_fallback(speed: float, demotions: int) -> None:
    guarded = simulate(speed, 2500)
    assert guarded.report.demotions == demotions and guarded.report.probes >= 10
    assert guarded.report.speed_ratio == pytest.approx(speed, rel=0.05)
    if not demotions:
        assert guarded.report.fallback_rounds <= 8 * (guarded.report.probes + 1)


def test_probes_in_which_the_load_changes_are_not_counted() -> None:
    guarded = simulate(1.5, 1000, lambda number: 1 if number % 10 < 5 else 8)
    assert guarded.report.probes == 0 and guarded.report.demotions == 0


def test_repeated_decisions_count_as_rounds_and_stay_out_of_probes() -> None:
    settings = GuardSettings(10.0, probe_every=160, demoted_rounds=1000)
    guarded = GuardedController(ConstantController(4), ConstantController(0), settings)
    rng, rounds, repeated = np.random.default_rng(0), 0, 0
    while rounds < 2500:
        own = guarded.decide(round_state(4)).num_speculative_tokens[0] == 4
        more = int(min(guarded.repeats, float(rng.integers(0, 6)), 2499 - rounds))
        assert own or not more
        guarded.repeated(more)
        for _ in range(1 + more):
            guarded.observe(ended(4, 500 if own else 1000, 0.01))
        rounds, repeated = rounds + 1 + more, repeated + more
    assert guarded.report.rounds == 2500 and repeated > 200
    assert guarded.report.demotions == 2 and guarded.report.speed_ratio == pytest.approx(0.5)


def test_a_decision_that_was_not_the_controllers_is_not_repeated() -> None:
    class Failing(ConstantController):
        def decide(self, state: RoundState) -> Decision:
            raise RuntimeError("no idea")

    for inner, wanted in ((ConstantController(4), math.inf), (Failing(4), 0)):
        guarded = GuardedController(inner, settings=QUIET)
        guarded.decide(round_state(2))
        assert guarded.repeats == wanted


def test_probes_change_no_text(tiny_pair: Pair) -> None:
    prompts = [[3 + number, 5, 9] for number in range(12)]
    settings = GuardSettings(10.0, probe_every=16, probe_rounds=3, demoted_rounds=10)
    guarded = GuardedController(TrimmingController(1), settings=settings)
    assert serve(tiny_pair, prompts, guarded) == serve(tiny_pair, prompts, ConstantController(0))
    assert guarded.report.probes > 2 and not guarded.report.faults


def test_an_engine_goes_on_with_what_it_has_if_a_file_is_damaged(tiny_pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    engine = Engine(tiny_pair, EngineConfig(max_num_seqs=2, max_model_len=64), ConstantController(2))
    ids = [engine.add_request([3, 5, 9], SamplingParams(max_tokens=20, ignore_eos=True)) for _ in range(2)]
    for _ in range(3):
        engine.step()
    with pytest.raises(ControllerFileError):
        engine.controller = load_controller(tmp_path / "bad.json")
    while engine.has_work:
        engine.step()
    assert all(len(engine.take_result(name).token_ids) == 20 for name in ids)


@pytest.mark.parametrize(
    ("field", "value"),
    [("budget_seconds", 0), ("faults_in_a_row", 0), ("probe_rounds", 1), ("tolerance", 1.0), ("probes_needed", 0)],
)
def test_a_setting_that_makes_no_sense_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        GuardSettings(**{field: value})
