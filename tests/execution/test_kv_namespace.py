"""The name of a block's bytes: the same for the same bytes' meaning, another for any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from factories import write_checkpoint
from octavo.config import make_config
from octavo.errors import ConfigError
from octavo.execution.model_runner import ModelRunner
from octavo.models import weights
from octavo.models.weights import checkpoint_digest


def namespace(folder: Path, **settings: Any) -> bytes:
    settings = {"dtype": "float32", "block_size": 16, "max_num_seqs": 1, **settings}
    name = ModelRunner(make_config(model=folder, num_threads=1, **settings)).kv_namespace
    assert len(name) == 16
    return name


@pytest.fixture(scope="module")
def own(toy_folder: Path) -> bytes:
    return namespace(toy_folder)


def test_the_same_folder_and_its_copy_agree(toy_folder: Path, tmp_path: Path, own: bytes) -> None:
    assert namespace(toy_folder) == own
    shutil.copytree(toy_folder, tmp_path / "copy")
    assert namespace(tmp_path / "copy") == own


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"kv_cache_dtype": "int8"},
        {"kv_cache_dtype": "bfloat16"},
        {"kv_cache_dtype": "int8", "kv_cache_skip_layers": [0]},
        {"kv_cache_dtype": "int8", "kv_cache_skip_layers": [1]},
        {"block_size": 32},
        {"block_size": 4},
        {"weight_format": "int8"},
        {"weight_format": "w8a8"},
        {"weight_format": "int4", "weight_group_size": 32},
        {"weight_format": "w4a8", "weight_group_size": 32},
    ],
    ids=str,
)
def test_another_type_format_or_block_is_another_name(
    toy_folder: Path, own: bytes, settings: dict[str, Any]
) -> None:
    assert namespace(toy_folder, **settings) != own


def test_of_the_weights_only_the_layers_format_counts(tmp_path: Path) -> None:
    """Groups of either size fit; the lm_head computes no key and no value."""
    folder = write_checkpoint(tmp_path / "toy", torch_dtype="bfloat16", intermediate_size=128)
    names = [
        namespace(folder, dtype="bfloat16", **settings)
        for settings in (
            {"weight_format": "int4", "weight_group_size": 32},
            {"weight_format": "int4", "weight_group_size": 64},
            {"weight_format": "w4a8", "weight_group_size": 64},
            {"weight_format": "int4", "weight_group_size": 32, "lm_head_format": "bfloat16"},
        )
    ]
    assert len(set(names)) == 3 and names[0] == names[3]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_model_len": 100},
        {"max_num_seqs": 3},
        {"kv_cache_bytes": "1MiB"},
        {"kv_cache_dtype": "float32"},  # as auto
        {"block_size": "auto", "block_bytes": 2 * 16 * 2 * 16 * 4},  # 16 tokens
    ],
    ids=str,
)
def test_what_does_not_change_a_blocks_bytes_is_not_in_it(
    toy_folder: Path, own: bytes, settings: dict[str, Any]
) -> None:
    assert namespace(toy_folder, **settings) == own


@pytest.mark.parametrize(
    "changed",
    [{"rope_theta": 10001.0}, {"rms_norm_eps": 2e-5}, {"max_position_embeddings": 512},
     {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}],
    ids=str,
)  # fmt: skip
def test_another_config_is_another_name(
    tmp_path: Path, own: bytes, changed: dict[str, Any]
) -> None:
    assert namespace(write_checkpoint(tmp_path / "toy", **changed)) != own


def test_every_tensor_is_in_it(toy_folder: Path, tmp_path: Path) -> None:
    """One bit of any of them, wherever it is, changes the digest."""
    shutil.copytree(toy_folder, tmp_path / "toy")
    file = tmp_path / "toy" / "model.safetensors"
    tensors = load_file(file)
    seen = {checkpoint_digest(tmp_path / "toy", 1)}
    for index, name in enumerate(tensors):
        changed = {key: tensor.clone() for key, tensor in tensors.items()}
        flat = changed[name].flatten().view(torch.int32)
        flat[(index * 7919) % len(flat)] ^= 1
        changed[name] = flat.view(torch.float32).view(changed[name].shape)
        save_file(changed, file)
        seen.add(checkpoint_digest(tmp_path / "toy", 1))
    assert len(seen) == 1 + len(tensors)


def test_names_types_and_shapes_are_in_it(tmp_path: Path) -> None:
    tensor = torch.arange(6, dtype=torch.float32)
    variants: list[dict[str, torch.Tensor]] = [
        {"a": tensor}, {"b": tensor}, {"a": tensor.view(2, 3)}, {"a": tensor.view(torch.int32)},
        {"a": tensor[:3].clone(), "b": tensor[3:].clone()},
    ]  # fmt: skip
    seen = set()
    for index, variant in enumerate(variants):
        (tmp_path / str(index)).mkdir()
        save_file(variant, tmp_path / str(index) / "model.safetensors")
        seen.add(checkpoint_digest(tmp_path / str(index), 1))
    assert len(seen) == len(variants)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_digest_is_the_same_however_the_files_are_read(
    tmp_path: Path, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several shards of several pieces each: the order of the threads does not show."""
    monkeypatch.setattr(weights, "_HASHED_AT_ONCE", 10_000)
    folder = write_checkpoint(tmp_path / "toy", shards=3)
    digest = checkpoint_digest(folder, 2)
    assert all(checkpoint_digest(folder, num_threads) == digest for _ in range(3))
    with (folder / "model-00002-of-00003.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert checkpoint_digest(folder, num_threads) != digest


def test_a_shard_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", shards=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match="model-00001-of-00002"):
        checkpoint_digest(folder, 1)


def test_longrope_depends_on_the_longest_context(tmp_path: Path) -> None:
    """Whether the long or the short factors turn the keys."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": 64, **factors}
    folder = write_checkpoint(tmp_path / "toy", rope_scaling=scaling)
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == scaling
    assert namespace(folder, max_model_len=64) != namespace(folder, max_model_len=65)


def test_where_sequences_end_is_not_in_it(tmp_path: Path, own: bytes) -> None:
    assert namespace(write_checkpoint(tmp_path / "toy", eos_token_id=[2, 5])) == own
