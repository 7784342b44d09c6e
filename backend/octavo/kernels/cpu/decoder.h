// The network as numbers and pointers; mirrored, field by field, in library.py.
#pragma once

#include <atomic>

#include "pool.h"
#include "types.h"

namespace octavo {

struct DecoderLayer {
    Matrix qkv, output, gate_up, down;
    const float *input_norm, *mlp_norm;      // [hidden]
    const float *output_norm, *down_norm;    // [hidden], or null
    const float *qk_norm;                    // [H + G, D], or null
    const float *cosines, *sines;            // [max_position, rotary_half]
    int32_t rotary_half, gate;               // gate: 0 silu, 1 gelu by tanh
    Attention attention;
    KVLayer kv;
};

struct Decoder {
    const DecoderLayer *layers;
    const void *embedding;  // [vocabulary, hidden] float, or bf16
    const float *norm;      // [hidden]
    Matrix lm_head;
    int32_t num_layers, hidden, is_bf16;
    float eps, embedding_scale, logits_softcap;  // scale 1, softcap 0: none
};

// What a step's time went into, for who asks.
struct Timeline {
    int64_t *marks;      // [capacity, 2]: phase, and when it ended as the first thread saw it, in
                         // now_ns; −1: a part of the step began
    int64_t *spent_ns;   // [phases], added to: of all threads together
    int64_t *waited_ns;  // [phases], added to: of these, at barriers
    int32_t capacity;
    int32_t count;  // marks that there were, kept or not
};

// Memory of a step, which the caller keeps.
struct Workspace {
    uint8_t *data;
    size_t bytes;
};

}  // namespace octavo
