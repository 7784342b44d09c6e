"""The structures that cross the C interface: field by field those of types.h, pack.h, decoder.h."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from typing import ClassVar


class Format(IntEnum):
    """How a matrix is stored: types.h."""

    F32 = 0
    BF16 = 1
    INT8 = 2
    INT4 = 3
    W8A8 = 4
    W4A8 = 5
    INT8_F32 = 6
    INT4_F32 = 7


class ScaleType(IntEnum):
    F32 = 0
    BF16 = 1
    F16 = 2


class KVType(IntEnum):
    F32 = 0
    BF16 = 1
    F16 = 2
    INT8 = 3


class KVLayer(ctypes.Structure):
    _fields_: ClassVar = [
        ("storage", c_void_p),
        ("block_bytes", c_int64),
        ("keys", c_int64),
        ("values", c_int64),
        ("key_scales", c_int64),
        ("value_scales", c_int64),
        ("type", c_int32),
        ("block_size", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
    ]


class Batch(ctypes.Structure):
    _fields_: ClassVar = [
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slot_mapping", c_void_p),
        ("block_tables", c_void_p),
        ("query_start", c_void_p),
        ("context_lens", c_void_p),
        ("table_stride", c_int64),
        ("num_tokens", c_int32),
        ("num_seqs", c_int32),
        ("num_decodes", c_int32),
    ]


class Matrix(ctypes.Structure):
    _fields_: ClassVar = [
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("bias", c_void_p),
        ("format", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("padded_inputs", c_int32),
        ("group_size", c_int32),
        ("is_gated", c_int32),
        ("scale_type", c_int32),
    ]


class Packed(ctypes.Structure):
    _fields_: ClassVar = [
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("bias", c_void_p),
    ]


class Attention(ctypes.Structure):
    _fields_: ClassVar = [
        ("num_heads", c_int32),
        ("window", c_int32),
        ("scale", c_float),
        ("softcap", c_float),
        ("exact", c_int32),
    ]


class Sampling(ctypes.Structure):
    _fields_: ClassVar = [
        ("temperature", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
        ("uniform", c_void_p),
    ]


class DecoderLayer(ctypes.Structure):
    _fields_: ClassVar = [
        ("qkv", Matrix),
        ("output", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("input_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("output_norm", c_void_p),
        ("down_norm", c_void_p),
        ("qk_norm", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("rotary_half", c_int32),
        ("gate", c_int32),
        ("attention", Attention),
        ("kv", KVLayer),
    ]


class Decoder(ctypes.Structure):
    _fields_: ClassVar = [
        ("layers", c_void_p),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("lm_head", Matrix),
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("is_bf16", c_int32),
        ("eps", c_float),
        ("embedding_scale", c_float),
        ("logits_softcap", c_float),
    ]


class Timeline(ctypes.Structure):
    _fields_: ClassVar = [
        ("marks", c_void_p),
        ("spent_ns", c_void_p),
        ("waited_ns", c_void_p),
        ("capacity", c_int32),
        ("count", c_int32),
    ]


# Of each structure its size in C, which `load` compares: a field added on one side only would
# otherwise be read as another.
STRUCTURES = (
    KVLayer, Batch, Matrix, Packed, Attention, Sampling, DecoderLayer, Decoder, Timeline,
)  # fmt: skip
