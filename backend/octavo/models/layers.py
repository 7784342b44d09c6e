"""Parts of a decoder that hold weights or tables."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo import kernels
from octavo.models.model_config import RopeConfig
from octavo.models.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class Linear:
    """weight [out, in] as kernels.pack_linear gives it, bias [out] or None."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> "Linear":
        """From a plain weight [out, in]."""
        return cls(kernels.pack_linear(weight), bias)

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight, self.bias)

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, names: list[str], outs: list[int], width: int, bias: bool
    ) -> "Linear":
        """Matrices that share their input, stacked into one."""
        weights = [
            checkpoint.take(f"{n}.weight", out, width) for n, out in zip(names, outs, strict=True)
        ]
        if not bias:
            return cls.of(torch.cat(weights))
        biases = [checkpoint.take(f"{n}.bias", out) for n, out in zip(names, outs, strict=True)]
        return cls.of(torch.cat(weights), torch.cat(biases))


def rope_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Angle per position of each pair of a head, [head_dim / 2] float32.

    `linear` divides positions by the factor. `llama3` divides only the low frequencies, and
    blends between (Llama 3.1's scaling, as in transformers' modeling_rope_utils).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        rotations = rope.original_max_position * frequencies / (2 * math.pi)
        span = rope.high_freq_factor - rope.low_freq_factor
        kept = ((rotations - rope.low_freq_factor) / span).clamp(0, 1)
        return (1 - kept) * frequencies / rope.factor + kept * frequencies
    return frequencies


class RotaryTable:
    """Cosines and sines of every position, [max_position, head_dim / 2] float32."""

    def __init__(self, rope: RopeConfig, head_dim: int, max_position: int) -> None:
        positions = torch.arange(max_position, dtype=torch.float32)
        angles = torch.outer(positions, rope_frequencies(rope, head_dim))
        self._cos, self._sin = angles.cos(), angles.sin()

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T] → cosines and sines, [T, head_dim / 2] each."""
        return self._cos[positions], self._sin[positions]
