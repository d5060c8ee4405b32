"""When a controller is asked, and when it is told: between two steps of a model every line of Python is a cold one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...controllers import ConstantController, Controller, GuardedController, GuardSettings, RoundState
from .compatibility import check_controller
from .pacing import PacedController, Pacer
from .settings import VllmSettings
from .steps import StepResult


@dataclass
class Consultation:
    """One controller behind its guard, at the pace of a `Pacer`.

    It is not asked where its answer could hardly change K (`Pacer.may_rest`): the last one stands for a step more.
    It is told of every round in order, but only before it is asked again: of several rounds in a row the first alone is
    a cold one.
    """

    guard: GuardedController
    pacer: Pacer | None
    longest: int
    """vLLM's ``num_speculative_tokens``."""
    length: int = 0
    """The longest of the last answer."""
    _is_steady: bool = False  # The last answer's longest is what the pacer grants.
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
        return cls(GuardedController(inner, fallback or ConstantController(0), limits), pacer, longest)

    def ask(self, state: RoundState) -> list[int]:
        """Length of each request's draft. All rounds have been told (`tell_all`), or ``state`` lacks them."""
        lengths: list[int] = self.guard.decide(state).num_speculative_tokens.tolist()
        most = max(lengths)
        if most > self.longest:
            lengths = [min(length, self.longest) for length in lengths]
        self.length = most
        self._is_steady = self.pacer is not None and self.pacer.length == most <= self.longest
        return lengths

    def repeat(self, waiting: int) -> bool:
        """Let the last answer stand for a step of mostly the same requests; if False, `ask`.

        ``waiting``: how many others do, now. Where some do, K > 0 is asked about in every step, for it may have to fall
        at once.
        """
        pacer = self.pacer
        if pacer is None or not self._is_steady or (waiting and self.length):
            return False
        if not pacer.may_rest or not self.guard.repeat(len(self._untold)):
            return False
        pacer.rest()
        return True

    def overrule(self) -> None:
        """The last answer was not followed."""
        self._is_steady = False

    def tell(self, result: StepResult, at_once: bool) -> None:
        """A round that was decided has come back; ``at_once``: nobody may ask again soon."""
        self._untold.append(result)
        if at_once:
            self.tell_all()

    def tell_all(self) -> None:
        """Tell what has not been told."""
        untold, self._untold = self._untold, []
        for result in untold:
            self.guard.observe(result.outcome())
