// AMX's tiles. GCC 12's intrinsics do not say what memory they touch, so each is assembly that
// does. With OCTAVO_AMX_EMULATED the same in plain C++, by Intel's description of the instructions
// (Intel SDM, volume 2): what is built on tiles can be tested on processors without.
#pragma once

#include <cstdint>
#include <cstring>

namespace octavo::OCTAVO_ISA {

// Tiles 0 to 3 are sums, 4 and 5 rows of activations, 6 and 7 weights.
struct TileShape {
    int input_bytes;  // of a row of activations, in one tile: at most 64
};

#ifdef OCTAVO_AMX_EMULATED

struct EmulatedTiles {
    alignas(64) uint8_t data[8][16][64];
    int rows[8], row_bytes[8];
};
inline thread_local EmulatedTiles tiles;

inline void configure_tiles(TileShape shape) {
    for (int t = 0; t < 8; t++) {
        tiles.rows[t] = t >= 6 ? shape.input_bytes / 4 : 16;
        tiles.row_bytes[t] = t == 4 || t == 5 ? shape.input_bytes : 64;
    }
}

inline void release_tiles() {}

template <int T>
inline void zero_tile() {
    memset(tiles.data[T], 0, sizeof tiles.data[T]);
}

template <int T>
inline void load_tile(const void *p, int64_t stride) {
    zero_tile<T>();
    for (int r = 0; r < tiles.rows[T]; r++)
        memcpy(tiles.data[T][r], static_cast<const uint8_t *>(p) + r * stride, tiles.row_bytes[T]);
}

template <int T>
inline void store_tile(void *p, int64_t stride) {
    for (int r = 0; r < tiles.rows[T]; r++)
        memcpy(static_cast<uint8_t *>(p) + r * stride, tiles.data[T][r], tiles.row_bytes[T]);
}

inline float emulated_bf16(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, 2);
    uint32_t bits = uint32_t(half) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

template <int C, int A, int B>
inline void multiply_bf16() {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float sum;
            memcpy(&sum, tiles.data[C][m] + 4 * n, 4);
            for (int k = 0; k < tiles.rows[B]; k++) {
                const uint8_t *a = tiles.data[A][m] + 4 * k, *b = tiles.data[B][k] + 4 * n;
                sum += emulated_bf16(a) * emulated_bf16(b);
                sum += emulated_bf16(a + 2) * emulated_bf16(b + 2);
            }
            memcpy(tiles.data[C][m] + 4 * n, &sum, 4);
        }
}

template <int C, int A, int B>
inline void multiply_u8s8() {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            int32_t sum;
            memcpy(&sum, tiles.data[C][m] + 4 * n, 4);
            for (int k = 0; k < 4 * tiles.rows[B]; k++)
                sum += int32_t(tiles.data[A][m][k]) * int8_t(tiles.data[B][k / 4][4 * n + k % 4]);
            memcpy(tiles.data[C][m] + 4 * n, &sum, 4);
        }
}

#else

inline void configure_tiles(TileShape shape) {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } config;
    static_assert(sizeof config == 64);
    for (int t = 0; t < 8; t++) {
        config.rows[t] = uint8_t(t >= 6 ? shape.input_bytes / 4 : 16);
        config.row_bytes[t] = uint16_t(t == 4 || t == 5 ? shape.input_bytes : 64);
    }
    asm volatile("ldtilecfg (%0)" ::"r"(&config) : "memory");
}

inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int T>
inline void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

template <int T>
inline void load_tile(const void *p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void store_tile(void *p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
}

template <int C, int A, int B>
inline void multiply_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

template <int C, int A, int B>
inline void multiply_u8s8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace octavo::OCTAVO_ISA
