"""Train a controller with PPO on replayed traffic (or the live engine) and keep what does best on held-out requests.

    python train/ppo.py --config configs/quickstart.yaml [--override key=value ...]

Killed, the same command goes on at the last checkpoint. The run's folder holds all that ``train/distill.py`` needs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from specpilot.configs import ConfigError
from specpilot.controllers import CostSurfaceError
from specpilot.controllers.priced import Action
from specpilot.envs.trace import TraceError
from specpilot.envs.traffic import TrafficError
from specpilot.train.checkpoint import load_checkpoint, save_checkpoint
from specpilot.train.live_vec_env import live_vec_env
from specpilot.train.material import Material
from specpilot.train.ppo_config import PpoConfig, parse_arguments
from specpilot.train.replay_vec_env import ReplayVecEnv
from specpilot.train.run_record import run_record, write_json
from specpilot.train.teacher import save_teacher
from specpilot.train.tracking import Tracker


class HeldOutEvaluation(BaseCallback):
    """Every so many steps: tokens per second on held-out requests, a checkpoint, and the best policy so far."""

    def __init__(self, run: PpoRun) -> None:
        super().__init__()
        self.run = run
        self._next = run.steps_done + run.config.evaluation_interval

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= self._next:
            self._next = self.num_timesteps + self.run.config.evaluation_interval
            self.run.evaluate(self.num_timesteps)

    def _on_training_end(self) -> None:
        self.run.evaluate(self.num_timesteps)


class PpoRun:
    """One training run and its folder."""

    def __init__(self, config: PpoConfig) -> None:
        self.config = config
        self.output = Path(config.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.material = Material.prepare(config, self.output)
        self.steps_done, self.best = 0, -np.inf
        self.curve: list[dict[str, Any]] = []
        set_random_seed(config.seed)
        self.env = self._environment()
        self.model = self._model()
        self._resume()
        self.tracker = Tracker.start(config.tracking, config, self.output)
        constants = {k: self.material.held_out.fixed(Action(k, 0.0)) for k in sorted({0, *config.lengths})}
        self.constants = np.stack([constants[k] for k in constants])  # [lengths, scenarios, seeds]

    def _environment(self) -> VecEnv:
        if self.config.backend != "replay":
            return live_vec_env(self.config, self.material)
        fleet = self.material.training_fleet()
        return ReplayVecEnv(fleet, self.config.tiers, self.material.normaliser, self.config.hold)

    def _model(self) -> PPO:
        config = self.config
        model = PPO(
            "MlpPolicy",
            self.env,
            learning_rate=lambda remaining: config.learning_rate * max(remaining, 0.05),
            n_steps=config.n_steps,
            batch_size=config.batch_size,
            n_epochs=config.n_epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            ent_coef=config.ent_coef,
            policy_kwargs={"net_arch": list(config.net_arch)},
            tensorboard_log=str(self.output / "tensorboard"),
            seed=config.seed,
            device="cpu",  # A policy of this size is slower on an accelerator.
        )
        # Begin mostly with plans, with looks or without: they win more often than they lose.
        bias = model.policy.action_net.bias
        assert isinstance(bias, torch.Tensor)
        with torch.no_grad():
            bias[[number for number, tier in enumerate(config.tiers) if tier.price]] += 1.0
        return model

    def _resume(self) -> None:
        found = load_checkpoint(self.output / "checkpoint", self.model, self.config)
        if found is not None:
            self.steps_done, self.best, self.curve = found.steps, found.best, found.curve
            print(f"going on after {self.steps_done} steps", flush=True)

    def act(self, features: NDArray[np.float64]) -> list[Action]:
        """The policy's best actions for raw features ``[E, F]``."""
        chosen, _ = self.model.predict(self.material.normaliser(features), deterministic=True)
        return [self.config.tiers[tier] for tier in chosen.tolist()]

    def evaluate(self, steps: int) -> None:
        """Judge the policy, note it, save a checkpoint, keep the best."""
        if self.curve and self.curve[-1]["steps"] == steps:
            return
        speeds = self.material.held_out.speeds(self.act)
        best_constant = np.median(self.constants, axis=2).max(axis=0)  # of each scenario
        relative = np.median(speeds, axis=1) / best_constant
        # The mean gain, and twice the worst loss: a controller must not lose anywhere.
        score = float(np.log(relative).mean() + 2 * min(0.0, float(np.log(relative).min())))
        entry = {"steps": steps, "score": score, "to_best_constant": relative.tolist(), "speeds": speeds.tolist()}
        self.curve.append(entry)
        self.model.logger.record("held_out/score", score)
        for index, value in enumerate(relative):
            self.model.logger.record(f"held_out/scenario_{index}", float(value))
        self.tracker.log(
            {"held_out/score": score, "held_out/mean": float(relative.mean()), "held_out/least": float(relative.min())},
            steps,
        )
        if score > self.best:
            self.best = score
            save_teacher(self.output / "teacher", self.model, self.config, self.material, entry)
        save_checkpoint(self.output / "checkpoint", self.model, self.config, steps, self.best, self.curve)

    def train(self) -> None:
        """Learn to the end and write what came of it."""
        config, start = self.config, time.monotonic()
        remaining = config.total_steps - self.steps_done
        if remaining > 0:
            self.model.learn(
                remaining,
                callback=HeldOutEvaluation(self),
                reset_num_timesteps=self.steps_done == 0,
                progress_bar=config.progress_bar,
                tb_log_name="ppo",
            )
        write_json(
            self.output / "results.json",
            run_record(
                config,
                seed=config.seed,
                best_score=self.best,
                curve=self.curve,
                constants=self.constants.tolist(),
                constant_lengths=sorted({0, *config.lengths}),
                scenarios=[traffic.label for traffic in config.scenarios],
                seconds=time.monotonic() - start,
            ),
        )
        self.tracker.finish(self.output, self.material, self.act)
        self.env.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    try:
        config = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        if config.backend != "live":  # The engine keeps the threads that its costs were measured with; vLLM's is one.
            torch.set_num_threads(1)
        run = PpoRun(config)
    except (ConfigError, TraceError, TrafficError, CostSurfaceError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run.train()
    best = max(run.curve, key=lambda entry: entry["score"])
    print(f"best policy after {best['steps']} steps; tokens/s over the best constant of each held-out scenario:")
    for traffic, value in zip(run.config.scenarios, best["to_best_constant"], strict=True):
        print(f"  {traffic.label:<28} {value:.3f}")
    print(f"teacher: {run.output / 'teacher'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
