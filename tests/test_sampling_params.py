"""Sampling parameters: types, bounds and defaults; a fault names field, value and limit."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.sampling_params import NAMES, SamplingParams, parse


def refusal(values: dict[str, Any]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse(values)
    return caught.value


def test_defaults_are_vllm_backends() -> None:
    params = parse({})
    assert params == SamplingParams(
        temperature=1.0, top_p=1.0, top_k=0, seed=None, max_tokens=16, min_tokens=0, stop=(),
        stop_token_ids=(), ignore_eos=False, logprobs=None, n=1, priority=2, deadline_ms=None,
    )  # fmt: skip
    assert not params.is_greedy
    assert parse({"temperature": 0}).is_greedy


# The lowest and the highest value of each number.
BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (5e-324, 1.0),
    "top_k": (-1, 2**31 - 1),
    "seed": (-(2**63), 2**64 - 1),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 16),
    "logprobs": (0, 20),
    "n": (1, 4096),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (5e-324, 100.0),
    "prompt_logprobs": (0, 20),
    "priority": (1, 100),
    "deadline_ms": (1, 86_400_000),
}
WHOLE = [
    name
    for name in BOUNDS
    if name not in ("temperature", "top_p", "min_p") and not name.endswith("_penalty")
]
ABSENT_BY_NULL = ("seed", "logprobs", "prompt_logprobs", "deadline_ms")


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("kind", [lambda value: value, str], ids=["number", "text"])
def test_bounds_are_inside(name: str, kind: Any) -> None:
    for value in BOUNDS[name]:
        parsed = getattr(parse({name: kind(value)}), name)
        assert parsed == value and type(parsed) is (int if name in WHOLE else float)


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("temperature", -1e-9, "0"),
        ("temperature", 100.1, "100"),
        ("temperature", 1e300, "100"),
        ("top_p", 0, "0"),
        ("top_p", -0.5, "0"),
        ("top_p", 1.0000001, "1"),
        ("top_k", -2, "-1"),
        ("top_k", 2**31, "2147483647"),
        ("seed", -(2**63) - 1, "-9223372036854775"),
        ("seed", 2**64, "1844674407370955"),
        ("max_tokens", 0, "1"),
        ("max_tokens", -1, "1"),
        ("max_tokens", 2**31, "2147483647"),
        ("min_tokens", -1, "0"),
        ("logprobs", -1, "0"),
        ("logprobs", 21, "20"),
        ("logprobs", 200, "20"),
        ("n", 0, "1"),
        ("n", 10**6, "4096"),
        ("min_p", -0.01, "0"),
        ("min_p", 1.01, "1"),
        ("presence_penalty", -2.01, "-2"),
        ("presence_penalty", 2.01, "2"),
        ("frequency_penalty", -3, "-2"),
        ("frequency_penalty", 3, "2"),
        ("repetition_penalty", 0, "0"),
        ("repetition_penalty", -1, "0"),
        ("repetition_penalty", 101, "100"),
        ("prompt_logprobs", 21, "20"),
        ("priority", 0, "1"),
        ("priority", 101, "100"),
        ("deadline_ms", 0, "1"),
        ("deadline_ms", 86_400_001, "86400000"),
    ],
)
@pytest.mark.parametrize("kind", [lambda value: value, str], ids=["number", "text"])
def test_what_is_out_of_bounds_is_refused(name: str, value: float, limit: str, kind: Any) -> None:
    fault = refusal({name: kind(value)})
    assert fault.field == name
    assert str(fault).startswith(f"{name}: got {value}; should be ")
    assert limit in str(fault).partition(";")[2]


NO_NUMBERS = [
    math.nan, math.inf, -math.inf, "nan", "NaN", "inf", "-Infinity", "1e400", "abc", "", " ",
    "1,5", "0x10", True, False, [], [1], {}, {"a": 1}, b"x", int,
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_no_number_is_refused(name: str, value: object) -> None:
    fault = refusal({name: value})
    assert fault.field == name
    assert str(fault).startswith(f"{name}: got ") and "should be" in str(fault)


@pytest.mark.parametrize("value", [1.5, "1.5", 1e-320], ids=repr)
@pytest.mark.parametrize("name", WHOLE)
def test_fractions_are_refused_where_whole_numbers_are_needed(name: str, value: object) -> None:
    assert refusal({name: value}).field == name


@pytest.mark.parametrize("name", BOUNDS)
def test_null_is_absent_where_absent_means_something(name: str) -> None:
    if name in ABSENT_BY_NULL:
        assert getattr(parse({name: None}), name) is None
    else:
        assert refusal({name: None}).field == name


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["400", "-400", "5000"])
@pytest.mark.parametrize("name", [*BOUNDS, "stop", "stop_token_ids", "ignore_eos", "unknown"])
def test_huge_whole_numbers_are_refused_in_few_words(name: str, value: int) -> None:
    fault = refusal({name: value})
    assert fault.field == name and len(str(fault)) < 500


def test_long_values_are_cut_in_the_message() -> None:
    fault = refusal({"temperature": "x" * 100_000})
    assert "xxx… (100000 characters)" in str(fault) and len(str(fault)) < 300
    fault = refusal({"stop": [["y" * 1000] * 1000]})
    assert len(str(fault)) < 300


@pytest.mark.parametrize("name", ["temprature", "", "best_of", "Temperature", "__class__", "n "])
def test_unknown_names_are_refused(name: str) -> None:
    fault = refusal({"max_tokens": 3, name: 0.5})
    assert fault.field == name
    assert str(fault).startswith(f"{name}: got 0.5; unknown parameter; known: ")
    assert all(known in str(fault) for known in NAMES)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("end", ("end",)),
        (["a", "b"], ("a", "b")),
        ([], ()),
        (("a",), ("a",)),
        (["\n\n", "é", "文"], ("\n\n", "é", "文")),
        (["s"] * 16, ("s",) * 16),
        (["s" * 256], ("s" * 256,)),
    ],
)
def test_stop_takes_one_or_more(value: object, expected: tuple[str, ...]) -> None:
    assert parse({"stop": value}).stop == expected


@pytest.mark.parametrize(
    ("value", "field", "part"),
    [
        ("", "stop[0]", "at least 1 character"),
        ([""], "stop[0]", "at least 1 character"),
        (["a", ""], "stop[1]", "at least 1 character"),
        (["s" * 257], "stop[0]", "at most 256 characters"),
        ("s" * 100_000, "stop[0]", "at most 256 characters"),
        (["s"] * 17, "stop", "at most 16 items"),
        ([1], "stop[0]", "string"),
        ([None], "stop[0]", "string"),
        (["a", ["b"]], "stop[1]", "string"),
        ([b"a"], "stop[0]", "string"),
        (5, "stop", "tuple"),
        (True, "stop", "tuple"),
        (None, "stop", "tuple"),
        ({"a": "b"}, "stop", "tuple"),
    ],
)
def test_bad_stops_are_refused(value: object, field: str, part: str) -> None:
    fault = refusal({"stop": value})
    assert fault.field == field and part in str(fault)


@pytest.mark.parametrize(
    ("value", "expected"), [([], ()), ([1, "2"], (1, 2)), ([0] * 256, (0,) * 256)]
)
def test_stop_token_ids(value: object, expected: tuple[int, ...]) -> None:
    assert parse({"stop_token_ids": value}).stop_token_ids == expected


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([-1], "stop_token_ids[0]"),
        ([1, 2.5], "stop_token_ids[1]"),
        ([True], "stop_token_ids[0]"),
        ([None], "stop_token_ids[0]"),
        (["x"], "stop_token_ids[0]"),
        ([math.nan], "stop_token_ids[0]"),
        ([[1]], "stop_token_ids[0]"),
        ([0] * 257, "stop_token_ids"),
        (5, "stop_token_ids"),
        ("5 6", "stop_token_ids"),
        ({"a": 1}, "stop_token_ids"),
    ],
)
def test_bad_stop_token_ids_are_refused(value: object, field: str) -> None:
    assert refusal({"stop_token_ids": value}).field == field


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("true", True), ("0", False), (1, True)]
)
def test_ignore_eos_takes_what_means_a_boolean(value: object, expected: bool) -> None:
    assert parse({"ignore_eos": value}).ignore_eos is expected


@pytest.mark.parametrize("value", [2, "maybe", None, [], math.nan, 0.5])
def test_bad_ignore_eos_is_refused(value: object) -> None:
    assert refusal({"ignore_eos": value}).field == "ignore_eos"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bad_words", "damn", ("damn",)),
        ("bad_words", ["a", " b"], ("a", " b")),
        ("allowed_token_ids", None, None),
        ("allowed_token_ids", ["5", 6], (5, 6)),
        ("logit_bias", {"5": 1, "6": "-2.5"}, {5: 1.0, 6: -2.5}),
        ("logit_bias", '{"5": 100}', {5: 100.0}),
        ("logit_bias", {}, {}),
        ("tenant", "team-a.b:c_1", "team-a.b:c_1"),
        ("tenant", None, None),
        ("cache", "false", False),
        ("include_stop_str_in_output", "true", True),
        ("skip_special_tokens", 0, False),
    ],
)
def test_other_parameters(name: str, value: object, expected: object) -> None:
    assert getattr(parse({name: value}), name) == expected


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("bad_words", [""], "bad_words[0]"),
        ("bad_words", ["a"] * 129, "bad_words"),
        ("bad_words", ["a" * 257], "bad_words[0]"),
        ("bad_words", [1], "bad_words[0]"),
        ("allowed_token_ids", [], "allowed_token_ids"),
        ("allowed_token_ids", [-1], "allowed_token_ids[0]"),
        ("allowed_token_ids", "5", "allowed_token_ids"),
        ("logit_bias", {"5": 100.1}, "logit_bias[5]"),
        ("logit_bias", {"5": math.nan}, "logit_bias[5]"),
        ("logit_bias", {"-1": 1}, "logit_bias"),
        ("logit_bias", {"x": 1}, "logit_bias"),
        ("logit_bias", [[5, 1]], "logit_bias"),
        ("logit_bias", "nonsense", "logit_bias"),
        ("tenant", "", "tenant"),
        ("tenant", "a b", "tenant"),
        ("tenant", "t" * 65, "tenant"),
        ("tenant", 'x"} 1\n', "tenant"),
        ("tenant", 5, "tenant"),
        ("cache", "perhaps", "cache"),
        ("include_stop_str_in_output", "perhaps", "include_stop_str_in_output"),
        ("skip_special_tokens", None, "skip_special_tokens"),
    ],
)
def test_other_bad_parameters_are_refused(name: str, value: object, field: str) -> None:
    assert refusal({name: value}).field == field


def test_min_tokens_is_at_most_max_tokens() -> None:
    assert parse({"min_tokens": 5, "max_tokens": 5}).min_tokens == 5
    fault = refusal({"min_tokens": "6", "max_tokens": 5})
    assert str(fault) == "min_tokens: got 6; at most max_tokens = 5"
    assert refusal({"min_tokens": 17}).field == "min_tokens"


@pytest.mark.parametrize("depth", [50, 900, 10_000])
@pytest.mark.parametrize("name", ["stop", "temperature", "unknown"])
def test_deeply_nested_junk_is_refused(name: str, depth: int) -> None:
    junk: list[Any] = []
    for _ in range(depth):
        junk = [junk]
    assert refusal({name: junk}).field.startswith(name)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(st.sampled_from([*NAMES, "other"]), JUNK, max_size=4))
def test_parse_returns_checked_values_or_names_a_field(values: dict[str, Any]) -> None:
    try:
        params = parse(values)
    except InvalidRequestError as fault:
        assert fault.field.partition("[")[0] in values and len(str(fault)) < 600
        return
    for name, (low, high) in BOUNDS.items():
        value = getattr(params, name)
        assert value is None if name in ABSENT_BY_NULL and value is None else low <= value <= high
