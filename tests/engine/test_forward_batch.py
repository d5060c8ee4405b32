"""Batches against the definition: each token by itself, and a step that follows from the one before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specpilot.engine import TokenTree
from specpilot.engine.forward_batch import ForwardBatch, Segment, build_batch, build_step

SLOT_LENGTH, CPU = 64, torch.device("cpu")


def random_segments(rng: np.random.Generator, kind: str) -> list[Segment]:
    """Distinct slots in any order, with holes."""
    slots = rng.permutation(8)[: int(rng.integers(1, 7))].tolist()
    segments = []
    for slot in slots:
        size = 1 if kind == "single" else int(rng.integers(1, 7))
        parents = [-1, *(node - 1 if kind != "tree" else int(rng.integers(0, node)) for node in range(1, size))]
        tree = TokenTree(rng.integers(0, 90, size=size).tolist(), parents)
        segments.append(Segment(slot, int(rng.integers(0, 40)), tree))
    return segments


def rows_of(batch: ForwardBatch, segments: list[Segment]) -> list[tuple[int, int]]:
    """(cache row, query) of every token, as attention will see it."""
    if batch.query_index is not None:
        return [divmod(index, batch.max_queries) for index in batch.query_index.tolist()]
    return [(row, query) for row, segment in enumerate(segments) for query in range(len(segment.tree))]


@pytest.mark.parametrize("kind", ["single", "chain", "tree"])
@pytest.mark.parametrize("seed", range(30))
def test_every_token_sees_its_context_and_its_ancestors(kind: str, seed: int) -> None:
    segments = random_segments(np.random.default_rng(seed), kind)
    batch = build_batch(segments, SLOT_LENGTH, CPU)
    rows, token = rows_of(batch, segments), 0
    assert batch.length == max(segment.context_length + len(segment.tree) for segment in segments)
    for segment in segments:
        ancestors = segment.tree.ancestors()
        for node in range(len(segment.tree)):
            row, query = rows[token]
            assert row + batch.first_slot == segment.slot
            assert batch.token_ids[token] == segment.tree.tokens[node]
            assert batch.positions[token] == segment.context_length + segment.tree.depths()[node]
            assert batch.cache_index[token] == segment.slot * SLOT_LENGTH + segment.context_length + node
            seen = set(range(segment.context_length))
            seen |= {segment.context_length + other for other in np.flatnonzero(ancestors[node]).tolist()}
            mask = torch.ones(batch.length, dtype=torch.bool) if batch.mask is None else batch.mask[row, 0, query]
            assert set(mask.nonzero().flatten().tolist()) == seen
            token += 1
    if batch.mask is not None:
        assert batch.mask.shape == (batch.rows, 1, batch.max_queries, batch.length)
        assert batch.mask.any(-1).all(), "a query that sees nothing has no finite softmax"


def same(first: ForwardBatch, second: ForwardBatch, segments: list[Segment]) -> bool:
    """The same pass: same tensors, and the same mask where a token reads it."""
    tensors = ("token_ids", "positions", "cache_index", "query_index")
    for name in tensors:
        ours, theirs = getattr(first, name), getattr(second, name)
        if (ours is None) != (theirs is None) or (ours is not None and not torch.equal(ours, theirs)):
            return False
    full = torch.ones(first.rows, 1, 1, first.length, dtype=torch.bool)
    masks = [full if batch.mask is None else batch.mask for batch in (first, second)]
    used = [row for row, _ in rows_of(first, segments)]
    return first.length == second.length and torch.equal(masks[0][used], masks[1][used])


@pytest.mark.parametrize("seed", range(30))
def test_a_step_is_a_batch_of_single_tokens_and_advances_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    segments = random_segments(rng, "single")
    if seed % 3 == 0:  # dense slots of one length need no mask
        segments = [Segment(slot, 9, segment.tree) for slot, segment in enumerate(segments)]
    slots = [segment.slot for segment in segments]

    def step(tokens: list[int], ahead: int) -> ForwardBatch:
        return build_step(tokens, slots, [s.context_length + ahead for s in segments], SLOT_LENGTH, CPU)

    batch = step([segment.tree.tokens[0] for segment in segments], 0)
    assert same(batch, build_batch(segments, SLOT_LENGTH, CPU), segments)
    for ahead in range(1, 6):
        tokens = rng.integers(0, 90, size=len(segments)).tolist()
        batch = batch.advance(torch.tensor(tokens))
        assert same(batch, step(tokens, ahead), segments)


@pytest.mark.parametrize("seed", range(60))
def test_a_step_follows_from_the_last_tokens_of_any_chains_and_some_sit_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    segments = random_segments(rng, "chain" if seed % 2 else "single")
    if seed % 3 == 0:  # dense slots in order
        segments = [Segment(slot, segment.context_length, segment.tree) for slot, segment in enumerate(segments)]
    batch = build_batch(segments, SLOT_LENGTH, CPU)
    ends = np.cumsum([len(segment.tree) for segment in segments]) - 1
    contexts = [segment.context_length + len(segment.tree) for segment in segments]
    chosen = np.arange(len(segments))
    for ahead in range(4):
        if ahead:
            ends = np.arange(len(chosen))
        some = np.flatnonzero(rng.random(len(chosen)) < 0.8) if len(chosen) > 1 else np.arange(1)
        some = some if len(some) else np.arange(1)
        everyone = len(some) == len(chosen) and batch.max_queries == 1
        chosen, tokens = chosen[some], rng.integers(0, 90, size=len(some)).tolist()
        batch = batch.advance(torch.tensor(tokens), None if everyone else torch.from_numpy(ends[some]))
        slots = [segments[own].slot for own in chosen]
        alone = build_step(tokens, slots, [contexts[own] + ahead for own in chosen], SLOT_LENGTH, CPU)
        for name in ("token_ids", "positions", "cache_index"):
            assert torch.equal(getattr(batch, name), getattr(alone, name)), name
        ours = list(range(len(chosen))) if batch.query_index is None else batch.query_index.tolist()
        assert [row + batch.first_slot for row in ours] == slots
        assert batch.rows == 1 or batch.mask is not None or len(set(contexts)) == 1
        for row, own in zip(ours, chosen, strict=True):
            seen = torch.ones(batch.length, dtype=torch.bool) if batch.mask is None else batch.mask[row, 0, 0]
            assert seen.nonzero().flatten().tolist() == list(range(contexts[own] + ahead + 1))
        if batch.padded_index is not None:
            assert batch.padded_index[torch.tensor(ours)].tolist() == list(range(len(ours)))


def test_heads_that_share_a_key_head_share_the_mask() -> None:
    segments = random_segments(np.random.default_rng(1), "tree")
    batch = build_batch(segments, SLOT_LENGTH, CPU)
    assert batch.mask is not None
    folded = batch.additive_mask(3, torch.float32)
    assert folded is not None and batch.additive_mask(3, torch.float32) is folded
    assert torch.equal(folded == 0, batch.mask.repeat_interleave(3, dim=2))
    assert torch.isneginf(folded[folded != 0]).all()
