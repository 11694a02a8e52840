// The element-wise work between a layer's matrix products, each step in one pass over memory.
//
// Built on the user's machine by passes.py. Plain loops: the compiler turns the innermost ones into vector instructions.
// Numbers come and go as T, float or bfloat16 (the upper half of a float), and are float in between.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

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

// out = weight * states / rms(states), row by row; where `added` is not null, states += added comes first.
template <typename T>
static void norm(T *out, T *states, const T *added, const T *weight, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        T *own = states + row * width, *to = out + row * width;
        float squares = 0;
        if (added) {
            const T *more = added + row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) store(own + i, load(own[i]) + load(more[i]));
        }
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; i++) squares += load(own[i]) * load(own[i]);
        float scale = 1 / std::sqrt(squares / width + eps);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) store(to + i, load(own[i]) * scale * load(weight[i]));
    }
}

// In place, the heads of each row: the halves (a, b) of a head become (a cos - b sin, b cos + a sin).
template <typename T>
static void rotate(
    T *states, int64_t stride, const T *cosines, const T *sines, int64_t rows, int64_t heads, int64_t half, int threads
) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const T *cosine = cosines + row * half, *sine = sines + row * half;
        for (int64_t head = 0; head < heads; head++) {
            T *first = states + row * stride + head * 2 * half, *second = first + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float a = load(first[i]), b = load(second[i]), c = load(cosine[i]), s = load(sine[i]);
                store(first + i, a * c - b * s);
                store(second + i, b * c + a * s);
            }
        }
    }
}

// out = silu(gate) * up, for rows of gate and up side by side.
template <typename T>
static void gate(T *out, const T *gate_up, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const T *gate = gate_up + row * 2 * width, *up = gate + width;
        T *to = out + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float g = load(gate[i]);
            store(to + i, g / (1 + exponential(-g)) * load(up[i]));
        }
    }
}

// out = weight * (x - mean(x)) / std(x) + shift for x = states + added + bias, row by row; `bias` may be null.
template <typename T>
static void layer_norm(
    T *out, const T *states, const T *added, const T *bias, const T *weight, const T *shift,
    int64_t rows, int64_t width, float eps, int threads
) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sums(width);
        float *x = sums.data();
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            const T *own = states + row * width, *more = added + row * width;
            T *to = out + row * width;
            float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < width; i++) {
                x[i] = load(own[i]) + load(more[i]) + (bias ? load(bias[i]) : 0);
                sum += x[i];
            }
            float mean = sum / width;
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
            float scale = 1 / std::sqrt(squares / width + eps);
#pragma omp simd
            for (int64_t i = 0; i < width; i++) {
                store(to + i, (x[i] - mean) * scale * load(weight[i]) + load(shift[i]));
            }
        }
    }
}

#define EXPORT(T)                                                                                                      \
    void norm_##T(T *out, T *states, const T *added, const T *weight, int64_t rows, int64_t width, float eps, int n) { \
        norm(out, states, added, weight, rows, width, eps, n);                                                         \
    }                                                                                                                  \
    void rotate_##T(                                                                                                   \
        T *states, int64_t stride, const T *cos, const T *sin, int64_t rows, int64_t heads, int64_t half, int n        \
    ) {                                                                                                                \
        rotate(states, stride, cos, sin, rows, heads, half, n);                                                        \
    }                                                                                                                  \
    void gate_##T(T *out, const T *gate_up, int64_t rows, int64_t width, int n) { gate(out, gate_up, rows, width, n); }\
    void layer_norm_##T(                                                                                               \
        T *out, const T *states, const T *added, const T *bias, const T *weight, const T *shift,                       \
        int64_t rows, int64_t width, float eps, int n                                                                  \
    ) {                                                                                                                \
        layer_norm(out, states, added, bias, weight, shift, rows, width, eps, n);                                      \
    }

using float32 = float;
extern "C" {
EXPORT(float32)
EXPORT(bfloat16)
}
