"""Verification of any tree: the text is that of plain decoding, and the cache that of a fresh prefill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from specpilot.controllers import ConstantController
from specpilot.engine import Draft, DraftContext, Drafter, Engine, EngineConfig, Pair, SamplingParams, TokenTree
from specpilot.engine.request import Request
from specpilot.engine.verification import accept_coupled

from ..support.controllers import RandomController


class RandomTreeDrafter(Drafter):
    """Trees of any shape, in which the true continuation often hides on a side branch."""

    name = "random tree"

    def __init__(self, texts: Mapping[str, Sequence[int]], vocab_size: int, num_nodes: int, seed: int) -> None:
        self.texts = texts
        self.vocab_size = vocab_size
        self.num_nodes = num_nodes
        self.rng = np.random.default_rng(seed)
        self.side_branches = 0

    def propose(self, requests: Sequence[Request], lengths: NDArray[np.int64], context: DraftContext) -> list[Draft]:
        return [self._draft(request, length) for request, length in zip(requests, lengths.tolist(), strict=True)]

    def _draft(self, request: Request, length: int) -> Draft:
        coming = self.texts[request.request_id][len(request.token_ids) :]
        tokens, parents, depths = [request.token_ids[-1]], [-1], [0]
        right = {0}  # nodes on the path of the true text
        for _ in range(int(self.rng.integers(1, self.num_nodes))):
            open_nodes = [node for node, depth in enumerate(depths) if depth < length]
            parent = int(self.rng.choice(open_nodes))
            token = int(self.rng.integers(self.vocab_size))
            if parent in right and self.rng.random() < 0.7 and depths[parent] < len(coming):
                token = coming[depths[parent]]
            if any(p == parent and t == token for p, t in zip(parents, tokens, strict=True)):
                continue
            if parent in right and depths[parent] < len(coming) and token == coming[depths[parent]]:
                right.add(len(tokens))
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
        return Draft(TokenTree(tokens, parents), depth=max(depths))

    def commit(self, request: Request, draft: Draft, path: tuple[int, ...]) -> None:
        self.side_branches += path != tuple(range(1, len(path) + 1))

    def lag(self, request: Request) -> int:
        return 0

    def catch_up(self, requests: Sequence[Request]) -> int:
        return 0

    def start(self, request: Request) -> None:
        pass

    def forget(self, request: Request) -> None:
        pass

    def move_slot(self, source: int, destination: int) -> None:
        pass


def workload(num_requests: int, max_tokens: int) -> tuple[list[list[int]], list[SamplingParams]]:
    rng = np.random.default_rng(num_requests)
    prompts = [rng.integers(1, 73, size=int(rng.integers(1, 30))).tolist() for _ in range(num_requests)]
    params = [
        SamplingParams(
            temperature=(0.0, 0.6, 1.0)[index % 3], seed=index, max_tokens=max_tokens, top_p=(1.0, 0.9)[index % 2]
        )
        for index in range(num_requests)
    ]
    return prompts, params


@pytest.mark.parametrize("fused", [None, False], ids=["fused", "stock"])
def test_any_tree_leaves_the_text_of_plain_decoding(tiny_pair: Pair, fused: bool | None) -> None:
    prompts, params = workload(60, 40)
    config = EngineConfig(max_num_seqs=7, max_model_len=96, num_candidates=3, fused=fused)
    plain = Engine(tiny_pair, config, ConstantController(0)).generate(prompts, params)
    texts = {f"request-{n}": [*output.prompt_token_ids, *output.token_ids] for n, output in enumerate(plain)}
    drafter = RandomTreeDrafter(texts, tiny_pair.vocab_size, config.max_tree_nodes, seed=0)
    engine = Engine(tiny_pair, config, RandomController(seed=1, stop_probability=0), drafter)
    outputs = engine.generate(prompts, params)
    assert [output.token_ids for output in outputs] == [output.token_ids for output in plain]
    assert drafter.side_branches > 50
    assert max(accepted for record in engine.stats.rounds for accepted in record.accepted_length) >= 4


def test_the_cache_after_a_side_branch_is_that_of_a_fresh_prefill(tiny_pair: Pair) -> None:
    prompts, params = workload(5, 60)
    config = EngineConfig(max_num_seqs=5, max_model_len=96, num_candidates=3)
    plain = Engine(tiny_pair, config, ConstantController(0)).generate(prompts, params)
    texts = {f"request-{n}": [*output.prompt_token_ids, *output.token_ids] for n, output in enumerate(plain)}
    drafter = RandomTreeDrafter(texts, tiny_pair.vocab_size, config.max_tree_nodes, seed=5)
    engine = Engine(tiny_pair, config, ConstantController(6), drafter)
    for prompt, own in zip(prompts, params, strict=True):
        engine.add_request(prompt, own)
    compared = 0
    while engine.has_work:
        engine.step()
        for request in engine.scheduler.running:
            fresh = Engine(tiny_pair, EngineConfig(max_num_seqs=1, max_model_len=96, prefill_chunk=1000))
            fresh.add_request(request.token_ids, SamplingParams(max_tokens=1))
            fresh.step()
            for ours, theirs in zip(engine.cache.layers, fresh.cache.layers, strict=True):
                size = request.num_cached
                assert size == len(request.token_ids) - 1
                torch.testing.assert_close(ours[request.slot, :size], theirs[0, :size], rtol=1e-4, atol=1e-4)
            compared += 1
    assert drafter.side_branches > 5 and compared > 10


def test_candidates_beside_the_chain_are_accepted_and_seen_by_the_drafter_as_lag(tiny_pair: Pair) -> None:
    """A leaf that is accepted was never fed to the drafter, so it is caught up with, and drafts stay right."""
    prompts, params = workload(40, 40)
    lengths = {}
    for candidates in (1, 3):
        config = EngineConfig(max_num_seqs=8, max_model_len=96, num_candidates=candidates)
        engine = Engine(tiny_pair, config, ConstantController(4))
        engine.generate(prompts, params)
        lengths[candidates] = engine.stats.mean_accepted_length
    assert lengths[3] > lengths[1]


@pytest.mark.parametrize("seed", range(5))
def test_coupled_acceptance_walks_the_path_of_the_targets_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(200):
        size = int(rng.integers(1, 12))
        parents = [-1, *(int(rng.integers(0, node)) for node in range(1, size))]
        tree = TokenTree(rng.integers(0, 3, size=size).tolist(), parents)
        wanted = rng.integers(0, 3, size=size).tolist()
        verdict = accept_coupled(tree, wanted)
        node = 0
        for accepted in verdict.path:
            assert tree.parents[accepted] == node and tree.tokens[accepted] == wanted[node]
            node = accepted
        assert verdict.next_token == wanted[node]
        assert wanted[node] not in [tree.tokens[child] for child in tree.children(node)]
