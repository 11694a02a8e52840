// Numbers as the compiled passes read and write them: float, or bfloat16 (the upper half of a float); and e^x of floats.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct bfloat16 {
    uint16_t bits;
};

static inline float load(float number) { return number; }

static inline float load(bfloat16 number) {
    uint32_t bits = uint32_t(number.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline void store(float *to, float number) { *to = number; }

static inline void store(bfloat16 *to, float number) {  // rounded to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to->bits = uint16_t(number == number ? rounded : 0x7fc0);
}

// e^x, to 4e-7 of it, for x up to 87: 2^n by its bits, times 2^f for |f| <= 1/2 by its Taylor polynomial. Each end is
// cut where compilers still make vector instructions of it.
static inline float exponential(float x) {
    float power = x * 1.44269504f;
    power = power > 126.0f ? 126.0f : power;
    float n = std::floor(power + 0.5f), f = (power - n) * 0.693147181f;
    float tail = 1 + f * (1 + f * (1.0f / 2 + f * (1.0f / 6 + f * (1.0f / 24 + f * (1.0f / 120 + f * (1.0f / 720))))));
    int32_t exponent = int32_t(n);
    uint32_t bits = uint32_t((exponent < -126 ? -126 : exponent) + 127) << 23;
    float whole;
    std::memcpy(&whole, &bits, sizeof whole);
    return whole * tail;
}
