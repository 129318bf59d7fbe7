/* attention_pairs: a tile of 64 queries x 64 keys of attention (attention.c) by pairs of bf16, only
 * where tile_has_pairs: what is made of its scores, before these leave the registers, and what they
 * add to. An element of a pair is what it is in tile.h; sums are f32, and so are the weights until
 * they become factors.
 */
#ifndef KERNELS_CPU_ATTENTION_PAIRS_H
#define KERNELS_CPU_ATTENTION_PAIRS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cpu/attention_mask.h"

enum { TILE_PAIRS = TILE / 2 };

/* Where scores come from: q [TILE,depth] and k_t [depth,TILE], pairs of columns. */
struct pairs_scores {
    const float *q, *k_t;
    int64_t depth;
    float scale;             /* log2(e) times that of the scores: weights are powers of 2 */
    const struct seen *seen; /* [TILE], by query; NULL: all of the tile */
};

/* Of the queries of a tile, over the keys so far: largest score, scaled, and sum of weights;
 * `shrink` is what the last tile made of the weight of what came before it. */
struct pairs_softmax {
    float most[TILE], sum[TILE], shrink[TILE];
};

/* weight [TILE,TILE_PAIRS], pairs of keys; what is not seen weighs 0. */
void pairs_weights(float *weight, struct pairs_softmax *softmax, const struct pairs_scores *from);

/* out[TILE,cols] = shrink * out + weight times rows [TILE_PAIRS,cols], pairs of rows of values;
 * cols a multiple of 32. shrink NULL: out is 0, whatever it holds. */
void pairs_add_values(float *out, int64_t cols, const float *shrink, const float *weight,
                      const float *rows, const struct seen *seen);

/* What the gradients of a tile's scores come from, beside these: dO [TILE,depth] and v_t
 * [depth,TILE], pairs of columns, and of each query the logarithm (base 2) of its weights' sum and
 * rowsum(dO * O). */
struct pairs_back {
    const float *d_o, *v_t;
    int64_t depth;
    const float *log_sum, *delta; /* [TILE] */
};

/* Weights and gradients of scores, as factors: pairs of queries [TILE_PAIRS,TILE], and of keys
 * [TILE,TILE_PAIRS]. */
struct pairs_factors {
    _Alignas(64) float weight[TILE_PAIRS * TILE];
    float gradient[TILE_PAIRS * TILE], by_key[TILE * TILE_PAIRS];
};
void pairs_gradients(struct pairs_factors *to, const struct pairs_scores *from,
                     const struct pairs_back *back);

/* out[TILE keys,cols] += factor^T rows, factor pairs of queries, rows [TILE_PAIRS,cols] pairs of
 * rows of queries (or dO); fresh: out is 0, whatever it holds. */
void pairs_add_to_keys(float *out, int64_t cols, bool fresh, const float *factor, const float *rows,
                       const struct seen *seen);
/* out[TILE queries,cols] += factor rows, factor pairs of keys, rows pairs of rows of keys. */
void pairs_add_to_queries(float *out, int64_t cols, const float *factor, const float *rows,
                          const struct seen *seen);

#endif
