"""K neither flaps with the controller's wishes nor stays behind a load that has really changed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from specpilot.controllers import Controller, Decision, RoundState
from specpilot.engine.vllm import VllmSettings
from specpilot.engine.vllm.pacing import PacedController, Pacer, Thrift
from specpilot.tests.support.rounds import round_state

LENGTHS = range(9)


def pacer() -> Pacer:
    settings = VllmSettings()
    return Pacer(settings.confirm_steps, settings.dwell_steps)


def follow_at_rest(own: Pacer, wish: int) -> int:
    """A step in which the wish is asked for only where it can matter."""
    if not own.rests:
        return own.follow(wish)
    own.rest(1)
    assert own.length is not None
    return own.length


def changes(lengths: list[int]) -> int:
    return sum(before != after for before, after in pairwise(lengths))


@pytest.mark.parametrize("period", [1, 2])
@pytest.mark.parametrize("first", LENGTHS)
def test_alternating_wishes_do_not_flap(first: int, period: int) -> None:
    for second in LENGTHS:
        own = pacer()
        wishes = [second if step // period % 2 else first for step in range(200)]
        assert changes([own.follow(wish) for wish in wishes]) == 0


def test_no_wishes_make_it_change_more_often_than_the_dwell_time_allows() -> None:
    rng, dwell = np.random.default_rng(0), VllmSettings().dwell_steps
    for run in range(50):
        own = pacer()
        wishes = rng.choice([0, 8], p=[0.2, 0.8], size=600) if run % 2 else rng.integers(0, 9, size=600)
        told = [own.follow(int(wish)) for wish in wishes]
        steps = [step for step, (before, after) in enumerate(pairwise(told)) if before != after]
        assert all(later - sooner >= dwell for sooner, later in pairwise(steps))


def test_a_step_change_is_followed_within_ten_steps_whatever_was_before() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        own = pacer()
        for wish in rng.integers(0, 9, size=int(rng.integers(1, 60))):
            own.follow(int(wish), bool(rng.integers(2)))
        goal = int(rng.integers(0, 9))
        assert [own.follow(goal) for _ in range(20)][9:] == [goal] * 11


def test_wishes_that_are_not_asked_for_change_neither_dwell_time_nor_the_ten_steps() -> None:
    rng, dwell = np.random.default_rng(3), VllmSettings().dwell_steps
    for _ in range(200):
        own = pacer()
        told = [follow_at_rest(own, int(wish)) for wish in rng.integers(0, 9, size=int(rng.integers(1, 60)))]
        steps = [step for step, (before, after) in enumerate(pairwise(told)) if before != after]
        assert all(later - sooner >= dwell for sooner, later in pairwise(steps))
        goal = int(rng.integers(0, 9))
        assert [follow_at_rest(own, goal) for _ in range(20)][9:] == [goal] * 11


def test_until_the_dwell_time_is_over_resting_changes_nothing() -> None:
    rng, settings = np.random.default_rng(4), VllmSettings()
    for _ in range(100):
        every, some = pacer(), pacer()
        # Always another K: only the steps after a change are rested.
        for wish in (int(wish) for wish in rng.permutation(9).repeat(settings.dwell_steps)):
            if wish == every.length:
                break
            assert every.follow(wish) == follow_at_rest(some, wish)


def test_steady_wishes_are_asked_for_once_in_the_dwell_time_and_never_rest_if_followed_at_once() -> None:
    own, at_once, rested = pacer(), Pacer(1, 6), 0
    for _ in range(600):
        rested += own.rests > 0
        follow_at_rest(own, 4)
        at_once.follow(4)
        assert not at_once.rests
    assert rested == 500


def test_resting_for_some_steps_is_resting_step_by_step() -> None:
    rng = np.random.default_rng(5)
    seen = set[int]()
    for _ in range(200):
        wishes = rng.integers(0, 3, size=int(rng.integers(1, 12))).tolist()
        at_once, by_one = pacer(), pacer()
        for wish in wishes:
            assert follow_at_rest(at_once, wish) == follow_at_rest(by_one, wish)
        steps = at_once.rests
        seen.add(steps)
        at_once.rest(steps)
        for left in range(steps, 0, -1):
            assert by_one.rests == left
            by_one.rest(1)
        assert at_once.rests == by_one.rests == 0
        later = rng.integers(0, 3, size=12).tolist()
        assert [follow_at_rest(at_once, wish) for wish in later] == [follow_at_rest(by_one, wish) for wish in later]
    assert {0, VllmSettings().dwell_steps - 1} <= seen


def test_it_falls_to_zero_at_once_while_requests_wait_and_not_otherwise() -> None:
    busy, idle = pacer(), pacer()
    assert busy.follow(4) == idle.follow(4) == 4
    assert busy.follow(0, loaded=True) == 0
    assert idle.follow(0, loaded=False) == 4


def test_alternating_under_load_does_not_flap_either() -> None:
    own = pacer()
    assert changes([own.follow(8 * (step % 2), loaded=True) for step in range(200)]) <= 1


def test_one_step_and_no_dwelling_is_the_controller_itself() -> None:
    rng, own = np.random.default_rng(2), Pacer(1, 0)
    wishes = rng.integers(0, 9, size=100).tolist()
    assert [own.follow(wish) for wish in wishes] == wishes


def questions(most: float, per_question: float, steps: int, between: float = 0.0) -> list[int]:
    """Steps between two questions, where a question takes ``per_question`` of a step and every step ``between``."""
    own, thrift, found = pacer(), Thrift(most), [0]
    taken, passed = 0.0, 0
    own.follow(4)
    while passed < steps:
        stands = int(thrift.stretch * own.rests)
        own.rest(stands)
        taken, passed = taken + per_question + (1 + stands) * between, passed + 1 + stands
        thrift.enter(taken, float(passed))
        own.follow(4)
        found.append(1 + stands)
    return found


@pytest.mark.parametrize("per_question", [0.06, 0.1, 0.15])
def test_who_would_take_more_than_the_share_is_asked_as_seldom_as_keeps_it(per_question: float) -> None:
    later = questions(0.01, per_question, 5000)[-60:]
    assert sum(later) / len(later) == pytest.approx(max(6.0, per_question / 0.01), rel=0.1)


def test_who_keeps_to_the_share_is_asked_as_often_as_the_pacer_says() -> None:
    assert set(questions(0.01, 0.05, 600)[2:]) == {6}
    assert set(questions(0.0, 0.5, 600)[2:]) == {6}, "0 is no bound"


def test_however_much_it_takes_no_answer_stands_for_more_than_five_times_as_long() -> None:
    assert max(questions(0.01, 10.0, 5000, between=0.5)) == 1 + 5 * 5


def test_once_it_takes_little_again_it_is_asked_as_often_as_before() -> None:
    thrift, own, whole = Thrift(0.01), 0.0, 0.0
    for taken in [0.5] * 100 + [0.01] * 200:
        own, whole = own + taken, whole + 6.0
        thrift.enter(own, whole)
        if whole == 600.0:
            assert thrift.stretch == 5.0
    assert thrift.stretch == 1.0


class Scripted(Controller):
    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def decide(self, state: RoundState) -> Decision:
        return Decision(np.asarray(self.lengths, dtype=np.int64))


def test_lengths_of_requests_keep_their_order_and_their_own_cut() -> None:
    inner = Scripted([1, 4, 0])
    own = PacedController(inner, pacer())
    state = round_state(3)
    assert own.decide(state).num_speculative_tokens.tolist() == [1, 4, 0]
    inner.lengths = [1, 8, 5]
    assert own.decide(state).num_speculative_tokens.tolist() == [1, 4, 4]
    inner.lengths = [0, 1, 0]
    assert own.decide(state).num_speculative_tokens.tolist() == [0, 4, 0]
    inner.lengths = [1, 1, 1]
    assert own.decide(state).num_speculative_tokens.tolist() == [4, 4, 4]


def test_other_requests_get_what_is_wished_for_them_at_once() -> None:
    inner = Scripted([4])
    own = PacedController(inner, pacer())
    for name in range(30):  # One at a time, as in closed loop with one request.
        inner.lengths = [2 + 6 * (name % 2)]
        state = replace(round_state(1), request_ids=(f"request-{name}",))
        told = [own.decide(state).num_speculative_tokens.item() for _ in range(5)]
        assert told == inner.lengths * 5
    names = tuple(f"steady-{name}" for name in range(4))
    inner.lengths = [6] * 4
    assert own.decide(replace(round_state(4), request_ids=names)).num_speculative_tokens.tolist() == [6] * 4
    for step in range(40):  # One of four changes each time: the others hold K.
        inner.lengths = [6 - step % 2] * 4
        state = replace(round_state(4), request_ids=(f"new-{step}", *names[1:]))
        assert max(own.decide(state).num_speculative_tokens.tolist()) == 6


def test_faulty_decisions_pass_for_the_guard_to_judge() -> None:
    own, state = PacedController(Scripted([1, 2]), pacer()), round_state(3)
    assert own.decide(state).num_speculative_tokens.tolist() == [1, 2]
    own = PacedController(Scripted([-1, 2, 3]), pacer())
    assert own.decide(state).num_speculative_tokens.tolist() == [-1, 2, 3]
