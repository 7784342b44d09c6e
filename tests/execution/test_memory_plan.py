"""Formats and blocks as settings ask for them; what cannot be is refused, or said loudly."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from factories import TOY_CONFIG
from octavo.config import make_config
from octavo.errors import ConfigError
from octavo.execution.device_load import largest_batch
from octavo.execution.memory_plan import DeviceMemory, MemoryPlan, plan_memory
from octavo.models.config_section import ConfigSection
from octavo.models.families import FAMILIES
from octavo.models.model_config import ModelConfig


def model(num_layers: int = 2, kv_heads: int = 8, head_dim: int = 64, **more: Any) -> ModelConfig:
    shape = {
        "num_hidden_layers": num_layers, "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads, "head_dim": head_dim, "max_position_embeddings": 4096,
    }  # fmt: skip
    return FAMILIES["LlamaForCausalLM"](ConfigSection({**TOY_CONFIG, **shape, **more}))


def plan(own: ModelConfig, dtype: str = "bfloat16", **settings: Any) -> MemoryPlan:
    settings = {"max_num_seqs": 1, **settings}
    return plan_memory(make_config(model="m", **settings), own, dtype)


# Bytes of a token and layer: Llama-3.2-1B 2048, Llama-3-8B 4096, Qwen2.5-0.5B 512.
@pytest.mark.parametrize(
    ("shape", "dtype", "block_bytes", "expected"),
    [
        ((8, 64), "auto", "32KiB", 16),
        ((8, 64), "auto", 65535, 16),
        ((8, 64), "auto", 65536, 32),
        ((2, 64), "auto", "16KiB", 32),
        ((2, 64), "float32", "16KiB", 16),
        ((2, 64), "int8", "16KiB", 32),  # 264 bytes a token: its scales keep 64 from fitting
        ((2, 64), "int8", 64 * 264, 64),
        ((2, 64), "auto", 2**40, 4096),  # no longer than a context
    ],
)
def test_bytes_resolve_to_a_power_of_two_of_tokens(
    shape: tuple[int, int], dtype: str, block_bytes: object, expected: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.WARNING):
        got = plan(model(2, *shape), kv_cache_dtype=dtype, block_bytes=block_bytes)
    assert got.layout.block_size == expected
    assert not caplog.records


def test_bytes_below_the_kernels_least_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        got = plan(model(2, 8, 128), block_bytes=16384)
    assert got.layout.block_size == 16 and got.layout.layer_bytes(0) == 65536
    assert "block_bytes = 16384" in caplog.text and "16 tokens" in caplog.text
    assert "65536 bytes" in caplog.text


def test_bytes_stop_at_the_context() -> None:
    assert plan(model(), block_bytes=2**30, max_model_len=1000).layout.block_size == 512
    assert plan(model(), block_bytes=2**30, max_model_len=5).layout.block_size == 16


def test_bytes_are_those_of_the_layers_that_are_quantized() -> None:
    got = plan(model(3, 2, 64), kv_cache_dtype="int8", kv_cache_skip_layers=[1], block_bytes=8448)
    assert got.layout.block_size == 32
    assert [got.layout.layer_bytes(i) for i in range(3)] == [8448, 16384, 8448]
    assert got.layout.block_bytes == 2 * 8448 + 16384


@pytest.mark.parametrize("size", [1, 4, 15])
def test_few_tokens_are_taken_and_said(size: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert plan(model(), block_size=size).layout.block_size == size
    assert f"block_size = {size}" in caplog.text


def test_sixteen_tokens_by_default(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert plan(model()).layout.block_size == 16
    assert not caplog.records


def test_a_block_may_be_as_long_as_the_context() -> None:
    got = plan(model(), block_size=4096, max_num_seqs=3)
    assert (got.num_blocks, got.max_model_len) == (3, 4096)
    assert plan(model(max_position_embeddings=100), block_size=2**10).max_model_len == 100


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["bfloat16"] * 3),
        ({"kv_cache_dtype": "float32"}, ["float32"] * 3),
        ({"kv_cache_dtype": "int8"}, ["int8"] * 3),
        (
            {"kv_cache_dtype": "fp8", "kv_cache_skip_layers": [0, 2]},
            ["bfloat16", "fp8", "bfloat16"],
        ),
    ],
)
def test_formats(settings: dict[str, Any], expected: list[str]) -> None:
    assert [own.name for own in plan(model(3), **settings).layout.formats] == expected


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_cache_skip_layers: layer 2; the model's are 0 to 1"):
        plan(model(), kv_cache_dtype="int8", kv_cache_skip_layers=[0, 2])


@pytest.mark.parametrize("head_dim", [64, 128])
def test_int8_holds_almost_twice_the_blocks_in_the_same_bytes(head_dim: int) -> None:
    own = model(2, 8, head_dim)
    blocks = {
        name: plan(own, kv_cache_dtype=name, kv_cache_bytes="64MiB").num_blocks
        for name in ("bfloat16", "int8")
    }
    assert 1.9 * blocks["bfloat16"] <= blocks["int8"] < 2 * blocks["bfloat16"]


def test_the_pool_counts_every_byte_of_a_block() -> None:
    own = replace(model(2, 1, 2), max_position=64)  # a token's numbers are 4 bytes: all is padding
    got = plan(own, kv_cache_dtype="int8", block_size=3, max_num_seqs=2)
    assert got.layout.block_bytes == 2 * 4 * 64
    assert got.num_blocks == 2 * 22
    assert plan(own, kv_cache_dtype="int8", block_size=3, kv_cache_bytes=22 * 512).num_blocks == 22


def test_a_gpus_memory_is_shared_out() -> None:
    gib = 2**30
    memory = DeviceMemory(
        total=80 * gib, taken_elsewhere=gib, weights=16 * gib, step_peak=2 * gib, graphs=gib
    )
    assert memory.left_for_kv(0.9) == 72 * gib - 20 * gib
    with pytest.raises(ConfigError) as caught:
        memory.left_for_kv(0.25)
    for part in ("gpu_memory_utilization = 0.25", "20.00 GiB of 80.00 GiB", "16.00 GiB", "lower"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("tokens", "sequences"), [(256, 32), (2048, 256), (3, 8), (700, 1)])
def test_the_largest_batch_is_one_that_can_be(tokens: int, sequences: int) -> None:
    batch = largest_batch(tokens, sequences, max_context=319, block_size=16)
    lengths = batch.query_start.diff()
    assert len(batch.token_ids) == tokens == int(lengths.sum()) == len(batch.positions)
    assert len(lengths) == len(batch.context_lens) <= max(sequences, -(-tokens // 319))
    assert (lengths[: batch.num_decodes] == 1).all()
    assert int(lengths.max()) <= batch.max_query_len <= 319
    assert (
        batch.block_tables.shape[1] == 20
        and int(batch.positions.max()) < 319
        and (batch.slot_mapping == -1).all()
    )
    assert batch.sample_indices.tolist() == (batch.query_start[1:] - 1).tolist()
