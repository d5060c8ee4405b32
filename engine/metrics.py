"""Prometheus text export of `EngineStats`, and of what the guard of a controller has seen.

Useful queries::

    rate(specpilot_committed_tokens_total[1m])                                   # tokens per second
    rate(specpilot_accepted_tokens_total[1m]) / rate(specpilot_drafts_total[1m])  # accepted length
    1 - rate(specpilot_accepted_tokens_total[1m]) / rate(specpilot_drafted_tokens_total[1m])   # wasted drafts
    rate(specpilot_seconds_total{phase="catch_up"}[1m])                          # what coming back from K = 0 costs
    rate(specpilot_fallback_rounds_total[1m]) > 0                                # the controller fails or was demoted
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..controllers import Controller, GuardedController
from ..controllers.guard import FAULTS
from .stats import EngineStats

COUNTERS = {
    "rounds": ("num_rounds", "Engine steps."),
    "requests": ("num_requests", "Requests accepted into the queue."),
    "finished_requests": ("num_finished", "Requests that ended, cancelled ones included."),
    "refused_requests": ("num_refused", "Requests refused as invalid."),
    "committed_tokens": ("num_committed", "Tokens generated."),
    "drafted_tokens": ("num_drafted", "Tokens proposed by the drafter."),
    "verified_tokens": ("num_verified", "Drafted tokens that were sent to verification."),
    "accepted_tokens": ("num_accepted", "Drafted tokens that verification kept."),
    "drafts": ("num_drafts", "Rounds of a request in which something was drafted."),
    "catch_up_tokens": ("catch_up_tokens", "Tokens the drafter was prefilled with to catch up."),
    "prefill_tokens": ("prefill_tokens", "Prompt tokens prefilled into the target."),
    "speculation_switches": ("switches", "Changes of a request's speculation from off to on or back."),
}
PHASES = ("draft", "verify", "catch_up", "prefill", "host")


class EngineCollector(Collector):
    """Reads the statistics when Prometheus asks; the engine pays nothing in between."""

    def __init__(self, stats: EngineStats, controller: Controller | None = None) -> None:
        """``controller``: where it is guarded its guard's report is told too."""
        self.stats = stats
        self.controller = controller

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        for name, (attribute, text) in COUNTERS.items():
            yield CounterMetricFamily(f"specpilot_{name}", text, value=getattr(self.stats, attribute))
        seconds = CounterMetricFamily("specpilot_seconds", "Wall time by phase.", labels=["phase"])
        for phase in PHASES:
            seconds.add_metric([phase], getattr(self.stats, f"{phase}_seconds"))
        yield seconds
        last = self.stats.rounds[-1] if self.stats.rounds else None
        gauges = {
            "running_requests": ("Requests that hold a slot.", last.running if last else 0),
            "waiting_requests": ("Requests in the queue.", last.waiting if last else 0),
            "kv_use_ratio": ("Share of the KV cache's tokens in use.", last.kv_use if last else 0.0),
            "kv_cache_bytes": ("Memory of both KV caches.", self.stats.kv_cache_bytes),
            "wasted_draft_ratio": ("Share of drafted tokens that were not accepted.", self.stats.wasted_draft_ratio),
            "mean_accepted_length": ("Accepted drafts per draft.", self.stats.mean_accepted_length),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"specpilot_{name}", text, value=value)
        if isinstance(self.controller, GuardedController):
            yield from _guard_metrics(self.controller)


def _guard_metrics(controller: GuardedController) -> Iterator[Metric]:
    report = controller.report
    counters = {
        "fallback_rounds": ("Rounds that the guard's fallback decided or finished.", report.fallback_rounds),
        "controller_suspensions": ("Times the guard suspended the controller for faults.", report.suspensions),
        "controller_demotions": ("Times it demoted the controller for being slow.", report.demotions),
        "guard_probes": ("Comparisons of the controller with the fallback.", report.probes),
    }
    for name, (text, value) in counters.items():
        yield CounterMetricFamily(f"specpilot_{name}", text, value=value)
    faults = CounterMetricFamily("specpilot_controller_faults", "Faults of the controller by kind.", labels=["kind"])
    for kind in FAULTS:
        faults.add_metric([kind], report.faults[kind])
    yield faults
    text = "Median of the last probes: the controller's tokens per second over the fallback's."
    yield GaugeMetricFamily("specpilot_controller_speed_ratio", text, value=report.speed_ratio)


def prometheus_text(stats: EngineStats, controller: Controller | None = None) -> str:
    """The statistics in Prometheus' text format. To serve them, register an `EngineCollector` with your registry."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(stats, controller))
    return generate_latest(registry).decode()
