"""The decoder's step as one call of the CPU kernels: the network as numbers and pointers."""

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from octavo.kernels.cpu import Library, PackedLinear, types
from octavo.models.architecture import Activation, ModelConfig
from octavo.models.layers import Linear
from octavo.models.rope import RotaryTable

if TYPE_CHECKING:
    from octavo.execution.forward_batch import ForwardBatch
    from octavo.execution.kv_cache import KVCache
    from octavo.models.decoder import Decoder, DecoderLayer

_GATES: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1}
_KV_TYPES = {
    torch.float32: types.KVType.F32,
    torch.bfloat16: types.KVType.BF16,
    torch.float16: types.KVType.F16,
    torch.int8: types.KVType.INT8,
}


class NativeDecoder:
    """What `Decoder` describes, laid out for Library.forward. Holds what it points to."""

    def __init__(self, library: Library, decoder: "Decoder", rotary: list[RotaryTable]) -> None:
        """rotary: of each layer."""
        config = decoder.config
        self._library = library
        self._held: list[Tensor] = []
        self._kv_cache: KVCache | None = None
        self._is_bf16 = decoder.embedding.dtype is torch.bfloat16
        self._layers = (types.DecoderLayer * config.num_layers)(
            *(
                self._layer(config, layer, table)
                for layer, table in zip(decoder.layers, rotary, strict=True)
            )
        )
        embedding = decoder.embedding
        self._decoder = types.Decoder(
            layers=ctypes.addressof(self._layers),
            embedding=embedding.data_ptr(),
            norm=self._numbers(decoder.norm),
            lm_head=_matrix(decoder.lm_head),
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            is_bf16=self._is_bf16,
            eps=config.rms_norm_eps,
            embedding_scale=float(decoder.embedding_scale or 1.0),
            logits_softcap=config.logits_softcap or 0.0,
        )
        self._held.append(embedding)

    def forward(self, batch: "ForwardBatch", kv_cache: "KVCache") -> Tensor:
        """As Decoder.forward."""
        if kv_cache is not self._kv_cache:
            self._bind(kv_cache)
        return self._library.forward(self._decoder, _batch(batch), batch.sample_indices)

    def _layer(
        self, config: ModelConfig, layer: "DecoderLayer", rotary: RotaryTable
    ) -> types.DecoderLayer:
        return types.DecoderLayer(
            qkv=_matrix(layer.qkv),
            output=_matrix(layer.output),
            gate_up=_matrix(layer.gate_up),
            down=_matrix(layer.down),
            input_norm=self._numbers(layer.input_norm),
            mlp_norm=self._numbers(layer.mlp_norm),
            output_norm=self._numbers(layer.output_norm),
            down_norm=self._numbers(layer.down_norm),
            qk_norm=self._numbers(layer.qk_norm),
            cosines=self._numbers(rotary.cosines),
            sines=self._numbers(rotary.sines),
            rotary_half=rotary.cosines.shape[1],
            gate=_GATES[config.activation],
            attention=types.Attention(
                num_heads=config.num_heads,
                window=layer.window or 0,
                scale=config.attention_scale,
                softcap=config.attention_softcap or 0.0,
                exact=not self._is_bf16,
            ),
        )

    def _numbers(self, tensor: Tensor | None) -> int | None:
        """The address of a tensor's numbers in float32, which are kept."""
        if tensor is None:
            return None
        self._held.append(tensor.float().contiguous())
        return self._held[-1].data_ptr()

    def _bind(self, kv_cache: "KVCache") -> None:
        for index, layer in enumerate(self._layers):
            layer.kv = kv_layer(kv_cache, index)
        self._kv_cache = kv_cache


def kv_layer(kv_cache: "KVCache", index: int) -> types.KVLayer:
    """Where the kernels find one layer of KV memory."""
    layout, places = kv_cache.layout, kv_cache.layout.places()[index]
    return types.KVLayer(
        storage=kv_cache.storage.data_ptr(),
        block_bytes=kv_cache.block_bytes,
        keys=places.keys,
        values=places.values,
        key_scales=places.key_scales,
        value_scales=places.value_scales,
        type=_KV_TYPES[kv_cache.layers[index].keys.dtype],
        block_size=layout.block_size,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
    )


def _matrix(linear: Linear) -> types.Matrix:
    assert isinstance(linear.weight, PackedLinear)
    return linear.weight.matrix


def _batch(batch: "ForwardBatch") -> types.Batch:
    assert batch.block_tables.stride(1) == 1
    return types.Batch(
        token_ids=batch.token_ids.data_ptr(),
        positions=batch.positions.data_ptr(),
        slot_mapping=batch.slot_mapping.data_ptr(),
        block_tables=batch.block_tables.data_ptr(),
        query_start=batch.query_start.data_ptr(),
        context_lens=batch.context_lens.data_ptr(),
        table_stride=batch.block_tables.stride(0),
        num_tokens=len(batch.token_ids),
        num_seqs=len(batch.context_lens),
        num_decodes=batch.num_decodes,
    )
