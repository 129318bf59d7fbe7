/* block: one transformer block, forward and backward: norm, attention, norm, then a dense MLP or
 * experts (and shared experts), with the residual stream.
 */
#ifndef TRAINER_BLOCK_H
#define TRAINER_BLOCK_H

#include "trainer/model/divided.h"
#include "trainer/model/model.h"

struct cache;

/* Shape of the call: what model_run was given, or its part for multi-token prediction. */
struct block_call {
    const struct batch *batch; /* device memory */
    int64_t count, sequence;   /* B, T of this call; where cp divides sequences this rank's part */
    int64_t length;            /* of training: tokens of whole sequences, */
    const int32_t *first;      /* and batch->first, host memory */
    bool training;
    uint64_t jitter_key;    /* of the first block; used when training and jitter is on */
    struct cache *cache;    /* NULL, or where keys and values go; cache->row says to which rows */
    const int32_t *lengths; /* NULL, or the tokens are one new one of each of the cache's slots,
                               which have so many tokens (device memory): attention reads the
                               cache */
};

/* Lays out the buffers that all blocks share, then each block's own. */
void block_lent_layout(struct model *model, struct arena *arena);
void block_layout(struct model *model, struct arena *arena);

/* Stream enters as x + delta (delta.data NULL: x alone, which lies in state->input) and is stored
 * in state->input; leaves as state->middle plus model->delta. */
void block_forward(struct model *model, int64_t block, const struct block_call *call,
                   struct tensor x, struct tensor delta);
/* model->dstream: gradient of the stream behind the block on entry, before it on return. z_scale:
 * see router_backward. next: the part whose weights are wanted after this (gathered_ahead), -1:
 * none. */
void block_backward(struct model *model, int64_t block, const struct block_call *call,
                    float z_scale, int64_t next);

/* Tokens of this call on this rank, of all sequences and of one: all that the call has, or with
 * tensor parallelism its share (parallel/tensor.h). The stream and all that is not divided has
 * these rows; positions and first of the batch have all of the call. */
int64_t block_tokens(const struct model *model, const struct block_call *call);
int64_t block_sequence(const struct model *model, const struct block_call *call);

/* Sums over the ranks that have other tokens of the same sequences. Collective over tp and cp. */
void block_sum(const struct model *model, void *data, int64_t count, enum dtype dtype);

/* Views: an activation [rows, cols]; a group's weights or gradients at `offset`; a norm's. */
struct tensor model_act(const struct model *model, void *data, int64_t rows, int64_t cols);
struct tensor model_weight(const struct model *model, enum param_group group, int64_t offset,
                           int64_t rows, int64_t cols);
struct tensor model_grad(const struct model *model, enum param_group group, int64_t offset,
                         int64_t rows, int64_t cols);
struct tensor model_vector(const struct model *model, int64_t offset, int64_t width);
struct tensor model_vector_grad(const struct model *model, int64_t offset, int64_t width);
/* After the op that adds to one of the two, before the next that does (gradients.h). */
void model_add_grad(const struct model *model, enum param_group group, int64_t offset,
                    int64_t count);

#endif
