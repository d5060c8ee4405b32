"""One round of speculative decoding over a batch: catch up, draft, trim, verify, accept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..controllers import Controller, Decision
from ..controllers.controller import Looks
from .controller_answers import ask_verify_lengths, checked_looks, checked_new_lengths, wanted_features
from .drafter import AskingTime, Draft, DraftContext, Drafter
from .forward_batch import Segment, build_batch
from .kv_cache import KVCache
from .models import ModelRunner
from .noise import coins
from .request import Request
from .round_noise import RoundNoise
from .sampler import RowSampling, probabilities, temper
from .token_tree import TokenTree
from .verification import Verdict, accept_coupled, accept_rejection


@dataclass(frozen=True)
class CatchUp:
    """What bringing the drafter up to date took."""

    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RoundResult:
    """What a round found. Lists are per request."""

    new_tokens: list[list[int]]
    """Tokens to commit: the accepted path and the target's own token."""
    num_drafted: list[int]
    """Levels drafted."""
    num_verified: list[int]
    """Levels sent to verification."""
    accepted_length: list[int]
    catch_up: CatchUp
    draft_seconds: float
    verify_seconds: float
    asking_seconds: float = 0.0
    """Of ``draft_seconds``, what asking the controller between the levels took."""

    @property
    def model_seconds(self) -> float:
        """Time in the drafter and the target."""
        return self.draft_seconds + self.verify_seconds + self.catch_up.seconds

    @classmethod
    def empty(cls, catch_up: CatchUp | None = None) -> RoundResult:
        """The result of a step in which nothing decoded (but the drafter may have caught up)."""
        return cls([], [], [], [], catch_up or CatchUp(), 0.0, 0.0)


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

    def catch_up(self, requests: Sequence[Request], lengths: NDArray[np.int64]) -> CatchUp:
        """Bring the drafter up to date with the requests that will draft; `run` relies on it."""
        chosen = [request for request, length in zip(requests, lengths.tolist(), strict=True) if length]
        if self.drafter is None or not any(self.drafter.lag(request) > 1 for request in chosen):
            return CatchUp()
        start = time.perf_counter()
        lags = [self.drafter.lag(request) for request in chosen]
        tokens = self.drafter.catch_up(chosen)
        for request, lag in zip(chosen, lags, strict=True):
            request.stats.num_catch_up_tokens += lag - self.drafter.lag(request)
        synchronize(self.target.device)
        return CatchUp(tokens, time.perf_counter() - start)

    def run(self, requests: Sequence[Request], decision: Decision, draw: int, catch_up: CatchUp) -> RoundResult:
        """Draft as many tokens for each request as was decided, verify all in one pass, and update both caches.

        ``catch_up`` is what `catch_up` has done for this round. Raises `ControllerError`, and commits nothing, if an
        answer of the controller on the way is none.
        """
        sampling = RowSampling.of([request.params for request in requests], [request.seed for request in requests])
        width = int(decision.num_speculative_tokens.max()) + 1
        noise = RoundNoise(requests, sampling, width, self.vocab_size, self.target.device) if self.coupled else None
        start = time.perf_counter()
        asking = AskingTime()
        drafts = self._draft(requests, decision, sampling, noise, draw, asking)
        drafted = time.perf_counter()
        sent = self._trimmed(drafts, decision.looks or self.controller)
        trimmed = time.perf_counter()
        verdicts, trees = self._verify(requests, sent, sampling, noise, draw)
        verified = time.perf_counter()
        for request, draft, verdict in zip(requests, drafts, verdicts, strict=True):
            self._commit(request, draft, verdict)
        return RoundResult(
            new_tokens=[
                [*(tree.tokens[node] for node in verdict.path), verdict.next_token]
                for tree, verdict in zip(trees, verdicts, strict=True)
            ],
            num_drafted=_depths(drafts),
            num_verified=_depths(sent),
            accepted_length=[len(verdict.path) for verdict in verdicts],
            catch_up=catch_up,
            draft_seconds=drafted - start,
            verify_seconds=verified - trimmed,
            asking_seconds=asking.seconds,
        )

    def _draft(
        self,
        requests: Sequence[Request],
        decision: Decision,
        sampling: RowSampling,
        noise: RoundNoise | None,
        draw: int,
        asking: AskingTime,
    ) -> list[Draft | None]:
        drafts: list[Draft | None] = [None] * len(requests)
        lengths = decision.num_speculative_tokens
        speculating = np.flatnonzero(lengths)
        if self.drafter is not None and speculating.size:
            context = self._draft_context(sampling, noise, speculating, draw, decision.looks, asking)
            chosen = [requests[index] for index in speculating.tolist()]
            proposed = self.drafter.propose(chosen, lengths[speculating], context)
            for index, proposal in zip(speculating.tolist(), proposed, strict=True):
                drafts[index] = proposal
        return drafts

    def _trimmed(self, drafts: Sequence[Draft | None], asked: Controller | Looks) -> Sequence[Draft | None]:
        """The drafts as far as who is ``asked`` wants them verified."""
        # In rejection mode a token that was seen and dropped would change the distribution.
        if not (self.coupled and asked.trims):
            return drafts
        num_drafted = np.asarray(_depths(drafts))
        if not num_drafted.any():
            return drafts
        lengths = ask_verify_lengths(asked, num_drafted)
        return [
            None if draft is None else draft.trimmed(length)
            for draft, length in zip(drafts, lengths.tolist(), strict=True)
        ]

    def _draft_context(
        self,
        sampling: RowSampling,
        noise: RoundNoise | None,
        speculating: NDArray[np.int64],
        draw: int,
        looks: Looks | None,
        asking: AskingTime,
    ) -> DraftContext:
        asked_levels = self.controller.asked_levels if looks is None else looks.levels
        features = wanted_features(self.controller) if asked_levels else frozenset[str]()
        shared = None if noise is None else lambda rows, depth: noise.at(speculating[rows], depth)
        return DraftContext(
            sampling=RowSampling.greedy(len(speculating)) if self.greedy_drafts else sampling.take(speculating),
            draw=draw,
            shared_noise=None if self.greedy_drafts else shared,
            new_lengths=checked_new_lengths(self.controller, speculating),
            after_level=None if looks is None else checked_looks(looks, speculating),
            asked_levels=asked_levels,
            level_features=features,
            asks_last_level=self.coupled and (looks or self.controller).trims,
            asking=asking,
        )

    def _verify(
        self,
        requests: Sequence[Request],
        drafts: Sequence[Draft | None],
        sampling: RowSampling,
        noise: RoundNoise | None,
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


def _depths(drafts: Sequence[Draft | None]) -> list[int]:
    return [0 if draft is None else draft.depth for draft in drafts]
