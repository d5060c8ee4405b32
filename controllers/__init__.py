"""Controllers: what an engine knows, what it is told to do, and the cost surface of the machine. numpy only."""

from .constant import ConstantController
from .controller import Controller, Decision, DraftLevel, RoundOutcome, RoundState

__all__ = [
    "ConstantController",
    "Controller",
    "Decision",
    "DraftLevel",
    "RoundOutcome",
    "RoundState",
]
