"""Formats of weights: bytes counted by hand, and which matrix has which."""

import subprocess
import sys

import pytest

from octavo.errors import ConfigError
from octavo.quantization.weights import (
    GROUP_SIZES,
    WEIGHT_FORMATS,
    WeightFormat,
    matrix_format,
    weight_format,
)

PLAIN = ["float32", "bfloat16", "float16"]
QUANTIZED = ["int8", "int4", "w8a8", "w4a8"]


@pytest.mark.parametrize(
    ("name", "group_size", "expected"),
    [
        ("float32", 128, 4 * 8192 * 2048),
        ("bfloat16", 128, 2 * 8192 * 2048),
        ("float16", 64, 2 * 8192 * 2048),
        ("int8", 128, 8192 * 2048 + 4 * 8192),
        ("w8a8", 32, 8192 * 2048 + 4 * 8192),
        ("int4", 32, 8192 * 2048 // 2 + 2 * 8192 * 64),
        ("int4", 64, 8192 * 2048 // 2 + 2 * 8192 * 32),
        ("int4", 128, 8192 * 2048 // 2 + 2 * 8192 * 16),
        ("w4a8", 128, 8192 * 2048 // 2 + 2 * 8192 * 16),
    ],
)
def test_num_bytes(name: str, group_size: int, expected: int) -> None:
    own = weight_format(name, group_size, "bfloat16")
    assert own.num_bytes(8192, 2048) == expected
    # Bits are nominal: a row's own scale is not in them, 1 byte in 512 here.
    assert expected * 8 / (8192 * 2048) == pytest.approx(own.bits_per_weight, rel=2e-3)


@pytest.mark.parametrize(("group_size", "bits"), [(32, 4.5), (64, 4.25), (128, 4.125)])
def test_smaller_groups_take_more_bits(group_size: int, bits: float) -> None:
    own = weight_format("int4", group_size, "bfloat16")
    assert own.bits_per_weight == bits and str(own) == f"int4 in groups of {group_size}"


def test_odd_shapes() -> None:
    assert weight_format("int8", 128, "float32").num_bytes(3, 7) == 21 + 12
    assert weight_format("int4", 32, "float32").num_bytes(3, 96) == 144 + 18


@pytest.mark.parametrize("compute", PLAIN)
def test_what_is_not_quantized_meets_its_input_in_the_computations_type(compute: str) -> None:
    assert weight_format("auto", 64, compute) == WEIGHT_FORMATS[compute]
    assert weight_format("auto", 64, compute).activation == compute
    for name in QUANTIZED:
        own = weight_format(name, 64, compute)
        assert own.activation == ("int8" if name.endswith("a8") else compute)
        assert own.quantized_activations == name.endswith("a8")
        assert own.group_size == (64 if "4" in name else None)


def test_which_are_quantized() -> None:
    assert [name for name, own in WEIGHT_FORMATS.items() if own.is_quantized] == QUANTIZED
    assert all(own.name == name for name, own in WEIGHT_FORMATS.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("int8", "int8"), ("int4", "int8"), ("w8a8", "w8a8"), ("w4a8", "w8a8"), ("auto", "float16")],
)
def test_the_lm_head_has_eight_bits(name: str, expected: str) -> None:
    own = weight_format(name, 32, "float16")
    assert matrix_format(own, "layer") == own
    head = matrix_format(own, "lm_head")
    assert head == weight_format(expected if name != "auto" else "auto", 32, "float16")
    assert (head.name, head.activation) == (expected, own.activation)


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_lm_head_may_stay_as_it_is(name: str) -> None:
    own = weight_format(name, 32, "bfloat16")
    assert matrix_format(own, "layer", "bfloat16") == own
    assert matrix_format(own, "lm_head", "bfloat16") == WEIGHT_FORMATS["bfloat16"]


@pytest.mark.parametrize(
    ("group_size", "width", "cure"),
    [(128, 704, "32 or 64 fits"), (64, 160, "32 fits"), (32, 80, "use 'int8' or 'w8a8'"),
     (128, 64, "32 or 64 fits")],
)  # fmt: skip
def test_rows_that_are_no_whole_groups_are_refused(group_size: int, width: int, cure: str) -> None:
    own = weight_format("int4", group_size, "bfloat16")
    with pytest.raises(ConfigError) as caught:
        own.check_fits("model.layers.0.mlp.down_proj.weight", width)
    for part in (f"weight_group_size = {group_size}", "layers.0.mlp.down_proj", f"{width}", cure):
        assert part in str(caught.value)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_rows_that_fit(group_size: int) -> None:
    weight_format("w4a8", group_size, "float32").check_fits("any", 3 * group_size)
    weight_format("w8a8", group_size, "float32").check_fits("any", 3 * group_size + 1)


def test_formats_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        WEIGHT_FORMATS["int8"].weight_bits = 4  # type: ignore[misc]
    assert isinstance(hash(WEIGHT_FORMATS["int8"]), int)
    assert WeightFormat("int8", 8, None, "bfloat16") == WEIGHT_FORMATS["int8"]


def test_planning_needs_no_torch() -> None:
    code = "import sys, octavo.quantization.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
