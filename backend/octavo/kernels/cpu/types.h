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

struct Attention {
    int32_t num_heads;
    int32_t window;  // tokens that a token attends to, itself included; 0: all
    float scale;
    float softcap;  // 0: none
};

}  // namespace octavo
