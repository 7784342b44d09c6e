"""The rows of `octavo bench kernels`: each op of the decode loop in the shapes that it meets.

They call what a step of the engine is made of: the native operators of a library, or without one
the reference ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo import kernels
from octavo.execution.kv_cache import KVCache, KVLayer
from octavo.kernels.cpu import Library, types
from octavo.models.native_decoder import kv_layer
from octavo.planner.roofline import (
    DecoderShape,
    Work,
    attention_work,
    linear_work,
)
from octavo.quantization.kv import KV_FORMATS, KVLayout
from octavo.quantization.weights import GROUP_SIZES, WEIGHT_FORMATS, WeightFormat

LINEAR_ROWS = (1, 4, 8, 16, 32, 128, 256)
DECODES = tuple((context, sequences) for context in (128, 1024) for sequences in (1, 8, 32))
PREFILLS = ((256, 256), (256, 1024))  # tokens of the chunk, of the context with it
TOKEN_ROWS = (1, 8, 32, 256)
SAMPLED_ROWS = (1, 8, 32)
_MOST_COPIES = 1024
_BLOCK_SIZE = 16
_EPS = 1e-5
# Of a number: never what limits, as all are bound by memory.
_NORM_FLOPS, _SILU_FLOPS = 6, 5


@dataclass(frozen=True, slots=True)
class Case:
    """act(*inputs) computes the op once. All of `inputs` lie in memory of their own, `copy_bytes`
    each, beside what they share."""

    op: str
    shape: str
    format: str
    work: Work
    act: Callable[..., object]
    inputs: list[tuple[Any, ...]]
    copy_bytes: int
    kind: str  # numbers that are multiplied, for the matrix peak


@dataclass(frozen=True, slots=True)
class Cases:
    """Of one decoder, in numbers of `dtype`."""

    shape: DecoderShape
    dtype: torch.dtype
    rotated_bytes: int
    library: Library | None = None

    def of(self, op: str) -> Iterator[Case]:
        """One at a time: the inputs of the case before are free again."""
        yield from {
            "linear": self._linear,
            "attention_decode": self._attention_decode,
            "attention_prefill": self._attention_prefill,
            "add_rms_norm": self._add_rms_norm,
            "silu_mul": self._silu_mul,
            "sample": self._sample,
        }[op]()

    @property
    def _name(self) -> str:
        return _dtype_name(self.dtype)

    def _copies(self, copy_bytes: int) -> int:
        return max(1, min(_MOST_COPIES, -(-self.rotated_bytes // copy_bytes)))

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=self.dtype)

    def _activations(self, *shape: int) -> Tensor:
        """The native operators hand float32 to each other."""
        return torch.randn(*shape, dtype=self.dtype if self.library is None else torch.float32)

    def _linear(self) -> Iterator[Case]:
        matrices = {**self.shape.layer_matrices(), "lm_head": self.shape.lm_head}
        for own in self._weight_formats():
            for name, (out, width) in matrices.items():
                if (fitted := _fitted(own, width)) is not None:
                    yield from self._linear_in(fitted, name, out, width)

    def _weight_formats(self) -> list[WeightFormat]:
        quantized = [own for own in WEIGHT_FORMATS.values() if own.is_quantized]
        return [WEIGHT_FORMATS[self._name], *quantized]

    def _linear_in(self, own: WeightFormat, name: str, out: int, width: int) -> Iterator[Case]:
        copy_bytes = own.num_bytes(out, width)
        plain = self._random(out, width)
        weight: Tensor | kernels.QuantizedWeight = plain
        if own.is_quantized:
            weight = kernels.quantize_weight(
                plain, own.weight_bits, own.group_size, own.quantized_activations
            )
        act: Callable[..., object] = kernels.linear
        weights: list[object] = [deepcopy(weight) for _ in range(self._copies(copy_bytes))]
        if self.library is not None:
            pack, act = self.library.pack, self.library.linear
            # As in the engine, its activation is part of the product.
            is_gated = name == "gate_up"
            weights = [pack(weight, self.dtype, is_gated=is_gated) for _ in weights]
        for rows in LINEAR_ROWS:
            x = self._activations(rows, width)
            yield Case(
                "linear", f"{name} {rows}x{width}x{out}", str(own),
                linear_work(rows, out, width, copy_bytes, x.itemsize),
                act, [(x, each) for each in weights], copy_bytes,
                "int8" if own.quantized_activations else self._name,
            )  # fmt: skip

    def _attention_decode(self) -> Iterator[Case]:
        for format_name in (self._name, "int8"):
            for context, sequences in DECODES:
                yield self._attention("attention_decode", format_name, sequences, 1, context)

    def _attention_prefill(self) -> Iterator[Case]:
        for format_name in (self._name, "int8"):
            for chunk, context in PREFILLS:
                yield self._attention("attention_prefill", format_name, 1, chunk, context)

    def _attention(
        self, op: str, format_name: str, sequences: int, query_tokens: int, context: int
    ) -> Case:
        shape, kv_format = self.shape, KV_FORMATS[format_name]
        blocks = -(-context // _BLOCK_SIZE)
        one = KVLayout((kv_format,), _BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
        copy_bytes = sequences * blocks * one.block_bytes
        # Layers take turns, as in the engine.
        layers = self._copies(copy_bytes)
        layout = KVLayout((kv_format,) * layers, _BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
        cache = KVCache.allocate(layout, sequences * blocks, torch.device("cpu"))
        slots = torch.arange(sequences * blocks * _BLOCK_SIZE)
        kv = self._random(len(slots), shape.num_kv_heads, shape.head_dim)
        first = cache.layers[0]
        kernels.store_kv(
            kv, kv, first.keys, first.values, slots, first.key_scales, first.value_scales
        )
        by_layer = cache.storage.view(sequences * blocks, layers, -1)
        by_layer[:, 1:] = by_layer[:, :1]
        query = self._activations(sequences * query_tokens, shape.num_heads, shape.head_dim)
        tables = torch.randperm(sequences * blocks).view(sequences, blocks)
        query_start = torch.arange(sequences + 1) * query_tokens
        contexts = torch.full((sequences,), context)
        num_decodes = sequences if query_tokens == 1 else 0
        scale = shape.head_dim**-0.5
        batch = types.Batch(
            block_tables=tables.data_ptr(), query_start=query_start.data_ptr(),
            context_lens=contexts.data_ptr(), table_stride=tables.stride(0),
            num_tokens=len(query), num_seqs=sequences, num_decodes=num_decodes,
        )  # fmt: skip

        def attend(layer: KVLayer, native: types.KVLayer) -> Tensor:
            if self.library is not None:
                return self.library.paged_attention(query, native, batch, scale)
            return kernels.paged_attention(
                query, layer.keys, layer.values, tables, query_start, contexts, num_decodes, scale,
                key_scales=layer.key_scales, value_scales=layer.value_scales,
            )  # fmt: skip

        work = attention_work(
            sequences=sequences, query_tokens=query_tokens, context_tokens=context,
            num_heads=shape.num_heads, head_dim=shape.head_dim,
            kv_token_bytes=kv_format.bytes_per_token(shape.num_kv_heads, shape.head_dim),
            number_bytes=query.itemsize,
        )  # fmt: skip
        name = f"{sequences} x {query_tokens} of {context}"
        # The cache lives as long as its layers, which are views.
        inputs = [(layer, kv_layer(cache, index)) for index, layer in enumerate(cache.layers)]
        return Case(op, name, format_name, work, attend, inputs, copy_bytes, self._name)

    def _add_rms_norm(self) -> Iterator[Case]:
        hidden = self.shape.hidden_size
        weight = self._activations(hidden)
        act = kernels.add_rms_norm if self.library is None else self.library.add_rms_norm
        for rows in TOKEN_ROWS:
            copy_bytes = 2 * rows * hidden * weight.itemsize
            inputs = [
                (self._activations(rows, hidden), self._activations(rows, hidden), weight, _EPS)
                for _ in range(self._copies(copy_bytes))
            ]
            # x and residual are read, the norm and the sum written.
            work = Work(2 * copy_bytes, _NORM_FLOPS * rows * hidden)
            yield Case(
                "add_rms_norm", f"{rows}x{hidden}", _dtype_name(weight.dtype), work,
                act, inputs, copy_bytes, "float32",
            )  # fmt: skip

    def _silu_mul(self) -> Iterator[Case]:
        """Of the reference operators alone: the native ones have it in the product before it."""
        inner = self.shape.intermediate_size
        for rows in TOKEN_ROWS if self.library is None else ():
            copy_bytes = 2 * rows * inner * self.dtype.itemsize
            inputs = [(self._random(rows, 2 * inner),) for _ in range(self._copies(copy_bytes))]
            work = Work(1.5 * copy_bytes, _SILU_FLOPS * rows * inner)
            yield Case(
                "silu_mul", f"{rows}x{inner}", self._name, work,
                kernels.silu_mul, inputs, copy_bytes, "float32",
            )  # fmt: skip

    def _sample(self) -> Iterator[Case]:
        vocabulary = self.shape.vocab_size
        operators = kernels if self.library is None else self.library
        for kind, top_k, top_p in (
            ("greedy", 0, 1.0),
            ("temperature", 0, 1.0),
            ("top_p", 0, 0.9),
            ("top_k, top_p", 50, 0.9),
        ):
            for rows in SAMPLED_ROWS:
                copy_bytes = 4 * rows * vocabulary
                params: tuple[Tensor, ...] = (
                    torch.ones(rows),
                    torch.full((rows,), top_k),
                    torch.full((rows,), top_p),
                    torch.zeros(rows),
                    torch.full((rows,), 0.5, dtype=torch.float64),
                )
                act: Callable[..., object] = operators.sample
                if kind == "greedy":
                    act, params = operators.greedy, ()
                inputs = [
                    (torch.randn(rows, vocabulary), *params)
                    for _ in range(self._copies(copy_bytes))
                ]
                yield Case(
                    "sample", f"{kind} {rows}x{vocabulary}", "float32",
                    Work(copy_bytes, rows * vocabulary), act, inputs, copy_bytes, "float32",
                )  # fmt: skip


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fitted(own: WeightFormat, width: int) -> WeightFormat | None:
    """With the largest groups that a row of `width` weights is made of; None if with no groups."""
    if own.group_size is None:
        return own
    fitting = [size for size in GROUP_SIZES if width % size == 0]
    return replace(own, group_size=max(fitting)) if fitting else None
