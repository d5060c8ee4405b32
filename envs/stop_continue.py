"""The environment of one decision a token: after each draft level, for each request, go on or stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from ..controllers import AcceptancePredictor, CostSurface
from .feature_space import FeatureSpace
from .rendering import RENDER_MODES, RoundLog
from .replay import ReplayConfig
from .replay_questions import QuestionBackend, ReplayQuestions
from .scenario import DEFAULT_TRAFFIC, ScenarioError, TrafficLike, load_scenario
from .speculation_length import Observation, check_modes
from .stop_round import STOP_FEATURES, Settlement, StopQuestion
from .trace import Trace


class StopContinueEnv(gymnasium.Env[Observation, np.int64]):
    """One decision a token: after each draft level, request by request, draft one token more or stop.

    ## Description

    The same engine, recordings and traffic as `SpeculationLengthEnv`, which see, with one policy that is shared by all
    requests of the batch. A round begins with one question for each request that may draft: shall it draft at all?
    Those that do draft a token, and each that may draft another is asked again, level by level, until none goes on.
    All drafted tokens are verified, and the next round begins.

    ## Action Space

    ``Discrete(2)``: 1 goes on (drafts this token), 0 stops.

    ## Observation Space

    ``Box`` of float32: first the features of the round, in the order and with the ranges of the observation of
    `SpeculationLengthEnv` (the same in all questions of a round), then those of the request that is asked about, cut to
    their ranges:

    | Index | Name | Unit | Low | High |
    |---|---|---|---|---|
    | 42 | depth | tokens | 0 | 255 |
    | 43 | chance | probability | 0 | 1 |
    | 44 | survival | probability | 0 | 1 |
    | 45 | following | probability | 0 | 1 |
    | 46 | top1_probability | probability | 0 | 1 |
    | 47 | entropy | nats | 0 | 100 |
    | 48 | margin | logits | 0 | 100 |
    | 49 | agreement | 1 | -1 | 1 |
    | 50 | temperature | 1 | 0 | 100 |
    | 51 | acceptance_rate | share | 0 | 1 |
    | 52 | log_lag | ln(1 + tokens) | 0 | 20 |
    | 53 | tokens_left | tokens | 0 | 65536 |
    | 54 | drafting | requests | 0 | 4096 |
    | 55 | planned | tokens | 0 | 65536 |
    | 56 | cost | tokens | 0 | 1000 |

    ## Rewards

    The rewards of a round sum to ``tokens - price * seconds``, price being the running tokens per second of that
    traffic, which is set when a round begins (plain decoding's in the first). On replay each answer is rewarded at
    once with what it changes: 1 if the token it drafts is accepted, less the price of the seconds by which drafting and
    verifying it (and being asked) lengthen the round. The rest, which no answer changes (a token for every request,
    prefill and the pass without drafts), comes with the round's last answer. Live, the whole sum comes with the last
    answer. Rounds in which no request may draft ask nothing and count to the round before.

    ## Starting State

    As in `SpeculationLengthEnv`; the first observation is the first question of the first round that asks.

    ## Episode End

    Terminated: the requests of the episode are served. Truncated: after ``max_rounds`` rounds that asked, at the
    round's end. `step` then raises ``ResetNeeded`` until `reset`.

    ## Arguments

    As in `SpeculationLengthEnv`, without ``reward``, ``lengths`` and ``prices``.

    `step`'s info, where the step ended a round: ``tokens``, ``seconds`` and ``price`` of the round, ``decoding``,
    ``longest``, ``drafted``, ``accepted``, ``running``, ``waiting``. Otherwise empty.

    ## Version History

    - v0: first version.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 10}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        trace: str | Path | Trace | None = None,
        cost_surface: str | Path | CostSurface | None = None,
        predictor: str | Path | AcceptancePredictor | None = None,
        traffic: TrafficLike | Sequence[TrafficLike] = DEFAULT_TRAFFIC,
        backend: str = "replay",
        max_rounds: int = 256,
        max_num_seqs: int = 32,
        max_model_len: int = 1024,
        prefill_chunk: int = 1024,
        render_mode: str | None = None,
        target: str | Path | None = None,
        drafter: str | Path | None = None,
    ) -> None:
        """See the class. Raises `ScenarioError` and the errors of the files' readers, all of them `ValueError`."""
        engine = ReplayConfig(max_num_seqs, max_model_len, prefill_chunk)
        scenario = load_scenario(trace, cost_surface, predictor, traffic, engine, max_rounds, "throughput")
        check_modes(backend, render_mode)
        if backend == "vllm":
            raise ScenarioError("vLLM cannot be asked after every drafted token; use backend 'live'")
        self.render_mode = render_mode
        self.action_space = Discrete(2)
        self._space = FeatureSpace(STOP_FEATURES)
        self.observation_space = self._space.box()
        self._max_rounds, self._rounds = max_rounds, 0
        self._log = RoundLog()
        self._question: StopQuestion | None = None
        self._backend: QuestionBackend
        if backend == "replay":
            self._backend = ReplayQuestions(scenario)
        else:
            from .live_questions import LiveQuestions  # Here, because replay needs no torch.

            self._backend = LiveQuestions(scenario, target, drafter)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode. ``options``: ``{"scenario": number}`` chooses one of several traffics."""
        super().reset(seed=seed)
        self._log.clear()
        self._rounds = 0
        self._question = self._backend.begin(self.np_random, seed is not None, (options or {}).get("scenario"))
        if self._question is None:
            raise ScenarioError("no request of this traffic may draft: all have max_tokens 1; record longer ones")
        return self._space.observation(self._question.observation), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Answer the question. Raises `gymnasium.error.ResetNeeded` where no episode is running."""
        if self._question is None:
            raise ResetNeeded("no episode is running; call reset()")
        before, self._question = self._question, None
        reward, question = self._backend.answer(bool(action))
        settlement = self._backend.last() if question is None else question.settlement
        info = {} if settlement is None else self._note(settlement)
        truncated = question is not None and self._rounds >= self._max_rounds
        if not truncated:
            self._question = question
        observation = (question or before).observation
        return self._space.observation(observation), reward, question is None, truncated, info

    def _note(self, settlement: Settlement) -> dict[str, Any]:
        self._rounds += 1
        self._log.add(settlement.view)
        return {
            "tokens": settlement.tokens,
            "seconds": settlement.seconds,
            "price": settlement.price,
            **settlement.view._asdict(),
        }

    def render(self) -> str | NDArray[np.uint8] | None:
        """The last rounds: ``ansi`` a table, ``rgb_array`` a picture of lengths, accepted tokens and load over time."""
        return self._log.render(self.render_mode)

    def close(self) -> None:
        """End the engine's thread, where there is one."""
        self._question = None
        self._backend.close()
