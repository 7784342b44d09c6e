#pragma once

#include "pool.h"
#include "types.h"

namespace octavo {

int num_panels(const Matrix &m);
size_t panel_bytes(const Matrix &m);

struct Packed {
    uint8_t *panels;  // [num_panels, panel_bytes]
    void *scales;     // as in Matrix; null for formats without
    int32_t *sums;    // as in Matrix; null for formats without
    float *bias;      // null without
};

// weight [outputs, inputs]: float, bf16, or int8 (of int4 formats −8 to 7); scales
// of Matrix's type, [outputs, groups]; bias [outputs] float or null. A gated weight has all gates before all
// ups. All threads call it.
void pack(Worker &w, const Matrix &m, const void *weight, const void *scales, const float *bias,
          Packed out);

}  // namespace octavo
