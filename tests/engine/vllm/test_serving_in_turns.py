"""The benchmark's contenders take turns by clocks of their own: all serve everything, and none pays for another."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from specpilot.benchmarks import vllm_serving
from specpilot.benchmarks.vllm_serving import decode_seconds, serve_in_turns
from specpilot.engine import SamplingParams
from specpilot.engine.request import FinishReason, RequestOutput, RequestStats, StreamChunk
from specpilot.engine.vllm.engine import VllmEngineConfig
from specpilot.envs.replay_state import Schedule

LENGTHS = [5, 9, 3, 7, 4, 6]


class Clock:
    """Stands for ``time.perf_counter``."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Engine:
    """Gives every request a token per step of ``seconds``, and is held up by an instrument."""

    def __init__(self, clock: Clock, seconds: float, instrument: float = 0.0) -> None:
        self.config = VllmEngineConfig("target", max_num_seqs=4)
        self._instrument, self.instrument_seconds = instrument, 0.0
        self.seconds, self.most = seconds, 0
        self.plugin_seconds = 0.0
        self._clock = clock
        self._left: dict[str, int] = {}
        self._given: dict[str, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def add_request(self, prompt: list[int], params: SamplingParams) -> str:
        name = f"r{len(self._given)}"
        self._left[name] = self._given[name] = params.max_tokens
        self.most = max(self.most, len(self._left))
        return name

    def step(self) -> list[StreamChunk]:
        self._clock.seconds += self.seconds + self._instrument
        self.instrument_seconds += self._instrument
        self._left = {name: left - 1 for name, left in self._left.items()}
        ended = [name for name, left in self._left.items() if not left]
        chunks = [StreamChunk(name, (7,), "", FinishReason.LENGTH if name in ended else None) for name in self._left]
        for name in ended:
            del self._left[name]
        return chunks

    def measure_arrivals(self, clock: Any) -> None:
        pass

    def take_result(self, name: str) -> RequestOutput:
        return RequestOutput(name, (1,), (7,) * self._given[name], "", FinishReason.LENGTH, RequestStats())


class Requests:
    """Of a trace what is served."""

    token_limit = np.asarray(LENGTHS)
    prompt_tokens = np.asarray([1] * len(LENGTHS))
    output_tokens = np.asarray(LENGTHS)
    temperature = np.asarray([0.0, 0.6, 1.0, 0.0, 0.6, 1.0])
    seed = np.arange(len(LENGTHS))

    def __len__(self) -> int:
        return len(LENGTHS)

    def prompt(self, record: int) -> list[int]:
        return [1]


def schedule(concurrency: int, gap: float = 0.0) -> Schedule:
    count = len(LENGTHS)
    lengths = np.asarray([LENGTHS])
    return Schedule(
        arrival=gap * np.arange(count, dtype=np.float64)[None],
        record=np.arange(count)[None],
        length=lengths,
        limit=lengths,
        count=np.asarray([count]),
        concurrency=np.asarray([concurrency]),
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(time, "perf_counter", own)
    return own


def contenders(clock: Clock, **seconds: float) -> dict[str, Any]:
    return {name: Engine(clock, own) for name, own in seconds.items()}


def test_a_closed_loop_takes_each_as_long_as_its_own_steps(clock: Clock) -> None:
    own = contenders(clock, slow=0.4, fast=0.1)
    found = serve_in_turns(own, Requests(), schedule(concurrency=2))  # type: ignore[arg-type]
    for name, run in found.items():
        assert [len(tokens) for tokens in run.outputs] == LENGTHS and own[name].most == 2
        assert run.seconds == pytest.approx(run.steps * own[name].seconds)
    assert found["slow"].seconds == pytest.approx(4 * found["fast"].seconds)
    assert found["slow"].request_seconds == pytest.approx(4 * found["fast"].request_seconds)


def test_requests_that_come_one_by_one_are_not_waited_for(clock: Clock) -> None:
    own = contenders(clock, slow=0.02, fast=0.01)
    found = serve_in_turns(own, Requests(), schedule(concurrency=0, gap=100.0))  # type: ignore[arg-type]
    for name, run in found.items():
        engine = own[name]
        assert run.request_seconds == pytest.approx(sum(LENGTHS) * engine.seconds) and engine.most == 1
        assert run.seconds == pytest.approx(100 * (len(LENGTHS) - 1) + LENGTHS[-1] * engine.seconds)
    assert clock.seconds == pytest.approx(sum(LENGTHS) * 0.03)


def test_requests_wait_while_their_contender_has_its_turn_and_not_while_others_have_theirs(clock: Clock) -> None:
    alone = serve_in_turns(contenders(clock, one=0.25), Requests(), schedule(0, gap=0.5))["one"]  # type: ignore[arg-type]
    others = contenders(clock, one=0.25, two=0.75, three=0.0625)
    assert serve_in_turns(others, Requests(), schedule(0, gap=0.5))["one"] == alone  # type: ignore[arg-type]


@pytest.mark.parametrize("own", [schedule(concurrency=2), schedule(0, gap=0.5)], ids=["closed", "open"])
def test_what_measuring_takes_is_nobodys_time(clock: Clock, own: Schedule) -> None:
    plain = serve_in_turns({"one": Engine(clock, 0.25)}, Requests(), own)["one"]  # type: ignore[arg-type, dict-item]
    held_up = {"one": Engine(clock, 0.25, instrument=0.5), "two": Engine(clock, 0.125)}
    assert serve_in_turns(held_up, Requests(), own)["one"] == plain  # type: ignore[arg-type]


def test_the_speed_of_full_steps_is_what_all_slots_need(clock: Clock) -> None:
    engine: Any = Engine(clock, 0.25)
    seconds, context = decode_seconds(engine, Requests())  # type: ignore[arg-type]
    assert seconds == pytest.approx(0.25) and context == 1 + vllm_serving.FULL_TOKENS / 2 and not engine.has_work
