// What training adds to the passes of inference: norms and gates whose rows have room for low-rank products beside them,
// the ways back through both, and gradients of LoRA.
//
// Built with tiles.cpp, where that is. Numbers are bfloat16, and float in between; widths are multiples of 16. Rows "with
// room" are `room` numbers longer than what is written, and the room is filled with zeros.

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__) && !defined(__clang__)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "vectors.h"

extern "C" {

// out = weight * states / rms(states), with room, row by row, and 1 / rms in `scales`; where `added` is not null,
// states += added comes first.
void norm_with_room(
    bfloat16 *out, float *scales, bfloat16 *states, const bfloat16 *added, const bfloat16 *weight,
    int64_t rows, int64_t width, int64_t room, float eps, int threads
) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        bfloat16 *own = states + row * width, *to = out + row * (width + room);
        __m512 squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) {
            if (added) store(own + i, load(own + i) + load(added + row * width + i));
            __m512 x = load(own + i);
            squares += x * x;
        }
        float scale = scales[row] = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / width + eps);
        for (int64_t i = 0; i < width; i += 16) store(to + i, load(own + i) * scale * load(weight + i));
        std::memset(to + width, 0, room * BYTES);
    }
}

// gradient += that of the states, from that of their norms; and the norms again.
void norm_backward(
    bfloat16 *gradient, bfloat16 *normed, const bfloat16 *of_normed, const bfloat16 *states, const float *scales,
    const bfloat16 *weight, int64_t rows, int64_t width, int threads
) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const bfloat16 *own = states + row * width, *of = of_normed + row * width;
        bfloat16 *to = gradient + row * width, *again = normed + row * width;
        __m512 products = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) products += load(own + i) * load(weight + i) * load(of + i);
        float scale = scales[row], along = _mm512_reduce_add_ps(products) * scale * scale / width;
        for (int64_t i = 0; i < width; i += 16) {
            __m512 x = load(own + i), w = load(weight + i);
            store(again + i, x * scale * w);
            store(to + i, load(to + i) + scale * (w * load(of + i) - x * along));
        }
    }
}

// out = silu(gate) * up, with room, for rows of gate and up side by side.
void gate_with_room(bfloat16 *out, const bfloat16 *gate_up, int64_t rows, int64_t width, int64_t room, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const bfloat16 *gate = gate_up + row * 2 * width, *up = gate + width;
        bfloat16 *to = out + row * (width + room);
        for (int64_t i = 0; i < width; i += 16) {
            __m512 g = load(gate + i);
            store(to + i, g * _mm512_rcp14_ps(1 + exponential(-g)) * load(up + i));
        }
        std::memset(to + width, 0, room * BYTES);
    }
}

// The gradients of gate and up, side by side and with room, from that of what came through; and that again.
void gate_backward(
    bfloat16 *gradient, bfloat16 *out, const bfloat16 *of_out, const bfloat16 *gate_up,
    int64_t rows, int64_t width, int64_t room, int threads
) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const bfloat16 *gate = gate_up + row * 2 * width, *up = gate + width, *of = of_out + row * width;
        bfloat16 *of_gate = gradient + row * (2 * width + room), *of_up = of_gate + width, *to = out + row * width;
        for (int64_t i = 0; i < width; i += 16) {
            __m512 g = load(gate + i), u = load(up + i), d = load(of + i);
            __m512 share = _mm512_rcp14_ps(1 + exponential(-g)), silu = g * share;
            store(to + i, silu * u);
            store(of_gate + i, d * u * (share + silu * (1 - share)));
            store(of_up + i, d * silu);
        }
        std::memset(of_up + width, 0, room * BYTES);
    }
}

// out (ranks, width) = low (rows, ranks) transposed, times states (rows, width); ranks and width are multiples of 32, and
// rows so many numbers apart as their strides say.
void multiply_transposed(
    float *out, const bfloat16 *low, const bfloat16 *states,
    int64_t rows, int64_t ranks, int64_t width, int64_t low_stride, int64_t stride, int threads
) {
    int64_t blocks = (rows + 31) / 32;
    std::vector<bfloat16> turned(blocks * 32 * ranks);  // for each block of rows, tiles of 16 ranks by 32 rows
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            bfloat16 *to = turned.data() + row / 32 * 32 * ranks + row % 32;
            for (int64_t i = 0; i < ranks; i++) to[i * 32] = low[row * low_stride + i];
        }
        alignas(64) bfloat16 tiles[1024];
        _tile_loadconfig(&shapes);
#pragma omp for collapse(2)
        for (int64_t rank = 0; rank < ranks; rank += 32) {
            for (int64_t column = 0; column < width; column += 32) {
                begin_sums();
                for (int64_t block = 0; block < blocks; block++) {
                    const bfloat16 *from = states + block * 32 * stride + column, *own = &turned[block * 32 * ranks];
                    for (int64_t i = 32; i < std::min<int64_t>(64, rows - block * 32); i++) {
                        _mm_prefetch(from + i * stride, _MM_HINT_T0);
                    }
                    pair_rows(tiles, from, stride, rows - block * 32);
                    see_memory();
                    add_product(own + rank * 32, 32, tiles);
                }
                store_sums(out + rank * width + column, width);
                see_memory();
            }
        }
        _tile_release();
    }
}
}

#endif
