// Attention of many tokens of one sequence: a tile of queries passes over tiles of keys, which are
// packed once for all of them, and keeps for each row the largest score and the sums so far
// (FlashAttention, Dao et al. 2022, arXiv:2205.14135).
#pragma once

#include "attention_common.inl"

namespace octavo::OCTAVO_ISA::paged {

constexpr int KEYS = 128;       // of a tile, counted from position 0
constexpr int TILE_ROWS = 256;  // of queries: tokens · R
constexpr int MAX_VECTORS = WIDTH == LANES ? 4 : 2;  // times `rows`: sums in registers

// What products of E want of their shapes; what is missing is filled up with zeros.
template <class E>
struct Shape {
    static constexpr int rows = 6;         // that are multiplied at once
    static constexpr int block_rows = 24;  // whose scores are softened and used while in cache
    static constexpr int depth = 1;        // of a step
};
#ifdef OCTAVO_AMX
// Tiles take 16 rows in the time of one, so that even few are worth them.
template <>
struct Shape<Pair> {
    static constexpr int rows = 16, block_rows = 32, depth = 16;
};
// What suits both.
constexpr int MAX_BLOCK_ROWS = 32, COMMON_ROWS = 48, DIM_STEP = 32;
#else
constexpr int MAX_BLOCK_ROWS = 24, COMMON_ROWS = 6, DIM_STEP = LANES;
#endif

inline int tile_tokens(int heads) { return heads < TILE_ROWS ? TILE_ROWS / heads : 1; }

// Of one thread. Sizes are those of floats, of which pairs need half.
struct PrefillScratch {
    int padded_dim, padded_rows;
    float *query;            // [rows, dim]
    float *keys;             // [padded_dim, KEYS]
    float *values;           // [KEYS, padded_dim]
    float *scores;           // [block rows, KEYS]
    uint16_t *probabilities; // [block rows, KEYS], as bf16 where there are pairs
    float *sums;             // [rows, padded_dim]
    float *peaks, *totals;   // [rows]

    PrefillScratch(Bump &bump, int heads, int dim)
        : padded_dim(int(round_up(dim, DIM_STEP))),
          padded_rows(int(round_up(tile_tokens(heads) * heads, COMMON_ROWS))) {
        query = bump.take<float>(int64_t(padded_rows) * padded_dim);
        keys = bump.take<float>(int64_t(padded_dim) * KEYS);
        values = bump.take<float>(int64_t(padded_dim) * KEYS);
        scores = bump.take<float>(MAX_BLOCK_ROWS * KEYS);
        probabilities = bump.take<uint16_t>(MAX_BLOCK_ROWS * KEYS);
        sums = bump.take<float>(int64_t(padded_rows) * padded_dim);
        peaks = bump.take<float>(padded_rows);
        totals = bump.take<float>(padded_rows);
    }
};

// One step of a product: a number or a pair of a row of A, by those of WIDTH columns of B.
OCTAVO_INLINE native multiply_add(float a, const float *b, native sum) {
    return sum + a * load_as<native>(b);
}
#if defined(__AVX512BF16__)
OCTAVO_INLINE native multiply_add(Pair a, const Pair *b, native sum) {
    __m512i pair = _mm512_set1_epi32(int(a.bits));
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(b), (__m512bh)pair);
}
#endif

template <class E, int V, bool ADD>
OCTAVO_INLINE void multiply_rows(const E *a, int64_t a_stride, const E *b, int64_t b_stride,
                                 int depth, float *c, int64_t c_stride) {
    constexpr int rows = Shape<E>::rows;
    native sums[rows][V];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < V; v++)
            sums[r][v] = ADD ? load_as<native>(c + r * c_stride + v * WIDTH) : native{};
    for (int k = 0; k < depth; k++)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < V; v++)
                sums[r][v] =
                    multiply_add(a[r * a_stride + k], b + k * b_stride + v * WIDTH, sums[r][v]);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < V; v++) store_as(c + r * c_stride + v * WIDTH, sums[r][v]);
}

// C [rows, columns] = or += A [rows, depth] · B [depth, columns], rows and depth as Shape says,
// columns a multiple of LANES; depth and strides count E: floats, or Pairs of two rows of B. All
// matrix work of attention is here, and below with tiles.
template <bool ADD, class E>
void multiply(int rows, int columns, int depth, const E *a, int64_t a_stride, const E *b,
              int64_t b_stride, float *c, int64_t c_stride) {
    for (int column = 0; column < columns;) {
        const int left = (columns - column) / WIDTH;
        // Five vectors are better taken as 3 + 2 than as 4 + 1.
        const int parts = (left + MAX_VECTORS - 1) / MAX_VECTORS;
        const int vectors = (left + parts - 1) / parts;
        for (int row = 0; row < rows; row += Shape<E>::rows) {
            auto go = [&](auto v) __attribute__((always_inline)) {
                multiply_rows<E, decltype(v)::value, ADD>(a + row * a_stride, a_stride, b + column,
                                                          b_stride, depth,
                                                          c + row * c_stride + column, c_stride);
            };
            if constexpr (MAX_VECTORS == 4) {
                if (vectors == 4) go(std::integral_constant<int, 4>());
                if (vectors == 3) go(std::integral_constant<int, 3>());
            }
            if (vectors == 2) go(std::integral_constant<int, 2>());
            if (vectors == 1) go(std::integral_constant<int, 1>());
        }
        column += vectors * WIDTH;
    }
}

#ifdef OCTAVO_AMX
template <bool ADD>
void multiply(int rows, int columns, int depth, const Pair *a, int64_t a_stride, const Pair *b,
              int64_t b_stride, float *c, int64_t c_stride) {
    const int64_t a_bytes = a_stride * sizeof(Pair), b_bytes = b_stride * sizeof(Pair);
    const int64_t c_bytes = c_stride * sizeof(float);
    for (int column = 0; column < columns; column += 2 * LANES)
        for (int row = 0; row < rows; row += 32) {
            const bool is_wide = columns - column > LANES, is_high = rows - row > 16;
            const Pair *upper = a + row * a_stride, *lower = upper + 16 * a_stride;
            float *top = c + row * c_stride + column, *bottom = top + 16 * c_stride;
            if constexpr (ADD) {
                load_tile<0>(top, c_bytes);
                if (is_wide) load_tile<1>(top + LANES, c_bytes);
                if (is_high) load_tile<2>(bottom, c_bytes);
                if (is_high && is_wide) load_tile<3>(bottom + LANES, c_bytes);
            } else {
                zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
            }
            for (int k = 0; k < depth; k += Shape<Pair>::depth) {
                const Pair *from = b + k * b_stride + column;
                load_tile<6>(from, b_bytes);
                if (is_wide) load_tile<7>(from + LANES, b_bytes);
                load_tile<4>(upper + k, a_bytes);
                multiply_bf16<0, 4, 6>();
                if (is_wide) multiply_bf16<1, 4, 7>();
                if (!is_high) continue;
                load_tile<5>(lower + k, a_bytes);
                multiply_bf16<2, 5, 6>();
                if (is_wide) multiply_bf16<3, 5, 7>();
            }
            store_tile<0>(top, c_bytes);
            if (is_wide) store_tile<1>(top + LANES, c_bytes);
            if (is_high) store_tile<2>(bottom, c_bytes);
            if (is_high && is_wide) store_tile<3>(bottom + LANES, c_bytes);
        }
}
#endif

// Keys [count, dim] → [dim, KEYS]; zeros up to a multiple of LANES tokens.
template <class T>
void pack_keys(const Rows &rows, int dim, int, float *out) {
    for (int t = 0; t < round_up(rows.count, LANES); t++) {
        const T *key = rows.key<T>(t);
        const bool there = t < rows.count;
        for (int d = 0; d < dim; d++) out[int64_t(d) * KEYS + t] = there ? to_float(key[d]) : 0.0f;
    }
}

// Values [count, dim] → [count, stride]; zeros up to a multiple of LANES numbers.
template <class T>
void pack_values(const Rows &rows, int dim, int stride, float *out) {
    for (int t = 0; t < rows.count; t++)
        for (int d = 0; d < dim; d += LANES)
            store(out + int64_t(t) * stride + d, load(rows.value<T>(t) + d, dim - d));
}

#if defined(__AVX512BF16__)

// Sixteen rows of sixteen → their columns.
OCTAVO_INLINE void transpose(__m512i *x) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    // x[4i + j]: column j of each quarter, of rows 4i to 4i + 3
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88);
        __m512i b = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
        __m512i d = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
        y[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        y[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        y[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        y[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) x[i] = y[i];
}

// Keys [count, dim] → [depth, KEYS, 2], with zeros behind a row's end.
template <class T>
void pack_keys(const Rows &rows, int dim, int depth, Pair *out) {
    for (int t = 0; t < rows.count; t += LANES)
        for (int d = 0; d < dim; d += 32) {
            __m512i x[16];
            for (int i = 0; i < 16; i++)
                x[i] = t + i < rows.count ? load_bf16(rows.key<T>(t + i) + d, dim - d)
                                          : _mm512_setzero_si512();
            transpose(x);
            for (int i = 0; i < 16 && d / 2 + i < depth; i++)
                _mm512_storeu_si512(out + int64_t(d / 2 + i) * KEYS + t, x[i]);
        }
}

// Values [count, dim] → [count / 2, stride, 2], and zeros up to a step's depth.
template <class T>
void pack_values(const Rows &rows, int dim, int stride, Pair *out) {
    alignas(64) uint16_t order[64];
    for (int i = 0; i < 64; i++) order[i] = uint16_t(i / 2 + (i % 2) * 32);
    const __m512i low = _mm512_load_si512(order), high = _mm512_load_si512(order + 32);
    for (int t = 0; t < round_up(rows.count, 2 * Shape<Pair>::depth); t += 2)
        for (int d = 0; d < stride; d += 32) {
            const int n = dim - d;
            __m512i x = t < rows.count ? load_bf16(rows.value<T>(t) + d, n)
                                       : _mm512_setzero_si512();
            __m512i y = t + 1 < rows.count ? load_bf16(rows.value<T>(t + 1) + d, n)
                                           : _mm512_setzero_si512();
            Pair *to = out + int64_t(t / 2) * stride + d;
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(x, low, y));
            if (d + LANES < stride)
                _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(x, high, y));
        }
}

#endif

// One row's scores of a tile's `count` keys → as many probabilities, a multiple of LANES, by the
// largest score so far, by which its sums so far are scaled down. It sees keys [first, last).
template <class T, class P>
OCTAVO_INLINE void soften_row(const Rows &rows, int count, int first, int last,
                              const Scaling &scaling, float *scores, P *probabilities,
                              float &largest, float &total, float *sums, int width) {
    const bool whole = first == 0 && last == count;
    vf top = splat(-FLT_MAX);
    for (int t = 0; t < count; t += LANES) {
        vf s = load(scores + t);
        if constexpr (std::is_same_v<T, int8_t>) s *= load(rows.key_scales + t);
        s = scaling(s);
        if (!whole) {
            s = first_lanes(last - t, s, splat(NEG_INF));
            s = first_lanes(first - t, splat(NEG_INF), s);
        }
        store(scores + t, s);
        top = max(top, s);
    }
    const float before = largest, now = peak(top);
    if (now > before) {
        largest = now;
        vf factor = exp2(splat(before - now));
        total *= factor[0];
        for (int d = 0; d < width; d += LANES) store(sums + d, load(sums + d) * factor);
    }
    vf sum = {};
    for (int t = 0; t < count; t += LANES) {
        vf p = exp2(load(scores + t) - largest);
        sum += p;
        if constexpr (std::is_same_v<T, int8_t>) p *= load(rows.value_scales + t);
        store_probability(probabilities + t, p);
    }
    total += octavo::OCTAVO_ISA::sum(sum);
}

// `tokens` tokens of a sequence from position `begin` on, query rows of query_stride numbers:
// scratch.sums, peaks and totals, row after row, a token's R heads together.
template <class T, bool PAIRS>
void prefill_tile(const KVLayer &kv, const int64_t *table, int group, int heads, int64_t begin,
                  int tokens, int window, const Scaling &scaling, const float *query,
                  int64_t query_stride, PrefillScratch &scratch) {
    using E = std::conditional_t<PAIRS, Pair, float>;
    using Probability = std::conditional_t<PAIRS, bf16, float>;
    constexpr int NUMBERS = PAIRS ? 2 : 1;  // of one E
    constexpr int STEP = NUMBERS * Shape<E>::depth, BLOCK_ROWS = Shape<E>::block_rows;
    const int dim = kv.head_dim, padded = scratch.padded_dim, q_stride = padded / NUMBERS;
    const int depth = int(round_up(dim, STEP)) / NUMBERS, width = int(round_up(dim, LANES));
    const int num_rows = tokens * heads, padded_rows = int(round_up(num_rows, Shape<E>::rows));

    auto *packed_query = reinterpret_cast<E *>(scratch.query);
    auto *keys = reinterpret_cast<E *>(scratch.keys);
    auto *values = reinterpret_cast<E *>(scratch.values);
    auto *probabilities = reinterpret_cast<Probability *>(
        PAIRS ? static_cast<void *>(scratch.probabilities) : scratch.scores);
    memset(packed_query + num_rows * q_stride, 0, (padded_rows - num_rows) * q_stride * sizeof(E));
    for (int row = 0; row < num_rows; row++) {
        pack_query(query + row / heads * query_stride + row % heads * dim, dim, padded,
                   packed_query + row * q_stride);
        scratch.peaks[row] = -FLT_MAX;
        scratch.totals[row] = 0;
    }
    memset(scratch.sums, 0, int64_t(padded_rows) * padded * sizeof(float));

    const int64_t end = begin + tokens;
    const int64_t reach = window > 0 && begin >= window ? begin - window + 1 : 0;
    Rows rows;
    for (int64_t tile = reach / KEYS * KEYS; tile < end; tile += KEYS) {
        // Positions before every window may have lost their blocks.
        const int64_t from = tile < reach ? reach : tile;
        find_rows<T>(kv, table, group, from, tile + KEYS < end ? tile + KEYS : end, rows);
        pack_keys<T>(rows, dim, depth, keys);
        pack_values<T>(rows, dim, padded, values);
        for (int row = 0; row < padded_rows; row += BLOCK_ROWS) {
            const int block = padded_rows - row < BLOCK_ROWS ? padded_rows - row : BLOCK_ROWS;
            const int real = num_rows - row < block ? num_rows - row : block;
            const int64_t oldest = begin + row / heads;
            const int64_t newest = begin + (row + real - 1) / heads;
            if (from > newest || (window > 0 && from + rows.count <= oldest - window + 1)) continue;
            // Behind the newest token nobody looks.
            const int seen = newest + 1 - from < rows.count ? int(newest + 1 - from) : rows.count;
            const int columns = int(round_up(seen, LANES)), steps = int(round_up(seen, STEP));
            multiply<false>(block, columns, depth, packed_query + row * q_stride, q_stride, keys,
                            KEYS, scratch.scores, KEYS);
            for (int i = 0; i < real; i++) {
                const int64_t position = begin + (row + i) / heads;
                const int64_t first = window > 0 ? position - window + 1 - from : 0;
                const int64_t last = position + 1 - from;
                soften_row<T>(rows, columns, first > 0 ? int(first < KEYS ? first : KEYS) : 0,
                              last < rows.count ? int(last) : rows.count, scaling,
                              scratch.scores + i * KEYS, probabilities + i * KEYS,
                              scratch.peaks[row + i], scratch.totals[row + i],
                              scratch.sums + int64_t(row + i) * padded, width);
                if (columns < steps) store_probability(probabilities + i * KEYS + columns, vf{});
            }
            multiply<true>(block, width, steps / NUMBERS,
                           reinterpret_cast<const E *>(probabilities), KEYS / NUMBERS, values,
                           padded, scratch.sums + int64_t(row) * padded, padded);
        }
    }
}

}  // namespace octavo::OCTAVO_ISA::paged
