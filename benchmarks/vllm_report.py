"""The vLLM benchmark's table and verdicts, made from its JSON alone."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from specpilot.benchmarks.report import table

OFF, PLUGIN_OFF, TABLE, CONTROLLER = "off", "plugin_off", "vllm_table", "controller"
NEVER_BELOW = 0.97
"""Of the best of off and the best constant, at any load."""
OFF_IS_FREE = 0.95
"""Of vLLM without speculation, for the plugin at K = 0."""
PLUGIN_SHARE = 0.01
"""Of the time at most."""
Results = dict[str, Any]


class Scene(NamedTuple):
    """One load, with figures by contender and repeat."""

    name: str
    is_open: bool
    figures: dict[str, list[float]]
    """Tokens per second; where requests arrive by the clock, per second that a request was in the system."""
    plugin_share: float
    """Of the controller's time, all repeats together."""
    same_texts: bool
    """All contenders gave off's texts in every repeat."""

    @classmethod
    def of(cls, name: str, own: Results) -> Scene:
        """From what the benchmark stored."""
        per, repeats = "request_seconds" if own["is_open"] else "seconds", own["repeats"]
        figures = {arm: [each[arm]["tokens"] / each[arm][per] for each in repeats] for arm in repeats[0]}
        taken, whole = (sum(each[CONTROLLER][key] for each in repeats) for key in ("plugin_seconds", "seconds"))
        same = all(arm["texts"] == each[OFF]["texts"] for each in repeats for arm in each.values())
        return cls(name, own["is_open"], figures, taken / whole, same)

    @property
    def constants(self) -> list[str]:
        """Contenders of one length."""
        return [arm for arm in self.figures if arm.startswith("constant_")]

    @property
    def best_constant(self) -> str:
        """With hindsight: by the median figure."""
        return max(self.constants, key=lambda arm: statistics.median(self.figures[arm]))

    @property
    def best_of_both(self) -> str:
        """Off or the best constant, whichever was faster."""
        return max((OFF, self.best_constant), key=lambda arm: statistics.median(self.figures[arm]))

    def ratios(self, arm: str, base: str) -> list[float]:
        """By repeat: both served the same requests."""
        return [one / other for one, other in zip(self.figures[arm], self.figures[base], strict=True)]

    def ratio(self, arm: str, base: str) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios(arm, base))


def vllm_block(results: Results) -> str:
    """What is to stand in the README: origin, table, aims."""
    scenes = [Scene.of(name, own) for name, own in results["scenarios"].items() if own["repeats"]]
    if not scenes:
        return "Nothing is measured yet."
    repeats = max(len(own["repeats"]) for own in results["scenarios"].values())
    header = ["load", "best constant", "its speed", "vLLM's table", "plugin at K = 0", "controller"]
    header += ["controller over the best of off and constants", "min … max"]
    made = (
        f"Made {results['date'][:10]} with vLLM {results['versions']['vllm']} on {results['hardware']} "
        f"({results['git_revision']}). Tokens per second relative to vLLM without speculation, medians of {repeats} "
        "interleaved repeats; over bursts tokens per second that a request was in the system. The best constant is "
        "chosen with hindsight."
    )
    return "\n\n".join([made, table(header, [_row(scene) for scene in scenes]), "\n".join(_verdicts(scenes))])


def _row(scene: Scene) -> list[str]:
    constant, ratios = scene.best_constant, scene.ratios(CONTROLLER, scene.best_of_both)
    label = scene.name.replace("c=", "requests: ")
    cells = [f"{scene.ratio(arm, OFF):.2f}" for arm in (constant, TABLE, PLUGIN_OFF, CONTROLLER)]
    edges = f"{min(ratios):.2f} … {max(ratios):.2f}"
    return [label, constant.replace("constant_", "K = "), *cells, f"{statistics.median(ratios):.3f}", edges]


def _verdicts(scenes: list[Scene]) -> list[str]:
    found = []
    closed, bursts = [own for own in scenes if not own.is_open], [own for own in scenes if own.is_open]
    if closed:
        found.append(_least("controller over the best of off and the best constant, least", closed, NEVER_BELOW))
        free = min(own.ratio(PLUGIN_OFF, OFF) for own in closed)
        aim = f"aim {OFF_IS_FREE:g}{_met(free >= OFF_IS_FREE)}"
        found.append(f"- plugin at K = 0 over vLLM without speculation, least: {free:.3f} ({aim})")
    if bursts:
        together = statistics.median(_over_all(bursts))
        what = "controller over the best of off and one constant for all bursts together"
        found.append(f"- {what}: {together:.3f} (aim 1{_met(together >= 1)})")
        found.append(_least("controller over the best of both for each load of the bursts, least", bursts, 1.0))
    share = max(own.plugin_share for own in scenes)
    found.append(
        f"- the plugin's share of the time, largest: {100 * share:.2f} % (aim 1 %{_met(share < PLUGIN_SHARE)})"
    )
    same = all(own.same_texts for own in scenes)
    found.append(f"- texts of all contenders equal to those without speculation: {'yes' if same else 'NO'}")
    return found


def _over_all(scenes: list[Scene]) -> list[float]:
    """By repeat: the controller over what is fastest where one choice must serve all scenes, in the geometric mean."""
    repeats = min(len(own.figures[OFF]) for own in scenes)

    def speeds(arm: str) -> list[float]:
        return [statistics.geometric_mean(own.figures[arm][repeat] for own in scenes) for repeat in range(repeats)]

    best = max((speeds(arm) for arm in (OFF, *scenes[0].constants)), key=statistics.median)
    return [one / other for one, other in zip(speeds(CONTROLLER), best, strict=True)]


def _least(what: str, scenes: list[Scene], bound: float) -> str:
    worst = min(scenes, key=lambda own: own.ratio(CONTROLLER, own.best_of_both))
    value = worst.ratio(CONTROLLER, worst.best_of_both)
    return f"- {what}: {value:.3f} ({worst.name}; aim {bound:g}{_met(value >= bound)})"


def _met(met: bool) -> str:
    return "" if met else ", not reached"
