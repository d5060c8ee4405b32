"""Fit the acceptance predictor to a recording, fit the best one that can be had, and say how good either is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score

from specpilot.controllers import LEVEL_FEATURES, AcceptancePredictor
from specpilot.controllers.acceptance import FEATURE_OF_INPUT, LEVEL_INPUTS, level_inputs
from specpilot.controllers.acceptance_history import HISTORY_DEPTHS, HISTORY_INPUTS, LOWEST_RATE, history_inputs
from specpilot.controllers.acceptance_rate import next_rate
from specpilot.envs.scenario import mean_acceptance
from specpilot.envs.trace import Trace

Array = NDArray[Any]
BATCH = 4096
CARRIES = np.linspace(0.0, 1.0, 21)
HISTORIES = 4
"""Runs through every request with random lengths, from which the logistics of a history learn."""


class LevelRows(NamedTuple):
    """Drafted tokens of which all before were accepted; ``R`` rows."""

    position: Array
    """``[R]`` index of the draft's start position."""
    depth: Array
    """``[R]`` 1 … K."""
    temperature: Array
    accepted: Array
    """``[R]`` bool: whether the target kept it."""
    following: Array
    """``[R]`` bool: whether it kept the next one too."""
    has_following: Array
    """``[R]`` bool: accepted, and there is a next one to speak of."""


def level_rows(trace: Trace) -> LevelRows:
    """Every drafted token of a recording whose fate says something; none beyond the end of an output."""
    longest, request = trace.max_num_speculative_tokens, trace.request_of_position()
    left = trace.output_tokens[request] - (np.arange(len(request)) - trace.first[request])
    accepted = trace.accepted_length.astype(np.int64)
    depths = np.arange(1, longest + 1)
    position, column = np.nonzero(
        trace.has_draft()[:, None] & (accepted[:, None] >= depths - 1) & (left[:, None] >= depths)
    )
    depth, kept = column + 1, accepted[position]
    return LevelRows(
        position=position,
        depth=depth,
        temperature=trace.temperature[request[position]],
        accepted=kept >= depth,
        following=kept > depth,
        has_following=(kept >= depth) & (depth < np.minimum(longest, left[position])),
    )


class HistoryRows(NamedTuple):
    """Starts of rounds; ``R`` rows."""

    position: Array
    """``[R]`` index of the start position."""
    temperature: Array
    acceptance_rate: Array
    """``[R]`` as `RoundState.acceptance_rate` would have been; NaN in a request's first round."""
    whole: Array
    """``[R]`` bool: whether all of the round before was accepted."""
    kept: Array
    """``[R]`` accepted length of the longest draft from here."""
    left: Array
    """``[R]`` tokens that the output still has."""

    @property
    def inputs(self) -> Array:
        """``[R, 5]`` `history_inputs`."""
        return history_inputs(self.acceptance_rate, self.whole, self.temperature)

    def reaching(self, depth: int) -> Array:
        """``[R]`` bool: where the fate of a draft at ``depth`` says something."""
        reached: Array = (self.kept >= depth - 1) & (self.left >= depth)
        return reached


def history_rows(trace: Trace, seed: int) -> HistoryRows:
    """Rounds of `HISTORIES` runs through every request with random lengths of 1 … K.

    Half of the runs begin at a random token: a request that was not drafted for has no history later on either.
    """
    rng = np.random.default_rng(seed)
    next_rates = np.vectorize(next_rate, otypes=[np.float64])
    request = np.tile(np.arange(len(trace)), HISTORIES)
    given = trace.tokens_from_prefill
    begun = rng.random(len(request)) * (np.arange(len(request)) >= len(request) // 2)
    done = given + (begun * (trace.output_tokens[request] - given)).astype(np.int64)
    rate = np.full(len(request), np.nan)
    whole = np.zeros(len(request), dtype=np.bool_)
    rows: list[HistoryRows] = []
    while len(request):
        position = trace.first[request] + done
        kept = trace.accepted_length[position].astype(np.int64)
        left = trace.output_tokens[request] - done
        rows.append(HistoryRows(position, trace.temperature[request], rate, whole, kept, left))
        length = np.minimum(rng.integers(1, trace.max_num_speculative_tokens + 1, len(request)), left)
        accepted = np.minimum(kept, length)
        rate, whole = next_rates(rate, accepted, length), accepted == length
        done = done + accepted + 1
        going = done < trace.output_tokens[request]
        request, done, rate, whole = request[going], done[going], rate[going], whole[going]
    return HistoryRows(*(np.concatenate(column) for column in zip(*rows, strict=True)))


CHEAP_FEATURES = ("margin", "agreement")
"""What costs an engine next to nothing to tell: no pass over the vocabulary beside the one that finds the draft."""


def fit_predictor(
    trace: Trace, seed: int, hidden: int = 16, steps: int = 800, features: Collection[str] = CHEAP_FEATURES
) -> AcceptancePredictor:
    """Fit to every drafted token of a recording, by log loss: ``steps`` of Adam with `BATCH` rows each.

    Only the ``features`` of `LEVEL_FEATURES` are read, beside temperature and depth.

    The same seed gives the same predictor.

    Raises `ValueError` where the recording holds no confidence.
    """
    confidence = _confidence(trace)
    if unknown := set(features).difference(LEVEL_FEATURES):
        raise ValueError(f"no level feature is called {sorted(unknown)[0]!r}; there are {', '.join(LEVEL_FEATURES)}")
    rows = level_rows(trace)
    inputs = level_inputs(confidence[rows.position, rows.depth - 1], rows.temperature, rows.depth)
    # An output whose label is unknown weighs nothing.
    labels = np.stack([rows.accepted, rows.following], axis=1).astype(np.float32)
    weights = np.stack([np.ones(len(rows.depth)), rows.has_following], axis=1).astype(np.float32)
    read = np.asarray([of is None or LEVEL_FEATURES[of] in features for of in FEATURE_OF_INPUT])
    network = _fit_network(inputs[:, read], labels, weights, seed, hidden, steps)
    whole = np.zeros((len(LEVEL_INPUTS), hidden), dtype=np.float32)
    whole[read] = network["hidden_weight"]
    network["hidden_weight"] = whole
    found = AcceptancePredictor({**network, **_fit_history(trace, seed), "carry": [0.0]})
    return AcceptancePredictor({**found.weights, "carry": [_fit_carry(found, trace, seed)]})


def fit_what_is_told(trace: Trace, seed: int, hidden: int = 16) -> AcceptancePredictor:
    """`fit_predictor`, or `fit_history` where the recording holds no confidence."""
    return fit_history(trace, seed) if trace.confidence is None else fit_predictor(trace, seed, hidden)


def fit_history(trace: Trace, seed: int) -> AcceptancePredictor:
    """For a recording without confidences: chances from histories, and one chance for all that is drafted."""
    uninformed = AcceptancePredictor.uninformed(mean_acceptance(trace))
    return AcceptancePredictor({**uninformed.weights, **_fit_history(trace, seed)})


def _confidence(trace: Trace) -> Array:
    if trace.confidence is None:
        raise ValueError("the recording holds no confidence; use fit_history")
    return trace.confidence


def _standard(inputs: Array) -> tuple[Array, Array]:
    """Mean and spread of each column; a constant column has spread 1."""
    spread = inputs.std(axis=0)
    return inputs.mean(axis=0), np.where(spread > 1e-6, spread, 1.0)


def _fit_network(inputs: Array, labels: Array, weights: Array, seed: int, hidden: int, steps: int) -> dict[str, Array]:
    """Adam with a one-cycle rate on standardised inputs; the standardisation is folded into the weights."""
    mean, spread = _standard(inputs)
    generator = torch.Generator().manual_seed(seed)
    x, y, w = (torch.from_numpy(np.float32(part)) for part in ((inputs - mean) / spread, labels, weights))
    sizes = ((inputs.shape[1], hidden), (hidden,), (hidden, 2), (2,))
    parameters = [
        torch.randn(size, generator=generator) * (size[0] ** -0.5 if len(size) > 1 else 0.0) for size in sizes
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    batch = min(len(x), BATCH)
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-2, total_steps=steps)
    into_hidden, hidden_bias, into_output, output_bias = parameters
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=generator)
        score = torch.tanh(x[chosen] @ into_hidden + hidden_bias) @ into_output + output_bias
        losses = torch.nn.functional.binary_cross_entropy_with_logits(score, y[chosen], w[chosen], reduction="sum")
        optimizer.zero_grad()
        (losses / batch).backward()
        optimizer.step()
        schedule.step()
    own = [parameter.detach().numpy().astype(np.float64) for parameter in parameters]
    weight = own[0] / spread[:, None]
    return {
        "hidden_weight": weight,
        "hidden_bias": own[1] - mean @ weight,
        "output_weight": own[2],
        "output_bias": own[3],
    }


def _fit_history(trace: Trace, seed: int) -> dict[str, Array]:
    """A logistic for every recorded depth; deeper ones are as the last."""
    rows = history_rows(trace, seed)
    inputs, fitted = rows.inputs, list[Array]()
    for depth in range(1, min(HISTORY_DEPTHS, trace.max_num_speculative_tokens) + 1):
        told = rows.reaching(depth)
        if told.any() or not fitted:
            fitted.append(_fit_logistic(inputs[told], rows.kept[told] >= depth))
    fitted += [fitted[-1]] * (HISTORY_DEPTHS - len(fitted))
    weights = np.stack(fitted)
    assert weights.shape == (HISTORY_DEPTHS, len(HISTORY_INPUTS) + 1)
    return {"history_weight": weights[:, :-1], "history_bias": weights[:, -1]}


def _fit_carry(predictor: AcceptancePredictor, trace: Trace, seed: int) -> float:
    """`AcceptancePredictor.carry`: what makes a look at the first level say most of the third and later ones."""
    rows, confidence = history_rows(trace, seed), _confidence(trace)
    told = predictor.level(confidence[rows.position, 0], rows.temperature, 1)[1]
    prior = predictor.history.chances(rows.acceptance_rate, rows.whole, rows.temperature)
    prior, told = (
        np.log(own / (1 - own)) for own in (chances.clip(LOWEST_RATE, 1 - LOWEST_RATE) for chances in (prior, told))
    )
    news, loss = told - prior[:, 1], np.zeros(len(CARRIES))
    for depth in range(3, min(HISTORY_DEPTHS, trace.max_num_speculative_tokens) + 1):
        own = rows.reaching(depth)
        sign = np.where(rows.kept[own] >= depth, 1.0, -1.0)
        for number, carry in enumerate(CARRIES):
            score = prior[own, depth - 1] + carry ** (depth - 2) * news[own]
            loss[number] += np.logaddexp(0.0, -sign * score).sum()
    return float(CARRIES[int(loss.argmin())])


def _fit_logistic(inputs: Array, labels: Array) -> Array:
    """``[n + 1]`` weights and constant: Newton's method with a small ridge, which keeps constant columns at 0."""
    design = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    weights = np.zeros(design.shape[1])
    for _ in range(20):
        chance = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (labels - chance) - weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + np.eye(len(weights))
        weights = weights + np.linalg.solve(curvature, gradient)
    return weights


class CeilingPredictor:
    """The best predictor that could be fitted: gradient boosting that also sees the draft's earlier levels."""

    def __init__(self, accepted: Any, following: Any) -> None:
        """Two fitted scikit-learn classifiers."""
        self._accepted, self._following = accepted, following

    def level(
        self, confidence: Array, temperature: Array, depth: Array | int, earlier: Array | None = None
    ) -> tuple[Array, Array]:
        """``[A]`` each, as `AcceptancePredictor.level`.

        ``earlier`` ``[A, depth - 1, 4]``: confidences of the same drafts' levels before; without them they count as
        unknown.
        """
        inputs = _ceiling_inputs(confidence, temperature, depth, earlier)
        return _chance(self._accepted, inputs), _chance(self._following, inputs)


def fit_ceiling(trace: Trace, seed: int = 0) -> CeilingPredictor:
    """Fit two gradient-boosted classifiers to a recording. Raises `ValueError` where it holds no confidence."""
    confidence = _confidence(trace)
    rows = level_rows(trace)
    # A share of the rows learns without the earlier levels, as `CeilingPredictor.level` may be called.
    blind = np.random.default_rng(seed).random(len(rows.depth)) < 0.1
    inputs = _rows_inputs(confidence, rows, blind)
    known = rows.has_following
    return CeilingPredictor(
        _boosted(inputs, rows.accepted, seed),
        _boosted(inputs[known], rows.following[known], seed),
    )


def _boosted(inputs: Array, labels: Array, seed: int) -> Any:
    model = HistGradientBoostingClassifier(
        learning_rate=0.1, max_iter=200, early_stopping=True, n_iter_no_change=10, random_state=seed
    )
    return model.fit(inputs, labels)


def _chance(model: Any, inputs: Array) -> Array:
    """Chance of True, also where a model has seen one label only."""
    if len(model.classes_) < 2:
        return np.full(len(inputs), float(model.classes_[0]))
    chance: Array = model.predict_proba(inputs)[:, 1]
    return chance


def _ceiling_inputs(confidence: Array, temperature: Array, depth: Array | int, earlier: Array | None) -> Array:
    """``[A, 18]``: four features, temperature, depth; last, least and mean of the levels before, NaN without."""
    count = len(confidence)
    told = np.column_stack([confidence, np.broadcast_to(temperature, count), np.broadcast_to(depth, count)])
    if earlier is None or earlier.shape[1] == 0:
        before = np.full((count, 12), np.nan)
    else:
        before = np.concatenate([earlier[:, -1], earlier.min(axis=1), earlier.mean(axis=1)], axis=1)
    return np.concatenate([told, before], axis=1)


def _rows_inputs(confidence: Array, rows: LevelRows, blind: Array | None = None) -> Array:
    inputs = np.empty((len(rows.depth), 18))
    for depth in range(1, confidence.shape[1] + 1):
        own = np.flatnonzero(rows.depth == depth)
        drafts = confidence[rows.position[own]]
        inputs[own] = _ceiling_inputs(drafts[:, depth - 1], rows.temperature[own], depth, drafts[:, : depth - 1])
    if blind is not None:
        inputs[blind, 6:] = np.nan
    return inputs


@dataclass(frozen=True)
class Quality:
    """How good chances are, on the rows of one temperature."""

    auc: float
    """Area under the ROC curve; NaN where all rows have one label."""
    calibration_error: float
    """Expected calibration error: mean distance of chance and rate over 10 bins of equal width, by their rows."""
    log_loss: float
    """Nats per row."""
    base_rate: float
    rows: int


def quality(
    predictor: AcceptancePredictor | CeilingPredictor,
    trace: Trace,
    output: Literal["accepted", "following", "first"] = "accepted",
    seed: int = 0,
) -> dict[float, Quality]:
    """Quality by temperature on a recording, which should hold other requests than the predictor was fitted to.

    ``first`` is judged on random histories, drawn with ``seed``. Raises `ValueError` where the recording holds no
    confidence and ``output`` needs it.
    """
    if output == "first":
        assert isinstance(predictor, AcceptancePredictor)
        starts = history_rows(trace, seed)
        first = predictor.history.chances(starts.acceptance_rate, starts.whole, starts.temperature)[:, 0]
        return _by_temperature(starts.temperature, first, starts.kept > 0)
    confidence, rows = _confidence(trace), level_rows(trace)
    if isinstance(predictor, CeilingPredictor):
        inputs = _rows_inputs(confidence, rows)
        model = predictor._accepted if output == "accepted" else predictor._following
        chances = _chance(model, inputs)
    else:
        both = predictor.level(confidence[rows.position, rows.depth - 1], rows.temperature, rows.depth)
        chances = both[0 if output == "accepted" else 1]
    if output == "accepted":
        return _by_temperature(rows.temperature, chances, rows.accepted)
    known = rows.has_following
    return _by_temperature(rows.temperature[known], chances[known], rows.following[known])


def _by_temperature(temperature: Array, chances: Array, labels: Array) -> dict[float, Quality]:
    return {
        float(value): judge(chances[temperature == value], labels[temperature == value])
        for value in np.unique(temperature)
    }


def judge(chances: Array, labels: Array) -> Quality:
    """Quality of chances ``[R]`` against what happened ``[R]``; at least one row."""
    chances, labels = np.asarray(chances, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    bins = np.minimum((chances * 10).astype(np.int64), 9)
    gaps = np.abs(np.bincount(bins, chances - labels, minlength=10))
    return Quality(
        auc=float(roc_auc_score(labels, chances)) if 0 < labels.mean() < 1 else float("nan"),
        calibration_error=float(gaps.sum() / len(labels)),
        log_loss=float(log_loss(labels, chances, labels=[0, 1])),
        base_rate=float(labels.mean()),
        rows=len(labels),
    )
