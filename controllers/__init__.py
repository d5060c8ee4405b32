"""Controllers: what an engine knows, what it is told to do, and the cost surface of the machine. numpy only."""

from .constant import ConstantController
from .controller import Controller, Decision, DraftLevel, RoundOutcome, RoundState
from .cost_surface import CostSurface
from .pass_costs import KINDS, CostGrid, CostSurfaceError, PassLimits, PassTimer

__all__ = [
    "KINDS",
    "ConstantController",
    "Controller",
    "CostGrid",
    "CostSurface",
    "CostSurfaceError",
    "Decision",
    "DraftLevel",
    "PassLimits",
    "PassTimer",
    "RoundOutcome",
    "RoundState",
]
