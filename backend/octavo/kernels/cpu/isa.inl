// One unit of an instruction set: everything of it, and its table.
#include <algorithm>
#include <cfloat>
#include <chrono>
#include <type_traits>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "kernels.h"
#include "vec.h"
#ifdef OCTAVO_AMX
#include "amx.h"
#endif
#include "weights_generic.inl"
#include "weights_avx512.inl"
#include "gemm.inl"
#include "rowwise.inl"
#include "store_kv.inl"
#include "attention.inl"
#include "batch_parts.inl"
#include "decoder.inl"
#include "peaks.inl"
#include "sample.inl"

namespace octavo::OCTAVO_ISA {

namespace {

size_t padded_rows(int count) { return (count + 15) / 16 * 16; }

size_t linear_bytes(const Matrix &m, int count) {
    return padded_rows(count) * (row_bytes(m) + sizeof(float));
}

void linear_op(Pool &pool, const Matrix &m, const float *x, int count, float *out,
               uint8_t *memory) {
    const int64_t bytes = row_bytes(m);
    float *scales = reinterpret_cast<float *>(memory + padded_rows(count) * bytes);
    pool.run([&](Worker &w) {
        w.tasks(count, [&](int row) {
            prepare_row(m.format, x + int64_t(row) * m.inputs, m.inputs, m.padded_inputs,
                        memory + row * bytes, scales + row);
        });
        const Inputs in{memory, bytes, scales, count};
        if (m.is_gated)
            gated_linear(w, m, Gate::silu, in, out, m.outputs / 2);
        else
            linear(w, m, in, out, m.outputs);
    });
}

void attention_op(Pool &pool, const Attention &a, const KVLayer &kv, const Batch &b,
                  const float *query, float *out, uint8_t *memory) {
    const int64_t width = int64_t(a.num_heads) * kv.head_dim;
    pool.run([&](Worker &w) { paged_attention(w, a, kv, b, query, width, out, width, memory); });
}

void store_kv_op(Pool &pool, const KVLayer &kv, const int64_t *slots, int count, const float *keys,
                 const float *values) {
    const int64_t width = int64_t(kv.num_kv_heads) * kv.head_dim;
    pool.run([&](Worker &w) {
        w.tasks(count, [&](int row) {
            if (slots[row] >= 0) store_token(kv, slots[row], keys + row * width, values + row * width);
        });
    });
}

void add_rms_norm_op(Pool &pool, const float *x, float *residual, const float *weight, int rows,
                     int width, float eps, float *out) {
    pool.run([&](Worker &w) {
        w.tasks(rows, [&](int row) {
            float *sum = residual + int64_t(row) * width;
            const float *more = x + int64_t(row) * width;
            for (int i = 0; i < width; i += LANES)
                store(sum + i, load(sum + i, width - i) + load(more + i, width - i), width - i);
            rms_norm(sum, weight, width, eps, out + int64_t(row) * width);
        });
    });
}

void greedy_op(Pool &pool, const float *logits, int rows, int64_t vocabulary, int64_t *tokens,
               uint8_t *are_finite) {
    pool.run([&](Worker &w) { greedy(w, logits, rows, vocabulary, tokens, are_finite); });
}

void sample_op(Pool &pool, const float *logits, int rows, int64_t vocabulary,
               const Sampling &sampling, int64_t *tokens, uint8_t *memory) {
    pool.run([&](Worker &w) { sample(w, logits, rows, vocabulary, sampling, tokens, memory); });
}

int32_t read_through_op(Pool &pool, const uint8_t *data, int64_t bytes) {
    std::atomic<int32_t> all{0};
    pool.run([&](Worker &w) { all ^= read_through(w, data, bytes); });
    return all;
}

double multiply_through_op(Pool &pool, int kind, int64_t rounds) {
    std::atomic<double> flops{0};
    pool.run([&](Worker &) {
        const double own = multiply_through(InputKind(kind), rounds);
        for (double all = flops; !flops.compare_exchange_weak(all, all + own);) {
        }
    });
    return flops;
}

const char *phase_name(int phase) { return phase < PHASES ? PHASE_NAMES[phase] : nullptr; }

#define OCTAVO_TEXT(x) #x
#define OCTAVO_NAME(x) OCTAVO_TEXT(x)

constexpr Kernels table = {
    OCTAVO_NAME(OCTAVO_ISA), step_bytes, forward, linear_bytes, linear_op, attention_scratch_bytes,
    attention_op, store_kv_op, add_rms_norm_op, greedy_op, sample_bytes, sample_op,
    read_through_op, multiply_through_op, phase_name,
};

}  // namespace

}  // namespace octavo::OCTAVO_ISA
