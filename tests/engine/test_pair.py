"""Loading a pair: what cannot work is refused with one line that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specpilot.engine import Pair, PairError, load_pair

from ..support.pairs import byte_tokenizer, tiny_llama


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, path: Path) -> Path:
    model.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def saved(tmp_path: Path, tiny_pair: Pair) -> tuple[Path, Path]:
    assert tiny_pair.drafter is not None
    tokenizer = tiny_pair.tokenizer
    return save(tiny_pair.target, tokenizer, tmp_path / "t"), save(tiny_pair.drafter, tokenizer, tmp_path / "d")


def refused(target: Path, drafter: Path | None, *words: str, **options: str) -> None:
    with pytest.raises(PairError) as caught:
        load_pair(target, drafter, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_saved_pair_comes_back(saved: tuple[Path, Path], tiny_pair: Pair) -> None:
    pair = load_pair(*saved)
    assert pair.vocab_size == 73 and pair.eos_token_ids == {0}
    assert pair.drafter is not None and not pair.target.training and not pair.drafter.training
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(pair.target(ids).logits, tiny_pair.target(ids).logits)


def test_a_pair_without_drafter_model(saved: tuple[Path, Path]) -> None:
    pair = load_pair(saved[0], None)
    assert pair.drafter is None and pair.vocab_size == 73


def test_dtypes(saved: tuple[Path, Path]) -> None:
    pair = load_pair(*saved, dtype="bfloat16")
    assert pair.drafter is not None
    assert pair.target.dtype == pair.drafter.dtype == torch.bfloat16
    refused(*saved, "float8", "bfloat16", dtype="float8")


def test_missing_directories(saved: tuple[Path, Path], tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", saved[1], "nowhere", "config.json")
    refused(saved[0], tmp_path / "nowhere", "nowhere", "config.json")


def test_missing_weights(saved: tuple[Path, Path]) -> None:
    (saved[1] / "model.safetensors").unlink()
    refused(*saved, str(saved[1]), "safetensors")


def test_weights_cut_short(saved: tuple[Path, Path]) -> None:
    weights = saved[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(*saved, str(saved[1]), "safetensors")


def test_a_broken_config(saved: tuple[Path, Path]) -> None:
    (saved[1] / "config.json").write_text("{not json")
    refused(*saved, str(saved[1]))


def test_pickled_weights_are_never_read(saved: tuple[Path, Path], tiny_pair: Pair) -> None:
    (saved[0] / "model.safetensors").unlink()
    torch.save(tiny_pair.target.state_dict(), saved[0] / "pytorch_model.bin")
    refused(*saved, str(saved[0]), "safetensors")


def test_missing_tokenizer(saved: tuple[Path, Path]) -> None:
    for path in saved[0].glob("tokenizer*"):
        path.unlink()
    refused(*saved, "tokenizer", str(saved[0]))


def test_another_vocabulary(saved: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(tiny_llama(60, 1, 0), byte_tokenizer(60), tmp_path / "other")
    refused(saved[0], other, "vocabulary", str(other), "entries differ")


def test_another_size_without_a_tokenizer(saved: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(tiny_llama(60, 1, 0), None, tmp_path / "other")
    refused(saved[0], other, "60", "73", "vocabulary")


def test_the_same_size_without_a_tokenizer_is_taken_on_trust(
    saved: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save(tiny_llama(73, 1, 0), None, tmp_path / "other")
    assert load_pair(saved[0], other).vocab_size == 73
    assert "no tokenizer" in caplog.text


def test_embeddings_padded_differently_share_what_the_tokenizer_knows(saved: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(tiny_llama(80, 1, 0), byte_tokenizer(73), tmp_path / "other")
    assert load_pair(saved[0], other).vocab_size == 73


def test_a_model_smaller_than_its_tokenizer(saved: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(tiny_llama(70, 1, 0), byte_tokenizer(73), tmp_path / "other")
    refused(saved[0], other, "70", "73", str(other))


def test_a_model_without_attention_interface(saved: tuple[Path, Path], tmp_path: Path) -> None:
    model = tf.MambaForCausalLM(tf.MambaConfig(vocab_size=73, hidden_size=16, num_hidden_layers=1, state_size=4))
    other = save(model, byte_tokenizer(73), tmp_path / "mamba")
    refused(saved[0], other, "MambaForCausalLM", "attention interface")
    refused(other, saved[1], "MambaForCausalLM", "attention interface")


def test_a_model_that_is_no_causal_lm(saved: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    refused(saved[0], tmp_path / "vision", "vision", "causal LM")


def test_code_of_a_repository_is_not_run(saved: tuple[Path, Path]) -> None:
    config = json.loads((saved[1] / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (saved[1] / "config.json").write_text(json.dumps(config))
    (saved[1] / "mine.py").write_text("raise SystemExit('this ran')")
    refused(*saved, str(saved[1]))


def test_several_end_of_text_tokens(tiny_pair: Pair, saved: tuple[Path, Path]) -> None:
    path = saved[0] / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [0, 5]}))
    assert load_pair(*saved).eos_token_ids == {0, 5}


def test_the_shipped_pair_is_complete(pair: Pair) -> None:
    assert pair.drafter is not None
    assert pair.target.num_parameters() > pair.drafter.num_parameters()
    assert len(pair.tokenizer) == pair.vocab_size and len(pair.eos_token_ids) == 1
    text = "def main():\n    return 'é€😀'\n"
    assert pair.tokenizer.decode(pair.tokenizer(text)["input_ids"]) == text
