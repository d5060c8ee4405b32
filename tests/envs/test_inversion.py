"""A loop turned inside out: order, ends, errors and shutdown."""

from __future__ import annotations

import threading

import pytest

from specpilot.envs.inversion import Inversion


def alive() -> int:
    return sum(thread.name == "specpilot-live" for thread in threading.enumerate())


def test_questions_and_answers_alternate() -> None:
    answers = []

    def work(inversion: Inversion[int, str]) -> None:
        answers.extend(inversion.ask(number) for number in range(3))

    inversion = Inversion[int, str](work)
    assert [inversion.begin(), inversion.answer("a"), inversion.answer("b"), inversion.answer("c")] == [0, 1, 2, None]
    assert answers == ["a", "b", "c"] and alive() == 0


def test_an_error_in_the_worker_reaches_the_decider() -> None:
    def work(inversion: Inversion[int, int]) -> None:
        inversion.ask(1)
        raise KeyError("lost")

    inversion = Inversion[int, int](work)
    inversion.begin()
    with pytest.raises(KeyError, match="lost"):
        inversion.answer(1)
    inversion.stop()
    assert alive() == 0


@pytest.mark.parametrize("asked", [False, True])
def test_stop_unwinds_the_worker_through_its_handlers(asked: bool) -> None:
    unwound = []

    def work(inversion: Inversion[int, int]) -> None:
        try:
            while True:
                try:
                    inversion.ask(1)
                except Exception:  # What an engine or a guard does must not keep the worker alive.
                    unwound.append("caught")
        finally:
            unwound.append("finally")

    inversion = Inversion[int, int](work)
    if asked:
        inversion.begin()
    inversion.stop()
    inversion.stop()
    assert unwound == (["finally"] if asked else []) and alive() == 0


def test_a_waiting_worker_is_stopped_at_once() -> None:
    started = threading.Event()

    def work(inversion: Inversion[int, int]) -> None:
        started.set()
        inversion.wait(3600)

    inversion = Inversion[int, int](work)
    decider = threading.Thread(target=inversion.begin)
    decider.start()
    started.wait()
    inversion.stop()
    decider.join(10)
    assert not decider.is_alive() and alive() == 0
