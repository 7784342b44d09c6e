// What decodes and prefills share: where a sequence's keys are, what becomes of scores, scratch.
// R in shapes: the query heads of one key-value head.
#pragma once

#include <cfloat>
#include <type_traits>

#include "types.h"
#include "vec.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace octavo::OCTAVO_ISA::paged {

// A decode's context is taken in parts of this many tokens, counted from 0, whatever the batch and
// the number of threads: the order in which its numbers are added up is the sequence's own.
constexpr int CHUNK = 256;

constexpr int AHEAD = 80;  // rows between what is prefetched and what is read

constexpr float LOG2E = 1.44269504f;
constexpr float NEG_INF = -INFINITY;

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Whether keys and values of T are multiplied as pairs of bf16. f16 has more digits than these.
template <class T>
#if defined(__AVX512BF16__)
constexpr bool USES_PAIRS = std::is_same_v<T, bf16> || std::is_same_v<T, int8_t>;
#else
constexpr bool USES_PAIRS = false;
#endif

// Two bf16 that one instruction multiplies with two others and adds to one float.
struct Pair {
    uint32_t bits;
};

// Where the tokens of one key-value head are, at most CHUNK. `keys` is filled up to a multiple of
// LANES with the last one, which can be read and has to be masked.
struct Rows {
    const uint8_t *keys[CHUNK];
    float key_scales[CHUNK], value_scales[CHUNK];  // int8 only
    int64_t to_values;                             // bytes from a key to its value
    int count;

    // Brings row i of all keys, then all values, then the next head's keys, to the second cache: as
    // rows of one head lie apart, no processor foresees them. The first cache has too few misses in
    // flight for it (Zen 4: 10 GB/s against 17 GB/s).
    OCTAVO_INLINE void prefetch(int i, int bytes) const {
        if (i >= 3 * count) return;
        const uint8_t *row = i < count       ? keys[i]
                             : i < 2 * count ? keys[i - count] + to_values
                                             : keys[i - 2 * count] + bytes;
        const uintptr_t end = uintptr_t(row) + bytes;
        for (uintptr_t line = uintptr_t(row) / 64 * 64; line < end; line += 64)
            __builtin_prefetch(reinterpret_cast<const void *>(line), 0, 2);
    }

    template <class T>
    const T *key(int i) const {
        return reinterpret_cast<const T *>(keys[i]);
    }
    template <class T>
    const T *value(int i) const {
        return reinterpret_cast<const T *>(keys[i] + to_values);
    }
};

// The rows of positions [begin, end), of which only blocks that hold one of them are looked up.
template <class T>
void find_rows(const KVLayer &kv, const int64_t *table, int group, int64_t begin, int64_t end,
               Rows &rows) {
    const int64_t stride = int64_t(kv.num_kv_heads) * kv.head_dim * sizeof(T);
    rows.to_values = kv.values - kv.keys;
    rows.count = int(end - begin);
    int n = 0;
    for (int64_t position = begin; position < end;) {
        int64_t offset = position % kv.block_size;
        int64_t left = kv.block_size - offset;
        if (left > end - position) left = end - position;
        const uint8_t *block = kv.storage + table[position / kv.block_size] * kv.block_bytes;
        const uint8_t *key =
            block + kv.keys + offset * stride + int64_t(group) * kv.head_dim * sizeof(T);
        for (int64_t i = 0; i < left; i++) rows.keys[n + i] = key + i * stride;
        if constexpr (std::is_same_v<T, int8_t>) {
            int64_t first = (offset * kv.num_kv_heads + group) * sizeof(f16);
            const uint8_t *key_scale = block + kv.key_scales + first;
            const uint8_t *value_scale = block + kv.value_scales + first;
            for (int64_t i = 0, at = 0; i < left; i++, at += kv.num_kv_heads * sizeof(f16)) {
                rows.key_scales[n + i] = float(load_as<f16>(key_scale + at));
                rows.value_scales[n + i] = float(load_as<f16>(value_scale + at));
            }
        }
        n += int(left);
        position += left;
    }
    for (; n % LANES != 0; n++) {
        rows.keys[n] = rows.keys[rows.count - 1];
        rows.key_scales[n] = rows.value_scales[n] = 0;
    }
}

// 2^x of x <= 0, within 3e-7 of it: 2^n · 2^r, r in ±1/2, 2^r by the minimax polynomial of
// degree 5. 0 below -127; what is not a number stays so.
OCTAVO_INLINE vf exp2(vf x) {
#if defined(__AVX512F__)
    vf clamped = max(splat(-200.0f), x);
    vf n = (vf)_mm512_roundscale_ps((__m512)clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    vf clamped = max(splat(-127.0f), x);
    vf n = clamped + 12582912.0f - 12582912.0f;
#endif
    vf r = clamped - n;
    vf p = splat(0.00132764718f);
    p = p * r + 0.00967554133f;
    p = p * r + 0.0555071327f;
    p = p * r + 0.240221197f;
    p = p * r + 0.693146967f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
#endif
}

typedef int32_t i4 __attribute__((vector_size(16)));

// LANES numbers of T as floats.
template <class T>
OCTAVO_INLINE void widen(const T *from, float *to) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    // By halves: what `load` makes of them GCC stores number by number.
    for (int i = 0; i < LANES; i += WIDTH) {
        if constexpr (std::is_same_v<T, float>)
            store_as(to + i, load_as<native>(from + i));
        else if constexpr (std::is_same_v<T, f16>)
            store_as(to + i, _mm256_cvtph_ps(load_as<__m128i>(from + i)));
        else if constexpr (std::is_same_v<T, bf16>)
            store_as(to + i, _mm256_slli_epi32(
                                 _mm256_cvtepu16_epi32(load_as<__m128i>(from + i)), 16));
        else
            store_as(to + i, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(
                                 reinterpret_cast<const __m128i *>(from + i)))));
    }
#else
    store(to, load(from));
#endif
}

OCTAVO_INLINE float peak(vf x) {
    v4 a[4];
    memcpy(a, &x, sizeof a);
    v4 b = a[0] > a[1] ? a[0] : a[1], c = a[2] > a[3] ? a[2] : a[3];
    v4 d = b > c ? b : c;
    float e = d[0] > d[1] ? d[0] : d[1], f = d[2] > d[3] ? d[2] : d[3];
    return e > f ? e : f;
}

OCTAVO_INLINE vf first_lanes(int n, vf yes, vf no) {
#if defined(__AVX512F__)
    __mmask16 mask = n >= LANES ? 0xffff : n <= 0 ? 0 : (1u << n) - 1;
    return (vf)_mm512_mask_blend_ps(mask, (__m512)no, (__m512)yes);
#else
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return select(lane < n - vi{}, yes, no);
#endif
}

OCTAVO_INLINE void store_probability(float *p, vf x) { store(p, x); }

#if defined(__AVX512BF16__)

OCTAVO_INLINE void store_probability(bf16 *p, vf x) {
    store_as(p, _mm512_cvtneps_pbh((__m512)x));
}

// Numbers [0, n) of 32 as bf16, which an int8 is exactly.
OCTAVO_INLINE __m512i load_bf16(const bf16 *p, int n) {
    return _mm512_maskz_loadu_epi16(n >= 32 ? ~0u : (1u << n) - 1, p);
}
OCTAVO_INLINE __m512i load_bf16(const int8_t *p, int n) {
    __m256i x = _mm256_maskz_loadu_epi8(n >= 32 ? ~0u : (1u << n) - 1, p);
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(x)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

#endif

// From a product of query and key to the exponent of 2.
struct Scaling {
    float scale, inner, outer;

    explicit Scaling(const Attention &a)
        : scale(a.scale * LOG2E),
          inner(a.softcap > 0 ? a.scale / a.softcap : 0),
          outer(a.softcap * LOG2E) {}

    OCTAVO_INLINE vf operator()(vf score) const {
        return inner == 0 ? score * scale : tanh(score * inner) * outer;
    }
};

// Takes memory piece by piece; counts only, where it begins at 0.
struct Bump {
    uintptr_t at;

    template <class T>
    T *take(int64_t n) {
        uintptr_t begin = round_up(at, 64);
        at = begin + n * sizeof(T);
        return reinterpret_cast<T *>(begin);
    }
};

// dim numbers of a query, as floats or rounded to pairs, and zeros up to `padded` numbers.
OCTAVO_INLINE void pack_query(const float *query, int dim, int padded, float *out) {
    memcpy(out, query, dim * sizeof(float));
    memset(out + dim, 0, (padded - dim) * sizeof(float));
}

OCTAVO_INLINE void pack_query(const float *query, int dim, int padded, Pair *out) {
    auto *numbers = reinterpret_cast<bf16 *>(out);
    for (int d = 0; d < padded; d += LANES)
        store(numbers + d, d < dim ? load(query + d, dim - d) : vf{}, padded - d);
}

}  // namespace octavo::OCTAVO_ISA::paged
