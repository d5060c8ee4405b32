"""Controllers: what an engine knows, what it is told to do, and the cost surface of the machine. numpy only."""

from .acceptance import AcceptancePredictor
from .adaptive_verification import AdaptiveVerificationController
from .assisted import ConfidenceThresholdController, HeuristicScheduleController
from .constant import ConstantController
from .controller import LEVEL_FEATURES, Controller, Decision, DraftLevel, RoundOutcome, RoundState
from .cost_surface import CostSurface
from .length_table import LengthTableController
from .oracle import Foresight, RequestOracle, UniformOracle
from .pass_costs import KINDS, CostGrid, CostSurfaceError, PassLimits, PassTimer
from .turbospec import TurboSpecController

__all__ = [
    "KINDS",
    "LEVEL_FEATURES",
    "AcceptancePredictor",
    "AdaptiveVerificationController",
    "ConfidenceThresholdController",
    "ConstantController",
    "Controller",
    "CostGrid",
    "CostSurface",
    "CostSurfaceError",
    "Decision",
    "DraftLevel",
    "Foresight",
    "HeuristicScheduleController",
    "LengthTableController",
    "PassLimits",
    "PassTimer",
    "RequestOracle",
    "RoundOutcome",
    "RoundState",
    "TurboSpecController",
    "UniformOracle",
]
