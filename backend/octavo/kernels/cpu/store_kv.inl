// Keys and values of new tokens into KV memory, as reference_kv.store_kv states it.
#pragma once

#include <cfloat>
#include <type_traits>

#include "types.h"
#include "vec.h"

namespace octavo::OCTAVO_ISA {

namespace paged {

constexpr float LARGEST_F16 = 65504.0f, LARGEST_BF16 = 3.38953139e38f, LARGEST_INT8 = 127.0f;

// What lies between the largest number and infinity becomes the largest; only infinities, and what
// is not a number, stay.
OCTAVO_INLINE vf saturate(vf x, float largest) {
    vf kept = max(splat(-largest), min(splat(largest), x));
    return select(greater(abs(x), splat(FLT_MAX)), x, kept);
}

inline void store_row(const float *x, int dim, float *to) { memcpy(to, x, dim * sizeof(float)); }
inline void store_row(const float *x, int dim, bf16 *to) {
    for (int d = 0; d < dim; d += LANES)
        store(to + d, saturate(load(x + d, dim - d), LARGEST_BF16), dim - d);
}
inline void store_row(const float *x, int dim, f16 *to) {
    for (int d = 0; d < dim; d += LANES)
        store(to + d, saturate(load(x + d, dim - d), LARGEST_F16), dim - d);
}

// → the scale. What is not a number is stored as 0: its scale makes all that is read back so.
inline f16 store_row(const float *x, int dim, int8_t *to) {
    vf peak = {};
    vi odd = {};
    for (int d = 0; d < dim; d += LANES) {
        vf a = abs(load(x + d, dim - d));
        odd |= is_nan(a);
        peak = max(a, peak);
    }
    float top = 0;
    bool is_number = true;
    for (int i = 0; i < LANES; i++) {
        top = peak[i] > top ? peak[i] : top;
        is_number &= odd[i] == 0;
    }
    if (!is_number) top = NAN;
    float exact = top / LARGEST_INT8;
    if (exact > LARGEST_F16 && top != INFINITY) exact = LARGEST_F16;
    const f16 scale = f16(exact);
    const float divisor = scale == 0 ? 1.0f : float(scale);
    for (int d = 0; d < dim; d += LANES) {
        vf q = load(x + d, dim - d) / divisor;
        q = max(splat(-LARGEST_INT8), min(splat(LARGEST_INT8), q));
        // Adding and taking off 1.5 · 2^23 rounds to the nearest integer, ties to even.
        q = q + 12582912.0f - 12582912.0f;
        q = select(is_nan(q), vf{}, q);
        vb bytes = __builtin_convertvector(__builtin_convertvector(q, vi), vb);
        memcpy(to + d, &bytes, dim - d < LANES ? dim - d : LANES);
    }
    return scale;
}

template <class T>
void store_heads(const KVLayer &kv, int64_t slot, const float *x, int64_t numbers, int64_t scales) {
    uint8_t *block = kv.storage + slot / kv.block_size * kv.block_bytes;
    const int64_t row = slot % kv.block_size * kv.num_kv_heads;
    for (int g = 0; g < kv.num_kv_heads; g++, x += kv.head_dim) {
        T *to = reinterpret_cast<T *>(block + numbers) + (row + g) * kv.head_dim;
        if constexpr (std::is_same_v<T, int8_t>)
            store_as(block + scales + (row + g) * sizeof(f16), store_row(x, kv.head_dim, to));
        else
            store_row(x, kv.head_dim, to);
    }
}

}  // namespace paged

// One token's key and value [G, D] to `slot` (block · block_size + offset), in the layer's type.
inline void store_token(const KVLayer &kv, int64_t slot, const float *key, const float *value) {
    auto both = [&](auto number) {
        using T = decltype(number);
        paged::store_heads<T>(kv, slot, key, kv.keys, kv.key_scales);
        paged::store_heads<T>(kv, slot, value, kv.values, kv.value_scales);
    };
    switch (kv.type) {
        case KVType::f32: return both(float());
        case KVType::bf16: return both(bf16());
        case KVType::f16: return both(f16());
        case KVType::int8: return both(int8_t());
    }
}

}  // namespace octavo::OCTAVO_ISA
