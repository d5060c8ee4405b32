"""The Prometheus text can be parsed, and says what the statistics say."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from specpilot.controllers import ConstantController, Controller, Decision, GuardedController, RoundState
from specpilot.engine import Engine, EngineConfig, EngineStats, Pair, RequestError, SamplingParams, prometheus_text
from specpilot.engine.metrics import COUNTERS, PHASES


def samples(stats: EngineStats, controller: Controller | None = None) -> dict[str, float]:
    """Every sample by name, phases as ``name/phase``; each family has help and one type."""
    found = {}
    for family in text_string_to_metric_families(prometheus_text(stats, controller)):
        assert family.documentation and family.type in {"counter", "gauge"}
        for sample in family.samples:
            name = "/".join([sample.name, *sample.labels.values()])
            assert name not in found and sample.name.startswith("specpilot_")
            found[name] = sample.value
    return found


@pytest.fixture
def engine(tiny_pair: Pair) -> Engine:
    return Engine(tiny_pair, EngineConfig(max_num_seqs=2, max_model_len=64, num_candidates=2), ConstantController(4))


def test_metrics_are_the_statistics(engine: Engine) -> None:
    engine.generate([[1, 2, 3], [], [4, 5], [6]], SamplingParams(max_tokens=20, ignore_eos=True))
    found, stats = samples(engine.stats), engine.stats
    for name, (attribute, _) in COUNTERS.items():
        assert found[f"specpilot_{name}_total"] == getattr(stats, attribute) >= 0
    for phase in PHASES:
        assert found[f"specpilot_seconds_total/{phase}"] == pytest.approx(getattr(stats, f"{phase}_seconds"))
    assert sum(found[f"specpilot_seconds_total/{phase}"] for phase in PHASES) == pytest.approx(stats.total_seconds)
    assert found["specpilot_committed_tokens_total"] == 60
    assert found["specpilot_refused_requests_total"] == 1 and found["specpilot_finished_requests_total"] == 3
    assert found["specpilot_mean_accepted_length"] == pytest.approx(stats.num_accepted / stats.num_drafts)
    assert found["specpilot_wasted_draft_ratio"] == pytest.approx(1 - stats.num_accepted / stats.num_drafted)
    assert found["specpilot_kv_cache_bytes"] == stats.kv_cache_bytes > 0


def test_metrics_of_an_engine_that_has_done_nothing(engine: Engine) -> None:
    found = samples(engine.stats)
    assert found.pop("specpilot_kv_cache_bytes") > 0
    assert not any(found.values())


def test_gauges_follow_the_requests(engine: Engine) -> None:
    ids = [engine.add_request([1, 2, 3, 4], SamplingParams(max_tokens=30, ignore_eos=True)) for _ in range(5)]
    engine.step()
    found = samples(engine.stats)
    assert found["specpilot_running_requests"] == 2 and found["specpilot_waiting_requests"] == 3
    assert 0 < found["specpilot_kv_use_ratio"] < 1
    for request_id in ids:
        engine.cancel(request_id)
    engine.step()
    found = samples(engine.stats)
    assert found["specpilot_running_requests"] == found["specpilot_waiting_requests"] == 0
    assert found["specpilot_kv_use_ratio"] == 0


def test_refusals_are_counted(engine: Engine) -> None:
    with pytest.raises(RequestError):
        engine.add_request([])
    assert samples(engine.stats)["specpilot_refused_requests_total"] == 1


def test_totals_are_the_sum_of_the_rounds(engine: Engine) -> None:
    engine.generate([[1, 2, 3]] * 6, SamplingParams(max_tokens=15, temperature=1.0))
    stats, rounds = engine.stats, list(engine.stats.rounds)
    assert [record.index for record in rounds] == list(range(stats.num_rounds))
    assert stats.num_drafted == sum(sum(record.num_drafted) for record in rounds)
    assert stats.num_verified == sum(sum(record.num_verified) for record in rounds) == stats.num_drafted
    assert stats.num_accepted == sum(sum(record.accepted_length) for record in rounds)
    assert stats.prefill_tokens == sum(record.prefill_tokens for record in rounds) == 6 * 2
    assert stats.total_seconds == pytest.approx(sum(record.total_seconds for record in rounds))
    for record in rounds:
        assert all(kept <= drafted for kept, drafted in zip(record.accepted_length, record.num_drafted, strict=True))
        assert 0 < record.num_committed <= sum(record.accepted_length) + len(record.request_ids)
        assert min(record.draft_seconds, record.verify_seconds, record.host_seconds, record.prefill_seconds) >= 0


class FailingController(ConstantController):
    def decide(self, state: RoundState) -> Decision:
        if state.num_generated.max() % 2:
            raise RuntimeError("no")
        return super().decide(state)


def test_the_guard_of_a_controller_is_told(engine: Engine) -> None:
    guarded = GuardedController(FailingController(0))
    engine.controller = guarded
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))
    found = samples(engine.stats, engine.controller)
    assert found["specpilot_fallback_rounds_total"] == guarded.report.fallback_rounds == 2
    assert found["specpilot_controller_faults_total/error"] == 2
    assert found["specpilot_controller_faults_total/overrun"] == found["specpilot_controller_demotions_total"] == 0
    assert "specpilot_fallback_rounds_total" not in samples(engine.stats)
