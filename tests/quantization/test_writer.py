"""Folders that `octavo quantize` writes: what they serve, what interrupts them, what is refused."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from factories import make_engine, random_prompts, write_checkpoint, write_family
from octavo.engine import Engine
from octavo.errors import ConfigError
from octavo.kernels import quantize_weight
from octavo.kernels.reference_weights import dequantize_weight
from octavo.models.model_config import read_model_config
from octavo.models.weights import Checkpoint
from octavo.quantization.awq import fold_scales
from octavo.quantization.calibration import Calibration, read_windows
from octavo.quantization.gptq import Hessian
from octavo.quantization.job import QuantizeOptions
from octavo.quantization.writer import MANIFEST, quantize_checkpoint
from tests.models.logits import our_logits

TINY = Path(__file__).parents[2] / "models" / "octavo-tiny"
HELD_OUT = TINY / "heldout.jsonl"
SINGLE = "model.safetensors"


def write(model: Path, out: Path, **more: Any) -> list[dict[str, Any]]:
    options = {"bits": 4, "group_size": 32, "threads": 1, **more}
    return list(quantize_checkpoint(QuantizeOptions(model=str(model), out=str(out), **options)))


def toy(folder: Path, **overrides: Any) -> Path:
    return write_checkpoint(folder / "toy", torch_dtype="bfloat16", **overrides)


def logits(engine: Engine) -> Tensor:
    return torch.cat([our_logits(engine, prompt) for prompt in random_prompts([1, 30, 90])])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}], ids=["own", "tied"])
def test_rounding_is_the_engines_own(
    tmp_path: Path, overrides: dict[str, Any], kernels: str
) -> None:
    """The same logits, bit by bit, as weight_format = "int4"."""
    folder = toy(tmp_path, **overrides)
    events = write(folder, tmp_path / "out")
    assert events == [{"done": done, "of": 3, "kept": 0} for done in (0, 1, 2, 3)]
    same = {"dtype": "bfloat16", "kernels": kernels}
    mine = make_engine(tmp_path / "out", **same)
    theirs = make_engine(
        folder, **same, weight_format="int4", weight_group_size=32, lm_head_format="bfloat16"
    )
    assert torch.equal(logits(mine), logits(theirs))
    assert mine.runner.weight_format == theirs.runner.weight_format
    assert mine.runner.model.num_bytes == theirs.runner.model.num_bytes


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (8, 32), (4, 32)])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Phi3ForCausalLM"])
def test_what_is_written_is_what_rounding_makes(
    tmp_path: Path, architecture: str, bits: int, group_size: int | None
) -> None:
    """With biases; with matrices that a checkpoint has stacked already."""
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "head_dim": 24}
    write_family(tmp_path / "toy", architecture, **sizes)
    write_family(tmp_path / "meant", architecture, **sizes)
    write(tmp_path / "toy", tmp_path / "out", bits=bits, group_size=group_size)
    tensors = load_file(tmp_path / "meant" / SINGLE)
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "proj" in name:
            own = quantize_weight(tensor, bits, group_size, False)
            tensors[name] = dequantize_weight(own)
    save_file(tensors, tmp_path / "meant" / SINGLE)
    mine, theirs = (logits(make_engine(tmp_path / part)) for part in ("out", "meant"))
    assert float((mine - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, None)])
@pytest.mark.parametrize("model", ["toy", "octavo-tiny"])
def test_transformers_loads_it(
    tmp_path: Path, model: str, bits: int, group_size: int | None
) -> None:
    """In float32 with what compressed-tensors makes of it: the same to 1e-2."""
    from transformers import AutoModelForCausalLM

    folder = toy(tmp_path) if model == "toy" else TINY
    write(folder, tmp_path / "out", bits=bits, group_size=group_size)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    engine = make_engine(tmp_path / "out", kernels="reference", dtype="float32")
    assert engine.runner.weight_format.weight_bits == bits
    for prompt in random_prompts([1, 30, 90]):
        with torch.no_grad():
            expected = theirs(torch.tensor([prompt])).logits[0]
        mine = our_logits(engine, prompt)
        # Measured: 4e-6.
        assert float((mine - expected).abs().max()) < 1e-2
        assert float(expected.std()) > 0.1


def test_the_folder_is_a_whole_checkpoint(tmp_path: Path) -> None:
    folder = toy(tmp_path)
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (folder / name).write_text("{}")
    for name in ("pytorch_model.bin", "modeling_toy.py", "notes.json"):
        (folder / name).write_text("not to be copied")
    write(folder, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja", MANIFEST,
        "model.safetensors.index.json", *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
    }  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == before and quantization["quant_method"] == "compressed-tensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = [load_file(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert index["metadata"]["total_size"] == sum(t.nbytes for s in shards for t in s.values())
    assert set(index["weight_map"]) == {name for shard in shards for name in shard}


# With the real model and its tokenizer.


def calibration(folder: Path, lines: slice) -> Path:
    path = folder / f"text-{lines.start}.jsonl"
    documents = HELD_OUT.read_text(encoding="utf-8").splitlines()[lines]
    path.write_text("\n".join(documents) + "\n", encoding="utf-8")
    return path


def gptq(folder: Path, **more: Any) -> QuantizeOptions:
    options = {
        "bits": 4, "group_size": 64, "method": "gptq", "calibration_tokens": 2048, "window": 256,
        "threads": 1, "calibration": str(calibration(folder, slice(0, 6))), **more,
    }  # fmt: skip
    return QuantizeOptions(model=str(TINY), out=str(folder / "out"), **options)


def shortened(folder: Path, num_layers: int) -> Path:
    """The first layers of octavo-tiny."""
    folder.mkdir()
    tensors = load_file(TINY / SINGLE)
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < num_layers
    }
    save_file(kept, folder / SINGLE)
    config = json.loads((TINY / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": num_layers}))
    (folder / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    return folder


def test_gptq_is_nearer_on_text_it_has_not_read(tmp_path: Path) -> None:
    """The outputs of each layer, on other documents, against the unquantized model's: in every
    layer less far off than with rounding, by a bootstrap over windows."""
    source = shortened(tmp_path / "short", 3)
    options = replace(gptq(tmp_path, calibration_tokens=6144), model=str(source))
    list(quantize_checkpoint(options))
    write(source, tmp_path / "rtn", group_size=64)
    config = read_model_config(source)
    text = calibration(tmp_path, slice(20, 40))
    windows = read_windows(source, text, 3072, 256, config)
    assert len(windows) == 12
    errors = {name: layer_errors(source, tmp_path / name, windows) for name in ("out", "rtn")}
    generator = torch.Generator().manual_seed(0)
    for mine, theirs in zip(errors["out"], errors["rtn"], strict=True):
        draws = torch.randint(0, 12, (2000, 12), generator=generator)
        ratios = mine[draws].sum(1) / theirs[draws].sum(1)
        # Measured: 0.18 to 0.20, of squared errors.
        assert float(ratios.quantile(0.975)) < 0.3


def layer_errors(source: Path, folder: Path, windows: list[list[int]]) -> Iterator[Tensor]:
    """After each layer: the squared error of each window's states."""
    plain_config, own_config = read_model_config(source), read_model_config(folder)
    with (
        Checkpoint(source, torch.float32) as plain,
        Checkpoint(folder, torch.float32) as quantized,
    ):
        exact = Calibration(plain_config, plain, windows)
        rounded = Calibration(plain_config, plain, windows)
        for index in range(plain_config.num_layers):
            exact.advance(plain, index, plain_config)
            rounded.advance(quantized, index, own_config)
            pairs = zip(exact.states, rounded.states, strict=True)
            yield torch.stack([(mine - theirs).square().sum() for mine, theirs in pairs])


def test_calibration_computes_what_the_engine_does(tmp_path: Path) -> None:
    source = shortened(tmp_path / "short", 3)
    config = read_model_config(source)
    windows = read_windows(source, HELD_OUT, 512, 100, config)
    assert len(windows) == 5 and all(len(window) == 100 for window in windows)
    with Checkpoint(source, torch.float32) as checkpoint:
        own = Calibration(config, checkpoint, windows)
        for index in range(config.num_layers):
            own.advance(checkpoint, index, config)
    model = make_engine(source, kernels="reference").runner.model
    for window, state in zip(windows, own.states, strict=True):
        normed = model._operators.rms_norm(state, model.norm, config.rms_norm_eps)
        got, expected = model.lm_head(normed), our_logits(make_engine(source), window)
        assert float((got - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_what_is_interrupted_goes_on_to_the_same_bytes(
    tmp_path: Path, method: str, after: int
) -> None:
    source = shortened(tmp_path / "short", 3)
    options = replace(gptq(tmp_path, calibration_tokens=512), model=str(source))
    if method == "rtn":
        options = replace(options, method="rtn", calibration=None)
    whole = replace(options, out=str(tmp_path / "whole"))
    list(quantize_checkpoint(whole))
    begun = quantize_checkpoint(options)
    list(islice(begun, after + 1))
    begun.close()
    assert not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(ConfigError, match="not a checkpoint folder"):
        make_engine(tmp_path / "out")
    (tmp_path / "out" / "model-00003-of-00004.part").write_bytes(b"of a crash")
    events = list(quantize_checkpoint(options))
    assert events[0] == {"done": after, "of": 4, "kept": after} and len(events) == 5 - after
    (tmp_path / "out" / "model-00003-of-00004.part").unlink(missing_ok=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = toy(tmp_path)
    write(folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    for out in (tmp_path / "out", folder):
        with pytest.raises(ConfigError, match="holds a checkpoint; nothing is overwritten"):
            write(folder, out)
    assert contents(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("other", "file"):
        with pytest.raises(ConfigError, match="is not an empty folder"):
            write(folder, tmp_path / name)
    (tmp_path / "empty").mkdir()
    write(folder, tmp_path / "empty")


def begin(folder: Path, out: Path) -> None:
    begun = quantize_checkpoint(
        QuantizeOptions(model=str(folder), out=str(out), bits=4, group_size=32)
    )
    list(islice(begun, 2))
    begun.close()


def test_another_job_does_not_go_on(tmp_path: Path) -> None:
    folder = toy(tmp_path)
    begin(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="begun with another options"):
        write(folder, tmp_path / "out", bits=8, group_size=None)
    changed = load_file(folder / SINGLE)
    changed["model.norm.weight"][3] += 1
    save_file(changed, folder / SINGLE)
    with pytest.raises(ConfigError, match="begun with another source"):
        write(folder, tmp_path / "out")


def test_a_shard_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = toy(tmp_path)
    begin(folder, tmp_path / "out")
    path = tmp_path / "out" / "model-00001-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="safetensors is not what was written"):
        write(folder, tmp_path / "out")


def test_what_cannot_be_quantized_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = toy(tmp_path)
    with pytest.raises(ConfigError, match=r"group-size 64: rows of mlp.down_proj have 160 .* 32 f"):
        write(folder, tmp_path / "out", group_size=64)
    with pytest.raises(ConfigError, match="name a file with --calibration"):
        write(folder, tmp_path / "out", method="gptq")
    with pytest.raises(ConfigError, match=r"tokenizer.json is missing"):
        write(folder, tmp_path / "out", method="gptq", calibration=str(HELD_OUT))
    for name, content in (("short.txt", "a word"), ("bad.jsonl", "[1]"), ("bad.txt", None)):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match=name):
            write(TINY, tmp_path / "out", method="gptq", calibration=str(tmp_path / name))
    assert not (tmp_path / "out").exists()
    write(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="quantized already"):
        write(tmp_path / "out", tmp_path / "again")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = toy(tmp_path)
    tensors = load_file(folder / SINGLE)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = float("nan")
    save_file(tensors, folder / SINGLE)
    with pytest.raises(ConfigError, match=f"{name} holds numbers that are not finite"):
        write(folder, tmp_path / "out")


def test_awq_computes_the_same_before_rounding(tmp_path: Path) -> None:
    """What it folds into norms and matrices cancels out, but for the norms' own rounding."""
    source = shortened(tmp_path / "short", 2)
    config = read_model_config(source)
    with Checkpoint(source, torch.float32) as checkpoint:
        names = [name for name in checkpoint.names if name.startswith("model.layers.0.")]
        stored = {
            name.removeprefix("model.layers.0."): checkpoint.as_stored(name) for name in names
        }
        inputs: dict[str, Hessian] = {}
        windows = read_windows(source, HELD_OUT, 256, 128, config)
        own = Calibration(config, checkpoint, windows)
        own.observe(
            checkpoint, 0, lambda name, x: inputs.setdefault(name, Hessian(x.shape[1])).add(x)
        )
    norms = {
        name.removesuffix(".weight"): tensor for name, tensor in stored.items() if "norm" in name
    }
    weights = {
        name.removesuffix(".weight"): tensor.float()
        for name, tensor in stored.items() if "proj" in name
    }  # fmt: skip
    before = {name: tensor.clone() for name, tensor in {**norms, **weights}.items()}
    hessians = {
        "self_attn.q_proj": inputs["self_attn.q_proj"].sum,
        "mlp.gate_proj": inputs["mlp.gate_proj"].sum,
        "mlp.down_proj": inputs["mlp.down_proj"].sum,
    }
    fold_scales(weights, norms, hessians, config, 4, 64)
    assert norms["input_layernorm"].dtype is before["input_layernorm"].dtype
    for norm, matrices in {
        "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "post_attention_layernorm": ["mlp.gate_proj"],
    }.items():
        assert not torch.equal(norms[norm], before[norm])
        for name in matrices:
            mine, theirs = weights[name] * norms[norm].float(), before[name] * before[norm].float()
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    norm, up, down = "post_attention_layernorm", "mlp.up_proj", "mlp.down_proj"
    inner = (weights[up] * norms[norm].float()).T @ weights[down].T
    expected = (before[up] * before[norm].float()).T @ before[down].T
    assert not torch.equal(weights[down], before[down])
    torch.testing.assert_close(inner, expected, rtol=1e-4, atol=1e-4)


def test_awq_scales_biases_as_it_scales_their_rows(tmp_path: Path) -> None:
    """Some channels stand out, as they do in trained models; else all scales are about 1."""
    source = toy(tmp_path, vocab_size=4096, mlp_bias=True)
    tensors = load_file(source / SINGLE)
    for name, tensor in tensors.items():
        if "up_proj" in name:
            tensor[:8] *= 30
        if name.endswith("down_proj.weight"):
            tensor[:, :8] /= 30
    save_file(tensors, source / SINGLE)
    (source / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    read = {"calibration": str(HELD_OUT), "calibration_tokens": 512, "window": 128}
    methods: dict[str, dict[str, Any]] = {"rtn": {}, "awq": read}
    expected = logits(make_engine(source, kernels="reference"))
    errors = {}
    for method, more in methods.items():
        out = tmp_path / method
        write(source, out, bits=8, group_size=None, method=method, **more)
        errors[method] = (logits(make_engine(out, kernels="reference")) - expected).norm()
    assert errors["awq"] < errors["rtn"]


def test_calibration_reads_text_as_the_gate_does(tmp_path: Path) -> None:
    """A byte order mark, separators within JSON strings, a tokenizer that cuts what is long."""
    config = read_model_config(TINY)
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": "a word and\u2028another " * 100}, ensure_ascii=False)] * 3
    text.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    whole = read_windows(TINY, text, 4096, 64, config)
    assert len(whole) >= 10
    tokenizer = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["truncation"] = {
        "max_length": 16, "strategy": "LongestFirst", "stride": 0, "direction": "Right",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert read_windows(tmp_path, text, 4096, 64, config) == whole


def test_a_text_beyond_all_need_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "text.txt").open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    with pytest.raises(ConfigError, match=r"67,108,865 bytes; calibration reads at most 67,108,86"):
        read_windows(TINY, tmp_path / "text.txt", 512, 64, read_model_config(TINY))


def test_a_source_whose_config_changed_is_another(tmp_path: Path) -> None:
    folder, out = toy(tmp_path), tmp_path / "out"
    begin(folder, out)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5_000.0}))
    with pytest.raises(ConfigError, match="was begun with another config"):
        write(folder, out)


def test_what_a_full_disk_interrupts_is_said_and_goes_on(tmp_path: Path) -> None:
    """As a limit on the size of a file, which a process of its own has."""
    folder, out = toy(tmp_path), tmp_path / "out"
    code = f"""
import resource
from octavo.quantization.job import QuantizeOptions
from octavo.quantization.writer import quantize_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
list(quantize_checkpoint(QuantizeOptions(
    model={str(folder)!r}, out={str(out)!r}, bits=4, group_size=32, threads=1
)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith(f"octavo.errors.ConfigError: --out {out}: ") and "too large" in last
    assert last.endswith("what is whole there is kept")
    write(folder, out)
    write(folder, tmp_path / "expected")
    assert contents(out) == contents(tmp_path / "expected")


def test_a_manifest_that_was_half_written_is_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "quantization.part").write_text("{")
    assert write(toy(tmp_path), out)


def test_awq_is_nearer_on_text_it_has_not_read(tmp_path: Path) -> None:
    source = shortened(tmp_path / "short", 1)
    options = replace(gptq(tmp_path), model=str(source), method="awq")
    list(quantize_checkpoint(options))
    write(source, tmp_path / "rtn", group_size=64)
    config = read_model_config(source)
    windows = read_windows(source, calibration(tmp_path, slice(20, 40)), 2048, 256, config)
    (mine,), (theirs,) = (layer_errors(source, tmp_path / part, windows) for part in ("out", "rtn"))
    assert make_engine(tmp_path / "out").quality.label == "ungated"
    # Measured: 0.94 to 0.99; a model this small has no inputs that stand out.
    assert (mine < theirs).all()
