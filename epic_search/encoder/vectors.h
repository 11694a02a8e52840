// What our products and passes on processors with AVX-512 and AMX have in common: sixteen floats at a time, from bfloat16
// (the upper half of a float) and back, and the shapes of tiles.

#pragma once

#include <cstdint>
#include <immintrin.h>

using bfloat16 = uint16_t;

struct Shapes {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
alignas(64) static const Shapes shapes = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

static inline void see_memory() { asm volatile("" ::: "memory"); }  // compilers do not know that tiles are loaded from it

// What bfloat16 rounds, by up to 4e-3 of it, is computed to 1e-4 of it: e^x as 2^n times the Taylor polynomial of the
// rest, quotients by the processor's estimate of a reciprocal.
static inline __m512 exponential(__m512 x) {
    __m512 power = x * 1.44269504f, n = _mm512_roundscale_ps(power, 0), f = (power - n) * 0.693147181f;
    return _mm512_scalef_ps(1 + f * (1 + f * (1.0f / 2 + f * (1.0f / 6 + f * (1.0f / 24)))), n);
}

static inline __m512 widen(__m256i narrow) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

static inline __m512 load(const bfloat16 *from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}

static inline void store(bfloat16 *to, __m512 numbers) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), (__m256i)_mm512_cvtneps_pbh(numbers));
}

constexpr int BYTES = sizeof(bfloat16);

// 32 x 32 numbers as two tiles of 16 columns each, whose rows are pairs of rows. Of a block with less rows the rest is 0.
static inline void pair_rows(bfloat16 *tiles, const bfloat16 *from, int64_t stride, int64_t rows) {
    alignas(64) static const struct Order {
        uint16_t left[32], right[32];
        constexpr Order() : left(), right() {
            for (int i = 0; i < 32; i++) left[i] = i / 2 + i % 2 * 32, right[i] = left[i] + 16;
        }
    } order;
    __m512i left = _mm512_load_si512(order.left), right = _mm512_load_si512(order.right);
    for (int64_t row = 0; row < 32; row += 2) {
        __m512i zero = _mm512_setzero_si512();
        __m512i even = row < rows ? _mm512_loadu_si512(from + row * stride) : zero;
        __m512i odd = row + 1 < rows ? _mm512_loadu_si512(from + (row + 1) * stride) : zero;
        _mm512_store_si512(tiles + row * 16, _mm512_permutex2var_epi16(even, left, odd));
        _mm512_store_si512(tiles + 512 + row * 16, _mm512_permutex2var_epi16(even, right, odd));
    }
}

// 32 x 32 sums on the tiles 0 to 3: begun, added to by products of 32 rows of 32 numbers and two tiles, and stored.
static inline void begin_sums() { _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); }

static inline void add_product(const bfloat16 *rows, int64_t stride, const bfloat16 *tiles) {
    _tile_loadd(4, rows, stride * BYTES);
    _tile_loadd(5, rows + 16 * stride, stride * BYTES);
    _tile_loadd(6, tiles, 64);
    _tile_loadd(7, tiles + 512, 64);
    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
}

static inline void store_sums(float *to, int64_t width) {
    _tile_stored(0, to, width * 4); _tile_stored(1, to + 16, width * 4);
    _tile_stored(2, to + 16 * width, width * 4); _tile_stored(3, to + 16 * width + 16, width * 4);
}
