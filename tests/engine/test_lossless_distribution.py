"""Both verification modes draw from the target's exact distribution, and wrong rules are found out by the same test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import specpilot.engine.noise as noise_module
import specpilot.engine.round_noise as round_noise_module
import specpilot.engine.speculation as speculation_module
import specpilot.engine.verification as verification_module
from specpilot.controllers import ConstantController
from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams, TokenTree
from specpilot.engine.verification import Verdict, accept_rejection

from ..support.controllers import RandomController

NUM_SAMPLES = 5000
NUM_TOKENS = 3
P_VALUE = 1e-4
PROMPT = (3, 7, 1, 2, 3, 7, 1, 4, 3, 7)
REPETITIVE_PROMPT = (1, 3, 2, 9, 2, 1, 3)  # the target often goes on with 2, as prompt lookup proposes

Joint = NDArray[np.float64]


def exact_joint(pair: Pair, prompt: Sequence[int], params: SamplingParams) -> Joint:
    """Probability of every sequence of `NUM_TOKENS` tokens ``[V, V, V]``, by transformers' own model and filters."""
    size = pair.vocab_size
    warpers = [TemperatureLogitsWarper(float(params.temperature))]
    warpers += [TopKLogitsWarper(params.top_k)] if params.top_k else []
    warpers += [TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    joint = np.ones(())
    for depth in range(NUM_TOKENS):
        ids = torch.tensor([[*prompt, *tail] for tail in itertools.product(range(size), repeat=depth)])
        with torch.inference_mode():
            logits = pair.target(ids).logits[:, -1].float()
        for warper in warpers:
            logits = warper(ids, logits)
        joint = joint[..., None] * logits.double().softmax(-1).numpy().reshape((size,) * (depth + 1))
    return joint


def p_value(counts: Joint, exact: Joint) -> float:
    """Chi-square test of the smallest p over three views: all tokens, the first two and the last two (times three)."""
    views = [(counts, exact), (counts.sum(2), exact.sum(2)), (counts.sum(0), exact.sum(0))]
    return min(1.0, 3 * min(_chi_square(view.ravel(), truth.ravel()) for view, truth in views))


def _chi_square(counts: Joint, exact: Joint) -> float:
    if counts[exact == 0].any():
        return 0.0  # a token came that cannot come
    observed, wanted = [0.0], [0.0]
    for cell in np.argsort(exact):  # rare cells are pooled until a pool expects ten
        if wanted[-1] >= 10:
            observed.append(0.0)
            wanted.append(0.0)
        observed[-1] += counts[cell]
        wanted[-1] += exact[cell] * counts.sum()
    return float(stats.chisquare(observed, wanted).pvalue) if len(wanted) > 1 else 1.0


def total_variation(counts: Joint, exact: Joint) -> tuple[float, float]:
    """Distance of the first two tokens' histogram from the truth, and what sampling noise alone may make of it."""
    observed, truth = counts.sum(2).ravel() / counts.sum(), exact.sum(2).ravel()
    rng = np.random.default_rng(0)
    draws = rng.multinomial(int(counts.sum()), truth, size=400) / counts.sum()
    noise = 0.5 * np.abs(draws - truth).sum(1)
    return 0.5 * float(np.abs(observed - truth).sum()), float(noise.max() * 1.1)


@dataclass(frozen=True)
class Case:
    """One way to speculate."""

    verification: str
    num_candidates: int = 1
    drafter: str = "model"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    random_k: bool = False
    greedy_drafts: bool = False

    def __str__(self) -> str:
        default = Case("")
        return "-".join(
            f"{'' if isinstance(value, str) else name}{value}"
            for name, value in vars(self).items()
            if value != getattr(default, name)
        )

    @property
    def prompt(self) -> tuple[int, ...]:
        return REPETITIVE_PROMPT if self.drafter == "ngram" else PROMPT

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_p, self.top_k, max_tokens=NUM_TOKENS)

    @property
    def config(self) -> EngineConfig:
        return EngineConfig(
            max_num_seqs=128,
            max_model_len=32,
            drafter=self.drafter,
            num_candidates=self.num_candidates,
            verification=self.verification,
            greedy_drafts=self.greedy_drafts,
            prefill_chunk=2048,
            catch_up_chunk=2048,
        )


def sampled_joint(pair: Pair, case: Case, length: int = NUM_TOKENS - 1) -> Joint:
    """Counts ``[V, V, V]`` of the sequences that an engine draws with `NUM_SAMPLES` seeds."""
    controller = RandomController(seed=2, max_length=3, stop_probability=0.3) if case.random_k else None
    engine = Engine(pair, case.config, controller or ConstantController(length))
    params = [replace(case.params, seed=seed) for seed in range(NUM_SAMPLES)]
    counts = np.zeros((pair.vocab_size,) * NUM_TOKENS)
    for output in engine.generate([list(case.prompt)] * NUM_SAMPLES, params):
        counts[output.token_ids] += 1
    assert counts.sum() == NUM_SAMPLES
    if length:
        assert engine.stats.num_accepted > 0.2 * NUM_SAMPLES, "too few drafts were kept for the test to mean anything"
    return counts


CASES = [
    Case("coupled"),
    Case("coupled", num_candidates=3),
    Case("coupled", temperature=0.6),
    Case("coupled", drafter="ngram"),
    Case("coupled", top_p=0.8),
    Case("coupled", num_candidates=2, random_k=True),
    Case("rejection"),
    Case("rejection", num_candidates=3),
    Case("rejection", temperature=0.6),
    Case("rejection", num_candidates=3, temperature=0.6),
    Case("rejection", drafter="ngram"),
    Case("rejection", top_p=0.8),
    Case("rejection", top_k=4, num_candidates=3),
    Case("rejection", top_p=0.8, top_k=6, temperature=0.6),
    Case("rejection", num_candidates=2, random_k=True),
    Case("rejection", num_candidates=2, greedy_drafts=True),
    Case("coupled", greedy_drafts=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_texts_are_drawn_from_the_targets_distribution(micro_pair: Pair, case: Case) -> None:
    exact = exact_joint(micro_pair, case.prompt, case.params)
    counts = sampled_joint(micro_pair, case)
    distance, allowed = total_variation(counts, exact)
    assert p_value(counts, exact) > P_VALUE
    assert distance <= allowed


def test_rejection_mode_is_exact_without_speculation(micro_pair: Pair) -> None:
    case = Case("rejection")
    counts = sampled_joint(micro_pair, case, length=0)
    assert p_value(counts, exact_joint(micro_pair, case.prompt, case.params)) > P_VALUE


# ---------------------------------------------------------------------- wrong rules


def always_accept(tree: TokenTree, target: NDArray[np.float64], draft: object, rng: np.random.Generator) -> Verdict:
    node, path = 0, []
    while children := tree.children(node):
        node = children[0]
        path.append(node)
    return Verdict(tuple(path), int(rng.choice(target.shape[1], p=target[node] / target[node].sum())))


def always_accept_coupled(tree: TokenTree, target_tokens: Sequence[int]) -> Verdict:
    node, path = 0, []
    while children := tree.children(node):
        node = children[0]
        path.append(node)
    return Verdict(tuple(path), target_tokens[node])


def first_child_if_any_matches(tree: TokenTree, target_tokens: Sequence[int]) -> Verdict:
    """List coupling gone wrong: a match of any candidate keeps the first."""
    node, path = 0, []
    while True:
        children = tree.children(node)
        if target_tokens[node] not in [tree.tokens[child] for child in children]:
            return Verdict(tuple(path), target_tokens[node])
        node = children[0]
        path.append(node)


def position_blind(keys: Callable[..., NDArray[np.uint64]]) -> Callable[..., NDArray[np.uint64]]:
    def wrong(seeds: NDArray[np.int64], positions: NDArray[np.int64], stream: int, draw: int = 0) -> NDArray[np.uint64]:
        return keys(seeds, np.zeros_like(positions), stream, draw)

    return wrong


def half_the_seeds(keys: Callable[..., NDArray[np.uint64]]) -> Callable[..., NDArray[np.uint64]]:
    """Few distinct noises: 64 seeds for all texts."""

    def wrong(seeds: NDArray[np.int64], positions: NDArray[np.int64], stream: int, draw: int = 0) -> NDArray[np.uint64]:
        return keys(np.asarray(seeds) % 64, positions, stream, draw)

    return wrong


Wrong = Callable[[pytest.MonkeyPatch], None]
WRONG_RULES: dict[str, tuple[Case, Wrong]] = {
    "rejection accepts always": (
        Case("rejection"),
        lambda patch: patch.setattr(speculation_module, "accept_rejection", always_accept),
    ),
    "residual not subtracted": (
        Case("rejection"),
        lambda patch: patch.setattr(verification_module, "_residual", lambda target, token, draft: target),
    ),
    "residual only loses the rejected token": (
        Case("rejection"),
        lambda patch: patch.setattr(
            verification_module,
            "_residual",
            lambda target, token, draft: (
                np.where(np.arange(len(target)) == token, 0, target) / max(1e-300, target.sum() - target[token])
            ),
        ),
    ),
    "no correction for drawing without replacement": (
        Case("rejection", num_candidates=3),
        lambda patch: patch.setattr(verification_module, "_without", lambda draft, token: draft),
    ),
    "drafts drawn with the coins of every round alike": (
        Case("rejection"),
        lambda patch: patch.setattr(
            speculation_module, "coins", lambda seed, position, draw: np.random.default_rng(seed % 16)
        ),
    ),
    "coupled accepts always": (
        Case("coupled"),
        lambda patch: patch.setattr(speculation_module, "accept_coupled", always_accept_coupled),
    ),
    "any candidate keeps the first": (
        Case("coupled", num_candidates=3),
        lambda patch: patch.setattr(speculation_module, "accept_coupled", first_child_if_any_matches),
    ),
    "noise that forgets the position": (
        Case("coupled"),
        lambda patch: patch.setattr(round_noise_module, "noise_keys", position_blind(noise_module.noise_keys)),
    ),
    "noise of few seeds": (
        Case("coupled"),
        lambda patch: patch.setattr(round_noise_module, "noise_keys", half_the_seeds(noise_module.noise_keys)),
    ),
}


@pytest.mark.parametrize("name", WRONG_RULES)
def test_a_wrong_rule_is_found(micro_pair: Pair, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case, break_it = WRONG_RULES[name]
    break_it(monkeypatch)
    counts = sampled_joint(micro_pair, case)
    assert p_value(counts, exact_joint(micro_pair, case.prompt, case.params)) < P_VALUE


def test_unshared_draft_noise_loses_acceptance_but_not_the_text(
    micro_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coupled mode stands or falls with the sharing only in speed: the target's own token decides."""
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=12) for seed in range(200)]
    prompts = [list(PROMPT)] * len(params)
    config = EngineConfig(max_num_seqs=64, max_model_len=32)

    def serve() -> tuple[list[tuple[int, ...]], int]:
        engine = Engine(micro_pair, config, ConstantController(4))
        return [output.token_ids for output in engine.generate(prompts, params)], engine.stats.num_accepted

    shared_text, shared_accepted = serve()
    own = speculation_module.Speculator._draft_context
    monkeypatch.setattr(
        speculation_module.Speculator, "_draft_context", lambda *args: replace(own(*args), shared_noise=None)
    )
    text, accepted = serve()
    assert text == shared_text
    assert accepted < 0.8 * shared_accepted


# ---------------------------------------------------------------------- the rule alone


def random_distribution(rng: np.random.Generator, size: int, zeros: int = 0) -> NDArray[np.float64]:
    distribution = rng.dirichlet(np.full(size, 0.6))
    distribution[rng.permutation(size)[:zeros]] = 0
    normal: NDArray[np.float64] = distribution / distribution.sum()
    return normal


def without_replacement(
    rng: np.random.Generator, distribution: NDArray[np.float64], count: int, samples: int
) -> list[list[int]]:
    """``samples`` draws of ``count`` different tokens in order (Gumbel top-k)."""
    with np.errstate(divide="ignore"):
        scores = np.log(distribution) + rng.gumbel(size=(samples, len(distribution)))
    drawn: list[list[int]] = np.argsort(-scores, axis=1)[:, :count].tolist()
    return drawn


@pytest.mark.parametrize("num_candidates", [1, 2, 3, 5])
@pytest.mark.parametrize("zeros", [0, 3])
def test_rejection_rule_keeps_synthetic_distributions(num_candidates: int, zeros: int) -> None:
    rng = np.random.default_rng(num_candidates * 10 + zeros)
    size, samples = 6, 20_000
    target, draft = random_distribution(rng, size, zeros), random_distribution(rng, size, zeros)
    number = min(num_candidates, int((draft > 0).sum()))
    targets, counts = np.stack([target] * (number + 1)), np.zeros(size)
    for children in without_replacement(rng, draft, number, samples):
        tree = TokenTree([0, *children], [-1, *[0] * number])
        verdict = accept_rejection(tree, targets, {0: draft}, rng)
        counts[tree.tokens[verdict.path[0]] if verdict.path else verdict.next_token] += 1
    assert not counts[target == 0].any()
    kept = target > 0
    assert stats.chisquare(counts[kept], target[kept] * samples).pvalue > P_VALUE


def test_rejection_rule_keeps_the_distribution_for_drafts_chosen_without_chance() -> None:
    rng = np.random.default_rng(1)
    target = random_distribution(rng, 6)
    tree = TokenTree([0, 2, 5, 2], [-1, 0, 0, 0])  # the same guess twice changes nothing
    counts = np.zeros(6)
    for _ in range(20_000):
        verdict = accept_rejection(tree, np.stack([target] * 4), {}, rng)
        counts[tree.tokens[verdict.path[0]] if verdict.path else verdict.next_token] += 1
    assert stats.chisquare(counts, target * counts.sum()).pvalue > P_VALUE


def test_rejection_rule_keeps_the_joint_distribution_of_a_tree() -> None:
    rng = np.random.default_rng(2)
    size, samples = 4, 20_000
    first, first_draft = random_distribution(rng, size), random_distribution(rng, size)
    second = np.stack([random_distribution(rng, size) for _ in range(size)])
    second_draft = np.stack([random_distribution(rng, size) for _ in range(size)])
    counts = np.zeros((size, size))
    below_each = [without_replacement(rng, draft, 2, samples) for draft in second_draft]
    for index, (one, other) in enumerate(without_replacement(rng, first_draft, 2, samples)):
        below = below_each[one][index]
        tree = TokenTree([0, one, other, *below], [-1, 0, 0, 1, 1])
        target = np.stack([first, second[one], second[other], *[first] * 2])
        verdict = accept_rejection(tree, target, {0: first_draft, 1: second_draft[one]}, rng)
        text = [*(tree.tokens[node] for node in verdict.path), verdict.next_token]
        if len(text) == 1:
            text.append(int(rng.choice(size, p=second[text[0]])))
        counts[text[0], text[1]] += 1
    exact = first[:, None] * second
    assert stats.chisquare(counts.ravel(), exact.ravel() * samples).pvalue > P_VALUE
