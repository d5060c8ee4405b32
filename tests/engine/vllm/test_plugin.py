"""The plugin: found by vLLM, out of the way without a controller, clear about what it refuses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpilot.controllers import Action, ConstantController, FixedPolicy, save_controller
from specpilot.engine.vllm.tiers import tier_table
from specpilot.tests.engine.vllm.conftest import LONGEST, STEERED, Served
from specpilot.tests.support.priced import controller as priced_controller

vllm = pytest.importorskip("vllm")

from specpilot.engine.vllm import compatibility, plugin  # noqa: E402


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A controller that vLLM can use."""
    return str(save_controller(ConstantController(3), tmp_path / "three.json"))


@pytest.fixture(scope="module")
def configure(pair_directory: Path) -> Callable[..., Any]:
    """Makes a ``VllmConfig`` as the engine does, without an engine."""

    def build(speculate: bool = True, **named: Any) -> Any:
        from vllm.engine.arg_utils import EngineArgs

        drafter = {"model": str(pair_directory / "drafter"), "method": "draft_model", "num_speculative_tokens": LONGEST}
        if speculate:
            named["speculative_config"] = drafter | named.get("speculative_config", {})
        engine = {"max_num_seqs": 16, "max_model_len": 512, "dtype": "float32", "enforce_eager": True} | named
        return EngineArgs(model=str(pair_directory / "target"), **engine).create_engine_config()

    return build


def class_of(config: Any) -> Any:
    return config.scheduler_config.get_scheduler_cls()


# ---------------------------------------------------------------------- found, or out of the way


def test_vllm_finds_the_entry_point() -> None:
    from vllm.plugins import load_plugins_by_group

    assert load_plugins_by_group("vllm.general_plugins")["specpilot"] is plugin.register


def test_registering_again_wraps_nothing_twice() -> None:
    from vllm.config import VllmConfig

    plugin.register()
    before = VllmConfig.__post_init__
    plugin.register()
    assert VllmConfig.__post_init__ is before


def test_without_a_controller_vllm_is_as_if_the_plugin_were_not_there(configure: Callable[..., Any]) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    plugin.register()
    for config in (configure(), configure(speculate=False)):
        assert class_of(config) is Scheduler and config.scheduler_config.scheduler_cls is None
    assert configure().speculative_config.num_speculative_tokens_per_batch_size is None


@pytest.mark.parametrize("way", ["environment", "additional_config"])
def test_one_setting_is_enough(
    way: str, configure: Callable[..., Any], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specpilot.engine.vllm.scheduler import SteeredScheduler

    plugin.register()
    if way == "environment":
        monkeypatch.setenv("SPECPILOT_CONTROLLER", file)
        config = configure()
    else:
        config = configure(additional_config={"specpilot": {"controller": file}})
    assert class_of(config) is SteeredScheduler
    assert config.speculative_config.num_speculative_tokens_per_batch_size == tier_table(LONGEST, 16)


def test_an_asynchronous_engine_gets_the_asynchronous_scheduler(configure: Callable[..., Any], file: str) -> None:
    from specpilot.engine.vllm.scheduler import SteeredAsyncScheduler

    config = configure(scheduler_cls=STEERED, additional_config={"specpilot": {"controller": file}})
    config.scheduler_config.async_scheduling = True  # On CPU vLLM switches it off in its own last step.
    plugin.finish(config)
    assert class_of(config) is SteeredAsyncScheduler


def test_a_table_of_the_users_stays(configure: Callable[..., Any], file: str) -> None:
    own = [(1, 4, 3), (5, 16, 0)]
    config = configure(
        speculative_config={"num_speculative_tokens_per_batch_size": own},
        additional_config={"specpilot": {"controller": file}},
    )
    assert [tuple(row) for row in config.speculative_config.num_speculative_tokens_per_batch_size] == own


@pytest.mark.parametrize("max_num_seqs", [1, 2, 5, 6, 7, 64])
@pytest.mark.parametrize("longest", [1, 3, 5])
def test_the_tiers_name_every_k_that_fits(longest: int, max_num_seqs: int) -> None:
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    lookup = build_dynamic_sd_schedule_lookup(tier_table(longest, max_num_seqs), max_num_seqs, longest)[1:]
    assert set(lookup) == set(range(longest, -1, -1)[:max_num_seqs])
    assert lookup[0] == longest and len(lookup) == max_num_seqs


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path, "no such file|No such file|not exist|cannot"),
        (lambda path: path.write_text("{}"), "format"),
        (lambda path: save_controller(priced_controller(FixedPolicy(Action(4, 1.0, 1))), path), "top1_probability"),
    ],
)
def test_a_controller_that_cannot_be_used_stops_the_start_in_one_line(
    write: Callable[[Path], object], words: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "controller.json"
    write(path)
    with pytest.raises(Exception, match=words) as caught:
        configure(additional_config={"specpilot": {"controller": str(path)}})
    assert str(path) in str(caught.value)


def test_an_unknown_setting_stops_the_start(configure: Callable[..., Any]) -> None:
    with pytest.raises(Exception, match="controlller"):
        configure(additional_config={"specpilot": {"controlller": "x"}})


def test_an_engine_that_cannot_be_steered_says_so_once_and_stays_static(
    configure: Callable[..., Any], file: str, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    plugin._warned.clear()
    with caplog.at_level("WARNING", "specpilot"):
        for _ in range(2):
            config = configure(speculate=False, additional_config={"specpilot": {"controller": file}})
            assert class_of(config) is Scheduler
    said = [record.getMessage() for record in caplog.records if record.name.startswith("specpilot")]
    assert len(said) == 1 and "--speculative-config" in said[0]


def _with(config: Any, part: str, **values: Any) -> Any:
    """A copy of a real configuration in which ``part`` has other values."""
    own, changed = copy.copy(config), copy.copy(getattr(config, part))
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    object.__setattr__(own, part, changed)
    return own


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("parallel_config", {"data_parallel_size": 2}, "data_parallel_size is 2"),
        ("speculative_config", {"method": "medusa"}, "'medusa' ignores K"),
        ("speculative_config", {"method": "suffix"}, "'suffix' ignores K"),
        ("speculative_config", {"method": "custom_class"}, "'custom_class' ignores K"),
        ("speculative_config", {"method": "dflash"}, "'dflash' ignores K"),
        ("speculative_config", {"method": "ngram_gpu"}, "'ngram_gpu' ignores K"),
        ("speculative_config", {"parallel_drafting": True}, "parallel_drafting"),
        ("scheduler_config", {"scheduler_cls": "somebody.Else"}, "somebody.Else"),
    ],
)
def test_what_is_known_to_break_is_named(
    part: str, values: dict[str, Any], words: str, configure: Callable[..., Any]
) -> None:
    config = configure()
    assert compatibility.problem_of_engine(config) is None
    problem = compatibility.problem_of_engine(_with(config, part, **values))
    assert problem is not None and words in problem and "\n" not in problem


def test_model_runner_v2_is_steered_with_eagle_alone(configure: Callable[..., Any], file: str) -> None:
    config = configure()

    class SecondRunner(type(config)):  # type: ignore[misc]
        use_v2_model_runner = True

    second = _with(config, "speculative_config")
    second.__class__ = SecondRunner
    problem = compatibility.problem_of_engine(second)
    assert problem is not None and "VLLM_USE_V2_MODEL_RUNNER=0" in problem
    assert compatibility.problem_of_engine(_with(second, "speculative_config", method="eagle3")) is None


@pytest.mark.parametrize(
    ("version", "fits"),
    [("0.30.1", True), ("0.32.0", True), ("0.33.0+cu130", True), ("0.29.0", False), ("0.34.0", False), ("x", False)],
)
def test_versions_outside_of_the_range_are_not_steered(version: str, fits: bool) -> None:
    problem = compatibility.problem_of_version(version)
    assert (problem is None) == fits and (fits or version in str(problem))


def test_the_installed_version_has_every_hook() -> None:
    assert compatibility.problem_of_installation() is None
    assert str(vllm.__version__).split("+")[0] in compatibility.TRIED


@pytest.mark.parametrize("name", list(compatibility._METHODS))
def test_a_missing_hook_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.setattr(Scheduler, name, None)
    monkeypatch.setattr(AsyncScheduler, name, None)
    assert name in str(compatibility.problem_of_hooks())


def test_a_hook_with_other_parameters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.setattr(Scheduler, "update_from_output", lambda self, model_runner_output, scheduler_output: {})
    assert "update_from_output" in str(compatibility.problem_of_hooks())


def test_a_missing_field_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.output import SchedulerOutput

    fields = {name: field for name, field in SchedulerOutput.__dataclass_fields__.items() if "to_schedule" not in name}
    monkeypatch.setattr(SchedulerOutput, "__dataclass_fields__", fields)
    assert not any(field.name == "num_spec_tokens_to_schedule" for field in dataclasses.fields(SchedulerOutput))
    assert "num_spec_tokens_to_schedule" in str(compatibility.problem_of_hooks())


def test_a_vllm_without_the_hooks_serves_on_without_a_controller(
    serve: Callable[..., Served], file: str, evaluation_prompts: list[list[int]], plain: Served
) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compatibility, "NEWEST", (0, 31))
        served = serve({"controller": file})
        assert type(served.scheduler) is Scheduler
        explicit = serve({"controller": file}, scheduler_cls=STEERED)
        assert "0.31" in explicit.steering.problem and explicit.steering.guard is None
    prompts = evaluation_prompts[:4]
    assert served.texts(prompts) == explicit.texts(prompts) == plain.texts(prompts)
