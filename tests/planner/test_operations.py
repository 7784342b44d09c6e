"""Operations of a step by numbers that are counted by hand, and how its time splits."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.planner.operations import (
    OPERATIONS,
    Network,
    Rows,
    StepTimes,
    mbu_ratio,
    mfu_ratio,
    position,
    split_step,
    step_operations,
    total,
)
from octavo.planner.roofline import DecoderShape, Work, decode_step_bytes, decode_step_work

SHAPE = DecoderShape(
    hidden_size=8, intermediate_size=20, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6,
    vocab_size=50,
)  # fmt: skip
NETWORK = Network(
    shape=SHAPE,
    weight_bytes={
        "norm": 7, "qkv": 100, "output": 60, "gate_up": 200, "down": 90, "lm_head": 400,
    },
    kv_layer_bytes=(10, 10, 10),
    windows=(None, None, None),
)  # fmt: skip
# Llama 3.1 8B, counted by hand from its config: 32 layers, hidden 4096, 14,336 inner, 32 heads and
# 8 of keys and values of 128; bf16.
LLAMA = DecoderShape(
    hidden_size=4096, intermediate_size=14_336, num_layers=32, num_heads=32, num_kv_heads=8,
    head_dim=128, vocab_size=128_256,
)  # fmt: skip


def test_a_decode_step_is_the_sum_of_its_operations() -> None:
    step = step_operations(NETWORK, [Rows(1, 9), Rows(1, 10), Rows(1, 12)])
    assert step["qkv"] == Work(100, 2 * 3 * 3 * 48 * 8)
    assert step["output"] == Work(60, 2 * 3 * 3 * 8 * 24)
    assert step["gate_up"] == Work(200, 2 * 3 * 3 * 40 * 8)
    assert step["down"] == Work(90, 2 * 3 * 3 * 8 * 20)
    assert step["lm_head"] == Work(400, 2 * 3 * 50 * 8)
    assert step["store"] == Work(3 * 30, 0)
    # Each of 4 heads of 6 multiplies keys and values of what lies before and of itself.
    assert step["attend"] == Work(30 * (9 + 10 + 12), 4 * 4 * 6 * 3 * (10 + 11 + 13))
    assert step["norm"] == Work(7, 0) and step["embed"] == Work(0, 0)
    whole = decode_step_work(
        SHAPE, weight_bytes=857, kv_token_bytes=30, sequences=3, context_tokens=31 / 3
    )
    assert total(step.values()).bytes == whole.bytes
    assert total(step.values()).flops == pytest.approx(whole.flops, rel=1e-12)


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=20),
    st.integers(1, 40),
    st.lists(st.integers(1, 10**9), min_size=6, max_size=6),
)
def test_bytes_of_operations_are_decode_step_bytes(
    contexts: list[int], kv_bytes: int, weights: list[int]
) -> None:
    names = ("norm", "qkv", "output", "gate_up", "down", "lm_head")
    network = replace(
        NETWORK,
        weight_bytes=dict(zip(names, weights, strict=True)),
        kv_layer_bytes=(kv_bytes,) * 3,
    )
    step = step_operations(network, [Rows(1, context) for context in contexts])
    assert total(step.values()).bytes == pytest.approx(
        decode_step_bytes(
            weight_bytes=sum(weights),
            kv_token_bytes=3 * kv_bytes,
            sequences=len(contexts),
            context_tokens=sum(contexts) / len(contexts),
        )
    )


def test_a_llama_step_by_hand() -> None:
    # Matrices: qkv 6144 x 4096, output 4096 x 4096, gate and up 28,672 x 4096, down 4096 x 14,336:
    # 218,103,808 a layer; lm_head 525,336,576. 15.0 GB in bf16 (the embedding is not read), and
    # 128 KiB of KV memory a token.
    network = Network(
        LLAMA,
        {"qkv": 2 * 32 * 6144 * 4096, "output": 2 * 32 * 4096 * 4096,
         "gate_up": 2 * 32 * 28_672 * 4096, "down": 2 * 32 * 4096 * 14_336,
         "lm_head": 2 * 525_336_576},
        (4096,) * 32, (None,) * 32,
    )  # fmt: skip
    step = step_operations(network, [Rows(1, 8191)])
    assert total(step.values()).bytes == 2 * (32 * 218_103_808 + 525_336_576) + 8192 * 131_072
    assert total(step.values()).bytes == pytest.approx(15.009e9 + 1.074e9, rel=1e-3)
    assert step["attend"].flops == 4 * 32 * 32 * 128 * 8192  # 4 · layers · heads · dim · context


@pytest.mark.parametrize("window", [None, 1, 4, 9, 30])
@pytest.mark.parametrize("queries, context", [(1, 0), (1, 7), (6, 0), (6, 5), (20, 3), (3, 40)])
def test_attention_of_a_chunk_counts_each_pair(
    queries: int, context: int, window: int | None
) -> None:
    network = replace(NETWORK, windows=(window,) * 3)
    step = step_operations(network, [Rows(queries, context, samples=0)])
    limit = window or 10**9
    pairs = sum(min(context + own, limit) for own in range(1, queries + 1))
    assert step["attend"].flops == 4 * 4 * 6 * 3 * pairs
    # What the first of them still sees of the context.
    assert step["attend"].bytes == 30 * min(context, limit - 1)
    assert step["store"].bytes == 30 * queries
    assert step["lm_head"] == Work(0, 0), "nobody asks for logits"


@given(st.integers(1, 64), st.integers(0, 4096), st.integers(0, 4096))
def test_a_longer_context_never_needs_less(queries: int, context: int, more: int) -> None:
    short, long = (
        total(step_operations(NETWORK, [Rows(queries, each)]).values())
        for each in (context, context + more)
    )
    assert short.bytes <= long.bytes and short.flops <= long.flops


def test_utilization_by_the_example_of_databricks() -> None:
    # "LLM Inference Performance Engineering": 7B in 16 bits and a TPOT of 14 ms move 1 TB/s, which
    # is half of 2 TB/s.
    step = Work(14e9, 14e9)
    assert mbu_ratio(step, 14e-3, 2e12) == pytest.approx(0.5)
    # A FLOP for each byte at 1 TFLOP/s of 312 (A100, dense bf16).
    assert mfu_ratio(step, 14e-3, 312e12) == pytest.approx(1 / 312)


def test_positions_under_the_roof() -> None:
    # An A100: 312 TFLOP/s, 2,039 GB/s, so the ridge is at 153 FLOPs a byte.
    below = position(Work(2039e9, 100 * 2039e9), 2.0, 2039e9, 312e12)
    assert below is not None
    assert (below.bound, below.floor_s, below.share_ratio) == ("memory", 1.0, 0.5)
    assert below.intensity == 100 and below.roof_flops_per_s == 100 * 2039e9
    above = position(Work(1e9, 312e12), 4.0, 2039e9, 312e12)
    assert above is not None
    assert (above.bound, above.share_ratio, above.roof_flops_per_s) == ("compute", 0.25, 312e12)
    nowhere = position(Work(0, 312e12), 1.0, 2039e9, 312e12)
    assert nowhere is not None and nowhere.intensity == math.inf and nowhere.share_ratio == 1
    assert position(Work(0, 0), 1.0, 1.0, 1.0) is None


def test_a_step_splits_into_what_is_named() -> None:
    zeros = dict.fromkeys(OPERATIONS, 0.0)
    works = dict.fromkeys(OPERATIONS, Work(0, 0))
    works |= {"qkv": Work(100, 50), "down": Work(10, 400)}
    times = StepTimes(
        step_s=20.0, forward_s=15.0, operations={**zeros, "qkv": 4.0, "down": 9.0, "norm": 1.0},
        waited={**zeros, "down": 2.0}, parts={"schedule": 1.0, "sample": 2.0, "hand out": 0.5},
        plain_s=19.0,
    )  # fmt: skip
    gaps = split_step(times, works, 50.0, dict.fromkeys(OPERATIONS, 100.0))
    # Floors: qkv 100 / 50 = 2 s for its bytes; down 400 / 100 = 4 s, 10 / 50 of it for bytes.
    assert gaps == pytest.approx({
        "bytes": 2.2, "compute": 3.8, "barriers": 2.0, "kernels": 14 - 2 - 6, "launch": 1.0,
        "sample": 2.0, "schedule": 1.0, "hand out": 0.5, "rest": 1.5, "recording": -1.0,
    })  # fmt: skip
    assert sum(gaps.values()) == pytest.approx(times.plain_s)
