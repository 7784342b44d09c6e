"""Steps, TTFT and TPOT by hand, by a loop that acts them out, and in the order they must have."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.models.known import find_config
from octavo.models.sizes import model_sizes
from octavo.planner.capacity import Request
from octavo.planner.fitting import (
    DecodeSample,
    PrefillSample,
    fit_efficiency,
    predicted_step_s,
    predicted_ttft_s,
)
from octavo.planner.hardware import find_machine
from octavo.planner.latency import (
    ASSUMED,
    Efficiency,
    Loaded,
    Speed,
    decode_mbu_ratio,
    decode_step_s,
    predict,
    prefill_s,
)
from octavo.planner.model import (
    ModelSizes,
    format_of,
    kv_layout,
    kv_token_bytes,
    weight_bytes,
)
from octavo.planner.plan import Workload, evaluate
from octavo.planner.roofline import DecoderShape, Peaks
from octavo.planner.setup import Setup

SHAPE = DecoderShape(
    hidden_size=8, intermediate_size=20, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6,
    vocab_size=50,
)  # fmt: skip
MODEL = ModelSizes(
    name="toy", shape=SHAPE, max_context_tokens=1000, dtype="bfloat16", tie_embeddings=True,
    layer_vector_bytes=32, final_norm_bytes=16, windows=(None, None, None),
)  # fmt: skip
LOADED = Loaded(MODEL, step_weight_bytes=6000, kv_token_bytes=144)
WEIGHTS = 3 * ((24 + 24) * 8 + 24 * 8 + 40 * 8 + 20 * 8) + 50 * 8  # that a token meets
SPEED = Speed(1e6, 1e8, Efficiency(0.8, 0.2, 0.4, 0.5, 0.25, 0.001))
REQUEST = Request(40, 21)
STEPS = {"chunk_tokens": 16, "block_tokens": 16}


def test_a_decode_step_by_hand() -> None:
    # Two sequences at 10 tokens: 6,000 bytes of weights, 2 · (10 read + 1 written) · 144 of KV.
    kv_bytes = 2 * 11 * 144
    products = math.hypot(6000 / 0.8e6, 2 * 2 * WEIGHTS / 0.5e8)
    attention = math.hypot(kv_bytes / 0.4e6, 2 * 2 * 2 * 3 * 4 * 6 * 11 / 0.5e8)
    elapsed = 0.001 + products + attention
    assert decode_step_s(LOADED, SPEED, 2, 10) == pytest.approx(elapsed)
    mbu = (6000 + kv_bytes) / elapsed / 1e6
    assert decode_mbu_ratio(LOADED, SPEED, 2, 10) == pytest.approx(mbu)


def test_databricks_mbu() -> None:
    # "LLM Inference Performance Engineering": 7B in fp16 at a TPOT of 14 ms on 2 TB/s is 50 %.
    loaded = Loaded(MODEL, step_weight_bytes=14 * 10**9, kv_token_bytes=0)
    speed = Speed(2e12, 1e30, Efficiency(0.5, 0.5, 0.5, 0.5, 0.5, 0.0))
    assert decode_step_s(loaded, speed, 1, 0) == pytest.approx(0.014)
    assert decode_mbu_ratio(loaded, speed, 1, 0) == pytest.approx(0.5)


def test_a_prompt_by_hand() -> None:
    # Of 40 tokens 16 are cached: chunks of 16 and 8, whose last tokens are at 32 and 40.
    layers = WEIGHTS - 50 * 8
    elapsed = 0.0
    for tokens, context in ((16, 32), (8, 40)):
        pairs = tokens * context - tokens * (tokens - 1) // 2
        flops = 2 * (tokens * layers + 50 * 8) + 3 * 4 * 4 * 6 * pairs
        elapsed += math.hypot((context + tokens) * 144 / 0.4e6, flops / 0.25e8)
    assert prefill_s(LOADED, SPEED, 40, 16, 16) == pytest.approx(elapsed)


def test_weights_of_4_bits_have_a_share_of_their_own() -> None:
    packed = replace(LOADED, weight_bits=4)
    slower = replace(SPEED, efficiency=replace(SPEED.efficiency, read_ratio=0.2))
    assert decode_step_s(packed, SPEED, 2, 10) == decode_step_s(LOADED, slower, 2, 10)


# docs/gpu.md: the engine on an H200, one sequence, tokens per second.
@pytest.mark.parametrize(
    ("name", "weight_format", "measured"),
    [("llama-3.2-1b", "auto", 928), ("llama-3.1-8b", "auto", 209), ("llama-3.1-8b", "int4", 368)],
)
def test_what_is_assumed_of_a_gpu_is_what_one_did(
    name: str, weight_format: str, measured: float
) -> None:
    model = model_sizes(find_config(name)[1], name)
    setup = Setup(weight_format=weight_format)
    outcome = evaluate(model, find_machine("h200").accelerator, Workload(Request(128, 256)), setup)
    assert outcome.lone is not None
    assert 1 / outcome.lone.tpot_s == pytest.approx(measured, rel=0.05)


# docs/gpu.md: all requests at once, so that the batch thins out towards the end.
@pytest.mark.parametrize(("name", "measured"), [("llama-3.1-8b", 9145), ("llama-3.2-1b", 37729)])
def test_what_is_assumed_of_a_gpu_is_what_it_did_with_256_sequences(
    name: str, measured: float
) -> None:
    model, luck = model_sizes(find_config(name)[1], name), random.Random(0)
    weights, token_bytes = weight_bytes(model, format_of(model)), kv_token_bytes(kv_layout(model))
    loaded = Loaded(model, weights.step, token_bytes)
    accelerator = find_machine("h200").accelerator
    speed = Speed(accelerator.read_bytes_per_s, 989e12, ASSUMED["gpu"])
    requests = [(luck.randint(100, 1024), luck.randint(100, 1024)) for _ in range(256)]
    total_s = sum(prefill_s(loaded, speed, prompt, 0, 8192) for prompt, _ in requests)
    steps = sum(prompt for prompt, _ in requests) / 8192
    total_s += steps * decode_step_s(loaded, speed, 128, 500)  # beside prompts
    for step in range(1, 1024):
        contexts = [prompt + step for prompt, output in requests if output > step]
        if contexts:
            total_s += decode_step_s(loaded, speed, len(contexts), sum(contexts) / len(contexts))
    assert sum(output for _, output in requests) / total_s == pytest.approx(measured, rel=0.12)


def test_windows_bound_what_a_step_reads() -> None:
    windowed = replace(LOADED, model=replace(MODEL, windows=(8, 8, None)))
    # (8 + 8 + 20) / 3 tokens of context in the mean.
    assert decode_step_s(windowed, SPEED, 2, 20) == pytest.approx(
        decode_step_s(LOADED, SPEED, 2, 12)
    )


def test_one_request_alone() -> None:
    found = predict(LOADED, SPEED, REQUEST, 1, **STEPS)
    empty_s = decode_step_s(LOADED, SPEED, 0, 40 + 19 / 2)
    step_s = decode_step_s(LOADED, SPEED, 1, 40 + 19 / 2)
    prompt_s = prefill_s(LOADED, SPEED, 40, 0, 16)
    assert found.ttft_s == pytest.approx(prompt_s + 3 * empty_s)
    assert found.tpot_s == pytest.approx(step_s)
    assert found.requests_per_s == pytest.approx(1 / (found.ttft_s + 20 * step_s))


@given(batch=st.integers(1, 64), prompt=st.integers(1, 200), output=st.integers(2, 100))
def test_littles_law_holds(batch: int, prompt: int, output: int) -> None:
    found = predict(LOADED, SPEED, Request(prompt, output), batch, **STEPS)
    inside_s = found.ttft_s + (output - 1) * found.tpot_s
    assert found.requests_per_s * inside_s == pytest.approx(batch)
    assert found.requests_per_s * (found.prefill_s + found.decode_s) == pytest.approx(1)


def acted_out(batch: int, request: Request, ended: int) -> float:
    """Requests per second of a loop as the engine's: each step decodes all that can, beside a chunk
    of the first prompt that waits. Times of single sequences at the mean context, as predicted."""
    context = request.prompt_tokens + (request.output_tokens - 2) / 2
    chunks = -(-request.prompt_tokens // 16)
    chunk_s = prefill_s(LOADED, SPEED, request.prompt_tokens, 0, 16) / chunks
    prompts, decoding = [chunks] * batch, []
    clock_s, done = 0.0, 0
    while done < ended:
        clock_s += decode_step_s(LOADED, SPEED, len(decoding), context)
        decoding = [left - 1 for left in decoding]
        finished = decoding.count(0)
        if prompts:
            clock_s += chunk_s
            prompts[0] -= 1
            if prompts[0] == 0:
                prompts.pop(0)
                decoding.append(request.output_tokens - 1)
        decoding = [left for left in decoding if left]
        prompts += [chunks] * finished
        done += finished
    return done / clock_s


@pytest.mark.parametrize("batch", [1, 4, 12])
@pytest.mark.parametrize("request_", [Request(40, 101), Request(16, 61)])
def test_a_loop_that_acts_it_out_gives_as_much(batch: int, request_: Request) -> None:
    predicted = predict(LOADED, SPEED, request_, batch, **STEPS).requests_per_s
    assert acted_out(batch, request_, 400) == pytest.approx(predicted, rel=0.06)


@given(batch=st.integers(1, 200), prompt=st.integers(1, 300), output=st.integers(2, 100))
def test_a_larger_batch_is_slower_for_each_and_faster_for_all(
    batch: int, prompt: int, output: int
) -> None:
    one, two = (predict(LOADED, SPEED, Request(prompt, output), b, **STEPS)
                for b in (batch, batch + 1))  # fmt: skip
    assert one.ttft_s <= two.ttft_s and one.tpot_s <= two.tpot_s
    assert one.requests_per_s <= two.requests_per_s * (1 + 1e-12)


@given(prompt=st.integers(1, 500), more=st.integers(0, 100), shared=st.integers(0, 100))
def test_longer_prompts_take_longer_and_shared_ones_less(
    prompt: int, more: int, shared: int
) -> None:
    one, two = (predict(LOADED, SPEED, Request(p, 9), 8, **STEPS) for p in (prompt, prompt + more))
    assert one.ttft_s <= two.ttft_s * (1 + 1e-12) and one.tpot_s <= two.tpot_s * (1 + 1e-12)
    found = predict(LOADED, SPEED, Request(prompt, 9, min(shared, prompt)), 8, **STEPS)
    assert found.requests_per_s >= one.requests_per_s * (1 - 1e-12)


@settings(max_examples=25, deadline=None)
@given(
    read=st.floats(0.3, 1), int4=st.floats(0.3, 1), kv=st.floats(0.3, 1), decode=st.floats(0.2, 1),
    prompt=st.floats(0.2, 1), overhead=st.floats(1e-4, 5e-3),
)  # fmt: skip
def test_a_fit_finds_what_made_the_samples(
    read: float, int4: float, kv: float, decode: float, prompt: float, overhead: float
) -> None:
    truth = Efficiency(read, int4, kv, decode, prompt, overhead)
    peaks, big = Peaks(1e6, 2e7), replace(LOADED, step_weight_bytes=20_000)
    packed = replace(LOADED, step_weight_bytes=12_000, weight_bits=4)
    decodes = [
        replace(sample, step_s=predicted_step_s(sample, truth))
        for loaded in (LOADED, big, packed)
        for sample in (
            DecodeSample(loaded, peaks, sequences, context, 1.0)
            for sequences in (1, 4, 16, 64)
            for context in (10.0, 300.0)
        )
    ]
    prefills = [PrefillSample(LOADED, peaks, 200, 50, 1.0)]
    prefills = [replace(each, ttft_s=predicted_ttft_s(each, truth)) for each in prefills]
    found = fit_efficiency(decodes, prefills)
    for sample in decodes:
        assert predicted_step_s(sample, found) == pytest.approx(sample.step_s, rel=0.03)
    assert predicted_ttft_s(prefills[0], found) == pytest.approx(prefills[0].ttft_s, rel=0.01)
