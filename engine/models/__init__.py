"""Model runners: how a causal LM is run over the slot cache, by its own classes or by a fused path of the engine."""

from .llama import LlamaRunner
from .runner import ModelRunner, UnsupportedModelError, build_runner
from .stock import StockRunner

__all__ = ["LlamaRunner", "ModelRunner", "StockRunner", "UnsupportedModelError", "build_runner"]
