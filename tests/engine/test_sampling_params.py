"""Every out-of-range parameter is refused with its name, its value and the range."""

from __future__ import annotations

import math
from typing import Any

import pytest

from specpilot.engine import RequestError, SamplingParams

BAD: list[tuple[str, Any, str]] = [
    ("temperature", -0.1, "-0.1"),
    ("temperature", math.nan, "nan"),
    ("temperature", math.inf, "inf"),
    ("temperature", "hot", "'hot'"),
    ("temperature", None, "None"),
    ("temperature", True, "True"),
    ("top_p", 0.0, "0.0"),
    ("top_p", 1.01, "1.01"),
    ("top_p", -1, "-1"),
    ("top_p", math.nan, "nan"),
    ("top_k", -1, "-1"),
    ("top_k", 1.5, "1.5"),
    ("max_tokens", 0, "0"),
    ("max_tokens", -3, "-3"),
    ("max_tokens", 2.0, "2.0"),
    ("seed", -1, "-1"),
    ("seed", 2**63, str(2**63)),
    ("seed", 1.0, "1.0"),
    ("num_speculative_tokens", -1, "-1"),
    ("num_speculative_tokens", 9, "9"),
    ("num_speculative_tokens", 2.5, "2.5"),
    ("stop", 5, "5"),
    ("stop", None, "None"),
    ("stop", ["a", 7], "7"),
    ("stop", {"a"}, "'a'"),
    ("stop", "", "''"),
    ("stop", ["a", ""], "''"),
]


@pytest.mark.parametrize(("name", "value", "shown"), BAD, ids=lambda value: repr(value)[:20])
def test_a_bad_value_is_named(name: str, value: Any, shown: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value}).check(8)
    assert name in str(caught.value) and shown in str(caught.value)


def test_a_huge_integer_is_refused_like_any_other_number() -> None:
    with pytest.raises(RequestError, match="temperature"):
        SamplingParams(temperature=10**400).check(8)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=2, top_p=1, top_k=0, seed=0, max_tokens=1),
        SamplingParams(temperature=100.0, top_p=1e-9, top_k=10**9, seed=2**63 - 1),
        SamplingParams(stop="x", num_speculative_tokens=0),
        SamplingParams(stop=["x", "yz"], num_speculative_tokens=8),
        SamplingParams(stop=(), ignore_eos=True),
        SamplingParams(stop=[]),
    ],
)
def test_good_values_pass(params: SamplingParams) -> None:
    params.check(8)


def test_a_single_stop_string_is_not_a_list_of_characters() -> None:
    assert SamplingParams(stop="abc").stop_strings == ("abc",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams().stop_strings == ()
