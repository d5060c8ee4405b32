"""The training corpus: sources and documentation of the installed Python standard library, split by file."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
MAX_FILE_BYTES = 400_000  # Larger files are generated tables, which would drown the code.
# Character-mapping tables and files full of non-Python data teach a small model nothing a prompt would ask for.
SKIPPED_PARTS = frozenset({"site-packages", "__pycache__", "encodings", "lib2to3", "cjkencodings", "tokenizedata"})
SPLITS = ("train", "validation", "evaluation")


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus."""

    name: str
    """Path relative to the standard library (or the user's own path)."""
    text: str
    split: str
    """One of `SPLITS`."""


def split_of(name: str) -> str:
    """Assign a file to a split by a hash of its name: 92 % train, 3 % validation, 5 % evaluation."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "train" if share < 0.92 else "validation" if share < 0.95 else "evaluation"


def stdlib_files() -> Iterator[SourceFile]:
    """Yield the standard library's readable text files in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*")):
        if path.suffix not in {".py", ".txt", ".rst"} or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            continue
        relative = path.relative_to(root)
        if SKIPPED_PARTS.intersection(relative.parts):
            continue
        text = _read(path)
        if text is not None:
            yield SourceFile(relative.as_posix(), text, split_of(relative.as_posix()))


def user_files(paths: Iterable[str]) -> Iterator[SourceFile]:
    """Yield the user's own files (``--text``); each must be UTF-8 text."""
    for name in paths:
        text = _read(Path(name))
        if text is None:
            raise ValueError(f"--text {name}: not UTF-8 text; convert it first")
        yield SourceFile(name, text, split_of(name))


def _read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; it can encode any text and decodes to exactly what it encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def encode_files(tokenizer: Any, files: Sequence[SourceFile]) -> np.ndarray:
    """Encode files into one stream (int32 ``[num_tokens]``), an end-of-text token after each.

    ``tokenizer`` is a fast one (it has a ``backend_tokenizer``).
    """
    if not files:
        raise ValueError("a split of the corpus has no files; add more text or raise max_files")
    eos = tokenizer.eos_token_id
    encoded = tokenizer.backend_tokenizer.encode_batch([file.text for file in files])
    return np.concatenate([np.asarray([*encoding.ids, eos], dtype=np.int32) for encoding in encoded])
