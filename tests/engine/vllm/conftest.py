"""vLLM in this process, with the shipped pair: the environment that it needs, and engines to test on.

`make test-vllm` runs these tests; where vLLM is not installed those that need it are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

for _name, _value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}.items():
    os.environ.setdefault(_name, _value)

STEERED = "specpilot.engine.vllm.scheduler.SteeredScheduler"
LONGEST = 5
UNPACED = {"confirm_steps": 1, "dwell_steps": 0}
"""Settings under which K is what the controller says, at once."""


class Served:
    """An in-process vLLM with what the tests look at."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    @property
    def config(self) -> Any:
        return self.llm.llm_engine.vllm_config

    @property
    def scheduler(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    @property
    def steering(self) -> Any:
        return self.scheduler.steering

    def texts(self, prompts: Sequence[Sequence[int]], max_tokens: int | Sequence[int] = 40) -> list[list[int]]:
        """Greedy token ids, that many for each prompt."""
        from vllm import SamplingParams

        counts = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in counts],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="session", autouse=True)
def _engines_stay() -> Iterator[None]:
    """Keep every engine to the end: one that is collected takes the process's parallel groups from all others."""
    try:
        from vllm import LLM

        from specpilot.engine.vllm.engine import numba_looked_at
    except ImportError:
        yield
        return
    kept, start = [], LLM.__init__

    def begin(self: Any, *given: Any, **named: Any) -> None:
        kept.append(self)
        with numba_looked_at():  # Other tests of this process have loaded numba.
            start(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LLM, "__init__", begin)
        yield


@pytest.fixture(scope="session")
def serve(pair_directory: Path) -> Iterator[Callable[..., Served]]:
    """Builds an engine; ``settings`` are the plugin's, ``speculate=False`` leaves the drafter away."""
    import torch

    threads = torch.get_num_threads()

    def build(settings: dict[str, Any] | None = None, speculate: bool = True, **named: Any) -> Served:
        from vllm import LLM

        named = {"max_num_seqs": 8, "max_model_len": 512, "dtype": "float32", "enforce_eager": True} | named
        if speculate:
            drafter = {"model": str(pair_directory / "drafter"), "num_speculative_tokens": LONGEST}
            named["speculative_config"] = drafter | {"method": "draft_model"} | named.get("speculative_config", {})
        if settings is not None:
            named["additional_config"] = {"specpilot": settings}
        return Served(LLM(str(pair_directory / "target"), **named))

    yield build
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def plain(serve: Callable[..., Served]) -> Served:
    """The target alone: what every text has to be equal to."""
    return serve(speculate=False)


@pytest.fixture(scope="session")
def steered(serve: Callable[..., Served]) -> Served:
    """A steered engine whose controller the tests set."""
    return serve(UNPACED | {"self_test": False}, scheduler_cls=STEERED)
