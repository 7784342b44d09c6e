"""How the GPU's kernels hold quantized weights.

A word of 16 bits holds a weight of each plane, 4 of 4 bits or 2 of 8 bits, plane 0 in the lowest
bits. A plane is `PLANE` inputs side by side, a unit is the planes of the same words: of
`PLANE` · 16 / bits inputs. Word p of a unit of inputs k0, k0 + 1, … so holds those k0 + p,
k0 + PLANE + p, …

Why so. Words are as wide as the numbers they become, so one load of a tile of words from shared
memory (ldmatrix) puts every weight into the register where the tensor cores want it, whatever its
plane: unpacking is a shift, a mask and an addition on two weights at a time, and no weight moves
between threads. A plane is a whole tile of its own for a product, so nothing is interleaved; its
inputs are a contiguous piece of the row of activations. And no group of scales is smaller than a
plane, so that a product of planes is scaled after it is summed: exact, and once for a group instead
of once for a weight.

A unit's words of all outputs lie together, [units, out, PLANE]: a tile of outputs is contiguous,
64 bytes of each, which threads copy 16 at a time.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.reference_weights import QuantizedWeight

PLANE = 32


@dataclass(frozen=True, slots=True)
class GpuLinear:
    """A weight [out, in] of numbers stored · scale, packed.

    words: [units, out, PLANE] int16; 4 bits are stored + 8, 8 bits two's complement
    scales: [groups, out] as given; or [1, out] float32 where `group_size` is None. What pads the
        inputs to whole units has the scale 0 or the weight 0
    dtype: of the inputs that it will be multiplied with
    num_bytes: what one product reads of it
    """

    words: Tensor
    scales: Tensor
    inputs: int
    bits: int
    group_size: int | None
    dtype: torch.dtype
    num_bytes: int

    @property
    def outputs(self) -> int:
        return self.words.shape[1]

    @property
    def units_per_step(self) -> int:
        """Units that are multiplied together: as many as the largest group takes."""
        unit = PLANE * 16 // self.bits
        return max(1, (self.group_size or 0) // unit)


def pack(
    weight: Tensor | QuantizedWeight, dtype: torch.dtype, device: torch.device | str | None = None
) -> Tensor | GpuLinear:
    """As `linear` reads it, for inputs of `dtype`, on `device` or where it lies; a plain weight
    as it is. Raises ValueError of a format that GPUs do not have."""
    if isinstance(weight, Tensor):
        return weight
    device = device or weight.stored.device
    bits, group_size = weight.bits, weight.group_size
    if weight.quantized_activations:
        raise ValueError(
            f"weights of {bits} bits with 8 bit activations (w{bits}a8) are the CPU's; on a GPU "
            f"use int{bits}"
        )
    if group_size not in (None, 32, 64, 128):
        raise ValueError(f"groups of {group_size} weights; the GPU's kernels have 32, 64 and 128")
    outputs, inputs = weight.stored.shape
    step = max(PLANE * 16 // bits, group_size or 0)
    num_padded = -inputs % step
    stored = F.pad(weight.stored.to(device), (0, num_padded))
    scales = weight.scales.to(device)
    if group_size is not None:
        scales = F.pad(scales, (0, num_padded // group_size))
    # A byte of a word for each plane, or for each pair of them.
    if bits == 4:
        nibbles = (stored + 8).view(torch.uint8).view(outputs, -1, 2, 2, PLANE)
        in_bytes = nibbles[..., 0, :] | (nibbles[..., 1, :] << 4)
    else:
        in_bytes = stored.view(torch.uint8).view(outputs, -1, 2, PLANE)
    # The first byte is the lower one on every machine that has such a GPU.
    words = in_bytes.permute(1, 0, 3, 2).contiguous().view(torch.int16).squeeze(-1)
    scales = scales.T.contiguous()
    return GpuLinear(
        words, scales, inputs, bits, group_size, dtype, words.nbytes + scales.nbytes
    )  # fmt: skip
