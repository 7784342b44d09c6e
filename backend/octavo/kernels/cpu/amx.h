// AMX's tiles. GCC 12's intrinsics do not say what memory they touch, so each is assembly that
// does. With OCTAVO_AMX_EMULATED the same in plain C++, by Intel's description of the instructions
// (Intel SDM, volume 2): what is built on tiles can be tested on processors without.
#pragma once

#include <cstdint>
#include <cstring>

#include "vec.h"

namespace octavo::OCTAVO_ISA {

// Tiles 0 to 3 are sums, 4 and 5 rows of activations, 6 and 7 weights.
struct TileShape {
    int input_bytes;  // of a row of activations, in one tile: at most 64
};

#ifdef OCTAVO_AMX_EMULATED

struct EmulatedTiles {
    alignas(64) uint8_t data[8][16][64];
    int rows[8], row_bytes[8];  // 0: not configured
};
inline thread_local EmulatedTiles tiles;

// The processor faults, too.
inline void expect(bool is_allowed) {
    if (!is_allowed) __builtin_trap();
}

inline void configure_tiles(TileShape shape) {
    memset(&tiles, 0, sizeof tiles);
    for (int t = 0; t < 8; t++) {
        tiles.rows[t] = t >= 6 ? shape.input_bytes / 4 : 16;
        tiles.row_bytes[t] = t == 4 || t == 5 ? shape.input_bytes : 64;
    }
}

inline void release_tiles() { memset(&tiles, 0, sizeof tiles); }

template <int T>
inline void zero_tile() {
    expect(tiles.rows[T] > 0);
    memset(tiles.data[T], 0, sizeof tiles.data[T]);
}

template <int T>
inline void load_tile(const void *p, int64_t stride) {
    zero_tile<T>();
    for (int r = 0; r < tiles.rows[T]; r++)
        memcpy(tiles.data[T][r], static_cast<const uint8_t *>(p) + r * stride, tiles.row_bytes[T]);
}

template <int T>
inline void stream_tile(const void *p, int64_t stride) {
    load_tile<T>(p, stride);
}

template <int T>
inline void store_tile(void *p, int64_t stride) {
    expect(tiles.rows[T] > 0);
    for (int r = 0; r < tiles.rows[T]; r++)
        memcpy(static_cast<uint8_t *>(p) + r * stride, tiles.data[T][r], tiles.row_bytes[T]);
}

template <int C, int A, int B>
inline void expect_product() {
    expect(tiles.rows[C] > 0 && tiles.rows[C] == tiles.rows[A] &&
           tiles.row_bytes[C] == tiles.row_bytes[B] && tiles.row_bytes[A] == 4 * tiles.rows[B]);
}

// Sums of a tile's own products, of even and of odd inputs, come before what was there.
template <int C, int A, int B>
inline void multiply_bf16() {
    expect_product<C, A, B>();
    for (int m = 0; m < 16; m++) {
        vf even = {}, odd = {};
        for (int k = 0; k < tiles.rows[B]; k++) {
            const vu a = load_as<uint32_t>(tiles.data[A][m] + 4 * k) - vu{};
            const vu b = load_as<vu>(tiles.data[B][k]);
            even += (vf)(a << 16) * (vf)(b << 16);
            odd += (vf)(a & 0xffff0000) * (vf)(b & 0xffff0000);
        }
        uint8_t *c = tiles.data[C][m];
        store_as(c, load_as<vf>(c) + (even + odd));
    }
}

template <int C, int A, int B>
inline void multiply_u8s8() {
    expect_product<C, A, B>();
    for (int m = 0; m < 16; m++) {
        vi sum = load_as<vi>(tiles.data[C][m]);
        for (int k = 0; k < tiles.rows[B]; k++) {
            const vi b = load_as<vi>(tiles.data[B][k]);
            for (int i = 0; i < 4; i++)
                sum += int32_t(tiles.data[A][m][4 * k + i]) * (b << (24 - 8 * i) >> 24);
        }
        store_as(tiles.data[C][m], sum);
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

// What is not soon read again: it leaves the first cache to others.
template <int T>
inline void stream_tile(const void *p, int64_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
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
