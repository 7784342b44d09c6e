"""What a decoder and a sampler compute with, whoever computes it: `octavo.kernels` itself, which
are the reference operators, or `octavo.kernels.gpu`."""

from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from octavo.kernels.cpu import PackedLinear
from octavo.kernels.reference_weights import QuantizedWeight

if TYPE_CHECKING:
    from octavo.kernels.gpu.weights import GpuLinear

PackedWeight: TypeAlias = "Tensor | QuantizedWeight | PackedLinear | GpuLinear"


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

    def pack(self, weight: Tensor | QuantizedWeight, dtype: torch.dtype) -> PackedWeight: ...

    def gather_blocks(self, storage: Tensor, blocks: Tensor) -> Tensor: ...

    def scatter_blocks(self, storage: Tensor, blocks: Tensor, rows: Tensor) -> None: ...

    def rope_and_store(
        self,
        qkv: Tensor,
        qk_norm: Tensor | None,
        eps: float,
        cosines: Tensor,
        sines: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        key_scales: Tensor | None = None,
        value_scales: Tensor | None = None,
        *,
        num_heads: int,
    ) -> Tensor: ...

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        query_start: Tensor,
        context_lens: Tensor,
        num_decodes: int,
        scale: float,
        *,
        key_scales: Tensor | None = None,
        value_scales: Tensor | None = None,
        window: int | None = None,
        softcap: float | None = None,
        max_query_len: int,
    ) -> Tensor: ...
