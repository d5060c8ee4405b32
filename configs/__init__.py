"""Experiment configurations (YAML, one file per experiment) and the strict loader that reads them."""

from .loader import ConfigError, load_config

__all__ = ["ConfigError", "load_config"]
