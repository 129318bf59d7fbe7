/* capacity: which slots of experts travel, where an expert, or one of DeepSeek-V2's groups of them,
 * takes only so many of a micro-batch (router.capacity_factor).
 *
 * A capacity is of all tokens of the micro-batch, and of two slots with the same weight the earlier
 * stays. Where tp or cp divide sequences, ranks gather all choices and their weights, in the order
 * one rank has them, all drop the same, and each keeps what it found of its own: 8 bytes a slot,
 * beside rows of thousands.
 */
#ifndef TRAINER_CAPACITY_H
#define TRAINER_CAPACITY_H

#include "kernels/base/arena.h"
#include "kernels/ops.h"
#include "parallel/context.h"
#include "parallel/tensor.h"

struct capacity {
    struct device *device; /* borrowed */
    const struct ops *ops; /* borrowed */
    const struct tp *tp;   /* borrowed */
    const struct cp *cp;   /* borrowed */
    double factor;         /* 0: nothing is dropped */
    int64_t top_k;
    int64_t experts, groups; /* groups of experts that have a capacity together; experts: each by
                                itself */
    int64_t tokens;          /* of the largest micro-batch, */
    int64_t part;            /* of which this rank of cp has so many */
    /* of several ranks; else NULL */
    int32_t *expert, *kept; /* [tokens, K] of all */
    float *weight;          /* [tokens, K] */
    int32_t *gathered;      /* [part, K] on the way there */
    int32_t *parts;         /* [T, K] of a sequence, by rank of cp */
};

/* Measures, then hands out (arena twice). */
void capacity_layout(struct capacity *capacity, struct arena *arena);

/* kept[n,K] = expert, -1 where the slot is dropped, of this rank's `count` sequences, which have
 * `sequence` tokens here and `length` on all ranks together. Collective over tp and cp. Behind the
 * last of expert and weight there must be room for what a whole sequence has more, which is read.
 */
void capacity_drop(const struct capacity *capacity, int32_t *kept, const int32_t *expert,
                   const float *weight, int64_t count, int64_t sequence, int64_t length);

#endif
