// One token's attention to a chunk of its context: memory is what it waits for, so each key and
// value is read once for all query heads that share it.
#pragma once

#include "attention_common.inl"
#include "attention_pairs.inl"

namespace octavo::OCTAVO_ISA::paged {

// Of one thread, for the R heads of one key-value head.
struct DecodeScratch {
    int padded_dim;
    float *query;   // [R, padded_dim], or as many Pairs
    float *scores;  // [R, CHUNK], then their exponentials
    uint16_t *probabilities;  // [R, CHUNK], where there are pairs
    float *sums;    // [R, padded_dim]
    float *widened;         // [LANES, padded_dim]
    float *peaks, *totals;  // [R]
    float *factors;         // [R], of the query's numbers, then of the probabilities

    DecodeScratch(Bump &bump, int heads, int dim) : padded_dim(int(round_up(dim, 64))) {
        query = bump.take<float>(int64_t(heads) * padded_dim);
        scores = bump.take<float>(int64_t(heads) * CHUNK);
        probabilities = bump.take<uint16_t>(int64_t(heads) * CHUNK);
        sums = bump.take<float>(int64_t(heads) * padded_dim);
        widened = bump.take<float>(int64_t(LANES) * padded_dim);
        peaks = bump.take<float>(heads);
        totals = bump.take<float>(heads);
        factors = bump.take<float>(heads);
    }
};

OCTAVO_INLINE v4 to_four(native x) {
    v4 a[WIDTH / 4];
    memcpy(a, &x, sizeof a);
    if constexpr (WIDTH == 16) return (a[0] + a[1]) + (a[2] + a[3]);
    if constexpr (WIDTH == 8) return a[0] + a[1];
    return a[0];
}

// The sums of four vectors' numbers.
OCTAVO_INLINE v4 sums_of_four(const native *x) {
    v4 a = to_four(x[0]), b = to_four(x[1]), c = to_four(x[2]), d = to_four(x[3]);
    const i4 even = {0, 4, 1, 5}, odd = {2, 6, 3, 7}, low = {0, 1, 4, 5}, high = {2, 3, 6, 7};
    v4 ab = __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
    v4 cd = __builtin_shuffle(c, d, even) + __builtin_shuffle(c, d, odd);
    return __builtin_shuffle(ab, cd, low) + __builtin_shuffle(ab, cd, high);
}

// scores [N, CHUNK] of sixteen rows of keys [dim]: dot products with query [N, padded_dim].
template <int N>
OCTAVO_INLINE void score_rows(const float *const *keys, int dim, const float *query,
                              int padded_dim, float *scores) {
    for (int t = 0; t < LANES; t += 4) {
        native sums[N][4] = {};
        for (int d = 0; d < dim; d += WIDTH) {
            native k[4];
            for (int i = 0; i < 4; i++) k[i] = load_as<native>(keys[t + i] + d);
            for (int h = 0; h < N; h++) {
                native q = load_as<native>(query + h * padded_dim + d);
                for (int i = 0; i < 4; i++) sums[h][i] += q * k[i];
            }
        }
        for (int h = 0; h < N; h++) store_as(scores + h * CHUNK + t, sums_of_four(sums[h]));
    }
}

// V vectors of sums [N, padded_dim] += probabilities [N, CHUNK] · `count` rows of values from
// number d on.
template <int N, int V>
OCTAVO_INLINE void add_rows(const float *const *values, int count, int d,
                            const float *probabilities, float *sums, int padded_dim) {
    native acc[N][V];
    for (int h = 0; h < N; h++)
        for (int v = 0; v < V; v++) acc[h][v] = load_as<native>(sums + h * padded_dim + v * WIDTH);
    for (int t = 0; t < count; t++) {
        native x[V];
        for (int v = 0; v < V; v++) x[v] = load_as<native>(values[t] + d + v * WIDTH);
        for (int h = 0; h < N; h++)
            for (int v = 0; v < V; v++) acc[h][v] += probabilities[h * CHUNK + t] * x[v];
    }
    for (int h = 0; h < N; h++)
        for (int v = 0; v < V; v++) store_as(sums + h * padded_dim + v * WIDTH, acc[h][v]);
}

// Sixteen rows as floats, in multiples of LANES: themselves, or widened into `memory`.
template <class T, class Row>
OCTAVO_INLINE void as_floats(int count, int dim, Row row, float *memory, const float **out) {
    const int padded = int(round_up(dim, LANES));
    for (int t = 0; t < count; t++) {
        if constexpr (std::is_same_v<T, float>)
            if (dim == padded) {
                out[t] = row(t);
                continue;
            }
        float *to = memory + int64_t(t) * padded;
        const T *from = row(t);
        int d = 0;
        for (; d + LANES <= dim; d += LANES) widen(from + d, to + d);
        if (d < dim) store(to + d, load(from + d, dim - d));
        out[t] = to;
    }
}

// Heads whose sums are in registers together.
constexpr int HEADS = WIDTH == LANES ? 4 : 2;

// f(i, N) for N of `heads` heads from the i-th on, at most HEADS of them, N a constant.
template <class F>
OCTAVO_INLINE void each_heads(int heads, F &&f) {
    int h = 0;
    for (; h + HEADS <= heads; h += HEADS) f(h, std::integral_constant<int, HEADS>());
    if constexpr (HEADS > 2)
        if (h + 2 <= heads) f(h, std::integral_constant<int, 2>()), h += 2;
    if (h < heads) f(h, std::integral_constant<int, 1>());
}

// scores [R, CHUNK] of all rows.
template <class T, class Query>
void score_all(const Rows &rows, int heads, int dim, const Query *query, DecodeScratch &scratch) {
    const int padded = scratch.padded_dim;
    for (int first = 0; first < rows.count; first += LANES) {
        if constexpr (std::is_same_v<Query, float>) {
            const float *keys[LANES];
            for (int t = first; t < first + LANES; t++) rows.prefetch(t + AHEAD, dim * sizeof(T));
            as_floats<T>(LANES, dim, [&](int t) { return rows.key<T>(first + t); },
                         scratch.widened, keys);
            each_heads(heads, [&](int h, auto n) __attribute__((always_inline)) {
                score_rows<decltype(n)::value>(keys, dim, query + h * padded, padded,
                                               scratch.scores + h * CHUNK + first);
            });
        } else {
#if defined(__AVX512BF16__)
            each_heads(heads, [&](int h, auto n) __attribute__((always_inline)) {
                score_tokens<T, decltype(n)::value>(rows, first, dim, query + h * padded / 2,
                                                    padded, scratch.scores + h * CHUNK, h == 0);
            });
#endif
        }
    }
}

// sums [R, padded_dim] = probabilities [R, CHUNK] · all rows' values.
template <class T, class P>
void add_all(const Rows &rows, int heads, int dim, const P *probabilities, DecodeScratch &scratch) {
    const int padded = scratch.padded_dim;
    memset(scratch.sums, 0, int64_t(heads) * padded * sizeof(float));
    constexpr bool FLOATS = std::is_same_v<P, float>;
    constexpr int TOKENS = FLOATS ? LANES : 64;
    for (int first = 0; first < rows.count; first += TOKENS) {
        const int end = first + TOKENS < rows.count ? first + TOKENS : rows.count;
        const float *values[LANES];
        if constexpr (FLOATS) {
            for (int t = first; t < end; t++)
                rows.prefetch(rows.count + t + AHEAD, dim * sizeof(T));
            as_floats<T>(end - first, dim, [&](int t) { return rows.value<T>(first + t); },
                         scratch.widened, values);
        }
        each_heads(heads, [&](int h, auto n) __attribute__((always_inline)) {
            constexpr int N = decltype(n)::value;
            const P *p = probabilities + h * CHUNK;
            float *sums = scratch.sums + h * padded;
            int d = 0;
            if constexpr (FLOATS) {
                for (; d + 4 * WIDTH <= dim; d += 4 * WIDTH)
                    add_rows<N, 4>(values, end - first, d, p + first, sums + d, padded);
                for (; d < dim; d += WIDTH)
                    add_rows<N, 1>(values, end - first, d, p + first, sums + d, padded);
            } else {
#if defined(__AVX512BF16__)
                for (; d + 64 <= dim; d += 64)
                    add_values<T, N, 4>(rows, first, end, dim, d, p, sums, padded,
                                        h == 0 && d == 0);
                for (; d < dim; d += 32)
                    add_values<T, N, 2>(rows, first, end, dim, d, p, sums, padded,
                                        h == 0 && d == 0);
#endif
            }
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
template <class T, bool PAIRS>
void decode_chunk(const KVLayer &kv, const int64_t *table, int group, int heads, int64_t begin,
                  int64_t end, const Scaling &scaling, const float *query, DecodeScratch &scratch) {
    const int dim = kv.head_dim, padded = scratch.padded_dim;
#if defined(__AVX512BF16__)
    using Query = std::conditional_t<PAIRS, Pair, float>;
    using Probability = std::conditional_t<PAIRS, typename Dot<T>::Factor, float>;
#else
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
    score_all<T>(rows, heads, dim, packed, scratch);
    auto *probabilities = reinterpret_cast<Probability *>(
        PAIRS ? static_cast<void *>(scratch.probabilities) : scratch.scores);
    for (int h = 0; h < heads; h++)
        scratch.factors[h] =
            soften_chunk<T>(rows, scaling, scratch.factors[h], scratch.scores + h * CHUNK,
                            probabilities + h * CHUNK, scratch.peaks[h], scratch.totals[h]);
    add_all<T>(rows, heads, dim, probabilities, scratch);
#if defined(__AVX512BF16__)
    if constexpr (PAIRS)
        for (int h = 0; h < heads; h++)
            finish_sums<T>(scratch.sums + h * padded, padded, scratch.factors[h]);
#endif
}

}  // namespace octavo::OCTAVO_ISA::paged
