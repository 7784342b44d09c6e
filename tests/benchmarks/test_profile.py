"""A real engine under `profile`: what must hold whatever the machine does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import approx

from factories import greedy, make_engine, run_to_end, submit
from octavo import spans
from octavo.benchmarks.profile import Options
from octavo.benchmarks.profile_device import device_times
from octavo.benchmarks.profile_page import page
from octavo.benchmarks.profile_steps import Recorded, middle_half
from octavo.benchmarks.profile_worker import measure
from octavo.errors import ConfigError
from octavo.planner.operations import OPERATIONS, split_step
from octavo.planner.roofline import Work, decode_step_bytes

TINY = Path(__file__).parents[2] / "models" / "octavo-tiny"
BATCH, CONTEXT, PROMPT, STEPS = 3, 60, 50, 64


def profile(folder: Path, **settings: str) -> dict[str, Any]:
    options = Options(
        model=str(folder), batch=BATCH, context=CONTEXT, prompt=PROMPT, steps=STEPS, prefills=3,
        settings={"device": "cpu", "num_threads": "1", **settings},
    )  # fmt: skip
    *progress, last = measure(options)
    assert {"prefill", "decode", "peaks"} <= {
        event["progress"]["step"]
        for event in progress  # type: ignore[index]
    }
    result: dict[str, Any] = last["result"]  # type: ignore[assignment]
    return result


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return profile(TINY)


@pytest.fixture(scope="module")
def by_reference(toy_folder: Path) -> dict[str, Any]:
    return profile(toy_folder, kernels="reference", kv_cache_dtype="int8")


def test_parts_of_a_step_sum_to_the_measured_step(tiny: dict[str, Any]) -> None:
    assert tiny["kernels"] != "reference", "octavo-tiny runs on the native kernels here"
    for phase in tiny["phases"].values():
        gaps = phase["gaps_s"]
        assert sum(gaps.values()) == approx(phase["time_s"], rel=1e-9)
        # What nobody timed is small, also of a step of half a millisecond.
        named_s = phase["recorded_time_s"] - gaps["rest"]
        assert 0.9 * phase["recorded_time_s"] < named_s <= phase["recorded_time_s"]
        busy_s = sum(row["time_s"] for row in phase["operations"])
        parts_s = sum(gaps[name] for name in ("launch", "sample", "schedule", "hand out"))
        assert busy_s + parts_s == approx(named_s, rel=1e-9)
        assert busy_s > 0.5 * phase["recorded_time_s"], "most of it is in the network"
        assert all(gaps[name] >= 0 for name in gaps if name not in ("kernels", "recording"))


def test_recording_changes_a_step_little(tiny: dict[str, Any]) -> None:
    """By the shortest of many steps, which others on the machine have spared."""
    decode = tiny["phases"]["decode"]
    assert decode["least_recorded_time_s"] == approx(decode["least_time_s"], rel=0.3)


def test_bytes_of_operations_are_those_of_a_decode_step(tiny: dict[str, Any]) -> None:
    decode = tiny["phases"]["decode"]
    assert decode["bytes"] == approx(sum(row["bytes"] for row in decode["operations"]))
    # The middle half of the steps is not the middle of the contexts, so to a step's width.
    least, most = (
        decode_step_bytes(
            weight_bytes=tiny["weight_bytes"], kv_token_bytes=tiny["kv_token_bytes"],
            sequences=BATCH, context_tokens=context,
        )
        for context in (CONTEXT - STEPS // 2, CONTEXT + STEPS // 2 + 2)
    )  # fmt: skip
    assert least <= decode["bytes"] <= most
    assert decode["tokens"] == BATCH and decode["recorded"] == STEPS // 2
    store = next(row for row in decode["operations"] if row["operation"] == "store")
    assert store["bytes"] == approx(BATCH * tiny["kv_token_bytes"])


def test_a_prefill_reads_weights_once_a_step(tiny: dict[str, Any]) -> None:
    prefill = tiny["phases"]["prefill"]
    assert prefill["steps"] == 1 and prefill["tokens"] == BATCH * PROMPT
    written = BATCH * PROMPT * tiny["kv_token_bytes"]
    assert prefill["bytes"] == approx(tiny["weight_bytes"] + written)


def test_utilization_is_by_this_runs_peaks(tiny: dict[str, Any]) -> None:
    read, rates = tiny["peaks"]["read_bytes_per_s"], tiny["peaks"]["flops_per_s"]
    assert set(rates) == {"float32", "bfloat16", "int8"} and min(rates.values()) > 0
    for phase in tiny["phases"].values():
        assert phase["mbu_ratio"] == approx(phase["bytes"] / phase["time_s"] / read)
        kind = phase["matrix_kind"]
        assert phase["mfu_ratio"] == approx(phase["flops"] / phase["time_s"] / rates[kind])
        for row in phase["operations"]:
            assert 0 <= row["waited_s"] <= row["time_s"] * 1.001
            if row["flops"]:
                floor_s = max(row["bytes"] / read, row["flops"] / rates[row["kind"]])
                assert row["roof_ratio"] == approx(floor_s / row["time_s"])
                assert (row["bound"] == "memory") == (floor_s == row["bytes"] / read)


def test_what_the_reference_operators_cannot_tell_is_said(by_reference: dict[str, Any]) -> None:
    assert by_reference["kernels"] == "reference" and len(by_reference["notes"]) == 1
    assert "wait for each other" in by_reference["notes"][0]
    for phase in by_reference["phases"].values():
        times = {row["operation"]: row["time_s"] for row in phase["operations"]}
        assert set(times) == set(OPERATIONS) and min(times.values()) > 0
        assert {row["waited_s"] for row in phase["operations"]} == {None}
        assert sum(phase["gaps_s"].values()) == approx(phase["time_s"], rel=1e-9)


def test_operations_are_marked_for_torchs_profiler(toy_folder: Path) -> None:
    """By which they are told apart on a GPU."""
    engine = make_engine(toy_folder, kernels="reference")
    submit(engine, [5, 6, 7], greedy(4))
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen,
        spans.recording(spans.Recorder(on_device=True)),
    ):
        run_to_end(engine)
    counts = {each.key: each.count for each in seen.key_averages()}
    for name in OPERATIONS:
        per_step = {"embed": 1, "lm_head": 1, "norm": 5}.get(name, 2)  # of two layers
        assert counts[f"octavo {name}"] == 4 * per_step, name


def test_times_of_a_device_leave_what_no_kernel_took() -> None:
    recorded = Recorded(forward_s=6.0, tokens=8, context_tokens=20)
    recorded.operations["qkv"], recorded.parts["sample"] = 6.0, 2.0
    recorded.works["qkv"] = Work(40, 80)
    found = device_times(recorded, [5.0, 9.0, 5.0, 5.0, 1.0], 2)
    assert found.times.plain_s == 5 and found.times.operations["qkv"] == 3
    assert (found.tokens, found.context_tokens, found.works["qkv"]) == (4, 10, Work(20, 40))
    gaps = split_step(found.times, found.works, 10.0, dict.fromkeys(OPERATIONS, 100.0))
    assert gaps["bytes"] == 2 and gaps["kernels"] == 1 and gaps["sample"] == 1
    assert gaps["rest"] == 1 and sum(gaps.values()) == 5


def test_the_page_needs_nothing_from_elsewhere(
    tiny: dict[str, Any], by_reference: dict[str, Any]
) -> None:
    text = page(json.loads(json.dumps(tiny)))
    assert "http" not in text and "<script" not in text and text.count("<svg") == 2
    assert text.count("<circle") == 12, "an operation that computes has a mark in each phase"
    assert "Not available" not in text and "Not available" in page(by_reference)
    assert "&lt;b&gt;" in page({**tiny, "model": "<b>"})


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"batch": 0}, ["--batch = 0", "1 to 4096"]),
        ({"context": 0}, ["--context = 0", "1 to"]),
        ({"prompt": 256}, ["--prompt = 256", "256 tokens", "at most 255"]),
        ({"context": 240}, ["--context = 240", "24 steps", "holds 256"]),
        ({"steps": 7}, ["--steps = 7", "8 to"]),
        ({"prefills": 2}, ["--prefills = 2", "3 to"]),
        ({"batch": 300, "settings": {"max_num_batched_tokens": "256"}},
         ["max_num_batched_tokens = 256", "max_num_seqs = 300"]),
        ({"settings": {"max_num_seqs": "4"}}, ["max_num_seqs", "--batch"]),
        ({"prompt": 100, "settings": {"kv_cache_bytes": "131072"}},
         ["--batch = 3", "21 blocks", "has 16", "kv_cache_bytes"]),
    ],
)  # fmt: skip
def test_bad_input_names_option_value_and_limit(
    toy_folder: Path, options: dict[str, Any], parts: list[str]
) -> None:
    values = {"model": str(toy_folder), "batch": BATCH, "context": 60, "prompt": 60, "steps": 24}
    settings = {"device": "cpu", "num_threads": "1", **options.pop("settings", {})}
    with pytest.raises(ConfigError) as caught:
        list(measure(Options(**{**values, **options}, settings=settings)))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("budget", [8, 20, 256])
def test_sequences_decode_until_all_are_measured(toy_folder: Path, budget: int) -> None:
    """Also where the first have decoded for long when the last begin."""
    options = Options(
        model=str(toy_folder), batch=4, context=100, prompt=255, steps=24, prefills=3,
        settings={"device": "cpu", "num_threads": "1", "max_num_batched_tokens": str(budget)},
    )  # fmt: skip
    *_, last = measure(options)
    result: dict[str, Any] = last["result"]  # type: ignore[assignment]
    decode = result["phases"]["decode"]
    assert decode["tokens"] == 4
    read = next(row["bytes"] for row in decode["operations"] if row["operation"] == "attend")
    assert read / result["kv_token_bytes"] == approx(decode["context_tokens"])
    assert decode["context_tokens"] / 4 == approx(100, rel=0.1 if budget > 8 else 0.3)


def test_the_middle_half() -> None:
    assert middle_half([9, 1, 5, 3, 7, 2, 8, 6], float) == [3, 5, 6, 7]
    assert middle_half([2, 1, 3], float) == [1, 2, 3]
