// Products of activations with packed weights: each panel of 32 outputs is read once, by one
// thread, and meets all rows. A row's sums are always added in the same order, so its result does
// not depend on how many rows there are.

namespace octavo::OCTAVO_ISA {

template <Format>
struct KernelOf;
template <> struct KernelOf<Format::f32> { typedef Generic<GenericF32> type; };
template <> struct KernelOf<Format::int8_f32> { typedef Generic<GenericInt8> type; };
template <> struct KernelOf<Format::int4_f32> { typedef Generic<GenericInt4> type; };
#ifdef __AVX512BF16__
typedef bf16 Activation;  // what inputs are rounded to for weights of 16 bits and fewer
template <> struct KernelOf<Format::bf16> { typedef Avx512Float<Avx512BF16> type; };
template <> struct KernelOf<Format::int8> { typedef Avx512Float<Avx512Int8> type; };
template <> struct KernelOf<Format::int4> { typedef Avx512Float<Avx512Int4> type; };
template <> struct KernelOf<Format::w8a8> { typedef Avx512Integer<Avx512W8A8> type; };
template <> struct KernelOf<Format::w4a8> { typedef Avx512Integer<Avx512W4A8> type; };
#else
typedef float Activation;
template <> struct KernelOf<Format::bf16> { typedef Generic<GenericBF16> type; };
template <> struct KernelOf<Format::int8> { typedef Generic<GenericInt8> type; };
template <> struct KernelOf<Format::int4> { typedef Generic<GenericInt4> type; };
template <> struct KernelOf<Format::w8a8> { typedef Generic<GenericW8A8> type; };
template <> struct KernelOf<Format::w4a8> { typedef Generic<GenericW4A8> type; };
#endif

// Rows of activations as a format takes them, padded to Matrix.padded_inputs.
struct Inputs {
    const uint8_t *rows;
    int64_t row_bytes;  // from one row to the next
    const float *scales;  // of each row, for the formats that quantize activations
    int count;
};

enum class InputKind { f32, activation, int8 };

OCTAVO_INLINE InputKind input_kind(Format format) {
    switch (format) {
        case Format::f32:
        case Format::int8_f32:
        case Format::int4_f32: return InputKind::f32;
        case Format::w8a8:
        case Format::w4a8: return InputKind::int8;
        default: return InputKind::activation;
    }
}

OCTAVO_INLINE size_t input_bytes(Format format) {
    switch (input_kind(format)) {
        case InputKind::f32: return sizeof(float);
        case InputKind::activation: return sizeof(Activation);
        default: return 1;
    }
}

// An odd number of cache lines: with a power of two all rows of a tile would share one or two sets
// of the first cache.
OCTAVO_INLINE int64_t row_bytes(const Matrix &m) {
    return (m.padded_inputs * input_bytes(m.format) / 64 | 1) * 64;
}

// One row to int8 by its largest number; stored + 128, as dot products want it unsigned. Returns
// the scale. What is not finite makes the scale, and so the whole result, not a number.
OCTAVO_INLINE float quantize_row(const float *x, int n, int padded, uint8_t *out) {
    vf peak = {};
    vi bad = {};
    for (int i = 0; i < n; i += LANES) {
        vf v = load(x + i, n - i);
        peak = max(peak, abs(v));
        bad |= v - v != vf{};
    }
    float scale = largest(peak) / 127.0f;
    for (int i = 0; i < LANES; i++)
        if (bad[i]) scale = NAN;
    const float divisor = scale == 0 ? 1.0f : scale;
    for (int i = 0; i < n; i += LANES) {
        // Rounds to the nearest integer, which is then the lowest byte.
        vf q = load(x + i, n - i) / divisor + 12582912.0f + 128.0f;
        vu bytes = (vu)q & 255;
        typedef uint8_t vb16 __attribute__((vector_size(16)));
        vb16 narrow = __builtin_convertvector(bytes, vb16);
        memcpy(out + i, &narrow, n - i < LANES ? n - i : LANES);
    }
    memset(out + n, 128, padded - n);
    return scale;
}

// A row of floats as `format` takes it. For the formats of int8 inputs, *scale is set.
OCTAVO_INLINE void prepare_row(Format format, const float *x, int n, int padded, uint8_t *out,
                               float *scale) {
    switch (input_kind(format)) {
        case InputKind::f32:
            memcpy(out, x, n * sizeof(float));
            memset(out + n * sizeof(float), 0, (padded - n) * sizeof(float));
            break;
        case InputKind::activation: {
            Activation *to = reinterpret_cast<Activation *>(out);
            for (int i = 0; i < n; i += LANES) store(to + i, load(x + i, n - i), n - i);
            memset(to + n, 0, (padded - n) * sizeof(Activation));
            break;
        }
        default: *scale = quantize_row(x, n, padded, out);
    }
}

// sums[R][32] of rows with one panel, scaled by scales of type S, with the bias.
template <Format F, class S, int R>
void panel_rows(const Matrix &m, int panel, const Inputs &in, int row, Ahead &ahead,
                float (*out)[PANEL]) {
    typedef typename KernelOf<F>::type Kernel;
    typedef typename Kernel::Sum Sum;
    constexpr bool is_integer = F == Format::w8a8 || F == Format::w4a8;
    constexpr bool is_scaled = F != Format::f32 && F != Format::bf16;
    const int units = m.padded_inputs / UNIT;
    const uint8_t *weights = m.panels + size_t(panel) * units * Kernel::unit_bytes;
    const int64_t first = int64_t(panel) * PANEL, stride = int64_t(num_panels(m)) * PANEL;
    const typename Kernel::Input *rows[R];
    for (int r = 0; r < R; r++)
        rows[r] = reinterpret_cast<const typename Kernel::Input *>(in.rows +
                                                                   (row + r) * in.row_bytes);
    vf totals[R][2] = {};
    const int step = is_scaled && m.group_size ? m.group_size / UNIT : units;
    for (int g = 0, u = 0; u < units; g++, u += step) {
        Sum sums[R][2] = {};
        Kernel::template dot<R>(weights, rows, u, u + step, sums, ahead);
        for (int h = 0; h < 2; h++) {
            const int64_t at = g * stride + first + h * LANES;
            vf scale = {};
            if constexpr (is_scaled) scale = load(static_cast<const S *>(m.scales) + at);
            for (int r = 0; r < R; r++) {
                if constexpr (is_integer)
                    totals[r][h] += __builtin_convertvector(
                                        sums[r][h] - load_as<vi>(m.sums + at), vf) * scale;
                else if constexpr (is_scaled)
                    totals[r][h] += sums[r][h] * scale;
                else
                    totals[r][h] = sums[r][h];
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++) {
            vf total = totals[r][h];
            if constexpr (is_integer) total *= in.scales[row + r];
            if (m.bias) total += load(m.bias + first + h * LANES);
            store(out[r] + h * LANES, total);
        }
}

template <Format F, class S, int R>
void panel_rows_upto(const Matrix &m, int panel, const Inputs &in, int row, int rows, Ahead &ahead,
                     float (*out)[PANEL]) {
    if constexpr (R > 1) {
        if (rows < R) return panel_rows_upto<F, S, R - 1>(m, panel, in, row, rows, ahead, out);
    }
    panel_rows<F, S, R>(m, panel, in, row, ahead, out);
}

// The type of scales is chosen once for each panel: a choice at each load would stand in the loop over
// the groups, which for 4 bit weights holds only a few products.
template <Format F, int R>
void any_panel_rows(const Matrix &m, int panel, const Inputs &in, int row, int rows, Ahead &ahead,
                    float (*out)[PANEL]) {
    if constexpr (F != Format::f32 && F != Format::bf16) {
        if (m.scale_type == ScaleType::bf16)
            return panel_rows_upto<F, bf16, R>(m, panel, in, row, rows, ahead, out);
        if (m.scale_type == ScaleType::f16)
            return panel_rows_upto<F, f16, R>(m, panel, in, row, rows, ahead, out);
    }
    panel_rows_upto<F, float, R>(m, panel, in, row, rows, ahead, out);
}

// f(row, panel, sums[32]) for each row and panel.
template <Format F, class Epilogue>
void multiply_as(Worker &w, const Matrix &m, const Inputs &in, Epilogue &&f) {
    typedef typename KernelOf<F>::type Kernel;
    constexpr int max_rows = Kernel::max_rows, unit_lines = Kernel::unit_bytes / 64;
    const int64_t panel_bytes = int64_t(m.padded_inputs / UNIT) * Kernel::unit_bytes;
    const int blocks = (in.count + max_rows - 1) / max_rows;
    w.tasks(num_panels(m), [&](int panel) {
        alignas(64) float sums[max_rows][PANEL];
        // Of two small blocks the first would wait for memory, and the second leave it idle: so both
        // fetch a part of the next panel, which most likely is this thread's too.
        Ahead ahead;
        if (blocks > 1 && panel + 1 < num_panels(m))
            ahead = {m.panels + (panel + 1) * panel_bytes, (unit_lines + blocks - 1) / blocks};
        for (int b = 0; b < blocks; b++) {
            // Blocks of about the same number of rows: a rest of one row costs as much as four.
            const int begin = int64_t(in.count) * b / blocks;
            const int rows = int(int64_t(in.count) * (b + 1) / blocks) - begin;
            any_panel_rows<F, max_rows>(m, panel, in, begin, rows, ahead, sums);
            for (int r = 0; r < rows; r++) f(begin + r, panel, sums[r]);
        }
    });
}

}  // namespace octavo::OCTAVO_ISA

#ifdef OCTAVO_AMX
#include "gemm_amx.inl"
#endif

namespace octavo::OCTAVO_ISA {

template <class Epilogue>
void multiply(Worker &w, const Matrix &m, const Inputs &in, Epilogue &&f) {
#ifdef OCTAVO_AMX
    if (in.count >= AMX_LEAST_ROWS && input_kind(m.format) != InputKind::f32)
        return amx_multiply(w, m, in, f);
#endif
    switch (m.format) {
        case Format::f32: return multiply_as<Format::f32>(w, m, in, f);
        case Format::bf16: return multiply_as<Format::bf16>(w, m, in, f);
        case Format::int8: return multiply_as<Format::int8>(w, m, in, f);
        case Format::int4: return multiply_as<Format::int4>(w, m, in, f);
        case Format::w8a8: return multiply_as<Format::w8a8>(w, m, in, f);
        case Format::w4a8: return multiply_as<Format::w4a8>(w, m, in, f);
        case Format::int8_f32: return multiply_as<Format::int8_f32>(w, m, in, f);
        case Format::int4_f32: return multiply_as<Format::int4_f32>(w, m, in, f);
    }
}

// out [count, outputs] = inputs · weight + bias.
inline void linear(Worker &w, const Matrix &m, const Inputs &in, float *out, int64_t out_stride) {
    multiply(w, m, in, [&](int row, int panel, const float *sums) {
        float *to = out + row * out_stride + int64_t(panel) * PANEL;
        const int left = m.outputs - panel * PANEL;
        store(to, load(sums), left);
        if (left > LANES) store(to + LANES, load(sums + LANES), left - LANES);
    });
}

enum class Gate : int32_t { silu = 0, gelu_tanh = 1 };

OCTAVO_INLINE vf gated(Gate kind, vf gate, vf up) {
    if (kind == Gate::silu) return gate / (1.0f + exp(-gate)) * up;
    vf inner = (gate + gate * gate * gate * 0.044715f) * 0.7978845608f;
    return gate * 0.5f * (1.0f + tanh(inner)) * up;
}

// out [count, outputs / 2] = act(gates) · ups, of a gated weight.
template <class Out>
void gated_linear(Worker &w, const Matrix &m, Gate kind, const Inputs &in, Out *out,
                  int64_t out_stride) {
    multiply(w, m, in, [&](int row, int panel, const float *sums) {
        Out *to = out + row * out_stride + int64_t(panel) * LANES;
        store(to, gated(kind, load(sums), load(sums + LANES)), m.outputs / 2 - panel * LANES);
    });
}

}  // namespace octavo::OCTAVO_ISA
