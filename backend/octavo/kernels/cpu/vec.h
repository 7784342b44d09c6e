// Sixteen numbers at once in GCC's vector types, which it lowers to whatever the unit is compiled
// for: one AVX-512 register, two of AVX2, four of SSE. Everything is in a namespace of the
// instruction set (OCTAVO_ISA), or the linker would merge functions compiled for different ones.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

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

typedef float v4 __attribute__((vector_size(16)));

// What one register holds. Loops that keep many sums use it: GCC 12 puts wider vectors in memory.
#if defined(__AVX512F__)
typedef vf native;
#elif defined(__AVX2__)
typedef float native __attribute__((vector_size(32)));
#else
typedef v4 native;
#endif
constexpr int WIDTH = sizeof(native) / sizeof(float);

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

OCTAVO_INLINE uint32_t to_bits(float x) { return load_as<uint32_t>(&x); }
OCTAVO_INLINE float from_bits(uint32_t bits) { return load_as<float>(&bits); }

OCTAVO_INLINE float to_float(float x) { return x; }
OCTAVO_INLINE float to_float(bf16 x) { return from_bits(uint32_t(x.bits) << 16); }
OCTAVO_INLINE float to_float(f16 x) { return float(x); }
OCTAVO_INLINE float to_float(int8_t x) { return float(x); }

// GCC 12 makes sixteen scalar conversions or comparisons out of one of vectors that are wider than
// the registers, and of f16 always: these have their instructions by name.
#if defined(__AVX2__) && !defined(__AVX512F__)
struct Halves {
    __m256 low, high;
};
OCTAVO_INLINE vf join(__m256 low, __m256 high) {
    Halves h = {low, high};
    return load_as<vf>(&h);
}
OCTAVO_INLINE Halves halves(vf x) { return load_as<Halves>(&x); }
OCTAVO_INLINE __m128i load_8(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
#endif

OCTAVO_INLINE vf load(const float *p) { return load_as<vf>(p); }
#if defined(__AVX512F__)
OCTAVO_INLINE vf load(const bf16 *p) {
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_as<__m256i>(p)), 16);
}
OCTAVO_INLINE vf load(const f16 *p) { return (vf)_mm512_cvtph_ps(load_as<__m256i>(p)); }
OCTAVO_INLINE vf load(const int8_t *p) {
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(p)));
}
#elif defined(__AVX2__)
OCTAVO_INLINE vf load(const bf16 *p) {
    __m256i low = _mm256_cvtepu16_epi32(load_8(p)), high = _mm256_cvtepu16_epi32(load_8(p + 8));
    return join((__m256)_mm256_slli_epi32(low, 16), (__m256)_mm256_slli_epi32(high, 16));
}
OCTAVO_INLINE vf load(const f16 *p) {
    return join(_mm256_cvtph_ps(load_8(p)), _mm256_cvtph_ps(load_8(p + 8)));
}
OCTAVO_INLINE vf load(const int8_t *p) {
    __m128i all = load_8(p);
    return join(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(all, 8))));
}
#else
OCTAVO_INLINE vf load(const bf16 *p) {
    return (vf)(__builtin_convertvector(load_as<vh>(p), vu) << 16);
}
OCTAVO_INLINE vf load(const f16 *p) { return __builtin_convertvector(load_as<vf16>(p), vf); }
OCTAVO_INLINE vf load(const int8_t *p) {
    return __builtin_convertvector(__builtin_convertvector(load_as<vb>(p), vi), vf);
}
#endif

// All bits where it holds; never for what is not a number.
#if defined(__AVX2__) && !defined(__AVX512F__)
OCTAVO_INLINE vi greater(vf a, vf b) {
    Halves x = halves(a), y = halves(b);
    return (vi)join(_mm256_cmp_ps(x.low, y.low, _CMP_GT_OQ),
                    _mm256_cmp_ps(x.high, y.high, _CMP_GT_OQ));
}
OCTAVO_INLINE vi is_nan(vf a) {
    Halves x = halves(a);
    return (vi)join(_mm256_cmp_ps(x.low, x.low, _CMP_UNORD_Q),
                    _mm256_cmp_ps(x.high, x.high, _CMP_UNORD_Q));
}
#else
OCTAVO_INLINE vi greater(vf a, vf b) { return a > b; }
OCTAVO_INLINE vi is_nan(vf a) { return a != a; }
#endif

// A bit for each lane of a mask.
#if defined(__AVX512F__)
OCTAVO_INLINE uint32_t lanes(vi mask) { return _mm512_movepi32_mask((__m512i)mask); }
#elif defined(__AVX2__)
OCTAVO_INLINE uint32_t lanes(vi mask) {
    Halves h = halves((vf)mask);
    return _mm256_movemask_ps(h.low) | _mm256_movemask_ps(h.high) << 8;
}
#else
OCTAVO_INLINE uint32_t lanes(vi mask) {
    uint32_t bits = 0;
    for (int l = 0; l < LANES; l++) bits |= (mask[l] & 1u) << l;
    return bits;
}
#endif

// Rounded to nearest even; what is not a number stays so.
OCTAVO_INLINE vh narrow(vf x) {
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu quiet = (vu)is_nan(x);
    vu all = (quiet & 0x7fc0) | (~quiet & rounded);
#if defined(__AVX2__) && !defined(__AVX512F__)
    Halves h = halves((vf)all);
    __m256i packed = _mm256_packus_epi32((__m256i)h.low, (__m256i)h.high);
    packed = _mm256_permute4x64_epi64(packed, 0xd8);
    return load_as<vh>(&packed);
#else
    return __builtin_convertvector(all, vh);
#endif
}

OCTAVO_INLINE void store(float *p, vf x) { store_as(p, x); }
OCTAVO_INLINE void store(bf16 *p, vf x) { store_as(p, narrow(x)); }
#if defined(__AVX512F__)
OCTAVO_INLINE void store(f16 *p, vf x) { store_as(p, _mm512_cvtps_ph((__m512)x, 0)); }
#elif defined(__AVX2__)
OCTAVO_INLINE void store(f16 *p, vf x) {
    Halves h = halves(x);
    store_as(p, _mm256_cvtps_ph(h.low, 0));
    store_as(p + 8, _mm256_cvtps_ph(h.high, 0));
}
#else
OCTAVO_INLINE void store(f16 *p, vf x) { store_as(p, __builtin_convertvector(x, vf16)); }
#endif

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

// The same of floats, with `rest` in place of the others.
OCTAVO_INLINE vf load_or(const float *p, int n, float rest) {
    if (n >= LANES) return load(p);
    alignas(64) float part[LANES];
    for (int l = 0; l < LANES; l++) part[l] = l < n ? p[l] : rest;
    return load(part);
}

OCTAVO_INLINE vf select(vi mask, vf yes, vf no) {
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}
#if defined(__AVX512F__)
// The second operand where one is not a number.
OCTAVO_INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
OCTAVO_INLINE vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
OCTAVO_INLINE vf max(vf a, vf b) {
    Halves x = halves(a), y = halves(b);
    return join(_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high));
}
OCTAVO_INLINE vf min(vf a, vf b) {
    Halves x = halves(a), y = halves(b);
    return join(_mm256_min_ps(x.low, y.low), _mm256_min_ps(x.high, y.high));
}
#else
OCTAVO_INLINE vf max(vf a, vf b) { return select(a > b, a, b); }
OCTAVO_INLINE vf min(vf a, vf b) { return select(a < b, a, b); }
#endif
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

// A sum in double.
struct Sum {
    typedef double v8d __attribute__((vector_size(64)));
    typedef float v8 __attribute__((vector_size(32)));
    v8d low = {}, high = {};

    OCTAVO_INLINE void add(vf x) {
        v8 half[2];
        memcpy(half, &x, sizeof half);
#if defined(__AVX512F__)
        low += (v8d)_mm512_cvtps_pd((__m256)half[0]);
        high += (v8d)_mm512_cvtps_pd((__m256)half[1]);
#else
        low += __builtin_convertvector(half[0], v8d);
        high += __builtin_convertvector(half[1], v8d);
#endif
    }

    OCTAVO_INLINE double total() const {
        const v8d x = low + high;
        return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
    }
};

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
    scaled = select(greater(low, x), vf{}, scaled);
    scaled = select(greater(x, high), splat(INFINITY), scaled);
    return select(is_nan(x), x, scaled);
}

OCTAVO_INLINE vf tanh(vf x) {
    vf a = abs(x);
    vf e = exp(a * -2.0f);
    vf big = (1.0f - e) / (1.0f + e);
    // Near zero the difference above loses its digits; the series does not.
    vf s = x * x;
    vf small = a * (1.0f + s * (-1.0f / 3 + s * (2.0f / 15 - s * (17.0f / 315))));
    vf t = select(greater(splat(0.1f), a), small, big);
    return (vf)((vu)t | ((vu)x & 0x80000000u));
}

}  // namespace octavo::OCTAVO_ISA
