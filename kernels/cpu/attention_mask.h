/* attention_mask: which keys the queries of a tile see, in whole attentions and in parts of longer
 * ones (struct attention_shape, kernels/ops.h). A tile is TILE queries x TILE keys.
 */
#ifndef KERNELS_CPU_ATTENTION_MASK_H
#define KERNELS_CPU_ATTENTION_MASK_H

#include "kernels/ops.h"

enum { TILE = 64 };
static const float MASKED =
    -1e30F; /* finite: a row without any visible key yet must not become NaN */

static inline int64_t round_up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static inline int64_t keys_of(const struct attention_shape *shape)
{
    return shape->keys > 0 ? shape->keys : shape->sequence;
}

/* Of keys or of queries, what there are more of. */
static inline int64_t most_rows(const struct attention_shape *shape)
{
    return keys_of(shape) > shape->sequence ? keys_of(shape) : shape->sequence;
}

/* For rows of keys: the same with as many rows as keys. */
static inline struct attention_shape key_rows(const struct attention_shape *shape)
{
    struct attention_shape rows = *shape;
    rows.sequence = keys_of(shape);
    return rows;
}

/* Of query t. */
static inline int64_t first_visible(const struct attention_shape *shape, int64_t sample, int64_t t)
{
    const int64_t low = shape->ahead + t - shape->window + 1,
                  window = shape->window > 0 && low > 0 ? low : 0;
    const int64_t document =
        shape->first != NULL ? shape->first[sample * shape->sequence + t] - shape->before : 0;
    return window > document ? window : document;
}

static inline void mask_tile(float *score, const struct attention_shape *shape, int64_t sample,
                             int64_t q0, int64_t k0)
{
    const int64_t end = keys_of(shape) - k0;
    for (int64_t i = 0; i < TILE && q0 + i < shape->sequence; i++) {
        const int64_t low = first_visible(shape, sample, q0 + i) - k0,
                      high = shape->ahead + q0 + i - k0;
        for (int64_t j = 0; j < TILE; j++) {
            if (j < low || j > high || j >= end) {
                score[i * TILE + j] = MASKED;
            }
        }
    }
}

/* Keys [first, end) of a tile that a query of it sees. */
struct seen {
    int32_t first, end;
};

/* Queries behind the last one see nothing. */
static inline void seen_tile(struct seen seen[TILE], const struct attention_shape *shape,
                             int64_t sample, int64_t q0, int64_t k0)
{
    const int64_t keys = keys_of(shape) - k0, last = keys < TILE ? keys : TILE;
    for (int64_t i = 0; i < TILE; i++) {
        const bool real = q0 + i < shape->sequence;
        const int64_t low = real ? first_visible(shape, sample, q0 + i) - k0 : 0,
                      high = real ? shape->ahead + q0 + i + 1 - k0 : 0;
        seen[i].first = (int32_t)(low < 0 ? 0 : low < TILE ? low : TILE);
        seen[i].end = (int32_t)(high < 0 ? 0 : high < last ? high : last);
    }
}

/* The first key tile any query of this tile sees: first_visible never falls along a sample. */
static inline int64_t first_tile(const struct attention_shape *shape, int64_t sample, int64_t q0)
{
    return first_visible(shape, sample, q0) / TILE * TILE;
}

/* Behind the last key that a query of this tile sees. */
static inline int64_t end_visible(const struct attention_shape *shape, int64_t q0)
{
    const int64_t end = shape->ahead + q0 + TILE, keys = keys_of(shape);
    return end < keys ? end : keys;
}

static inline bool needs_mask(const struct attention_shape *shape, int64_t q0, int64_t k0)
{
    return k0 + TILE - 1 > shape->ahead + q0 || k0 + TILE > keys_of(shape) || shape->window > 0 ||
           shape->first != NULL;
}

#endif
