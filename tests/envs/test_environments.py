"""Both environments on replay: Gymnasium's rules, seeds, manuals, rewards, rendering."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from specpilot.controllers import ConstantController
from specpilot.controllers.observation import FEATURES
from specpilot.envs import SPECULATION_LENGTH, STOP_CONTINUE
from specpilot.envs.feature_space import feature_rows
from specpilot.envs.fleet import REWARDS
from specpilot.envs.rendering import HEIGHT_OF_BAND, NUM_ROUNDS, WIDTH_OF_ROUND
from specpilot.envs.replay import ReplayConfig, ReplayEngine
from specpilot.envs.scenario import ScenarioError
from specpilot.envs.speculation_length import SpeculationLengthEnv
from specpilot.envs.stop_continue import StopContinueEnv
from specpilot.envs.stop_round import REQUEST_FEATURES
from specpilot.envs.traffic import Traffic, make_schedule
from specpilot.tests.support.priced import random_predictor
from specpilot.tests.support.traces import MAX_BATCH, MAX_CONTEXT, random_trace, rich_costs, rich_surface

BOTH = (SPECULATION_LENGTH, STOP_CONTINUE)


def settings(**values: Any) -> dict[str, Any]:
    own = {"trace": random_trace(), "cost_surface": rich_surface(), "predictor": random_predictor()}
    return {**own, "max_num_seqs": MAX_BATCH, "max_model_len": MAX_CONTEXT, "max_rounds": 40, **values}


def episode(env: gymnasium.Env[Any, Any], seed: int | None, actions: int = 0) -> list[tuple[Any, ...]]:
    """All that an episode of random actions (drawn from ``actions``) gives."""
    env.action_space.seed(actions)
    found: list[tuple[Any, ...]] = [(env.reset(seed=seed)[0].tolist(),)]
    while True:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation) and np.isfinite(float(reward))
        found.append((observation.tolist(), reward, terminated, truncated, info))
        if terminated or truncated:
            return found


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.filterwarnings("error::UserWarning")
def test_gymnasiums_checker_finds_nothing(name: str) -> None:
    check_env(gymnasium.make(name, **settings()).unwrapped, skip_render_check=True)
    for mode in ("ansi", "rgb_array"):
        env = gymnasium.make(name, render_mode=mode, **settings())
        env.reset(seed=0)
        env.step(env.action_space.sample())
        assert env.render() is not None


@pytest.mark.parametrize("name", BOTH)
def test_stable_baselines3_trains_on_it_as_it_comes(name: str) -> None:
    env = make_vec_env(name, n_envs=2, env_kwargs=settings(max_rounds=2, traffic={"concurrency": 2}))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    before = [own.detach().clone() for own in model.policy.parameters()]
    model.learn(128)
    assert any(not own.equal(old) for own, old in zip(model.policy.parameters(), before, strict=True))
    assert len(model.ep_info_buffer or ()) > 1, "episodes end, and the monitor sees their returns"


@pytest.mark.parametrize("name", BOTH)
def test_a_seed_repeats_everything_and_another_does_not(name: str) -> None:
    env = gymnasium.make(name, **settings(traffic=({"concurrency": 3}, {"mode": "poisson", "load": 1.0})))
    first = episode(env, 7)
    other = episode(env, None)
    assert episode(env, 7) == first and episode(env, 8) != first and other != first


@pytest.mark.parametrize("name", BOTH)
def test_an_episode_that_ended_must_be_reset(name: str) -> None:
    env = gymnasium.make(name, **settings(max_rounds=3)).unwrapped
    with pytest.raises(ResetNeeded):
        env.step(env.action_space.sample())
    assert episode(env, 0)[-1][3], "max_rounds truncates"
    with pytest.raises(ResetNeeded):
        env.step(env.action_space.sample())


def test_lengths_and_requests_end_an_episode() -> None:
    env = SpeculationLengthEnv(**settings(traffic={"concurrency": 2}, max_rounds=3000))
    env.reset(seed=0)
    rounds, terminated, tokens = 0, False, 0
    while not terminated:
        _, _, terminated, truncated, info = env.step(np.asarray([5, 3, 0]))
        rounds, tokens = rounds + 1, tokens + info["tokens"]
        if truncated:
            break
    assert rounds <= 3000 and tokens > 0


@pytest.mark.parametrize("kind", REWARDS)
def test_rewards_are_what_the_manual_says(kind: str) -> None:
    env = SpeculationLengthEnv(**settings(reward=kind, traffic={"concurrency": 4}, max_rounds=30))
    observation, _ = env.reset(seed=0)
    tokens_so_far = seconds_so_far = 0.0
    for _ in range(30):
        plain, requests = np.exp(observation[32]), observation[0]
        observation, reward, _, _, info = env.step(np.asarray([3, 3, 0]))
        tokens, seconds = info["weighted_tokens" if kind == "gain" else "tokens"], info["seconds"]
        assert info["decoding"] == requests
        if kind == "round_ratio":
            expected = tokens / requests * plain / seconds
        else:
            spent = {"gain": seconds * requests / plain, "request_speed": seconds * 4, "throughput": seconds}[kind]
            tokens_so_far = tokens_so_far * 0.9995 + tokens
            seconds_so_far = seconds_so_far * 0.9995 + spent
            expected = (tokens - tokens_so_far / seconds_so_far * spent) / requests
        assert reward == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_actions_are_what_the_price_rule_is_told() -> None:
    env = SpeculationLengthEnv(**settings(lengths=(0, 2, 6), prices=(0.0, 1.0, 50.0), looks=(0, 1, 3)))
    drafted = {}
    for action in ([0, 1, 0], [1, 0, 0], [2, 0, 0], [2, 2, 0], [2, 2, 1], [2, 0, 1], [2, 1, 1]):
        env.reset(seed=0)
        counts = []
        for _ in range(6):
            info = env.step(np.asarray(action))[4]
            counts.append(info["drafted"] / info["decoding"])
        drafted[tuple(action)] = np.mean(counts)
    assert drafted[0, 1, 0] == 0 and drafted[2, 2, 0] < 0.5 and drafted[2, 2, 1] < 0.5
    assert 1.5 < drafted[1, 0, 0] <= 2 < drafted[2, 0, 0] <= 6 and 2 < drafted[2, 0, 1] <= 6
    assert 0 < drafted[2, 1, 1] < drafted[2, 0, 1]


# ---------------------------------------------------------------------- stop or continue


def test_rewards_of_a_round_sum_to_tokens_less_priced_seconds() -> None:
    env = StopContinueEnv(**settings(traffic=Traffic("poisson", load=1.0)))
    env.action_space.seed(1)
    env.reset(seed=3)
    total, rounds, several, done = 0.0, 0, 0, False
    questions = 0
    while not done:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        total, questions, done = total + reward, questions + 1, terminated or truncated
        if info:
            assert total == pytest.approx(info["tokens"] - info["price"] * info["seconds"], abs=1e-9)
            total, rounds, several, questions = 0.0, rounds + 1, several + (questions > 3), 0
    assert rounds == 40 and several > 5


def test_going_on_pays_a_token_where_it_is_accepted_and_costs_what_was_told() -> None:
    env = StopContinueEnv(**settings(traffic={"concurrency": 2}))
    observation, _ = env.reset(seed=0)
    first, cost = len(FEATURES), len(FEATURES) + len(REQUEST_FEATURES) - 1
    found = []
    for _ in range(150):
        depth, told = observation[first], observation[cost]
        observation, reward, terminated, truncated, info = env.step(np.int64(1))
        if terminated or truncated:
            break
        if not info and depth == 0:  # Later questions also cost the asking.
            found.append(reward + told)
    assert np.round(found, 4).tolist() == np.round(found).tolist() and {0, 1} == set(np.round(found))


@pytest.mark.parametrize("go_on", [False, True])
def test_constant_answers_play_the_rounds_of_a_constant_length(go_on: bool) -> None:
    env = StopContinueEnv(**settings(traffic=Traffic(concurrency=5), max_rounds=25, predictor=None))
    env.reset(seed=5)
    rounds, done = [], False
    while not done:
        _, _, terminated, truncated, info = env.step(np.int64(go_on))
        done = terminated or truncated
        if info:
            rounds.append((info["decoding"], info["drafted"], info["accepted"]))

    rng = np.random.default_rng(np.random.PCG64(np.random.SeedSequence(5)))
    rng.integers(1)  # The environment draws its scenario first.
    trace, costs = random_trace(), rich_costs()
    schedule = make_schedule(trace, Traffic(concurrency=5), costs, MAX_BATCH, 5 * (2 + 25 // 6), rng)
    engine = ReplayEngine(trace, costs, schedule, ReplayConfig(MAX_BATCH, MAX_CONTEXT))
    expected = []
    while engine.advance() and len(expected) < len(rounds):
        state, _ = engine.state()
        outcome = engine.play_round(ConstantController(6 if go_on else 0))
        if (state.max_num_speculative_tokens > 0).any():
            sums = len(outcome.num_drafted), int(outcome.num_drafted.sum()), int(outcome.accepted_length.sum())
            expected.append(sums)
    assert rounds == expected


def test_the_question_tells_of_the_request() -> None:
    env = StopContinueEnv(**settings(traffic={"concurrency": 3}))
    observation, _ = env.reset(seed=0)
    place = {own.name: len(FEATURES) + index for index, own in enumerate(REQUEST_FEATURES)}
    depths, costs = [], []
    for _ in range(200):
        own = {name: float(observation[index]) for name, index in place.items()}
        assert (own["depth"] == 0) == (own["chance"] == 1 and own["top1_probability"] == 0)
        assert own["survival"] <= own["chance"] + 1e-6 and 0 < own["following"] < 1
        assert own["planned"] >= own["depth"] and own["temperature"] in (0, np.float32(0.6), 1)
        depths.append(own["depth"])
        costs.append(own["cost"])
        observation, _, terminated, truncated, _ = env.step(np.int64(1))
        if terminated or truncated:
            break
    assert set(depths) == {0, 1, 2, 3, 4, 5} and min(costs) > 0


# ---------------------------------------------------------------------- manual and errors


@pytest.mark.parametrize(
    ("environment", "rows"),
    [
        (SpeculationLengthEnv, feature_rows(FEATURES)),
        (StopContinueEnv, feature_rows(REQUEST_FEATURES, len(FEATURES))),
    ],
)
def test_the_manuals_table_is_the_schema(environment: Any, rows: list[str]) -> None:
    lines = [line.strip() for line in environment.__doc__.splitlines()]
    assert [line for line in lines if line.startswith("| ") and line[2].isdigit()] == rows
    for section in ("Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End"):
        assert f"## {section}" in lines
    assert {"## Arguments", "## Version History"} <= set(lines)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trace": None}, "train/record.py"),
        ({"cost_surface": None}, "train/record.py"),
        ({"trace": "nowhere.npz"}, "nowhere.npz"),
        ({"predictor": "nowhere.json"}, "nowhere.json"),
        ({"backend": "dreamt"}, "'dreamt'"),
        ({"reward": "fame"}, "'fame'"),
        ({"render_mode": "human"}, "'human'"),
        ({"lengths": (0, 7)}, "the recording to 6"),
        ({"prices": ()}, "at least one"),
        ({"prices": (-1.0,)}, "-1"),
        ({"traffic": {"speed": 3}}, "'speed'"),
        ({"traffic": {"mode": "csv"}}, "path"),
        ({"max_model_len": 64}, "max_model_len is 64"),
        ({"backend": "live"}, "prompts"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        SpeculationLengthEnv(**settings(**values))
    assert "\n" not in str(caught.value)
    assert isinstance(ScenarioError("x"), ValueError)


# ---------------------------------------------------------------------- rendering


@pytest.mark.parametrize("environment", [SpeculationLengthEnv, StopContinueEnv])
def test_pictures_and_texts_show_the_rounds(environment: Any) -> None:
    drawn = environment(**settings(render_mode="rgb_array"))
    drawn.reset(seed=0)
    empty = drawn.render()
    told = environment(**settings(render_mode="ansi"))
    told.reset(seed=0)
    action = np.int64(1) if environment is StopContinueEnv else np.asarray([3, 0, 0])
    info: dict[str, Any] = {}
    while not info:
        drawn.step(action)
        info = told.step(action)[4]
    image = drawn.render()
    assert image.shape == (3 * HEIGHT_OF_BAND, NUM_ROUNDS * WIDTH_OF_ROUND, 3) and image.dtype == np.uint8
    changed = (image != empty).any(axis=(1, 2)).reshape(3, HEIGHT_OF_BAND)
    assert changed[[0, 2]].any(axis=1).all() and not (image != empty)[:, WIDTH_OF_ROUND:].any()
    names = ("decoding", "longest", "drafted", "accepted", "running", "waiting")
    last = told.render().splitlines()[-1].split()
    assert [int(number) for number in last] == [info[name] for name in names]
