"""The loader takes what the schema has, and names what it has not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

import specpilot.configs
from specpilot.configs import ConfigError, load_config
from specpilot.engine import EngineConfig


@dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.1


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=lambda: Inner(1))
    steps: int = 5
    limit: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    flag: bool = False
    parts: tuple[Inner, ...] = ()


def load(tmp_path: Path, text: str) -> Outer:
    path = tmp_path / "test.yaml"
    path.write_text(text)
    return load_config(Outer, path)


def test_absent_keys_keep_their_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "name: x") == Outer("x")


def test_every_kind_of_value(tmp_path: Path) -> None:
    text = "name: x\ninner: {width: 3, rate: 2}\nlimit: 7\nsizes: [4, 5]\nflag: true\nparts: [{width: 1}, {width: 2}]"
    loaded = load(tmp_path, text)
    assert loaded == Outer("x", Inner(3, 2.0), 5, 7, (4, 5), True, (Inner(1), Inner(2)))
    assert isinstance(loaded.inner.rate, float)
    assert load(tmp_path, "name: x\nlimit: null").limit is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\nstpes: 3", ["stpes", "did you mean 'steps'"]),
        ("name: x\nwholly_unlike: 3", ["wholly_unlike", "known keys", "steps"]),
        ("name: x\ninner: {widht: 3}", ["inner", "widht", "did you mean 'width'"]),
        ("name: x\nparts: [{width: 1}, {wdith: 1}]", ["parts[1]", "wdith"]),
        ("name: x\n3: 4", ["unknown key 3"]),
        ("name: 5", ["name", "expected str", "5"]),
        ("name: x\nsteps: 1.5", ["steps", "expected int", "1.5"]),
        ("name: x\nsteps: '3'", ["steps", "expected int", "'3'"]),
        ("name: x\nsteps: true", ["steps", "expected int", "True"]),
        ("name: x\nsteps: null", ["steps", "expected int", "None"]),
        ("name: x\nflag: 1", ["flag", "expected bool", "1"]),
        ("name: x\nlimit: y", ["limit", "expected int", "'y'"]),
        ("name: x\nsizes: 3", ["sizes", "expected a list", "3"]),
        ("name: x\nsizes: [1, z]", ["sizes[1]", "'z'"]),
        ("name: x\ninner: 3", ["inner", "expected a mapping", "Inner"]),
        ("name: x\ninner: {width: 1, rate: fast}", ["rate", "expected float", "'fast'"]),
        ("steps: 3", ["name"]),
        ("", ["name"]),
        ("- a\n- b", ["expected a mapping", "Outer", "list"]),
        ("name: [unclosed", ["not valid YAML"]),
        ("name: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for word in ["test.yaml", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_config(Outer, tmp_path / "absent.yaml")


def test_a_directory_or_a_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_config(Outer, tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_config(Outer, tmp_path / "binary.yaml")


def test_a_schemas_own_check_is_reported_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "engine.yaml"
    path.write_text("max_num_seqs: 0")
    with pytest.raises(ConfigError, match=r"engine\.yaml.*max_num_seqs must be at least 1, got 0"):
        load_config(EngineConfig, path)
    path.write_text("drafter: ngram\nmax_model_len: 128")
    assert load_config(EngineConfig, path) == EngineConfig(drafter="ngram", max_model_len=128)


def shipped_files() -> list[Path]:
    files = sorted(Path(next(iter(specpilot.configs.__path__))).rglob("*.yaml"))
    return [path for path in files if path.name != "sweep.yaml"]  # W&B's own format


def schemas() -> dict[str, type]:
    """File, directory or name under ``configs/`` -> schema of its files. What is new needs its line here."""
    from specpilot.benchmarks.engine_config import EngineBenchmark
    from specpilot.benchmarks.vllm_config import VllmBenchmark
    from specpilot.engine import ServingConfig
    from specpilot.train.evaluation import EvaluateConfig
    from specpilot.train.pair import PairConfig
    from specpilot.train.ppo_config import PpoConfig
    from specpilot.train.record import RecordConfig

    return {
        "pair": PairConfig,
        "serving": ServingConfig,
        "benchmark": EngineBenchmark,
        "benchmark/vllm": VllmBenchmark,
        "benchmark/vllm_mixed": VllmBenchmark,
        "evaluate": EvaluateConfig,
        "record": RecordConfig,
        "quickstart": PpoConfig,
        "ppo": PpoConfig,
        "live": PpoConfig,
        "vllm": PpoConfig,
        "vllm_mixed": PpoConfig,
    }


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_file_fits_its_schema(path: Path) -> None:
    pytest.importorskip("tyro")
    known = schemas()
    own = known.get(f"{path.parent.name}/{path.stem}") or known.get(path.parent.name) or known[path.stem]
    assert load_config(own, path)
