// Sixteen numbers at once in GCC's vector types, which it lowers to whatever the unit is compiled
// for: one AVX-512 register, two of AVX2, four of SSE. Everything is in a namespace of the
// instruction set (OCTAVO_ISA), or the linker would merge functions compiled for different ones.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef OCTAVO_ISA
#error "include vec.h from an isa_*.cpp, which names its instruction set"
#endif

#define OCTAVO_INLINE inline __attribute__((always_inline))

namespace octavo::OCTAVO_ISA {

constexpr int LANES = 16;

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));
typedef int8_t vb __attribute__((vector_size(16)));
typedef _Float16 vf16 __attribute__((vector_size(32)));

// Stored types. A bf16 is the upper half of a float.
struct bf16 {
    uint16_t bits;
};
typedef _Float16 f16;

template <class V>
OCTAVO_INLINE V load_as(const void *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <class V>
OCTAVO_INLINE void store_as(void *p, V v) {
    memcpy(p, &v, sizeof v);
}

OCTAVO_INLINE vf splat(float x) { return x - vf{}; }

OCTAVO_INLINE float to_float(float x) { return x; }
OCTAVO_INLINE float to_float(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
OCTAVO_INLINE float to_float(f16 x) { return float(x); }
OCTAVO_INLINE float to_float(int8_t x) { return float(x); }

OCTAVO_INLINE vf load(const float *p) { return load_as<vf>(p); }
OCTAVO_INLINE vf load(const bf16 *p) {
    return (vf)(__builtin_convertvector(load_as<vh>(p), vu) << 16);
}
OCTAVO_INLINE vf load(const f16 *p) { return __builtin_convertvector(load_as<vf16>(p), vf); }
OCTAVO_INLINE vf load(const int8_t *p) {
    return __builtin_convertvector(__builtin_convertvector(load_as<vb>(p), vi), vf);
}

// Rounded to nearest even; what is not a number stays so.
OCTAVO_INLINE vh narrow(vf x) {
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu quiet = (vu)(x != x);
    return __builtin_convertvector((quiet & 0x7fc0) | (~quiet & rounded), vh);
}

OCTAVO_INLINE void store(float *p, vf x) { store_as(p, x); }
OCTAVO_INLINE void store(bf16 *p, vf x) { store_as(p, narrow(x)); }
OCTAVO_INLINE void store(f16 *p, vf x) { store_as(p, __builtin_convertvector(x, vf16)); }

// The first n of sixteen, the others zero; nothing behind them is touched.
template <class T>
OCTAVO_INLINE vf load(const T *p, int n) {
    if (n >= LANES) return load(p);
    alignas(64) T part[LANES] = {};
    memcpy(part, p, n * sizeof(T));
    return load(part);
}

template <class T>
OCTAVO_INLINE void store(T *p, vf x, int n) {
    if (n >= LANES) return store(p, x);
    alignas(64) T part[LANES];
    store(part, x);
    memcpy(p, part, n * sizeof(T));
}

OCTAVO_INLINE vf select(vi mask, vf yes, vf no) {
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}
OCTAVO_INLINE vf max(vf a, vf b) { return select(a > b, a, b); }
OCTAVO_INLINE vf min(vf a, vf b) { return select(a < b, a, b); }
OCTAVO_INLINE vf abs(vf x) { return (vf)((vu)x & 0x7fffffff); }

OCTAVO_INLINE float sum(vf x) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    v8 a[2];
    memcpy(a, &x, sizeof a);
    v8 b = a[0] + a[1];
    v4 c[2];
    memcpy(c, &b, sizeof c);
    v4 d = c[0] + c[1];
    return (d[0] + d[2]) + (d[1] + d[3]);
}

OCTAVO_INLINE float largest(vf x) {
    float m = x[0];
    for (int i = 1; i < LANES; i++) m = x[i] > m ? x[i] : m;
    return m;
}

// e^x to 2 units in the last place: 2^n · e^r with r in ±ln2/2, e^r by the Taylor polynomial of
// degree 7. 0 below -87.3, where floats lose their precision; infinity above 88.7.
OCTAVO_INLINE vf exp(vf x) {
    const vf low = splat(-87.33654f), high = splat(88.72283f);
    vf clamped = min(max(x, low), high);
    // Adding and taking off 1.5 · 2^23 rounds to the nearest integer.
    vf n = clamped * 1.44269504f + 12582912.0f - 12582912.0f;
    vf r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = splat(1.9841270e-4f);
    p = p * r + 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    // 2^n in two factors: n reaches 128, for which there is no float.
    vi whole = __builtin_convertvector(n, vi);
    vi half = whole >> 1;
    vf scaled = p * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
    scaled = select(x < low, vf{}, scaled);
    scaled = select(x > high, splat(INFINITY), scaled);
    return select(x != x, x, scaled);
}

OCTAVO_INLINE vf tanh(vf x) {
    vf a = abs(x);
    vf e = exp(a * -2.0f);
    vf big = (1.0f - e) / (1.0f + e);
    // Near zero the difference above loses its digits; the series does not.
    vf s = x * x;
    vf small = a * (1.0f + s * (-1.0f / 3 + s * (2.0f / 15 - s * (17.0f / 315))));
    vf t = select(a < splat(0.1f), small, big);
    return (vf)((vu)t | ((vu)x & 0x80000000u));
}

}  // namespace octavo::OCTAVO_ISA
