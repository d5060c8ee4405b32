"""The plugin's numbers in vLLM's own ``/metrics``.

The scheduler, which knows them, runs in another process than the server that is asked. So they travel with vLLM's
``SchedulerStats``, as entries of its ``waiting_lora_adapters``, the one mapping from text to integers that nobody reads
on the way. `StatLoggerManager` (``v1/metrics/loggers.py``) takes them out again before any logger sees them. What
travels are differences, since with several servers each message reaches only one of them, and Prometheus adds up.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from .compatibility import SCHEDULERS, scheduler_name

_KEY = "specpilot:"
COUNTERS = {
    "steps": "Steps that were steered.",
    "off_steps": "Of these, steps with K = 0.",
    "switches": "Changes of K from one step to the next.",
    "drafted_tokens": "Tokens that were drafted.",
    "wasted_draft_tokens": "Of these, tokens that verification did not keep.",
    "fallback_steps": "Steps that the fallback decided instead of the controller.",
    "decision_nanoseconds": "Time that the plugin took, decisions included.",
}
GAUGES = {
    "speculation_length": "K of the last step.",
    "off_step_ratio": "Share of the last steps (about 50) with K = 0.",
    "static": "1 where steering has ended and vLLM goes on with its own K.",
}


_OFF_WEIGHT = 0.02
"""Of the newest step in ``off_step_ratio``."""
_MILLION = 1_000_000  # Integers travel.
_SENT_EVERY = 8  # Steps.


@dataclass
class SteeringCounts:
    """What one scheduler counts."""

    length: int = 0
    off_ratio: float = 0.0
    seconds: float = 0.0
    """That the plugin took."""
    steps: int = 0
    off_steps: int = 0
    switches: int = 0
    drafted_tokens: int = 0
    wasted_draft_tokens: int = 0
    fallbacks: int = 0
    is_static: bool = False
    _kept: int = 0
    _sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

    def enter_decision(self, length: int, steps: int = 1) -> None:
        """K of so many steps."""
        is_off = length == 0
        if length != self.length:
            self.switches += self.steps > 0
            self.length = length
        self.steps += steps
        self.off_steps += is_off * steps
        self.off_ratio = is_off + (self.off_ratio - is_off) * (1 - _OFF_WEIGHT) ** steps

    def enter_outcome(self, drafted: int, accepted: int) -> None:
        """What a step drafted and kept."""
        self.drafted_tokens += drafted
        self.wasted_draft_tokens += drafted - accepted

    def is_due(self, is_idle: bool) -> bool:
        """Whether a step shall send what was counted: now and then, and when there is nothing left to do."""
        self._kept = 0 if is_idle else (self._kept + 1) % _SENT_EVERY
        return self._kept == 0

    def drain(self) -> dict[str, int]:
        """What was counted since the last call, in the form in which it travels."""
        totals = {
            "steps": self.steps,
            "off_steps": self.off_steps,
            "switches": self.switches,
            "drafted_tokens": self.drafted_tokens,
            "wasted_draft_tokens": self.wasted_draft_tokens,
            "fallback_steps": max(self.fallbacks, self._sent["fallback_steps"]),
            "decision_nanoseconds": int(self.seconds * 1e9),
        }
        news = {_KEY + name: total - self._sent[name] for name, total in totals.items()}
        self._sent = totals
        gauges = {
            "speculation_length": self.length,
            "off_step_ratio": int(self.off_ratio * _MILLION),
            "static": int(self.is_static),
        }
        return news | {_KEY + name: value for name, value in gauges.items()}


def taken_out(stats: Any) -> dict[str, int]:
    """The plugin's entries of ``stats`` (vLLM's ``SchedulerStats`` or None), which are removed from it."""
    if stats is None:
        return {}
    carrier = stats.waiting_lora_adapters
    return {name[len(_KEY) :]: carrier.pop(name) for name in list(carrier) if name.startswith(_KEY)}


class PrometheusExport:
    """The numbers of an engine's schedulers in the registry that vLLM serves."""

    def __init__(self, vllm_config: Any, engines: list[int]) -> None:
        """``engines``: index of each scheduler, a label as in vLLM's own metrics."""
        from prometheus_client import Counter, Gauge

        _unregister()
        labels = ["model_name", "engine"]
        self._values = {index: (vllm_config.model_config.served_model_name, str(index)) for index in engines}
        self._counters = {name: Counter(f"specpilot_{name}", text, labels) for name, text in COUNTERS.items()}
        self._gauges = {
            name: Gauge(f"specpilot_{name}", text, labels, multiprocess_mode="mostrecent")
            for name, text in GAUGES.items()
        }
        for metric in (*self._counters.values(), *self._gauges.values()):
            for values in self._values.values():
                metric.labels(*values)

    def record(self, engine: int, news: dict[str, int]) -> None:
        """Enter what ``engine`` sent."""
        values = self._values[engine]
        for name, counter in self._counters.items():
            counter.labels(*values).inc(news.get(name, 0))
        for name, gauge in self._gauges.items():
            if name in news:
                scale = _MILLION if name.endswith("_ratio") else 1
                gauge.labels(*values).set(news[name] / scale)


def _unregister() -> None:
    """Drop the metrics of an engine that this process had before, as vLLM does with its own."""
    from prometheus_client import REGISTRY

    own = {f"specpilot_{name}" for name in (*COUNTERS, *GAUGES)}
    for collector in list(REGISTRY._collector_to_names):
        if getattr(collector, "_name", None) in own:
            REGISTRY.unregister(collector)


def install() -> None:
    """Wrap vLLM's logger manager in this process. Idempotent; where it does not fit, says so once."""
    from vllm.v1.metrics.loggers import StatLoggerManager

    if getattr(StatLoggerManager.record, "is_specpilot", False):
        return
    start, record = StatLoggerManager.__init__, StatLoggerManager.record

    @functools.wraps(start)
    def started(self: Any, vllm_config: Any, engine_idxs: list[int] | None = None, *more: Any, **named: Any) -> None:
        start(self, vllm_config, engine_idxs, *more, **named)
        scheduler = vllm_config.scheduler_config.scheduler_cls
        is_steered = scheduler is not None and scheduler_name(scheduler) in SCHEDULERS
        self.specpilot = PrometheusExport(vllm_config, self.engine_indexes) if is_steered else None

    @functools.wraps(record)
    def recorded(self: Any, scheduler_stats: Any, *more: Any, **named: Any) -> None:
        news = taken_out(scheduler_stats)
        if news and self.specpilot is not None:
            self.specpilot.record(named.get("engine_idx") or 0, news)
        record(self, scheduler_stats, *more, **named)

    recorded.is_specpilot = True  # type: ignore[attr-defined]
    StatLoggerManager.__init__, StatLoggerManager.record = started, recorded
