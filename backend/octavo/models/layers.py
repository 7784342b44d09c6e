"""Parts of a decoder that hold weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo import kernels
from octavo.errors import ConfigError
from octavo.kernels import QuantizedWeight
from octavo.kernels.cpu import Library
from octavo.kernels.operators import Operators
from octavo.models.quantized_checkpoint import take_quantized
from octavo.models.weights import Checkpoint
from octavo.quantization.weights import StoredFormat, WeightFormat


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix [out, in] and its bias [out] or None; or both in one, packed for native kernels.
    num_bytes: of both, as `format`, the weight's, packs them."""

    weight: kernels.PackedWeight
    bias: Tensor | None
    num_bytes: int
    format: WeightFormat
    operators: Operators

    def __call__(self, x: Tensor) -> Tensor:
        return self.operators.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LinearLoader:
    """Takes matrices out of a checkpoint, packed for the kernels: as it has quantized them in the
    format `stored`, or else rounded to `own`."""

    checkpoint: Checkpoint
    own: WeightFormat
    library: Library | None
    operators: Operators
    stored: StoredFormat | None = None

    def of(self, name: str, weight: Tensor) -> Linear:
        """From the tensor `name`, [out, in]. Raises ConfigError if the format cannot hold it."""
        return self._pack(self._stored(name, weight), None, False)

    def load(
        self,
        names: tuple[str, ...],
        outs: tuple[int, ...],
        width: int,
        bias: bool,
        *,
        is_gated: bool = False,
    ) -> Linear:
        """Matrices that share their input, stacked into one. One name for several `outs`: the
        checkpoint holds them stacked. Each is rounded before the next one is read. Raises
        ConfigError."""
        if len(names) == 1:
            outs = (sum(outs),)
        parts = [self._matrix(n, out, width) for n, out in zip(names, outs, strict=True)]
        biases = [
            self.checkpoint.take(f"{n}.bias", out)
            for n, out in zip(names, outs, strict=True)
            if bias
        ]
        if not bias:
            self._drop_empty_biases(names, outs)
        return self._pack(_stack(names, parts), torch.cat(biases) if bias else None, is_gated)

    def _matrix(self, name: str, out: int, width: int) -> Tensor | QuantizedWeight:
        if self.stored is not None:
            quantized = take_quantized(self.checkpoint, self.stored, name, out, width)
            if quantized is not None:
                return quantized
        return self._stored(f"{name}.weight", self.checkpoint.take(f"{name}.weight", out, width))

    def _drop_empty_biases(self, names: tuple[str, ...], outs: tuple[int, ...]) -> None:
        """Older GPTQ checkpoints have one, all zeros, for every matrix."""
        if self.stored is None or self.stored.layout != "gptq":
            return
        for name, out in zip(names, outs, strict=True):
            if (
                f"{name}.bias" in self.checkpoint
                and self.checkpoint.take(f"{name}.bias", out).any()
            ):
                raise ConfigError(f"checkpoint: tensor {name}.bias: the decoder has no bias here")

    def _pack(
        self, weight: Tensor | QuantizedWeight, bias: Tensor | None, is_gated: bool
    ) -> Linear:
        dtype, own, num_bytes = self.checkpoint.dtype, self.own, 0 if bias is None else bias.nbytes
        if isinstance(weight, QuantizedWeight):
            num_bytes += weight.stored.numel() * weight.bits // 8 + weight.scales.nbytes
            if self.stored is not None:
                own = self.stored.weight_format(str(dtype).removeprefix("torch."))
        else:
            num_bytes += weight.nbytes
        if self.library is None:
            packed = self.operators.pack(weight, dtype)
            return Linear(packed, bias, num_bytes, own, self.operators)
        native = self.library.pack(weight, dtype, bias, is_gated=is_gated)
        return Linear(native, None, num_bytes, own, self.operators)

    def _stored(self, name: str, weight: Tensor) -> Tensor | QuantizedWeight:
        """weight as the format stores it. Raises ConfigError if that cannot be."""
        own = self.own
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


def _stack(
    names: tuple[str, ...], parts: list[Tensor | QuantizedWeight]
) -> Tensor | QuantizedWeight:
    if len(parts) == 1:
        return parts[0]
    plain = [part for part in parts if isinstance(part, Tensor)]
    quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
    if plain and quantized:
        raise ConfigError(
            f"checkpoint: of {', '.join(names)}, which are computed as one matrix, only "
            f"{len(quantized)} are quantized; supported: all or none"
        )
    return QuantizedWeight.stack(quantized) if quantized else torch.cat(plain)


def load_norm(checkpoint: Checkpoint, name: str, width: int, offset: float) -> Tensor:
    """The weight of an RMSNorm, [width]. One with an offset is float32, which leaves the product
    with it unrounded until the end, as where this is done (Gemma) it was trained."""
    weight = checkpoint.take(f"{name}.weight", width)
    return weight.float() + offset if offset else weight
