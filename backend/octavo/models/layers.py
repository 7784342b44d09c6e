"""Parts of a decoder that hold weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo import kernels
from octavo.errors import ConfigError
from octavo.kernels import QuantizedWeight
from octavo.models.weights import Checkpoint
from octavo.quantization.weights import WeightFormat


@dataclass(frozen=True, slots=True)
class Linear:
    """weight [out, in] as kernels.pack_linear gives it, bias [out] or None. num_bytes: of both, as
    the weight's format packs it."""

    weight: kernels.PackedWeight
    bias: Tensor | None
    num_bytes: int

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight, self.bias)

    @classmethod
    def of(cls, name: str, weight: Tensor, own: WeightFormat) -> "Linear":
        """From the tensor `name`, [out, in]. Raises ConfigError if `own` cannot hold it."""
        return cls._pack(_stored(name, weight, own), own)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        names: tuple[str, ...],
        outs: tuple[int, ...],
        width: int,
        bias: bool,
        own: WeightFormat,
    ) -> "Linear":
        """Matrices that share their input, stacked into one. One name for several `outs`: the
        checkpoint holds them stacked. Each is rounded before the next one is read."""
        if len(names) == 1:
            outs = (sum(outs),)

        def take(name: str, out: int) -> Tensor | QuantizedWeight:
            name = f"{name}.weight"
            return _stored(name, checkpoint.take(name, out, width), own)

        stacked = _stack([take(n, out) for n, out in zip(names, outs, strict=True)])
        if not bias:
            return cls._pack(stacked, own)
        biases = [checkpoint.take(f"{n}.bias", out) for n, out in zip(names, outs, strict=True)]
        return cls._pack(stacked, own, torch.cat(biases))

    @classmethod
    def _pack(
        cls, weight: Tensor | QuantizedWeight, own: WeightFormat, bias: Tensor | None = None
    ) -> "Linear":
        shape = (weight.stored if isinstance(weight, QuantizedWeight) else weight).shape
        num_bytes = own.num_bytes(*shape) + (0 if bias is None else bias.nbytes)
        return cls(kernels.pack_linear(weight), bias, num_bytes)


def _stored(name: str, weight: Tensor, own: WeightFormat) -> Tensor | QuantizedWeight:
    """weight as `own` stores it. Raises ConfigError if that cannot be."""
    if not own.is_quantized:
        return weight
    own.check_fits(name, weight.shape[1])
    if not weight.isfinite().all():
        raise ConfigError(
            f"checkpoint: tensor {name} holds numbers that are not finite; {own.name} has none"
        )
    return kernels.quantize_weight(
        weight, own.weight_bits, own.group_size, own.quantized_activations
    )


def _stack(parts: list[Tensor | QuantizedWeight]) -> Tensor | QuantizedWeight:
    if len(parts) == 1:
        return parts[0]
    plain = [part for part in parts if isinstance(part, Tensor)]
    quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
    return QuantizedWeight.stack(quantized) if quantized else torch.cat(plain)


def load_norm(checkpoint: Checkpoint, name: str, width: int, offset: float) -> Tensor:
    """The weight of an RMSNorm, [width]. One with an offset is float32, which leaves the product
    with it unrounded until the end, as where this is done (Gemma) it was trained."""
    weight = checkpoint.take(f"{name}.weight", width)
    return weight.float() + offset if offset else weight
