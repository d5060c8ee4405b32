"""Another library's training loop on the untouched environment: PPO in one file of plain torch, after CleanRL's.

    python train/other_library.py --record runs/record/pystdlib --updates 40

It uses nothing of specpilot but the environment that `gymnasium.make_vec` returns, and prints the mean reward of a
round after every update. For training in earnest there is train/ppo.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import specpilot.envs  # noqa: F401 - registers the environments

GAMMA, GAE_LAMBDA, CLIP, EPOCHS, MINIBATCHES, ENTROPY = 0.97, 0.95, 0.2, 4, 4, 0.01


class Agent(nn.Module):
    """Normalises what it sees; a body, one head for each component of the action, and one for the value."""

    def __init__(self, num_features: int, choices: list[int], hidden: int = 64) -> None:
        super().__init__()
        self.choices = choices
        self.mean, self.scale = torch.zeros(num_features), torch.ones(num_features)
        self.body = nn.Sequential(nn.Linear(num_features, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.policy, self.value = nn.Linear(hidden, sum(choices)), nn.Linear(hidden, 1)
        nn.init.constant_(self.policy.weight, 0.0)

    def see(self, observations: Tensor) -> None:
        """Take mean and spread of ``[N, F]`` for the normaliser."""
        self.mean, self.scale = observations.mean(0), observations.std(0) + 1e-3

    def forward(self, observation: Tensor) -> tuple[list[Categorical], Tensor]:
        """Distributions over each component, and the value ``[N]``."""
        body = self.body(((observation - self.mean) / self.scale).clamp(-5, 5))
        logits = self.policy(body).split(self.choices, dim=-1)
        return [Categorical(logits=own) for own in logits], self.value(body).squeeze(-1)

    def evaluate(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log probability, entropy and value ``[N]`` of ``action`` ``[N, components]``."""
        heads, value = self(observation)
        log_probability = torch.stack([head.log_prob(own) for head, own in zip(heads, action.T, strict=True)]).sum(0)
        return log_probability, torch.stack([head.entropy() for head in heads]).sum(0), value


def train(env: Any, updates: int, steps: int, seed: int) -> list[float]:
    """PPO for ``updates`` of ``steps`` rounds in each environment; returns the mean reward of a round per update."""
    torch.manual_seed(seed)
    choices = env.single_action_space.nvec.tolist()
    agent = Agent(env.single_observation_space.shape[0], choices)
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3, eps=1e-5)
    observation = torch.as_tensor(env.reset(seed=seed)[0])
    found = []
    for update in range(updates):
        batch, observation = _collect(env, agent, observation, steps)
        if update == 0:
            agent.see(batch["observation"].flatten(0, 1))
        found.append(float(batch["reward"].mean()))
        print(f"update {update + 1}: mean reward of a round {found[-1]:+.4f}", flush=True)
        if update > 0:
            _improve(agent, optimizer, batch)
    return found


@torch.no_grad()
def _collect(env: Any, agent: Agent, observation: Tensor, steps: int) -> tuple[dict[str, Tensor], Tensor]:
    """Play; tensors are ``[steps, envs, …]``. Advantages by generalised advantage estimation."""
    rows: list[dict[str, Tensor]] = []
    for _ in range(steps):
        heads, value = agent(observation)
        action = torch.stack([head.sample() for head in heads], dim=-1)
        log_probability = agent.evaluate(observation, action)[0]
        following, reward, terminated, truncated, _ = env.step(action.numpy())
        done = torch.as_tensor(terminated | truncated, dtype=torch.float32)
        rows.append(
            {
                "observation": observation,
                "action": action,
                "log_probability": log_probability,
                "value": value,
                "reward": torch.as_tensor(reward, dtype=torch.float32),
                "done": done,
            }
        )
        observation = torch.as_tensor(following)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    advantage, last, following_value = torch.zeros_like(batch["reward"]), torch.zeros(()), agent(observation)[1]
    for step in reversed(range(steps)):
        going = 1 - batch["done"][step]
        error = batch["reward"][step] + GAMMA * following_value * going - batch["value"][step]
        last = error + GAMMA * GAE_LAMBDA * going * last
        advantage[step], following_value = last, batch["value"][step]
    return {**batch, "advantage": advantage}, observation


def _improve(agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    """A few epochs of the clipped objective (Schulman et al. 2017)."""
    flat = {name: values.flatten(0, 1) for name, values in batch.items()}
    returns = flat["advantage"] + flat["value"]
    advantage = (flat["advantage"] - flat["advantage"].mean()) / (flat["advantage"].std() + 1e-8)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(returns)).chunk(MINIBATCHES):
            log_probability, entropy, value = agent.evaluate(flat["observation"][rows], flat["action"][rows])
            ratio = (log_probability - flat["log_probability"][rows]).exp()
            own = advantage[rows]
            gain = torch.minimum(ratio * own, ratio.clamp(1 - CLIP, 1 + CLIP) * own).mean()
            loss = -gain + 0.5 * (value - returns[rows]).square().mean() - ENTROPY * entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True, help="folder that train/record.py wrote")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    env = gymnasium.make_vec(
        "SpecPilot/SpeculationLength-v0",
        num_envs=arguments.num_envs,
        vectorization_mode="vector_entry_point",
        trace=arguments.record / "train.npz",
        cost_surface=arguments.record / "cost_surface.json",
        traffic={"concurrency": arguments.concurrency},
        reward="round_ratio",
    )
    rewards = train(env, arguments.updates, arguments.steps, arguments.seed)
    tenth = max(1, len(rewards) // 10)
    print(f"mean reward {np.mean(rewards[:tenth]):.4f} at first, {np.mean(rewards[-tenth:]):.4f} in the end")


if __name__ == "__main__":
    main()
