"""What a decoder and a sampler compute with, whoever computes it: `octavo.kernels` itself, which
are the reference operators, or `octavo.kernels.gpu`."""

from typing import Protocol

from torch import Tensor

from octavo.kernels.cpu import PackedLinear
from octavo.kernels.reference_weights import QuantizedWeight

PackedWeight = Tensor | QuantizedWeight | PackedLinear


class Operators(Protocol):
    """A module with these functions. Their meaning is told in `reference`, `reference_kv` and
    `reference_weights`."""

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor: ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]: ...

    def silu_mul(self, x: Tensor) -> Tensor: ...

    def gelu_tanh_mul(self, x: Tensor) -> Tensor: ...

    def greedy(self, logits: Tensor) -> tuple[Tensor, Tensor]: ...

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        uniform: Tensor,
    ) -> Tensor: ...

    def uniform_numbers(self, seeds: Tensor, indices: Tensor) -> Tensor: ...
