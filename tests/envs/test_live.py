"""Both environments around the real pair: the recorded texts come out whatever is decided, and nothing is left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.engine import EngineConfig, Pair, SamplingParams
from specpilot.envs.speculation_length import SpeculationLengthEnv
from specpilot.envs.stop_continue import StopContinueEnv
from specpilot.envs.trace import Trace
from specpilot.tests.support.episodes import alive, play
from specpilot.tests.support.traces import rich_surface
from specpilot.train.recording import TextRequest, record_requests

Env = SpeculationLengthEnv | StopContinueEnv
BOTH = pytest.mark.parametrize("environment", [SpeculationLengthEnv, StopContinueEnv])


@pytest.fixture(scope="module")
def trace(pair: Pair, evaluation_prompts: list[list[int]]) -> Trace:
    prompts = sorted(evaluation_prompts, key=len)[:4]
    requests = [
        TextRequest(tuple(prompt), SamplingParams(temperature=0.6 * (n % 2), seed=n, max_tokens=8))
        for n, prompt in enumerate(prompts)
    ]
    return record_requests(pair, EngineConfig(4, 128, max_num_speculative_tokens=3), requests)


def make(environment: Any, trace: Trace, directory: Path, **values: Any) -> Any:
    own = {"max_num_seqs": 2, "max_model_len": 128, "max_rounds": 6, "traffic": {"concurrency": 2}, **values}
    pair = {"target": directory / "target", "drafter": directory / "drafter"}
    return environment(trace=trace, cost_surface=rich_surface(), backend="live", **pair, **own)


@BOTH
def test_live_has_the_spaces_of_replay_and_serves_the_recording(
    environment: Any, trace: Trace, pair_directory: Path
) -> None:
    env = make(environment, trace, pair_directory, max_rounds=1000, traffic={"mode": "poisson", "load": 1.0})
    replay = environment(trace=trace, cost_surface=rich_surface(), max_num_seqs=2, max_model_len=128)
    assert env.observation_space == replay.observation_space and env.action_space == replay.action_space
    env._backend.server.scenario.fleet.__dict__["max_rounds"] = 6  # Few requests, and time to serve them all.
    env.action_space.seed(0)
    env.reset(seed=0)
    infos, terminated = play(env)
    assert terminated and alive() == 0
    episode = env._backend.episode
    records = episode.schedule.record[0]
    assert sorted(episode.texts) == list(range(len(records)))
    lengths = {number: len(text) for number, text in episode.texts.items()}
    assert lengths == {number: int(trace.output_tokens[record]) for number, record in enumerate(records)}
    by_record: dict[int, set[tuple[int, ...]]] = {}
    for number, text in episode.texts.items():
        by_record.setdefault(int(records[number]), set()).add(text)
    assert all(len(texts) == 1 for texts in by_record.values()), "a text does not depend on what is decided"
    rounds = [info for info in infos if info]
    assert sum(info["tokens"] for info in rounds) == sum(lengths.values())
    assert all(info["seconds"] > 0 for info in rounds)
    env.close()


@BOTH
def test_reset_and_close_end_the_worker_in_mid_round(environment: Any, trace: Trace, pair_directory: Path) -> None:
    env = make(environment, trace, pair_directory)
    env.action_space.seed(1)
    for steps in (0, 1, 3):
        env.reset(seed=steps)
        play(env, steps)
        assert alive() == 1
    env.close()
    env.close()
    assert alive() == 0 and not env._backend.server.engine.has_work
    env.reset(seed=0)
    _, terminated = play(env)
    assert not terminated, "max_rounds truncates"
    env.close()
    assert alive() == 0


@BOTH
def test_an_error_of_the_engine_is_raised_by_step_and_the_next_episode_runs(
    environment: Any, trace: Trace, pair_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(environment, trace, pair_directory)
    env.reset(seed=0)
    engine = env._backend.server.engine

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.speculator, "run", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            play(env)
    assert alive() == 0
    env.reset(seed=0)
    play(env, 3)
    env.close()


def test_rewards_of_a_live_round_come_at_its_end(trace: Trace, pair_directory: Path) -> None:
    env = make(StopContinueEnv, trace, pair_directory)
    env.reset(seed=0)
    done = False
    while not done:
        _, reward, terminated, truncated, info = env.step(np.int64(1))
        expected = info["tokens"] - info["price"] * info["seconds"] if info else 0.0
        assert reward == pytest.approx(expected)
        done = terminated or truncated
    env.close()
