"""Repair of sampling at temperature > 0 with speculation on vLLM's CPU build (vllm issue 55005).

vLLM spreads each request's temperature, top-k and top-p over its drafted tokens with
``v1/sample/rejection_sampler.py``'s `expand_batch_to_tokens`. On CPU the kernel behind it writes to a copy
(``utils/cpu_triton_utils.py``, `_expand_kernel_impl`), so that all three are uninitialised memory. `install` puts a
function in its place that runs vLLM's own on known input at the first call on CPU and takes over only if that is wrong.
A second fault ends the engine: a step without drafts asks for the largest top-k of no rows. What filters no rows is
not called any more.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

Expand = Callable[..., Tensor]


def expanded(values: Tensor, cumulative: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> Tensor:
    """Each of ``values`` [B] once per token of its request: [``num_tokens``].

    ``cumulative`` [B] counts the tokens up to and with each request. Where a value equals ``replace_from`` it becomes
    ``replace_to`` (a temperature of 0 must not divide).
    """
    counts = torch.diff(cumulative, prepend=cumulative.new_zeros(1))
    replaced = torch.where(values == replace_from, torch.full_like(values, replace_to), values)
    return torch.repeat_interleave(replaced, counts.long(), output_size=num_tokens)


def fault(expand: Expand) -> str | None:
    """What ``expand`` (called as `expanded`) gets wrong on known CPU input, in words; None if nothing."""
    cumulative = torch.tensor([2, 2, 3, 6], dtype=torch.int32)
    for values in (torch.tensor([0.5, 3.0, 0.0, 1.25]), torch.tensor([4, 7, 0, 9], dtype=torch.int32)):
        wanted = expanded(values, cumulative, 6, 0, 1)
        # Uninitialised memory may hold an earlier call's answer: a first call with other values displaces it.
        expand(values + 1, cumulative, 6, replace_from=0, replace_to=1)
        given = expand(values, cumulative, 6, replace_from=0, replace_to=1)
        if not torch.equal(given, wanted):
            return f"{values.tolist()} becomes {given.tolist()} in place of {wanted.tolist()}"
    return None


class _CheckedExpand:
    """Stands for vLLM's function: on CPU that function if it is right, `expanded` if not; elsewhere that function."""

    def __init__(self, stock: Expand, wanted: Callable[[], bool]) -> None:
        self.stock = stock
        self._wanted = wanted
        self._on_cpu: Expand | None = None
        functools.update_wrapper(self, stock)

    def __call__(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if x.device.type != "cpu":
            return self.stock(x, *arguments, **named)
        if self._on_cpu is None:
            self._on_cpu = self._chosen()
        return self._on_cpu(x, *arguments, **named)

    def _chosen(self) -> Expand:
        """Which to use on CPU, said in one line where it is not vLLM's."""
        wrong = fault(self.stock)
        if wrong is None:
            return self.stock
        if not self._wanted():
            _log.warning(
                "specpilot: temperature > 0 with speculation is wrong on this CPU build of vLLM (issue 55005) and "
                "fix_cpu_sampling is off: use temperature 0"
            )
            return self.stock
        _log.warning(
            "specpilot: repaired sampling with speculation on CPU (vllm issue 55005): expand_batch_to_tokens gave %s",
            wrong,
        )
        return _same_names


def _same_names(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """`expanded` with the parameter names of vLLM's function."""
    return expanded(x, cu_num_tokens, num_tokens, replace_from, replace_to)


def fix_wanted() -> bool:
    """What the user set for this process: ``VllmSettings.fix_cpu_sampling`` of the environment."""
    from .settings import VllmSettings

    return VllmSettings.read().fix_cpu_sampling


def install(wanted: Callable[[], bool] = fix_wanted) -> bool:
    """Check, and if ``wanted`` repair, sampling with speculation on CPU in this process; idempotent.

    Returns whether the check is in place: not where vLLM has no such function. What is found is decided at the first
    request that samples with speculation, and logged once.
    """
    try:
        from vllm.v1.sample import rejection_sampler
    except ImportError as error:
        _log.warning("specpilot: sampling with speculation on CPU is not checked: %s", error)
        return False
    stock = getattr(rejection_sampler, "expand_batch_to_tokens", None)
    if stock is None:
        _log.warning(
            "specpilot: sampling with speculation on CPU is not checked: no expand_batch_to_tokens in this vLLM"
        )
        return False
    if not isinstance(stock, _CheckedExpand):
        rejection_sampler.expand_batch_to_tokens = _CheckedExpand(stock, wanted)
        if hasattr(rejection_sampler, "apply_top_k_top_p") and wanted():
            rejection_sampler.apply_top_k_top_p = _of_rows(rejection_sampler.apply_top_k_top_p)
    return True


def _of_rows(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``stock``, not called on CPU for logits [0, vocab] (`apply_top_k_only` of ``topk_topp_sampler.py``)."""

    @functools.wraps(stock)
    def filtered(logits: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if logits.shape[0] == 0 and logits.device.type == "cpu":
            return logits
        return stock(logits, *arguments, **named)

    return filtered
