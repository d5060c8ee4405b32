"""One round of speculative decoding over a batch: decide, catch up, draft, verify, accept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..controllers import Controller, DraftLevel, RoundState
from .drafter import Draft, DraftContext, Drafter, KeepDrafting
from .forward_batch import Segment, build_batch
from .kv_cache import KVCache
from .models import ModelRunner
from .noise import TARGET_STREAM, coins
from .request import Request
from .sampler import RowSampling, probabilities, temper
from .token_tree import TokenTree
from .verification import Verdict, accept_coupled, accept_rejection


class ControllerError(ValueError):
    """A controller returned something that is not a decision; nothing was changed, the round can be repeated."""


@dataclass(frozen=True)
class RoundResult:
    """What a round found. Lists are per request."""

    new_tokens: list[list[int]]
    """Tokens to commit: the accepted path and the target's own token."""
    num_drafted: list[int]
    """Levels drafted."""
    accepted_length: list[int]
    catch_up_tokens: int
    draft_seconds: float
    verify_seconds: float
    catch_up_seconds: float

    @property
    def model_seconds(self) -> float:
        """Time in the drafter and the target."""
        return self.draft_seconds + self.verify_seconds + self.catch_up_seconds

    @classmethod
    def empty(cls) -> RoundResult:
        """The result of a step in which nothing decoded."""
        return cls([], [], [], 0, 0.0, 0.0, 0.0)


class _RoundNoise:
    """The target's Gumbel noise of a round: computed once, seen by the drafter and by verification."""

    def __init__(
        self, requests: Sequence[Request], sampling: RowSampling, width: int, vocab_size: int, device: torch.device
    ) -> None:
        ahead = np.asarray([len(request.token_ids) for request in requests])[:, None] + np.arange(width)
        # [B, width, vocab_size]; entry d is the token d + 1 ahead
        self.table = sampling.noise(ahead, vocab_size, device, TARGET_STREAM)

    def at(self, rows: NDArray[np.int64], depth: int | NDArray[np.int64]) -> torch.Tensor | None:
        """Noise ``[len(rows), vocab_size]`` of the token ``depth`` ahead (scalar or per row); None if all greedy."""
        if self.table is None:
            return None
        return self.table[torch.from_numpy(rows), torch.from_numpy(np.broadcast_to(depth, rows.shape) - 1)]


class Speculator:
    """Runs rounds for an engine. It owns no request: it reads them, and writes caches."""

    def __init__(
        self,
        target: ModelRunner,
        cache: KVCache,
        drafter: Drafter | None,
        controller: Controller,
        vocab_size: int,
        verification: str,
        max_tree_nodes: int,
        greedy_drafts: bool = False,
    ) -> None:
        self.target = target
        self.cache = cache
        self.drafter = drafter
        self.controller = controller
        self.vocab_size = vocab_size
        self.coupled = verification == "coupled"
        self.max_tree_nodes = max_tree_nodes
        self.greedy_drafts = greedy_drafts

    def decide(self, state: RoundState) -> NDArray[np.int64]:
        """Ask the controller and cut its lengths to what each request may use. ``[B]``."""
        lengths = np.asarray(self.controller.decide(state).num_speculative_tokens)
        if lengths.shape != (len(state.request_ids),) or not np.issubdtype(lengths.dtype, np.integer):
            raise ControllerError(
                f"{type(self.controller).__name__} must return one integer per request "
                f"({len(state.request_ids)}), got {lengths.dtype} of shape {lengths.shape}"
            )
        if (lengths < 0).any():
            raise ControllerError(f"{type(self.controller).__name__} returned a negative length: {lengths.tolist()}")
        return np.minimum(lengths, state.max_num_speculative_tokens)

    def run(self, requests: Sequence[Request], lengths: NDArray[np.int64], draw: int) -> RoundResult:
        """Draft ``lengths[i]`` tokens for each request, verify all in one pass, and update both caches."""
        sampling = RowSampling.of([request.params for request in requests], [request.seed for request in requests])
        width = int(lengths.max()) + 1
        noise = _RoundNoise(requests, sampling, width, self.vocab_size, self.target.device) if self.coupled else None
        start = time.perf_counter()
        speculating = np.flatnonzero(lengths) if self.drafter is not None else np.empty(0, dtype=np.int64)
        chosen = [requests[index] for index in speculating.tolist()]
        catch_up_tokens = 0
        if self.drafter is not None and any(self.drafter.lag(request) > 1 for request in chosen):
            catch_up_tokens = self._catch_up(self.drafter, chosen)
        caught_up = time.perf_counter()
        drafts: list[Draft | None] = [None] * len(requests)
        if self.drafter is not None and chosen:
            context = self._draft_context(sampling, noise, speculating, draw)
            proposed = self.drafter.propose(chosen, lengths[speculating], context)
            for index, proposal in zip(speculating.tolist(), proposed, strict=True):
                drafts[index] = proposal
        drafted = time.perf_counter()
        verdicts, trees = self._verify(requests, drafts, sampling, noise, draw)
        verified = time.perf_counter()
        for request, draft, verdict in zip(requests, drafts, verdicts, strict=True):
            self._commit(request, draft, verdict)
        return RoundResult(
            new_tokens=[
                [*(tree.tokens[node] for node in verdict.path), verdict.next_token]
                for tree, verdict in zip(trees, verdicts, strict=True)
            ],
            num_drafted=[0 if draft is None else draft.depth for draft in drafts],
            accepted_length=[len(verdict.path) for verdict in verdicts],
            catch_up_tokens=catch_up_tokens,
            draft_seconds=drafted - caught_up,
            verify_seconds=verified - drafted,
            catch_up_seconds=caught_up - start,
        )

    def _catch_up(self, drafter: Drafter, requests: Sequence[Request]) -> int:
        lags = [drafter.lag(request) for request in requests]
        tokens = drafter.catch_up(requests)
        for request, lag in zip(requests, lags, strict=True):
            request.stats.num_catch_up_tokens += lag - drafter.lag(request)
        synchronize(self.target.device)
        return tokens

    def _draft_context(
        self, sampling: RowSampling, noise: _RoundNoise | None, speculating: NDArray[np.int64], draw: int
    ) -> DraftContext:
        keep_drafting: KeepDrafting | None = None
        if self.controller.asks_every_level:

            def keep_drafting(level: DraftLevel) -> NDArray[np.bool_]:
                # The drafter counts the requests that draft, the controller all of the round.
                answer = self.controller.keep_drafting(replace(level, requests=speculating[level.requests]))
                if not (
                    isinstance(answer, np.ndarray) and answer.dtype == np.bool_ and answer.shape == level.requests.shape
                ):
                    raise ControllerError(
                        f"{type(self.controller).__name__}.keep_drafting must return one bool per request "
                        f"({len(level.requests)}), got {answer!r:.80}"
                    )
                return answer

        if self.greedy_drafts:
            return DraftContext(RowSampling.greedy(len(speculating)), draw, None, keep_drafting)
        shared = None if noise is None else lambda rows, depth: noise.at(speculating[rows], depth)
        return DraftContext(sampling.take(speculating), draw, shared, keep_drafting)

    def _verify(
        self,
        requests: Sequence[Request],
        drafts: Sequence[Draft | None],
        sampling: RowSampling,
        noise: _RoundNoise | None,
        draw: int,
    ) -> tuple[list[Verdict], list[TokenTree]]:
        trees = [
            TokenTree.chain([request.token_ids[-1]]) if draft is None else draft.tree
            for request, draft in zip(requests, drafts, strict=True)
        ]
        sizes = [len(tree) for tree in trees]
        assert max(sizes) <= self.max_tree_nodes, f"a draft has {max(sizes)} nodes, room is for {self.max_tree_nodes}"
        segments = [
            Segment(request.slot, request.num_cached, tree) for request, tree in zip(requests, trees, strict=True)
        ]
        batch = build_batch(segments, self.cache.slot_length, self.target.device)
        logits = self.target.forward(batch, self.cache)[:, : self.vocab_size]  # [N, vocab_size]
        rows = np.repeat(np.arange(len(requests)), sizes)
        starts = np.cumsum([0, *sizes]).tolist()
        per_node = sampling if sampling.all_greedy else sampling.take(rows)
        if noise is not None:
            scores = temper(logits, per_node)
            ahead = noise.at(rows, np.concatenate([tree.depths() for tree in trees]) + 1)
            scores = scores if ahead is None else scores + ahead
            choice = scores.argmax(-1).tolist()
            return [
                accept_coupled(tree, choice[start : start + len(tree)])
                for tree, start in zip(trees, starts, strict=False)
            ], trees
        distribution = probabilities(logits, per_node).cpu().numpy()
        verdicts = []
        for request, draft, tree, start in zip(requests, drafts, trees, starts, strict=False):
            rng = coins(request.seed, len(request.token_ids), draw)
            drawn_from = {} if draft is None else draft.probabilities
            verdicts.append(accept_rejection(tree, distribution[start : start + len(tree)], drawn_from, rng))
        return verdicts, trees

    def _commit(self, request: Request, draft: Draft | None, verdict: Verdict) -> None:
        """Keep the accepted path in both caches. On a chain it already lies where it belongs."""
        if draft is not None and self.drafter is not None:
            self.drafter.commit(request, draft, verdict.path)
        context = request.num_cached
        if verdict.path != tuple(range(1, len(verdict.path) + 1)):
            self.cache.move_tokens(request.slot, [context + node for node in verdict.path], context + 1)
        request.num_cached = context + 1 + len(verdict.path)


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator, so that a clock read afterwards means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
