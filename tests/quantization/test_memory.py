"""The peak of `octavo quantize` beside that of loading the same model, each in its own process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from factories import write_checkpoint

TINY = Path(__file__).parents[2] / "models" / "octavo-tiny"
LIMIT_BYTES = 600e6

_LOAD = """
from octavo.config import make_config
from octavo.execution.model_runner import ModelRunner
ModelRunner(make_config(
    model={model!r}, max_model_len=512, max_num_seqs=1, num_threads=1, kv_cache_bytes=2**25,
    kernels="reference",
))
"""
_QUANTIZE = """
from octavo.quantization.job import QuantizeOptions
from octavo.quantization.writer import quantize_checkpoint
list(quantize_checkpoint(QuantizeOptions(
    model={model!r}, out={out!r}, bits=4, group_size=64, method={method!r}, threads=1,
    calibration={text!r},
)))
"""
_PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


def peak_bytes(code: str) -> float:
    run = [sys.executable, "-c", code + _PEAK]
    return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def added_bytes(
    model: Path, out: Path, method: str, text: Path = TINY / "calibration.jsonl"
) -> float:
    values = {"model": str(model), "out": str(out), "method": method}
    quantizing = peak_bytes(_QUANTIZE.format(**values, text=str(text)))
    loading = peak_bytes(_LOAD.format(**values))
    print(quantizing, loading)
    return quantizing - loading


def test_octavo_tiny(tmp_path: Path) -> None:
    assert added_bytes(TINY, tmp_path / "out", "gptq") < LIMIT_BYTES


def test_a_long_text_does_not_count(tmp_path: Path) -> None:
    documents = (TINY / "heldout.jsonl").read_text(encoding="utf-8").split("\n")
    text = " ".join(json.loads(line)["text"] for line in documents if line)
    file = tmp_path / "one-document.txt"
    file.write_text(text * (16_000_000 // len(text)), encoding="utf-8")
    assert added_bytes(TINY, tmp_path / "out", "gptq", file) < LIMIT_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_matrices_of_a_larger_model(tmp_path: Path, method: str) -> None:
    """One layer of bench-150m: peaks do not add up over layers, so a whole model has more room."""
    model = write_checkpoint(
        tmp_path, hidden_size=1024, intermediate_size=2816, num_attention_heads=16,
        num_key_value_heads=4, head_dim=64, num_hidden_layers=1, vocab_size=4096,
        max_position_embeddings=2048, torch_dtype="bfloat16",
    )  # fmt: skip
    (model / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    assert added_bytes(model, tmp_path / "out", method) < LIMIT_BYTES
