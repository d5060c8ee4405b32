"""What a live round costs beyond its model passes: noise, confidences, scheduling, Python. Linear and non-negative."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .controller import FloatArray
from .pass_costs import KINDS, CostSurfaceError
from .price_rule import idle_requests, padded_tokens


class RoundWork(NamedTuple):
    """What a round does, counted; numbers or arrays that broadcast (one entry per round)."""

    requests: ArrayLike
    """Requests that decode."""
    levels: ArrayLike
    """Drafting passes: the longest draft of the round."""
    drafted: ArrayLike
    """Drafted tokens of all requests."""
    verified: ArrayLike
    """Drafted tokens of all requests that are sent to verification."""
    asked_levels: ArrayLike = 0
    """Levels after which `Controller.new_lengths` is asked."""
    asked: ArrayLike = 0
    """Requests it is asked about, summed over those levels."""
    noise_rows: ArrayLike = 0
    """Noise for the whole vocabulary: drafted tokens of the requests with a temperature above 0, and one more each."""
    planned: ArrayLike = 0
    """1 where the controller planned its requests' lengths (`Controller.plans`), else 0."""
    padded: ArrayLike = 0
    """Padding of attention, see `padding`."""
    idle: ArrayLike = 0
    """Requests that sit out draft levels of others, see `idleness`."""

    def features(self) -> tuple[FloatArray, ...]:
        """What the coefficients of `RoundOverhead` are multiplied with, in the order of its fields."""
        counts = np.broadcast_arrays(*(np.asarray(count, dtype=np.float64) for count in self))
        *counted, planned, padded, idle = counts
        drafting, asking, noisy = ((count > 0).astype(np.float64) for count in (counts[1], counts[4], counts[6]))
        planning = planned, planned * counts[0]
        return (np.ones(counts[0].shape), *counted, drafting, *planning, padded, asking, idle, drafting * noisy)


def padding(verified: ArrayLike) -> NDArray[np.int64]:
    """``[...]`` `padded_tokens` where requests verify ``[..., B]`` drafted tokens."""
    tokens = np.asarray(verified, dtype=np.int64)
    missing = (tokens.max(axis=-1, keepdims=True, initial=0) - tokens).sum(axis=-1)
    return np.asarray(padded_tokens(missing, tokens.shape[-1]))


def idleness(drafted: ArrayLike) -> NDArray[np.int64]:
    """``[...]`` `idle_requests` of all levels where requests draft ``[..., B]`` tokens."""
    tokens = np.asarray(drafted, dtype=np.int64)
    levels = np.arange(tokens.max(initial=0))
    drafting = (tokens[..., None] > levels).sum(axis=-2)
    return np.asarray(idle_requests(drafting, tokens.shape[-1]).sum(axis=-1))


@dataclass(frozen=True)
class RoundOverhead:
    """Seconds per unit of `RoundWork`, and factors on the passes of the cost surface; fitted by train/record.py.

    Raises `CostSurfaceError` for a coefficient that is negative or a factor that is not positive.
    """

    constant: float = 0.0
    """Per step of the engine."""
    per_request: float = 0.0
    per_level: float = 0.0
    per_drafted_token: float = 0.0
    per_verified_token: float = 0.0
    per_asked_level: float = 0.0
    per_asked_token: float = 0.0
    per_noise_row: float = 0.0
    drafting: float = 0.0
    """Per round that drafts at all."""
    planning: float = 0.0
    """Per round whose lengths the controller planned."""
    per_planned_request: float = 0.0
    per_padded_token: float = 0.0
    """Attention runs over as many queries for each request as for the one that verifies most: `padding`."""
    asking: float = 0.0
    """Per round in which the controller is asked at all."""
    per_idle_request: float = 0.0
    """Attention of a draft level runs over the cache of all requests, for those too that sit it out: `idleness`."""
    noisy_drafting: float = 0.0
    """Per round that drafts and in which a request samples: vLLM's rejection sampling."""
    draft_factor: float = 1.0
    """Seconds of the round's draft passes over the cost surface's."""
    verify_factor: float = 1.0
    catch_up_factor: float = 1.0
    prefill_factor: float = 1.0

    def __post_init__(self) -> None:
        for own in fields(self):
            value = getattr(self, own.name)
            positive = own.name.endswith("_factor")
            number = type(value) in (int, float) and math.isfinite(value)
            if not number or value < 0 or (positive and value == 0):
                bound = "positive" if positive else "0 or more"
                raise CostSurfaceError(f"'overhead.{own.name}' must be a finite number, {bound}; got {value!r}")

    def coefficients(self) -> FloatArray:
        """The seconds per unit, in the order of the fields and of `RoundWork.features`; ``[15]``."""
        return np.asarray([getattr(self, name) for name in COEFFICIENTS], dtype=np.float64)

    def factor(self, kind: str) -> float:
        """The factor of one of `KINDS`."""
        value: float = getattr(self, f"{kind}_factor")
        return value

    def seconds(self, work: RoundWork) -> FloatArray:
        """Seconds beyond the passes, of the broadcast shape of ``work``; the factors are not in it."""
        return np.asarray(
            sum(weight * feature for weight, feature in zip(self.coefficients(), work.features(), strict=True))
        )

    def total_seconds(
        self,
        work: RoundWork,
        draft: ArrayLike = 0.0,
        verify: ArrayLike = 0.0,
        catch_up: ArrayLike = 0.0,
        prefill: ArrayLike = 0.0,
    ) -> FloatArray:
        """Seconds of whole steps: `seconds` plus the passes' seconds, as the cost surface has them, times factors."""
        passes = zip(KINDS, (draft, verify, catch_up, prefill), strict=True)
        return self.seconds(work) + sum(self.factor(kind) * np.asarray(seconds) for kind, seconds in passes)

    def document(self) -> dict[str, float]:
        """As it is stored in the cost surface's JSON."""
        return asdict(self)

    @classmethod
    def parse(cls, document: Any) -> RoundOverhead:
        """Read what `document` gave. Raises `CostSurfaceError` for an absent, unknown or wrong value.

        What `_LATER` names may be absent: older surfaces do not say.
        """
        names = [own.name for own in fields(cls)]
        if not isinstance(document, Mapping) or {*document, *_LATER} != set(names):
            raise CostSurfaceError(f"'overhead' must be an object with exactly {', '.join(names)}")
        return cls(**document)


COEFFICIENTS = tuple(own.name for own in fields(RoundOverhead) if not own.name.endswith("_factor"))
"""Names of the seconds per unit, in order."""
_LATER = ("planning", "per_planned_request", "per_padded_token", "asking", "per_idle_request", "noisy_drafting")
NO_OVERHEAD = RoundOverhead()
