"""Steering: between vLLM's scheduler, which calls it, and a controller, which it asks.

Nothing in here may lose a request: what the controller does wrong is the guard's business, and whatever else fails ends
the steering with one warning, after which vLLM goes on with its own number of speculative tokens.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ...controllers import (
    ConstantController,
    Controller,
    GuardedController,
    GuardSettings,
    RoundState,
    load_controller,
)
from ...controllers.arrivals import ArrivalMeter
from .compatibility import check_controller, problem_of_engine, problem_of_installation
from .drafter_lag import DrafterLag
from .metrics import SteeringCounts
from .pacing import PacedController, Pacer
from .self_test import SchedulerSelfTest
from .settings import VllmSettings
from .state import Histories, decoding_requests, room, round_state
from .steps import Step, StepResult
from .tiers import is_own_table

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

_log = logging.getLogger(__name__)


class Steering:
    """Decides K for one scheduler. Its methods are called by `scheduler.Steered`, in the order of a step."""

    def __init__(self, scheduler: Scheduler, settings: VllmSettings) -> None:
        """Raises what `load_controller` and `check_controller` raise."""
        own = scheduler.vllm_config
        self.settings = settings
        self.longest: int = own.num_speculative_tokens
        """vLLM's ``num_speculative_tokens``: no step drafts more."""
        self.counts = SteeringCounts()
        self.state: RoundState | None = None
        """Of the last decision."""
        self.problem: str | None = problem_of_installation() or problem_of_engine(own)
        """Why vLLM is left to itself, in one line; None where it is steered."""
        self.lag: DrafterLag | None = None
        """Tokens of a request that a lazy drafter has not seen; None: the drafter runs at K = 0 too."""
        self.guard: GuardedController | None = None
        """What is asked: `controller` at the pace of the settings, guarded."""
        self._scheduler = scheduler
        self._can_trim = settings.trim and not own.scheduler_config.async_scheduling
        self._own_table = self.longest > 0 and is_own_table(own)
        self._arrivals, self._histories = ArrivalMeter(), Histories()
        self._steps = deque[Step]()
        self._lengths: dict[str, int] = {}
        self._length: int = self.longest
        self.self_test: SchedulerSelfTest | None = None
        self._began = self._ended = self._carried = 0.0
        self._controller: Controller | None = None
        if self.problem is not None:
            _log.warning("specpilot: %s; vLLM goes on without a controller", self.problem)
            return
        if settings.self_test:
            self.self_test = SchedulerSelfTest(scheduler, self.longest)
        if settings.lazy_catch_up and _is_lazy(own):
            self.lag = DrafterLag()
        if settings.controller is not None:
            self.controller = load_controller(settings.controller, settings.cost_surface)

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Steering:
        """For a scheduler under construction."""
        return cls(scheduler, VllmSettings.of(scheduler.vllm_config))

    # ------------------------------------------------------------------ the controller

    @property
    def controller(self) -> Controller | None:
        """What decides, as it was set. None: vLLM's own K.

        A bare controller is guarded, without probes and time limit; one in a `GuardedController` keeps its guard's
        settings and fallback.
        """
        return self._controller

    @controller.setter
    def controller(self, controller: Controller | None) -> None:
        if controller is None:
            self._controller = self.guard = None
            return
        inner, fallback, settings = controller, None, GuardSettings(budget_seconds=math.inf, probe_every=0)
        if isinstance(controller, GuardedController):
            inner, fallback, settings = controller.inner, controller.fallback, controller.settings
        check_controller(inner, str(self.settings.controller or type(inner).__name__))
        self._controller = controller
        pace = self.settings
        if pace.confirm_steps > 1 or pace.dwell_steps > 0:
            inner = PacedController(inner, Pacer(pace.confirm_steps, pace.dwell_steps))
        self.guard = GuardedController(inner, fallback or ConstantController(0), settings)

    def stop(self, problem: str) -> None:
        """Leave K to vLLM from now on, with one warning."""
        if self.problem is None:
            self.problem = problem
            _log.warning("specpilot: %s; vLLM goes on with its own number of speculative tokens", problem)

    # ------------------------------------------------------------------ a step, in the order of its calls

    def note_arrival(self) -> None:
        """A request came."""
        self._arrivals.add(time.monotonic())

    def begin(self) -> None:
        """A step is about to be scheduled."""
        self._began = time.perf_counter()

    def command(self, scheduled: SchedulerOutput) -> None:
        """Decide K of the step and write it into ``scheduled``."""
        started = time.perf_counter()
        step = Step(scheduled, [], self._began, False)
        try:
            self._judge(scheduled)
            length = self._decide(step) if self._is_on else self._own_length(scheduled)
        except Exception as error:
            self.stop(f"deciding failed ({type(error).__name__}: {error})")
            length, step.decided, self._lengths = self._own_length(scheduled), False, {}
        scheduled.num_spec_tokens_to_schedule = length
        self._steps.append(step)
        counts = bool(step.requests) or not self._is_on
        self.counts.enter_decision(length, counts, time.perf_counter() - started)

    def verified(self, scheduled: SchedulerOutput, output: ModelRunnerOutput) -> StepResult | None:
        """What the step gained, before vLLM commits it; None for a step that nobody decided."""
        while self._steps and self._steps[0].scheduled is not scheduled:
            self._steps.popleft()  # Steps that were scheduled but never ran.
        if not self._steps:
            return None
        try:
            return StepResult.of(self._steps.popleft(), output)
        except Exception as error:
            self.stop(f"observing failed ({type(error).__name__}: {error})")
            return None

    def observe(self, result: StepResult | None) -> None:
        """vLLM has committed the step: tell the controller."""
        ended = time.perf_counter()
        if result is not None and self._is_on:
            seconds = max(0.0, ended - max(result.step.started, self._ended)) + self._carried
            try:
                self._enter(result, seconds)
            except Exception as error:
                self.stop(f"observing failed ({type(error).__name__}: {error})")
        self._carried = 0.0
        self._ended = time.perf_counter()
        self.counts.seconds += self._ended - ended

    def trim(self, drafts: DraftTokenIds) -> None:
        """Cut each request's draft, in place, to what the controller gave it and what it can still use."""
        started = time.perf_counter()
        self._carried = started - self._ended  # Drafting may end only here.
        if not self._is_on:
            return
        try:
            self._trim(drafts)
        except Exception as error:
            self.stop(f"trimming failed ({type(error).__name__}: {error})")
        self.counts.seconds += time.perf_counter() - started

    def report(self, stats: Any) -> None:
        """Send what was counted along with vLLM's ``SchedulerStats`` (None where it keeps none)."""
        if stats is not None and self.guard is not None:
            self.counts.fallbacks = self.guard.report.fallback_rounds
            self.counts.is_static = self.problem is not None
            stats.waiting_lora_adapters.update(self.counts.drain())

    # ------------------------------------------------------------------ parts

    @property
    def _is_on(self) -> bool:
        return self.problem is None and self.guard is not None

    def _own_length(self, scheduled: SchedulerOutput) -> int:
        """K without a controller: vLLM's; where its table is only the plugin's list of tiers, the configured one."""
        own: int = scheduled.num_spec_tokens_to_schedule
        return self.longest if self._own_table else own

    def _decide(self, step: Step) -> int:
        requests = decoding_requests(self._scheduler, step.scheduled)
        if not requests:
            # Drafts for unfinished prompts are thrown away; one level keeps the drafter's cache in step with them.
            return min(self._length, 1)
        step.requests, step.decided = requests, True
        rates = self._arrivals.rates(time.monotonic())
        state = round_state(self._scheduler, requests, self._histories, self.longest, rates, self.lag)
        self.state = state
        assert self.guard is not None
        told = self.guard.decide(state).num_speculative_tokens
        lengths: list[int] = [min(length, self.longest) for length in told.tolist()]
        if self.self_test is not None and self.self_test.under_way:
            lengths, step.decided = [self.self_test.begin(requests)] * len(requests), False
        length = self._length = max(lengths)
        self._lengths = {request.request_id: own for request, own in zip(requests, lengths, strict=True)}
        return length

    def _enter(self, result: StepResult, seconds: float) -> None:
        step = result.step
        if step.requests:
            outcome = result.outcome(self._histories, seconds)
            self.counts.enter_outcome(sum(result.drafted), sum(result.accepted))
            self._histories.keep(self._scheduler.requests, len(self._scheduler.requests))
            if self.guard is not None and step.decided:
                self.guard.observe(outcome)
        if self.lag is not None:
            known = [(name, self._scheduler.requests.get(name)) for name in step.scheduled.num_scheduled_tokens]
            self.lag.step_done(step.scheduled.num_spec_tokens_to_schedule, [own for _, own in known if own is not None])
            self.lag.forget([name for name, own in known if own is None])

    def _trim(self, drafts: DraftTokenIds) -> None:
        named = dict(zip(drafts.req_ids, drafts.draft_token_ids, strict=True))
        if self.self_test is not None and self.self_test.under_way:
            self.self_test.saw({name: tuple(tokens) for name, tokens in named.items()})
        for name, tokens in named.items():
            request, length = self._scheduler.requests.get(name), self._lengths.get(name)
            if request is None or length is None:
                continue
            self._histories[name].drafted = min(len(tokens), self._length)
            if self._can_trim:
                del tokens[room(request, length, self._scheduler.max_model_len, tokens_ahead=1) :]

    def _judge(self, following: SchedulerOutput) -> None:
        if self.self_test is not None and self.problem is None:
            self.self_test.judge(following)
            if self.self_test.problem is not None:
                self.stop(f"the self-test failed: {self.self_test.problem}")


def _is_lazy(vllm_config: Any) -> bool:
    """Whether the drafter is one that `lazy_drafter` makes lazy."""
    from .lazy_drafter import obstacle

    return obstacle(vllm_config) is None and not getattr(vllm_config, "use_v2_model_runner", False)
