"""Rows of kernels with a toy's shapes: that all are there, and what they count."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest import approx

from octavo import kernels
from octavo.benchmarks import peaks
from octavo.benchmarks.kernel_cases import Case, Cases
from octavo.benchmarks.kernel_speed import OPS, Line, Options
from octavo.benchmarks.kernel_speed_worker import load_library, measure, time_of
from octavo.config import make_config
from octavo.errors import ConfigError
from octavo.kernels import QuantizedWeight, cpu
from octavo.planner.roofline import DecoderShape, Work

SHAPE = DecoderShape(64, 160, 2, 4, 2, 16, 512)


CACHE = make_config(model=Path()).kernel_cache


@pytest.fixture(scope="module", params=["reference", "auto"])
def lines(toy_folder: Path, request: pytest.FixtureRequest) -> list[Line]:
    options = Options(
        model=str(toy_folder), dtype="float32", num_threads=1, rotated_bytes=2**17, min_s=0.0,
        kernels=request.param, kernel_cache=str(CACHE),
    )  # fmt: skip
    found = list(measure(options))
    assert (found[0]["kernels"] == "reference") == (request.param == "reference")
    return found


def test_every_op_shape_and_format_has_a_row(lines: list[Line]) -> None:
    # The native product of gates and ups has the activation in it.
    silu = 4 if lines[0]["kernels"] == "reference" else 0
    rows = [(line["op"], line["format"], line["shape"]) for line in lines]
    assert len(set(rows)) == len(rows)
    counts = [sum(op == row[0] for row in rows) for op in OPS]
    assert counts == [5 * 5 * 7, 2 * 6, 2 * 2, 4, silu, 4 * 3]
    assert ("linear", "float32", "gate_up 32x64x320") in rows
    assert ("linear", "float32", "lm_head 1x64x512") in rows
    assert ("linear", "int8", "qkv 256x64x128") in rows
    assert ("linear", "int4 in groups of 64", "qkv 4x64x128") in rows
    assert ("linear", "w4a8 in groups of 32", "down 128x160x64") in rows
    assert ("attention_decode", "int8", "32 x 1 of 1024") in rows
    assert ("attention_prefill", "float32", "1 x 256 of 1024") in rows


def test_rates_and_shares_are_of_the_time(lines: list[Line]) -> None:
    by_row = {(line["op"], line["shape"], line["format"]): line for line in lines}
    line = by_row["linear", "down 8x160x64", "float32"]
    moved, computed = 4 * (160 * 64 + 8 * (160 + 64)), 2 * 8 * 160 * 64
    assert line["gbs"] * line["time_us"] * 1e3 == approx(moved, rel=1e-3)
    assert line["gflops"] * line["time_us"] * 1e3 == approx(computed, rel=1e-3)
    for line in lines:
        shares = line["gbs"] / line["read_gbs"], line["gflops"] / line["matrix_gflops"]
        assert line["share_ratio"] == approx(max(shares), rel=1e-3)
        assert line["bound"] == ("memory" if shares[0] >= shares[1] else "compute")
        assert line["calls"] >= 5 and line["threads"] == 1


def test_inputs_are_rotated(lines: list[Line]) -> None:
    for line in lines:
        assert line["rotated_mib"] >= 0.1
    seen = set()
    for case in Cases(SHAPE, torch.float32, 2**17).of("linear"):
        weights = [weight for _, weight in case.inputs]
        plain = [w.stored if isinstance(w, QuantizedWeight) else w for w in weights]
        assert len({weight.data_ptr() for weight in plain}) == len(weights)
        assert len(weights) == -(-(2**17) // case.copy_bytes)
        seen.add(case.format)
    assert len(seen) == 7  # of groups, two sizes each


def test_a_matrix_that_no_groups_fit_has_no_row_of_them() -> None:
    odd = replace(SHAPE, hidden_size=72)
    formats = {case.format for case in Cases(odd, torch.float32, 2**12).of("linear")}
    assert formats == {"float32", "int8", "w8a8", "int4 in groups of 32", "w4a8 in groups of 32", *(
        f"{name} in groups of 64" for name in ("int4", "w4a8"))}  # fmt: skip


def test_calls_take_turns() -> None:
    called: list[int] = []
    case = Case("", "", "", Work(1, 1), called.append, [(0,), (1,), (2,)], 1, "")
    assert time_of(case, 0.0)[1] == 5
    assert called == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("format_name", ["float32", "int8"])
def test_layers_of_the_attention_hold_the_same(format_name: str, kernel: str) -> None:
    """So that a layer's copy costs what another one does, and none is empty."""
    library = load_library(Options(kernels=kernel, kernel_cache=str(CACHE)), 1)
    (case, *_) = [
        case
        for case in Cases(SHAPE, torch.float32, 2**17, library).of("attention_decode")
        if case.format == format_name
    ]
    results = [case.act(*inputs) for inputs in case.inputs]
    assert len(results) > 1
    for result in results:
        assert isinstance(result, torch.Tensor)
        assert result.isfinite().all() and result.abs().max() > 0.01
        assert torch.equal(result, results[0])


def test_native_cases_compute_what_the_reference_does() -> None:
    """On the same random numbers; so each case means the same work with either."""
    checked = 0
    for op in ("linear", "attention_decode", "attention_prefill", "add_rms_norm", "sample"):
        results = []
        for own in (None, cpu.load(CACHE)):
            torch.manual_seed(3)
            cases = Cases(SHAPE, torch.float32, 1, own).of(op)
            results.append({(c.shape, c.format): c.act(*c.inputs[0]) for c in cases})
        assert results[0].keys() == results[1].keys()
        for (shape, format_name), expected in results[0].items():
            found = results[1][shape, format_name]
            if "gate_up" in shape:  # has its activation in it
                continue
            expected, found = (r[0] if isinstance(r, tuple) else r for r in (expected, found))
            assert isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor)
            # Quantized inputs may be rounded apart by one step.
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.3)
            checked += 1
    assert checked > 100


def test_what_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(ConfigError, match="--dtype = float16: "):
        load_library(Options(dtype="float16"), 1)
    with pytest.raises(ConfigError, match="--kernels = neon: this processor has "):
        load_library(Options(kernels="neon", kernel_cache=str(CACHE)), 1)


def test_ops_are_those_of_the_engine() -> None:
    cases = Cases(SHAPE, torch.float32, 2**12)
    for op in ("linear", "add_rms_norm", "silu_mul"):
        (case, *_) = cases.of(op)
        assert case.act is getattr(kernels, op)
    assert {case.act for case in cases.of("sample")} == {kernels.greedy, kernels.sample}


def test_an_op_that_only_the_reference_has_is_refused() -> None:
    options = Options(ops=("silu_mul",), kernel_cache=str(CACHE), num_threads=1)
    with pytest.raises(ConfigError, match=r"--ops = silu_mul: .* add --kernels reference"):
        next(measure(options))


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(ConfigError, match="--ops = conv: should be of linear, attention_decode"):
        next(measure(Options(ops=("linear", "conv"))))


def test_peaks_are_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock whose passes take 3, 2, 4, 6 and 5 seconds."""
    readings = [0.0, 3, 10, 12, 20, 24, 30, 36, 40, 45]
    for measured, work in (
        (lambda: peaks.read_bytes_per_s(None, 2**12), 2**12),
        (lambda: peaks.matrix_flops_per_s(None, "float32"), 2 * 64**3),
        (lambda: peaks.matrix_flops_per_s(None, "int8"), 2 * 64**3),
    ):
        monkeypatch.setattr(peaks, "_ROWS", 64)
        monkeypatch.setattr(peaks.time, "perf_counter", iter(readings).__next__)
        assert measured() == work / 2
