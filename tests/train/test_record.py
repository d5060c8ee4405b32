"""Recording: what is recorded is what a live engine does; imports come back as they were and bad ones are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from specpilot.configs import ConfigError, load_config
from specpilot.controllers import EVERY_LEVEL, LEVEL_FEATURES, Controller, CostSurface, Decision, DraftLevel, RoundState
from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams
from specpilot.envs.trace import Trace
from specpilot.train.record import RecordConfig, Recording, main, parse
from specpilot.train.recording import RecordingError, TextRequest, record_requests
from specpilot.train.recording_import import read_requests
from specpilot.train.recording_requests import RequestMix, split_user_files

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
DEPTH = 6


def make_requests(prompts: Sequence[Sequence[int]], count: int) -> list[TextRequest]:
    """Requests at temperatures 0, 0.6 and 1 in turn, of 12 to 28 tokens."""
    return [
        TextRequest(
            tuple(prompts[index][:40]),
            SamplingParams(temperature=(0.0, 0.6, 1.0)[index % 3], seed=index, max_tokens=12 + 4 * (index % 5)),
            ("code", "prose")[index % 2],
        )
        for index in range(count)
    ]


class LoggingController(Controller):
    """A random length per request and round; notes every round's positions and every level it is asked about."""

    asked_levels = EVERY_LEVEL
    trims = True

    def __init__(self, seed: int) -> None:
        self.rounds: list[RoundState] = []
        self.levels: list[tuple[RoundState, DraftLevel]] = []
        self._rng = np.random.default_rng(seed)

    def decide(self, state: RoundState) -> Decision:
        self.rounds.append(state)
        return Decision(self._rng.integers(0, DEPTH + 1, size=len(state.request_ids)))

    def new_lengths(self, level: DraftLevel) -> NDArray[np.int64]:
        self.levels.append((self.rounds[-1], level))
        return super().new_lengths(level)


@pytest.fixture(scope="module")
def recorded(pair: Pair, evaluation_prompts: list[list[int]]) -> tuple[list[TextRequest], Trace]:
    requests = make_requests(evaluation_prompts, 9)
    config = EngineConfig(max_num_seqs=4, max_num_speculative_tokens=DEPTH)
    return requests, record_requests(pair, config, requests)


def serve_live(pair: Pair, requests: Sequence[TextRequest], controller: Controller) -> Engine:
    engine = Engine(pair, EngineConfig(max_num_seqs=5, max_num_speculative_tokens=DEPTH), controller)
    for index, request in enumerate(requests):
        engine.add_request(request.prompt, request.params, request_id=str(index))
    while engine.has_work:
        engine.step()
    return engine


def test_recorded_accepted_lengths_are_the_live_engines_in_every_round(
    pair: Pair, recorded: tuple[list[TextRequest], Trace]
) -> None:
    requests, trace = recorded
    for seed in range(2):
        controller = LoggingController(seed)
        engine = serve_live(pair, requests, controller)
        records = [record for record in engine.stats.rounds if record.request_ids]
        compared = 0
        for state, record in zip(controller.rounds, records, strict=True):
            for name, position, drafted, accepted in zip(
                record.request_ids, state.num_generated, record.num_verified, record.accepted_length, strict=True
            ):
                index = int(name)
                left = int(trace.output_tokens[index] - position)
                expected = int(trace.accepted_length[trace.first[index] + position])
                # The engine may accept beyond the end of a text, where nothing is committed any more.
                assert min(accepted, left) == min(drafted, expected), (name, position)
                compared += drafted > 0
        assert compared > 50


def test_recorded_confidence_is_what_a_live_controller_sees(
    pair: Pair, recorded: tuple[list[TextRequest], Trace]
) -> None:
    requests, trace = recorded
    assert trace.confidence is not None
    controller = LoggingController(3)
    serve_live(pair, requests, controller)
    seen = np.zeros(DEPTH, dtype=int)
    for state, level in controller.levels:
        live = np.stack([getattr(level, name) for name in LEVEL_FEATURES], axis=-1)
        for row, values in zip(level.requests.tolist(), live, strict=True):
            position = trace.first[int(state.request_ids[row])] + state.num_generated[row]
            np.testing.assert_allclose(trace.confidence[position, level.depth - 1], values, rtol=1e-5, atol=1e-5)
            seen[level.depth - 1] += 1
    assert (seen > 0).all()


def test_a_recording_holds_what_is_needed_to_serve_its_texts_again(
    pair: Pair, recorded: tuple[list[TextRequest], Trace]
) -> None:
    requests, trace = recorded
    assert trace.seed is not None and trace.max_tokens is not None
    params = [
        SamplingParams(temperature=float(temperature), seed=int(seed), max_tokens=int(limit))
        for temperature, seed, limit in zip(trace.temperature, trace.seed, trace.max_tokens, strict=True)
    ]
    assert [tuple(trace.prompt(index)) for index in range(len(trace))] == [own.prompt for own in requests]
    outputs = Engine(pair).generate([trace.prompt(index) for index in range(len(trace))], params)
    assert [len(output.token_ids) for output in outputs] == trace.output_tokens.tolist()
    assert [trace.categories[index] for index in trace.category] == [own.category for own in requests]


def test_what_cannot_be_recorded_is_refused(tiny_pair: Pair) -> None:
    request = TextRequest((1, 2, 3), SamplingParams(seed=0, max_tokens=4))
    for config in (
        EngineConfig(verification="rejection"),
        EngineConfig(greedy_drafts=True),
        EngineConfig(num_candidates=2),
        EngineConfig(drafter="ngram"),
        EngineConfig(max_num_speculative_tokens=0),
    ):
        with pytest.raises(RecordingError):
            record_requests(tiny_pair, config, [request])
    with pytest.raises(RecordingError, match="has no seed"):
        record_requests(tiny_pair, EngineConfig(), [replace(request, params=SamplingParams(max_tokens=4))])
    with pytest.raises(RecordingError, match="needs 15 tokens with its last draft, max_model_len is 14"):
        record_requests(tiny_pair, EngineConfig(max_model_len=14), [request])


def test_the_mix_is_a_function_of_the_seed_and_stays_in_its_bounds() -> None:
    mix = RequestMix(temperatures=(0.0, 1.0), min_tokens=10, median_tokens=20, max_tokens=40)
    params = mix.params(200, 1)
    assert params == mix.params(200, 1) and params != mix.params(200, 2)
    limits = np.asarray([own.max_tokens for own in params])
    assert limits.min() >= 10 and limits.max() <= 40 and 17 <= np.median(limits) <= 23
    assert [own.temperature for own in params[:3]] == [0.0, 1.0, 0.0]
    assert len({own.seed for own in params}) == 200


def test_a_users_files_serve_one_split_each(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{index}.txt") for index in range(7)]
    for name in names:
        Path(name).write_text(f"text of {name}")
    train, evaluation = split_user_files(names, 0.4, 0)
    assert {file.name for file in train} | {file.name for file in evaluation} == set(names)
    assert len(evaluation) == 3 and len(train) == 4
    with pytest.raises(RecordingError, match="two or more"):
        split_user_files(names[:1], 0.4, 0)


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def config(pair_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordConfig:
    texts = tmp_path_factory.mktemp("texts")
    for index in range(3):
        (texts / f"{index}.py").write_text("".join(f"def name{index}_{line}(self):\n    pass\n" for line in range(60)))
    return RecordConfig(
        output=str(tmp_path_factory.mktemp("recording") / "own"),
        target=str(pair_directory / "target"),
        drafter=str(pair_directory / "drafter"),
        texts=tuple(map(str, sorted(texts.iterdir()))),
        num_train=4,
        num_evaluation=2,
        mix=RequestMix(min_tokens=6, median_tokens=8, max_tokens=10),
        max_num_speculative_tokens=2,
        max_num_seqs=2,
        cost_repeats=1,
        calibration_rounds=0,
    )


def test_a_run_writes_its_parts_and_does_none_of_them_twice(config: RecordConfig, pair: Pair) -> None:
    run = Recording(config)
    run.pair = pair
    for split in ("train", "evaluation"):
        run.record(split)
    output = Path(config.output)
    train, evaluation = (Trace.load(output / f"{split}.npz") for split in ("train", "evaluation"))
    assert (len(train), len(evaluation)) == (4, 2) and train.categories == ("code",)
    record = json.loads((output / "record.json").read_text())
    assert record["config"]["num_train"] == 4 and set(record["parts"]) == {"train", "evaluation"}
    before = (output / "train.npz").stat().st_mtime_ns
    (output / "evaluation.npz").unlink()
    again = Recording(config)
    again.pair = pair
    assert set(again.parts) == {"train"}
    for split in ("train", "evaluation"):
        again.record(split)
    assert (output / "train.npz").stat().st_mtime_ns == before
    np.testing.assert_array_equal(Trace.load(output / "evaluation.npz").accepted_length, evaluation.accepted_length)
    with pytest.raises(RecordingError, match="other settings"):
        Recording(replace(config, seed=1)).record("train")


def test_shipped_configurations_are_valid() -> None:
    for path in sorted((Path(__file__).parents[2] / "configs" / "record").glob("*.yaml")):
        assert load_config(RecordConfig, path).engine_config.max_num_speculative_tokens >= 1


def test_options_override_the_configuration(tmp_path: Path, config: RecordConfig) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("output: here\ntarget: t\ndrafter: d\ntexts: [a, b]\nmix:\n  temperatures: [0.5]\n")
    parsed = parse(["--config", str(path), "--num-train", "7", "--mix.max-tokens", "99"])
    assert (parsed.num_train, parsed.mix.max_tokens, parsed.mix.temperatures) == (7, 99, (0.5,))
    with pytest.raises(ConfigError, match="give a configuration"):
        parse([])
    path.write_text("output: here\ntarget: t\ndrafter: d\n")
    with pytest.raises(ConfigError, match="evaluation_prompts"):
        parse(["--config", str(path)])


# ---------------------------------------------------------------------- import


def run_import(requests: Path, costs: Path, output: Path, *options: str) -> int:
    arguments = ["--requests", str(requests), "--cost-surface", str(costs), "--output", str(output)]
    return main(["import", *arguments, *options])


def test_the_documents_example_is_imported_whole(tmp_path: Path) -> None:
    assert run_import(EXAMPLES / "recording.jsonl", EXAMPLES / "costs.json", tmp_path) == 0
    lines = [json.loads(line) for line in (EXAMPLES / "recording.jsonl").read_text().splitlines()]
    splits = [Trace.load(tmp_path / f"{split}.npz") for split in ("train", "evaluation")]
    assert [len(split) for split in splits] == [5, 3]
    found = sorted(
        (
            int(trace.prompt_tokens[index]),
            trace.accepted_length[trace.request_of_position() == index].tolist(),
            round(float(trace.temperature[index]), 6),
            trace.categories[trace.category[index]],
        )
        for trace in splits
        for index in range(len(trace))
    )
    expected = [
        (line["prompt_tokens"], line["accepted_lengths"], line["temperature"], line["category"]) for line in lines
    ]
    assert found == sorted(expected)
    surface = CostSurface.load(tmp_path / "cost_surface.json")
    rows = json.loads((EXAMPLES / "costs.json").read_text())
    for kind in surface.costs:
        for batch, tokens, context, seconds in rows[kind]:
            assert surface.seconds(kind, batch, tokens, context) == pytest.approx(seconds)


def test_the_documents_command_names_the_examples() -> None:
    text = (EXAMPLES.parent / "trace-format.md").read_text(encoding="utf-8")
    assert "--requests docs/examples/recording.jsonl --cost-surface docs/examples/costs.json" in text


def test_both_forms_of_confidence_say_the_same(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 4)).round(3)
    named = {name: values[..., at].tolist() for at, name in enumerate(LEVEL_FEATURES)}
    lines = [
        {"prompt_tokens": 5, "accepted_lengths": [2, 1, 0], "confidence": form} for form in (values.tolist(), named)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    trace = read_requests(path, temperature=0.6)
    assert trace.max_num_speculative_tokens == 2 and trace.confidence is not None
    np.testing.assert_allclose(trace.confidence, np.concatenate([values, values]), rtol=1e-6)
    np.testing.assert_array_equal(trace.temperature, np.float32([0.6, 0.6]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", "line 2: must be a JSON object"),
        ('{"prompt_tokens": 3}', "line 2: lacks 'accepted_lengths'"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0], "extra": 1}', "line 2: unknown field 'extra'"),
        ('{"prompt_tokens": 0, "accepted_lengths": [0]}', "line 2: 'prompt_tokens'"),
        ('{"prompt_tokens": true, "accepted_lengths": [0]}', "line 2: 'prompt_tokens'"),
        ('{"prompt_tokens": 3, "accepted_lengths": []}', "line 2: 'accepted_lengths'"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0, 1.5]}', r"line 2: 'accepted_lengths\[1\]'"),
        ('{"prompt_tokens": 3, "accepted_lengths": [1, 2]}', r"line 2: 'accepted_lengths\[1\]'.*0 … 1"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0], "temperature": NaN}', "line 2: 'temperature'"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0], "temperature": 1e999}', "line 2: 'temperature'"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0], "category": 1}', "line 2: 'category'"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0, 0], "max_tokens": 1}', "line 2: 'max_tokens'"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0], "confidence": [[1]]}', "line 2: 'confidence'"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0], "confidence": [[[1, 2, 3]]]}', "line 2: 'confidence' has"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0], "confidence": [[[1, 2, 3, 1e300]]]}', "line 2: 'confidence'"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0], "confidence": [[[1, 2, 3, 4]]]}', "every line or on none"),
        ('{"prompt_tokens": 3, "accepted_lengths": [0], "confidence": {"entropy": [[1]]}}', "line 2: 'confidence'"),
    ],
)
def test_a_bad_line_is_named_with_its_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt_tokens": 3, "accepted_lengths": [0, 0]}\n' + line + "\n")
    assert run_import(path, EXAMPLES / "costs.json", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        read_requests(path, 0.0)
    assert not (tmp_path / "out").exists()


def _costs(**change: Any) -> str:
    rows = [[1, 1, 64, 0.1], [1, 2, 64, 0.2]]
    document = {"hardware": "h", "verify": rows, "prefill": rows, **change}
    return json.dumps({name: value for name, value in document.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object with 'hardware'"),
        (_costs(hardware=None), "must be an object with 'hardware'"),
        (_costs(prefill=None), "needs rows for verify and prefill"),
        (_costs(speed=[]), "unknown field 'speed'"),
        (_costs(verify=[]), "'verify' must be a list"),
        (_costs(verify=[[1, 1, 64]]), r"'verify\[0\]' must be"),
        (_costs(verify=[[1, 1, 64, -1.0]]), r"'verify\[0\]' must be"),
        (_costs(verify=[[1, 0, 64, 1.0]]), r"'verify\[0\]'.*positive"),
        (_costs(verify=[[1, 1, 64, 1.0], [1, 1, 64, 1.0]]), r"'verify\[1\]' repeats"),
        (_costs(verify=[[1, 1, 64, 1.0], [2, 2, 64, 1.0]]), r"'verify' lacks .*\[1, 2, 64\]"),
        (json.dumps({"format": "specpilot cost surface"}), "'schema_version'"),
    ],
)
def test_a_bad_table_of_costs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    assert run_import(EXAMPLES / "recording.jsonl", path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "costs.json" in error
    assert re.search(message, error), error


def test_a_surface_of_ours_is_imported_as_it_is(tmp_path: Path) -> None:
    assert run_import(EXAMPLES / "recording.jsonl", EXAMPLES / "costs.json", tmp_path / "first") == 0
    own = tmp_path / "first" / "cost_surface.json"
    assert run_import(EXAMPLES / "recording.jsonl", own, tmp_path / "second") == 0
    assert CostSurface.load(own) == CostSurface.load(tmp_path / "second" / "cost_surface.json")
