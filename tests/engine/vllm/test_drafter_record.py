"""What a lazy drafter is told to prefill: nothing is left out, nothing is too large for one forward."""

from __future__ import annotations

import random

import pytest
import torch

from specpilot.engine.vllm.drafter_record import DrafterRecord, Span, chunks, missed_spans

BLOCK = 4


def covered(pieces: list[Span]) -> list[tuple[int, int]]:
    return [(row, position) for row, first, end in pieces for position in range(first, end)]


@pytest.mark.parametrize("seed", range(20))
def test_chunks_hold_every_missed_token_once_in_order_and_fit_the_budget(seed: int) -> None:
    rng = random.Random(seed)
    starts = [rng.randrange(50) for _ in range(rng.randint(1, 8))]
    spans = [(row, start, start + rng.randint(1, 90)) for row, start in enumerate(starts)]
    budget = rng.randint(2, 64)
    found = list(chunks(spans, budget))
    assert all(sum(end - first + 1 for _, first, end in chunk) <= budget for chunk in found)
    assert [place for chunk in found for place in covered(chunk)] == covered(spans)
    assert all(len({row for row, _, _ in chunk}) == len(chunk) for chunk in found), "a row twice in one forward"


def test_a_budget_without_room_for_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        list(chunks([(0, 0, 3)], 1))


@pytest.mark.parametrize("seed", range(20))
def test_a_span_starts_at_the_first_slot_that_is_missing_and_ends_where_the_step_begins(seed: int) -> None:
    rng = random.Random(seed)
    record = DrafterRecord(BLOCK * 64, torch.device("cpu"))
    blocks = rng.sample(range(64), 40)
    table = torch.tensor(blocks, dtype=torch.int32).view(4, 10)
    written = [rng.randint(0, 40) for _ in range(4)]
    seen = [rng.randint(0, end) for end in written]
    for row in range(4):
        positions = torch.arange(written[row])
        slots = table[row, positions // BLOCK].long() * BLOCK + positions % BLOCK
        record.target_wrote(slots, 100 * row + positions.int())
        record.drafter_wrote(slots[: seen[row]])
        assert record.tokens[slots].tolist() == [100 * row + position for position in range(written[row])]
    rows = [row for row in range(4) if rng.random() < 0.8]
    expected = [(row, seen[row], written[row]) for row in rows if seen[row] < written[row]]
    assert missed_spans(record.missing, table, BLOCK, rows, [written[row] for row in rows]) == expected


def test_what_another_request_filled_while_the_drafter_was_off_is_missed_by_who_shares_the_block() -> None:
    record = DrafterRecord(BLOCK * 8, torch.device("cpu"))
    record.target_wrote(torch.arange(8), torch.arange(8).int())  # blocks 0 and 1, of a request that is gone
    record.drafter_wrote(torch.arange(4))
    table = torch.tensor([[0, 1, 5]], dtype=torch.int32)
    assert missed_spans(record.missing, table, BLOCK, [0], [8]) == [(0, 4, 8)]
    record.drafter_wrote(torch.arange(4, 8))
    assert missed_spans(record.missing, table, BLOCK, [0], [8]) == []


def test_what_is_noted_is_what_would_have_been_written_in_that_order() -> None:
    rng = random.Random(0)
    noted, written = (DrafterRecord(BLOCK * 4096, torch.device("cpu")) for _ in range(2))
    for step in range(400):
        slots = rng.sample(range(BLOCK * 4096), rng.choice([1, 3, 60]))
        tokens = [rng.randrange(1000) for _ in slots]
        if step % 10 < 7:
            noted.note(slots, tokens)
            written.target_wrote(torch.tensor(slots), torch.tensor(tokens).int())
            continue
        for record in (noted, written):
            record.target_wrote(torch.tensor(slots), torch.tensor(tokens).int())
            record.drafter_wrote(torch.tensor(slots[:2]))
    noted.settle()
    assert torch.equal(noted.tokens, written.tokens) and torch.equal(noted.missing, written.missing)
