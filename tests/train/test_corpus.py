"""The corpus: split by file, reproducible, and encoded without loss."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from specpilot.train.corpus import encode_files, split_of, stdlib_files, train_tokenizer, user_files
from specpilot.train.pair_report import distinct_share, evaluation_prompts


def test_a_file_is_in_one_split_and_always_the_same() -> None:
    files = list(itertools.islice(stdlib_files(), 300))
    again = list(itertools.islice(stdlib_files(), 300))
    assert [(file.name, file.split) for file in files] == [(file.name, file.split) for file in again]
    assert len({file.name for file in files}) == len(files)
    shares = [split_of(f"{number}.py") for number in range(20000)]
    assert shares.count("evaluation") / len(shares) == pytest.approx(0.05, abs=0.005)
    assert shares.count("train") / len(shares) == pytest.approx(0.92, abs=0.01)


def test_tokenizer_decodes_to_what_it_encoded() -> None:
    files = list(itertools.islice(stdlib_files(), 40))
    tokenizer = train_tokenizer([file.text for file in files], 400)
    assert len(tokenizer) == 400
    for text in (files[-1].text[:2000], "naïve café \u4f60\u597d \U0001f600\n\tdef f(): pass"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    stream = encode_files(tokenizer, files[:3])
    assert stream.dtype == np.int32
    assert int((stream == tokenizer.eos_token_id).sum()) == 3


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "blob.bin"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"blob\.bin: not UTF-8"):
        list(user_files([str(path)]))


def test_evaluation_prompts_are_ragged_and_cut_from_the_files() -> None:
    rng = np.random.default_rng(0)
    files = [(f"{number}.py", rng.integers(0, 50, size=1000)) for number in range(5)]
    prompts = evaluation_prompts(files, frozenset({7}), 40, seed=3)
    assert prompts == evaluation_prompts(files, frozenset({7}), 40, seed=3)
    sizes = {len(prompt["token_ids"]) for prompt in prompts}
    assert len(sizes) > 20 and min(sizes) >= 16 and max(sizes) <= 160
    texts = dict(files)
    for prompt in prompts:
        text, tokens = texts[prompt["file"]].tolist(), prompt["token_ids"]
        assert any(text[start : start + len(tokens)] == tokens for start in range(len(text) - len(tokens) + 1))


def test_distinct_share_tells_a_loop_from_variety() -> None:
    assert distinct_share([list(range(50))]) == 1.0
    assert distinct_share([[1, 2, 3] * 30]) < 0.05
