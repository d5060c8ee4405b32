"""The autoregressive drafter: a small causal LM with a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ..controllers import DraftLevel
from .drafter import Draft, DraftContext, Drafter
from .forward_batch import Segment, build_batch, build_step
from .models import ModelRunner
from .noise import DRAFT_STREAM
from .request import Request
from .sampler import RowSampling, temper
from .token_tree import TokenTree


@dataclass
class _Growing:
    """A draft under construction: a chain of first candidates with the other candidates as leaves beside it."""

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    main_chain: list[int] = field(default_factory=list)
    probabilities: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def add_level(self, candidates: list[int], probability: NDArray[np.float64] | None) -> None:
        parent = self.main_chain[-1] if self.main_chain else 0
        self.main_chain.append(len(self.tokens))
        self.tokens.extend(candidates)
        self.parents.extend([parent] * len(candidates))
        if probability is not None:
            self.probabilities[parent] = probability

    def finish(self) -> Draft:
        tree = TokenTree(self.tokens, self.parents)
        return Draft(tree, tuple(self.main_chain), self.probabilities, len(self.main_chain))


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

    def start(self, request: Request) -> None:
        """See `Drafter.start`. The prompt itself is lag: nothing is computed until the first draft."""
        self._seen[request.slot] = 0

    def forget(self, request: Request) -> None:
        """See `Drafter.forget`."""
        self._seen[request.slot] = 0

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

    def propose(self, requests: Sequence[Request], lengths: NDArray[np.int64], context: DraftContext) -> list[Draft]:
        """See `Drafter.propose`."""
        drawn = context.shared_noise is None and not context.sampling.all_greedy
        if self.num_candidates == 1 and context.keep_drafting is None and not drawn:
            return self._propose_chains(requests, lengths, context)
        drafts = [_Growing([request.token_ids[-1]]) for request in requests]
        active = np.arange(len(requests))
        logits = self._first_level(requests)
        for depth in range(1, int(lengths.max()) + 1):
            sampling = context.sampling.take(active)
            tempered = temper(logits[:, : self.vocab_size], sampling)
            scores = self._perturbed(tempered, requests, active, depth, context, sampling)
            candidates = self._candidates(scores)
            sampled = context.shared_noise is None and not sampling.all_greedy
            probability = tempered.double().softmax(-1).cpu().numpy() if sampled else None
            for row, index in enumerate(active):
                drawn = probability is not None and sampling.temperature[row] > 0
                drafts[index].add_level(candidates[row], probability[row] if drawn else None)  # type: ignore[index]
            going = lengths[active] > depth
            if going.any() and context.keep_drafting is not None:
                rows = np.flatnonzero(going)
                level = _confidence(depth, active[rows], tempered, scores, rows)
                going[rows] = context.keep_drafting(level)
            active = active[going]
            if not active.size:
                break
            logits = self._next_level(requests, drafts, active, depth)
        return [draft.finish() for draft in drafts]

    def _propose_chains(
        self, requests: Sequence[Request], lengths: NDArray[np.int64], context: DraftContext
    ) -> list[Draft]:
        """The usual case, without questions or probabilities: tokens stay on the device until the last level."""
        active, levels = np.arange(len(requests)), []
        logits, step = self._first_level(requests), None
        for depth in range(1, int(lengths.max()) + 1):
            sampling = context.sampling if context.sampling.all_greedy else context.sampling.take(active)
            tempered = temper(logits[:, : self.vocab_size], sampling)
            tokens = self._perturbed(tempered, requests, active, depth, context, sampling).argmax(-1)
            levels.append((active, tokens))
            going = lengths[active] > depth
            if not going.any():
                break
            if step is None or not going.all():
                active, tokens = active[going], tokens[torch.from_numpy(going)]
                chosen = [requests[index] for index in active.tolist()]
                contexts = [len(request.token_ids) + depth - 1 for request in chosen]
                slots = [request.slot for request in chosen]
                step = build_step(tokens, slots, contexts, self.cache.slot_length, self.runner.device)
            else:
                step = step.advance(tokens)
            logits = self.runner.forward(step, self.cache)
        chains = [[request.token_ids[-1]] for request in requests]
        for rows, tokens in levels:
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                chains[row].append(token)
        return [Draft(TokenTree.chain(chain), tuple(range(1, len(chain))), depth=len(chain) - 1) for chain in chains]

    def commit(self, request: Request, draft: Draft, path: tuple[int, ...]) -> None:
        """See `Drafter.commit`: what the drafter fed itself stays valid as far as its main chain was accepted."""
        if draft.depth == 0:
            return
        kept = 0
        for node, main in zip(path, draft.main_chain, strict=False):
            if node != main:
                break
            kept += 1
        # The last drafted token was never fed back, so at most depth - 1 of the drafts are in the cache.
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

    def _next_level(
        self, requests: Sequence[Request], drafts: list[_Growing], active: NDArray[np.int64], depth: int
    ) -> torch.Tensor:
        """Feed the first candidate of the last level of each active request."""
        chosen = active.tolist()
        batch = build_step(
            [drafts[index].tokens[drafts[index].main_chain[-1]] for index in chosen],
            [requests[index].slot for index in chosen],
            [len(requests[index].token_ids) + depth - 1 for index in chosen],
            self.cache.slot_length,
            self.runner.device,
        )
        return self.runner.forward(batch, self.cache)

    def _perturbed(
        self,
        tempered: torch.Tensor,
        requests: Sequence[Request],
        active: NDArray[np.int64],
        depth: int,
        context: DraftContext,
        sampling: RowSampling,
    ) -> torch.Tensor:
        if context.shared_noise is not None:
            noise = context.shared_noise(active, depth)
        else:
            positions = np.asarray([len(requests[index].token_ids) + depth - 1 for index in active])
            noise = sampling.noise(positions, self.vocab_size, tempered.device, DRAFT_STREAM, context.draw)
        return tempered if noise is None else tempered + noise

    def _candidates(self, scores: torch.Tensor) -> list[list[int]]:
        """The best ``num_candidates`` tokens of each row, best first, without those a filter has cut."""
        if self.num_candidates == 1:
            return [[token] for token in scores.argmax(-1).tolist()]
        best, tokens = scores.topk(self.num_candidates, dim=-1)
        return [
            [token for token, score in zip(row, row_scores, strict=True) if score > -np.inf]
            for row, row_scores in zip(tokens.tolist(), best.tolist(), strict=True)
        ]


def _confidence(
    depth: int,
    requests: NDArray[np.int64],
    tempered: torch.Tensor,
    scores: torch.Tensor,
    rows: NDArray[np.int64],
) -> DraftLevel:
    index = torch.from_numpy(rows).to(tempered.device)
    log_probability = tempered[index].log_softmax(-1)
    entropy = -(log_probability.exp() * log_probability.clamp_min(-1e9)).sum(-1)
    best = scores[index].topk(2, dim=-1).values
    return DraftLevel(
        depth=depth,
        requests=requests,
        top1_probability=log_probability.amax(-1).exp().double().cpu().numpy(),
        entropy=entropy.double().cpu().numpy(),
        margin=(best[:, 0] - best[:, 1]).double().cpu().numpy(),
    )
