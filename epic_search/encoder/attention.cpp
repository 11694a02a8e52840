// Attention inside of texts in bfloat16 on the tiles of AMX, and for training the way back through it.
//
// Built with tiles.cpp, where that is. The query heads that share keys are rows of the same products, those of a token
// one below the other, so that 32 rows see few keys that not all of them do. Scores and their softmax are floats, and are
// made again on the way back, for 32 rows at a time: first of queries, for their gradients and for what all of a row's
// have in common, then of keys, for theirs and those of values.

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__) && !defined(__clang__)

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

// The lanes of 16 that are below `count`, from `i` on.
inline __mmask16 below(int64_t count, int64_t i) { return count - i >= 16 ? 0xffff : (1 << (count - i)) - 1; }

// 32 columns of 16 rows as a tile whose rows are pairs of columns. Of a block with less rows the rest is 0.
inline void turn_rows(bfloat16 *tile, const bfloat16 *from, int64_t stride, __mmask16 rows = 0xffff) {
    __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i places = _mm512_mullo_epi32(order, _mm512_set1_epi32(int(stride / 2)));
    for (int i = 0; i < 16; i++) {
        __m512i pairs = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), rows, places, from + 2 * i, 4);
        _mm512_store_si512(tile + 32 * i, pairs);
    }
}

inline int64_t whole(int64_t count) { return (count + 31) / 32 * 32; }  // 32 rows are what a product takes at least

// sums (rows, columns) = left (rows, depth) @ right, all multiples of 32; of `right`, tiles for each 32 of depth and all
// its columns, of which these are the first.
void multiply(
    float *sums, const bfloat16 *left, const bfloat16 *right, int64_t rows, int64_t columns, int64_t depth, int64_t all
) {
    for (int64_t row = 0; row < rows; row += 32) {
        for (int64_t column = 0; column < columns; column += 32) {
            begin_sums();
            for (int64_t step = 0; step < depth; step += 32) {
                add_product(left + row * depth + step, depth, right + step * all + column * 32);
            }
            store_sums(sums + row * columns + column, columns);
        }
    }
    see_memory();
}

// Where the rows of some heads of a text stand, those of a token together: of head h of token i at i * stride + h * width.
struct Heads {
    bfloat16 *numbers;
    int64_t stride, length, heads, width;

    int64_t rows() const { return length * heads; }
    bfloat16 *row(int64_t i) const { return numbers + i / heads * stride + i % heads * width; }
};

inline Heads heads_at(
    const bfloat16 *numbers, int64_t stride, int64_t start, int64_t length, int64_t head, int64_t heads, int64_t width
) {
    return {const_cast<bfloat16 *>(numbers) + start * stride + head * width, stride, length, heads, width};
}

// Numbers that begin where a cache line does.
class Tiles {
  public:
    explicit Tiles(int64_t count) : numbers_(count + 32) {}
    bfloat16 *first() {
        auto address = reinterpret_cast<uintptr_t>(numbers_.data());
        return numbers_.data() + ((64 - address % 64) % 64) / BYTES;
    }

  private:
    std::vector<bfloat16> numbers_;
};

// The rows of some heads one below the other, as the left side of a product, and as both kinds of right sides.
class Operand {
  public:
    explicit Operand(const Heads &from) : rows_(whole(from.rows())), width_(from.width), numbers_(rows_ * width_) {
        for (int64_t i = 0; i < from.rows(); i++) std::copy_n(from.row(i), width_, &numbers_[i * width_]);
        see_memory();
    }

    int64_t rows() const { return rows_; }
    const bfloat16 *left(int64_t row = 0) const { return &numbers_[row * width_]; }

    // For products with rows of the same width.
    Tiles turned() const {
        Tiles tiles(rows_ * width_);
        bfloat16 *to = tiles.first();
        for (int64_t step = 0; step < width_; step += 32) {
            for (int64_t row = 0; row < rows_; row += 16, to += 512) turn_rows(to, left(row) + step, width_);
        }
        see_memory();
        return tiles;
    }

    // For sums of these rows.
    Tiles paired() const {
        Tiles tiles(rows_ * width_);
        bfloat16 *to = tiles.first();
        for (int64_t row = 0; row < rows_; row += 32) {
            for (int64_t column = 0; column < width_; column += 32, to += 1024) {
                pair_rows(to, left(row) + column, width_, 32);
            }
        }
        see_memory();
        return tiles;
    }

  private:
    int64_t rows_, width_;
    std::vector<bfloat16> numbers_;
};

void write_rows(const Heads &to, int64_t first, const float *sums) {
    for (int64_t i = 0; i < 32 && first + i < to.rows(); i++) {
        for (int64_t j = 0; j < to.width; j += 16) {
            store(to.row(first + i) + j, _mm512_loadu_ps(sums + i * to.width + j));
        }
    }
}

// Where a text is: its tokens that ask, and all.
struct Place {
    int64_t asking, count, start, length;
};

struct Softmax {
    float most, share;  // the largest score, and what the powers are to be multiplied with
};

inline float largest(const float *scores, int64_t count) {
    __m512 found = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < count; i += 16) {
        found = _mm512_mask_max_ps(found, below(count, i), found, _mm512_loadu_ps(scores + i));
    }
    return count ? _mm512_reduce_max_ps(found) : 0;
}

// In place: powers of scale * (scores - the largest), of the first `count`, and zeros up to `width`.
inline Softmax softmax(float *scores, int64_t count, int64_t width, float scale) {
    float most = largest(scores, count);
    __m512 sums = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        __mmask16 seen = i < count ? below(count, i) : 0;
        __m512 power = _mm512_maskz_mov_ps(seen, exponential(scale * (_mm512_loadu_ps(scores + i) - most)));
        _mm512_storeu_ps(scores + i, power);
        sums += power;
    }
    return {most, count ? 1 / _mm512_reduce_add_ps(sums) : 0};
}

// The same powers in bfloat16, and what they are to be multiplied with.
inline float powers(bfloat16 *out, const float *scores, int64_t count, int64_t width, float scale) {
    float most = largest(scores, count);
    __m512 sums = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i < count; i += 16) {
        __m512 power = exponential(scale * (_mm512_loadu_ps(scores + i) - most));
        power = _mm512_maskz_mov_ps(below(count, i), power);
        store(out + i, power);
        sums += power;
    }
    for (; i < width; i += 16) store(out + i, _mm512_setzero_ps());
    return count ? 1 / _mm512_reduce_add_ps(sums) : 0;
}

// Keys as the right side of products with queries, and values as that of sums, on tiles.
void pack_keys(bfloat16 *to, const Heads &from) {
    for (int64_t step = 0; step < from.width; step += 32) {
        for (int64_t row = 0; row < whole(from.length); row += 16, to += 512) {
            __mmask16 there = row < from.length ? below(from.length, row) : 0;
            turn_rows(to, from.numbers + row * from.stride + step, from.stride, there);
        }
    }
}

void pack_values(bfloat16 *to, const Heads &from) {
    for (int64_t row = 0; row < from.length; row += 32) {
        for (int64_t column = 0; column < from.width; column += 32, to += 1024) {
            pair_rows(to, from.numbers + row * from.stride + column, from.stride, from.length - row);
        }
    }
}

}  // namespace

extern "C" {

// Attention of the tokens that ask to the first `seen` tokens of their text: out = softmax(scale * query @ key) @ value.
// Rows of `query` and `out` have a head after the other, those of `key` and `value` one for each group of heads; texts
// begin at the rows `asking` and `starts`, where the last ends at one more. Where texts are few, threads share each.
void attend_texts(
    bfloat16 *out, int64_t out_stride, const bfloat16 *query, int64_t query_stride, const bfloat16 *key,
    const bfloat16 *value, int64_t key_stride, int64_t value_stride, const int64_t *asking, const int64_t *starts,
    const int64_t *seen, float scale, int64_t texts, int64_t heads, int64_t groups, int64_t width, int threads
) {
    int64_t shared = heads / groups, parts = texts * groups < 8 * threads ? threads : 1, longest = 0;
    for (int64_t text = 0; text < texts; text++) longest = std::max(longest, whole(starts[text + 1] - starts[text]));
#pragma omp parallel num_threads(threads)
    {
        Tiles keys(longest * width), values(longest * width), shares(32 * longest), asks(32 * width);
        std::vector<float> scores(32 * longest), sums(32 * width);
        _tile_loadconfig(&shapes);
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t text = 0; text < texts; text++) {
            for (int64_t group = 0; group < groups; group++) {
                for (int64_t part = 0; part < parts; part++) {
                    Place at{asking[text], asking[text + 1] - asking[text], starts[text], starts[text + 1] - starts[text]};
                    int64_t head = group * shared, all = whole(at.length);
                    Heads results = heads_at(out, out_stride, at.asking, at.count, head, shared, width);
                    Heads queries = heads_at(query, query_stride, at.asking, at.count, head, shared, width);
                    pack_keys(keys.first(), heads_at(key, key_stride, at.start, at.length, group, 1, width));
                    pack_values(values.first(), heads_at(value, value_stride, at.start, at.length, group, 1, width));
                    for (int64_t row = 32 * part; row < results.rows(); row += 32 * parts) {
                        int64_t rows = std::min<int64_t>(32, results.rows() - row), most = 0;
                        const int64_t *counts = seen + at.asking;
                        for (int64_t i = 0; i < rows; i++) {
                            std::copy_n(queries.row(row + i), width, asks.first() + i * width);
                            most = std::max(most, counts[(row + i) / shared]);
                        }
                        see_memory();
                        int64_t K = whole(most);
                        multiply(scores.data(), asks.first(), keys.first(), 32, K, width, all);
                        float factors[32];
                        for (int64_t i = 0; i < rows; i++) {
                            int64_t count = counts[(row + i) / shared];
                            factors[i] = powers(shares.first() + i * K, &scores[i * K], count, K, scale);
                        }
                        see_memory();
                        multiply(sums.data(), shares.first(), values.first(), 32, width, K, width);
                        for (int64_t i = 0; i < rows; i++) {
                            for (int64_t j = 0; j < width; j += 16) {
                                store(results.row(row + i) + j, _mm512_loadu_ps(&sums[i * width + j]) * factors[i]);
                            }
                        }
                    }
                }
            }
        }
        _tile_release();
    }
}

// The gradients of query, key and value, at the same places in `of_query`, `of_key` and `of_value`, from that of `out`.
void attend_texts_backward(
    bfloat16 *of_query, int64_t of_query_stride, bfloat16 *of_key, bfloat16 *of_value, int64_t of_stride,
    const bfloat16 *of_out, int64_t out_stride, const bfloat16 *query, int64_t query_stride, const bfloat16 *key,
    const bfloat16 *value, int64_t key_stride, int64_t value_stride, const int64_t *asking, const int64_t *starts,
    const int64_t *seen, float scale, int64_t texts, int64_t heads, int64_t groups, int64_t width, int threads
) {
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t text = 0; text < texts; text++) {
        for (int64_t group = 0; group < groups; group++) {
            Place at{asking[text], asking[text + 1] - asking[text], starts[text], starts[text + 1] - starts[text]};
            int64_t shared = heads / groups, head = group * shared;
            Operand q(heads_at(query, query_stride, at.asking, at.count, head, shared, width));
            Operand d(heads_at(of_out, out_stride, at.asking, at.count, head, shared, width));
            Operand k(heads_at(key, key_stride, at.start, at.length, group, 1, width));
            Operand v(heads_at(value, value_stride, at.start, at.length, group, 1, width));
            Heads of_q = heads_at(of_query, of_query_stride, at.asking, at.count, head, shared, width);
            Heads of_k = heads_at(of_key, of_stride, at.start, at.length, group, 1, width);
            Heads of_v = heads_at(of_value, of_stride, at.start, at.length, group, 1, width);
            int64_t Q = q.rows(), K = k.rows();
            std::vector<float> scores(32 * std::max(Q, K)), gradients(scores.size()), sums(32 * width);
            std::vector<float> most(Q), share(Q), along(Q);
            std::vector<int32_t> count(Q);
            std::vector<bfloat16> shares(scores.size()), of_scores(scores.size());
            _tile_loadconfig(&shapes);
            Tiles k_turned = k.turned(), v_turned = v.turned(), k_paired = k.paired();
            for (int64_t row = 0; row < Q; row += 32) {  // queries below each other
                multiply(scores.data(), q.left(row), k_turned.first(), 32, K, width, K);
                multiply(gradients.data(), d.left(row), v_turned.first(), 32, K, width, K);
                for (int64_t i = 0; i < 32; i++) {
                    float *own = &scores[i * K], *of = &gradients[i * K];
                    count[row + i] = row + i < of_q.rows() ? int32_t(seen[at.asking + (row + i) / shared]) : 0;
                    Softmax found = softmax(own, count[row + i], K, scale);
                    __m512 products = _mm512_setzero_ps();
                    for (int64_t j = 0; j < K; j += 16) products += _mm512_loadu_ps(own + j) * _mm512_loadu_ps(of + j);
                    most[row + i] = found.most, share[row + i] = found.share;
                    along[row + i] = found.share * _mm512_reduce_add_ps(products);
                    for (int64_t j = 0; j < K; j += 16) {
                        __m512 weight = scale * found.share * _mm512_loadu_ps(own + j);
                        store(&of_scores[i * K + j], weight * (_mm512_loadu_ps(of + j) - along[row + i]));
                    }
                }
                see_memory();
                multiply(sums.data(), of_scores.data(), k_paired.first(), 32, width, K, width);
                write_rows(of_q, row, sums.data());
            }
            Tiles q_turned = q.turned(), d_turned = d.turned(), q_paired = q.paired(), d_paired = d.paired();
            for (int64_t row = 0; row < K; row += 32) {  // keys below each other
                multiply(scores.data(), k.left(row), q_turned.first(), 32, Q, width, Q);
                multiply(gradients.data(), v.left(row), d_turned.first(), 32, Q, width, Q);
                for (int64_t i = 0; i < 32; i++) {
                    for (int64_t j = 0; j < Q; j += 16) {
                        __m512i counts = _mm512_loadu_si512(&count[j]);
                        __mmask16 sees = _mm512_cmpgt_epi32_mask(counts, _mm512_set1_epi32(int(row + i)));
                        __m512 score = scale * (_mm512_loadu_ps(&scores[i * Q + j]) - _mm512_loadu_ps(&most[j]));
                        __m512 weight = _mm512_maskz_mov_ps(sees, exponential(score) * _mm512_loadu_ps(&share[j]));
                        __m512 of = _mm512_loadu_ps(&gradients[i * Q + j]) - _mm512_loadu_ps(&along[j]);
                        store(&shares[i * Q + j], weight);
                        store(&of_scores[i * Q + j], scale * weight * of);
                    }
                }
                see_memory();
                multiply(sums.data(), shares.data(), d_paired.first(), 32, width, Q, width);
                write_rows(of_v, row, sums.data());
                multiply(sums.data(), of_scores.data(), q_paired.first(), 32, width, Q, width);
                write_rows(of_k, row, sums.data());
            }
            _tile_release();
        }
    }
}
}

#endif
