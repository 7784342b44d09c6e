"""Reads checkpoints whose matrices are quantized already, number for number.

compressed-tensors (llm-compressor, vLLM), GPTQ (AutoGPTQ, GPTQModel) and AWQ (AutoAWQ) differ in
which way numbers are packed into words and in how a zero is written; what they mean is the same
stored · scale as in QuantizedWeight, with scales of the checkpoint's own type.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.kernels import QuantizedWeight
from octavo.models.config_section import ConfigSection
from octavo.models.weights import Checkpoint
from octavo.quantization.weights import GROUP_SIZES, StoredFormat

_KEY = "quantization_config"
_SCALES = (torch.bfloat16, torch.float16, torch.float32)
_BITS = (4, 8)
# AutoAWQ packs 8 outputs into a word in this order, lowest bits first: 0 2 4 6 1 3 5 7. So output
# i is the nibble …
_AWQ_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)


def read_stored_format(config: ConfigSection) -> StoredFormat | None:
    """What `quantization_config` says, None without one. Raises UnsupportedModelError, naming key
    and value, if that is not served."""
    if config.values.get(_KEY) is None:
        return None
    values = config.values[_KEY]
    if not isinstance(values, dict):
        raise UnsupportedModelError(_KEY, values, "an object")
    section = ConfigSection(values, _KEY)
    readers = {"compressed-tensors": _compressed_tensors, "gptq": _gptq, "awq": _awq}
    method = values.get("quant_method")
    if not isinstance(method, str) or method not in readers:
        raise UnsupportedModelError(section.path("quant_method"), method, ", ".join(readers))
    return readers[method](section)


def _compressed_tensors(section: ConfigSection) -> StoredFormat:
    _only(section, "quantization_status", None, "compressed", "frozen")
    _only(section, "format", "pack-quantized", "int-quantized")
    _only(section, "kv_cache_scheme", None)
    _only(section, "sparsity_config", None, {})
    _only(section, "transform_config", None, {})
    groups = section.values.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1 or not _are_objects(groups):
        raise UnsupportedModelError(section.path("config_groups"), groups, "one group of matrices")
    ((name, values),) = groups.items()
    group = ConfigSection(values, section.path(f"config_groups.{name}"))
    _only(group, "targets", ["Linear"])
    _only(group, "format", None, section.values["format"])
    _only(group, "output_activations", None)
    weights = ConfigSection(_object(group, "weights"), group.path("weights"))
    bits = _bits(weights, "num_bits")
    _only(weights, "type", "int", None)
    _only(weights, "symmetric", True, None)
    _only(weights, "dynamic", False, None)
    # "weight" is an order while rounding only: columns lie as they did.
    _only(weights, "actorder", None, False, "weight", "static")
    _only(weights, "strategy", "group", "channel")
    is_grouped = weights.values["strategy"] == "group"
    group_size = _group_size(weights) if is_grouped else None
    quantized_activations = group.values.get("input_activations") is not None
    if quantized_activations:
        inputs = ConfigSection(_object(group, "input_activations"), group.path("input_activations"))
        _only(inputs, "num_bits", 8)
        _only(inputs, "type", "int", None)
        _only(inputs, "symmetric", True, None)
        _only(inputs, "strategy", "token")
        _only(inputs, "dynamic", True)
    layout: Literal["pack-quantized", "int-quantized"] = section.values["format"]
    if layout == "int-quantized" and bits != 8:
        raise UnsupportedModelError(weights.path("num_bits"), bits, "8 with 'int-quantized'")
    return StoredFormat(layout, bits, group_size, quantized_activations)


def _gptq(section: ConfigSection) -> StoredFormat:
    bits = _bits(section, "bits")
    _only(section, "sym", True)
    _only(section, "desc_act", False, None)
    _only(section, "checkpoint_format", "gptq", "gptq_v2", None)
    _only(section, "pack_dtype", None, "int32")
    _only(section, "dynamic", None, {})
    is_v2 = section.values.get("checkpoint_format") == "gptq_v2"
    return StoredFormat("gptq", bits, _group_size(section), zero_offset=0 if is_v2 else 1)


def _awq(section: ConfigSection) -> StoredFormat:
    _only(section, "bits", 4)
    _only(section, "zero_point", True, None)
    version = section.values.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise UnsupportedModelError(section.path("version"), version, "'gemm'")
    return StoredFormat("awq", 4, _group_size(section))


def _only(section: ConfigSection, key: str, *supported: object) -> None:
    """Refuses all but `supported`; True is not 1. An absent key is None."""
    value = section.values.get(key)
    if not any(value == each and type(value) is type(each) for each in supported):
        raise UnsupportedModelError(section.path(key), value, " or ".join(map(repr, supported)))


def _are_objects(values: dict[str, Any]) -> bool:
    return all(isinstance(value, dict) for value in values.values())


def _object(section: ConfigSection, key: str) -> dict[str, Any]:
    value = section.values.get(key)
    if not isinstance(value, dict):
        raise UnsupportedModelError(section.path(key), value, "an object")
    return value


def _bits(section: ConfigSection, key: str) -> int:
    _only(section, key, *_BITS)
    return int(section.values[key])


def _group_size(section: ConfigSection) -> int | None:
    """-1: a row is one group."""
    _only(section, "group_size", *GROUP_SIZES, -1)
    size = int(section.values["group_size"])
    return None if size == -1 else size


def take_quantized(
    checkpoint: Checkpoint, own: StoredFormat, name: str, out: int, width: int
) -> QuantizedWeight | None:
    """The matrix `name` [out, width]; None if the checkpoint holds it unquantized.

    Raises ConfigError, naming the tensor, if one is missing, of another shape or type, not finite,
    or means what the format cannot hold.
    """
    mark = {"pack-quantized": "weight_packed", "int-quantized": "weight_scale"}
    if f"{name}.{mark.get(own.layout, 'qweight')}" not in checkpoint:
        return None
    length = own.group_size or width
    if width % length:
        raise ConfigError(
            f"checkpoint: matrix {name} {[out, width]} has rows of no whole groups of {length}"
        )
    matrix = _Matrix(checkpoint, own, name, out, width, width // length)
    stored, scales = {
        "pack-quantized": matrix.pack_quantized,
        "int-quantized": matrix.int_quantized,
        "gptq": matrix.gptq,
        "awq": matrix.awq,
    }[own.layout]()
    if own.group_size is None:
        scales = scales.float()
    return QuantizedWeight(
        stored, scales, own.group_size, own.quantized_activations, own.weight_bits
    )


class _Matrix:
    """One matrix's tensors → stored [out, width] int8, scales [out, groups]."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        own: StoredFormat,
        name: str,
        out: int,
        width: int,
        groups: int,
    ) -> None:
        self._checkpoint, self._own, self._name = checkpoint, own, name
        self._out, self._width, self._groups = out, width, groups

    def pack_quantized(self) -> tuple[Tensor, Tensor]:
        words = -(-self._width * self._own.bits // 32)
        packed = self._take("weight_packed", (self._out, words), torch.int32)
        if f"{self._name}.weight_shape" in self._checkpoint:
            shape = self._take("weight_shape", (2,), torch.int64, torch.int32).tolist()
            if shape != [self._out, self._width]:
                raise ConfigError(
                    f"checkpoint: tensor {self._name}.weight_shape says {shape}; config.json asks "
                    f"for {[self._out, self._width]}"
                )
        numbers = _numbers(packed, self._own.bits)[:, : self._width]
        return _centred(numbers, self._own.bits), self._scales("weight_scale")

    def int_quantized(self) -> tuple[Tensor, Tensor]:
        stored = self._take("weight", (self._out, self._width), torch.int8)
        return stored, self._scales("weight_scale")

    def gptq(self) -> tuple[Tensor, Tensor]:
        bits, per_word = self._own.bits, 32 // self._own.bits
        self._check_whole_words(per_word)
        packed = self._take("qweight", (self._width // per_word, self._out), torch.int32)
        zeros = self._take("qzeros", (self._groups, self._out // per_word), torch.int32)
        zero = 1 << (bits - 1)
        if (_numbers(zeros, bits) != zero - self._own.zero_offset).any():
            raise ConfigError(
                f"checkpoint: tensor {self._name}.qzeros is not {zero - self._own.zero_offset} "
                "throughout, so the weights are asymmetric; supported: symmetric GPTQ"
            )
        if f"{self._name}.g_idx" in self._checkpoint:
            groups = self._take("g_idx", (self._width,), torch.int32, torch.int64)
            length = self._width // self._groups
            in_order = torch.arange(self._width, device=groups.device) // length
            if not torch.equal(groups.long(), in_order):
                raise ConfigError(
                    f"checkpoint: tensor {self._name}.g_idx orders inputs by activation "
                    "(desc_act); supported: groups of inputs side by side"
                )
        # [words, out, numbers of a word] → [out, words · numbers]
        numbers = _numbers(packed.unsqueeze(-1), bits).transpose(0, 1).flatten(1)
        return _centred(numbers, bits), self._transposed_scales()

    def awq(self) -> tuple[Tensor, Tensor]:
        self._check_whole_words(8)
        packed = self._take("qweight", (self._width, self._out // 8), torch.int32)
        zeros = self._take("qzeros", (self._groups, self._out // 8), torch.int32)
        numbers, zeros = _awq_numbers(packed), _awq_numbers(zeros)
        # q − zero is −15 to 15: 8 bits hold it exactly, where 4 do only with the zero beside it.
        centred = numbers.view(torch.int8).view(self._groups, -1, self._out)
        centred = centred - zeros.view(torch.int8).unsqueeze(1)
        return centred.flatten(0, 1).T.contiguous(), self._transposed_scales()

    def _check_whole_words(self, per_word: int) -> None:
        if self._out % per_word or self._width % per_word:
            raise ConfigError(
                f"checkpoint: matrix {self._name} {[self._out, self._width]} does not fill words "
                f"of {per_word} numbers"
            )

    def _transposed_scales(self) -> Tensor:
        return self._checked("scales", (self._groups, self._out)).T.contiguous()

    def _scales(self, part: str) -> Tensor:
        return self._checked(part, (self._out, self._groups))

    def _checked(self, part: str, shape: tuple[int, int]) -> Tensor:
        scales = self._take(part, shape, *_SCALES)
        if not scales.isfinite().all():
            raise ConfigError(
                f"checkpoint: tensor {self._name}.{part} holds numbers that are not finite"
            )
        return scales

    def _take(self, part: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        return self._checkpoint.take_as_stored(f"{self._name}.{part}", shape, dtypes)


def _numbers(words: Tensor, bits: int) -> Tensor:
    """words [..., n] int32 → [..., n · 32 / bits] uint8, lowest bits first."""
    in_bytes = words.contiguous().view(torch.uint8)
    if bits == 8:
        return in_bytes
    return torch.stack((in_bytes & 15, in_bytes >> 4), dim=-1).flatten(-2)


def _centred(numbers: Tensor, bits: int) -> Tensor:
    """uint8 with the zero in the middle of its range → int8."""
    return (numbers - (1 << (bits - 1))).view(torch.int8).contiguous()


def _awq_numbers(words: Tensor) -> Tensor:
    """words [rows, n] int32 → [rows, 8 · n] uint8 in the order of outputs."""
    nibbles = _numbers(words.unsqueeze(-1), 4)
    return nibbles[..., list(_AWQ_NIBBLE)].flatten(1)
