"""Bytes of KV memory, counted by hand."""

import subprocess
import sys

import pytest

from octavo.errors import ConfigError
from octavo.quantization.kv import KV_FORMATS, KVLayout, layer_formats


@pytest.mark.parametrize(
    ("name", "expected"),
    [("float32", 4096), ("bfloat16", 2048), ("float16", 2048), ("int8", 1056), ("fp8", 1056)],
)
def test_bytes_per_token(name: str, expected: int) -> None:
    """8 heads of 64 numbers, keys and values: Llama-3.2-1B."""
    assert KV_FORMATS[name].bytes_per_token(8, 64) == expected
    assert KV_FORMATS[name].block_bytes(16, 8, 64) == 16 * expected  # nothing is left to align


def test_parts_are_aligned() -> None:
    # 3 tokens of 1 head of 10: 30 bytes of numbers, 6 of scales, each twice.
    assert KV_FORMATS["int8"].block_bytes(3, 1, 10) == 4 * 64
    assert KV_FORMATS["bfloat16"].block_bytes(3, 1, 10) == 2 * 64


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("num_kv_heads", [2, 4, 8])
def test_int8_holds_almost_twice_the_blocks(num_kv_heads: int, head_dim: int) -> None:
    def blocks(name: str) -> int:
        formats = (KV_FORMATS[name],) * 7
        return 10**9 // KVLayout(formats, 16, num_kv_heads, head_dim).block_bytes

    assert 1.9 * blocks("bfloat16") <= blocks("int8") < 2 * blocks("bfloat16")


def names(*arguments: object) -> list[str]:
    return [own.name for own in layer_formats(*arguments)]  # type: ignore[arg-type]


def test_layers_that_are_skipped_are_stored_as_computed() -> None:
    assert names("auto", (), 2, "bfloat16") == ["bfloat16"] * 2
    assert names("float16", (), 2, "float32") == ["float16"] * 2
    assert names("int8", (0, 3), 4, "bfloat16") == ["bfloat16", "int8", "int8", "bfloat16"]


@pytest.mark.parametrize("layer", [4, 100, -1])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"kv_cache_skip_layers: layer {layer}; .* 0 to 3"):
        layer_formats("int8", (0, layer), 4, "float32")


def test_a_layout_is_said_in_words() -> None:
    layout = KVLayout(layer_formats("int8", (0,), 3, "bfloat16"), 16, 8, 64)
    assert str(layout) == (
        f"16 tokens, {16 * (2048 + 2 * 1056)} bytes, in 1 layers of bfloat16 with 32768 bytes and "
        "2 layers of int8 with 16896 bytes"
    )


def test_planning_needs_no_torch() -> None:
    code = "import sys, octavo.quantization.kv; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
