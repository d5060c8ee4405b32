"""When a controller is asked, and when it is told: between two steps of a model every line of Python is a cold one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...controllers import ConstantController, Controller, GuardedController, GuardSettings, RoundState
from .compatibility import check_controller
from .pacing import PacedController, Pacer, Thrift
from .settings import VllmSettings
from .steps import StepResult


@dataclass
class Consultation:
    """One controller behind its guard, at the pace of a `Pacer`.

    It is not asked where its answer could hardly change K (`Pacer.rests`): the last one stands for some steps more.
    It is told of every round in order, but only before it is asked again: of several rounds in a row the first alone is
    a cold one.
    """

    guard: GuardedController
    pacer: Pacer | None
    thrift: Thrift
    longest: int
    """vLLM's ``num_speculative_tokens``."""
    length: int = 0
    """The longest of the last answer."""
    _left: int = 0  # Steps more that the last answer may stand for.
    _stood: int = 0  # Steps that it has stood for, and that pacer and guard do not know of.
    _untold: list[StepResult] = field(default_factory=list)

    @classmethod
    def of(cls, controller: Controller, settings: VllmSettings, longest: int) -> Consultation:
        """A bare controller is guarded, without probes and time limit; one in a `GuardedController` keeps its guard's
        settings and fallback. Raises what `check_controller` raises."""
        inner, fallback, limits = controller, None, GuardSettings(budget_seconds=math.inf, probe_every=0)
        if isinstance(controller, GuardedController):
            inner, fallback, limits = controller.inner, controller.fallback, controller.settings
        check_controller(inner, str(settings.controller or type(inner).__name__))
        pacer = None
        if settings.confirm_steps > 1 or settings.dwell_steps > 0:
            pacer = Pacer(settings.confirm_steps, settings.dwell_steps)
            inner = PacedController(inner, pacer)
        own = GuardedController(inner, fallback or ConstantController(0), limits)
        return cls(own, pacer, Thrift(settings.time_share), longest)

    def ask(self, state: RoundState) -> list[int]:
        """Length of each request's draft. All rounds have been told (`tell_all`), or ``state`` lacks them."""
        lengths: list[int] = self.guard.decide(state).num_speculative_tokens.tolist()
        most = max(lengths)
        if most > self.longest:
            lengths = [min(length, self.longest) for length in lengths]
        self.length, self._left = most, 0
        if self.pacer is not None and self.pacer.length == most <= self.longest:
            self._left = int(min(self.thrift.stretch * self.pacer.rests, self.guard.repeats))
        return lengths

    @property
    def may_stand(self) -> bool:
        """Whether `stand` would be True."""
        return self._left > 0

    def stand(self) -> bool:
        """Let the last answer stand for a step of mostly the same requests; if False, `ask`.

        Where others wait, K > 0 is to be asked about in every step, for it may have to fall at once.
        """
        if self._left == 0:
            return False
        self._left -= 1
        self._stood += 1
        return True

    def overrule(self) -> None:
        """The last answer was not followed."""
        self._left = 0

    def tell(self, result: StepResult) -> None:
        """A round that was decided has come back."""
        self._untold.append(result)

    def tell_all(self) -> None:
        """Tell what has not been told."""
        if self._stood and self.pacer is not None:
            self.pacer.rest(self._stood)
            self.guard.repeated(self._stood)
            self._stood = 0
        untold, self._untold = self._untold, []
        for result in untold:
            self.guard.observe(result.outcome())
