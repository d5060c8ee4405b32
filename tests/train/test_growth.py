"""Growing a model: the same function with more layers, and every layer of it able to learn."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from specpilot.train.growth import copy_agreeing, grow, shrink
from specpilot.train.language_model import ModelSettings

VOCAB = 64


def model(layers: int, seed: int = 0, heads: int = 2, key_heads: int = 1, channels: int = 48) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    built = ModelSettings(
        32, layers, heads, key_heads, channels, steps=1, batch_size=1, sequence_length=8, learning_rate=0.1
    )
    return built.build(VOCAB, 0, 64).eval()


def logits(network: LlamaForCausalLM) -> torch.Tensor:
    tokens = torch.arange(40).view(2, 20) % VOCAB
    return network(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize(("few", "deep"), [(1, 2), (3, 3), (3, 4), (3, 7), (4, 5)])
def test_a_grown_model_computes_what_the_shallow_one_does(few: int, deep: int) -> None:
    shallow, grown = model(few), model(deep, seed=1)
    assert not torch.allclose(logits(grown), logits(shallow), atol=1e-3)
    grow(grown, shallow)
    assert torch.allclose(logits(grown), logits(shallow), atol=1e-5)


def test_the_trained_layers_keep_their_order_and_the_added_ones_learn() -> None:
    shallow, grown = model(3), model(7, seed=1)
    grow(grown, shallow)
    outputs = [layer.mlp.down_proj.weight for layer in grown.model.layers]
    kept = [index for index, weight in enumerate(outputs) if weight.any()]
    trained = [layer.mlp.down_proj.weight for layer in shallow.model.layers]
    assert len(kept) == 3
    assert all(torch.equal(outputs[at], weight) for at, weight in zip(kept, trained, strict=True))
    logits(grown).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in outputs)


def test_models_that_differ_in_more_than_depth_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot grow from one of 3"):
        grow(model(2), model(3))
    with pytest.raises(ValueError, match=r"shallow target's .* has another shape"):
        grow(model(3), model(2, heads=4))


def test_only_agreeing_tensors_are_copied() -> None:
    source, other = model(3), model(1, seed=1, heads=4)
    before = other.state_dict()["model.layers.0.self_attn.k_proj.weight"].clone()
    copy_agreeing(source, other)
    assert torch.equal(other.model.embed_tokens.weight, source.model.embed_tokens.weight)
    assert torch.equal(other.state_dict()["model.layers.0.self_attn.k_proj.weight"], before)


def test_shrinking_to_the_same_size_changes_nothing() -> None:
    large, same = model(2, key_heads=2), model(2, seed=1, key_heads=2)
    shrink(same, large)
    assert torch.equal(logits(same), logits(large))


def test_equal_key_heads_and_idle_channels_can_go_without_loss() -> None:
    large, small = model(2, key_heads=2), model(2, seed=1, key_heads=1, channels=40)
    with torch.no_grad():
        for layer in large.model.layers:
            for projection in (layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight):
                projection[16:] = projection[:16]
            layer.mlp.down_proj.weight[:, 5:13] = 0.0
    shrink(small, large)
    assert torch.allclose(logits(small), logits(large), atol=1e-6)


def test_models_that_differ_otherwise_are_not_shrunk() -> None:
    with pytest.raises(ValueError, match="make the rest equal"):
        shrink(model(1, key_heads=1), model(2, key_heads=2))
