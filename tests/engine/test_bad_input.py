"""A bad request fails alone, with its value in the message; a bad decision leaves the engine as it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from specpilot.controllers import EVERY_LEVEL, ConstantController, Controller, Decision, RoundState
from specpilot.engine import ControllerError, Engine, EngineConfig, FinishReason, Pair, RequestError, SamplingParams

GOOD = [1, 2, 3]
MAX_LEN = 48

BAD_REQUESTS: dict[str, tuple[Any, SamplingParams, str]] = {
    "empty prompt": ([], SamplingParams(), "empty"),
    "empty string": ("", SamplingParams(), "empty"),
    "prompt too long": ([1] * 48, SamplingParams(max_tokens=1), "48 tokens"),
    "prompt plus output too long": ([1] * 20, SamplingParams(max_tokens=29), "lower max_tokens to 28"),
    "token id too large": ([1, 73], SamplingParams(), "73"),
    "token id negative": ([1, -5], SamplingParams(), "-5"),
    "token id not an integer": ([1, 2.5], SamplingParams(), "token ids"),
    "token id a boolean": ([1, True], SamplingParams(), "token ids"),
    "two-dimensional prompt": (np.ones((2, 2), dtype=np.int64), SamplingParams(), "token ids"),
    "prompt None": (None, SamplingParams(), "prompt"),
    "prompt a number": (5, SamplingParams(), "prompt"),
    "prompt with half a character": ("\ud800", SamplingParams(), "prompt"),
    "temperature NaN": (GOOD, SamplingParams(temperature=math.nan), "nan"),
    "temperature infinite": (GOOD, SamplingParams(temperature=math.inf), "inf"),
    "temperature negative": (GOOD, SamplingParams(temperature=-0.5), "-0.5"),
    "K negative": (GOOD, SamplingParams(num_speculative_tokens=-1), "-1"),
    "K over the engine's": (GOOD, SamplingParams(num_speculative_tokens=9), "9"),
    "stop of another type": (GOOD, SamplingParams(stop=3), "3"),  # type: ignore[arg-type]
    "stop empty": (GOOD, SamplingParams(stop=["x", ""]), "empty string"),
    "top_p zero": (GOOD, SamplingParams(top_p=0.0), "0.0"),
    "top_k negative": (GOOD, SamplingParams(top_k=-2), "-2"),
    "max_tokens zero": (GOOD, SamplingParams(max_tokens=0), "0"),
    "seed negative": (GOOD, SamplingParams(seed=-1), "-1"),
}


@pytest.fixture
def engine(tiny_pair: Pair) -> Engine:
    return Engine(tiny_pair, EngineConfig(max_num_seqs=4, max_model_len=MAX_LEN), ConstantController(3))


def good_params() -> SamplingParams:
    return SamplingParams(max_tokens=10, temperature=0.7, seed=1)


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_fails_alone_and_says_why(engine: Engine, name: str) -> None:
    prompt, params, message = BAD_REQUESTS[name]
    params = params if params != SamplingParams() else SamplingParams(max_tokens=10)
    alone = engine.generate([GOOD, [5, 6]], good_params())
    first, bad, last = engine.generate([GOOD, prompt, [5, 6]], [good_params(), params, good_params()])
    assert bad.finish_reason is FinishReason.ERROR
    assert bad.error is not None and message in bad.error
    assert bad.token_ids == () and bad.text == ""
    assert [first.token_ids, last.token_ids] == [output.token_ids for output in alone]
    assert first.error is None and last.error is None
    assert engine.stats.num_refused == 1 and engine.stats.num_requests == engine.stats.num_finished == 4
    assert not engine.has_work and not engine.scheduler.running


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_raises_and_changes_nothing(engine: Engine, name: str) -> None:
    prompt, params, message = BAD_REQUESTS[name]
    params = params if params != SamplingParams() else SamplingParams(max_tokens=10)
    with pytest.raises(RequestError) as caught:
        engine.add_request(prompt, params)
    assert message in str(caught.value) and len(str(caught.value)) < 300
    assert not engine.has_work and not engine.scheduler.waiting


def test_the_longest_request_that_fits_is_served(engine: Engine) -> None:
    for size in (1, 20, 47):
        params = SamplingParams(max_tokens=MAX_LEN - size, ignore_eos=True)
        (output,) = engine.generate([[1] * size], params)
        assert len(output.token_ids) == MAX_LEN - size


def test_a_duplicate_id_is_refused_until_its_result_is_taken(engine: Engine) -> None:
    engine.add_request(GOOD, good_params(), "mine")
    with pytest.raises(RequestError, match="mine"):
        engine.add_request(GOOD, good_params(), "mine")
    while engine.has_work:
        engine.step()
    with pytest.raises(RequestError, match="mine"):
        engine.add_request(GOOD, good_params(), "mine")
    first = engine.take_result("mine")
    engine.add_request(GOOD, good_params(), "mine")
    while engine.has_work:
        engine.step()
    assert engine.take_result("mine").token_ids == first.token_ids


def test_an_id_like_the_engines_own_is_no_trap_for_later_requests(engine: Engine) -> None:
    engine.add_request(GOOD, good_params(), "request-1")
    assert engine.add_request(GOOD, good_params()) != "request-1"
    assert len({engine.add_request(GOOD, good_params()) for _ in range(3)}) == 3


def test_numpy_token_ids_are_as_good_as_a_list(engine: Engine) -> None:
    first, second = engine.generate([np.asarray(GOOD), tuple(GOOD)], good_params())
    assert first.token_ids == second.token_ids and first.prompt_token_ids == tuple(GOOD)


def test_unequal_numbers_of_prompts_and_params_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="2 prompts but 1"):
        engine.generate([GOOD, GOOD], [good_params()])
    assert not engine.has_work


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_num_seqs", 0, "max_num_seqs must be at least 1, got 0"),
        ("max_num_speculative_tokens", -1, "got -1"),
        ("num_candidates", 0, "got 0"),
        ("prefill_chunk", 0, "got 0"),
        ("catch_up_chunk", 0, "got 0"),
        ("seed", -1, "got -1"),
        ("max_model_len", 1, "got 1"),
        ("kv_cache_bytes", 0, "got 0"),
        ("verification", "lossy", "'lossy'"),
        ("drafter", "oracle", "'oracle'"),
    ],
)
def test_a_bad_setting_of_the_engine_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        EngineConfig(**{field: value})
    assert message in str(caught.value)


def test_a_length_beyond_the_models_is_refused(tiny_pair: Pair) -> None:
    with pytest.raises(ValueError, match="257"):
        Engine(tiny_pair, EngineConfig(max_model_len=257))


# ---------------------------------------------------------------------- controllers


class Returning(Controller):
    """Returns what it is told."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def decide(self, state: RoundState) -> Decision:
        return Decision(self.value)


BAD_DECISIONS: dict[str, Any] = {
    "negative": np.asarray([1, -2]),
    "too few": np.asarray([1]),
    "too many": np.asarray([1, 1, 1]),
    "two-dimensional": np.ones((2, 1), dtype=np.int64),
    "a scalar": 3,
    "floats": np.asarray([1.0, 2.0]),
    "NaN": np.asarray([math.nan, 1.0]),
    "booleans": np.asarray([True, False]),
    "strings": np.asarray(["1", "2"]),
    "None": None,
    "objects": np.asarray([1, None], dtype=object),
}


@pytest.mark.parametrize("name", BAD_DECISIONS)
def test_a_bad_decision_is_an_error_and_another_controller_can_go_on(engine: Engine, name: str) -> None:
    plain = engine.generate([GOOD, [5, 6]], good_params())
    engine.controller = ConstantController(2)
    ids = [engine.add_request(prompt, good_params()) for prompt in (GOOD, [5, 6])]
    engine.step()
    engine.step()
    before = engine.stats.num_rounds
    engine.controller = Returning(BAD_DECISIONS[name])
    for _ in range(2):
        with pytest.raises(ControllerError, match="Returning"):
            engine.step()
    assert engine.stats.num_rounds == before
    engine.controller = ConstantController(4)
    while engine.has_work:
        engine.step()
    assert [engine.take_result(request_id).token_ids for request_id in ids] == [output.token_ids for output in plain]


def test_a_decision_over_the_maximum_is_cut(engine: Engine) -> None:
    engine.controller = ConstantController(10**6)
    engine.generate([GOOD], SamplingParams(max_tokens=30, ignore_eos=True))
    assert max(drafted for record in engine.stats.rounds for drafted in record.num_drafted) == 8


def test_small_integer_types_are_decisions_too(engine: Engine) -> None:
    for dtype in (np.int8, np.uint8, np.int32, np.uint64):
        engine.controller = Returning(np.asarray([3], dtype=dtype))
        (output,) = engine.generate([GOOD], good_params())
        assert output.stats.num_drafted > 0
    engine.controller = Returning([2])
    assert engine.generate([GOOD], good_params())[0].token_ids == output.token_ids


class Raising(ConstantController):
    """Fails in the middle of a draft."""

    asked_levels = EVERY_LEVEL

    def new_lengths(self, level: object) -> NDArray[np.int64]:
        raise FloatingPointError("mine")


def test_a_controller_that_raises_loses_no_request(engine: Engine) -> None:
    plain = engine.generate([GOOD, [5, 6]], good_params())
    ids = [engine.add_request(prompt, good_params()) for prompt in (GOOD, [5, 6])]
    engine.step()
    engine.controller = Raising(4)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="mine"):
            engine.step()
    engine.controller = ConstantController(4)
    while engine.has_work:
        engine.step()
    assert [engine.take_result(request_id).token_ids for request_id in ids] == [output.token_ids for output in plain]


@pytest.mark.parametrize("answer", [[2], [[2, 2]], [0.5, 1.0], [True, True], [0, 4], None], ids=repr)
def test_a_bad_answer_between_levels_is_a_controller_error(engine: Engine, answer: Any) -> None:
    class Odd(ConstantController):
        asked_levels = EVERY_LEVEL

        def new_lengths(self, level: object) -> NDArray[np.int64]:
            return None if answer is None else np.asarray(answer)  # type: ignore[return-value]

    plain = engine.generate([GOOD, [5, 6]], good_params())
    ids = [engine.add_request(prompt, good_params()) for prompt in (GOOD, [5, 6])]
    engine.controller = Odd(4)
    with pytest.raises(ControllerError, match="Odd"):
        engine.step()
    engine.controller = ConstantController(4)
    while engine.has_work:
        engine.step()
    assert [engine.take_result(request_id).token_ids for request_id in ids] == [output.token_ids for output in plain]
