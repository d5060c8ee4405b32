"""Steering: between vLLM's scheduler, which calls it, and a controller, which it asks.

Nothing in here may lose a request: what the controller does wrong is the guard's business, and whatever else fails ends
the steering with one warning, after which vLLM goes on with its own number of speculative tokens.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
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
    from vllm.v1.request import Request

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
        self._began = self._ended = self._carried = self._busy = 0.0
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
            self.problem, self._batch, self._run = problem, NOBODY, []
            self._drafts.clear()
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
        step = Step(scheduled, self._batch, self._began, self._drafts.noted())
        try:
            if self._stands(scheduled):
                step.looked, step.decided = False, True
            else:
                self._look(step)
        except Exception as error:
            self.stop(f"deciding failed ({type(error).__name__}: {error})")
            self._length, step.decided = self._own_length(scheduled), False
        scheduled.num_spec_tokens_to_schedule = self._length
        self._steps.append(step)
        self.counts.seconds += time.perf_counter() - started

    def verified(self, scheduled: SchedulerOutput, output: ModelRunnerOutput) -> Step | None:
        """See what the step gained, before vLLM commits, or cuts, it; None for a step that nobody decided."""
        started, steps = time.perf_counter(), self._steps
        while steps and steps[0].scheduled is not scheduled:
            steps.popleft()  # Steps that were scheduled but never ran.
        if not steps:
            return None
        step = steps.popleft()
        try:
            if scheduled.scheduled_spec_decode_tokens:
                step.places, step.gained = output.req_id_to_index, list(map(len, output.sampled_token_ids))
            if self._is_asynchronous:  # Another step was committed since this one was scheduled.
                step.generated = [request.num_output_tokens for request in step.batch.requests]
        except Exception as error:
            self.stop(f"observing failed ({type(error).__name__}: {error})")
            return None
        self.counts.seconds += time.perf_counter() - started
        return step

    def observe(self, step: Step | None) -> None:
        """vLLM has committed the step: tell the controller."""
        ended = time.perf_counter()
        if step is not None and self._consultation is not None and self.problem is None:
            step.seconds = max(0.0, ended - max(step.started, self._ended)) + self._carried
            try:
                if step.looked or not self._scheduler.requests:
                    self._enter(step)
                else:
                    self._run.append(step)
            except Exception as error:
                self.stop(f"observing failed ({type(error).__name__}: {error})")
        self._carried = 0.0
        self._ended = time.perf_counter()
        self.counts.seconds += self._ended - ended

    def trim(self, drafts: DraftTokenIds) -> None:
        """Cut each request's draft, in place, to what the controller gave it and what it can still use."""
        started = time.perf_counter()
        self._carried = started - self._ended  # Drafting may end only here.
        if self._consultation is None or self.problem is not None:
            return
        try:
            if self.self_test is not None and self.self_test.under_way:
                named = zip(drafts.req_ids, drafts.draft_token_ids, strict=True)
                self.self_test.saw({name: tuple(tokens) for name, tokens in named})
            self._drafts.note(drafts, self._scheduler)
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

    def _stands(self, scheduled: SchedulerOutput) -> bool:
        """Whether K stands for a step more of the same requests, so that nobody need be looked at."""
        consultation = self._consultation
        if consultation is None or not consultation.may_stand or self._steps or self._is_asynchronous:
            return False
        if not self._batch.goes_on(scheduled) or (self._length and self._scheduler.get_request_counts()[1]):
            return False
        return self._drafts.a_step_on() and consultation.stand()

    def _look(self, step: Step) -> None:
        """Decide K with a look at every request."""
        self._work_out()
        self._judge(step.scheduled)
        if not self._is_on:
            step.batch, self._length = NOBODY, self._own_length(step.scheduled)
            self.counts.enter_decision(self._length)
            return
        step.batch = self._batch = DecodingBatch.of(self._scheduler, step.scheduled, self._batch, self._histories)
        if not step.batch.names:
            # Drafts for unfinished prompts are thrown away; one level keeps the drafter's cache in step with them.
            self._length = min(self._length, 1)
            return
        step.decided = True
        self._decide(step)
        self.counts.enter_decision(self._length)

    def _decide(self, step: Step) -> None:
        batch, consultation, max_model_len = step.batch, self._consultation, self._scheduler.max_model_len
        assert consultation is not None
        load = batch.load(self._scheduler)
        may_stand, stretch = not (load[1] and consultation.length), consultation.thrift.stretch
        if may_stand and self._drafts.give_again(batch, max_model_len, stretch) and consultation.stand():
            self._length = max(batch.rooms(consultation.length, max_model_len))
            return
        consultation.tell_all()  # What is shown depends on it.
        rates = self._arrivals.rates(self._clock())
        self.state = round_state(self._scheduler, batch, load, self.longest, rates, self.lag)
        consultation.thrift.enter(self.counts.seconds, self._busy)
        lengths = consultation.ask(self.state)
        # What nobody has room for is not drafted.
        self._length = max(map(min, lengths, self.state.max_num_speculative_tokens.tolist()))
        if self.self_test is not None and self.self_test.under_way:
            self._length, step.decided = self.self_test.begin(batch.requests), False
            lengths = [self._length] * len(lengths)
            consultation.overrule()
        self._drafts.give(batch, lengths, max_model_len)

    def _enter(self, step: Step) -> None:
        """The first step since a look has come back, or the last that there is for now."""
        alive = self._scheduler.requests
        if step.looked:
            self._work_out()
            if self.lag is not None:
                self.lag.entered(step.scheduled, alive)
        if step.batch.names:
            self._run.append(step)
        if self._is_asynchronous or not alive:
            self._work_out()
        if not alive and self._consultation is not None:
            self._consultation.tell_all()  # Nobody may ask again soon.

    def _work_out(self) -> None:
        """What the steps since the last look gained."""
        if not self._run:
            return
        run, self._run = self._run, []
        self._busy += sum([step.seconds for step in run])
        for result in StepResult.of_run(run):
            self.counts.enter_outcome(sum(result.drafted), sum(result.accepted))
            if result.step.decided and self._consultation is not None:
                self._consultation.tell(result)
            else:
                result.outcome()
        alive = self._scheduler.requests
        if not run[-1].looked:
            self._enter_stood(run, alive)
        self._histories.keep(alive, len(alive))

    def _enter_stood(self, run: list[Step], alive: Mapping[str, Request]) -> None:
        """Enter what was left out in the steps of ``run`` in which nobody was looked at."""
        length, stood = run[-1].scheduled.num_spec_tokens_to_schedule, [step for step in run if not step.looked]
        self.counts.enter_decision(length, len(stood))
        if self.lag is None:
            return
        for step in stood:
            self.lag.forget(step.scheduled.finished_req_ids)
        if length:
            self.lag.went_on([request for request in run[-1].batch.requests if request.request_id in alive])

    def _judge(self, following: SchedulerOutput) -> None:
        if self.self_test is not None and self.problem is None:
            self.self_test.judge(following)
            if self.self_test.problem is not None:
                self.stop(f"the self-test failed: {self.self_test.problem}")


def _is_lazy(vllm_config: Any) -> bool:
    """Whether the drafter is one that `lazy_drafter` makes lazy."""
    from .lazy_drafter import obstacle

    return obstacle(vllm_config) is None and not getattr(vllm_config, "use_v2_model_runner", False)
