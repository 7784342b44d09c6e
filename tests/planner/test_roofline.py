"""The formulas by numbers that are counted by hand."""

import pytest

from octavo.planner.roofline import (
    DecoderShape,
    Work,
    attention_work,
    decode_step_bytes,
    decode_step_work,
    linear_work,
    mean_decode_context_tokens,
)

SHAPE = DecoderShape(
    hidden_size=8, intermediate_size=20, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6,
    vocab_size=50,
)  # fmt: skip


def test_matrices_are_stacked_where_they_share_their_input() -> None:
    assert SHAPE.layer_matrices() == {
        "qkv": (24 + 12 + 12, 8),
        "output": (8, 24),
        "gate_up": (40, 8),
        "down": (8, 20),
    }
    assert SHAPE.lm_head == (50, 8)


@pytest.mark.parametrize("prompt, output", [(7, 2), (7, 3), (128, 128), (1, 9)])
def test_mean_context_is_that_of_all_decode_steps(prompt: int, output: int) -> None:
    # Prefill finds nothing and gives the first token; then each step finds one more.
    found = [prompt + index for index in range(output - 1)]
    assert mean_decode_context_tokens(prompt, output) == sum(found) / len(found)


def test_a_step_reads_weights_and_contexts_and_writes_new_tokens() -> None:
    step = decode_step_bytes(weight_bytes=1000, kv_token_bytes=3, sequences=4, context_tokens=10.5)
    assert step == 1000 + 3 * (4 * 10.5 + 4)


def test_a_shared_prefix_is_read_once() -> None:
    step = decode_step_bytes(
        weight_bytes=1000, kv_token_bytes=3, sequences=4, context_tokens=12, shared_tokens=10
    )
    assert step == 1000 + 3 * (10 + 4 * 2 + 4)
    alone = {"weight_bytes": 1000, "kv_token_bytes": 3, "sequences": 1, "context_tokens": 12}
    assert decode_step_bytes(**alone, shared_tokens=10) == decode_step_bytes(**alone)


def test_a_decode_step_multiplies_each_weight_and_each_key_and_value() -> None:
    sizes = {"weight_bytes": 1000, "kv_token_bytes": 3, "sequences": 5, "context_tokens": 9.5}
    step = decode_step_work(SHAPE, **sizes)
    layer = (24 + 2 * 12) * 8 + 8 * 24 + 40 * 8 + 8 * 20
    attended = 2 * 4 * 6 * 10.5  # keys and values, of the new token too, by each query head
    assert step.flops == 2 * 5 * (3 * (layer + attended) + 50 * 8)
    assert step.bytes == decode_step_bytes(**sizes)


def test_the_larger_of_both_times_is_the_bound() -> None:
    assert Work(bytes=10, flops=100).floor_s(5, 100) == (2, "memory")
    assert Work(bytes=10, flops=1000).floor_s(5, 100) == (10, "compute")


def test_linear() -> None:
    work = linear_work(3, 5, 70, weight_bytes=205, number_bytes=2)
    assert work == Work(bytes=205 + 2 * 3 * (70 + 5), flops=2 * 3 * 5 * 70)


def test_attention_sees_what_is_before_and_itself() -> None:
    work = attention_work(
        sequences=2, query_tokens=3, context_tokens=5, num_heads=4, head_dim=6,
        kv_token_bytes=48, number_bytes=2,
    )  # fmt: skip
    pairs = 3 + 4 + 5
    assert work.flops == 2 * pairs * 4 * 2 * (2 * 6)
    assert work.bytes == 2 * (5 * 48 + 2 * 3 * 4 * 6 * 2)
