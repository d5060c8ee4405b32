"""Off is free and coming back costs nothing in acceptance: real vLLM, the shipped pair, against the stock drafter."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

vllm = pytest.importorskip("vllm")

from specpilot.engine.vllm import lazy_hooks  # noqa: E402
from specpilot.engine.vllm.drafter_lag import DrafterLag  # noqa: E402
from specpilot.engine.vllm.lazy_drafter import LazyDrafter, obstacle  # noqa: E402
from specpilot.engine.vllm.lazy_hooks import lazy_drafter_of  # noqa: E402
from specpilot.tests.support.vllm_engine import MAX_LENGTH, CommandedEngine, Recording  # noqa: E402

Length = Callable[[int], int]
MAX_BATCHED = 64


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    assert lazy_hooks.install()


@pytest.fixture(scope="module")
def engines(pair_directory: Path) -> tuple[CommandedEngine, CommandedEngine]:
    """Lazy and stock, with steps so small that prompts and catch-ups come in chunks."""
    options: dict[str, Any] = {"max_num_batched_tokens": MAX_BATCHED, "max_num_seqs": 8, "block_size": 32}
    return CommandedEngine(pair_directory, **options), CommandedEngine(pair_directory, lazy=False, **options)


@pytest.fixture(autouse=True)
def empty_caches(engines: tuple[CommandedEngine, CommandedEngine]) -> Iterator[None]:
    for engine in engines:
        assert engine.llm.reset_prefix_cache()
    yield


def greedy(max_tokens: int) -> Any:
    return vllm.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)


def load(prompts: list[list[int]], count: int = 10, gap: int = 7) -> list[tuple[int, list[int], Any]]:
    """``count`` requests of different lengths, one every ``gap`` steps, so that they come and go in mixed batches."""
    return [(gap * i, prompts[i], greedy(20 + 13 * (i % 5))) for i in range(count)]


def in_turns(off: int, on: int) -> Length:
    return lambda step: 0 if step % (off + on) < off else MAX_LENGTH


def at_random(seed: int) -> Length:
    lengths = [random.Random(seed + step).choice([0, 0, 0, 1, MAX_LENGTH]) for step in range(5000)]
    return lambda step: lengths[step]


def same_drafts(lazy: Recording, stock: Recording) -> bool:
    return lazy.drafts == stock.drafts and lazy.accepted == stock.accepted and len(lazy.drafts) > 10


@pytest.mark.parametrize(
    "length",
    [in_turns(3, 1), in_turns(20, 6), in_turns(90, 20), at_random(0), at_random(1)],
    ids=["3 off 1 on", "20 off 6 on", "90 off 20 on", "random", "random again"],
)
def test_after_being_off_the_drafts_and_what_is_accepted_equal_those_of_the_stock_drafter(
    engines: tuple[CommandedEngine, CommandedEngine], evaluation_prompts: list[list[int]], length: Length
) -> None:
    lazy, stock = (engine.serve(load(evaluation_prompts), length) for engine in engines)
    assert lazy.texts == stock.texts
    assert same_drafts(lazy, stock)


def test_a_catch_up_longer_than_a_step_may_be_comes_in_chunks(
    engines: tuple[CommandedEngine, CommandedEngine], evaluation_prompts: list[list[int]], monkeypatch: Any
) -> None:
    sizes: list[int] = []
    prefill = LazyDrafter._prefill

    def counted(self: LazyDrafter, chunk: list[Any], *rest: Any) -> None:
        sizes.append(sum(end - first + 1 for _, first, end in chunk))
        prefill(self, chunk, *rest)

    monkeypatch.setattr(LazyDrafter, "_prefill", counted)
    requests = [(0, prompt, greedy(60)) for prompt in evaluation_prompts[:6]]
    lazy, stock = (engine.serve(requests, lambda step: 0 if step < 40 else MAX_LENGTH) for engine in engines)
    assert same_drafts(lazy, stock)
    assert max(sizes) <= MAX_BATCHED < sum(sizes)


def test_blocks_that_were_filled_while_the_drafter_was_off_are_caught_up_when_prefix_caching_reuses_them(
    engines: tuple[CommandedEngine, CommandedEngine], evaluation_prompts: list[list[int]]
) -> None:
    long = [prompt * 3 for prompt in evaluation_prompts[:4]]
    warm = [(0, prompt, greedy(4)) for prompt in long]
    again = [(9 * i, prompt + evaluation_prompts[i][:5], greedy(40)) for i, prompt in enumerate(long + long)]
    found = []
    for engine in engines:
        engine.serve(warm, lambda step: 0)
        found.append(engine.serve(again, in_turns(5, 10)))
    assert min(found[0].cached_tokens.values()) >= 32, "prefix caching was not hit"
    assert same_drafts(*found)


def test_preempted_requests_are_caught_up(pair_directory: Path, evaluation_prompts: list[list[int]]) -> None:
    options: dict[str, Any] = {"max_num_batched_tokens": MAX_BATCHED, "max_num_seqs": 8}
    options |= {"block_size": 32, "num_gpu_blocks_override": 34}
    requests = [(3 * i, (evaluation_prompts[i] * 3)[:120], greedy(100)) for i in range(8)]
    found = [
        CommandedEngine(pair_directory, lazy=lazy, **options).serve(requests, in_turns(25, 7)) for lazy in (True, False)
    ]
    assert min(recording.preemptions for recording in found) > 0, "nothing was preempted"
    assert found[0].texts == found[1].texts
    assert same_drafts(*found)


def test_a_drafter_that_skips_without_catching_up_is_found_out(
    engines: tuple[CommandedEngine, CommandedEngine], evaluation_prompts: list[list[int]], monkeypatch: Any
) -> None:
    monkeypatch.setattr(LazyDrafter, "catch_up", lambda self, metadata, sampling: None)
    lazy, stock = (engine.serve(load(evaluation_prompts), in_turns(20, 6)) for engine in engines)
    assert lazy.texts == stock.texts, "what is accepted never depends on the drafter"
    assert not same_drafts(lazy, stock)
    assert sum(lazy.accepted.values()) < 0.9 * sum(stock.accepted.values())


def test_blocks_reused_by_prefix_caching_are_found_out_when_only_lag_is_caught_up(
    engines: tuple[CommandedEngine, CommandedEngine], evaluation_prompts: list[list[int]]
) -> None:
    """A record that forgets what was off while others filled the blocks gives other drafts."""
    prompts = [prompt * 3 for prompt in evaluation_prompts[:4]]
    found = []
    for engine in engines:
        engine.serve([(0, prompt, greedy(4)) for prompt in prompts], lambda step: 0)
        lazy = lazy_drafter_of(engine.runner)
        if lazy is not None:
            lazy.record.settle()
            with torch.inference_mode():
                lazy.record.missing.zero_()
        found.append(engine.serve([(0, prompt, greedy(40)) for prompt in prompts]))
    assert not same_drafts(*found)


def test_the_drafter_is_not_run_while_it_is_off(
    engines: tuple[CommandedEngine, CommandedEngine], evaluation_prompts: list[list[int]], monkeypatch: Any
) -> None:
    engine = engines[0]
    lazy = lazy_drafter_of(engine.runner)
    assert lazy is not None
    monkeypatch.setattr(engine.runner.drafter, "propose", None)
    before = lazy.skipped_steps
    recording = engine.serve(load(evaluation_prompts), lambda step: 0)
    assert lazy.skipped_steps - before == recording.steps
    assert not recording.drafts


def test_while_off_the_runner_is_one_without_speculation_and_afterwards_what_it_was(
    engines: tuple[CommandedEngine, CommandedEngine], evaluation_prompts: list[list[int]], monkeypatch: Any
) -> None:
    engine = engines[0]
    runner, lazy = engine.runner, lazy_drafter_of(engine.runner)
    assert lazy is not None
    before, groups, seen = runner.speculative_config, runner.attn_groups, list[tuple[bool, bool, int]]()
    prepare = type(runner)._prepare_inputs

    def prepared(self: Any, output: Any, *given: Any) -> Any:
        verifies = bool(output.scheduled_spec_decode_tokens)
        layers = sum(len(group.layer_names) for own in self.attn_groups for group in own)
        seen.append((output.num_spec_tokens_to_schedule > 0 or verifies, self.speculative_config is not None, layers))
        return prepare(self, output, *given)

    monkeypatch.setattr(type(runner), "_prepare_inputs", prepared)
    engine.serve(load(evaluation_prompts), in_turns(5, 3))
    assert {wants == has for wants, has, _ in seen} == {True}
    with_drafter, without = ({layers for _, has, layers in seen if has is own} for own in (True, False))
    drafters = sum(len(group.layer_names) for group in runner.drafter.draft_attn_groups)
    assert {layers - drafters for layers in with_drafter} == without and len(without) == 1
    assert runner.speculative_config is before and runner.attn_groups is groups


def test_a_step_that_fails_while_off_leaves_the_runner_as_it_was(
    engines: tuple[CommandedEngine, CommandedEngine],
) -> None:
    runner, lazy = engines[0].runner, lazy_drafter_of(engines[0].runner)
    assert lazy is not None
    before = runner.speculative_config, runner.attn_groups

    def fail() -> None:
        assert runner.speculative_config is None
        raise RuntimeError("a step failed")

    with pytest.raises(RuntimeError, match="a step failed"):
        lazy.set_aside(fail)
    assert (runner.speculative_config, runner.attn_groups) == before


@pytest.mark.parametrize("length", [in_turns(20, 6), at_random(3)], ids=["20 off 6 on", "random"])
def test_the_lag_counted_by_the_scheduler_is_what_the_worker_prefills(
    engines: tuple[CommandedEngine, CommandedEngine],
    evaluation_prompts: list[list[int]],
    monkeypatch: Any,
    length: Length,
) -> None:
    engine, lag = engines[0], DrafterLag()
    lazy, scheduler = lazy_drafter_of(engine.runner), engine.core.scheduler
    assert lazy is not None
    counted = 0
    before, after = scheduler._update_after_schedule, scheduler.update_from_output

    def update_after_schedule(output: Any) -> None:
        nonlocal counted
        if length(engine.steps):
            counted += sum(lag(scheduler.requests[request]) for request in output.num_scheduled_tokens)
        before(output)

    def update_from_output(output: Any, given: Any) -> Any:
        found = after(output, given)
        lag.entered(output, scheduler.requests)
        return found

    monkeypatch.setattr(scheduler, "_update_after_schedule", update_after_schedule)
    monkeypatch.setattr(scheduler, "update_from_output", update_from_output)
    prefilled = lazy.caught_up_tokens
    engine.serve(load(evaluation_prompts), length)
    assert counted == lazy.caught_up_tokens - prefilled > 0


def test_installing_twice_wraps_once() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    def hooks() -> list[Any]:
        return [getattr(GPUModelRunner, name) for name in lazy_hooks._HOOKS]

    wrapped = hooks()
    assert lazy_hooks.install()
    assert hooks() == wrapped


def test_an_engine_that_did_not_ask_for_it_has_the_stock_drafter(
    engines: tuple[CommandedEngine, CommandedEngine],
) -> None:
    assert lazy_drafter_of(engines[0].runner) is not None
    assert lazy_drafter_of(engines[1].runner) is None


def test_what_cannot_be_lazy_is_refused_by_name(engines: tuple[CommandedEngine, CommandedEngine]) -> None:
    import copy

    config = engines[0].runner.vllm_config
    assert obstacle(config) is None
    other = copy.copy(config)
    other.parallel_config = copy.copy(config.parallel_config)
    other.parallel_config.data_parallel_size = 2
    assert "data parallelism" in str(obstacle(other))
    other = copy.copy(config)
    other.speculative_config = None
    assert "draft_model" in str(obstacle(other))


def test_a_vllm_without_the_hooks_is_named_and_left_alone() -> None:
    class WithoutHooks:
        def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> None: ...
        def sample_tokens(self, grammar_output: Any) -> None: ...

    assert lazy_hooks._missing_hook(WithoutHooks) == "GPUModelRunner.propose_draft_token_ids"
