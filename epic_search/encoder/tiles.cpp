// Products of states with a linear layer's weight, in bfloat16 or int8 on the tiles of AMX, and what comes right after.
//
// Built with fused.cpp, by g++ where its target has AMX; elsewhere it is empty. A tile holds 16 rows of 64 bytes: of
// states 16 rows of 32 numbers (64 in int8), of a weight as many inputs of 16 outputs, of sums 16 x 16 floats or whole
// numbers. The innermost loop keeps the sums of 32 rows (a tier) and 32 outputs (a panel) in four tiles and adds 64 bytes
// of inputs (a step) to them, from two tiles of states and two of the weight. The second cache cannot feed both as fast
// as tiles multiply, so
//
//   - a tier stays in the first cache (48 KiB: 32 rows of 1,536 bytes) while panels pass by, loaded with the hint not to
//     stay;
//   - panels go by in blocks of 1.3 MiB, which stay in the second cache (2 MiB) while all tiers pass by;
//   - the sums of a panel are finished, rounded and stored between the steps of the next one.
//
// Weights come packed by tiles.py: (panels, steps, 2 x 16 outputs, 16, 16, 2), the last two being pairs of inputs, or in
// int8 fours of them. States come and go in bfloat16: for int8, each row of a tier is divided by its own scale, so that
// its largest number is 127, and rounded on the way into the first cache.

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__) && !defined(__clang__)

#include <algorithm>
#include <cstdint>
#include <immintrin.h>
#include <sys/syscall.h>
#include <type_traits>
#include <unistd.h>
#include <vector>

#include "vectors.h"

namespace {

enum Then { NOTHING, GELU, GATE };  // GATE: the first half of a panel is gates, the second what they let through

constexpr int64_t BLOCK = 1400000;  // bytes
constexpr int64_t GRAIN = 1 << 24;  // multiplications that are worth a thread

// x times the normal distribution function of x, by formula 7.1.26 of Abramowitz and Stegun.
inline __m512 gelu(__m512 x) {
    __m512 size = _mm512_abs_ps(x), t = _mm512_rcp14_ps(1 + 0.2316418882f * size);
    __m512 tail = t * (0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f))));
    return _mm512_max_ps(x, _mm512_setzero_ps()) - size * tail * exponential(-0.5f * x * x);
}

inline __m512 widen(const bfloat16 *from) {
    __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

inline __m512 load(const float *from) { return _mm512_loadu_ps(from); }
inline __m512 load(const int32_t *from) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(from)); }

// Numbers of a row, rounded to whole ones up to 127; returns what they are to be multiplied with.
inline float round_row(int8_t *out, const bfloat16 *states, int64_t depth) {
    __m512i largest = _mm512_setzero_si512(), no_sign = _mm512_set1_epi16(0x7fff);  // without signs, bits are in order
    for (int64_t i = 0; i < depth; i += 32) {
        largest = _mm512_max_epu16(largest, _mm512_and_si512(_mm512_loadu_si512(states + i), no_sign));
    }
    __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64(largest, 1));
    float size = _mm512_reduce_max_ps(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)));
    float scale = size / 127;
    __m512 factor = _mm512_set1_ps(1 / scale);
    for (int64_t i = 0; i < depth; i += 16) {
        __m512i whole = _mm512_cvtps_epi32(widen(states + i) * factor);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i), _mm512_cvtsepi32_epi8(whole));
    }
    return scale;
}

// A row of a panel's sums, as it is wanted. `bias` may be null, and so may `scales`, of outputs.
template <Then then, typename Sum>
inline void finish(bfloat16 *out, const Sum *sums, const bfloat16 *bias, const float *scales, float scale) {
    __m512 first = load(sums), second = load(sums + 16);
    if (scales) first *= scale * load(scales), second *= scale * load(scales + 16);
    if (bias) first += widen(bias), second += widen(bias + 16);
    if (then == GATE) {
        __m512 gated = first * _mm512_rcp14_ps(1 + exponential(-first)) * second;
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), (__m256i)_mm512_cvtneps_pbh(gated));
    } else {
        if (then == GELU) first = gelu(first), second = gelu(second);
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
}

// One step: two tiles of states (4, 5) by two of the weight (6, 7) onto the four of sums.
#define MULTIPLY_STEP(Number, DOT)                                                                     \
    inline void multiply_step(const Number *states, int64_t depth, const Number *weight) {             \
        constexpr int64_t size = sizeof(Number);                                                       \
        _tile_loadd(4, states, depth * size);                                                          \
        _tile_stream_loadd(6, weight, 64);                                                             \
        DOT(0, 4, 6);                                                                                  \
        _tile_stream_loadd(7, weight + 1024 / size, 64);                                               \
        DOT(1, 4, 7);                                                                                  \
        _tile_loadd(5, states + 16 * depth, depth * size);                                             \
        DOT(2, 5, 6);                                                                                  \
        DOT(3, 5, 7);                                                                                  \
    }
MULTIPLY_STEP(bfloat16, _tile_dpbf16ps)
MULTIPLY_STEP(int8_t, _tile_dpbssd)

template <typename Number>
struct Layer {
    bfloat16 *out;  // its first row is that of the first tier
    const Number *weight;
    const bfloat16 *bias;
    const float *scales;   // of outputs
    int64_t depth, width;  // numbers of a row of states, and of `out`
};

// Panels [left, right) of a tier that begins at the row `top` and has so many rows that count, and their scales. `ahead`:
// cache lines that are wanted next.
template <Then then, typename Number>
void tier(
    const Layer<Number> &layer, const Number *states, const float *scales, int64_t top, int rows, int64_t left,
    int64_t right, const bfloat16 *ahead, int64_t lines
) {
    using Sum = std::conditional_t<sizeof(Number) == 1, int32_t, float>;
    constexpr int64_t inputs = 64 / sizeof(Number);
    alignas(64) Sum sums[2][32 * 32];  // of a panel, and of the one before
    int64_t steps = layer.depth / inputs, outputs = then == GATE ? 16 : 32;
    int a_step = int((32 + steps - 1) / steps);  // rows to be finished
    auto finish_rows = [&](int64_t panel, int from, int to) {
        const bfloat16 *bias = layer.bias ? layer.bias + panel * 32 : nullptr;
        const float *across = layer.scales ? layer.scales + panel * 32 : nullptr;
        bfloat16 *out = layer.out + top * layer.width + panel * outputs;
        for (int row = from; row < to; row++) {
            finish<then>(out + row * layer.width, sums[panel & 1] + row * 32, bias, across, scales[row]);
        }
    };
    for (int64_t panel = left; panel < right; panel++) {
        const Number *weight = layer.weight + panel * 32 * layer.depth;
        int done = panel > left ? 0 : rows;  // of the panel before
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        for (int64_t step = 0; step < steps; step++) {
            multiply_step(states + step * inputs, layer.depth, weight + step * 32 * inputs);
            for (int i = 0; i < 2 && lines > 0; i++, lines--, ahead += 32) _mm_prefetch(ahead, _MM_HINT_T1);
            int next = std::min(rows, done + a_step);
            finish_rows(panel - 1, done, next);
            done = next;
        }
        Sum *own = sums[panel & 1];
        _tile_stored(0, own, 128); _tile_stored(1, own + 16, 128);
        _tile_stored(2, own + 512, 128); _tile_stored(3, own + 528, 128);
        see_memory();
    }
    finish_rows(right - 1, 0, rows);
}

// Rows as tiles take them: rounded to int8, or as they are, which none but a tier's with less than 32 rows need be.
inline const int8_t *prepare(int8_t *rounded, float *scales, const bfloat16 *states, int64_t rows, int64_t depth) {
    for (int64_t row = 0; row < rows; row++) scales[row] = round_row(rounded + row * depth, states + row * depth, depth);
    return rounded;
}

inline const bfloat16 *prepare(bfloat16 *copied, float *, const bfloat16 *states, int64_t rows, int64_t depth) {
    return rows < 32 ? (std::copy_n(states, rows * depth, copied), copied) : states;
}

template <Then then, typename Number>
void multiply(const Layer<Number> &layer, const bfloat16 *states, int64_t rows, int64_t panels, int threads) {
    int64_t tiers = (rows + 31) / 32, depth = layer.depth;
    int64_t most = std::max<int64_t>(1, BLOCK / (32 * sizeof(Number) * depth));
    threads = int(std::clamp<int64_t>(rows * depth * panels * 32 / GRAIN, 1, threads));
    int64_t down = std::clamp<int64_t>(tiers, 1, threads), across = threads / down;
#pragma omp parallel for num_threads(threads)
    for (int64_t task = 0; task < down * across; task++) {
        int64_t top = tiers * (task / across) / down, bottom = tiers * (task / across + 1) / down;
        int64_t left = panels * (task % across) / across, right = panels * (task % across + 1) / across;
        int64_t blocks = (right - left + most - 1) / most;
        std::vector<Number> prepared(32 * depth);
        float scales[32] = {};
        _tile_loadconfig(&shapes);
        for (int64_t block = 0; block < blocks; block++) {
            int64_t from = left + (right - left) * block / blocks, to = left + (right - left) * (block + 1) / blocks;
            for (int64_t i = top; i < bottom; i++) {
                const bfloat16 *own = states + i * 32 * depth;
                int64_t count = std::min<int64_t>(32, rows - i * 32), next = std::min<int64_t>(32, rows - (i + 1) * 32);
                const Number *ready = prepare(prepared.data(), scales, own, count, depth);
                see_memory();
                int64_t lines = i + 1 < bottom ? next * depth / 32 : 0;
                tier<then>(layer, ready, scales, i * 32, int(count), from, to, own + 32 * depth, lines);
            }
        }
        _tile_release();
    }
}

template <typename Number>
void run_layer(
    bfloat16 *out, const bfloat16 *states, const void *weight, const bfloat16 *bias, const float *scales, int64_t rows,
    int64_t depth, int64_t panels, int then, int threads
) {
    int64_t width = panels * (then == GATE ? 16 : 32);
    Layer<Number> layer = {out, static_cast<const Number *>(weight), bias, scales, depth, width};
    if (then == GATE) multiply<GATE>(layer, states, rows, panels, threads);
    else if (then == GELU) multiply<GELU>(layer, states, rows, panels, threads);
    else multiply<NOTHING>(layer, states, rows, panels, threads);
}

}  // namespace

extern "C" {
// Whether the system lets this process use tiles: it has to be asked.
int tiles_allowed() {
    constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

// out = states @ weight + bias, and then what `then` says. With `scales`, of outputs, the weight is of int8.
void multiply_tiles(
    bfloat16 *out, const bfloat16 *states, const void *weight, const bfloat16 *bias, const float *scales, int64_t rows,
    int64_t depth, int64_t panels, int then, int threads
) {
    auto run = scales ? run_layer<int8_t> : run_layer<bfloat16>;
    run(out, states, weight, bias, scales, rows, depth, panels, then, threads);
}
}

#endif
