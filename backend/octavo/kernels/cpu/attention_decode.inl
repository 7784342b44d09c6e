// One token's attention to a chunk of its context: memory is what it waits for, so each key and
// value is read once for all query heads that share it.
#pragma once

#include "attention_common.inl"

namespace octavo::OCTAVO_ISA::paged {

// Query heads at once: 16 sums are half of AVX-512's registers, and a quarter of them all of AVX2's.
#if defined(__AVX512F__)
constexpr int HEADS = 4;
#else
constexpr int HEADS = 1;
#endif
constexpr int VECTORS = 4;  // of a value's numbers at once
constexpr int AHEAD = 80;   // rows between what is prefetched and what is read

// Of one thread, for the R heads of one key-value head.
struct DecodeScratch {
    int padded_dim;
    float *query;   // [R, padded_dim], or as many Pairs
    float *scores;  // [R, CHUNK], then their exponentials
    uint16_t *probabilities;  // [R, CHUNK], as bf16 where there are pairs
    float *sums;    // [R, padded_dim]
    float *peaks, *totals;  // [R]

    DecodeScratch(Bump &bump, int heads, int dim) : padded_dim(int(round_up(dim, 64))) {
        query = bump.take<float>(int64_t(heads) * padded_dim);
        scores = bump.take<float>(int64_t(heads) * CHUNK);
        probabilities = bump.take<uint16_t>(int64_t(heads) * CHUNK);
        sums = bump.take<float>(int64_t(heads) * padded_dim);
        peaks = bump.take<float>(heads);
        totals = bump.take<float>(heads);
    }
};

OCTAVO_INLINE v4 quarter(vf x) {
    v4 a[4];
    memcpy(a, &x, sizeof a);
    return (a[0] + a[1]) + (a[2] + a[3]);
}

// The sums of four vectors' numbers.
OCTAVO_INLINE v4 sums_of_four(const vf *x) {
    v4 a = quarter(x[0]), b = quarter(x[1]), c = quarter(x[2]), d = quarter(x[3]);
    const i4 even = {0, 4, 1, 5}, odd = {2, 6, 3, 7}, low = {0, 1, 4, 5}, high = {2, 3, 6, 7};
    v4 ab = __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
    v4 cd = __builtin_shuffle(c, d, even) + __builtin_shuffle(c, d, odd);
    return __builtin_shuffle(ab, cd, low) + __builtin_shuffle(ab, cd, high);
}

// scores [N, CHUNK] of sixteen tokens from `first` on: dot products with query [N, padded_dim].
template <class T, int N>
OCTAVO_INLINE void score_tokens(const Rows &rows, int first, int dim, const float *query,
                                int padded_dim, float *scores, bool is_first) {
    for (int t = first; t < first + LANES; t += 4) {
        if (is_first)
            for (int i = 0; i < 4; i++) rows.prefetch(t + i + AHEAD, dim * int(sizeof(T)));
        vf sums[N][4] = {};
        auto step = [&](int d, int n) __attribute__((always_inline)) {
            vf k[4];
            for (int i = 0; i < 4; i++) k[i] = load(rows.key<T>(t + i) + d, n);
            for (int h = 0; h < N; h++) {
                vf q = load(query + h * padded_dim + d);
                for (int i = 0; i < 4; i++) sums[h][i] += q * k[i];
            }
        };
        int d = 0;
        for (; d + LANES <= dim; d += LANES) step(d, LANES);
        if (d < dim) step(d, dim - d);
        for (int h = 0; h < N; h++) store_as(scores + h * CHUNK + t, sums_of_four(sums[h]));
    }
}

// sums [N, padded_dim] from number d on, V vectors, += probabilities [N, CHUNK] · values of tokens
// [first, end).
template <class T, int N, int V>
OCTAVO_INLINE void add_values(const Rows &rows, int first, int end, int dim, int d,
                              const float *probabilities, float *sums, int padded_dim, bool is_first) {
    const int left = dim - d - (V - 1) * LANES;  // numbers of the last vector
    vf acc[N][V];
    for (int h = 0; h < N; h++)
        for (int v = 0; v < V; v++) acc[h][v] = load(sums + h * padded_dim + d + v * LANES);
    for (int t = first; t < end; t++) {
        if (is_first) rows.prefetch(rows.count + t + AHEAD, dim * int(sizeof(T)));
        const T *value = rows.value<T>(t) + d;
        vf x[V];
        for (int v = 0; v < V - 1; v++) x[v] = load(value + v * LANES);
        x[V - 1] = load(value + (V - 1) * LANES, left);
        for (int h = 0; h < N; h++) {
            vf p = splat(probabilities[h * CHUNK + t]);
            for (int v = 0; v < V; v++) acc[h][v] += p * x[v];
        }
    }
    for (int h = 0; h < N; h++)
        for (int v = 0; v < V; v++) store(sums + h * padded_dim + d + v * LANES, acc[h][v]);
}

#if defined(__AVX512BF16__)

OCTAVO_INLINE __m512 swap_halves(__m512 a, __m512 b) { return _mm512_shuffle_ps(a, b, 0x4e); }

// Four vectors → in each quarter, the four sums of that quarter's numbers.
OCTAVO_INLINE __m512 sums_in_quarters(const __m512 *x) {
    // [a0+a2, a1+a3, b0+b2, b1+b3] of each quarter
    __m512 ab = _mm512_mask_blend_ps(0xcccc, x[0], x[1]) + swap_halves(x[0], x[1]);
    __m512 cd = _mm512_mask_blend_ps(0xcccc, x[2], x[3]) + swap_halves(x[2], x[3]);
    return _mm512_shuffle_ps(ab, cd, 0x88) + _mm512_shuffle_ps(ab, cd, 0xdd);
}

// Of sums_in_quarters of tokens 0-3, 4-7, 8-11, 12-15: the sixteen sums.
OCTAVO_INLINE __m512 sums_of_quarters(const __m512 *x) {
    __m512 a = _mm512_mask_blend_ps(0xff00, x[0], x[1]) + _mm512_shuffle_f32x4(x[0], x[1], 0x4e);
    __m512 b = _mm512_mask_blend_ps(0xff00, x[2], x[3]) + _mm512_shuffle_f32x4(x[2], x[3], 0x4e);
    return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
}

template <class T, int N>
OCTAVO_INLINE void score_tokens(const Rows &rows, int first, int dim, const Pair *query,
                                int padded_dim, float *scores, bool is_first) {
    __m512 quarters[N][4];
    for (int part = 0; part < 4; part++) {
        if (is_first)
            for (int i = 0; i < 4; i++) rows.prefetch(first + part * 4 + i + AHEAD, dim * int(sizeof(T)));
        __m512 sums[N][4] = {};
        for (int d = 0; d < dim; d += 32) {
            __m512i k[4];
            for (int i = 0; i < 4; i++)
                k[i] = load_bf16(rows.key<T>(first + part * 4 + i) + d, dim - d);
            for (int h = 0; h < N; h++) {
                __m512i q = _mm512_load_si512(query + (h * padded_dim + d) / 2);
                for (int i = 0; i < 4; i++)
                    sums[h][i] = _mm512_dpbf16_ps(sums[h][i], (__m512bh)k[i], (__m512bh)q);
            }
        }
        for (int h = 0; h < N; h++) quarters[h][part] = sums_in_quarters(sums[h]);
    }
    for (int h = 0; h < N; h++)
        _mm512_store_ps(scores + h * CHUNK + first, sums_of_quarters(quarters[h]));
}

// Numbers 0-3, 8-11, 16-19, 24-27 of 32 in the first vector of two, the others in the second.
template <class T, int N, int V>
OCTAVO_INLINE void add_values(const Rows &rows, int first, int end, int dim, int d,
                              const bf16 *probabilities, float *sums, int padded_dim, bool is_first) {
    __m512 acc[N][V];
    for (int h = 0; h < N; h++)
        for (int v = 0; v < V; v++)
            acc[h][v] = _mm512_load_ps(sums + h * padded_dim + d + v * LANES);
    auto step = [&](int t, auto load_second) __attribute__((always_inline)) {
        const T *value = rows.value<T>(t) + d;
        __m512i pairs[V];
        for (int v = 0; v < V; v += 2) {
            int left = dim - d - v * LANES;
            __m512i x = load_bf16(value + v * LANES, left), y = load_second(v * LANES, left);
            pairs[v] = _mm512_unpacklo_epi16(x, y);
            pairs[v + 1] = _mm512_unpackhi_epi16(x, y);
        }
        for (int h = 0; h < N; h++) {
            __m512i p = _mm512_set1_epi32(load_as<int32_t>(probabilities + h * CHUNK + t));
            for (int v = 0; v < V; v++)
                acc[h][v] = _mm512_dpbf16_ps(acc[h][v], (__m512bh)pairs[v], (__m512bh)p);
        }
    };
    int t = first;
    for (; t + 2 <= end; t += 2) {
        if (is_first) {
            rows.prefetch(rows.count + t + AHEAD, dim * int(sizeof(T)));
            rows.prefetch(rows.count + t + 1 + AHEAD, dim * int(sizeof(T)));
        }
        const T *second = rows.value<T>(t + 1) + d;
        step(t, [=](int at, int left) { return load_bf16(second + at, left); });
    }
    if (t < end) step(t, [](int, int) { return _mm512_setzero_si512(); });
    for (int h = 0; h < N; h++)
        for (int v = 0; v < V; v++)
            _mm512_store_ps(sums + h * padded_dim + d + v * LANES, acc[h][v]);
}

// From the order of add_values' pairs to the numbers' own.
OCTAVO_INLINE void reorder(float *sums, int padded_dim) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_or_si512(low, _mm512_set1_epi32(8));
    for (int d = 0; d < padded_dim; d += 32) {
        __m512 a = _mm512_load_ps(sums + d), b = _mm512_load_ps(sums + d + 16);
        _mm512_store_ps(sums + d, _mm512_permutex2var_ps(a, low, b));
        _mm512_store_ps(sums + d + 16, _mm512_permutex2var_ps(a, high, b));
    }
}

#endif

// f(i, N) for N of `heads` heads from the i-th on, at most HEADS of them, N a constant.
template <class F>
OCTAVO_INLINE void each_heads(int heads, F &&f) {
    int h = 0;
    for (; h + HEADS <= heads; h += HEADS) f(h, std::integral_constant<int, HEADS>());
    if constexpr (HEADS > 1) {
        if (h + 2 <= heads) f(h, std::integral_constant<int, 2>()), h += 2;
        if (h < heads) f(h, std::integral_constant<int, 1>());
    }
}

template <class T, class P>
void add_all_values(const Rows &rows, int heads, int dim, const P *probabilities, float *sums,
                    int padded_dim) {
    // A pair of vectors is the least there where a load is of 32 numbers.
    constexpr int STEP = std::is_same_v<P, bf16> ? 2 : 1, WIDTH = STEP * LANES;
    for (int first = 0; first < rows.count; first += 64) {
        int end = first + 64 < rows.count ? first + 64 : rows.count;
        each_heads(heads, [&](int h, auto n) __attribute__((always_inline)) {
            constexpr int N = decltype(n)::value;
            const P *p = probabilities + h * CHUNK;
            float *sum = sums + h * padded_dim;
            int d = 0;
            for (; d + VECTORS * LANES <= dim; d += VECTORS * LANES)
                add_values<T, N, VECTORS>(rows, first, end, dim, d, p, sum, padded_dim,
                                          h == 0 && d == 0);
            for (; d < dim; d += WIDTH)
                add_values<T, N, STEP>(rows, first, end, dim, d, p, sum, padded_dim,
                                       h == 0 && d == 0);
        });
    }
}

// scores → the exponentials of their distance to the largest, rounded where they are multiplied so,
// and times their values' scales; `total` without these.
template <class T, class P>
void soften_chunk(const Rows &rows, const Scaling &scaling, float *scores, P *probabilities,
                  float &largest, float &total) {
    const int count = rows.count;
    vf top = splat(-FLT_MAX);
    for (int t = 0; t < count; t += LANES) {
        vf s = load(scores + t);
        if constexpr (std::is_same_v<T, int8_t>) s *= load(rows.key_scales + t);
        s = first_lanes(count - t, scaling(s), splat(NEG_INF));
        store(scores + t, s);
        top = max(top, s);
    }
    largest = peak(top);
    vf sum = {};
    for (int t = 0; t < count; t += LANES) {
        vf p = exp2(load(scores + t) - largest);
        sum += p;
        if constexpr (std::is_same_v<T, int8_t>) p *= load(rows.value_scales + t);
        store_probability(probabilities + t, p);
    }
    total = octavo::OCTAVO_ISA::sum(sum);
}

// One token's heads of one key-value head, query [R, D] in its first rows, against positions
// [begin, end) of one chunk: scratch.sums, peaks and totals.
template <class T>
void decode_chunk(const KVLayer &kv, const int64_t *table, int group, int heads, int64_t begin,
                  int64_t end, const Scaling &scaling, const float *query, DecodeScratch &scratch) {
    constexpr bool PAIRS = USES_PAIRS<T>;
    const int dim = kv.head_dim, padded = scratch.padded_dim;
    using Query = std::conditional_t<PAIRS, Pair, float>;
    using Probability = std::conditional_t<PAIRS, bf16, float>;
    constexpr int NUMBERS = PAIRS ? 2 : 1;  // of one Query

    Rows rows;
    find_rows<T>(kv, table, group, begin, end, rows);
    auto *packed = reinterpret_cast<Query *>(scratch.query);
    for (int h = 0; h < heads; h++)
        pack_query(query + h * dim, dim, padded, packed + h * padded / NUMBERS);

    for (int first = 0; first < rows.count; first += LANES) {
        each_heads(heads, [&](int h, auto n) __attribute__((always_inline)) {
            score_tokens<T, decltype(n)::value>(rows, first, dim, packed + h * padded / NUMBERS,
                                                padded, scratch.scores + h * CHUNK, h == 0);
        });
    }
    auto *probabilities = reinterpret_cast<Probability *>(
        PAIRS ? static_cast<void *>(scratch.probabilities) : scratch.scores);
    for (int h = 0; h < heads; h++)
        soften_chunk<T>(rows, scaling, scratch.scores + h * CHUNK, probabilities + h * CHUNK,
                        scratch.peaks[h], scratch.totals[h]);
    memset(scratch.sums, 0, int64_t(heads) * padded * sizeof(float));
    add_all_values<T>(rows, heads, dim, probabilities, scratch.sums, padded);
#if defined(__AVX512BF16__)
    if constexpr (PAIRS)
        for (int h = 0; h < heads; h++) reorder(scratch.sums + h * padded, padded);
#endif
}

}  // namespace octavo::OCTAVO_ISA::paged
