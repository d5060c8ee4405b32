"""specpilot: learned control of speculative decoding."""

from .controllers import load_controller

__version__ = "0.1.0"
__all__ = ["__version__", "load_controller"]
