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

static inline __m512 load(const bfloat16 *from, __mmask16 which) { return widen(_mm256_maskz_loadu_epi16(which, from)); }

static inline void store(bfloat16 *to, __m512 numbers) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), (__m256i)_mm512_cvtneps_pbh(numbers));
}

static inline void store(bfloat16 *to, __m512 numbers, __mmask16 which) {
    _mm256_mask_storeu_epi16(to, which, (__m256i)_mm512_cvtneps_pbh(numbers));
}
