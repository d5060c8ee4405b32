"""The plugin for vLLM: a controller made here chooses vLLM's number of speculative tokens, step by step.

Importing this package does not import vLLM; `plugin.register` is what vLLM calls. What works, in which versions and
what is refused: `compatibility`.
"""

from .settings import VllmSettings

__all__ = ["VllmSettings"]
