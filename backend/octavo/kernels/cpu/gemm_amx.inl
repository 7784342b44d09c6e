// Products with AMX: 32 rows meet a panel of 32 outputs in four tiles of sums. Weights that are
// not stored as tiles take them are unpacked in front of them, a stretch of inputs at a time.

namespace octavo::OCTAVO_ISA {

constexpr int AMX_ROWS = 32;
constexpr int AMX_LEAST_ROWS = 5;  // fewer are memory-bound, and tiles cost more to set up

// `units` units of a panel as tiles take them: rows of 128 bytes, 64 of each half.
template <Format F>
OCTAVO_INLINE const uint8_t *tile_weights(const uint8_t *panel, int unit, int units,
                                          uint8_t *unpacked) {
    typedef typename KernelOf<F>::type Kernel;
    const uint8_t *from = panel + size_t(unit) * Kernel::unit_bytes;
    if constexpr (F == Format::bf16 || F == Format::w8a8) {
        return from;
    } else {
        for (int u = 0; u < units; u++, from += Kernel::unit_bytes)
            for (int h = 0; h < 2; h++) {
                const auto loaded = Kernel::load(from, h);
                for (int i = 0; i < Kernel::vectors; i++)
                    store_as(unpacked + (u * Kernel::vectors + i) * 128 + h * 64,
                             Kernel::get(loaded, i));
            }
        return unpacked;
    }
}

template <bool is_integer, int C, int A, int B>
OCTAVO_INLINE void multiply_tiles() {
    if constexpr (is_integer)
        multiply_u8s8<C, A, B>();
    else
        multiply_bf16<C, A, B>();
}

template <Format F, class Epilogue>
void amx_multiply_as(Worker &w, const Matrix &m, const Inputs &in, Epilogue &&f) {
    typedef typename KernelOf<F>::type Kernel;
    constexpr bool is_integer = F == Format::w8a8 || F == Format::w4a8;
    constexpr bool is_grouped = F == Format::int4 || F == Format::w4a8;
    constexpr bool is_scaled = F != Format::bf16;
    const int units = m.padded_inputs / UNIT;
    const int step = is_grouped ? m.group_size / UNIT : units;
    // A tile takes 64 bytes of a row, 64 or 32 inputs, but not of two groups.
    const int tile_units = std::min(is_integer ? 8 : 4, step);
    const int row_bytes = tile_units * UNIT * (is_integer ? 1 : 2);
    const int64_t padded = int64_t(num_panels(m)) * PANEL;
    configure_tiles({row_bytes});
    w.tasks(num_panels(m), [&](int panel) {
        const uint8_t *weights = m.panels + size_t(panel) * units * Kernel::unit_bytes;
        alignas(64) uint8_t unpacked[16 * 128];
        alignas(64) uint8_t tile_sums[AMX_ROWS][PANEL * 4];
        alignas(64) float totals[AMX_ROWS][PANEL];
        for (int begin = 0; begin < in.count; begin += AMX_ROWS) {
            const int rows = std::min(AMX_ROWS, in.count - begin);
            const bool both = rows > 16;
            const uint8_t *upper = in.rows + begin * in.row_bytes;
            const uint8_t *lower = upper + 16 * in.row_bytes;
            for (int g = 0, first = 0; first < units; g++, first += step) {
                zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
                for (int u = first; u < first + step; u += tile_units) {
                    const uint8_t *b = tile_weights<F>(weights, u, tile_units, unpacked);
                    const int64_t at = int64_t(u) * UNIT * (is_integer ? 1 : 2);
                    load_tile<6>(b, 128);
                    load_tile<7>(b + 64, 128);
                    load_tile<4>(upper + at, in.row_bytes);
                    multiply_tiles<is_integer, 0, 4, 6>();
                    multiply_tiles<is_integer, 1, 4, 7>();
                    if (both) {
                        load_tile<5>(lower + at, in.row_bytes);
                        multiply_tiles<is_integer, 2, 5, 6>();
                        multiply_tiles<is_integer, 3, 5, 7>();
                    }
                }
                store_tile<0>(tile_sums[0], PANEL * 4);
                store_tile<1>(tile_sums[0] + 64, PANEL * 4);
                if (both) {
                    store_tile<2>(tile_sums[16], PANEL * 4);
                    store_tile<3>(tile_sums[16] + 64, PANEL * 4);
                }
                for (int h = 0; h < 2; h++) {
                    const int64_t column = g * padded + int64_t(panel) * PANEL + h * LANES;
                    vf scale = {};
                    vi sums = {};
                    if constexpr (is_scaled)
                        scale = is_grouped ? load(static_cast<const bf16 *>(m.scales) + column)
                                           : load(static_cast<const float *>(m.scales) + column);
                    if constexpr (is_integer) sums = load_as<vi>(m.sums + column);
                    for (int r = 0; r < rows; r++) {
                        const uint8_t *from = tile_sums[r] + h * 64;
                        vf x = is_integer ? __builtin_convertvector(load_as<vi>(from) - sums, vf)
                                          : load_as<vf>(from);
                        if constexpr (is_scaled) x *= scale;
                        float *total = totals[r] + h * LANES;
                        store(total, g ? load(total) + x : x);
                    }
                }
            }
            for (int r = 0; r < rows; r++) {
                for (int h = 0; h < 2; h++) {
                    float *total = totals[r] + h * LANES;
                    vf x = load(total);
                    if constexpr (is_integer) x *= in.scales[begin + r];
                    if (m.bias) x += load(m.bias + panel * PANEL + h * LANES);
                    store(total, x);
                }
                f(begin + r, panel, totals[r]);
            }
        }
    });
    release_tiles();
}

// Formats with tiles: all but those with float inputs.
template <class Epilogue>
void amx_multiply(Worker &w, const Matrix &m, const Inputs &in, Epilogue &&f) {
    switch (m.format) {
        case Format::bf16: return amx_multiply_as<Format::bf16>(w, m, in, f);
        case Format::int8: return amx_multiply_as<Format::int8>(w, m, in, f);
        case Format::int4: return amx_multiply_as<Format::int4>(w, m, in, f);
        case Format::w8a8: return amx_multiply_as<Format::w8a8>(w, m, in, f);
        case Format::w4a8: return amx_multiply_as<Format::w4a8>(w, m, in, f);
        default: return;  // float inputs have no tiles; see multiply
    }
}

}  // namespace octavo::OCTAVO_ISA
