// Products with AMX: 32 rows meet a panel of 32 outputs in four tiles of sums.
//
// Four tile products take 64 cycles and 2 KB each of rows and of weights. Sapphire Rapids' second
// cache gives about 45 bytes a cycle and what lies behind it 10 (others' measurements; what is
// chosen here by them was not timed). So a task is some panels and a chunk of rows, and goes
// through blocks of inputs: a block's 16 KB of a panel stay in the first cache while the chunk's
// rows pass by (32 bytes a cycle from the second), the chunk's 128 KB of a block stay in the second
// while panels take turns. Sums wait in memory as tiles have them, so that where a block ends
// changes no bit of them.

namespace octavo::OCTAVO_ISA {

constexpr int AMX_ROWS = 32;
constexpr int AMX_LEAST_ROWS = 5;  // fewer are memory-bound, and tiles cost more to set up
constexpr int BLOCK_BYTES = 512;   // of a row
constexpr int CHUNK_ROWS = 256;
constexpr int MAX_TOGETHER = 8;           // panels of a task
constexpr int64_t RESIDENT = 512 * 1024;  // bytes of rows that the second cache keeps anyway

template <Format F, bool has_groups>
struct Tiled {
    typedef typename KernelOf<F>::type Kernel;
    static constexpr bool is_integer = F == Format::w8a8 || F == Format::w4a8;
    static constexpr bool is_grouped = has_groups;
    static constexpr bool is_scaled = F != Format::bf16;
    // Whether weights are not stored as tiles take them: rows of 128 bytes, 64 of each half.
    static constexpr bool is_unpacked = F != Format::bf16 && F != Format::w8a8;
    static constexpr int row_bytes = UNIT * (is_integer ? 1 : 2);  // of a unit
    static constexpr int tile_bytes = Kernel::vectors * 128;       // of a unit
    static constexpr int block_units = BLOCK_BYTES / row_bytes;

    static OCTAVO_INLINE void unpack(const uint8_t *from, int units, uint8_t *to) {
        for (int u = 0; u < units; u++)
            for (int h = 0; h < 2; h++) {
                const auto loaded = Kernel::load(from + u * Kernel::unit_bytes, h);
                for (int i = 0; i < Kernel::vectors; i++)
                    store_as(to + u * tile_bytes + i * 128 + h * 64, Kernel::get(loaded, i));
            }
    }
};

// A panel's units [begin, end).
struct Block {
    int panel, panels, begin, end;
    int tile_units;
    uint8_t *unpacked;
    // Bytes from what is read to what is read later, which is brought to the second cache: of
    // weights for each 32 rows as many lines, of every 32 rows these.
    int64_t weights_ahead, rows_ahead;
    int lines_ahead, first_ahead, end_ahead;
};

template <bool is_integer, int C, int A, int B>
OCTAVO_INLINE void multiply_tiles() {
    if constexpr (is_integer)
        multiply_u8s8<C, A, B>();
    else
        multiply_bf16<C, A, B>();
}

OCTAVO_INLINE void load_sums(const float (*sums)[PANEL], bool both) {
    load_tile<0>(sums[0], PANEL * 4);
    load_tile<1>(sums[0] + LANES, PANEL * 4);
    if (!both) return;
    load_tile<2>(sums[16], PANEL * 4);
    load_tile<3>(sums[16] + LANES, PANEL * 4);
}

OCTAVO_INLINE void store_sums(float (*sums)[PANEL], bool both) {
    store_tile<0>(sums[0], PANEL * 4);
    store_tile<1>(sums[0] + LANES, PANEL * 4);
    if (!both) return;
    store_tile<2>(sums[16], PANEL * 4);
    store_tile<3>(sums[16] + LANES, PANEL * 4);
}

// A stretch of a block's products with `rows` rows from `row` on, added to the tiles of sums.
template <Format F, bool G>
OCTAVO_INLINE void add_products(const Matrix &m, const Inputs &in, const Block &block, int begin,
                                int end, int row, bool both, bool unpacks) {
    typedef Tiled<F, G> T;
    typedef typename T::Kernel Kernel;
    const uint8_t *weights =
        m.panels + size_t(block.panel) * (m.padded_inputs / UNIT) * Kernel::unit_bytes;
    const uint8_t *upper = in.rows + row * in.row_bytes, *lower = upper + 16 * in.row_bytes;
    for (int u = begin; u < end; u += block.tile_units) {
        const uint8_t *tiles = weights + int64_t(u) * Kernel::unit_bytes;
        const int64_t at = int64_t(u) * T::row_bytes;
        for (int line = 0; line < block.lines_ahead; line++)
            __builtin_prefetch(tiles + block.weights_ahead + line * 64, 0, 2);
        for (int r = block.first_ahead; r < block.end_ahead; r++)
            __builtin_prefetch(upper + r * in.row_bytes + at + block.rows_ahead, 0, 2);
        if constexpr (T::is_unpacked) {
            uint8_t *to = block.unpacked + (u - block.begin) * T::tile_bytes;
            if (unpacks) T::unpack(tiles, block.tile_units, to);
            tiles = to;
        }
        load_tile<6>(tiles, 128);
        load_tile<7>(tiles + 64, 128);
        stream_tile<4>(upper + at, in.row_bytes);
        multiply_tiles<T::is_integer, 0, 4, 6>();
        multiply_tiles<T::is_integer, 1, 4, 7>();
        if (both) {
            stream_tile<5>(lower + at, in.row_bytes);
            multiply_tiles<T::is_integer, 2, 5, 6>();
            multiply_tiles<T::is_integer, 3, 5, 7>();
        }
    }
}

// Scales of 16 outputs side by side, from number `at` on.
OCTAVO_INLINE vf load_scales(const Matrix &m, int64_t at) {
    switch (m.scale_type) {
        case ScaleType::bf16: return load(static_cast<const bf16 *>(m.scales) + at);
        case ScaleType::f16: return load(static_cast<const f16 *>(m.scales) + at);
        default: return load(static_cast<const float *>(m.scales) + at);
    }
}

// A panel's factors of one group of inputs, half by half.
template <Format F, bool G>
struct Factors {
    vf scale[2];
    vi sums[2];

    OCTAVO_INLINE Factors(const Matrix &m, const Block &block, int group) {
        for (int h = 0; h < 2; h++) {
            const int64_t at =
                (int64_t(group) * block.panels + block.panel) * PANEL + h * LANES;
            if constexpr (Tiled<F, G>::is_scaled) scale[h] = load_scales(m, at);
            if constexpr (Tiled<F, G>::is_integer) sums[h] = load_as<vi>(m.sums + at);
        }
    }

    // Half a row of sums as tiles have them, as floats.
    OCTAVO_INLINE vf operator()(const float *from, int h) const {
        vf x = load(from);
        if constexpr (Tiled<F, G>::is_integer) x = __builtin_convertvector((vi)x - sums[h], vf);
        if constexpr (Tiled<F, G>::is_scaled) x *= scale[h];
        return x;
    }
};

// sums [rows, PANEL] (+)= the products of at most 32 rows with a block: as tiles have them, or,
// where each group has its scale, as floats.
template <Format F, bool G>
void multiply_block(const Matrix &m, const Inputs &in, const Block &block, int row, int rows,
                    bool unpacks, float (*sums)[PANEL]) {
    const bool both = rows > 16;
    if constexpr (!Tiled<F, G>::is_grouped) {
        if (block.begin == 0)
            zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
        else
            load_sums(sums, both);
        add_products<F, G>(m, in, block, block.begin, block.end, row, both, unpacks);
        store_sums(sums, both);
    } else {
        alignas(64) float own[AMX_ROWS][PANEL];
        const int step = m.group_size / UNIT;
        for (int u = block.begin, group = u / step; u < block.end; u += step, group++) {
            zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
            add_products<F, G>(m, in, block, u, u + step, row, both, unpacks);
            store_sums(own, both);
            const Factors<F, G> factors(m, block, group);
            for (int r = 0; r < rows; r++)
                for (int h = 0; h < 2; h++) {
                    const vf x = factors(own[r] + h * LANES, h);
                    float *total = sums[r] + h * LANES;
                    store(total, group ? load(total) + x : x);
                }
        }
    }
}

// f(row, panel, sums[32]) for `rows` rows from `begin` on, to which all blocks are added.
template <Format F, bool G, class Epilogue>
OCTAVO_INLINE void finish_rows(const Matrix &m, const Inputs &in, const Block &block, int begin,
                               int rows, float (*sums)[PANEL], Epilogue &&f) {
    const Factors<F, G> factors(m, block, 0);
    const int panel = block.panel;
    for (int r = 0; r < rows; r++) {
        for (int h = 0; h < 2; h++) {
            float *total = sums[r] + h * LANES;
            vf x = Tiled<F, G>::is_grouped ? load(total) : factors(total, h);
            if constexpr (Tiled<F, G>::is_integer) x *= in.scales[begin + r];
            if (m.bias) x += load(m.bias + panel * PANEL + h * LANES);
            store(total, x);
        }
        f(begin + r, panel, sums[r]);
    }
}

template <Format F, bool G, class Epilogue>
void amx_multiply_as(Worker &w, const Matrix &m, const Inputs &in, Epilogue &&f) {
    typedef Tiled<F, G> T;
    const int units = m.padded_inputs / UNIT, panels = num_panels(m);
    // A tile takes 64 bytes of a row, 64 or 32 inputs, but not of two groups.
    const int whole = 64 / T::row_bytes;
    const int tile_units = T::is_grouped ? std::min(whole, m.group_size / UNIT) : whole;
    const int chunks = (in.count + CHUNK_ROWS - 1) / CHUNK_ROWS;
    const int chunk_rows = ((in.count + chunks - 1) / chunks + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS;
    // Many rows come from far away: several panels share the way.
    const int enough = std::clamp(panels * chunks / (4 * w.count), 1, MAX_TOGETHER);
    const int together = in.count * in.row_bytes > RESIDENT ? enough : 1;
    const int share = (AMX_ROWS + together - 1) / together;
    configure_tiles({tile_units * T::row_bytes});
    w.tasks((panels + together - 1) / together * chunks, [&](int task) {
        alignas(64) float sums[MAX_TOGETHER][CHUNK_ROWS][PANEL];
        alignas(64) uint8_t unpacked[T::is_unpacked ? T::block_units * T::tile_bytes : 64];
        const int first = task / chunks * together, last = std::min(first + together, panels);
        const int begin = task % chunks * chunk_rows;
        const int rows = std::min(chunk_rows, in.count - begin);
        Block block;
        block.panels = panels;
        block.tile_units = tile_units;
        block.unpacked = unpacked;
        // Each 32 rows have their share of the next block's lines.
        const int strips = (rows + AMX_ROWS - 1) / AMX_ROWS;
        block.lines_ahead = (tile_units * T::Kernel::unit_bytes + 64 * strips - 1) / (64 * strips);
        for (int u = 0; u < units; u += T::block_units) {
            block.begin = u;
            block.end = std::min(u + T::block_units, units);
            const bool is_last = block.end == units;
            const int64_t next = begin + chunk_rows < in.count ? chunk_rows : -begin;
            block.rows_ahead = is_last ? next * in.row_bytes - u * T::row_bytes : BLOCK_BYTES;
            for (int panel = first; panel < last; panel++) {
                block.panel = panel;
                const int64_t to_next = panel + 1 < last ? units
                                                         : (first - panel) * units + T::block_units;
                block.first_ahead = together > 1 ? (panel - first) * share : 0;
                block.end_ahead = together > 1 ? block.first_ahead + share : 0;
                for (int strip = 0; strip < strips; strip++) {
                    const int row = strip * AMX_ROWS, count = std::min(AMX_ROWS, rows - row);
                    float (*own)[PANEL] = sums[panel - first] + row;
                    block.weights_ahead =
                        to_next * T::Kernel::unit_bytes + strip * block.lines_ahead * 64;
                    multiply_block<F, G>(m, in, block, begin + row, count, strip == 0, own);
                    if (is_last) finish_rows<F, G>(m, in, block, begin + row, count, own, f);
                }
            }
        }
    });
    release_tiles();
}

template <Format F, class Epilogue>
void amx_multiply_scaled(Worker &w, const Matrix &m, const Inputs &in, Epilogue &&f) {
    return m.group_size ? amx_multiply_as<F, true>(w, m, in, f)
                        : amx_multiply_as<F, false>(w, m, in, f);
}

// Formats with tiles: all but those with float inputs.
template <class Epilogue>
void amx_multiply(Worker &w, const Matrix &m, const Inputs &in, Epilogue &&f) {
    switch (m.format) {
        case Format::bf16: return amx_multiply_as<Format::bf16, false>(w, m, in, f);
        case Format::int8: return amx_multiply_scaled<Format::int8>(w, m, in, f);
        case Format::int4: return amx_multiply_scaled<Format::int4>(w, m, in, f);
        case Format::w8a8: return amx_multiply_scaled<Format::w8a8>(w, m, in, f);
        case Format::w4a8: return amx_multiply_scaled<Format::w4a8>(w, m, in, f);
        default: return;  // float inputs have no tiles; see multiply
    }
}

}  // namespace octavo::OCTAVO_ISA
