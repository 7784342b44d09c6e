"""Formats of weights: how a matrix is stored, in how many bytes, and what it is multiplied with.

Standard library only: whoever plans memory counts with it, without torch.
"""

from dataclasses import dataclass, replace
from typing import Literal

from octavo.errors import ConfigError

# Of what becomes of a weight; raised when kernels.quantize_weight rounds it another way.
ROUNDING_VERSION = 1

GROUP_SIZES = (32, 64, 128)

Role = Literal["layer", "lm_head"]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How matrices [out, in] are stored, and the type in which their input meets them, both by
    torch's names.

    A quantized weight is stored · scale, with a 16 bit scale for each `group_size` of them along
    the input or, without groups, one float32 scale for each row. An int8 input is quantized
    as it comes, token by token. What rounds and multiplies is kernels.quantize_weight and
    kernels.linear.
    """

    name: str
    weight_bits: int
    group_size: int | None
    activation: str

    def __str__(self) -> str:
        return f"{self.name} in groups of {self.group_size}" if self.group_size else self.name

    @property
    def is_quantized(self) -> bool:
        return self.weight_bits <= 8

    @property
    def quantized_activations(self) -> bool:
        return self.activation == "int8"

    @property
    def bits_per_weight(self) -> float:
        """With the scales of groups; those of rows are next to nothing."""
        return self.weight_bits + (16 / self.group_size if self.group_size else 0)

    def num_bytes(self, out: int, width: int) -> int:
        """Of a matrix [out, width], its weights packed, with its scales."""
        weights = out * width * self.weight_bits // 8
        if self.group_size is not None:
            assert width % self.group_size == 0
            return weights + 2 * (out * width // self.group_size)
        return weights + (4 * out if self.is_quantized else 0)

    def check_fits(self, tensor: str, width: int) -> None:
        """Raises ConfigError if the rows of `tensor`, `width` weights each, are no whole groups."""
        if self.group_size is None or width % self.group_size == 0:
            return
        fitting = [str(size) for size in GROUP_SIZES if width % size == 0]
        cure = f"{' or '.join(fitting)} fits it" if fitting else "use 'int8' or 'w8a8' here"
        raise ConfigError(
            f"weight_group_size = {self.group_size}: tensor {tensor} has rows of {width} weights, "
            f"which are no whole groups; {cure}"
        )


WEIGHT_FORMATS = {
    own.name: own
    for own in (
        WeightFormat("float32", 32, None, "float32"),
        WeightFormat("bfloat16", 16, None, "bfloat16"),
        WeightFormat("float16", 16, None, "float16"),
        WeightFormat("int8", 8, None, "bfloat16"),
        WeightFormat("int4", 4, 128, "bfloat16"),
        WeightFormat("w8a8", 8, None, "int8"),
        WeightFormat("w4a8", 4, 128, "int8"),
    )
}


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """How a checkpoint holds the matrices that it has quantized.

    layout: of the tensors: two of compressed-tensors, GPTQ's or AWQ's
    bits: of a number in the file
    zero_offset: what GPTQ's files take off their zero points
    """

    layout: Literal["pack-quantized", "int-quantized", "gptq", "awq"]
    bits: int
    group_size: int | None
    quantized_activations: bool = False
    zero_offset: int = 0

    def __str__(self) -> str:
        groups = f" in groups of {self.group_size}" if self.group_size else ""
        return f"{self.layout} of {self.bits} bits{groups}"

    @property
    def weight_bits(self) -> int:
        """Of a number once it is loaded. AWQ's, less their zero points, take 5 of 8 bits."""
        return 8 if self.layout == "awq" else self.bits

    def weight_format(self, compute_dtype: str) -> WeightFormat:
        """What it is held as."""
        bits, is_w8a8 = self.weight_bits, self.quantized_activations
        name = f"w{bits}a8" if is_w8a8 else f"int{bits}"
        return WeightFormat(name, bits, self.group_size, "int8" if is_w8a8 else compute_dtype)


def weight_format(
    name: str, group_size: int, compute_dtype: str, stored: StoredFormat | None = None
) -> WeightFormat:
    """Of a setting: "auto" stores weights as the checkpoint has quantized them or, if it has not,
    as they are computed. Raises ConfigError if they would be rounded twice."""
    if stored is not None:
        if name != "auto":
            raise ConfigError(
                f"weight_format = {name!r}: the checkpoint's weights are quantized already "
                f"({stored}); use 'auto', which serves them as they are, or the checkpoint that "
                "they were made from"
            )
        return stored.weight_format(compute_dtype)
    own = WEIGHT_FORMATS[compute_dtype if name == "auto" else name]
    return replace(
        own,
        group_size=None if own.group_size is None else group_size,
        activation="int8" if own.quantized_activations else compute_dtype,
    )


def matrix_format(own: WeightFormat, role: Role, lm_head_format: str = "auto") -> WeightFormat:
    """What `own` means for one matrix. The lm_head, which tells tokens apart, keeps 8 bits where
    the layers have 4, as in OpenVINO and llama.cpp; or the 16 of `lm_head_format`, as in vLLM."""
    if role == "layer" or not own.is_quantized:
        return own
    if lm_head_format != "auto":
        return WEIGHT_FORMATS[lm_head_format]
    name = "w8a8" if own.quantized_activations else "int8"
    return replace(WEIGHT_FORMATS[name], activation=own.activation)
