"""An engine from one YAML file: which pair, where, and the engine's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..configs import load_config
from ..controllers import Controller
from .config import EngineConfig
from .engine import Engine
from .pair import SHIPPED_PAIR, load_pair


@dataclass(frozen=True)
class ServingConfig:
    """What to serve and how; see ``configs/serving/``."""

    target: str = str(SHIPPED_PAIR / "target")
    """Directory or hub id."""
    drafter: str | None = str(SHIPPED_PAIR / "drafter")
    """Directory or hub id; null loads no drafter model."""
    device: str = "cpu"
    dtype: str = "float32"
    engine: EngineConfig = field(default_factory=EngineConfig)


def load_engine(path: str | Path, controller: Controller | None = None) -> Engine:
    """Build an engine from a serving configuration. Raises `ConfigError`, `PairError` or ``ValueError``, one line."""
    config = load_config(ServingConfig, path)
    pair = load_pair(config.target, config.drafter, config.device, config.dtype)
    return Engine(pair, config.engine, controller)
