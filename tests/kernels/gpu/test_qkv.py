"""The pass between the product with the stacked weights and attention, against its reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo import kernels
from octavo.kernels.gpu.qkv import rope_and_store

# The interpreter is numpy, which warns of what IEEE 754 gives.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK_SIZE, NUM_BLOCKS = 16, 5
# The interpreter cuts off what a cast to bfloat16 would round.
TYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
QUANTIZED = [torch.int8, torch.float8_e4m3fn]


class Case:
    def __init__(
        self, tokens: int, heads: int, groups: int, dim: int, rotary: int, dtype: torch.dtype,
        cache: torch.dtype, *, normed: bool = True, block_size: int = BLOCK_SIZE,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(tokens + dim)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(DEVICE)

        self.heads, self.groups = heads, groups
        # A view of a wider product, as rows of it are not side by side then.
        self.qkv = drawn(tokens, heads + 2 * groups + 1, dim).to(dtype)[:, : heads + 2 * groups]
        self.norm = 1 + 0.3 * drawn(heads + groups, dim).to(dtype) if normed else None
        angles = 3 * drawn(tokens, rotary // 2)
        self.rotary = angles.cos(), angles.sin()
        slots = torch.randperm(NUM_BLOCKS * block_size, generator=generator)[:tokens]
        self.slots = torch.where(torch.arange(tokens) % 5 == 3, -1, slots).to(DEVICE)
        self.cache, self.dim, self.block_size = cache, dim, block_size

    def empty(self) -> tuple[Tensor, ...]:
        """Caches and their scales, each in memory of its own with gaps before, between and behind
        its blocks. The strides of all are different."""

        def part(gaps: int, dtype: torch.dtype, *row: int) -> Tensor:
            shape = (NUM_BLOCKS + 2, 1 + gaps, self.block_size, self.groups, *row)
            self.memory.append(torch.ones(shape, device=DEVICE).to(dtype))
            return self.memory[-1][1:-1, 0].zero_()

        self.memory: list[Tensor] = []
        caches = [part(gaps, self.cache, self.dim) for gaps in (1, 2)]
        if self.cache not in QUANTIZED:
            return tuple(caches)
        return *caches, *(part(gaps, torch.float16) for gaps in (3, 4))

    def run(self, operator: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        keys, values, *scales = caches = self.empty()
        queries = operator(
            self.qkv, self.norm, 1e-3, *self.rotary, keys, values, self.slots, *scales,
            num_heads=self.heads,
        )  # fmt: skip
        for part in self.memory:
            gaps = part[:, 1:], part[[0, -1], 0]
            assert all((gap.float() == 1).all() for gap in gaps), "written beside its place"
        return queries, tuple(caches)


def assert_same(case: Case, close: float) -> None:
    got, caches = case.run(rope_and_store)
    expected, wanted = case.run(kernels.rope_and_store)
    torch.testing.assert_close(got, expected, rtol=close, atol=close)
    for own, other in zip(caches, wanted, strict=True):
        assert own.dtype is other.dtype
        if case.cache in QUANTIZED and own.dtype is case.cache:
            # A step of the stored numbers, where what is quantized differs in its last bit.
            steps = own.view(torch.int8).int() - other.view(torch.int8).int()
            assert steps.abs().max() <= 1 and (steps != 0).float().mean() < 0.02
        else:
            torch.testing.assert_close(own, other, rtol=max(close, 1e-3), atol=close)
    written = caches[0].float().abs().sum((1, 2, 3)).count_nonzero()
    assert written > 0


@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (8, 2), (8, 1)])
@pytest.mark.parametrize(("dim", "rotary"), [(64, 64), (80, 80), (128, 64), (96, 0)])
def test_shapes(heads: int, groups: int, dim: int, rotary: int) -> None:
    assert_same(Case(7, heads, groups, dim, rotary, torch.float32, torch.float32), 1e-5)


@pytest.mark.parametrize("cache", [torch.float16, torch.int8])
@pytest.mark.parametrize("block_size", [1, 7, 32])
def test_block_sizes(block_size: int, cache: torch.dtype) -> None:
    assert_same(Case(5, 4, 2, 24, 24, torch.float32, cache, block_size=block_size), 2e-3)


@pytest.mark.parametrize("cache", [*TYPES, *QUANTIZED])
@pytest.mark.parametrize("dtype", TYPES)
def test_types(dtype: torch.dtype, cache: torch.dtype) -> None:
    close = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert_same(Case(12, 4, 2, 64, 64, dtype, cache), close)


@pytest.mark.parametrize("cache", QUANTIZED)
def test_quantized_numbers_are_those_of_the_reference(cache: torch.dtype) -> None:
    """Without a norm, values are quantized from the very same numbers."""
    case = Case(12, 4, 2, 64, 0, torch.float16, cache, normed=False)
    _, caches = case.run(rope_and_store)
    _, wanted = case.run(kernels.rope_and_store)
    for own, other in zip(caches, wanted, strict=True):
        assert torch.equal(own.view(torch.int8), other.view(torch.int8)), own.dtype


@pytest.mark.parametrize(("cache", "largest"), [(torch.int8, 127.0), (torch.float8_e4m3fn, 448.0)])
def test_every_number_and_what_lies_between(cache: torch.dtype, largest: float) -> None:
    """With a scale of 1: each number that is stored, each middle of two, and what is next to it."""
    numbers = torch.arange(256, dtype=torch.uint8).view(cache).float()
    numbers = numbers[numbers.abs() <= largest].sort().values
    middles = torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2, torch.tensor([-1e-38, -1e-6])])
    infinity = torch.tensor(float("inf"))
    given = torch.cat([middles, middles.nextafter(infinity), middles.nextafter(-infinity)])
    given = given[given.abs() <= largest]
    given = torch.cat([given, torch.zeros(-len(given) % 31)]).view(-1, 31)
    case = Case(len(given), 1, 1, 32, 0, torch.float32, cache, normed=False)
    case.slots = torch.arange(len(given), device=DEVICE)
    case.qkv[:, 1:] = torch.cat([given, torch.full_like(given[:, :1], largest)], 1)[:, None]
    _, caches = case.run(rope_and_store)
    _, wanted = case.run(kernels.rope_and_store)
    assert caches[2].max() == 1
    for own, other in zip(caches, wanted, strict=True):
        if own.dtype is cache:
            assert torch.equal(own.view(torch.int8), other.view(torch.int8))  # and the signs of 0
        else:
            assert torch.equal(own, other)


@pytest.mark.parametrize("cache", QUANTIZED)
def test_scales_at_both_ends_of_float16(cache: torch.dtype) -> None:
    case = Case(5, 2, 1, 64, 0, torch.float32, cache, normed=False)
    case.slots = torch.arange(5, device=DEVICE)
    spread = torch.tensor([1e-12, 1e-6, 1e6, 1e10, 3e37], device=DEVICE)
    case.qkv *= spread[:, None, None]
    _, caches = case.run(rope_and_store)
    _, wanted = case.run(kernels.rope_and_store)
    for own, other in zip(caches, wanted, strict=True):
        assert torch.equal(own.float(), other.float())
    assert caches[3][0, :5, 0].tolist()[-2:] == [65504.0] * 2 and caches[3][0, 0, 0] == 0


@pytest.mark.parametrize("cache", QUANTIZED)
def test_what_is_not_finite_makes_its_own_scale_so(cache: torch.dtype) -> None:
    case = Case(12, 4, 2, 64, 0, torch.float16, cache, normed=False)
    case.slots = torch.arange(12, device=DEVICE)
    case.qkv[1, 4, 7] = float("nan")
    case.qkv[2, 6, 3] = float("inf")
    case.qkv[3, 7] = 0
    _, (keys, values, key_scales, value_scales) = case.run(rope_and_store)
    _, (_, other, wanted_keys, wanted_values) = case.run(kernels.rope_and_store)
    torch.testing.assert_close(key_scales, wanted_keys, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(value_scales, wanted_values, rtol=0, atol=0, equal_nan=True)
    assert key_scales.isnan().sum() == 1 and value_scales.isinf().sum() == 1
    assert value_scales[0, 3, 1] == 0 and not values[0, 3, 1].float().any()
    for own, scales, row in ((keys, key_scales, (0, 1, 0)), (values, value_scales, (0, 2, 0))):
        assert (own[row].float() * scales[row].float()).isnan().all(), (
            "none is read back as a number"
        )
    finite = torch.arange(12) != 2
    assert torch.equal(values[0, :12][finite].float(), other[0, :12][finite].float())
    assert keys[0, 5].float().any()


def test_a_cast_stops_at_the_largest_number() -> None:
    case = Case(3, 2, 1, 64, 0, torch.float32, torch.float16, normed=False)
    case.slots = torch.arange(3, device=DEVICE)
    case.qkv[0, 3, :3] = torch.tensor([1e6, -1e6, float("inf")])
    _, (_, values) = case.run(rope_and_store)
    assert values[0, 0, 0, :3].tolist() == [65504.0, -65504.0, float("inf")]


def test_a_token_alone_gets_the_same_bits() -> None:
    case = Case(9, 8, 2, 80, 80, torch.float16, torch.int8)
    together, caches = case.run(rope_and_store)
    case.qkv, case.slots = case.qkv[4:5], case.slots[4:5]
    case.rotary = tuple(each[4:5] for each in case.rotary)  # type: ignore[assignment]
    alone, own = case.run(rope_and_store)
    assert torch.equal(alone, together[4:5])
    slot = int(case.slots)
    place = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    assert torch.equal(own[0][place], caches[0][place]) and own[0][place].any()


@pytest.mark.parametrize("rotary", [0, 32, 64])
def test_what_is_not_rotated_stays(rotary: int) -> None:
    """Not finite either, which would spoil its head if it were multiplied."""
    case = Case(3, 2, 1, 64, rotary, torch.float16, torch.float16, normed=False)
    case.slots = torch.arange(3, device=DEVICE)
    case.qkv[1, :, 63] = float("inf")
    queries, (keys, values) = case.run(rope_and_store)
    expected, wanted = case.run(kernels.rope_and_store)
    torch.testing.assert_close(queries, expected, rtol=2e-3, atol=2e-3, equal_nan=True)
    torch.testing.assert_close(keys, wanted[0], rtol=2e-3, atol=2e-3, equal_nan=True)
    assert torch.equal(queries[..., rotary:], case.qkv[:, :2, rotary:])
    assert torch.equal(values[0, :3], case.qkv[:, 3:])


def test_slots_that_the_pool_does_not_have_are_skipped() -> None:
    case = Case(6, 4, 2, 64, 64, torch.float32, torch.int8)
    kept = NUM_BLOCKS * BLOCK_SIZE - 1
    beyond = [NUM_BLOCKS * BLOCK_SIZE, -1, -BLOCK_SIZE, 2**40, -(2**40)]
    case.slots = torch.tensor([kept, *beyond], device=DEVICE)
    queries, caches = case.run(rope_and_store)
    case.slots[1:] = -1
    expected, wanted = case.run(kernels.rope_and_store)
    torch.testing.assert_close(queries, expected, rtol=1e-5, atol=1e-5)
    for own, other in zip(caches, wanted, strict=True):
        assert torch.equal(own.float().any(-1), other.float().any(-1))
        assert own[-1, -1].float().any()


def test_caches_that_do_not_belong_together_are_refused() -> None:
    case = Case(3, 2, 1, 64, 64, torch.float32, torch.int8)
    keys, values, key_scales, value_scales = case.empty()
    for caches in (
        (keys, values),
        (keys, values, key_scales, None),
        (keys, values.float(), key_scales, value_scales),
        (keys.float(), values.float(), key_scales, value_scales),
        (keys, values, key_scales, value_scales.float()),
        (keys, values, key_scales, value_scales[1:]),
        (keys, values[1:], key_scales, value_scales),
        (keys, values, key_scales, value_scales.new_zeros(NUM_BLOCKS, 16, 2)[:, :, :1]),
    ):
        with pytest.raises(AssertionError):
            rope_and_store(
                case.qkv, case.norm, 1e-6, *case.rotary, *caches[:2], case.slots, *caches[2:],
                num_heads=2,
            )  # fmt: skip


def test_nothing_is_written_for_nobody() -> None:
    case = Case(6, 4, 2, 64, 64, torch.float32, torch.float32)
    case.slots[:] = -1
    _, caches = case.run(rope_and_store)
    assert not any(cache.any() for cache in caches)
    case.qkv, case.slots = case.qkv[:0], case.slots[:0]
    case.rotary = tuple(each[:0] for each in case.rotary)  # type: ignore[assignment]
    assert case.run(rope_and_store)[0].shape == (0, 4, 64)
