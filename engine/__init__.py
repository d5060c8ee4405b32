"""The embedded inference engine: serves a target model with a drafter, losslessly, at any speculation length."""

from .config import EngineConfig
from .controller_answers import ControllerError
from .drafter import Draft, DraftContext, Drafter
from .engine import Engine
from .metrics import EngineCollector, prometheus_text
from .pair import SHIPPED_PAIR, Pair, PairError, load_pair
from .request import FinishReason, RequestOutput, RequestStats, StreamChunk
from .sampling_params import RequestError, SamplingParams
from .serving import ServingConfig, load_engine
from .stats import EngineStats, RoundRecord
from .token_tree import TokenTree

__all__ = [
    "SHIPPED_PAIR",
    "ControllerError",
    "Draft",
    "DraftContext",
    "Drafter",
    "Engine",
    "EngineCollector",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "Pair",
    "PairError",
    "RequestError",
    "RequestOutput",
    "RequestStats",
    "RoundRecord",
    "SamplingParams",
    "ServingConfig",
    "StreamChunk",
    "TokenTree",
    "load_engine",
    "load_pair",
    "prometheus_text",
]
