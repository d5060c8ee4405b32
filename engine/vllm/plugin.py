"""The entry point ``vllm.general_plugins``: vLLM calls `register` in each of its processes.

One method is wrapped at once, ``VllmConfig.__post_init__``, since it is the first to see ``additional_config``. It
passes everything on unless a controller is configured. Then it names the tiers, sets the scheduler's class (which
reaches the engine's own process with the configuration), and installs what belongs to other processes and to
``/metrics``.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from ...controllers import load_controller
from . import metrics
from .compatibility import (
    SCHEDULERS,
    check_controller,
    problem_of_engine,
    problem_of_installation,
    scheduler_name,
)
from .settings import VllmSettings
from .tiers import tier_table

_log = logging.getLogger(__name__)
_PARTS = "SPECPILOT_PARTS"
"""Environment of child processes, which see no ``additional_config`` when they load plugins: what to install there."""
_warned = set[str]()


def register() -> None:
    """Install the plugin in this process. May be called any number of times."""
    for part in os.environ.get(_PARTS, "").split(","):
        install_part(part)
    from vllm.config import VllmConfig

    original = VllmConfig.__post_init__
    if getattr(original, "is_specpilot", False):
        return

    @functools.wraps(original)
    def configured(self: Any) -> None:
        prepare(self)
        original(self)
        finish(self)

    configured.is_specpilot = True  # type: ignore[attr-defined]
    VllmConfig.__post_init__ = configured


def prepare(vllm_config: Any) -> None:
    """Before vLLM derives anything from the table of batch sizes: name every K. Raises for a faulty configuration."""
    if not _is_wanted(vllm_config):
        return
    speculation = vllm_config.speculative_config
    if _problem(vllm_config) is None and speculation.num_speculative_tokens_per_batch_size is None:
        longest, batch = speculation.num_speculative_tokens, vllm_config.scheduler_config.max_num_seqs
        speculation.num_speculative_tokens_per_batch_size = tier_table(longest, batch)


def finish(vllm_config: Any) -> None:
    """After vLLM has settled everything else: set the scheduler's class, or say why not."""
    if not _is_wanted(vllm_config):
        return
    problem = _problem(vllm_config)
    if problem is not None:
        if problem not in _warned:
            _warned.add(problem)
            _log.warning("specpilot: %s; vLLM goes on without a controller", problem)
        return
    settings, scheduler = VllmSettings.of(vllm_config), vllm_config.scheduler_config
    if settings.controller is not None:
        check_controller(load_controller(settings.controller, settings.cost_surface), str(settings.controller))
    scheduler.scheduler_cls = SCHEDULERS[bool(scheduler.async_scheduling)]
    parts = ["scheduler", *(part for part in ("lazy_catch_up", "fix_cpu_sampling") if getattr(settings, part))]
    for part in parts:
        install_part(part)
    os.environ[_PARTS] = ",".join(parts)
    metrics.install()
    _announce(settings)


def _announce(settings: VllmSettings) -> None:
    """One line in vLLM's own log, which shows no other loggers' information."""
    from vllm.logger import init_logger

    chosen = settings.controller or "a controller that is set in-process"
    init_logger("vllm.specpilot").info_once("specpilot: %s chooses the number of speculative tokens", str(chosen))


def _is_wanted(vllm_config: Any) -> bool:
    """A controller is configured, or one of the plugin's schedulers is named, whose controller is set in-process."""
    model = vllm_config.model_config
    if model is not None and getattr(model, "is_submodel_config", False):
        return False
    named = vllm_config.scheduler_config.scheduler_cls
    return VllmSettings.of(vllm_config).controller is not None or (
        named is not None and scheduler_name(named) in SCHEDULERS
    )


def _problem(vllm_config: Any) -> str | None:
    return problem_of_installation() or problem_of_engine(vllm_config)


def _is_lazy(vllm_config: Any) -> bool:
    """Whether an engine of this process is steered and wants its drafter to be lazy; others stay as vLLM has them."""
    named = vllm_config.scheduler_config.scheduler_cls
    return named is not None and scheduler_name(named) in SCHEDULERS and VllmSettings.of(vllm_config).lazy_catch_up


def install_part(part: str) -> None:
    """Wrap what this process runs. The worker's parts say themselves, once, where they do not fit."""
    if part == "scheduler":
        _install_scheduler()
    elif part == "lazy_catch_up":
        from .lazy_hooks import install

        install(_is_lazy)
    elif part == "fix_cpu_sampling":
        from .cpu_sampling import install as install_fix

        install_fix()


def _install_scheduler() -> None:
    """Let ``get_scheduler_cls`` resolve the plugin's names silently.

    vLLM would warn that a custom scheduler may cost the asynchronous one, which is chosen here with care.
    """
    from vllm.config import SchedulerConfig

    original = SchedulerConfig.get_scheduler_cls
    if getattr(original, "is_specpilot", False):
        return

    @functools.wraps(original)
    def resolved(self: Any) -> Any:
        named = self.scheduler_cls
        if named is None or scheduler_name(named) not in SCHEDULERS:
            return original(self)
        from . import scheduler

        return getattr(scheduler, scheduler_name(named).rpartition(".")[2])

    resolved.is_specpilot = True  # type: ignore[attr-defined]
    SchedulerConfig.get_scheduler_cls = resolved
