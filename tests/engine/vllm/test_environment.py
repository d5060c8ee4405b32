"""The environment around vLLM: the recorded texts come out whatever is decided, and episodes may end anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specpilot.engine import EngineConfig, SamplingParams
from specpilot.envs.scenario import ScenarioError
from specpilot.envs.speculation_length import SpeculationLengthEnv
from specpilot.envs.stop_continue import StopContinueEnv
from specpilot.envs.trace import Trace
from specpilot.tests.support.episodes import alive, play
from specpilot.tests.support.traces import rich_surface
from specpilot.train.recording import TextRequest
from specpilot.train.vllm_recording import VllmRecorder

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def trace(pair_directory: Path, evaluation_prompts: list[list[int]]) -> Trace:
    sizes = EngineConfig(max_num_seqs=4, max_num_speculative_tokens=3)
    recorder = VllmRecorder(str(pair_directory / "target"), str(pair_directory / "drafter"), sizes, "float32")
    prompts = sorted(evaluation_prompts, key=len)[:4]
    return recorder.record([TextRequest(tuple(own), SamplingParams(seed=1, max_tokens=8)) for own in prompts])


@pytest.fixture(scope="module")
def env(trace: Trace, pair_directory: Path) -> SpeculationLengthEnv:
    pair = {"target": pair_directory / "target", "drafter": pair_directory / "drafter"}
    own: dict[str, Any] = {"max_num_seqs": 2, "max_model_len": 128, "max_rounds": 20, "prices": (0.0,)}
    traffic = [{"concurrency": 2}, {"mode": "poisson", "load": 1.0}]
    return SpeculationLengthEnv(trace, rich_surface(), traffic=traffic, backend="vllm", **own, **pair)


def test_random_lengths_serve_the_recorded_texts(env: SpeculationLengthEnv, trace: Trace) -> None:
    env.action_space.seed(0)
    served = 0
    for seed in range(4):
        env.reset(seed=seed, options={"scenario": seed % 2})
        infos, _ = play(env)
        assert len({info["drafted"] for info in infos}) > 1, "lengths change what is drafted"
        assert all(info["seconds"] > 0 for info in infos)
        backend: Any = env._backend
        episode, engine = backend.episode, backend.server.engine
        assert not engine.steering.guard.report.faults and engine.steering.problem is None
        for number, text in episode.texts.items():
            record = int(episode.schedule.record[0, number])
            assert len(text) == trace.output_tokens[record]
        served += len(episode.texts)
    assert served > 8


def test_an_episode_may_end_in_mid_step(env: SpeculationLengthEnv) -> None:
    env.action_space.seed(1)
    for steps in (0, 1, 3, 5):
        env.reset(seed=steps)
        play(env, steps)
        assert alive() == 1
    env.close()
    backend: Any = env._backend
    assert alive() == 0 and not backend.server.engine.has_work
    env.reset(seed=9)
    infos, _ = play(env)
    assert sum(info["accepted"] for info in infos) > 0
    env.close()


def test_what_vllm_cannot_show_is_refused(trace: Trace) -> None:
    with pytest.raises(ScenarioError, match=r"give \(0\.0,\)"):
        SpeculationLengthEnv(trace, rich_surface(), backend="vllm")
    with pytest.raises(ScenarioError, match="backend 'live'"):
        StopContinueEnv(trace, rich_surface(), backend="vllm")
