"""Quantizes a checkpoint folder into another one, layer by layer.

Each layer is a shard of its own, written whole and then renamed, listed in the manifest and in the
index. What is interrupted goes on behind the last one. config.json comes last, so that a folder
which is not finished is not a checkpoint.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels import QuantizedWeight, quantize_weight
from octavo.models.config_section import read_json
from octavo.models.model_config import ModelConfig, read_model_config
from octavo.models.weights import Checkpoint, checkpoint_digest
from octavo.quantization.awq import fold_scales
from octavo.quantization.calibration import Calibration, read_windows
from octavo.quantization.compressed_tensors import packed_tensors, quantization_config
from octavo.quantization.gptq import Hessian, quantize_gptq
from octavo.quantization.job import QuantizeOptions
from octavo.quantization.weights import GROUP_SIZES, ROUNDING_VERSION, StoredFormat

MANIFEST = "quantization.json"
Matrix = tuple[str, int, int]  # name, outputs, inputs
_INDEX = "model.safetensors.index.json"
# Beside the weights; all else of a folder may be of other frameworks, or code.
_COPIED = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template*", "LICENSE*",
)  # fmt: skip


def quantize_checkpoint(options: QuantizeOptions) -> Iterator[dict[str, Any]]:
    """Yields {"done", "of", "kept"} at the beginning and after each shard; `kept` were there
    already. Raises ConfigError."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        job = _Job(options)
        total = job.config.num_layers + 1
        kept = len(job.shards)
        yield {"done": kept, "of": total, "kept": kept}
        for done in job.run():
            yield {"done": done, "of": total, "kept": kept}
    except (OSError, SafetensorError) as exc:  # a full disk, above all
        raise ConfigError(f"--out {options.out}: {exc}; what is whole there is kept") from None


class _Job:
    def __init__(self, options: QuantizeOptions) -> None:
        self.folder, self.out = Path(options.model), Path(options.out)
        self.options = options
        self.config = read_model_config(self.folder)
        if self.config.stored_format is not None:
            raise ConfigError(
                f"{self.folder}: its weights are quantized already ({self.config.stored_format}); "
                "quantize the checkpoint that they were made from"
            )
        self._matrices = _matrices(self.config)
        _check_groups(self._matrices, options)
        windows: list[list[int]] = []
        if options.method != "rtn":
            if options.calibration is None:
                raise ConfigError(
                    f"--method {options.method} reads text: name a file with --calibration"
                )
            windows = read_windows(
                self.folder, Path(options.calibration), options.calibration_tokens,
                options.window, self.config,
            )  # fmt: skip
        self._windows = windows
        self._manifest = self._open_manifest()
        self.shards: dict[str, Any] = self._manifest["shards"]  # file → its SHA-256 and bytes

    def _open_manifest(self) -> dict[str, Any]:
        """Of this job, begun now or earlier. Raises ConfigError if the folder is another's."""
        options = {
            key: value
            for key, value in asdict(self.options).items()
            if key not in ("model", "out", "calibration", "threads")
        }
        threads = self.options.threads or torch.get_num_threads()
        wanted = {
            "options": options,
            "rounding": ROUNDING_VERSION,
            "source": checkpoint_digest(self.folder, threads).hex(),
            "config": _digest(self.folder / "config.json"),
            "calibration": sha256(json.dumps(self._windows).encode()).hexdigest(),
        }
        path = self.out / MANIFEST
        if (self.out / "config.json").exists():
            raise ConfigError(f"--out {self.out}: holds a checkpoint; nothing is overwritten")
        if not path.exists():
            if self.out.exists() and not (self.out.is_dir() and _holds_nothing(self.out)):
                raise ConfigError(f"--out {self.out}: is not an empty folder")
            self.out.mkdir(parents=True, exist_ok=True)
            _write_json(path, {**wanted, "shards": {}})
        manifest = read_json(path)
        for key, value in wanted.items():
            if manifest.get(key) != value:
                raise ConfigError(
                    f"--out {self.out}: was begun with another {key} ({manifest.get(key)}; now "
                    f"{value}); use a new folder"
                )
        for name, own in manifest["shards"].items():
            if not (self.out / name).is_file() or _digest(self.out / name) != own["sha256"]:
                raise ConfigError(f"--out {self.out}: {name} is not what was written; use a new "
                                  "folder")  # fmt: skip
        return manifest

    def run(self) -> Iterator[int]:
        """The number of shards that are done, after each new one."""
        quantized = replace(
            self.config,
            stored_format=StoredFormat("pack-quantized", self.options.bits, self._group_size),
        )
        with Checkpoint(self.folder, torch.float32) as source:
            calibration = Calibration(self.config, source, self._windows) if self._windows else None
            for index in range(self.config.num_layers):
                name = self._shard_name(index)
                if name not in self.shards:
                    self._write_shard(name, self._layer(source, index, calibration))
                    yield len(self.shards)
                if calibration is not None and index + 1 < self.config.num_layers:
                    # From the file, also when it was written just now: so that what was
                    # interrupted ends with the same bytes.
                    with Checkpoint(self.out, torch.float32) as written:
                        calibration.advance(written, index, quantized)
            name = self._shard_name(self.config.num_layers)
            if name not in self.shards:
                rest = [each for each in source.names if not each.startswith("model.layers.")]
                self._write_shard(name, {each: source.as_stored(each) for each in rest})
            self._finish()
            yield len(self.shards)

    @property
    def _group_size(self) -> int | None:
        return self.options.group_size

    def _shard_name(self, index: int) -> str:
        return f"model-{index + 1:05}-of-{self.config.num_layers + 1:05}.safetensors"

    @torch.inference_mode()
    def _layer(
        self, source: Checkpoint, index: int, calibration: Calibration | None
    ) -> dict[str, Tensor]:
        """All tensors of one layer, its matrices quantized."""
        prefix, bits = f"model.layers.{index}.", self.options.bits
        weights: dict[str, Tensor] = {}
        for name, out, width in (each for group in self._matrices for each in group):
            weights[name] = source.take(f"{prefix}{name}.weight", out, width)
            if not weights[name].isfinite().all():
                raise ConfigError(
                    f"checkpoint: tensor {prefix}{name}.weight holds numbers that are not finite"
                )
        matrices = {f"{prefix}{name}.weight" for name in weights}
        others = {
            name: source.as_stored(name)
            for name in source.names
            if name.startswith(prefix) and name not in matrices
        }
        hessians = self._hessians(source, index, calibration)
        if self.options.method == "awq":
            names = {name.removeprefix(prefix).removesuffix(".weight"): name for name in others}
            folded = {short: others[name] for short, name in names.items()}
            fold_scales(weights, folded, hessians, self.config, bits, self._group_size)
            others = {names[short]: tensor for short, tensor in folded.items()}
        tensors = dict(others)
        for group in self._matrices:
            for name, own in self._quantized(group, weights, hessians):
                tensors |= packed_tensors(prefix + name, own)
        return tensors

    def _quantized(
        self, group: list[Matrix], weights: dict[str, Tensor], hessians: dict[str, Tensor]
    ) -> Iterator[tuple[str, QuantizedWeight]]:
        """Of matrices that share their input. Their weights are given up as they are used."""
        bits, names = self.options.bits, [name for name, _, _ in group]
        if self.options.method != "gptq":
            for name in names:
                yield name, quantize_weight(weights.pop(name), bits, self._group_size, False)
            return
        hessian = hessians[names[0]]
        stacked = torch.cat([weights.pop(name) for name in names])
        yield from zip(
            names,
            quantize_gptq(stacked, hessian, bits, self._group_size).split([o for _, o, _ in group]),
            strict=True,
        )

    def _hessians(
        self, source: Checkpoint, index: int, calibration: Calibration | None
    ) -> dict[str, Tensor]:
        """Of a layer's inputs, each by the name of the first matrix that it meets."""
        if calibration is None:
            return {}
        inputs = {group[0][0]: Hessian(group[0][2]) for group in self._matrices}
        calibration.observe(source, index, lambda name, x: inputs[name].add(x))
        return {name: own.sum for name, own in inputs.items()}

    def _write_shard(self, name: str, tensors: dict[str, Tensor]) -> None:
        path = self.out / name
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata={"format": "pt"})
        part.chmod(0o644)  # safetensors makes it the owner's alone
        own = {"sha256": _digest(part), "bytes": sum(each.nbytes for each in tensors.values())}
        os.replace(part, path)
        # The manifest comes last: what it does not have is written again, index and all.
        weight_map = {}
        if (self.out / _INDEX).exists():
            weight_map = read_json(self.out / _INDEX)["weight_map"]
        total_size = sum(each["bytes"] for each in [*self.shards.values(), own])
        index = {
            "metadata": {"total_size": total_size},
            "weight_map": {**weight_map, **dict.fromkeys(sorted(tensors), name)},
        }
        _write_json(self.out / _INDEX, index)
        self.shards[name] = own
        _write_json(self.out / MANIFEST, self._manifest)

    def _finish(self) -> None:
        for pattern in _COPIED:
            for path in self.folder.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, self.out / path.name)
        config = read_json(self.folder / "config.json")
        own = quantization_config(self.options.bits, self._group_size)
        _write_json(self.out / "config.json", {**config, "quantization_config": own})


def _matrices(config: ModelConfig) -> list[list[Matrix]]:
    """Of a layer: name, outputs and inputs of each; those that share their input together."""
    hidden, inner, own = config.hidden_size, config.intermediate_size, config.tensor_names
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim

    def stacked(names: tuple[str, ...], outs: tuple[int, ...]) -> list[Matrix]:
        outs = (sum(outs),) if len(names) == 1 else outs
        return [(name, out, hidden) for name, out in zip(names, outs, strict=True)]

    return [
        stacked(own.qkv, (q_size, kv_size, kv_size)),
        [("self_attn.o_proj", hidden, q_size)],
        stacked(own.gate_up, (inner, inner)),
        [("mlp.down_proj", hidden, inner)],
    ]


def _check_groups(matrices: list[list[Matrix]], options: QuantizeOptions) -> None:
    unit = options.group_size or 32 // options.bits  # what fills groups, or words
    widths = {width: name for group in matrices for name, _, width in group}
    for width, name in widths.items():
        if width % unit:
            fitting = [str(size) for size in GROUP_SIZES if all(w % size == 0 for w in widths)]
            cure = f"{' or '.join(fitting)} fits" if fitting else "no group size fits"
            raise ConfigError(
                f"--group-size {options.group_size}: rows of {name} have {width} weights, which "
                f"are no whole groups; {cure} all matrices"
            )


def _holds_nothing(folder: Path) -> bool:
    """But for a manifest that was interrupted while it was first written."""
    return {path.name for path in folder.iterdir()} <= {Path(MANIFEST).with_suffix(".part").name}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        own = sha256()
        while piece := file.read(2**22):
            own.update(piece)
    return own.hexdigest()
