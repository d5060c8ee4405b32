"""The autoregressive drafter: a small causal LM with a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .draft_growth import ChosenTokens, GrowingDraft
from .drafter import Draft, DraftContext, Drafter
from .forward_batch import ForwardBatch, Segment, build_batch, build_step
from .level_features import draft_level
from .models import ModelRunner
from .ngram_index import TextAgreement
from .noise import DRAFT_STREAM
from .request import Request
from .sampler import RowSampling, temper
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
        self._agreement = TextAgreement()

    def start(self, request: Request) -> None:
        """See `Drafter.start`. The prompt itself is lag: nothing is computed until the first draft."""
        self._seen[request.slot] = 0
        self._agreement.forget(request)

    def forget(self, request: Request) -> None:
        """See `Drafter.forget`."""
        self._seen[request.slot] = 0
        self._agreement.forget(request)

    def move_slot(self, source: int, destination: int) -> None:
        """See `Drafter.move_slot`."""
        self.cache.move_slot(source, destination, self._seen[source])
        self._seen[destination] = self._seen[source]

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
        active, pending, step = np.arange(len(requests)), list[ChosenTokens](), None
        lengths, bound = lengths.copy(), lengths
        shortest = 0 if context.asked_levels else int(lengths.min())  # until there all go on, unasked
        logits = self._first_level(requests)
        for depth in range(1, int(bound.max()) + 1):
            asks = depth <= context.asked_levels
            everyone = context.sampling.all_greedy or len(active) == len(requests)
            sampling = context.sampling if everyone else context.sampling.take(active)
            known = logits if logits.shape[1] == self.vocab_size else logits[:, : self.vocab_size]
            tempered = temper(known, sampling)
            scores = self._perturbed(tempered, requests, active, depth, context, sampling)
            probability = tempered.double().softmax(-1).cpu().numpy() if context.draws else None
            drawn = sampling.temperature > 0
            with_margin = asks and "margin" in context.level_features
            chosen = ChosenTokens.choose(active, scores, self.num_candidates, probability, drawn, with_margin)
            pending.append(chosen)
            if depth < shortest:
                step = self._next_step(step, requests, active, None, depth, chosen.tokens[:, 0])
                logits = self.runner.forward(step, self.cache)
                continue
            able = bound[active] > depth if asks else None
            if able is not None and (context.asks_last_level or able.any()):
                if "agreement" in context.level_features:
                    _add_levels(pending, drafts)
                asked, margin = active, chosen.margin
                if not (context.asks_last_level or able.all()):
                    asked, tempered = active[able], tempered[torch.from_numpy(able).to(tempered.device)]
                    margin = None if margin is None else margin[able]
                told = self._ask(context, depth, requests, drafts, asked, tempered, margin)
                lengths[asked] = np.minimum(told, bound[asked])
            going = lengths[active] > depth
            if not going.any():
                break
            step = self._next_step(step, requests, active, going, depth, chosen.tokens[:, 0])
            active = active[going]
            if depth >= context.asked_levels:
                shortest = int(lengths[active].min())
            logits = self.runner.forward(step, self.cache)
        _add_levels(pending, drafts)
        return [draft.finish() for draft in drafts]

    def _ask(
        self,
        context: DraftContext,
        depth: int,
        requests: Sequence[Request],
        drafts: Sequence[GrowingDraft],
        asked: NDArray[np.int64],
        tempered: torch.Tensor,
        margin: NDArray[np.float64] | None,
    ) -> NDArray[np.int64]:
        """The controller's answer for the requests ``asked`` ``[A]``, of which the tensors' rows are."""
        agreement = None
        if "agreement" in context.level_features:
            agreement = [self._agreement.of(requests[index], drafts[index].drafted) for index in asked.tolist()]
        if context.after_level is not None:
            unknown = [np.nan] * len(asked)
            told = unknown if margin is None else margin, unknown if agreement is None else agreement
            return context.after_level(depth, asked, *(np.asarray(own, dtype=np.float64) for own in told))
        return context.new_lengths(draft_level(depth, asked, tempered, margin, context.level_features, agreement))

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

    def _first_level(self, requests: Sequence[Request]) -> torch.Tensor:
        """Feed the one or two committed tokens the drafter has not seen; logits after the last, ``[B, vocab]``."""
        segments, last, total = [], [], 0
        for request in requests:
            seen = self._seen[request.slot]
            tokens = request.token_ids[seen:]
            assert len(tokens) <= 2, f"drafter lags by {len(tokens) - 1} tokens; catch_up must come first"
            segments.append(Segment(request.slot, seen, TokenTree.chain(tokens)))
            total += len(tokens)
            last.append(total - 1)
        rows = None if total == len(requests) else torch.tensor(last, device=self.runner.device)
        return self.runner.forward(build_batch(segments, self.cache.slot_length, self.runner.device), self.cache, rows)

    def _next_step(
        self,
        step: ForwardBatch | None,
        requests: Sequence[Request],
        active: NDArray[np.int64],
        going: NDArray[np.bool_] | None,
        depth: int,
        tokens: torch.Tensor,
    ) -> ForwardBatch:
        """Feed ``tokens`` ``[A]``, the level's first candidates, to those of the active that go on (None: to all)."""
        if going is None or going.all():
            if step is not None:
                return step.advance(tokens)
        else:
            active, tokens = active[going], tokens[torch.from_numpy(going)]
        chosen = [requests[index] for index in active.tolist()]
        contexts = [len(request.token_ids) + depth - 1 for request in chosen]
        slots = [request.slot for request in chosen]
        return build_step(tokens, slots, contexts, self.cache.slot_length, self.runner.device)

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


def _add_levels(pending: list[ChosenTokens], drafts: Sequence[GrowingDraft]) -> None:
    for level in pending:
        level.add_to(drafts)
    pending.clear()
