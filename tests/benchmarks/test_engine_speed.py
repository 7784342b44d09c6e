"""A real engine with a toy under small workloads: what must hold whatever the machine does."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest import approx
from torch import Tensor

from factories import make_engine
from octavo.benchmarks.engine_speed import Line, Options
from octavo.benchmarks.engine_speed_worker import (
    build_engine,
    measure,
    measure_workload,
    run_requests,
)
from octavo.benchmarks.step_times import StepTimes, timing_steps
from octavo.benchmarks.workloads import parse_workload
from octavo.errors import ConfigError, InvalidRequestError

# What tables of other engines' results read.
PEER_FIELDS = {
    "peer", "version", "model", "threads", "load_s", "label", "workload", "prefill_tps", "ttft_s",
    "ttft_max_s", "decode_tps", "tpot_ms", "total_s", "runs", "decode_tps_runs", "peak_rss_mib",
}  # fmt: skip
OWN_FIELDS = {
    "weight_format", "kv_cache_dtype", "kernels", "isa", "weight_bytes", "bytes_per_step",
    "flops_per_step", "read_gbs", "matrix_gflops", "bound", "roofline_tps", "roofline_ratio",
    "forward_us", "host_us", "rss_mib", "quality",
}  # fmt: skip
WORKLOADS = ("p9-g5-c3", "p255-g9-c1", "primed32+4-g3-c2")


@pytest.fixture(scope="module")
def lines(toy_folder: Path) -> list[Line]:
    options = Options(
        model=str(toy_folder), workloads=WORKLOADS, runs=2, label="toys",
        settings={"dtype": "float32", "num_threads": "1", "kv_cache_dtype": "int8"},
    )  # fmt: skip
    return list(measure(options))


def test_a_line_for_each_workload_in_its_order(lines: list[Line]) -> None:
    assert [line["workload"] for line in lines] == list(WORKLOADS)
    first = lines[0]
    assert first.keys() >= PEER_FIELDS | OWN_FIELDS and "error" not in first
    assert (first["peer"], first["label"], first["threads"]) == ("octavo", "toys", 1)
    assert (first["weight_format"], first["kv_cache_dtype"]) == ("float32", "int8")
    assert first["quality"] == "ungated"
    assert first["runs"] == len(first["decode_tps_runs"]) == 2
    assert first["decode_tps"] == approx(sum(first["decode_tps_runs"]) / 2, rel=1e-4)
    assert 0 < first["ttft_s"] <= first["ttft_max_s"] < first["total_s"]


def test_a_failed_workload_is_a_line_and_the_next_one_runs(lines: list[Line]) -> None:
    failed, after = lines[1:]
    assert failed["error"].startswith("InvalidRequestError: ") and "decode_tps" not in failed
    assert "error" not in after and after["decode_tps"] > 0


def test_bytes_flops_and_roofline(lines: list[Line]) -> None:
    layer = (64 + 32 + 32) * 64 + 64 * 64 + 320 * 64 + 64 * 160
    weights = 4 * (2 * layer + 512 * 64 + 5 * 64)  # with norms
    token = 2 * 2 * 2 * (16 + 2)  # layers, keys and values, heads: int8 numbers and a scale
    for line, read in ((lines[0], 3 * (9 + 1.5)), (lines[2], 32 + 2 * (4 + 0.5))):
        sequences = int(line["workload"][-1])
        assert line["weight_bytes"] == weights
        assert line["bytes_per_step"] == approx(weights + token * (read + sequences), abs=1)
        assert line["flops_per_step"] > 2 * sequences * (2 * layer + 512 * 64)
        memory_s = line["bytes_per_step"] / (line["read_gbs"] * 1e9)
        compute_s = line["flops_per_step"] / (line["matrix_gflops"] * 1e9)
        assert line["bound"] == ("memory" if memory_s >= compute_s else "compute")
        bound = sequences / max(memory_s, compute_s)
        assert line["roofline_tps"] == approx(bound, rel=1e-3)
        assert line["roofline_ratio"] == approx(line["decode_tps"] / bound, rel=1e-3)


def test_steps_are_model_and_host(lines: list[Line]) -> None:
    assert lines[0]["forward_us"] > 0 and lines[0]["host_us"] > 0
    assert lines[0]["peak_rss_mib"] > 50 and lines[0]["rss_mib"] > 50


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype = 'int3'"),
        ({"num_threads": "0"}, "num_threads = '0': .*greater than or equal to 1"),
        ({"nothing": "1"}, "nothing = '1': unknown setting"),
        ({"kv_cache_bytes": "7"}, "kv_cache_bytes = 7: one block"),
    ],
)
def test_bad_settings_are_refused_before_all(
    toy_folder: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        next(measure(Options(model=str(toy_folder), workloads=("p9-g5-c3",), settings=settings)))


def test_all_requests_of_the_largest_workload_run_at_once(toy_folder: Path) -> None:
    workloads = [parse_workload("p2-g2-c40"), parse_workload("p2-g2-c3")]
    options = Options(model=str(toy_folder), settings={"dtype": "float32", "num_threads": "1"})
    assert build_engine(options, workloads).config.max_num_seqs == 40
    assert build_engine(options, workloads[1:]).config.max_num_seqs == 32


def test_no_further_run_begins_after_the_time(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=64)
    options = Options(model=str(toy_folder), runs=50, max_s=0)
    assert measure_workload(engine, parse_workload("p9-g3-c2"), options)["runs"] == 1


@pytest.mark.parametrize("weight_format", ["int8", "w4a8"])
def test_quantized_weights_count_as_they_are_stored(toy_folder: Path, weight_format: str) -> None:
    settings = {"dtype": "float32", "num_threads": "1", "weight_format": weight_format}
    if weight_format == "w4a8":
        settings["weight_group_size"] = "32"
    options = Options(model=str(toy_folder), workloads=("p9-g3-c1",), runs=1, settings=settings)
    (line,) = measure(options)
    layer, head, norms = 128 * 64 + 64 * 64 + 320 * 64 + 64 * 160, 512 * 64, 5 * 64 * 4
    rows = 2 * (128 + 64 + 320 + 64) + 512
    if weight_format == "int8":
        stored, scales = 2 * layer + head, 4 * rows
    else:  # the head keeps 8 bits
        stored, scales = layer + head, 2 * layer // 32 * 2 + 512 * 4
    assert line["weight_bytes"] == stored + scales + norms
    assert (line["weight_format"], line["quality"]) == (weight_format, "ungated")
    assert line["weight_group_size"] == (32 if weight_format == "w4a8" else None)


def test_times_are_of_each_token_of_each_request(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=64)
    times = run_requests(engine, [[5] * 9, [6] * 30], 4)
    assert [len(each) for each in times] == [4, 4]
    for each in times:
        assert each[0] > 0 and each == sorted(each)


class Fault(Exception):
    pass


@pytest.fixture
def failing(toy_folder: Path) -> Iterator[Any]:
    engine = make_engine(toy_folder, num_blocks=64)
    forward, calls = engine.runner.model.forward, 0

    def fail_once(*given: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Fault
        return forward(*given)

    engine.runner.model.forward = fail_once  # type: ignore[method-assign]
    yield engine


def test_a_fault_leaves_the_engine_without_work(failing: Any) -> None:
    with pytest.raises(Fault):
        run_requests(failing, [[5] * 9, [6] * 30], 4)
    assert not failing.scheduler.has_work and failing.scheduler.allocator.num_used == 0
    assert [len(each) for each in run_requests(failing, [[5] * 9], 4)] == [4]


def test_too_long_a_request_leaves_the_engine_without_work(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=64)
    with pytest.raises(InvalidRequestError):
        run_requests(engine, [[5] * 9, [6] * 255], 4)
    assert not engine.scheduler.has_work and engine.scheduler.allocator.num_used == 0


def test_only_steps_that_only_decode_are_timed(toy_folder: Path) -> None:
    engine, times = make_engine(toy_folder, num_blocks=64), StepTimes()
    with timing_steps(engine, times):
        run_requests(engine, [[5] * 9, [6] * 9], 6)
    assert len(times.forward_s) == len(times.host_s) == 5
    assert min(times.forward_s) > 0 and min(times.host_s) > 0
    run_requests(engine, [[5] * 9], 6)
    assert len(times.forward_s) == 5  # what is outside is not


def test_an_engine_that_was_timed_goes_with_its_last_name(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=32)
    with timing_steps(engine, StepTimes()):
        run_requests(engine, [[5] * 9], 3)
    runner = weakref.ref(engine.runner)
    del engine
    assert runner() is None


def test_a_step_around_the_model_is_not_taken_for_host_time(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=64)
    forward = engine.runner.model.forward
    with timing_steps(engine, StepTimes()):
        engine.runner.model.forward = forward  # type: ignore[method-assign]
        with pytest.raises(AssertionError, match="did not go through the model's forward"):
            run_requests(engine, [[5] * 9], 3)
