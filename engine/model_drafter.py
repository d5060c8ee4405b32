"""The autoregressive drafter: a small causal LM with a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .draft_growth import ChosenTokens, GrowingDraft
from .drafter import Draft, DraftContext, Drafter
from .forward_batch import ForwardBatch, Segment, build_batch, build_step
from .level_questions import LevelQuestions
from .models import ModelRunner
from .noise import DRAFT_STREAM
from .request import Request
from .sampler import RowSampling, temper
from .text_agreement import TextAgreement
from .token_tree import TokenTree


class ModelDrafter(Drafter):
    """Drafts token by token; ``num_candidates`` > 1 adds the runners-up of every level as leaves.

    In ``coupled`` mode candidates are the best perturbed logits under the target's own noise; in ``rejection`` mode
    they are drawn without replacement from the drafter's distribution (Gumbel top-k, arXiv 1903.06059).
    """

    name = "model"

    def __init__(
        self,
        runner: ModelRunner,
        num_slots: int,
        slot_length: int,
        vocab_size: int,
        num_candidates: int = 1,
        catch_up_chunk: int = 256,
    ) -> None:
        self.runner = runner
        self.cache = runner.new_cache(num_slots, slot_length)
        self.vocab_size = vocab_size
        self.num_candidates = num_candidates
        self.catch_up_chunk = catch_up_chunk
        self.num_bytes = self.cache.num_bytes
        self._seen = [0] * num_slots  # committed tokens in the drafter's cache, per slot
        self._agreement = TextAgreement(num_slots, slot_length)

    def start(self, request: Request) -> None:
        """See `Drafter.start`. The prompt itself is lag: nothing is computed until the first draft."""
        self._seen[request.slot] = 0
        self._agreement.forget(request.slot)

    def forget(self, request: Request) -> None:
        """See `Drafter.forget`."""
        self._seen[request.slot] = 0
        self._agreement.forget(request.slot)

    def move_slot(self, source: int, destination: int) -> None:
        """See `Drafter.move_slot`."""
        self.cache.move_slot(source, destination, self._seen[source])
        self._seen[destination] = self._seen[source]
        self._agreement.move_slot(source, destination)

    def lag(self, request: Request) -> int:
        """See `Drafter.lag`."""
        return len(request.token_ids) - 1 - self._seen[request.slot]

    def catch_up(self, requests: Sequence[Request]) -> int:
        """See `Drafter.catch_up`: prefills the drafter in chunks of at most ``catch_up_chunk`` tokens a pass."""
        total = 0
        while behind := [request for request in requests if self.lag(request) > 1]:
            budget, segments = self.catch_up_chunk, []
            for request in behind:
                seen = self._seen[request.slot]
                count = min(self.lag(request), budget)
                if count == 0:
                    break
                segments.append(Segment(request.slot, seen, TokenTree.chain(request.token_ids[seen : seen + count])))
                self._seen[request.slot] += count
                budget -= count
            batch = build_batch(segments, self.cache.slot_length, self.runner.device)
            self.runner.forward(batch, self.cache, rows=torch.empty(0, dtype=torch.long))
            total += self.catch_up_chunk - budget
        return total

    @torch.inference_mode()
    def propose(self, requests: Sequence[Request], lengths: NDArray[np.int64], context: DraftContext) -> list[Draft]:
        """See `Drafter.propose`. Tokens stay on the device until the last level, unless the controller asks.

        At batch 1 a level of a small drafter takes less than a millisecond: what is the same for all levels is worked
        out before them, and what only some rounds need is skipped in the others.
        """
        drafts = [GrowingDraft([request.token_ids[-1]]) for request in requests]
        active, levels = np.arange(len(requests)), list[ChosenTokens]()
        questions, shortest = None, int(lengths.min())  # until there all go on, unasked
        if context.asked_levels:
            questions, shortest = LevelQuestions(context, requests, lengths, self._agreement), 0
        lengths, longest = lengths.copy(), int(lengths.max())
        step, last = self._first_level(requests)
        logits = self.runner.forward(step, self.cache, last)
        for depth in range(1, longest + 1):
            asks = questions is not None and depth <= context.asked_levels
            everyone = context.sampling.all_greedy or len(active) == len(requests)
            sampling = context.sampling if everyone else context.sampling.take(active)
            known = logits if logits.shape[1] == self.vocab_size else logits[:, : self.vocab_size]
            tempered = temper(known, sampling)
            scores = self._perturbed(tempered, requests, active, depth, context, sampling)
            probability = tempered.double().softmax(-1).cpu().numpy() if context.draws else None
            drawn = sampling.temperature > 0
            with_margin = asks and "margin" in context.level_features
            chosen = ChosenTokens.choose(active, scores, self.num_candidates, probability, drawn, with_margin)
            levels.append(chosen)
            tokens = chosen.tokens[:, 0]
            if depth >= shortest:
                if asks and questions is not None:
                    lengths[active] = questions.after(depth, active, chosen, tempered)
                going = lengths[active] > depth
                if False in going.tolist():  # Of a small batch the numbers take less time than calls of NumPy.
                    active, kept = active[going], torch.from_numpy(np.flatnonzero(going)).to(tokens.device)
                    if not len(active):
                        break
                    tokens, last = tokens.index_select(0, kept), kept if last is None else last.index_select(0, kept)
                if depth >= context.asked_levels:
                    shortest = int(lengths[active].min())
            step, last = self._next_step(step, last, requests, active, depth, tokens), None
            logits = self.runner.forward(step, self.cache)
        for level in levels:
            level.add_to(drafts)
        return [draft.finish() for draft in drafts]

    def commit(self, request: Request, draft: Draft, path: tuple[int, ...]) -> None:
        """See `Drafter.commit`: what the drafter fed itself stays valid as far as its main chain was accepted."""
        if draft.depth == 0:
            return
        kept = 0
        for node, main in zip(path, draft.main_chain, strict=False):
            if node != main:
                break
            kept += 1
        # The last drafted token was never fed back, so at most depth - 1 of the drafts are in the cache. Where the
        # controller trimmed, what the drafter fed itself beyond the verified tokens is overwritten like a rejection.
        self._seen[request.slot] = len(request.token_ids) + min(kept, draft.depth - 1)

    def _first_level(self, requests: Sequence[Request]) -> tuple[ForwardBatch, torch.Tensor | None]:
        """The pass over the one or two committed tokens the drafter has not seen, and which are the last ones ``[B]``.

        None: all are.
        """
        segments, last, total = [], [], 0
        for request in requests:
            seen = self._seen[request.slot]
            tokens = request.token_ids[seen:]
            assert len(tokens) <= 2, f"drafter lags by {len(tokens) - 1} tokens; catch_up must come first"
            segments.append(Segment(request.slot, seen, TokenTree.chain(tokens)))
            total += len(tokens)
            last.append(total - 1)
        batch = build_batch(segments, self.cache.slot_length, self.runner.device)
        return batch, None if total == len(requests) else torch.tensor(last, device=self.runner.device)

    def _next_step(
        self,
        step: ForwardBatch,
        last: torch.Tensor | None,
        requests: Sequence[Request],
        active: NDArray[np.int64],
        depth: int,
        tokens: torch.Tensor,
    ) -> ForwardBatch:
        """Feed ``tokens`` ``[A]`` to the ``active``, after their ``last`` ones in ``step``."""
        if len(active) == 1 and step.rows > 1:  # A batch of its own attends over one row of the cache.
            request = requests[active.item()]
            context = len(request.token_ids) + depth - 1
            return build_step(tokens, [request.slot], [context], self.cache.slot_length, self.runner.device)
        return step.advance(tokens, last)

    def _perturbed(
        self,
        tempered: torch.Tensor,
        requests: Sequence[Request],
        active: NDArray[np.int64],
        depth: int,
        context: DraftContext,
        sampling: RowSampling,
    ) -> torch.Tensor:
        if sampling.all_greedy:
            return tempered
        if context.shared_noise is not None:
            noise = context.shared_noise(active, depth)
        else:
            positions = np.asarray([len(requests[index].token_ids) + depth - 1 for index in active])
            noise = sampling.noise(positions, self.vocab_size, tempered.device, DRAFT_STREAM, context.draw)
        return tempered if noise is None else tempered + noise
