"""Which vLLM the plugin fits: versions, every hook by name and signature, and what is known to break.

vLLM says that custom schedulers are no public interface, so everything that is relied on is looked for at start. Tried:
0.32.0 (CPU build, model runner V1, synchronous scheduling). By their source the hooks are the same from 0.30 to 0.33.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

from ...controllers import LEVEL_FEATURES, Controller, GuardedController, PricedController

TRIED = ("0.32.0",)
"""Versions that the tests have run on."""
OLDEST, NEWEST = (0, 30), (0, 33)
"""First and last version whose source has all hooks."""
DRAFTERS = {
    False: ("ngram", "draft_model", "eagle", "eagle3", "mtp"),
    True: ("eagle", "eagle3", "mtp"),
}
"""Methods that draft as many tokens as a step asks for, by whether model runner V2 runs.

The others ignore K or assert that it is the configured one: `propose_draft_token_ids` in
``v1/worker/gpu_model_runner.py``, and ``v1/worker/gpu/spec_decode``.
"""
SCHEDULERS = (
    "specpilot.engine.vllm.scheduler.SteeredScheduler",
    "specpilot.engine.vllm.scheduler.SteeredAsyncScheduler",
)
"""The synchronous and the asynchronous one."""
_METHODS = {
    "schedule": (),
    "_update_after_schedule": ("scheduler_output",),
    "update_from_output": ("scheduler_output", "model_runner_output"),
    "update_draft_token_ids": ("draft_token_ids",),
    "add_request": ("request",),
    "get_request_counts": (),
    "make_stats": (),
}
_OUTPUT_FIELDS = ("num_scheduled_tokens", "scheduled_spec_decode_tokens", "num_spec_tokens_to_schedule")
_REQUEST_PROPERTIES = ("num_tokens", "num_output_tokens", "is_finished")
_REQUEST_ATTRIBUTES = (
    "request_id",
    "max_tokens",
    "sampling_params",
    "num_computed_tokens",
    "num_output_placeholders",
)


class RefusedControllerError(ValueError):
    """The controller cannot be used in vLLM; the message is one line with the reason and the fix."""


# ---------------------------------------------------------------------- vLLM itself


def problem_of_installation() -> str | None:
    """Why the installed vLLM cannot be steered, in one line; None where it can."""
    import vllm

    version = str(vllm.__version__)
    return problem_of_version(version) or problem_of_hooks()


def problem_of_version(version: str) -> str | None:
    """Why ``version`` is outside of the range; None inside."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or not OLDEST <= (int(match[1]), int(match[2])) <= NEWEST:
        low, high = (".".join(map(str, part)) for part in (OLDEST, NEWEST))
        return f"vLLM {version} is not among the versions {low} … {high} that this plugin knows"
    return None


def problem_of_hooks() -> str | None:
    """Which part of vLLM's scheduler is not as expected; None where all are."""
    try:
        from vllm.config import SchedulerConfig, SpeculativeConfig, VllmConfig
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.output import SchedulerOutput
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.request import Request
    except ImportError as error:
        return f"vLLM lacks what the plugin imports ({error})"
    for kind in (Scheduler, AsyncScheduler):
        for name, parameters in _METHODS.items():
            problem = _problem_of_method(kind, name, parameters)
            if problem is not None:
                return problem
    wanted = {
        SchedulerOutput: _OUTPUT_FIELDS,
        SchedulerConfig: ("scheduler_cls", "async_scheduling", "max_num_seqs"),
        SpeculativeConfig: ("method", "num_speculative_tokens", "num_speculative_tokens_per_batch_size"),
        VllmConfig: ("speculative_config", "scheduler_config", "parallel_config", "additional_config"),
    }
    for kind, names in wanted.items():
        missing = set(names) - {field.name for field in dataclasses.fields(kind)}
        if missing:
            return f"vLLM's {kind.__name__} has no {', '.join(sorted(missing))}"
    return _problem_of_request(Request)


def _problem_of_method(kind: Any, name: str, parameters: tuple[str, ...]) -> str | None:
    method = getattr(kind, name, None)
    if method is None:
        return f"vLLM's {kind.__name__} has no {name}()"
    own = inspect.signature(method).parameters
    found = tuple(own)[1:]
    needed = [place for place in found if own[place].default is inspect.Parameter.empty]
    if found[: len(parameters)] != parameters or needed != list(parameters):
        return f"vLLM's {kind.__name__}.{name}() takes {found}, expected {parameters}"
    return None


def _problem_of_request(kind: Any) -> str | None:
    set_at_start = set(kind.__init__.__code__.co_names)
    for name in _REQUEST_PROPERTIES:
        if not hasattr(kind, name):
            return f"vLLM's Request has no {name}"
    missing = set(_REQUEST_ATTRIBUTES) - set_at_start
    return f"vLLM's Request has no {', '.join(sorted(missing))}" if missing else None


# ---------------------------------------------------------------------- one engine's configuration


def problem_of_engine(vllm_config: Any) -> str | None:
    """Why an engine of this configuration stays as vLLM has it; None where it can be steered."""
    speculation = vllm_config.speculative_config
    if speculation is None or not speculation.num_speculative_tokens:
        return "vLLM was started without --speculative-config, so there is nothing to choose"
    ranks = vllm_config.parallel_config.data_parallel_size
    if ranks > 1:
        return f"data_parallel_size is {ranks}: ranks with different K wait for each other forever; use 1"
    scheduler = vllm_config.scheduler_config.scheduler_cls
    if scheduler is not None and scheduler_name(scheduler) not in SCHEDULERS:
        return f"--scheduler-cls is {scheduler_name(scheduler)}; leave it away, or name {SCHEDULERS[0]}"
    return _problem_of_drafter(vllm_config, speculation)


def _problem_of_drafter(vllm_config: Any, speculation: Any) -> str | None:
    second = bool(getattr(vllm_config, "use_v2_model_runner", False))
    runner, method = "V2" if second else "V1", speculation.method
    if method not in DRAFTERS[second]:
        known = ", ".join(DRAFTERS[second])
        fix = "; set VLLM_USE_V2_MODEL_RUNNER=0" if method in DRAFTERS[False] else ""
        return f"the drafter {method!r} ignores K on model runner {runner}, which knows it for {known}{fix}"
    if getattr(speculation, "parallel_drafting", False):
        return "parallel_drafting drafts a fixed number of tokens; switch it off"
    if getattr(speculation, "enable_adaptive_verification", False):
        return "vLLM's own adaptive verification is on; switch it off to let a controller choose"
    several_modules: Callable[[], bool] = getattr(speculation, "use_multi_module_mtp", lambda: False)
    if second and several_modules():
        return "an MTP drafter of several modules ignores K; use one module"
    return None


def scheduler_name(scheduler: Any) -> str:
    """Dotted name of what ``--scheduler-cls`` holds, a name or a class."""
    return scheduler if isinstance(scheduler, str) else f"{scheduler.__module__}.{scheduler.__qualname__}"


# ---------------------------------------------------------------------- the controller


def missing_features(controller: Controller) -> tuple[str, ...]:
    """Features that ``controller`` asks for and vLLM does not show: those of each drafted token, and per level."""
    if isinstance(controller, GuardedController):
        controller = controller.inner
    if isinstance(controller, PricedController):
        asks = any(tier.asked_levels for tier in controller.policy.tiers)
    else:
        asks = bool(controller.asked_levels or controller.trims)
    if not asks:
        return ()
    return tuple(name for name in LEVEL_FEATURES if name in controller.level_features) or ("draft levels",)


def check_controller(controller: Controller, origin: str) -> None:
    """Raise `RefusedControllerError` where ``controller`` needs what vLLM does not provide."""
    missing = missing_features(controller)
    if missing:
        raise RefusedControllerError(
            f"{origin}: the controller reads {', '.join(missing)} of each drafted token, which vLLM does not provide; "
            "train one without looks"
        )
