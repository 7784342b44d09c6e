// Reads a unit of a panel (8 inputs of 32 outputs, see pack.cpp) for AVX-512's dot products: of
// pairs of bf16, and of four unsigned with four signed bytes.

namespace octavo::OCTAVO_ISA {

#ifdef __AVX512BF16__

OCTAVO_INLINE __m512i zmm(const void *p) { return _mm512_loadu_si512(p); }

// Of each kind: what is read of a unit and half (`load`), and of that the vector i, of pairs of
// inputs or of fours (`get`). By parts, since 24 of the 32 registers hold sums.

struct Avx512BF16 {
    static constexpr int unit_bytes = UNIT * PANEL * 2;
    typedef const uint8_t *Loaded;
    static OCTAVO_INLINE Loaded load(const uint8_t *unit, int h) { return unit + h * 64; }
    static OCTAVO_INLINE __m512i get(Loaded half, int i) { return zmm(half + i * 128); }
};

struct Avx512Int8 {
    static constexpr int unit_bytes = UNIT * PANEL;
    typedef const uint8_t *Loaded;
    static OCTAVO_INLINE Loaded load(const uint8_t *unit, int h) { return unit + h * 32; }
    static OCTAVO_INLINE __m512i get(Loaded half, int i) {
        const __m128i *bytes = reinterpret_cast<const __m128i *>(half + i * 64);
        __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes)));
        __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes + 1)));
        return (__m512i)_mm512_cvtne2ps_pbh(high, low);
    }
};

struct Avx512Int4 {
    static constexpr int unit_bytes = UNIT * PANEL / 2;
    typedef __m512i Loaded;
    static OCTAVO_INLINE Loaded load(const uint8_t *unit, int h) { return zmm(unit + h * 64); }
    static OCTAVO_INLINE __m512i get(Loaded words, int i) {
        // −8 to 7 in bf16, twice: the look-up takes five bits of each word, of which four count.
        alignas(32) static constexpr uint16_t numbers[16] = {
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
            0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
        const __m512i table = _mm512_broadcast_i64x4(load_as<__m256i>(numbers));
        return _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * i), table);
    }
};

struct Avx512W8A8 {
    static constexpr int unit_bytes = UNIT * PANEL;
    typedef const uint8_t *Loaded;
    static OCTAVO_INLINE Loaded load(const uint8_t *unit, int h) { return unit + h * 64; }
    static OCTAVO_INLINE __m512i get(Loaded half, int i) { return zmm(half + i * 128); }
};

struct Avx512W4A8 {
    static constexpr int unit_bytes = UNIT * PANEL / 2;
    typedef __m512i Loaded;
    static OCTAVO_INLINE Loaded load(const uint8_t *unit, int h) { return zmm(unit + h * 64); }
    static OCTAVO_INLINE __m512i get(Loaded bytes, int i) {
        __m512i nibbles = i ? _mm512_srli_epi16(bytes, 4) : bytes;
        return _mm512_sub_epi8(_mm512_and_si512(nibbles, _mm512_set1_epi8(15)), _mm512_set1_epi8(8));
    }
};

constexpr int AHEAD = 2048;  // bytes; of 1,024 to 8,192 none was better

// Sums of products of R rows with a panel, over a stretch of units. `vectors` of a unit and half.
template <class Weights, class Own, class In, class Sums, int num_vectors>
struct Avx512 : Weights {
    typedef In Input;
    typedef Sums Sum;
    static constexpr int vectors = num_vectors;
    static constexpr int max_rows = 12;

    template <int R>
    static OCTAVO_INLINE void dot(const uint8_t *panel, const Input *const rows[R], int begin,
                                  int end, Sum sums[R][2], Ahead &ahead) {
        constexpr int step = UNIT / vectors;  // inputs of a vector
        for (int u = begin; u < end; u++) {
            const uint8_t *unit = panel + size_t(u) * Weights::unit_bytes;
            const auto first = Weights::load(unit, 0), second = Weights::load(unit, 1);
            // With many rows the processor's own look-ahead does not reach far enough.
            if constexpr (R > 8)
                for (int line = 0; line < Weights::unit_bytes; line += 64)
                    _mm_prefetch(reinterpret_cast<const char *>(unit) + AHEAD + line, _MM_HINT_T0);
            else
                for (int line = 0; line < ahead.lines; line++, ahead.at += 64)
                    _mm_prefetch(reinterpret_cast<const char *>(ahead.at), _MM_HINT_T1);
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++) {
                const __m512i left = Weights::get(first, i), right = Weights::get(second, i);
#pragma GCC unroll 12
                for (int r = 0; r < R; r++) {
                    const __m512i x =
                        _mm512_set1_epi32(load_as<int32_t>(rows[r] + u * UNIT + step * i));
                    sums[r][0] = Own::add(sums[r][0], x, left);
                    sums[r][1] = Own::add(sums[r][1], x, right);
                }
            }
        }
    }
};

struct PairsOfBF16 {
    static OCTAVO_INLINE vf add(vf sum, __m512i x, __m512i weights) {
        return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)weights);
    }
};

struct FoursOfBytes {
    static OCTAVO_INLINE vi add(vi sum, __m512i x, __m512i weights) {
        return (vi)_mm512_dpbusd_epi32((__m512i)sum, x, weights);
    }
};

template <class Weights>
using Avx512Float = Avx512<Weights, PairsOfBF16, bf16, vf, 4>;
template <class Weights>
using Avx512Integer = Avx512<Weights, FoursOfBytes, uint8_t, vi, 2>;

#endif

}  // namespace octavo::OCTAVO_ISA
