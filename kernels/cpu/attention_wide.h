/* attention_wide: a tile of 64 queries x 64 keys of attention (attention.c) in vectors of AVX-512:
 * what is made of its scores, before these leave the registers, and what they add to.
 *
 * `pairs`, only where tile_has_pairs: an element of a factor holds two bf16, whose products are
 * exact. Sums are f32, and so are the weights until they become factors. Without, only where
 * tile_has_wide, factors are f32: depths and the numbers of rows below are twice what they say.
 */
#ifndef KERNELS_CPU_ATTENTION_WIDE_H
#define KERNELS_CPU_ATTENTION_WIDE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cpu/attention_mask.h"

enum { TILE_PAIRS = TILE / 2 };

/* Where scores come from: q [TILE,depth] and k_t [depth,TILE], pairs of columns. */
struct wide_scores {
    const float *q, *k_t;
    int64_t depth;
    float scale;             /* log2(e) times that of the scores: weights are powers of 2 */
    const struct seen *seen; /* [TILE], by query; NULL: all of the tile */
};

/* Of the queries of a tile, over the keys so far: largest score, scaled, and sum of weights;
 * `shrink` is what the last tile made of the weight of what came before it. */
struct wide_softmax {
    float most[TILE], sum[TILE], shrink[TILE];
};

/* weight [TILE,TILE_PAIRS], pairs of keys; what is not seen weighs 0. */
void wide_weights(bool pairs, float *weight, struct wide_softmax *softmax,
                  const struct wide_scores *from);

/* out[TILE,cols] = shrink * out + weight times rows [TILE_PAIRS,cols], pairs of rows of values;
 * cols a multiple of 32. shrink NULL: out is 0, whatever it holds. */
void wide_add_values(bool pairs, float *out, int64_t cols, const float *shrink, const float *weight,
                     const float *rows, const struct seen *seen);

/* What the gradients of a tile's scores come from, beside these: dO [TILE,depth] and v_t
 * [depth,TILE], pairs of columns, and of each query the logarithm (base 2) of its weights' sum and
 * rowsum(dO * O). */
struct wide_back {
    const float *d_o, *v_t;
    int64_t depth;
    const float *log_sum, *delta; /* [TILE] */
};

/* Weights and gradients of scores, as factors: pairs of queries [TILE_PAIRS,TILE], and of keys
 * [TILE,TILE_PAIRS]; f32: [TILE,TILE], and no by_key. */
struct wide_factors {
    _Alignas(64) float weight[TILE * TILE];
    float gradient[TILE * TILE], by_key[TILE * TILE_PAIRS];
};
void wide_gradients(bool pairs, struct wide_factors *to, const struct wide_scores *from,
                    const struct wide_back *back);

/* out[TILE keys,cols] += factor^T rows, factor pairs of queries, rows [TILE_PAIRS,cols] pairs of
 * rows of queries (or dO); fresh: out is 0, whatever it holds. */
void wide_add_to_keys(bool pairs, float *out, int64_t cols, bool fresh, const float *factor,
                      const float *rows, const struct seen *seen);
/* out[TILE queries,cols] += factor rows, factor pairs of keys, rows pairs of rows of keys. */
void wide_add_to_queries(bool pairs, float *out, int64_t cols, const float *factor,
                         const float *rows, const struct seen *seen);

#endif
