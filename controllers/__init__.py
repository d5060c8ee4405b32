"""Controllers: what an engine knows, what it is told to do, and the cost surface of the machine. numpy only."""

from .acceptance import AcceptancePredictor
from .action import Action, FixedPolicy, MissingFeatureError, Policy
from .adaptive_verification import AdaptiveVerificationController
from .assisted import ConfidenceThresholdController, HeuristicScheduleController
from .constant import ConstantController
from .controller import EVERY_LEVEL, LEVEL_FEATURES, Controller, Decision, DraftLevel, RoundOutcome, RoundState
from .controller_file import ControllerFileError, load_controller, save_controller
from .cost_surface import CostSurface
from .guard import GuardedController, GuardReport, GuardSettings
from .length_table import LengthTableController
from .oracle import Foresight, RequestOracle, UniformOracle
from .pass_costs import KINDS, CostGrid, CostSurfaceError, PassLimits, PassTimer
from .policies import MlpPolicy, TreePolicy
from .priced import PricedController
from .turbospec import TurboSpecController

__all__ = [
    "EVERY_LEVEL",
    "KINDS",
    "LEVEL_FEATURES",
    "AcceptancePredictor",
    "Action",
    "AdaptiveVerificationController",
    "ConfidenceThresholdController",
    "ConstantController",
    "Controller",
    "ControllerFileError",
    "CostGrid",
    "CostSurface",
    "CostSurfaceError",
    "Decision",
    "DraftLevel",
    "FixedPolicy",
    "Foresight",
    "GuardReport",
    "GuardSettings",
    "GuardedController",
    "HeuristicScheduleController",
    "LengthTableController",
    "MissingFeatureError",
    "MlpPolicy",
    "PassLimits",
    "PassTimer",
    "Policy",
    "PricedController",
    "RequestOracle",
    "RoundOutcome",
    "RoundState",
    "TreePolicy",
    "TurboSpecController",
    "UniformOracle",
    "load_controller",
    "save_controller",
]
