// Reads a unit of a panel (8 inputs of 32 outputs, see pack.cpp) as floats, in vector types that
// any instruction set has. Activations are float32, or int8 for the formats that quantize them.

namespace octavo::OCTAVO_ISA {

// The inputs k of half h, from words or double words whose lane c has them side by side.
struct GenericF32 {
    typedef float Input;
    static constexpr int unit_bytes = UNIT * PANEL * 4;
    static OCTAVO_INLINE void unpack(const uint8_t *unit, int h, vf out[UNIT]) {
        for (int k = 0; k < UNIT; k++) out[k] = load_as<vf>(unit + k * 128 + h * 64);
    }
};

struct GenericBF16 {
    typedef float Input;
    static constexpr int unit_bytes = UNIT * PANEL * 2;
    static OCTAVO_INLINE void unpack(const uint8_t *unit, int h, vf out[UNIT]) {
        for (int i = 0; i < UNIT / 2; i++) {
            vu pair = load_as<vu>(unit + i * 128 + h * 64);
            out[2 * i] = (vf)(pair << 16);
            out[2 * i + 1] = (vf)(pair & 0xffff0000u);
        }
    }
};

struct GenericInt8 {
    typedef float Input;
    static constexpr int unit_bytes = UNIT * PANEL;
    static OCTAVO_INLINE void unpack(const uint8_t *unit, int h, vf out[UNIT]) {
        typedef int16_t vs __attribute__((vector_size(32)));
        for (int i = 0; i < UNIT / 2; i++) {
            vs pair = load_as<vs>(unit + i * 64 + h * 32);
            out[2 * i] = __builtin_convertvector((vs)(pair << 8) >> 8, vf);
            out[2 * i + 1] = __builtin_convertvector(pair >> 8, vf);
        }
    }
};

struct GenericInt4 {
    typedef float Input;
    static constexpr int unit_bytes = UNIT * PANEL / 2;
    static OCTAVO_INLINE void unpack(const uint8_t *unit, int h, vf out[UNIT]) {
        vi words = load_as<vi>(unit + h * 64);
        for (int k = 0; k < UNIT; k++)
            out[k] = __builtin_convertvector((words >> (k % 2 * 16 + k / 2 * 4) & 15) - 8, vf);
    }
};

struct GenericW8A8 {
    typedef uint8_t Input;
    static constexpr int unit_bytes = UNIT * PANEL;
    static OCTAVO_INLINE void unpack(const uint8_t *unit, int h, vi out[UNIT]) {
        for (int i = 0; i < UNIT / 4; i++) {
            vi quad = load_as<vi>(unit + i * 128 + h * 64);
            for (int k = 0; k < 4; k++) out[4 * i + k] = quad << (24 - 8 * k) >> 24;
        }
    }
};

struct GenericW4A8 {
    typedef uint8_t Input;
    static constexpr int unit_bytes = UNIT * PANEL / 2;
    static OCTAVO_INLINE void unpack(const uint8_t *unit, int h, vi out[UNIT]) {
        vi quad = load_as<vi>(unit + h * 64);
        for (int k = 0; k < UNIT; k++) out[k] = (quad >> (k % 4 * 8 + k / 4 * 4) & 15) - 8;
    }
};

// Memory to be fetched, as many lines of 64 bytes with each unit of weights.
struct Ahead {
    const uint8_t *at = nullptr;
    int lines = 0;
};

// Sums of products of R rows with a panel, over a stretch of units.
template <class Weights>
struct Generic {
    typedef typename Weights::Input Input;
    typedef std::conditional_t<std::is_same_v<Input, float>, vf, vi> Sum;
    static constexpr int unit_bytes = Weights::unit_bytes;
#ifdef __AVX512F__
    static constexpr int max_rows = 8;
#else
    static constexpr int max_rows = 2;  // registers for no more
#endif

    template <int R>
    static OCTAVO_INLINE void dot(const uint8_t *panel, const Input *const rows[R], int begin,
                                  int end, Sum sums[R][2], Ahead &) {
        for (int u = begin; u < end; u++) {
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                Sum weights[UNIT];
                Weights::unpack(panel + size_t(u) * unit_bytes, h, weights);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                    for (int k = 0; k < UNIT; k++) {
                        auto x = rows[r][u * UNIT + k];
                        if constexpr (std::is_same_v<Input, float>)
                            sums[r][h] += weights[k] * x;
                        else
                            sums[r][h] += weights[k] * int32_t(x);
                    }
            }
        }
    }
};

}  // namespace octavo::OCTAVO_ISA
