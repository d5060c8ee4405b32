"""The guard: a controller may fail, dawdle or be worse than nothing, and the engine serves on as if it had not."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from .action import MAX_LENGTH, MissingFeatureError
from .constant import ConstantController
from .controller import (
    LEVEL_FEATURES,
    Controller,
    Decision,
    DraftLevel,
    FloatArray,
    IntArray,
    Looks,
    RoundOutcome,
    RoundState,
)
from .guard_probe import Probe

FAULTS = ("error", "missing_feature", "not_finite", "wrong_type", "wrong_shape", "out_of_range", "overrun")
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class GuardSettings:
    """When the guard steps in."""

    budget_seconds: float = 0.01
    """Longest time of one call of the controller."""
    faults_in_a_row: int = 3
    """After so many faulty rounds without a good one in between the controller is suspended."""
    suspended_rounds: int = 500
    probe_every: int = 2000
    """Rounds between probes, fewer at first; 0: never. A probe takes ``probe_rounds`` rounds at the fallback's speed
    and one catch-up of the drafter: 0.4 % of the rounds by default."""
    probe_rounds: int = 8
    """Rounds that each of the two is watched for."""
    probes_needed: int = 5
    """Probes before the controller may be demoted; the last 2 n - 1 count."""
    tolerance: float = 0.03
    """Demoted where the median of its speed over the fallback's is below one minus this."""
    demoted_rounds: int = 20000

    def __post_init__(self) -> None:
        for name, least in (("faults_in_a_row", 1), ("suspended_rounds", 0), ("probe_every", 0), ("probe_rounds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.budget_seconds > 0 or not 0 <= self.tolerance < 1 or self.probes_needed < 1:
            raise ValueError("budget_seconds must be positive, tolerance 0 … 1 and probes_needed at least 1")


@dataclass
class GuardReport:
    """What the guard has seen."""

    rounds: int = 0
    """Decided, by either."""
    fallback_rounds: int = 0
    """Of these, rounds that the fallback decided or had to finish."""
    faults: Counter[str] = field(default_factory=Counter)
    """By kind, see `FAULTS`; at most one a round, and one more if `Controller.observe` fails."""
    suspensions: int = 0
    demotions: int = 0
    probes: int = 0
    speed_ratio: float = float("nan")
    """Median of the last probes: the controller's tokens per second over the fallback's."""


class _FaultError(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class GuardedController(Controller):
    """Asks ``inner``; where its answer is none, late, or it has proved to be slower, ``fallback`` answers.

    After a fault the rest of the round is the fallback's: in `decide` it decides, later all requests stop drafting and
    all drafts are verified. Faults are counted in `report` and logged once per kind. Every now and then a few rounds
    of the fallback are compared with a few of ``inner`` (see `GuardSettings`).
    """

    def __init__(
        self, inner: Controller, fallback: Controller | None = None, settings: GuardSettings | None = None
    ) -> None:
        """``fallback`` is trusted; it defaults to no speculation."""
        self.inner = inner
        self.fallback = fallback or ConstantController(0)
        self.settings = settings or GuardSettings()
        self.report = GuardReport()
        self._probe = Probe(self.settings.probe_every, self.settings.probe_rounds, self.settings.probes_needed)
        self._faults_in_a_row = 0
        self._away = 0  # Rounds left until the inner controller is asked again.
        self._own_round = True  # The inner controller decided this round and has not failed since.
        self._faulty = False
        self._batch = 0
        self._known_features: Collection[str] = LEVEL_FEATURES
        self._follow(inner, LEVEL_FEATURES)

    # ------------------------------------------------------------------ the round

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        self._batch = len(state.request_ids)
        self._faulty, self._decided = False, True
        self.report.rounds += 1
        self._own_round = self._away == 0 and not self._probe.wants_fallback(self._batch)
        self._away = max(0, self._away - 1)
        if self._own_round:
            decision = self._asked(self.inner.decide, self._checked_decision, state)
            if decision is not None:
                return decision
        else:
            self.report.fallback_rounds += 1
        self._follow(self.fallback, self.fallback.level_features)
        self._decided = False
        return self.fallback.decide(state)

    @property
    def repeats(self) -> float:
        """How many rounds of about as many requests may go on with the last decision, without `decide`, if `observe`
        is told of every round before that.

        0 where the last answer was not the inner controller's, and in a probe.
        """
        return 0 if not self._own_round or self._away > 0 else self._probe.rounds_before

    def repeated(self, rounds: int) -> None:
        """So many rounds went on with the last decision."""
        self.report.rounds += rounds

    def new_lengths(self, level: DraftLevel) -> IntArray:
        """See `Controller.new_lengths`."""
        if not self._decided:
            return self.fallback.new_lengths(level)
        answer = self.new_lengths_of(self.inner.new_lengths, level.depth, level.requests, level)
        self.trims = bool(self.inner.trims)
        return answer

    def verify_lengths(self, num_drafted: IntArray) -> IntArray:
        """See `Controller.verify_lengths`."""
        if not self._decided:
            return self.fallback.verify_lengths(num_drafted)
        return self.verify_lengths_of(self.inner.verify_lengths, num_drafted)

    def observe(self, outcome: RoundOutcome) -> None:
        """See `Controller.observe`. Told is who decided."""
        if not self._decided:
            self.fallback.observe(outcome)
        elif self._own_round:
            self._asked(self.inner.observe, _nothing, outcome)
        if self._own_round and not self._faulty:
            self._faults_in_a_row = 0
        self._prove(outcome)

    # ------------------------------------------------------------------ parts

    def new_lengths_of(self, ask: Callable[..., Any], depth: int, requests: IntArray, *told: Any) -> IntArray:
        """What ``ask`` answers to ``told`` after level ``depth``; in a round with a fault all ``requests`` stop."""
        answer = None
        if self._own_round:
            answer = self._asked(ask, lambda found: _checked_answer(found, len(requests), depth), *told)
        return np.full(len(requests), depth) if answer is None else answer

    def verify_lengths_of(self, ask: Callable[[IntArray], Any], num_drafted: IntArray) -> IntArray:
        """What ``ask`` answers to ``num_drafted``; in a round with a fault everything is verified."""
        answer = None
        if self._own_round:
            shown = num_drafted.copy()
            answer = self._asked(ask, lambda found: _checked_lengths(found, num_drafted), shown)
        return num_drafted if answer is None else answer

    def _asked(self, ask: Callable[..., Any], check: Callable[[Any], T], *told: Any) -> T | None:
        """What the inner controller answers to ``told``, checked; None where it fails."""
        start = time.perf_counter()
        try:
            answer = check(ask(*told))
            taken = time.perf_counter() - start
            if taken > self.settings.budget_seconds:
                raise _FaultError("overrun", f"took {taken:.3g} s, allowed are {self.settings.budget_seconds:g} s")
            return answer
        except _FaultError as fault:
            self._note(fault.kind, str(fault))
        except MissingFeatureError as error:
            self._note("missing_feature", str(error))
        except Exception as error:
            self._note("error", f"{type(error).__name__}: {error}")
        return None

    def _note(self, kind: str, text: str) -> None:
        """Count a fault, log the first of its kind, and suspend who does nothing else."""
        if kind not in self.report.faults:
            name = type(self.inner).__name__
            _log.warning("%s: %s (%.200s); the fallback takes over, further ones are only counted", name, kind, text)
        self.report.faults[kind] += 1
        if not self._faulty:
            self.report.fallback_rounds += 1
            self._faults_in_a_row += 1
        self._faulty, self._own_round = True, False
        self._probe.abandon()
        if self._faults_in_a_row >= self.settings.faults_in_a_row:
            self._faults_in_a_row = 0
            self._away = self.settings.suspended_rounds
            self.report.suspensions += 1

    def _checked_decision(self, decision: Any) -> Decision:
        lengths = _checked_integers(decision.num_speculative_tokens, self._batch)
        told = lengths.tolist()  # Of a small batch the numbers take less time than calls of NumPy.
        if told and not 0 <= min(told) <= max(told) <= MAX_LENGTH:
            raise _FaultError("out_of_range", f"lengths must be 0 … {MAX_LENGTH}, got {told!r:.80}")
        features: Any = self.inner.level_features
        if features is not self._known_features:
            self._check_features(features)
        self._follow(self.inner, features)
        looks = getattr(decision, "looks", None)
        return Decision(lengths, None if looks is None else GuardedLooks(self, looks))

    def _check_features(self, features: Any) -> None:
        if not set(features) <= set(LEVEL_FEATURES):
            raise _FaultError("missing_feature", f"'level_features' names {features!r:.80}; there are {LEVEL_FEATURES}")
        if type(features) is tuple:  # What cannot change need not be looked at again.
            self._known_features = features

    def _follow(self, who: Controller, features: Collection[str]) -> None:
        """What the engine reads before it asks."""
        self.asked_levels, self.trims, self.plans = int(who.asked_levels), bool(who.trims), bool(who.plans)
        self.level_features = features

    def _prove(self, outcome: RoundOutcome) -> None:
        """Enter the round into the probe; demote where it says so."""
        if self._away > 0 or self._probe.rests():
            return
        seconds = outcome.draft_seconds + outcome.verify_seconds + outcome.catch_up_seconds + outcome.host_seconds
        if not self._probe.enter(int(outcome.num_committed.sum()), seconds):
            return
        self.report.probes += 1
        self.report.speed_ratio = ratio = self._probe.speed_ratio
        if self._probe.is_conclusive and ratio < 1 - self.settings.tolerance:
            self.report.demotions += 1
            self._away = self.settings.demoted_rounds
            self._probe.forget()
            name, rounds = type(self.inner).__name__, self.settings.demoted_rounds
            _log.warning("%s: %.2f of the fallback's speed; demoted for %d rounds", name, ratio, rounds)


class GuardedLooks:
    """Answers of ``inner`` for one round, checked by ``guard``."""

    def __init__(self, guard: GuardedController, inner: Looks) -> None:
        self._guard, self._inner = guard, inner
        self.levels, self.trims = int(inner.levels), bool(inner.trims)

    def after(self, depth: int, requests: IntArray, margin: FloatArray, agreement: FloatArray) -> IntArray:
        """See `Looks.after`."""
        inner = self._inner
        lengths = self._guard.new_lengths_of(inner.after, depth, requests, depth, requests, margin, agreement)
        self.trims = bool(inner.trims)
        return lengths

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `Looks.verified`."""
        return self._guard.verify_lengths_of(self._inner.verified, num_drafted)


def _nothing(answer: Any) -> None:
    """Checks an answer that says nothing."""


def _checked_integers(value: Any, count: int) -> IntArray:
    lengths = np.asarray(value)
    if lengths.shape != (count,):
        raise _FaultError("wrong_shape", f"expected one number per request ({count}), got shape {lengths.shape}")
    if lengths.dtype.kind == "f" and not np.isfinite(lengths).all():
        raise _FaultError("not_finite", f"got {lengths.tolist()!r:.80}")
    if lengths.dtype.kind not in "iu":
        raise _FaultError("wrong_type", f"expected integers, got {lengths.dtype}")
    return lengths


def _checked_lengths(value: Any, num_drafted: IntArray) -> IntArray:
    lengths = _checked_integers(value, len(num_drafted))
    if (lengths < 0).any() or (lengths > num_drafted).any():
        raise _FaultError("out_of_range", f"expected 0 … {num_drafted.tolist()!r:.80}, got {lengths.tolist()!r:.80}")
    return lengths


def _checked_answer(value: Any, count: int, depth: int) -> IntArray:
    lengths = _checked_integers(value, count)
    told = lengths.tolist()
    if told and not depth <= min(told) <= max(told) <= MAX_LENGTH:
        raise _FaultError("out_of_range", f"expected {depth} … {MAX_LENGTH}, got {told!r:.80}")
    return lengths
