"""Steering: between vLLM's scheduler, which calls it, and a controller, which it asks.

Nothing in here may lose a request: what the controller does wrong is the guard's business, and whatever else fails ends
the steering with one warning, after which vLLM goes on with its own number of speculative tokens.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...controllers import Controller, GuardedController, PricedController, RoundState, load_controller
from ...controllers.arrivals import ArrivalMeter
from .compatibility import problem_of_engine, problem_of_installation
from .consultation import Consultation
from .drafter_lag import DrafterLag
from .drafts import DraftLengths
from .metrics import SteeringCounts
from .self_test import SchedulerSelfTest
from .settings import VllmSettings
from .state import NOBODY, DecodingBatch, Histories, round_state
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
        self._is_asynchronous = bool(own.scheduler_config.async_scheduling)
        self._drafts = DraftLengths(self.longest, settings.trim and not self._is_asynchronous)
        self._own_table = self.longest > 0 and is_own_table(own)
        self._histories = Histories()
        self.measure_arrivals()
        self._steps = deque[Step]()
        self._batch = NOBODY
        """Who decodes, when they were last looked at."""
        self._run = list[Step]()
        """Steps since then that came back."""
        self._length: int = self.longest
        self.self_test: SchedulerSelfTest | None = None
        self._began = self._ended = self._carried = 0.0
        self._controller: Controller | None = None
        self._consultation: Consultation | None = None
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
        """What decides, as it was set; see `Consultation.of`. None: vLLM's own K."""
        return self._controller

    @controller.setter
    def controller(self, controller: Controller | None) -> None:
        if self._consultation is not None:
            self._work_out()
            self._consultation.tell_all()
        self._batch = NOBODY  # Nobody looks at steps without a controller.
        if controller is None:
            self._controller = self._consultation = self.guard = None
            return
        own = Consultation.of(controller, self.settings, self.longest)
        inner = controller.inner if isinstance(controller, GuardedController) else controller
        if isinstance(inner, PricedController):
            inner.hold = 1  # How often it is asked is settled here, see `pacing`.
        self._controller, self._consultation, self.guard = controller, own, own.guard

    def stop(self, problem: str) -> None:
        """Leave K to vLLM from now on, with one warning."""
        if self.problem is None:
            self.problem = problem
            _log.warning("specpilot: %s; vLLM goes on with its own number of speculative tokens", problem)

    def measure_arrivals(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Forget the arrivals so far, and measure new ones by ``clock``, in seconds."""
        self._clock, self._arrivals = clock, ArrivalMeter()

    # ------------------------------------------------------------------ a step, in the order of its calls

    def note_arrival(self) -> None:
        """A request came."""
        self._arrivals.add(self._clock())

    def begin(self) -> None:
        """A step is about to be scheduled."""
        self._began = time.perf_counter()

    def command(self, scheduled: SchedulerOutput) -> None:
        """Decide K of the step and write it into ``scheduled``."""
        started = time.perf_counter()
        step = Step(scheduled, NOBODY, self._began, False, self._drafts.noted())
        try:
            self._judge(scheduled)
            length = self._decide(step) if self._is_on else self._own_length(scheduled)
        except Exception as error:
            self.stop(f"deciding failed ({type(error).__name__}: {error})")
            length, step.decided = self._own_length(scheduled), False
            self._drafts.clear()
        scheduled.num_spec_tokens_to_schedule = length
        self._steps.append(step)
        counts = bool(step.batch.names) or not self._is_on
        self.counts.enter_decision(length, counts, time.perf_counter() - started)

    def verified(self, scheduled: SchedulerOutput, output: ModelRunnerOutput) -> Step | None:
        """See what the step gained, before vLLM commits it; None for a step that nobody decided."""
        while self._steps and self._steps[0].scheduled is not scheduled:
            self._steps.popleft()  # Steps that were scheduled but never ran.
        if not self._steps:
            return None
        step, started = self._steps.popleft(), time.perf_counter()
        try:
            step.verified(output, self._is_asynchronous)
        except Exception as error:
            self.stop(f"observing failed ({type(error).__name__}: {error})")
            return None
        self.counts.seconds += time.perf_counter() - started
        return step

    def observe(self, step: Step | None) -> None:
        """vLLM has committed the step: tell the controller."""
        ended = time.perf_counter()
        if step is not None and self._is_on:
            step.seconds = max(0.0, ended - max(step.started, self._ended)) + self._carried
            try:
                self._enter(step)
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
        if stats is not None and self.guard is not None and self.counts.is_due(not self._scheduler.requests):
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
        if self._stands(step.scheduled):
            step.batch, step.decided = self._batch, True
            return self._length
        self._work_out()
        self._batch = batch = DecodingBatch.of(self._scheduler, step.scheduled, self._batch, self._histories)
        if not batch.names:
            # Drafts for unfinished prompts are thrown away; one level keeps the drafter's cache in step with them.
            return min(self._length, 1)
        step.batch, step.decided = batch, True
        consultation, max_model_len = self._consultation, self._scheduler.max_model_len
        assert consultation is not None
        load = batch.load(self._scheduler)
        may_stand = not (load[1] and consultation.length)
        if may_stand and self._drafts.give_again(batch, max_model_len) and consultation.stand():
            self._length = consultation.length
            if self._length:  # What nobody has room for is not drafted.
                self._length = max(batch.rooms(self._length, max_model_len))
            return self._length
        consultation.tell_all()  # What is shown depends on it.
        rates = self._arrivals.rates(self._clock())
        self.state = round_state(self._scheduler, batch, load, self.longest, rates, self.lag)
        lengths = consultation.ask(self.state)
        if self.self_test is not None and self.self_test.under_way:
            lengths, step.decided = [self.self_test.begin(batch.requests)] * len(lengths), False
            consultation.overrule()
        self._length = max(lengths)
        self._drafts.give(batch, lengths, max_model_len)
        return self._length

    def _stands(self, scheduled: SchedulerOutput) -> bool:
        """Whether K stands for a step more of the same requests, so that nobody need be looked at."""
        if self._is_asynchronous or self._steps or not self._batch.goes_on(scheduled):
            return False
        if self._length and self._scheduler.get_request_counts()[1]:
            return False
        assert self._consultation is not None
        return self._drafts.a_step_on() and self._consultation.stand()

    def _enter(self, step: Step) -> None:
        alive = self._scheduler.requests
        if step.batch.names:
            if self._run and self._run[0].batch is not step.batch:
                self._work_out()
            self._run.append(step)
            if self._is_asynchronous or not alive:
                self._work_out()
            if not alive and self._consultation is not None:
                self._consultation.tell_all()  # Nobody may ask again soon.
        if self.lag is not None:
            self.lag.entered(step.scheduled, alive)

    def _work_out(self) -> None:
        """What the steps since the last look gained."""
        if not self._run:
            return
        run, self._run = self._run, []
        for result in StepResult.of_run(run):
            self.counts.enter_outcome(sum(result.drafted), sum(result.accepted))
            if result.step.decided and self._consultation is not None:
                self._consultation.tell(result)
            else:
                result.outcome()
        alive = self._scheduler.requests
        self._histories.keep(alive, len(alive))

    def _trim(self, drafts: DraftTokenIds) -> None:
        if self.self_test is not None and self.self_test.under_way:
            named = zip(drafts.req_ids, drafts.draft_token_ids, strict=True)
            self.self_test.saw({name: tuple(tokens) for name, tokens in named})
        self._drafts.note(drafts, self._scheduler)

    def _judge(self, following: SchedulerOutput) -> None:
        if self.self_test is not None and self.problem is None:
            self.self_test.judge(following)
            if self.self_test.problem is not None:
                self.stop(f"the self-test failed: {self.self_test.problem}")


def _is_lazy(vllm_config: Any) -> bool:
    """Whether the drafter is one that `lazy_drafter` makes lazy."""
    from .lazy_drafter import obstacle

    return obstacle(vllm_config) is None and not getattr(vllm_config, "use_v2_model_runner", False)
