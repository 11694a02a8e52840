// What training adds to the passes of fused.cpp: norms and gates whose rows have room for low-rank products beside them,
// the ways back through both, and attention's softmax with the heads of texts laid out for it. All in bfloat16.
//
// Rows "with room" are `room` numbers longer than what is written, and the room is filled with zeros.

#include "numbers.h"

#include <algorithm>

using Number = bfloat16;

extern "C" {

// out = weight * states / rms(states), with room, row by row, and 1 / rms in `scales`; where `added` is not null,
// states += added comes first.
void norm_with_room(
    Number *out, float *scales, Number *states, const Number *added, const Number *weight,
    int64_t rows, int64_t width, int64_t room, float eps, int threads
) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        Number *own = states + row * width, *to = out + row * (width + room);
        float squares = 0;
        if (added) {
            const Number *more = added + row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) store(own + i, load(own[i]) + load(more[i]));
        }
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; i++) squares += load(own[i]) * load(own[i]);
        float scale = scales[row] = 1 / std::sqrt(squares / width + eps);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) store(to + i, load(own[i]) * scale * load(weight[i]));
        std::memset(to + width, 0, room * sizeof(Number));
    }
}

// gradient += that of the states, from that of their norms; and the norms again.
void norm_backward(
    Number *gradient, Number *normed, const Number *of_normed, const Number *states, const float *scales,
    const Number *weight, int64_t rows, int64_t width, int threads
) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const Number *x = states + row * width, *dy = of_normed + row * width;
        Number *to = gradient + row * width, *again = normed + row * width;
        float scale = scales[row], along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t i = 0; i < width; i++) along += load(x[i]) * load(weight[i]) * load(dy[i]);
        along *= scale * scale / width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float own = load(x[i]), w = load(weight[i]);
            store(again + i, own * scale * w);
            store(to + i, load(to[i]) + scale * (w * load(dy[i]) - own * along));
        }
    }
}

// out = silu(gate) * up, with room, for rows of gate and up side by side.
void gate_with_room(Number *out, const Number *gate_up, int64_t rows, int64_t width, int64_t room, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const Number *gate = gate_up + row * 2 * width, *up = gate + width;
        Number *to = out + row * (width + room);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float g = load(gate[i]);
            store(to + i, g / (1 + exponential(-g)) * load(up[i]));
        }
        std::memset(to + width, 0, room * sizeof(Number));
    }
}

// The gradients of gate and up, side by side and with room, from that of what came through; and that again.
void gate_backward(
    Number *gradient, Number *out, const Number *of_out, const Number *gate_up,
    int64_t rows, int64_t width, int64_t room, int threads
) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const Number *gate = gate_up + row * 2 * width, *up = gate + width, *dy = of_out + row * width;
        Number *of_gate = gradient + row * (2 * width + room), *of_up = of_gate + width, *to = out + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float g = load(gate[i]), u = load(up[i]), d = load(dy[i]);
            float share = 1 / (1 + exponential(-g)), silu = g * share;
            store(to + i, silu * u);
            store(of_gate + i, d * u * (share + silu * (1 - share)));
            store(of_up + i, d * silu);
        }
        std::memset(of_up + width, 0, room * sizeof(Number));
    }
}

// Heads of texts between rows of tokens, `stride` numbers apart, and (texts, heads, longest, width), zeros after the
// end of a text. `starts`: the first row of each text, and the end of the last one.
void split_heads(
    Number *heads_out, const Number *states, const int64_t *starts, int64_t stride,
    int64_t texts, int64_t heads, int64_t longest, int64_t width, int threads
) {
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t text = 0; text < texts; text++) {
        for (int64_t head = 0; head < heads; head++) {
            int64_t length = starts[text + 1] - starts[text];
            const Number *from = states + starts[text] * stride + head * width;
            Number *to = heads_out + (text * heads + head) * longest * width;
            for (int64_t i = 0; i < length; i++) std::memcpy(to + i * width, from + i * stride, width * sizeof(Number));
            std::memset(to + length * width, 0, (longest - length) * width * sizeof(Number));
        }
    }
}

void join_heads(
    Number *states, const Number *heads_in, const int64_t *starts, int64_t stride,
    int64_t texts, int64_t heads, int64_t longest, int64_t width, int threads
) {
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t text = 0; text < texts; text++) {
        for (int64_t head = 0; head < heads; head++) {
            int64_t length = starts[text + 1] - starts[text];
            Number *to = states + starts[text] * stride + head * width;
            const Number *from = heads_in + (text * heads + head) * longest * width;
            for (int64_t i = 0; i < length; i++) std::memcpy(to + i * stride, from + i * width, width * sizeof(Number));
        }
    }
}

// In place: softmax of scale * scores over the first `seen` keys of each query, and zeros after these.
// (texts, heads, queries, keys), and `seen` (texts, queries).
void softmax(
    Number *scores, const int64_t *seen, float scale,
    int64_t texts, int64_t heads, int64_t queries, int64_t keys, int threads
) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < texts * heads * queries; row++) {
        Number *own = scores + row * keys;
        int64_t count = seen[row / (heads * queries) * queries + row % queries];
        float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < count; i++) most = std::max(most, load(own[i]));
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; i++) sum += exponential(scale * (load(own[i]) - most));
        float share = 1 / sum;
#pragma omp simd
        for (int64_t i = 0; i < count; i++) store(own + i, share * exponential(scale * (load(own[i]) - most)));
        std::memset(own + count, 0, (keys - count) * sizeof(Number));
    }
}

// In place: the gradient of scores from that of their softmax, `shares`, which is zero beyond what is seen.
void softmax_backward(Number *gradient, const Number *shares, float scale, int64_t rows, int64_t keys, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        Number *own = gradient + row * keys;
        const Number *share = shares + row * keys;
        float along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t i = 0; i < keys; i++) along += load(share[i]) * load(own[i]);
#pragma omp simd
        for (int64_t i = 0; i < keys; i++) store(own + i, scale * load(share[i]) * (load(own[i]) - along));
    }
}
}
