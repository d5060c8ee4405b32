"""Streamed text: whole characters, no stop string, and together exactly the final text."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from specpilot.engine import SamplingParams
from specpilot.engine.request import Request
from specpilot.engine.text import TextStream, cut_at_stop, decode, stop_text

from ..support.pairs import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(73)


def stream_text(
    tokenizer: PreTrainedTokenizerFast, tokens: list[int], stops: tuple[str, ...] = (), step: int = 1
) -> tuple[list[str], str]:
    """Feed tokens as the engine does: appended one by one, streamed every ``step``. Returns (pieces, final text)."""
    request = Request("r", [1], 1, SamplingParams(stop=stops), 0)
    stream = TextStream(tokenizer, stops)
    pieces = []
    for index, token in enumerate(tokens, start=1):
        request.token_ids.append(token)
        final = stop_text(tokenizer, request)
        if final is None and index == len(tokens):
            final = decode(tokenizer, request.output_token_ids)
        if final is not None or index % step == 0:
            pieces.append(stream.push(request, final))
        if final is not None:
            return pieces, final
    raise AssertionError("no tokens")


@pytest.mark.parametrize("step", [1, 3])
def test_streamed_pieces_are_the_final_text(tokenizer: PreTrainedTokenizerFast, step: int) -> None:
    rng = np.random.default_rng(step)
    for _ in range(300):
        tokens = rng.integers(0, 73, size=int(rng.integers(1, 40))).tolist()
        if rng.random() < 0.5:  # mostly bytes of multi-byte characters
            tokens = [t % 9 + 1 if rng.random() < 0.8 else t for t in tokens]
        stops = [(), ("a",), ("ab", "é"), ("€", "\n\n"), ("def", "e")][int(rng.integers(5))]
        pieces, final = stream_text(tokenizer, tokens, stops, step)
        assert "".join(pieces) == final
        assert not any(stop in final for stop in stops)


def test_a_character_of_several_tokens_comes_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer("aé€😀b")["input_ids"]
    assert len(tokens) == 1 + 2 + 3 + 4 + 1
    pieces, final = stream_text(tokenizer, tokens)
    assert final == "aé€😀b"
    assert [piece for piece in pieces if piece] == ["a", "é", "€", "😀", "b"]


def test_an_unfinished_character_at_the_end_is_in_the_final_text(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer("a€")["input_ids"][:-1]
    pieces, final = stream_text(tokenizer, tokens)
    assert final.startswith("a") and "\ufffd" in final and "".join(pieces) == final
    assert not any("\ufffd" in piece for piece in pieces[:-1])


@pytest.mark.parametrize("stop", ["stop", "€😀", "\n\n", "é"])
def test_no_part_of_a_stop_string_is_streamed(tokenizer: PreTrainedTokenizerFast, stop: str) -> None:
    text = f"ab{stop[:-1]}c{stop[0]}{stop}xyz"
    pieces, final = stream_text(tokenizer, tokenizer(text)["input_ids"], (stop,))
    assert final == text[: text.index(stop)]
    assert "".join(pieces) == final


def test_text_that_only_looked_like_a_stop_string_comes_later(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces, final = stream_text(tokenizer, tokenizer("aabaac")["input_ids"], ("aabaad",))
    assert "".join(pieces) == final == "aabaac"
    assert pieces[0] == pieces[4] == ""


def test_the_earliest_stop_string_cuts() -> None:
    assert cut_at_stop("one two three", ("three", "two")) == "one "
    assert cut_at_stop("one", ("two",)) is None
    assert cut_at_stop("one", ()) is None
    assert cut_at_stop("twotwo", ("two",)) == ""


@pytest.mark.parametrize("stop", ["ab", "a€b", "b" * 30])
def test_a_stop_string_is_found_after_a_long_text(tokenizer: PreTrainedTokenizerFast, stop: str) -> None:
    tokens = tokenizer("x€y" * 40 + stop + "zz")["input_ids"]
    pieces, final = stream_text(tokenizer, tokens, (stop,))
    assert final == "x€y" * 40 == "".join(pieces)


def test_a_stop_string_is_found_across_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """With ``ignore_eos`` the end-of-text token is part of the tokens and no part of the text."""
    a, b = tokenizer("ab")["input_ids"]
    pieces, final = stream_text(tokenizer, [a, *[0] * 20, b, a], ("ab",))
    assert final == "" == "".join(pieces)


def test_special_tokens_are_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert decode(tokenizer, [*tokenizer("ab")["input_ids"], 0]) == "ab"
