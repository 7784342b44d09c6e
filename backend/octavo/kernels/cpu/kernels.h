// What each instruction set offers, under one name.
#pragma once

#include "decoder.h"
#include "pack.h"

namespace octavo {

struct Kernels {
    const char *name;
    size_t (*step_bytes)(const Decoder &, const Batch &, int num_threads);
    void (*forward)(Pool &, const Decoder &, const Batch &, const int64_t *sample_indices,
                    int num_samples, float *logits, uint8_t *memory, Timeline *timeline);
    size_t (*linear_bytes)(const Matrix &, int count);
    void (*linear)(Pool &, const Matrix &, const float *x, int count, float *out, uint8_t *memory);
    size_t (*attention_bytes)(const Attention &, const KVLayer &, const Batch &, int num_threads);
    void (*attention)(Pool &, const Attention &, const KVLayer &, const Batch &, const float *query,
                      float *out, uint8_t *memory);
    void (*store_kv)(Pool &, const KVLayer &, const int64_t *slots, int count, const float *keys,
                     const float *values);
    void (*add_rms_norm)(Pool &, const float *x, float *residual, const float *weight, int rows,
                         int width, float eps, float *out);
    void (*greedy)(Pool &, const float *logits, int rows, int64_t vocabulary, int64_t *tokens,
                   uint8_t *are_finite);
    size_t (*sample_bytes)(int64_t vocabulary, int num_threads);
    void (*sample)(Pool &, const float *logits, int rows, int64_t vocabulary, const Sampling &,
                   int64_t *tokens, uint8_t *memory);
    int32_t (*read_through)(Pool &, const uint8_t *data, int64_t bytes);
    double (*multiply_through)(Pool &, int kind, int64_t rounds);
    const char *(*phase_name)(int phase);
};

// In the order of speed; null where this processor lacks what it needs.
const Kernels *amx_kernels();
const Kernels *avx512_kernels();
const Kernels *avx2_kernels();
const Kernels *portable_kernels();

}  // namespace octavo
