// What crosses the C interface. The structures are mirrored, field by field, in library.py.
// Letters in shapes: T tokens, S sequences, H query heads, G key-value heads, D head_dim.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

enum class KVType : int32_t { f32 = 0, bf16 = 1, f16 = 2, int8 = 3 };

// One layer's keys and values in all blocks. Those of slot (block, offset) and head g begin at
// storage + block · block_bytes + keys + (offset · G + g) · D numbers; scales (float16, int8 only)
// at … + key_scales + (offset · G + g) · 2.
struct KVLayer {
    uint8_t *storage;
    int64_t block_bytes;
    int64_t keys, values, key_scales, value_scales;  // bytes into a block
    KVType type;
    int32_t block_size, num_kv_heads, head_dim;
};

// One step's tokens, sequence after sequence; the first num_decodes have one token each.
struct Batch {
    const int64_t *token_ids;     // [T]
    const int64_t *positions;     // [T]
    const int64_t *slot_mapping;  // [T], −1: not stored
    const int64_t *block_tables;  // [S, table_stride]
    const int64_t *query_start;   // [S + 1]
    const int64_t *context_lens;  // [S], the tokens of this step included
    int64_t table_stride;
    int32_t num_tokens, num_seqs, num_decodes;
};

// How a matrix is stored, and what its inputs are rounded to: float32 with float32; bfloat16, int8
// and int4 with bfloat16; int8 and int4 with inputs quantized by row to int8, or with float32.
enum class Format : int32_t {
    f32 = 0,
    bf16 = 1,
    int8 = 2,
    int4 = 3,
    w8a8 = 4,
    w4a8 = 5,
    int8_f32 = 6,
    int4_f32 = 7,
};

constexpr int PANEL = 32;  // outputs that are stored and computed together
constexpr int UNIT = 8;    // inputs that are unpacked together

enum class ScaleType : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

// A weight [outputs, inputs] in panels of 32 outputs, each one stretch of memory: for each unit of
// 8 inputs what pack.cpp says. Both sizes are padded with zeros.
struct Matrix {
    const uint8_t *panels;
    const void *scales;    // of scale_type, [groups, padded outputs]; one group: that of a row
    const int32_t *sums;   // of int8 inputs: 128 · the sum of a group's weights, [groups, …]
    const float *bias;     // [padded outputs], or null
    Format format;
    int32_t outputs, inputs;
    int32_t padded_inputs;  // a multiple of 64
    int32_t group_size;     // inputs with a scale of their own; 0: all have one
    int32_t is_gated;       // outputs are gate and up by turns, 16 of each in a panel
    ScaleType scale_type;
};

struct Attention {
    int32_t num_heads;
    int32_t window;  // tokens that a token attends to, itself included; 0: all
    float scale;
    float softcap;  // 0: none
    int32_t exact;  // 1: float32 throughout, where 0 rounds queries and probabilities to bf16
};

// How each row of logits is drawn from; see kernels.reference.sample.
struct Sampling {
    const float *temperature;
    const int64_t *top_k;
    const float *top_p, *min_p;
    const double *uniform;
};

}  // namespace octavo
