"""Which lines are compared with which, and how."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.benchmarks.compare import Engine, Ratio, compare, ratios, read_lines
from octavo.benchmarks.compare_plot import draw
from octavo.benchmarks.weight_bits import base_model, weight_bits
from octavo.errors import ConfigError

LOAD = "p128-g128-c1"


def line(peer: str, model: str = "toy", **more: Any) -> dict[str, Any]:
    return {"peer": peer, "model": model, "workload": LOAD, "decode_tps": 10.0, **more}


@pytest.mark.parametrize(
    "fields, bits, base",
    [
        ({"model": "models/toy-150m"}, 16, "toy-150m"),
        ({"model": "models/toy-150m-w8a8"}, 8, "toy-150m"),
        ({"model": "toy-150m-w4a16"}, 4, "toy-150m"),
        ({"model": "ir/toy-150m-fp16", "precision": "bf16"}, 16, "toy-150m"),
        ({"model": "ir/toy-150m-int8", "precision": "f32"}, 8, "toy-150m"),
        ({"model": "ir/toy-150m-int4", "precision": "f32"}, 4, "toy-150m"),
        ({"model": "gguf/toy-150m-Q8_0.gguf"}, 8, "toy-150m"),
        ({"model": "gguf/toy-150m-Q4_0.gguf"}, 4, "toy-150m"),
        ({"model": "Llama-3.2-1B-Q4_K_M.gguf"}, 4, "Llama-3.2-1B"),
        ({"model": "Llama-3.2-1B.IQ3_XXS.gguf"}, 3, "Llama-3.2-1B"),
        ({"model": "toy-150m-bf16.gguf"}, 16, "toy-150m"),
        ({"model": "toy-150m-f32.gguf"}, 32, "toy-150m"),
        ({"model": "Qwen3-8B-FP8"}, 8, "Qwen3-8B"),
        ({"model": "Qwen3-8B-AWQ"}, 4, "Qwen3-8B"),
        ({"model": "Qwen3-8B-GPTQ-Int8"}, 8, "Qwen3-8B"),
        ({"model": "Mistral-7B-v0.3-4bit"}, 4, "Mistral-7B-v0.3"),
        ({"model": "Qwen3-8B", "quantization": "awq"}, 4, "Qwen3-8B"),
        ({"model": "Qwen3-8B", "quantization": None, "dtype": "float32"}, 32, "Qwen3-8B"),
        ({"model": "Qwen3-8B", "weight_format": "int4", "dtype": "bfloat16"}, 4, "Qwen3-8B"),
        ({"model": "Qwen3-8B", "weight_format": "w4a8"}, 4, "Qwen3-8B"),
        ({"model": "Qwen3-8B", "weight_format": "bfloat16"}, 16, "Qwen3-8B"),
        ({"model": "toy-int4", "weight_format": "w8a8"}, 8, "toy"),
        ({"model": "int8"}, 8, "int8"),  # a name is not taken away whole
    ],
)
def test_weight_bits_and_base_model(fields: dict[str, Any], bits: int, base: str) -> None:
    assert (weight_bits(fields), base_model(fields)) == (bits, base)


def test_ratio_is_to_the_fastest_with_as_many_bits() -> None:
    lines = [
        line("octavo", decode_tps=30.0, prefill_tps=100.0, ttft_s=0.2, roofline_ratio=0.8),
        line("vllm", decode_tps=20.0, prefill_tps=400.0, ttft_s=0.1),
        line("llama.cpp", "gguf/toy-f16.gguf", decode_tps=24.0, prefill_tps=50.0, ttft_s=0.4),
        line("llama.cpp", "gguf/toy-Q4_0.gguf", decode_tps=90.0),
        line("other", "toy-int8", workload="p1-g2-c1"),
    ]
    (comparison,) = compare(lines)
    assert comparison.model == "toy" and list(comparison.results) == [LOAD, "p1-g2-c1"]
    ours = Engine("octavo", 16)
    assert comparison.engines[0] == ours and len(comparison.engines) == 5
    by_engine = comparison.results[LOAD]
    assert by_engine[ours]["roofline_ratio"] == 0.8
    assert ratios(by_engine, ours) == {
        "decode_tps": Ratio(30.0, 24.0, "llama.cpp", 30 / 24),
        "prefill_tps": Ratio(100.0, 400.0, "vllm", 0.25),
        "ttft_s": Ratio(0.2, 0.1, "vllm", 0.5),  # twice as long: half as fast
    }


def test_without_another_of_as_many_bits_there_is_no_ratio() -> None:
    (comparison,) = compare([line("octavo"), line("vllm", "toy-w8a8")])
    found = ratios(comparison.results[LOAD], Engine("octavo", 16))
    assert found == {"decode_tps": Ratio(10.0)}


def test_median_of_equal_settings_best_of_different_ones() -> None:
    lines = [line("vllm", label="a", decode_tps=tps, ttft_s=tps) for tps in (1.0, 50.0, 3.0)]
    lines += [line("vllm", label="b", decode_tps=2.5, ttft_s=2.5)]
    (comparison,) = compare(lines)
    assert comparison.results[LOAD][Engine("vllm", 16)] == {"decode_tps": 3.0, "ttft_s": 2.5}


def test_errors_and_missing_measures_are_left_out() -> None:
    lines = [line("vllm", error="it fell over"), line("octavo", decode_tps=None, ttft_s=1.0)]
    (comparison,) = compare(lines)
    assert comparison.results == {LOAD: {Engine("octavo", 16): {"ttft_s": 1.0}}}


def test_models_apart_and_only_those_that_ours_ran() -> None:
    peers = [line("vllm", "small"), line("vllm", "large-int4")]
    assert [each.model for each in compare(peers)] == ["large", "small"]
    assert [each.model for each in compare(peers, "all")] == ["small"]
    assert [each.model for each in compare([*peers, line("octavo", "small-w8a8")])] == ["small"]


def test_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    files[0].write_text(f"{json.dumps(line('a'))}\n\n{json.dumps(line('b'))}\n", encoding="utf-8")
    files[1].write_text(json.dumps(line("c")), encoding="utf-8")
    assert [each["peer"] for each in read_lines(files)] == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["{", "[]", '{"peer": "a", "model": "b"}', '{"peer": 1}'])
def test_a_bad_line_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(f"{json.dumps(line('a'))}\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.jsonl, line 2: "):
        read_lines([file])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl: "):
        read_lines([tmp_path / "none.jsonl"])


@pytest.mark.parametrize("suffix, begin", [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_picture(tmp_path: Path, suffix: str, begin: bytes) -> None:
    lines = [
        line(peer, f"{model}{bits}", workload=name, prefill_tps=9.0, ttft_s=0.1)
        for peer in ("octavo", *(f"peer{n}" for n in range(9)))
        for model in ("small", "large")
        for bits in ("", "-int8", "-int4")
        for name in (LOAD, "shared1024+32-g32-c8")
    ]
    file = tmp_path / f"compare{suffix}"
    draw(compare(lines), file)
    assert file.read_bytes().startswith(begin)
