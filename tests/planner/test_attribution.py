"""Shares of steps by numbers that are counted by hand, and by what must hold for any step."""

import random

import pytest

from octavo.planner.attribution import (
    Attribution,
    ModelWork,
    StepWeights,
    held_s,
)
from octavo.planner.cost import seconds_usd, usd_per_million
from octavo.planner.roofline import DecoderShape, decode_step_work

SHAPE = DecoderShape(
    hidden_size=8, intermediate_size=20, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6,
    vocab_size=50,
)  # fmt: skip
WORK = ModelWork(weight_bytes=1000, kv_token_bytes=10, token_flops=500, pair_flops=2)


def shares(
    work: ModelWork, contexts: list[int], chunks: list[tuple[int, int]], **rates: float
) -> list[float]:
    """Of a step of one second, decodes first."""
    attribution = Attribution(work)
    for name, rate in rates.items():
        setattr(attribution, name, rate)
    contexts = [attribution.reach(context) for context in contexts]
    weights = attribution.weigh(len(contexts), sum(contexts), chunks)
    rows = [weights.base + weights.slope * context for context in contexts] + weights.chunks
    return [row * weights.scale(1.0) for row in rows]


def test_bytes_share_weights_and_pay_for_their_own_keys_and_values() -> None:
    # 1000 / 2 bytes of weights each; 10 bytes for each token of context and for the new one.
    found = shares(WORK, [9, 29], [], s_per_byte=1.0, s_per_flop=0.0)
    assert found == pytest.approx([600 / 1400, 800 / 1400])


def test_flops_are_each_rows_own() -> None:
    # A decode: 500, and 2 for each of 10 pairs. A chunk of 3 behind 4 tokens: 3 × 500, and pairs
    # of 5 + 6 + 7 tokens.
    found = shares(WORK, [9], [(4, 3)], s_per_byte=0.0, s_per_flop=1.0)
    assert found == pytest.approx([520 / (520 + 1536), 1536 / (520 + 1536)])


def test_rates_weigh_bytes_against_flops() -> None:
    found = shares(WORK, [9], [(4, 3)], s_per_byte=2.0, s_per_flop=0.5)
    decode, chunk = 2 * (500 + 100) + 0.5 * 520, 2 * (500 + 70) + 0.5 * 1536
    assert found == pytest.approx([decode / (decode + chunk), chunk / (decode + chunk)])


def test_a_window_bounds_what_a_row_reads() -> None:
    windowed = ModelWork(1000, 10, 500, 2, window=16)
    assert shares(windowed, [16, 99], []) == pytest.approx([0.5, 0.5])
    near, far = shares(WORK, [16, 99], [])
    assert near < far


def test_totals_are_the_rooflines() -> None:
    work = ModelWork.of(SHAPE, weight_bytes=7000, kv_token_bytes=12)
    step = Attribution(work).weigh(5, 5 * 40, [])
    expected = decode_step_work(
        SHAPE, weight_bytes=7000, kv_token_bytes=12, sequences=5, context_tokens=40
    )
    assert (step.bytes, step.flops) == pytest.approx((expected.bytes, expected.flops))


def test_shares_sum_to_the_time_and_longer_contexts_never_pay_less() -> None:
    generator = random.Random(0)
    for _ in range(200):
        contexts = [generator.randrange(5000) for _ in range(generator.randrange(1, 40))]
        chunks = [
            (generator.randrange(5000), generator.randrange(1, 300))
            for _ in range(generator.randrange(4))
        ]
        rates = {"s_per_byte": generator.random(), "s_per_flop": generator.random()}
        found = shares(WORK, contexts, chunks, **rates)
        assert sum(found) == pytest.approx(1.0, rel=1e-12) and min(found) > 0
        decodes = sorted(zip(contexts, found, strict=False))
        assert [share for _, share in decodes] == sorted(share for _, share in decodes)


def test_rates_are_learned_from_steps() -> None:
    """A machine whose rates are known: 3 ns a byte, 0.02 ns a FLOP, with noise of 5 %."""
    true_s_per_byte, true_s_per_flop = 3e-9, 2e-11
    work = ModelWork(weight_bytes=3e8, kv_token_bytes=2e4, token_flops=3e8, pair_flops=1e4)
    attribution, generator = Attribution(work), random.Random(1)
    for number in range(300):
        chunks = [(0, 256)] if number % 4 == 0 else []
        num_decodes = 0 if number % 8 == 0 else 8
        step = attribution.weigh(num_decodes, 300 * num_decodes, chunks)
        exact_s = true_s_per_byte * step.bytes + true_s_per_flop * step.flops
        attribution.learn(step, exact_s * generator.uniform(0.95, 1.05))
    assert attribution.s_per_byte == pytest.approx(true_s_per_byte, rel=0.1)
    assert attribution.s_per_flop == pytest.approx(true_s_per_flop, rel=0.1)


def test_a_step_that_was_held_up_hardly_moves_the_rates() -> None:
    attribution = Attribution(WORK)
    attribution.learn(attribution.weigh(1, 10, []), 0.01)
    before = attribution.s_per_byte
    attribution.learn(attribution.weigh(1, 10, []), 100.0)
    assert before < attribution.s_per_byte < 1.25 * before
    for _ in range(500):
        attribution.learn(attribution.weigh(1, 10, []), 1e-9)
    assert attribution.s_per_byte > 0 and attribution.s_per_flop > 0


def test_scale_is_the_time_over_the_weights() -> None:
    assert StepWeights(1.0, 0, [3.0], 4.0, 0, 0, 0.5).scale(2.0) == 0.5


def test_memorys_share_is_that_of_bytes() -> None:
    attribution = Attribution(WORK)
    attribution.s_per_byte, attribution.s_per_flop = 2.0, 0.5
    step = attribution.weigh(1, 9, [])
    assert step.memory_share == pytest.approx(2 * 1100 / (2 * 1100 + 0.5 * 520))


def test_dollars_and_memory() -> None:
    assert seconds_usd(1800, 3.2) == pytest.approx(1.6)
    # 1 of the 8 GB, for an hour.
    assert held_s(500 * 3600, 2_000_000, 8_000_000_000) == pytest.approx(450)
    # 6.88 dollars an hour at 2500 tokens/s.
    assert usd_per_million(6.88, 2500 * 3600) == pytest.approx(0.764, abs=5e-4)
