"""What the pair is worth: acceptance per depth, variety of its text, and the model card that says so."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from specpilot.controllers import ConstantController
from specpilot.engine import Engine, EngineConfig, Pair, RequestOutput, SamplingParams

TEMPERATURES = (0.0, 0.6, 1.0)


def evaluation_prompts(
    files: Sequence[tuple[str, np.ndarray]], line_starts: frozenset[int], count: int, seed: int
) -> list[dict[str, Any]]:
    """Cut ``count`` prompts of 16 to 160 tokens out of evaluation ``files`` (name, token ids).

    A prompt starts where a line starts (after a token in ``line_starts``) and a file is drawn at most four times as
    often as any other, by its length.
    """
    rng = np.random.default_rng(seed)
    usable = [(name, tokens) for name, tokens in files if len(tokens) > 400]
    weights = np.sqrt([len(tokens) for _, tokens in usable])
    prompts: list[dict[str, Any]] = []
    while len(prompts) < count:
        name, tokens = usable[int(rng.choice(len(usable), p=weights / weights.sum()))]
        length = int(rng.integers(16, 161))
        start = int(rng.integers(0, len(tokens) - length - 1))
        ahead = [
            index
            for index in range(start, min(start + 80, len(tokens) - length))
            if int(tokens[index - 1]) in line_starts
        ]
        start = ahead[0] if ahead and start else start
        prompts.append({"file": name, "token_ids": [int(token) for token in tokens[start : start + length]]})
    return prompts


def measure(pair: Pair, prompts: Sequence[Sequence[int]], max_tokens: int = 128) -> dict[str, Any]:
    """Serve ``prompts`` with K = 8 at each temperature; acceptance by greedy drafts and by coupled drafts."""
    result: dict[str, Any] = {"num_prompts": len(prompts), "max_tokens": max_tokens, "temperatures": {}}
    for temperature in TEMPERATURES:
        entry: dict[str, Any] = {}
        for name, greedy in (("greedy_drafts", True), ("coupled_drafts", False)):
            engine = Engine(pair, EngineConfig(max_num_seqs=16, greedy_drafts=greedy), ConstantController(8))
            outputs = engine.generate(prompts, _params(temperature, max_tokens, len(prompts)))
            entry[name] = _acceptance(engine)
        entry["greedy_drafts"]["mean_accepted_length_per_position"] = _per_position(pair, outputs)
        entry["distinct_4grams"] = distinct_share([output.token_ids for output in outputs])
        entry["ended_by_end_of_text"] = _share_ended(outputs)
        result["temperatures"][str(temperature)] = entry
    return result


def _params(temperature: float, max_tokens: int, count: int) -> list[SamplingParams]:
    return [SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens) for seed in range(count)]


def _acceptance(engine: Engine) -> dict[str, Any]:
    """Accepted length of rounds that drafted all 8 tokens, and the share of them that accepted depth 1, 2, … 8."""
    lengths = np.asarray(
        [
            accepted
            for record in engine.stats.rounds
            for drafted, accepted in zip(record.num_drafted, record.accepted_length, strict=True)
            if drafted == 8
        ]
    )
    reached = [float((lengths >= depth).mean()) for depth in range(1, 9)]
    return {
        "mean_accepted_length": float(lengths.mean()),
        "reached_depth": reached,
        "accepted_given_previous": [
            reached[0],
            *(b / a if a else 0.0 for a, b in itertools.pairwise(reached)),
        ],
        "num_rounds": len(lengths),
    }


@torch.inference_mode()
def _per_position(pair: Pair, outputs: Sequence[RequestOutput]) -> float:
    """Mean accepted length of a greedy draft of 8 from every position of the text, not only where rounds start.

    A draft is right up to depth d where the drafter, fed the text itself, names each of the next d tokens. Starts
    whose 8 tokens the text does not hold are left out.
    """
    drafter: Any = pair.drafter
    lengths: list[int] = []
    for output in outputs:
        text = torch.tensor([[*output.prompt_token_ids, *output.token_ids]])
        guesses = drafter(input_ids=text, use_cache=False).logits[0, :-1].argmax(-1)
        right = (guesses == text[0, 1:])[len(output.prompt_token_ids) - 1 :].numpy()
        if len(right) >= 8:
            lengths += np.lib.stride_tricks.sliding_window_view(right, 8).cumprod(-1).sum(-1).tolist()
    return float(np.mean(lengths))


def distinct_share(texts: Sequence[Sequence[int]], size: int = 4) -> float:
    """Distinct n-grams over all n-grams, averaged over texts: 1 is no repetition, near 0 a loop."""
    shares = []
    for text in texts:
        grams = [tuple(text[start : start + size]) for start in range(len(text) - size + 1)]
        if grams:
            shares.append(len(set(grams)) / len(grams))
    return float(np.mean(shares))


def _share_ended(outputs: Sequence[RequestOutput]) -> float:
    return float(np.mean([output.finish_reason == "stop" for output in outputs]))


def acceptance_cells(report: dict[str, Any]) -> list[list[str]]:
    """Per temperature: greedy drafts per round and from every position, coupled drafts, distinct 4-grams."""
    rows = []
    for temperature, entry in report["temperatures"].items():
        greedy, coupled = entry["greedy_drafts"], entry["coupled_drafts"]
        values = (
            greedy["mean_accepted_length"],
            greedy["mean_accepted_length_per_position"],
            coupled["mean_accepted_length"],
            entry["distinct_4grams"],
        )
        rows.append([temperature, *(f"{value:.2f}" for value in values)])
    return rows


def model_card(record: dict[str, Any]) -> str:
    """The pair's model card in Markdown, every number from ``record``."""
    config, corpus, report = record["config"], record["corpus"], record["report"]
    rows = [f"| {' | '.join(cells)} |" for cells in acceptance_cells(report)]
    depth_rows = [
        f"| {temperature} | {name.split('_')[0]} | "
        + " | ".join(f"{value:.2f}" for value in entry[name]["accepted_given_previous"])
        + " |"
        for temperature, entry in report["temperatures"].items()
        for name in ("greedy_drafts", "coupled_drafts")
    ]
    models = [
        f"| {name.replace('_', ' ')} | {record[name]['parameters'] / 1e6:.2f} M "
        f"| {config[name]['num_hidden_layers']} x {config[name]['hidden_size']} "
        f"| {record[name]['tokens_seen'] / 1e6:.1f} M | {record[name]['loss']} "
        f"{record[name]['validation_loss']:.3f} |"
        for name in ("shallow_target", "target", "pretrained_drafter", "drafter")
        if name in record
    ]
    splits = ", ".join(
        f"{name} {value['files']} files / {value['tokens'] / 1e6:.2f} M tokens" for name, value in corpus.items()
    )
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "library_name: transformers",
            "tags: [speculative-decoding, code]",
            "---",
            "# specpilot pair: Python standard library",
            "",
            "A small target and a drafter that share a vocabulary, both Llama architecture, made to study and test",
            "speculative decoding. They write plausible Python; they know nothing. Loads with",
            "`AutoModelForCausalLM.from_pretrained` from `target/` and `drafter/`.",
            "",
            "| model | parameters | layers x width | tokens seen | validation loss |",
            "|---|---|---|---|---|",
            *models,
            "",
            f"Corpus: sources and documentation of Python {record['versions']['python']}'s standard library "
            f"(PSF licence), split by file: {splits}. Evaluation files are never trained on; "
            "`evaluation_prompts.json` is cut from them.",
            f"Tokenizer: byte-level BPE, {config['vocab_size']} tokens, trained on the train split.",
            "",
            f"Accepted length with K = 8 over {report['num_prompts']} evaluation prompts, "
            f"{report['max_tokens']} tokens each: per round (of those that drafted all 8) and, for greedy drafts, "
            "from every position of the text:",
            "",
            "| temperature | greedy drafts | from every position | coupled drafts | distinct 4-grams of the text |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Evaluation files themselves have {record['corpus_distinct_4grams']:.2f} distinct 4-grams "
            "over windows of the same length.",
            "",
            "Acceptance of depth d given that depth d-1 was accepted:",
            "",
            "| temperature | drafts | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *depth_rows,
            "",
            f"Made on {record['hardware']} with torch {record['versions']['torch']}, "
            f"transformers {record['versions']['transformers']}; wall time of the stages, in a shared machine: "
            + ", ".join(f"{name} {seconds / 60:.0f} min" for name, seconds in record["stage_seconds"].items())
            + ".",
            *record.get("remarks", []),
            "",
            "Regenerate: `python train/pair.py --config configs/pair/pystdlib.yaml` (all numbers above are in",
            "`training.json`). Weights differ in the last digits between machines.",
            "",
        ]
    )
