// One token's attention to a chunk of its context: memory is what it waits for, so each key and
// value is read once for all query heads that share it.
#pragma once

#include "attention_common.inl"
#include "attention_pairs.inl"

namespace octavo::OCTAVO_ISA::paged {

// Query heads at once: 16 sums are half of AVX-512's registers, and a quarter of them all of AVX2's.
#if defined(__AVX512F__)
constexpr int HEADS = 4;
#else
constexpr int HEADS = 1;
#endif
constexpr int VECTORS = 4;  // of a value's numbers at once

// Of one thread, for the R heads of one key-value head.
struct DecodeScratch {
    int padded_dim;
    float *query;   // [R, padded_dim], or as many Pairs
    float *scores;  // [R, CHUNK], then their exponentials
    uint16_t *probabilities;  // [R, CHUNK], where there are pairs
    float *sums;    // [R, padded_dim]
    float *peaks, *totals;  // [R]
    float *factors;         // [R], of the query's numbers, then of the probabilities

    DecodeScratch(Bump &bump, int heads, int dim) : padded_dim(int(round_up(dim, 64))) {
        query = bump.take<float>(int64_t(heads) * padded_dim);
        scores = bump.take<float>(int64_t(heads) * CHUNK);
        probabilities = bump.take<uint16_t>(int64_t(heads) * CHUNK);
        sums = bump.take<float>(int64_t(heads) * padded_dim);
        peaks = bump.take<float>(heads);
        totals = bump.take<float>(heads);
        factors = bump.take<float>(heads);
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
    constexpr int STEP = USES_PAIRS<T> ? 2 : 1, WIDTH = STEP * LANES;
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

// scores → the exponentials of their distance to the largest, times their values' scales, as they
// are multiplied with values; `total` without these. → what the products are to be multiplied by.
template <class T, class P>
float soften_chunk(const Rows &rows, const Scaling &scaling, float factor, float *scores,
                   P *probabilities, float &largest, float &total) {
    const int count = rows.count;
    vf top = splat(-FLT_MAX);
    for (int t = 0; t < count; t += LANES) {
        vf s = load(scores + t);
        if constexpr (std::is_same_v<T, int8_t>) s *= load(rows.key_scales + t) * factor;
        s = first_lanes(count - t, scaling(s), splat(NEG_INF));
        store(scores + t, s);
        top = max(top, s);
    }
    largest = peak(top);
    vf all = {};
    for (int t = 0; t < count; t += LANES) {
        vf p = exp2(load(scores + t) - largest);
        all += p;
        if constexpr (std::is_same_v<T, int8_t>) p *= load(rows.value_scales + t);
        if constexpr (std::is_same_v<P, int16_t>)
            store(scores + t, p);
        else
            store_probability(probabilities + t, p);
    }
    total = sum(all);
    if constexpr (std::is_same_v<P, int16_t>)
        return quantize(scores, int(round_up(count, LANES)), probabilities);
    return 1;
}

// One token's heads of one key-value head, query [R, D] in its first rows, against positions
// [begin, end) of one chunk: scratch.sums, peaks and totals.
template <class T>
void decode_chunk(const KVLayer &kv, const int64_t *table, int group, int heads, int64_t begin,
                  int64_t end, const Scaling &scaling, const float *query, DecodeScratch &scratch) {
    const int dim = kv.head_dim, padded = scratch.padded_dim;
#if defined(__AVX512BF16__)
    constexpr bool PAIRS = USES_PAIRS<T>;
    using Query = std::conditional_t<PAIRS, Pair, float>;
    using Probability = std::conditional_t<PAIRS, typename Dot<T>::Factor, float>;
#else
    constexpr bool PAIRS = false;
    using Query = float;
    using Probability = float;
#endif
    constexpr int NUMBERS = PAIRS ? 2 : 1;  // of one Query

    Rows rows;
    find_rows<T>(kv, table, group, begin, end, rows);
    auto *packed = reinterpret_cast<Query *>(scratch.query);
    for (int h = 0; h < heads; h++) {
        scratch.factors[h] = 1;
        Query *to = packed + h * padded / NUMBERS;
#if defined(__AVX512BF16__)
        if constexpr (std::is_same_v<Probability, int16_t>) {
            pack_query(query + h * dim, dim, padded, scratch.sums);
            scratch.factors[h] = quantize(scratch.sums, padded, reinterpret_cast<int16_t *>(to));
            continue;
        }
#endif
        pack_query(query + h * dim, dim, padded, to);
    }
    for (int first = 0; first < rows.count; first += LANES) {
        each_heads(heads, [&](int h, auto n) __attribute__((always_inline)) {
            score_tokens<T, decltype(n)::value>(rows, first, dim, packed + h * padded / NUMBERS,
                                                padded, scratch.scores + h * CHUNK, h == 0);
        });
    }
    auto *probabilities = reinterpret_cast<Probability *>(
        PAIRS ? static_cast<void *>(scratch.probabilities) : scratch.scores);
    for (int h = 0; h < heads; h++)
        scratch.factors[h] =
            soften_chunk<T>(rows, scaling, scratch.factors[h], scratch.scores + h * CHUNK,
                            probabilities + h * CHUNK, scratch.peaks[h], scratch.totals[h]);
    memset(scratch.sums, 0, int64_t(heads) * padded * sizeof(float));
    add_all_values<T>(rows, heads, dim, probabilities, scratch.sums, padded);
#if defined(__AVX512BF16__)
    if constexpr (PAIRS)
        for (int h = 0; h < heads; h++)
            finish_sums<T>(scratch.sums + h * padded, padded, scratch.factors[h]);
#endif
}

}  // namespace octavo::OCTAVO_ISA::paged
