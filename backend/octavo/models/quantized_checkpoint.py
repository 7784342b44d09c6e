"""Reads checkpoints whose matrices are quantized already, number for number.

compressed-tensors (llm-compressor, vLLM), GPTQ (AutoGPTQ, GPTQModel) and AWQ (AutoAWQ) differ in
which way numbers are packed into words and in how a zero is written; what they mean is the same
stored · scale as in QuantizedWeight, with scales of the checkpoint's own type.
"""

import torch
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels import QuantizedWeight
from octavo.models.weights import Checkpoint
from octavo.quantization.weights import StoredFormat

_SCALES = (torch.bfloat16, torch.float16, torch.float32)
# AutoAWQ packs 8 outputs into a word in this order, lowest bits first: 0 2 4 6 1 3 5 7. So output
# i is the nibble …
_AWQ_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)


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
