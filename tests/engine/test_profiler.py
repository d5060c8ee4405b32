"""The engine's profiler times what the engine really runs, and only while nobody is served."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specpilot.controllers import ConstantController, CostGrid, CostSurface
from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams
from specpilot.engine.profiler import EngineProfiler

VOCAB_SIZE = 128
GRID = CostGrid(
    batches=(1, 4),
    verify_tokens=(1, 5),
    catch_up_tokens=(16,),
    prefill_tokens=(16,),
    contexts=(8, 32),
    repeats=2,
)


def tiny_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=64,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def pair() -> Pair:
    words = WordLevel({f"w{token}": token for token in range(VOCAB_SIZE)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    return Pair(tiny_model(0), tiny_model(1), tokenizer, VOCAB_SIZE)


def make_engine(pair: Pair, drafter: str = "model", fused: bool | None = None) -> Engine:
    return Engine(pair, EngineConfig(max_num_seqs=4, drafter=drafter, fused=fused), ConstantController(3))


@pytest.mark.parametrize("fused", [True, False])
def test_a_real_engine_can_be_measured(pair: Pair, fused: bool) -> None:
    surface = CostSurface.measure(EngineProfiler(make_engine(pair, fused=fused)), GRID)
    assert set(surface.costs) == {"draft", "verify", "catch_up", "prefill"}
    for costs in surface.costs.values():
        assert np.isfinite(costs.samples).all() and (costs.samples > 0).all()
    assert surface.round_seconds([3, 0], [20, 30], [1, 5]) > surface.round_seconds([0, 0], [20, 30], [1, 5]) > 0


def test_the_default_grid_fits_any_engine(pair: Pair) -> None:
    surface = CostSurface.measure(EngineProfiler(make_engine(pair)), CostGrid(repeats=1))
    assert surface.costs["verify"].axes[0] == (1, 2, 4)
    assert surface.costs["verify"].axes[2] == (55,)


def test_an_engine_hands_out_its_profiler(pair: Pair) -> None:
    engine = make_engine(pair)
    if not hasattr(engine, "profiler"):
        pytest.skip("this engine has no profiler method")
    assert isinstance(engine.profiler(), EngineProfiler)
    assert CostSurface.measure(engine, GRID).fields == EngineProfiler(engine).fingerprint_fields()


def test_without_a_model_drafter_there_is_nothing_to_time_of_it(pair: Pair) -> None:
    profiler = EngineProfiler(make_engine(pair, drafter="ngram"))
    assert profiler.kinds == ("verify", "prefill")
    assert set(CostSurface.measure(profiler, GRID).costs) == {"verify", "prefill"}
    with pytest.raises(ValueError, match="kind must be one of"):
        profiler.time_pass("draft", 1, 1, 8)


def test_an_engine_with_requests_is_not_measured(pair: Pair) -> None:
    engine = make_engine(pair)
    profiler = EngineProfiler(engine)
    engine.add_request([1, 2, 3], SamplingParams(max_tokens=4))
    with pytest.raises(RuntimeError, match="has requests"):
        EngineProfiler(engine)
    with pytest.raises(RuntimeError, match="has requests"):
        profiler.time_pass("verify", 1, 1, 8)


def test_measuring_leaves_no_trace_in_what_is_generated(pair: Pair) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=3)
    expected = make_engine(pair).generate([[1, 2, 3], [4, 5]], params)
    engine = make_engine(pair)
    CostSurface.measure(EngineProfiler(engine), GRID)
    found = engine.generate([[1, 2, 3], [4, 5]], params)
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]


@pytest.mark.parametrize(
    ("batch", "tokens", "context", "message"),
    [
        (5, 1, 8, "batch must be 1 … 4"),
        (0, 1, 8, "batch must be 1 … 4"),
        (1, 0, 8, "tokens at least 1"),
        (1, 1, -1, "context at least 0"),
        (1, 9, 56, "must fit max_model_len 64"),
    ],
)
def test_a_pass_the_engine_cannot_do_is_refused(
    pair: Pair, batch: int, tokens: int, context: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EngineProfiler(make_engine(pair)).time_pass("verify", batch, tokens, context)


def test_the_fingerprint_tells_runners_and_drafters_apart(pair: Pair) -> None:
    fields = [
        EngineProfiler(make_engine(pair, drafter, fused)).fingerprint_fields()
        for drafter, fused in (("model", True), ("model", False), ("ngram", True))
    ]
    assert fields[0]["target"] != fields[1]["target"] and fields[0]["drafter"] != fields[2]["drafter"]
    assert fields[0] == EngineProfiler(make_engine(pair, "model", True)).fingerprint_fields()
    assert fields[0]["dtype"] == "float32" and "torch" in fields[0]["versions"]
