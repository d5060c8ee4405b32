"""Settings of a training run."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from specpilot.configs import ConfigError, load_config
from specpilot.controllers.action import Action, factored_tiers
from specpilot.envs.fleet import REWARDS
from specpilot.envs.traffic import Traffic

BACKENDS = ("replay", "live", "vllm")
TRACKING = ("none", "wandb")


@dataclass(frozen=True)
class PpoConfig:
    """One field per tunable; wrong values raise ``ValueError`` with the value and the fix."""

    record: str
    """Folder made by ``train/record.py``: recordings and cost surface."""
    output: str
    """Folder of the run."""
    scenarios: tuple[Traffic, ...]
    """Traffic to train on and to be judged by, the latter with held-out requests."""
    backend: str = "replay"
    """``replay``: recorded requests, thousands of rounds a second; ``live``: the real pair; ``vllm``: in vLLM."""
    lengths: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 8)
    """Speculation lengths that all requests of a round may have."""
    planned_lengths: tuple[int, ...] = (4, 8)
    """Largest speculation lengths of a round that is planned, from the requests' histories."""
    prices: tuple[float, ...] = (0.8, 0.9, 1.0)
    """Of such a round: factor on what speculation costs."""
    looks: tuple[int, ...] = (0, 1, 2)
    """Of such a round: after how many of the first draft levels it is planned anew."""
    max_num_seqs: int = 32
    num_envs: int = 48
    total_steps: int = 300_000
    """Decisions of all environments together."""
    max_rounds: int = 192
    """Rounds of an episode."""
    hold: int = 4
    """Rounds that a decision holds while most of the requests are the same: what it takes is shared among them."""
    slowness_spread: float = 0.25
    """Of the machines that episodes run on, see ``FleetConfig``."""
    n_steps: int = 64
    batch_size: int = 512
    n_epochs: int = 6
    learning_rate: float = 0.001
    """Falls linearly to a twentieth."""
    gamma: float = 0.9
    """Rewards are differences to the long-run average, so that the future need not be summed far."""
    gae_lambda: float = 0.8
    ent_coef: float = 0.001
    net_arch: tuple[int, ...] = (64, 64)
    reward: str = "gain"
    """See ``FleetConfig``."""
    held_out_share: float = 0.25
    """Part of the training recording that is only used to judge."""
    evaluation_interval: int = 60_000
    evaluation_requests: int = 16
    """Per scenario and seed, at least; five times the concurrency where that is more."""
    evaluation_seeds: int = 3
    predictor_hidden: int = 16
    seed: int = 0
    tracking: str = "none"
    """``wandb``: also log there (``WANDB_MODE=offline`` needs no key). TensorBoard files are always written."""
    wandb_project: str = "specpilot"
    progress_bar: bool = True
    target: str = "pairs/pystdlib/target"
    """``live`` and ``vllm`` only: the pair."""
    drafter: str = "pairs/pystdlib/drafter"

    def __post_init__(self) -> None:
        for name, allowed in (("backend", BACKENDS), ("tracking", TRACKING), ("reward", REWARDS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in (
            "num_envs",
            "total_steps",
            "max_rounds",
            "hold",
            "n_steps",
            "batch_size",
            "n_epochs",
            "max_num_seqs",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.scenarios:
            raise ValueError("scenarios must name at least one kind of traffic")
        for name in ("lengths", "planned_lengths", "prices", "looks"):
            if min(getattr(self, name), default=0) < 0:
                raise ValueError(f"{name} must each be 0 or more, got {getattr(self, name)}")
        if not self.tiers:
            raise ValueError("no action is left: give lengths, or planned_lengths with prices and looks")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share must lie between 0 and 1, got {self.held_out_share}")

    @property
    def tiers(self) -> tuple[Action, ...]:
        """All actions: the constant lengths, then those that are planned.

        One list, not a head for lengths and one for prices: the likeliest of each need not go together, and the longest
        draft without a plan is the worst action there is.
        """
        constant = [Action(length, 0.0) for length in self.lengths]
        planned = factored_tiers(self.planned_lengths, self.prices, self.looks)
        return tuple(dict.fromkeys((*constant, *planned)))

    @property
    def longest(self) -> int:
        """The largest speculation length of any action."""
        return max(action.max_length for action in self.tiers)


def parse_arguments(arguments: Sequence[str]) -> PpoConfig:
    """Read ``--config FILE [--override key=value ...]``. Raises `ConfigError` naming what is wrong."""
    path, overrides, rest = None, dict[str, object](), list(arguments)
    while rest:
        option = rest.pop(0)
        if option == "--config" and rest:
            path = rest.pop(0)
        elif option == "--override" and rest:
            while rest and not rest[0].startswith("--"):
                key, equals, value = rest.pop(0).partition("=")
                if not equals:
                    raise ConfigError(f"--override takes key=value, got {key!r}")
                overrides[key] = yaml.safe_load(value)
        else:
            raise ConfigError(f"unknown or incomplete option {option!r}; use --config FILE [--override key=value ...]")
    if path is None:
        raise ConfigError("give a configuration: --config configs/quickstart.yaml")
    config = load_config(PpoConfig, path)  # The file itself must be right, whatever is overridden.
    if not overrides:
        return config
    return from_mapping({**yaml.safe_load(Path(path).read_text()), **overrides}, f"{path} with --override")


def from_mapping(values: dict[str, object], where: str) -> PpoConfig:
    """Check values as those of a file are checked. Raises `ConfigError` that names ``where``."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        try:
            return load_config(PpoConfig, file.name)
        except ConfigError as error:
            raise ConfigError(str(error).replace(file.name, where)) from None


def plain(config: PpoConfig) -> dict[str, object]:
    """As JSON-able values, to compare a checkpoint's with."""
    return dataclasses.asdict(config)
