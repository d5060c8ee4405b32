"""An in-process vLLM whose speculation length is commanded step by step and whose drafts are written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_LENGTH = 4
"""Largest number of speculative tokens."""


@dataclass
class Recording:
    """What an engine did while it served. Keys are requests in the order in which they were added."""

    texts: dict[int, list[int]] = field(default_factory=dict)
    drafts: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Draft by (request, number of tokens before it)."""
    accepted: dict[tuple[int, int], int] = field(default_factory=dict)
    """Accepted of the draft under the same key."""
    cached_tokens: dict[int, int] = field(default_factory=dict)
    preemptions: int = 0
    steps: int = 0


class CommandedEngine:
    """vLLM with the pair in ``directory`` as target and draft model; ``drafter=None``: without speculation."""

    def __init__(self, directory: Path, drafter: str | None = "drafter", lazy: bool = True, **options: Any) -> None:
        from vllm import LLM

        if drafter is not None:
            options["speculative_config"] = {
                "method": "draft_model",
                "model": str(directory / drafter),
                "num_speculative_tokens": MAX_LENGTH,
                "num_speculative_tokens_per_batch_size": [[1, 4096, MAX_LENGTH]],
                **options.pop("speculative", {}),
            }
        self.llm = LLM(
            str(directory / "target"),
            skip_tokenizer_init=True,
            max_model_len=1024,
            dtype="float32",
            enforce_eager=True,
            additional_config={"specpilot": {"lazy_catch_up": lazy, "fix_cpu_sampling": True}},
            disable_log_stats=True,
            **{"max_num_seqs": 16, **options},
        )
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.runner = self.core.model_executor.driver_worker.worker.model_runner
        self._length: Callable[[int], int] = lambda step: MAX_LENGTH
        self._recording = Recording()
        self._numbers: dict[str, int] = {}
        self._command()

    @property
    def steps(self) -> int:
        """Steps of the present `serve` so far."""
        return self._recording.steps

    def serve(
        self,
        requests: Iterable[tuple[int, list[int], Any]],
        length: Callable[[int], int] = lambda step: MAX_LENGTH,
        max_steps: int = 5000,
    ) -> Recording:
        """Serve ``requests`` (step of arrival, prompt, SamplingParams); ``length``: K of a step. Until all are done."""
        recording = self._recording = Recording()
        self._length, self._numbers = length, {}
        waiting = sorted(enumerate(requests), key=lambda item: item[1][0])
        engine = self.llm.llm_engine
        while waiting or engine.has_unfinished_requests():
            while waiting and (waiting[0][1][0] <= recording.steps or not engine.has_unfinished_requests()):
                number, (_, prompt, parameters) = waiting.pop(0)
                engine.add_request(str(number), {"prompt_token_ids": prompt}, parameters)
            for output in engine.step():
                if output.finished:
                    number = int(output.request_id)
                    recording.texts[number] = list(output.outputs[0].token_ids)
                    recording.cached_tokens[number] = output.num_cached_tokens or 0
            assert recording.steps < max_steps, "the engine does not finish"
        return recording

    def _command(self) -> None:
        """Set K where the plugin's scheduler sets it, and write down what comes back (v1/core/sched/scheduler.py)."""
        scheduler = self.core.scheduler
        after, drafted, preempt = (
            scheduler._update_after_schedule,
            scheduler.update_draft_token_ids,
            scheduler._preempt_request,
        )
        finish = scheduler.update_from_output

        def update_after_schedule(output: Any) -> None:
            output.num_spec_tokens_to_schedule = self._length(self._recording.steps)
            self._recording.steps += 1
            after(output)

        def update_draft_token_ids(drafts: Any) -> None:
            drafted(drafts)
            for request_id, draft in zip(drafts.req_ids, drafts.draft_token_ids, strict=True):
                request = scheduler.requests.get(request_id)
                if request is not None and draft and request.spec_token_ids:
                    key = (int(request.request_id.split("-")[0]), request.num_tokens)
                    self._recording.drafts[key] = list(draft)

        def update_from_output(output: Any, given: Any) -> Any:
            for request_id, draft in output.scheduled_spec_decode_tokens.items():
                request = scheduler.requests[request_id]
                sampled = given.sampled_token_ids[given.req_id_to_index[request_id]]
                key = (int(request.request_id.split("-")[0]), request.num_tokens)
                self._recording.accepted[key] = len(sampled) - 1
                assert len(sampled) - 1 <= len(draft)
            return finish(output, given)

        def preempt_request(*arguments: Any, **named: Any) -> None:
            self._recording.preemptions += 1
            preempt(*arguments, **named)

        scheduler._update_after_schedule = update_after_schedule
        scheduler.update_draft_token_ids = update_draft_token_ids
        scheduler.update_from_output = update_from_output
        scheduler._preempt_request = preempt_request
