// Weights in the order in which the kernels read them. Within a panel of 32 outputs, a unit of 8
// inputs k is, with the two halves h of 16 outputs c:
//
//   f32        [k][h][c]                 float
//   bf16       [k/2][h][c][k%2]          pairs, as bf16 dot products and AMX take them
//   int8       [k/2][h][c][k%2]          bytes
//   int4       [h][c][k%2] words         nibble i of a word is input 2 · i + k%2
//   w8a8       [k/4][h][c][k%4]          bytes, as int8 dot products and AMX take them
//   w4a8       [h][c][k%4]               bytes; the low nibble is of inputs 0 to 3, the high of 4 to 7
//
// Nibbles are 0 to 15 for −8 to 7.
#include "pack.h"

#include <cstring>
#include <vector>

namespace octavo {

namespace {

size_t unit_bytes(Format format) {
    switch (format) {
        case Format::f32: return UNIT * PANEL * 4;
        case Format::bf16: return UNIT * PANEL * 2;
        case Format::int8:
        case Format::int8_f32:
        case Format::w8a8: return UNIT * PANEL;
        default: return UNIT * PANEL / 2;
    }
}

// The row of the weight that is output `lane` of a panel, or −1 for padding.
int64_t source_row(const Matrix &m, int panel, int lane) {
    if (!m.is_gated) {
        int64_t row = int64_t(panel) * PANEL + lane;
        return row < m.outputs ? row : -1;
    }
    int64_t half = m.outputs / 2, row = int64_t(panel) * 16 + lane % 16;
    return row < half ? row + (lane < 16 ? 0 : half) : -1;
}

// The place of (lane, k) in a unit, in numbers of its type (nibble formats: in bytes).
int place(Format format, int lane, int k) {
    int h = lane / 16, c = lane % 16;
    switch (format) {
        case Format::f32: return k * 32 + h * 16 + c;
        case Format::bf16:
        case Format::int8:
        case Format::int8_f32: return (k / 2) * 64 + h * 32 + c * 2 + k % 2;
        case Format::w8a8: return (k / 4) * 128 + h * 64 + c * 4 + k % 4;
        // nibble i = k / 2 of word c · 2 + k % 2, whose low byte has nibbles 0 and 1
        case Format::int4:
        case Format::int4_f32: return h * 64 + (c * 2 + k % 2) * 2 + k / 4;
        case Format::w4a8: return h * 64 + c * 4 + k % 4;
    }
    return 0;
}

bool is_high_nibble(Format format, int k) {
    return format == Format::w4a8 ? k >= 4 : (k / 2) % 2 == 1;
}

template <class T>
void fill(const Matrix &m, int panel, const T *weight, uint8_t *out) {
    const bool nibbles = m.format == Format::int4 || m.format == Format::int4_f32 ||
                         m.format == Format::w4a8;
    const size_t bytes = unit_bytes(m.format);
    if (nibbles)
        memset(out, 0x88, panel_bytes(m));  // zeros
    else
        memset(out, 0, panel_bytes(m));
    int places[PANEL][UNIT];
    for (int lane = 0; lane < PANEL; lane++)
        for (int k = 0; k < UNIT; k++) places[lane][k] = place(m.format, lane, k);
    for (int lane = 0; lane < PANEL; lane++) {
        int64_t row = source_row(m, panel, lane);
        if (row < 0) continue;
        const T *from = weight + row * m.inputs;
        for (int k = 0; k < m.inputs; k++) {
            uint8_t *unit = out + k / UNIT * bytes;
            int at = places[lane][k % UNIT];
            if (!nibbles) {
                reinterpret_cast<T *>(unit)[at] = from[k];
            } else {
                uint8_t nibble = uint8_t(from[k] + T(8)) & 15;
                if (is_high_nibble(m.format, k % UNIT))
                    unit[at] = uint8_t((unit[at] & 0x0f) | nibble << 4);
                else
                    unit[at] = uint8_t((unit[at] & 0xf0) | nibble);
            }
        }
    }
}

}  // namespace

int num_panels(const Matrix &m) {
    int outputs = m.is_gated ? m.outputs / 2 : m.outputs, width = m.is_gated ? PANEL / 2 : PANEL;
    return (outputs + width - 1) / width;
}

size_t panel_bytes(const Matrix &m) { return m.padded_inputs / UNIT * unit_bytes(m.format); }

void pack(Worker &w, const Matrix &m, const void *weight, const void *scales, const float *bias,
          Packed out) {
    const int groups = m.group_size ? m.padded_inputs / m.group_size : 1;
    const int given_groups = m.group_size ? m.inputs / m.group_size : 1;
    const int64_t padded = int64_t(num_panels(m)) * PANEL;
    const bool is_grouped = m.group_size > 0;
    const bool sums = m.format == Format::w8a8 || m.format == Format::w4a8;
    w.tasks(num_panels(m), [&](int panel) {
        uint8_t *to = out.panels + panel * panel_bytes(m);
        switch (m.format) {
            case Format::f32: fill(m, panel, static_cast<const uint32_t *>(weight), to); break;
            case Format::bf16: fill(m, panel, static_cast<const uint16_t *>(weight), to); break;
            default: fill(m, panel, static_cast<const int8_t *>(weight), to);
        }
        for (int lane = 0; lane < PANEL; lane++) {
            int64_t row = source_row(m, panel, lane), at = int64_t(panel) * PANEL + lane;
            if (out.bias) out.bias[at] = row < 0 ? 0.0f : bias[row];
            for (int g = 0; g < groups && out.scales; g++) {
                bool known = row >= 0 && g < given_groups;
                int64_t from = row * given_groups + g, to = g * padded + at;
                if (m.scale_type == ScaleType::f32)
                    static_cast<float *>(out.scales)[to] =
                        known ? static_cast<const float *>(scales)[from] : 0.0f;
                else
                    static_cast<uint16_t *>(out.scales)[to] =
                        known ? static_cast<const uint16_t *>(scales)[from] : 0;
            }
            for (int g = 0; g < groups && sums; g++) {
                int32_t total = 0;
                int begin = is_grouped ? g * m.group_size : 0;
                int end = is_grouped ? begin + m.group_size : m.inputs;
                for (int k = begin; row >= 0 && k < end && k < m.inputs; k++)
                    total += static_cast<const int8_t *>(weight)[row * m.inputs + k];
                out.sums[g * padded + at] = 128 * total;
            }
        }
    });
}

}  // namespace octavo
