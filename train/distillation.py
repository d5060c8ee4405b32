"""Make the drafter imitate the target: text the target writes, and the loss against its distribution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams
from specpilot.train.language_model import Loss, Model

PROMPT_TOKENS = 32
TEMPERATURES = (0.0, 0.6, 1.0, 1.0)  # cycled over the prompts: a drafter must also follow the target's greedy text


def write_with_target(
    target: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    stream: np.ndarray,
    num_tokens: int,
    length: int,
    seed: int,
    path: Path,
) -> np.ndarray:
    """Let the target continue snippets of ``stream``: int32 ``[num_tokens // length, length]``, kept at ``path``.

    End-of-text does not end a snippet, so that every row is full.
    """
    if path.exists():
        return np.asarray(np.load(path))
    count = max(1, num_tokens // length)
    starts = np.random.default_rng((seed, 1)).integers(0, len(stream) - PROMPT_TOKENS, size=count)
    engine = Engine(
        Pair(target, None, tokenizer, int(target.config.vocab_size)),
        EngineConfig(max_num_seqs=48, max_model_len=length),
    )
    for index, start in enumerate(starts):
        params = SamplingParams(
            temperature=TEMPERATURES[index % len(TEMPERATURES)],
            seed=seed + index,
            max_tokens=length - PROMPT_TOKENS,
            ignore_eos=True,
        )
        engine.add_request(stream[start : start + PROMPT_TOKENS].tolist(), params, request_id=str(index))
    with tqdm(total=count, desc="target writes", mininterval=5) as bar:
        while engine.has_work:
            bar.update(sum(chunk.finish_reason is not None for chunk in engine.step()))
    outputs = [engine.take_result(str(index)) for index in range(count)]
    rows = np.asarray([[*output.prompt_token_ids, *output.token_ids] for output in outputs], dtype=np.int32)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, rows)
    temporary.rename(path)
    return rows


def distillation_loss(
    target: Model,
) -> Loss:
    """Mean KL(target || drafter) in nats per position, over the whole vocabulary."""

    def loss(drafter: Model, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = target(input_ids=batch, use_cache=False).logits.float().log_softmax(-1)
        found = drafter(input_ids=batch, use_cache=False).logits.float().log_softmax(-1)
        return F.kl_div(found.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean")

    return loss


def mixed_batches(
    corpus: Callable[[int], torch.Tensor], generated: np.ndarray, count: int, seed: int
) -> Callable[[int], torch.Tensor]:
    """Half of every batch from the corpus, half of ``count`` from the target's own text."""

    def batch(step: int) -> torch.Tensor:
        rows = np.random.default_rng((seed, 2, step)).integers(0, len(generated), size=count)
        return torch.cat([corpus(step), torch.from_numpy(generated[rows].astype(np.int64))])

    return batch
