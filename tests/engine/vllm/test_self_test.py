"""The self-test: passes where vLLM drafts what is commanded, ends the steering where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from specpilot.engine.vllm.self_test import PATIENCE, SelfTest
from specpilot.tests.engine.vllm.conftest import LONGEST, STEERED, UNPACED, Served
from specpilot.tests.engine.vllm.test_scheduler import of_everyone

vllm = pytest.importorskip("vllm")


def play(own: SelfTest, drafts: Callable[[int], list[int]]) -> list[int]:
    commanded = []
    while own.under_way:
        commanded.append(own.command)
        own.check(own.command, drafts(own.command))
    return commanded


def test_it_commands_several_lengths_and_passes_a_drafter_that_follows() -> None:
    own = SelfTest(5, exact=True)
    assert play(own, lambda length: [length, length]) == [1, 0, 2] and own.problem is None


@pytest.mark.parametrize("drafted", [0, 1, 2, 5])
def test_a_drafter_that_always_drafts_the_same_fails(drafted: int) -> None:
    own = SelfTest(5, exact=True)
    play(own, lambda length: [drafted])
    assert own.problem is not None


def test_a_drafter_that_may_find_nothing_passes_with_less_but_not_with_more() -> None:
    less, more = SelfTest(5, exact=False), SelfTest(5, exact=False)
    play(less, lambda length: [0, min(length, 1)])
    play(more, lambda length: [0, 1])
    assert less.problem is None and more.problem is not None


def test_without_anything_to_see_it_gives_up_without_a_verdict() -> None:
    own = SelfTest(5, exact=True)
    assert len(play(own, lambda length: [])) == PATIENCE and own.problem is None


def test_an_engine_that_follows_passes_and_is_steered_from_then_on(
    serve: Callable[..., Served], evaluation_prompts: list[list[int]], plain: Served
) -> None:
    served = serve(UNPACED, scheduler_cls=STEERED)
    own = of_everyone(4)
    served.steering.controller = own
    assert served.texts(evaluation_prompts[:3], 40) == plain.texts(evaluation_prompts[:3], 40)
    steering = served.steering
    assert not steering.self_test.under_way and steering.self_test.problem is None and steering.problem is None
    # The steps of the test are not the controller's: it is not told of them.
    assert own.step - len(own.outcomes) == 3
    assert max(int(outcome.num_drafted.max()) for outcome in own.outcomes[1:]) == 4


def test_a_drafter_that_ignores_k_is_found_out_and_vllm_serves_on(
    serve: Callable[..., Served],
    evaluation_prompts: list[list[int]],
    plain: Served,
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = serve(UNPACED | {"lazy_catch_up": False}, scheduler_cls=STEERED)
    own = of_everyone(2)
    served.steering.controller = own
    drafter = served.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.drafter
    stock = drafter.propose

    def always_the_longest(*given: Any, **named: Any) -> Any:
        return stock(*given, **{**named, "num_speculative_tokens": LONGEST})

    drafter.propose = always_the_longest
    with caplog.at_level("WARNING", "specpilot"):
        assert served.texts(evaluation_prompts[:3], 40) == plain.texts(evaluation_prompts[:3], 40)
    assert "self-test" in served.steering.problem
    assert len([record for record in caplog.records if record.name.startswith("specpilot")]) == 1
    assert own.step <= 3
    assert served.steering.counts.length == LONGEST
