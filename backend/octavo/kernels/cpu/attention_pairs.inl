// Decode's two products with AVX-512's dot products of pairs.
#pragma once

#include "attention_common.inl"

#if defined(__AVX512BF16__)

namespace octavo::OCTAVO_ISA::paged {

// Sums of products of pairs: of bf16; of an int8 widened to 16 bits by what has been quantized to
// 15 bits and sign, which loses less than bf16 and is exact in 32 bits for CHUNK numbers.
template <class T>
struct Dot {
    using Sum = vf;
    using Factor = bf16;
    static OCTAVO_INLINE __m512i load_32(const bf16 *p, int n) { return load_bf16(p, n); }
    static OCTAVO_INLINE vf add(vf sum, __m512i a, __m512i b) {
        return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
    static OCTAVO_INLINE vf floats(vf sum) { return sum; }
};

template <>
struct Dot<int8_t> {
    using Sum = vi;
    using Factor = int16_t;
    static OCTAVO_INLINE __m512i load_32(const int8_t *p, int n) {
        return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(n >= 32 ? ~0u : (1u << n) - 1, p));
    }
    static OCTAVO_INLINE vi add(vi sum, __m512i a, __m512i b) {
        return (vi)_mm512_dpwssd_epi32((__m512i)sum, a, b);
    }
    static OCTAVO_INLINE vf floats(vi sum) { return (vf)_mm512_cvtepi32_ps((__m512i)sum); }
};

// x [n] = factor · out, n a multiple of LANES. If a number is none or infinite, so is the factor.
OCTAVO_INLINE float quantize(const float *x, int n, int16_t *out) {
    // 512 products with an int8 are below 2^31.
    const float highest = n <= 512 ? 32767.0f : 32767.0f * 512 / n;
    vf top = {}, none = {};
    for (int i = 0; i < n; i += LANES) {
        top = max(top, abs(load(x + i)));
        none += load(x + i) * 0.0f;
    }
    const float largest = peak(top), inverse = largest > 0 ? highest / largest : 0;
    for (int i = 0; i < n; i += LANES)
        store_as(out + i,
                 _mm512_cvtepi32_epi16(_mm512_cvtps_epi32((__m512)(load(x + i) * inverse))));
    return largest / highest + sum(none);
}

template <int IMMEDIATE, class V>
OCTAVO_INLINE V shuffle(V a, V b) {
    return (V)_mm512_shuffle_ps((__m512)a, (__m512)b, IMMEDIATE);
}
template <int IMMEDIATE, class V>
OCTAVO_INLINE V shuffle_quarters(V a, V b) {
    return (V)_mm512_shuffle_f32x4((__m512)a, (__m512)b, IMMEDIATE);
}
template <class V>
OCTAVO_INLINE V blend(__mmask16 mask, V a, V b) {
    return (V)_mm512_mask_blend_ps(mask, (__m512)a, (__m512)b);
}

// Four vectors → in each quarter, the four sums of that quarter's numbers.
template <class V>
OCTAVO_INLINE V sums_in_quarters(const V *x) {
    // [a0+a2, a1+a3, b0+b2, b1+b3] of each quarter
    V ab = blend(0xcccc, x[0], x[1]) + shuffle<0x4e>(x[0], x[1]);
    V cd = blend(0xcccc, x[2], x[3]) + shuffle<0x4e>(x[2], x[3]);
    return shuffle<0x88>(ab, cd) + shuffle<0xdd>(ab, cd);
}

// Of sums_in_quarters of tokens 0-3, 4-7, 8-11, 12-15: the sixteen sums.
template <class V>
OCTAVO_INLINE V sums_of_quarters(const V *x) {
    V a = blend(0xff00, x[0], x[1]) + shuffle_quarters<0x4e>(x[0], x[1]);
    V b = blend(0xff00, x[2], x[3]) + shuffle_quarters<0x4e>(x[2], x[3]);
    return shuffle_quarters<0x88>(a, b) + shuffle_quarters<0xdd>(a, b);
}

template <class T, int N>
OCTAVO_INLINE void score_tokens(const Rows &rows, int first, int dim, const Pair *query,
                                int padded_dim, float *scores, bool is_first) {
    using Sum = typename Dot<T>::Sum;
    Sum quarters[N][4];
    for (int part = 0; part < 4; part++) {
        const int t = first + part * 4;
        if (is_first)
            for (int i = 0; i < 4; i++) rows.prefetch(t + i + AHEAD, dim * int(sizeof(T)));
        Sum sums[N][4] = {};
        for (int d = 0; d < dim; d += 32) {
            __m512i k[4];
            for (int i = 0; i < 4; i++) k[i] = Dot<T>::load_32(rows.key<T>(t + i) + d, dim - d);
            for (int h = 0; h < N; h++) {
                __m512i q = _mm512_load_si512(query + (h * padded_dim + d) / 2);
                for (int i = 0; i < 4; i++) sums[h][i] = Dot<T>::add(sums[h][i], k[i], q);
            }
        }
        for (int h = 0; h < N; h++) quarters[h][part] = sums_in_quarters(sums[h]);
    }
    for (int h = 0; h < N; h++)
        store(scores + h * CHUNK + first, Dot<T>::floats(sums_of_quarters(quarters[h])));
}

// Numbers 0-3, 8-11, 16-19, 24-27 of 32 in the first vector of two, the others in the second.
template <class T, int N, int V>
OCTAVO_INLINE void add_values(const Rows &rows, int first, int end, int dim, int d,
                              const typename Dot<T>::Factor *probabilities, float *sums,
                              int padded_dim, bool is_first) {
    using Sum = typename Dot<T>::Sum;
    Sum acc[N][V];
    for (int h = 0; h < N; h++)
        for (int v = 0; v < V; v++) acc[h][v] = load_as<Sum>(sums + h * padded_dim + d + v * LANES);
    auto step = [&](int t, auto load_second) __attribute__((always_inline)) {
        const T *value = rows.value<T>(t) + d;
        __m512i pairs[V];
        for (int v = 0; v < V; v += 2) {
            const int at = v * LANES, left = dim - d - at;
            __m512i x = Dot<T>::load_32(value + at, left), y = load_second(at, left);
            pairs[v] = _mm512_unpacklo_epi16(x, y);
            pairs[v + 1] = _mm512_unpackhi_epi16(x, y);
        }
        for (int h = 0; h < N; h++) {
            __m512i p = _mm512_set1_epi32(load_as<int32_t>(probabilities + h * CHUNK + t));
            for (int v = 0; v < V; v++) acc[h][v] = Dot<T>::add(acc[h][v], pairs[v], p);
        }
    };
    int t = first;
    for (; t + 2 <= end; t += 2) {
        if (is_first) {
            rows.prefetch(rows.count + t + AHEAD, dim * int(sizeof(T)));
            rows.prefetch(rows.count + t + 1 + AHEAD, dim * int(sizeof(T)));
        }
        const T *second = rows.value<T>(t + 1) + d;
        step(t, [=](int at, int left) { return Dot<T>::load_32(second + at, left); });
    }
    if (t < end) step(t, [](int, int) { return _mm512_setzero_si512(); });
    for (int h = 0; h < N; h++)
        for (int v = 0; v < V; v++) store_as(sums + h * padded_dim + d + v * LANES, acc[h][v]);
}

// From sums in the order of add_values' pairs to floats in the numbers' own.
template <class T>
OCTAVO_INLINE void finish_sums(float *sums, int padded_dim, float factor) {
    using Sum = typename Dot<T>::Sum;
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_or_si512(low, _mm512_set1_epi32(8));
    for (int d = 0; d < padded_dim; d += 32) {
        auto a = (__m512)Dot<T>::floats(load_as<Sum>(sums + d));
        auto b = (__m512)Dot<T>::floats(load_as<Sum>(sums + d + LANES));
        store(sums + d, (vf)_mm512_permutex2var_ps(a, low, b) * factor);
        store(sums + d + LANES, (vf)_mm512_permutex2var_ps(a, high, b) * factor);
    }
}

}  // namespace octavo::OCTAVO_ISA::paged

#endif
