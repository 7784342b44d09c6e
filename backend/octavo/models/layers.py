"""Parts of a decoder that hold weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo import kernels
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
        cls,
        checkpoint: Checkpoint,
        names: tuple[str, ...],
        outs: tuple[int, ...],
        width: int,
        bias: bool,
    ) -> "Linear":
        """Matrices that share their input, stacked into one. One name for several `outs`: the
        checkpoint holds them stacked."""
        if len(names) == 1:
            outs = (sum(outs),)
        weights = [
            checkpoint.take(f"{n}.weight", out, width) for n, out in zip(names, outs, strict=True)
        ]
        if not bias:
            return cls.of(torch.cat(weights))
        biases = [checkpoint.take(f"{n}.bias", out) for n, out in zip(names, outs, strict=True)]
        return cls.of(torch.cat(weights), torch.cat(biases))


def load_norm(checkpoint: Checkpoint, name: str, width: int, offset: float) -> Tensor:
    """The weight of an RMSNorm, [width]. One with an offset is float32, which leaves the product
    with it unrounded until the end, as where this is done (Gemma) it was trained."""
    weight = checkpoint.take(f"{name}.weight", width)
    return weight.float() + offset if offset else weight
