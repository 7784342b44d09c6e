"""The decoder against transformers: logits to 1e-4 relative in float32, equal greedy tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from factories import TOY_CONFIG, greedy, make_engine, random_prompts, write_checkpoint
from octavo.engine import Engine
from tests.models.logits import our_logits

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "multi_head": {"num_key_value_heads": 4},
    "multi_query": {"num_key_value_heads": 1},
    "odd_head_dim": {"head_dim": 24},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "rope_linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_llama3": {"rope_scaling": LLAMA3},
    "rope_parameters": {"rope_parameters": {**LLAMA3, "rope_theta": 5000.0}},
    "rope_in_both_places": {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        "rope_scaling": LLAMA3,
    },
    "rope_named_default": {"rope_scaling": {"rope_type": "default"}},
    "theta": {"rope_theta": 500000.0},
    "theta_in_rope_scaling": {"rope_scaling": {"type": "linear", "factor": 2, "rope_theta": 9e4}},
    "one_layer": {"num_hidden_layers": 1},
}


def load_theirs(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def next_logits(engine: Engine, prompt: list[int]) -> Tensor:
    """Our logits after the last token of a prompt, [V]."""
    return our_logits(engine, prompt)[-1]


def assert_logits_equal(folder: Path, relative: float = 1e-4, dtype: str = "float32") -> None:
    theirs = load_theirs(folder, getattr(torch, dtype))
    engine = make_engine(folder, max_num_batched_tokens=128, dtype=dtype)
    for prompt in random_prompts([1, 7, 90]):
        ours = next_logits(engine, prompt)
        with torch.inference_mode():
            expected = theirs(torch.tensor([prompt])).logits[0, -1].float()
        assert (ours - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_decoder_equals_transformers(overrides: dict[str, Any], tmp_path: Path) -> None:
    assert_logits_equal(write_checkpoint(tmp_path / "toy", **overrides))


def test_octavo_tiny_equals_transformers() -> None:
    assert_logits_equal(Path(__file__).parents[2] / "models" / "octavo-tiny")


@pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 4e-2), ("float16", 5e-3)])
def test_decoder_in_16_bits_is_close_to_transformers(
    dtype: str, relative: float, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "toy", torch_dtype=dtype)
    assert_logits_equal(folder, relative, dtype)


@pytest.mark.parametrize("rope", [{}, {"rope_scaling": LLAMA3}], ids=["default", "llama3"])
@pytest.mark.parametrize("tied", [False, True])
def test_decoder_reads_what_transformers_writes(
    rope: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    config = {**TOY_CONFIG, **rope, "tie_word_embeddings": tied, "initializer_range": 0.3}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(tmp_path)
    assert_logits_equal(tmp_path)


def test_sharded_equals_single(toy_folder: Path, tmp_path: Path) -> None:
    sharded = write_checkpoint(tmp_path / "sharded", shards=3)
    assert len(list(sharded.glob("*.safetensors"))) == 3
    for prompt in random_prompts([1, 40]):
        logits = [next_logits(make_engine(folder), prompt) for folder in (toy_folder, sharded)]
        assert torch.equal(*logits)


@pytest.mark.parametrize("tied", [False, True])
def test_num_bytes_counts_each_weight_once(tied: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", tie_word_embeddings=tied, attention_bias=True)
    size = sum(tensor.nbytes for tensor in load_theirs(folder).parameters())
    assert make_engine(folder).runner.model.num_bytes == size


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_greedy_tokens_equal_transformers(overrides: dict[str, Any], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", **overrides)
    theirs = load_theirs(folder)
    theirs.generation_config.eos_token_id = None
    prompts = random_prompts([1, 5, 33, 64])
    ours = make_engine(folder).generate(prompts, greedy(24))
    for prompt, result in zip(prompts, ours, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, pad_token_id=0
        )
        assert result.token_ids == expected[0, len(prompt) :].tolist()
