"""Off is free: at K = 0 vLLM's draft model is not run, and when K > 0 returns it first prefills what it missed.

Stock vLLM runs one forward of the drafter at K = 0 to keep its cache in step (``v1/spec_decode/llm_base_proposer.py``,
`propose`). What the drafter has missed is kept per KV slot, not per request: `DrafterRecord` notes for every slot the
token that the target wrote there and whether the drafter has written it too. A slot says the same to every request
that owns it, so requests that come and go, preemption, chunked prefill, and blocks that prefix caching hands on
without the drafter's keys and values need no case of their own.

With synchronous scheduling a step that neither verifies drafts nor wants any is one without speculation: the model
runner is shown none (`LazyDrafter.set_aside`), so that it prepares no verification, no drafter's attention, and no
drafts of length 0.

For ``method="draft_model"`` on model runner V1, one data, pipeline and context rank. EAGLE and MTP need the target's
hidden states of the missed tokens, which are gone: they stay as vLLM has them, and so does all that `obstacle` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .drafter_record import DrafterRecord, Span, chunks, missed_spans


class LazyDrafter:
    """Runs the draft model of one model runner only when drafts are wanted."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.drafter = runner.drafter
        self.block_size = int(runner.drafter.block_size)
        self.record = DrafterRecord(runner.kv_cache_config.num_blocks * self.block_size, runner.device)
        self.skipped_steps = 0
        """Steps in which the drafter was not run."""
        self.caught_up_tokens = 0
        """Tokens that it prefilled later because of these."""
        self.is_aside = False
        """Whether the step under way is one without speculation."""
        self._in_step: set[str] = set()
        self._lacking: list[int] = []
        self._slots = torch.empty(0, dtype=torch.int64)
        # Recurrent models read states that depend on whether a step can verify drafts.
        self._may_set_aside = not (runner.use_async_scheduling or runner.model_config.is_hybrid)
        self._groups = runner.attn_groups, _groups_without(runner.attn_groups, runner.drafter.draft_attn_groups)
        self._speculation = runner.speculative_config

    def begin(self, scheduled: Any) -> bool:
        """A step begins, as ``scheduled`` (``SchedulerOutput``). Returns `is_aside`."""
        self.is_aside = (
            self._may_set_aside
            and scheduled.num_spec_tokens_to_schedule == 0
            and not scheduled.scheduled_spec_decode_tokens
        )
        return self.is_aside

    def set_aside(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """``run(*arguments)``, part of a step, with a model runner that has no speculation."""
        runner = self.runner
        runner.speculative_config, runner.attn_groups = None, self._groups[1]
        try:
            return run(*arguments)
        finally:
            runner.speculative_config, runner.attn_groups = self._speculation, self._groups[0]

    def note_target(self, scheduled: Any) -> None:
        """Note what the target forward of a step set aside wrote."""
        count = scheduled.total_num_scheduled_tokens
        slots = self.runner.input_batch.block_table[0].slot_mapping.gpu[:count]
        self.record.note(slots.tolist(), self.runner.input_ids.gpu[:count].tolist())
        self._in_step.clear()  # Whoever lacks nothing all the same is found to when the drafter runs again.
        self.skipped_steps += 1

    @torch.inference_mode()
    def target_ran(self, state: Any) -> None:
        """Note what this step's target forward wrote. ``state``: the runner's ``ExecuteModelState``."""
        output, metadata = state.scheduler_output, state.spec_decode_common_attn_metadata
        if metadata is None:
            self._in_step.clear()
            return
        num_tokens = output.total_num_scheduled_tokens
        self._slots = metadata.slot_mapping[:num_tokens]
        self.record.target_wrote(self._slots, self.runner.input_ids.gpu[:num_tokens])
        self._in_step.difference_update(output.finished_req_ids, output.scheduled_cached_reqs.resumed_req_ids)
        self._in_step.difference_update(request.req_id for request in output.scheduled_new_reqs)
        request_ids = self.runner.input_batch.req_ids
        self._lacking = [row for row, request in enumerate(request_ids) if request not in self._in_step]
        self._in_step.difference_update(request_ids)

    def skip(self, sampled_token_ids: Any, num_requests: int) -> Tensor:
        """What `propose_draft_token_ids` gives at K = 0: no drafts, [B, 0]."""
        self.skipped_steps += 1
        runner = self.runner
        if runner.valid_sampled_token_count_event is not None and isinstance(sampled_token_ids, Tensor):
            # Asynchronous scheduling reads the next input from here (gpu_model_runner.py, `sample_tokens`).
            runner._copy_valid_sampled_token_count(
                *self.drafter.prepare_next_token_ids_padded(
                    sampled_token_ids, runner.requests, runner.input_batch, runner.discard_request_mask.gpu
                )
            )
        return torch.empty(num_requests, 0, dtype=torch.int64, device=runner.device)

    def catch_up(self, metadata: Any, sampling_metadata: Any) -> None:
        """Prefill what the drafter lacks before this step's first token. ``metadata``: the step's attention's."""
        if self._lacking:
            scheduled = metadata.query_start_loc[1:] - metadata.query_start_loc[:-1]
            ends = (metadata.seq_lens - scheduled)[self._lacking].tolist()
            spans = missed_spans(self.record.missing, metadata.block_table_tensor, self.block_size, self._lacking, ends)
            for chunk in chunks(spans, self.drafter.max_num_tokens):
                self._prefill(chunk, metadata, sampling_metadata)

    def drafted(self) -> None:
        """Stock vLLM has drafted in this step: the drafter has what the target has."""
        self.record.drafter_wrote(self._slots)
        self._in_step.update(self.runner.input_batch.req_ids)

    def _prefill(self, chunk: list[Span], metadata: Any, sampling_metadata: Any) -> None:
        """One drafter forward over ``chunk``: the proposer's own pass at K = 0, which only fills the cache."""
        device, size = self.record.missing.device, self.block_size
        rows = torch.tensor([row for row, _, _ in chunk], device=device)
        ends = torch.tensor([end for _, _, end in chunk], device=device)
        lengths = torch.tensor([end - first for _, first, end in chunk], device=device)
        positions = torch.cat([torch.arange(first, end, device=device) for _, first, end in chunk])
        table = metadata.block_table_tensor[rows]
        owner = torch.repeat_interleave(torch.arange(len(chunk), device=device), lengths)
        slots = table[owner, positions // size].long() * size + positions % size
        after = table[torch.arange(len(chunk), device=device), ends // size].long() * size + ends % size
        self.drafter.propose(
            num_speculative_tokens=0,
            target_token_ids=self.record.tokens[slots],
            target_positions=positions,
            target_hidden_states=None,
            next_token_ids=self.record.tokens[after],
            token_indices_to_sample=None,
            common_attn_metadata=_attention_metadata(type(metadata), chunk, table, slots),
            sampling_metadata=sampling_metadata,
        )
        self.record.drafter_wrote(slots)
        self.caught_up_tokens += len(slots)


def _groups_without(groups: list[list[Any]], drafters: list[Any]) -> list[list[Any]]:
    """The runner's attention groups, without those of the drafter's layers alone."""
    layers = {name for group in drafters for name in group.layer_names}
    return [[group for group in own if not layers.issuperset(group.layer_names)] for own in groups]


def _attention_metadata(kind: Any, chunk: list[Span], table: Tensor, slots: Tensor) -> Any:
    """``CommonAttentionMetadata`` of a prefill of ``chunk``; ``table`` [R, blocks], ``slots`` [N]."""
    lengths = torch.tensor([end - first for _, first, end in chunk], dtype=torch.int32)
    ends = torch.tensor([end for _, _, end in chunk], dtype=torch.int32)
    starts = torch.zeros(len(chunk) + 1, dtype=torch.int32)
    starts[1:] = lengths.cumsum(0)
    return kind(
        query_start_loc=starts.to(slots.device),
        query_start_loc_cpu=starts,
        seq_lens=ends.to(slots.device),
        seq_lens_cpu_upper_bound=ends.clone(),
        num_reqs=len(chunk),
        num_actual_tokens=len(slots),
        max_query_len=int(lengths.max()),
        max_seq_len=int(ends.max()),
        block_table_tensor=table,
        slot_mapping=slots,
        causal=True,
    )


def obstacle(vllm_config: Any) -> str | None:
    """Why catch-up cannot be lazy with ``vllm_config`` (a ``VllmConfig``), in words; None if it can."""
    speculative, parallel = vllm_config.speculative_config, vllm_config.parallel_config
    if speculative is None or speculative.method != "draft_model":
        return f"the speculative method is {getattr(speculative, 'method', None)!r}, not 'draft_model'"
    cannot = {
        "data parallelism": parallel.data_parallel_size > 1,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": getattr(parallel, "decode_context_parallel_size", 1) > 1,
        "parallel drafting": speculative.parallel_drafting,
        "a multimodal target": vllm_config.model_config.is_multimodal_model,
        "prompt embeddings": getattr(vllm_config.model_config, "enable_prompt_embeds", False),
        "KV transfer": vllm_config.kv_transfer_config is not None,
    }
    return next((f"{what} is not handled" for what, true in cannot.items() if true), None)


def runner_obstacle(runner: Any) -> str | None:
    """Why this model runner's drafter cannot be lazy; None if it can. Asked once its caches exist."""
    reason = obstacle(runner.vllm_config)
    if reason is None:
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        groups = runner.drafter.draft_attn_groups
        if runner.drafter.kv_cache_gid != 0 or not all(isinstance(g.kv_cache_spec, FullAttentionSpec) for g in groups):
            reason = "the draft model's cache is not that of full attention in the first group"
        elif runner.input_batch.block_table[0].block_size != runner.drafter.block_size:
            reason = "target and drafter have blocks of different size"
    return reason
