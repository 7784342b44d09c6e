"""Checkpoint folders: what is complete and safe is loaded, all else is refused by name."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from factories import TOY_CONFIG, greedy, make_engine, random_prompts, toy_tensors, write_checkpoint
from octavo.errors import ConfigError
from octavo.models.weights import Checkpoint

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
Q = "model.layers.0.self_attn.q_proj.weight"
HEAD = "lm_head.weight"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)
    return folder


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_engine(folder)
    message = str(caught.value)
    assert all(part in message for part in parts), message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "toy")


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_take_casts_to_the_engines_type(tmp_path: Path, stored: str, wanted: str) -> None:
    folder = write_checkpoint(tmp_path / "toy", torch_dtype=stored)
    dtype = getattr(torch, wanted)
    with Checkpoint(folder, dtype) as checkpoint:
        taken = checkpoint.take(Q, 64, 64)
    expected = toy_tensors(TOY_CONFIG)[Q].to(getattr(torch, stored)).to(dtype)
    assert taken.dtype == dtype and torch.equal(taken, expected)


def test_take_copies_what_it_reads(folder: Path) -> None:
    with Checkpoint(folder, torch.float32) as checkpoint:
        taken = checkpoint.take(Q, 64, 64)
    rewrite(folder, lambda tensors: tensors[Q].zero_())
    assert taken.any()


def test_contains(folder: Path) -> None:
    with Checkpoint(folder, torch.float32) as checkpoint:
        assert Q in checkpoint and "q" not in checkpoint


@pytest.mark.parametrize("name", [Q, HEAD, "model.norm.weight", "model.embed_tokens.weight"])
def test_a_missing_tensor_is_refused(folder: Path, name: str) -> None:
    assert_refused(rewrite(folder, lambda tensors: tensors.pop(name)), name, "is missing")


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm.weight",
             "model.layers.0.self_attn.q_proj.bias"]
)  # fmt: skip
def test_a_tensor_without_use_is_refused(folder: Path, name: str) -> None:
    changed = rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(64)}))
    assert_refused(changed, "1 tensors the decoder does not know", name)


def test_many_tensors_without_use_are_counted(folder: Path) -> None:
    more = {f"extra.{index}": torch.zeros(1) for index in range(40)}
    changed = rewrite(folder, lambda tensors: tensors.update(more))
    assert_refused(changed, "40 tensors", "extra.0, extra.1", "…")


def test_rotary_buffers_of_old_checkpoints_are_ignored(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    make_engine(rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(8)})))


@pytest.mark.parametrize(
    ("name", "shape"), [(Q, [64, 63]), (Q, [4096]), (HEAD, [511, 64]), ("model.norm.weight", [1])]
)
def test_a_wrong_shape_is_refused(folder: Path, name: str, shape: list[int]) -> None:
    changed = rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    right = list(toy_tensors(TOY_CONFIG)[name].shape)
    assert_refused(changed, name, f"has shape {shape}", f"asks for {right}")


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "head_dim"])
@pytest.mark.parametrize("value", [32, 2**40, 2**70])
def test_a_size_that_the_tensors_do_not_have_is_refused(folder: Path, key: str, value: int) -> None:
    config = {**TOY_CONFIG, key: value}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_refused(folder)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.float64]
)
def test_types_that_need_more_than_a_cast_are_refused(folder: Path, dtype: torch.dtype) -> None:
    changed = rewrite(folder, lambda tensors: tensors.update({Q: tensors[Q].to(dtype)}))
    assert_refused(changed, Q, str(dtype))


@pytest.mark.parametrize("present", [False, True])
def test_a_tied_head_is_the_embedding(tmp_path: Path, present: bool) -> None:
    folder = write_checkpoint(tmp_path / "toy", tie_word_embeddings=True)
    if present:
        rewrite(folder, lambda tensors: tensors.update({HEAD: torch.ones(512, 64)}))
    model = make_engine(folder, kernels="reference").runner.model
    assert model.lm_head.weight is model.embedding
    assert not (model.embedding == 1).all()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_pickle_is_refused_unopened(folder: Path, name: str) -> None:
    (folder / SINGLE).unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(folder / "opened")))
    assert_refused(folder, name, "pickle", "convert it to safetensors")
    assert not (folder / "opened").exists()


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / SINGLE).unlink()
    assert_refused(folder, SINGLE, INDEX)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_a_truncated_file_is_refused(folder: Path, kept: float) -> None:
    data = (folder / SINGLE).read_bytes()
    end = int(kept * len(data)) if isinstance(kept, float) else kept
    (folder / SINGLE).write_bytes(data[:end])
    assert_refused(folder, str(folder / SINGLE))


def test_a_file_of_something_else_is_refused(folder: Path) -> None:
    (folder / SINGLE).write_bytes(pickle.dumps({"a": 1}) * 50)
    assert_refused(folder, str(folder / SINGLE))


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert_refused(folder, "model-00002-of-00003.safetensors", "no such file")


def test_a_tensor_that_is_not_in_its_shard_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.other"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert_refused(folder, "model-00001-of-00002.safetensors", "model.other is missing")


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..", "",
     "model.bin", "./model.safetensors", 5, None, ["model.safetensors"]],
)  # fmt: skip
def test_an_index_names_files_beside_it_only(folder: Path, shard: object) -> None:
    (folder.parent / SINGLE).write_bytes((folder / SINGLE).read_bytes())
    (folder / INDEX).write_text(json.dumps({"weight_map": {Q: shard}}))
    assert_refused(folder, INDEX, "is not a safetensors file beside it")


@pytest.mark.parametrize(
    "content",
    ["", "junk", "[1]", "5", "{}", '{"weight_map": null}', '{"weight_map": [1]}',
     '{"weight_map": "all"}', '{"weight_map": 3}', "[" * 100_000],
)  # fmt: skip
def test_an_index_without_a_map_is_refused(folder: Path, content: str) -> None:
    (folder / INDEX).write_text(content)
    assert_refused(folder, INDEX, "no readable weight_map")


def test_an_empty_index_is_refused(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {}}')
    assert_refused(folder, "is missing")


def test_weights_may_be_links(folder: Path, tmp_path: Path) -> None:
    """The hub's cache keeps them elsewhere."""
    (folder / SINGLE).rename(tmp_path / "blob")
    (folder / SINGLE).symlink_to(tmp_path / "blob")
    result = make_engine(folder).generate(random_prompts([5]), greedy(2))[0]
    assert len(result.token_ids) == 2
