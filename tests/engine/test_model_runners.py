"""Every runner gives the logits of transformers' own forward pass, over prefill chunks, chains and trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from transformers import PreTrainedModel

from specpilot.controllers import ConstantController
from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams, TokenTree
from specpilot.engine.forward_batch import Segment, build_batch
from specpilot.engine.models import LlamaRunner, ModelRunner, StockRunner, UnsupportedModelError, build_runner

VOCAB = 50
SLOT_LENGTH = 40
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def llama(**changes: Any) -> PreTrainedModel:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**{**SMALL, "num_key_value_heads": 2, **changes}))


FUSED: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-gqa": llama,
    "llama-mqa": lambda: llama(num_key_value_heads=1),
    "llama-mha": lambda: llama(num_key_value_heads=4),
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-wide-heads": lambda: llama(head_dim=16),
    "llama-linear-rope": lambda: llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
    "llama3-rope": lambda: llama(
        rope_parameters={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 10000.0,
        }
    ),
    "mistral": lambda: tf.MistralForCausalLM(
        tf.MistralConfig(**{**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": None})
    ),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**{**SMALL, "num_key_value_heads": 2})),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**{**SMALL, "num_key_value_heads": 2, "head_dim": 8})),
}
STOCK: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    ),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SMALL)),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            init_std=0.3,
        )
    ),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**{**SMALL, "num_key_value_heads": 1, "head_dim": 8})),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**SMALL)),
    "cohere": lambda: tf.CohereForCausalLM(tf.CohereConfig(**{**SMALL, "num_key_value_heads": 2})),
    "llama-attention-bias": lambda: llama(attention_bias=True),
    "llama-mlp-bias": lambda: llama(mlp_bias=True),
    "llama-gelu": lambda: llama(hidden_act="gelu"),
}


def build(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():  # norms and biases start as ones and zeros, which would hide a mistake
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@torch.inference_mode()
def plain_logits(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([token_ids])).logits
    return logits[0].float()


def run(runner: ModelRunner, cache: Any, segments: list[Segment], rows: torch.Tensor | None = None) -> torch.Tensor:
    return runner.forward(build_batch(segments, SLOT_LENGTH, torch.device("cpu")), cache, rows)


def check_runner(runner: ModelRunner, model: PreTrainedModel) -> None:
    """Ragged prefill in two chunks, then one pass with a chain, a tree and a single token; slot 1 stays out."""
    cache = runner.new_cache(5, SLOT_LENGTH)
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(1, VOCAB, (count,), generator=generator).tolist()

    texts = {0: tokens(9), 2: tokens(14), 3: tokens(5), 4: tokens(1)}
    first = [Segment(slot, 0, TokenTree.chain(text[:4])) for slot, text in texts.items()]
    logits = run(runner, cache, first)
    expected = torch.cat([plain_logits(model, text)[: len(text[:4])] for text in texts.values()])
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    rest = [Segment(slot, 4, TokenTree.chain(text[4:])) for slot, text in texts.items() if len(text) > 4]
    nothing = run(runner, cache, rest, rows=torch.empty(0, dtype=torch.long))
    assert nothing.shape == (0, VOCAB) and nothing.dtype == torch.float32

    trees = {
        0: TokenTree(tokens(6), [-1, 0, 1, 0, 3, 3]),
        2: TokenTree.chain(tokens(4)),
        3: TokenTree.chain(tokens(1)),
        4: TokenTree(tokens(5), [-1, 0, 0, 0, 2]),
    }
    logits = run(runner, cache, [Segment(slot, len(texts[slot]), tree) for slot, tree in trees.items()])
    expected_rows = []
    for slot, tree in trees.items():
        for node in range(len(tree)):
            path = [node]
            while tree.parents[path[0]] != -1:
                path.insert(0, tree.parents[path[0]])
            expected_rows.append(plain_logits(model, texts[slot] + [tree.tokens[n] for n in path])[-1])
    torch.testing.assert_close(logits, torch.stack(expected_rows), rtol=1e-3, atol=1e-4)

    # The same pass again (what was stored is overwritten), with some of the logits only.
    wanted = torch.tensor([1, 5, 9])
    some = run(runner, cache, [Segment(slot, len(texts[slot]), tree) for slot, tree in trees.items()], wanted)
    torch.testing.assert_close(some, logits[wanted], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FUSED)
def test_fused_runner_is_the_models_own_forward(name: str) -> None:
    model = build(FUSED[name])
    runner = build_runner(model)
    assert isinstance(runner, LlamaRunner)
    check_runner(runner, model)


@pytest.mark.parametrize("name", [*FUSED, *STOCK])
def test_stock_runner_is_the_models_own_forward(name: str) -> None:
    model = build({**FUSED, **STOCK}[name])
    implementation = model.config._attn_implementation
    runner = build_runner(model, fused=False if name in FUSED else None)
    assert isinstance(runner, StockRunner)
    check_runner(runner, model)
    assert model.config._attn_implementation == implementation, "the model must be left as it was"


def test_the_model_still_generates_between_the_stock_runners_passes() -> None:
    model = build(llama)
    ids = torch.tensor([[3, 4, 5]])
    before = model.generate(ids, do_sample=False, max_new_tokens=6)
    check_runner(build_runner(model, fused=False), model)
    assert torch.equal(model.generate(ids, do_sample=False, max_new_tokens=6), before)


def test_the_fused_path_in_bfloat16_is_close_to_the_model() -> None:
    model = build(llama).to(torch.bfloat16)
    runner = LlamaRunner(model)
    tokens = list(range(1, 12))
    logits = run(runner, runner.new_cache(1, SLOT_LENGTH), [Segment(0, 0, TokenTree.chain(tokens))])
    expected = plain_logits(model, tokens)
    assert logits.dtype == torch.float32
    assert float((logits - expected).abs().max()) < 0.06 * float(expected.abs().max())


@pytest.mark.parametrize("name", STOCK)
def test_demanding_the_fused_path_of_another_model_says_why_not(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="fused"):
        build_runner(build(STOCK[name]), fused=True)


def sliding(config: Any, model: Any, **changes: Any) -> PreTrainedModel:
    built: PreTrainedModel = model(config(**{**SMALL, "num_key_value_heads": 2, "sliding_window": 6, **changes}))
    return built


SLIDING: dict[str, Callable[[], PreTrainedModel]] = {
    "mistral": lambda: sliding(tf.MistralConfig, tf.MistralForCausalLM, head_dim=8),
    "qwen2": lambda: sliding(tf.Qwen2Config, tf.Qwen2ForCausalLM, use_sliding_window=True, max_window_layers=0),
}


@pytest.mark.parametrize("name", SLIDING)
def test_a_sliding_window_is_never_ignored(name: str) -> None:
    """Within the window the logits are right; beyond it there is a clear error, not a wrong text."""
    model = build(SLIDING[name])
    runner = build_runner(model)
    tokens = list(range(1, 6))
    logits = run(runner, runner.new_cache(1, SLOT_LENGTH), [Segment(0, 0, TokenTree.chain(tokens))])
    torch.testing.assert_close(logits, plain_logits(model, tokens), rtol=1e-3, atol=1e-4)
    with pytest.raises(UnsupportedModelError, match="sliding window of 6"):
        run(runner, runner.new_cache(1, SLOT_LENGTH), [Segment(0, 0, TokenTree.chain(list(range(1, 20))))])


UNSUPPORTED: dict[str, Callable[[], PreTrainedModel]] = {
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4)
    ),
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=4)),
    "rwkv-like": lambda: tf.RecurrentGemmaForCausalLM(
        tf.RecurrentGemmaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=48,
            lru_width=32,
        )
    ),
    "no head": lambda: tf.LlamaModel(tf.LlamaConfig(**{**SMALL, "num_key_value_heads": 2})),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_architecture_that_cannot_work_is_refused_by_name(name: str) -> None:
    model = UNSUPPORTED[name]()
    with pytest.raises(UnsupportedModelError, match=type(model).__name__) as caught:
        build_runner(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_the_engine_serves_a_pair_of_another_family(name: str, tiny_pair: Pair) -> None:
    target, drafter = build(STOCK[name]), build(STOCK[name])
    pair = Pair(target, drafter, tiny_pair.tokenizer, VOCAB)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    engine = Engine(pair, EngineConfig(max_model_len=40), ConstantController(3))
    outputs = engine.generate([[1, 2, 3], [7] * 9], params)
    for output in outputs:
        ids = torch.tensor([output.prompt_token_ids])
        text = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert tuple(text[0, ids.shape[1] :].tolist()) == output.token_ids
    assert engine.stats.num_accepted == engine.stats.num_drafted > 0, "the drafter is the target"


def test_logits_beyond_the_vocabulary_are_never_sampled(tiny_pair: Pair) -> None:
    """Embedding tables are padded; a padding row with the best logit must not come out."""
    pair = Pair(tiny_pair.target, tiny_pair.drafter, tiny_pair.tokenizer, 40)
    engine = Engine(pair, EngineConfig(max_model_len=64, num_candidates=2), ConstantController(3))
    outputs = engine.generate([[1, 2]] * 20, SamplingParams(temperature=2.0, max_tokens=30, ignore_eos=True))
    assert max(token for output in outputs for token in output.token_ids) < 40
