"""Train a pair from scratch: tokenizer, target, text by the target, drafter, report.

    python train/pair.py --config configs/pair/pystdlib.yaml [--text FILE ...] [--device cuda]

Interrupted, the same command goes on where it stopped; every stage keeps its result under ``workdir``.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from transformers import AutoTokenizer, LlamaForCausalLM

from specpilot.configs import ConfigError, load_config
from specpilot.engine import load_pair
from specpilot.train.corpus import SPLITS, SourceFile, encode_files, stdlib_files, train_tokenizer, user_files
from specpilot.train.distillation import (
    distillation_loss,
    mixed_batches,
    write_with_target,
)
from specpilot.train.growth import copy_agreeing, grow, shrink
from specpilot.train.language_model import (
    Batches,
    Loss,
    ModelSettings,
    move_model,
    next_token_loss,
    train_model,
    windows,
)
from specpilot.train.pair_report import distinct_share, evaluation_prompts, measure, model_card
from specpilot.train.run_record import run_record, write_json

REPORT_PROMPTS = 128


@dataclass(frozen=True)
class PairConfig:
    """What to train and where to put it."""

    output: str
    """Directory of the finished pair: ``target/``, ``drafter/``, model card, evaluation prompts."""
    workdir: str
    """Directory of checkpoints, logs and intermediate data; safe to delete once ``output`` is there."""
    target: ModelSettings
    drafter: ModelSettings
    shallow_target: ModelSettings | None = None
    """A target of fewer layers to train first; the target then grows from it (see `grow`)."""
    pretrained_drafter: ModelSettings | None = None
    """Next-token training of the drafter before it is distilled: cheap steps, since no target runs. It may have more
    key heads and a wider feed-forward part; the drafter then starts from it (see `shrink`)."""
    vocab_size: int = 2048
    max_position_embeddings: int = 1024
    generated_tokens: int = 400_000
    """Tokens the target writes for the drafter to learn from."""
    num_evaluation_prompts: int = 320
    seed: int = 0
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    compile: bool = True
    """Use torch.compile where a compiler is at hand (1.6x faster on two CPU cores, a minute to start)."""
    max_files: int | None = None
    """Use only the first files of the standard library (smoke runs)."""
    text: tuple[str, ...] = field(default=())
    """Files of your own to add to the corpus."""


class PairTraining:
    """The stages of one training run, each resumable."""

    def __init__(self, config: PairConfig) -> None:
        self.config = config
        self.work = Path(config.workdir)
        self.work.mkdir(parents=True, exist_ok=True)
        self.device = config.device
        if config.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.compile = config.compile and (self.device != "cpu" or shutil.which("g++") is not None)
        self.files: list[SourceFile] = []
        self.facts: dict[str, Any] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and add its wall time to what earlier, interrupted runs spent on it."""
        print(f"== {name}", flush=True)
        path, start = self.work / f"{name}.seconds", time.monotonic()
        try:
            yield
        finally:
            before = float(path.read_text()) if path.exists() else 0.0
            path.write_text(str(before + time.monotonic() - start))

    def corpus(self) -> None:
        """Read the files, train the tokenizer, encode the splits."""
        self.files = [*itertools.islice(stdlib_files(), self.config.max_files), *user_files(self.config.text)]
        if not (self.work / "tokenizer").exists():
            texts = [file.text for file in self.files if file.split == "train"]
            train_tokenizer(texts, self.config.vocab_size).save_pretrained(self.work / "tokenizer.tmp")
            (self.work / "tokenizer.tmp").rename(self.work / "tokenizer")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.work / "tokenizer")
        self.streams: dict[str, np.ndarray] = {}
        for split in SPLITS:
            path, temporary = self.work / f"{split}.npy", self.work / f"{split}.tmp.npy"
            if not path.exists():
                chosen = [file for file in self.files if file.split == split]
                np.save(temporary, encode_files(self.tokenizer, chosen))
                temporary.rename(path)
            self.streams[split] = np.load(path)
        self.facts["corpus"] = {
            split: {
                "files": sum(file.split == split for file in self.files),
                "tokens": len(self.streams[split]),
            }
            for split in SPLITS
        }

    def build(self, settings: ModelSettings) -> LlamaForCausalLM:
        """A model with fresh weights drawn from the run's seed."""
        torch.manual_seed(self.config.seed)
        return settings.build(self.config.vocab_size, self.tokenizer.eos_token_id, self.config.max_position_embeddings)

    def held_out(self, settings: ModelSettings) -> torch.Tensor:
        """Fixed validation windows, about 16,000 tokens."""
        return windows(self.streams["validation"], settings.sequence_length, 16384 // settings.sequence_length, 1, 0)

    def next_token_training(self, model: LlamaForCausalLM, settings: ModelSettings, name: str) -> dict[str, Any]:
        """Train ``model`` on the train split; the checkpoint lies in ``workdir/name``. Returns the summary."""
        stream, seed = self.streams["train"], self.config.seed
        batches = partial(windows, stream, settings.sequence_length, settings.batch_size, seed)
        return self._train(model, settings, name, batches, next_token_loss, "cross-entropy")

    def _train(
        self,
        model: LlamaForCausalLM,
        settings: ModelSettings,
        name: str,
        batches: Batches,
        loss: Loss,
        loss_name: str,
    ) -> dict[str, Any]:
        """Run one stage of training in ``workdir/name`` and summarise it."""
        validation = self.held_out(settings)
        with self.stage(name):
            workdir = self.work / name
            log = train_model(model, settings, batches, validation, loss, workdir, self.device, self.compile)
        return self._summary(model, settings, log, loss_name)

    def train_target(self) -> LlamaForCausalLM:
        """Next-token prediction on the train split, from a shallower target where the configuration names one."""
        model = self.build(self.config.target)
        if self.config.shallow_target is not None:
            shallow = self.build(self.config.shallow_target)
            summary = self.next_token_training(shallow, self.config.shallow_target, "shallow_target")
            self.facts["shallow_target"] = summary
            move_model(shallow, "cpu")
            grow(model, shallow)
        self.facts["target"] = self.next_token_training(model, self.config.target, "target")
        return model

    def pretrain_drafter(self) -> LlamaForCausalLM:
        """A fresh drafter, trained on next tokens where the configuration asks for it; needs no target."""
        model = self.build(self.config.drafter)
        if self.config.pretrained_drafter is not None:
            large = self.build(self.config.pretrained_drafter)
            summary = self.next_token_training(large, self.config.pretrained_drafter, "pretrained_drafter")
            self.facts["pretrained_drafter"] = summary
            move_model(large, "cpu")
            shrink(model, large)
        return model

    def train_drafter(self, target: LlamaForCausalLM) -> LlamaForCausalLM:
        """Distil the target on corpus text and on text it wrote."""
        settings, seed = self.config.drafter, self.config.seed
        with self.stage("generate"):
            generated = write_with_target(
                target,
                self.tokenizer,
                self.streams["train"],
                self.config.generated_tokens,
                settings.sequence_length,
                seed,
                self.work / "generated.npy",
            )
        model = self.pretrain_drafter()
        if self.config.pretrained_drafter is None:
            copy_agreeing(target, model)
        half = settings.batch_size // 2
        stream = self.streams["train"]
        batches = mixed_batches(
            partial(windows, stream, settings.sequence_length, settings.batch_size - half, seed),
            generated,
            half,
            seed,
        )
        if self.device == "cpu":
            target.set_attn_implementation("specpilot_training")
        teacher = torch.compile(target) if self.compile else target
        loss = distillation_loss(teacher)
        self.facts["drafter"] = self._train(model, settings, "drafter", batches, loss, "KL to the target")
        return model

    def _summary(
        self, model: LlamaForCausalLM, settings: ModelSettings, log: list[dict[str, float]], loss: str
    ) -> dict[str, Any]:
        return {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tokens_seen": settings.steps * settings.batch_size * settings.sequence_length,
            "loss": loss,
            "validation_loss": log[-1]["validation_loss"],
            "log": log,
        }

    def prompts(self) -> list[dict[str, Any]]:
        """Evaluation prompts, cut from evaluation files only."""
        chosen = [file for file in self.files if file.split == "evaluation"]
        encoded = [(file.name, encode_files(self.tokenizer, [file])) for file in chosen]
        vocabulary = self.tokenizer.get_vocab()
        newlines = frozenset(index for token, index in vocabulary.items() if token.rstrip("\u0120").endswith("\u010a"))
        return evaluation_prompts(encoded, newlines, self.config.num_evaluation_prompts, self.config.seed)

    def export(self, target: LlamaForCausalLM, drafter: LlamaForCausalLM) -> None:
        """Write the pair, measure it as a user would load it, and put it in place in one rename per part."""
        output, staging = Path(self.config.output), self.work / "export"
        shutil.rmtree(staging, ignore_errors=True)
        for name, model in (("target", target), ("drafter", drafter)):
            model.set_attn_implementation("sdpa")
            move_model(model, "cpu")
            model.save_pretrained(staging / name)
            self.tokenizer.save_pretrained(staging / name)
        prompts = self.prompts()
        write_json(staging / "evaluation_prompts.json", {"prompts": prompts})
        pair = load_pair(staging / "target", staging / "drafter")
        with self.stage("report"):
            self.facts["report"] = measure(pair, [prompt["token_ids"] for prompt in prompts[:REPORT_PROMPTS]])
        reference = windows(self.streams["evaluation"], 128, 256, self.config.seed, 3)
        self.facts["corpus_distinct_4grams"] = distinct_share(reference.tolist())
        seconds = {path.stem: float(path.read_text()) for path in sorted(self.work.glob("*.seconds"))}
        record = run_record(self.config, seed=self.config.seed, stage_seconds=seconds, **self.facts)
        write_json(staging / "training.json", record)
        (staging / "README.md").write_text(model_card(record))
        output.mkdir(parents=True, exist_ok=True)
        for part in sorted(staging.iterdir()):
            destination = output / part.name
            if destination.is_dir():
                shutil.rmtree(destination)
            part.replace(destination)
        print(model_card(record))


def parse(arguments: list[str]) -> PairConfig:
    """Read ``--config FILE`` and let further options override its values."""
    if "--config" not in arguments or arguments.index("--config") + 1 == len(arguments):
        raise ConfigError("give a configuration: --config configs/pair/pystdlib.yaml")
    at = arguments.index("--config")
    default = load_config(PairConfig, arguments[at + 1])
    own = arguments[:at] + arguments[at + 2 :]
    return tyro.cli(PairConfig, default=default, args=own, config=(tyro.conf.AvoidSubcommands,))


def main() -> int:
    """Run all stages."""
    try:
        run = PairTraining(parse(sys.argv[1:]))
        with run.stage("corpus"):
            run.corpus()
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    target = run.train_target()
    drafter = run.train_drafter(target)
    run.export(target, drafter)
    return 0


if __name__ == "__main__":
    sys.exit(main())
