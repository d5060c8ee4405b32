"""What the engine did and what it cost: one record per round, totals over its life."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class DraftCounts:
    """What was drafted and what became of it, for one request or all."""

    num_drafts: int = 0
    """Requests' rounds in which at least one token was drafted."""
    num_drafted: int = 0
    num_verified: int = 0
    """Drafted tokens that were sent to verification; fewer than drafted where the controller trimmed."""
    num_accepted: int = 0

    def count(self, drafted: int, verified: int, accepted: int) -> None:
        """Add one request's round."""
        self.num_drafts += drafted > 0
        self.num_drafted += drafted
        self.num_verified += verified
        self.num_accepted += accepted

    @property
    def mean_accepted_length(self) -> float:
        """Accepted drafts per round of a request that drafted."""
        return self.num_accepted / self.num_drafts if self.num_drafts else 0.0

    @property
    def wasted_draft_ratio(self) -> float:
        """Share of drafted tokens that verification rejected or never saw."""
        return 1 - self.num_accepted / self.num_drafted if self.num_drafted else 0.0


@dataclass(frozen=True)
class RoundRecord:
    """One step of the engine. Tuples are per decoding request, in the same order; times are seconds."""

    index: int
    request_ids: tuple[str, ...]
    num_drafted: tuple[int, ...]
    num_verified: tuple[int, ...]
    accepted_length: tuple[int, ...]
    lag: tuple[int, ...]
    """Lag before the round (see `controllers.RoundState.lag`)."""
    num_committed: int
    catch_up_tokens: int
    prefill_tokens: int
    running: int
    waiting: int
    kv_use: float
    """Share of the cache's tokens in use."""
    switches: int
    draft_seconds: float
    verify_seconds: float
    catch_up_seconds: float
    prefill_seconds: float
    host_seconds: float
    """Everything else: scheduling, controller, acceptance, text."""
    asking_seconds: float = 0.0
    """Of ``draft_seconds``, what asking the controller between the levels took."""

    @property
    def total_seconds(self) -> float:
        """Wall time of the step."""
        model = self.draft_seconds + self.verify_seconds + self.catch_up_seconds + self.prefill_seconds
        return model + self.host_seconds


@dataclass
class EngineStats(DraftCounts):
    """Totals over the engine's life, and the last rounds one by one."""

    window: int = 4096
    """Rounds kept in ``rounds``."""
    kv_cache_bytes: int = 0
    """Memory of the target's and the drafter's cache."""
    num_rounds: int = 0
    num_requests: int = 0
    num_finished: int = 0
    num_refused: int = 0
    num_committed: int = 0
    catch_up_tokens: int = 0
    prefill_tokens: int = 0
    switches: int = 0
    """Changes of a request's speculation from off to on or back."""
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    catch_up_seconds: float = 0.0
    prefill_seconds: float = 0.0
    host_seconds: float = 0.0
    rounds: deque[RoundRecord] = field(init=False)

    def __post_init__(self) -> None:
        self.rounds = deque(maxlen=self.window)

    def add(self, record: RoundRecord) -> None:
        """Add one round."""
        self.rounds.append(record)
        self.num_rounds += 1
        self.num_committed += record.num_committed
        for counts in zip(record.num_drafted, record.num_verified, record.accepted_length, strict=True):
            self.count(*counts)
        self.catch_up_tokens += record.catch_up_tokens
        self.prefill_tokens += record.prefill_tokens
        self.switches += record.switches
        for name in ("draft", "verify", "catch_up", "prefill", "host"):
            attribute = f"{name}_seconds"
            setattr(self, attribute, getattr(self, attribute) + getattr(record, attribute))

    @property
    def total_seconds(self) -> float:
        """Wall time spent in steps."""
        model = self.draft_seconds + self.verify_seconds + self.catch_up_seconds + self.prefill_seconds
        return model + self.host_seconds
