"""One request from arrival to result."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field

from .sampling_params import SamplingParams
from .stats import DraftCounts


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """End-of-text token or stop string."""
    LENGTH = "length"
    """``max_tokens`` reached."""
    CANCELLED = "cancelled"
    ERROR = "error"


class Phase(enum.Enum):
    """Where a request is in the engine."""

    WAITING = enum.auto()
    PREFILL = enum.auto()
    DECODE = enum.auto()
    FINISHED = enum.auto()


@dataclass
class RequestStats(DraftCounts):
    """Speculation counters of one request; times in seconds since the request was added."""

    num_rounds: int = 0
    num_catch_up_tokens: int = 0
    """Tokens the drafter's cache had to be prefilled with before it could draft."""
    num_switches: int = 0
    """Rounds whose speculation length was 0 where the one before was not, or the reverse."""
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass
class Request:
    """Engine-side state of a request."""

    request_id: str
    token_ids: list[int]
    """Prompt and committed tokens."""
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    phase: Phase = Phase.WAITING
    slot: int = -1
    num_cached: int = 0
    """Tokens in the target's cache; while decoding always all but the last."""
    finish_reason: FinishReason | None = None
    text: str | None = None
    """Set where a stop string cut the text."""
    last_length: int = -1
    """Tokens drafted in the last round; -1 before the first."""
    last_accepted: int = -1
    acceptance_rate: float = float("nan")
    cancelled: bool = False
    arrival: float = field(default_factory=time.perf_counter)
    stats: RequestStats = field(default_factory=RequestStats)

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """Tokens generated so far."""
        return self.token_ids[self.num_prompt_tokens :]


@dataclass(frozen=True)
class RequestOutput:
    """Result of a request."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Generated tokens, the end-of-text token or the token that completed a stop string included."""
    text: str
    """Generated text without end-of-text token and stop string."""
    finish_reason: FinishReason
    stats: RequestStats
    error: str | None = None
    """Why the request was refused (``finish_reason == "error"``)."""


@dataclass(frozen=True)
class StreamChunk:
    """What one round added to a request."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    """Text that has become final; never part of a character or of a stop string."""
    finish_reason: FinishReason | None
