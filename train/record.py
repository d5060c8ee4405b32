"""Record a pair on texts, measure what its passes cost, and what live rounds cost beyond them.

    python train/record.py --config configs/record/pystdlib.yaml [--output DIR] [--num-train 480]
    python train/record.py --config configs/record/vllm.yaml [--engine vllm]
    python train/record.py import --requests FILE.jsonl --cost-surface COSTS.json --output DIR [--temperature T]

The output folder gets ``train.npz``, ``evaluation.npz`` (see docs/trace-format.md), ``cost_surface.json`` and
``record.json``. Interrupted, the same command goes on: a part that exists is not done again.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm.auto import tqdm

from specpilot.configs import ConfigError, load_config
from specpilot.controllers import CostGrid, CostSurface, CostSurfaceError
from specpilot.engine import Engine, EngineConfig, Pair, RequestError, load_pair
from specpilot.engine.pair import PairError
from specpilot.engine.vllm.engine import VllmEngineError
from specpilot.envs.trace import Trace, TraceError
from specpilot.train.calibration import calibrate
from specpilot.train.cost_surface_import import read_cost_surface
from specpilot.train.recording import Progress, RecordingError, TextRequest, record_requests, with_facts
from specpilot.train.recording_import import RecordingImportError, read_requests, split_requests
from specpilot.train.recording_requests import (
    RequestMix,
    cut_prompts,
    held_out_prompts,
    split_user_files,
    stdlib_training_files,
    text_requests,
)
from specpilot.train.run_record import run_record, write_json
from specpilot.train.vllm_recording import VllmRecorder

SPLITS = ("train", "evaluation")
ENGINES = ("embedded", "vllm")
COST_SURFACE, RECORD = "cost_surface.json", "record.json"


@dataclass(frozen=True)
class RecordConfig:
    """What to record and where to put it."""

    output: str
    """Directory of the recording."""
    target: str
    """Directory or hub id of the target."""
    drafter: str
    evaluation_prompts: str | None = None
    """A pair's file of held-out prompts; training prompts then come from the standard library's other files."""
    texts: tuple[str, ...] = field(default=())
    """Files of your own, two or more, for a pair without ``evaluation_prompts``; each serves one split."""
    num_train: int = 480
    num_evaluation: int = 320
    mix: RequestMix = RequestMix()  # noqa: RUF009 - frozen
    seed: int = 0
    max_num_speculative_tokens: int = 8
    max_num_seqs: int = 32
    cost_repeats: int = 7
    """Measurements of every pass, or step of vLLM, of the cost surface's grid."""
    calibration_rounds: int = 1500
    """Live rounds, about, that the overhead is found from and checked on; 0 leaves it out."""
    threads: int = 0
    """Threads of torch, 0: its default. The cost surface holds for this number."""
    device: str = "cpu"
    dtype: str = "float32"
    engine: str = "embedded"
    """``vllm``: record from vLLM and measure its steps, for controllers that will steer it. It must be installed;
    ``calibration_rounds`` and ``device`` do not apply."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {ENGINES}, got {self.engine!r}")
        for name, low in (("num_train", 1), ("num_evaluation", 1), ("max_num_speculative_tokens", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("seed", "calibration_rounds", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if (self.evaluation_prompts is None) != bool(self.texts):
            raise ValueError("give evaluation_prompts (a pair with its own) or texts (any other pair), not both")

    @property
    def engine_config(self) -> EngineConfig:
        """The embedded engine that records and is measured."""
        return EngineConfig(
            max_num_seqs=self.max_num_seqs, max_num_speculative_tokens=self.max_num_speculative_tokens, seed=self.seed
        )

    def settings(self, split: str) -> dict[str, Any]:
        """What a split's recording depends on, as JSON has it."""
        left_out = {"output", "cost_repeats", "calibration_rounds", "threads", *(f"num_{own}" for own in SPLITS)}
        if self.engine == "embedded":
            left_out.add("engine")  # As before there was another.
        own = {name: value for name, value in asdict(self).items() if name not in left_out}
        settings: dict[str, Any] = json.loads(json.dumps({**own, "num_requests": getattr(self, f"num_{split}")}))
        return settings


class Recording:
    """The parts of one recording, each resumable."""

    def __init__(self, config: RecordConfig) -> None:
        self.config = config
        self.output = Path(config.output)
        self.output.mkdir(parents=True, exist_ok=True)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.parts = self._finished_parts()

    @cached_property
    def pair(self) -> Pair:
        """The pair, loaded when first needed."""
        return load_pair(self.config.target, self.config.drafter, self.config.device, self.config.dtype)

    @cached_property
    def vllm(self) -> VllmRecorder:
        """What stands in for the pair where vLLM records."""
        return VllmRecorder(self.config.target, self.config.drafter, self.config.engine_config, self.config.dtype)

    @property
    def tokenizer(self) -> Any:
        """The target's."""
        return self.vllm.tokenizer if self.config.engine == "vllm" else self.pair.tokenizer

    def run(self) -> None:
        """Do every part that is not there yet."""
        for split in SPLITS:
            self.record(split)
        self.measure()
        if self.config.calibration_rounds and self.config.engine == "embedded":
            self.calibrate()

    def record(self, split: str) -> None:
        """Write the split's trace."""
        path, settings = self.output / f"{split}.npz", self.config.settings(split)
        if path.exists():
            if Trace.load(path).facts.get("settings") != settings:
                raise RecordingError(f"{path} was recorded with other settings; delete it or choose another output")
            return
        with self.part(split) as facts:
            requests = self.requests(split)
            with tqdm(total=2 * len(requests), desc=split, mininterval=2) as bar:

                def progress(stage: str, done: int, total: int) -> None:
                    bar.set_postfix_str(stage, refresh=False)
                    bar.update(done + (total if stage == "drafts" else 0) - bar.n)

                trace = self.recorded(requests, progress)
            with_facts(trace, split=split, settings=settings).save(path)
            facts |= {"requests": len(trace), "positions": len(trace.accepted_length)}

    def recorded(self, requests: list[TextRequest], progress: Progress) -> Trace:
        """The trace of ``requests``."""
        if self.config.engine == "vllm":
            return self.vllm.record(requests, progress)
        return record_requests(self.pair, self.config.engine_config, requests, progress)

    def measured(self) -> CostSurface:
        """The cost surface of an idle engine."""
        if self.config.engine == "vllm":
            return self.vllm.measure(self.config.seed, self.config.cost_repeats)
        engine = Engine(self.pair, self.config.engine_config)
        return CostSurface.measure(engine, CostGrid(repeats=self.config.cost_repeats), progress=True)

    def requests(self, split: str) -> list[TextRequest]:
        """The requests of a split; those of one split never share a file with the other's."""
        config = self.config
        training, seed = split == "train", 2 * config.seed + (split == "evaluation")
        count = config.num_train if training else config.num_evaluation
        if config.evaluation_prompts is not None:
            if training:
                prompts = cut_prompts(self.tokenizer, stdlib_training_files(), count, seed)
            else:
                prompts = held_out_prompts(config.evaluation_prompts, count)
        else:
            share = config.num_evaluation / (config.num_train + config.num_evaluation)
            files = split_user_files(config.texts, share, config.seed)
            prompts = cut_prompts(self.tokenizer, files[0 if training else 1], count, seed)
        return text_requests(prompts, config.mix, seed)

    def measure(self) -> None:
        """Write the cost surface."""
        path = self.output / COST_SURFACE
        if path.exists():
            CostSurface.load(path)
            return
        with self.part("cost_surface") as facts:
            surface = self.measured()
            surface.save(path)
            facts["fingerprint"] = surface.fingerprint

    def calibrate(self) -> None:
        """Find the overhead of live rounds and write it into the cost surface."""
        path = self.output / COST_SURFACE
        if "calibration" in self.parts:
            return
        with self.part("calibration") as facts:
            surface, prompts = CostSurface.load(path), self._training_prompts()
            engine = Engine(self.pair, self.config.engine_config)
            found = calibrate(engine, surface, prompts, self.config.seed, self.config.calibration_rounds, progress=True)
            replace(surface, overhead=found.overhead).save(path)
            facts |= found.report

    def _training_prompts(self) -> list[list[int]]:
        trace = Trace.load(self.output / "train.npz")
        return [trace.prompt(index) for index in range(len(trace))]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """Announce a part; when it is done, enter its facts and seconds into ``record.json``."""
        print(f"== {name}", flush=True)
        start, facts = time.monotonic(), dict[str, Any]()
        yield facts
        self.parts[name] = {"seconds": round(time.monotonic() - start, 1), **facts}
        record = run_record(self.config, seed=self.config.seed, parts=self.parts)
        write_json(self.output / RECORD, record)

    def _finished_parts(self) -> dict[str, Any]:
        """What ``record.json`` says of parts whose files are there."""
        try:
            parts = json.loads((self.output / RECORD).read_text(encoding="utf-8"))["parts"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        files = {
            "calibration": COST_SURFACE,
            "cost_surface": COST_SURFACE,
            **{split: f"{split}.npz" for split in SPLITS},
        }
        return {name: parts[name] for name in parts if (self.output / files.get(name, RECORD)).exists()}


@dataclass(frozen=True)
class ImportConfig:
    """A recording of another engine (docs/trace-format.md)."""

    requests: str
    """JSON lines, one object per request."""
    cost_surface: str
    """JSON: a cost surface of ours, or rows of batch, tokens, context and seconds."""
    output: str
    temperature: float = 0.0
    """Of requests that do not say."""
    max_num_speculative_tokens: int | None = None
    """Length of the drafts that were recorded; default: the largest accepted length, or the confidence's depth."""
    tokens_from_prefill: int = 0
    """1: the first token of every request came out of its prefill, as in vLLM, and nothing was drafted for it."""
    train_share: float = 0.6
    """Share of the requests that become ``train.npz``; the others become ``evaluation.npz``."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise RecordingImportError(f"temperature must be a finite number of 0 or more, got {self.temperature}")


def import_recording(config: ImportConfig) -> None:
    """Check everything, then write ``train.npz``, ``evaluation.npz``, ``cost_surface.json`` and ``record.json``."""
    surface = read_cost_surface(config.cost_surface)
    trace = read_requests(config.requests, config.temperature, config.max_num_speculative_tokens)
    trace = replace(trace, tokens_from_prefill=config.tokens_from_prefill)
    splits = split_requests(trace, config.train_share, config.seed)
    output = Path(config.output)
    for split, own in zip(SPLITS, splits, strict=True):
        with_facts(own, split=split).save(output / f"{split}.npz")
    surface.save(output / COST_SURFACE)
    parts = {split: {"requests": len(own)} for split, own in zip(SPLITS, splits, strict=True)}
    write_json(output / RECORD, run_record(config, seed=config.seed, parts=parts))
    print(f"{len(splits[0])} training and {len(splits[1])} evaluation requests in {output}")


def parse(arguments: list[str]) -> RecordConfig:
    """Read ``--config FILE`` and let further options override its values."""
    if "--config" not in arguments or arguments.index("--config") + 1 == len(arguments):
        raise ConfigError("give a configuration: --config configs/record/pystdlib.yaml")
    at = arguments.index("--config")
    default = load_config(RecordConfig, arguments[at + 1])
    own = arguments[:at] + arguments[at + 2 :]
    return tyro.cli(RecordConfig, default=default, args=own, config=(tyro.conf.AvoidSubcommands,))


def main(arguments: list[str] | None = None) -> int:
    """Record or import. Exit status 2 and one line on stderr where the input is at fault."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["import"]:
            import_recording(tyro.cli(ImportConfig, args=arguments[1:]))
        else:
            Recording(parse(arguments)).run()
    except _USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


_USER_ERRORS = (
    ConfigError,
    RecordingError,
    RecordingImportError,
    CostSurfaceError,
    TraceError,
    PairError,
    RequestError,
    VllmEngineError,
    OSError,
)


if __name__ == "__main__":
    sys.exit(main())
