/* block: one transformer block, forward and backward: norm, attention, norm, experts, with the
 * residual stream. */
#ifndef TRAINER_BLOCK_H
#define TRAINER_BLOCK_H

#include "trainer/model.h"

/* Shape of the call: what model_run was given. */
struct block_call {
    const struct batch *batch;
    int64_t count, sequence; /* B, T of this call */
    bool training;
    uint64_t jitter_key; /* of this layer's call; used when training and jitter is on */
};

void block_layout(struct model *model, struct arena *arena);

/* Stream enters as x + delta (delta.data NULL: x alone, kept in place) and is stored in
 * state->input; leaves as state->middle plus model->delta. */
void block_forward(struct model *model, int64_t layer, const struct block_call *call,
                   struct tensor x, struct tensor delta);
/* model->dstream: gradient of the stream behind the block on entry, before it on return. */
void block_backward(struct model *model, int64_t layer, const struct block_call *call,
                    float z_scale);

/* View of a group's weights or gradients at `offset`. */
struct tensor model_weight(const struct model *model, enum param_group group, int64_t offset,
                           int64_t rows, int64_t cols);
struct tensor model_grad(const struct model *model, enum param_group group, int64_t offset,
                         int64_t rows, int64_t cols);

#endif
