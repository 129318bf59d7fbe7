/* context: attention of this rank's tokens where sequences are divided between ranks
 * (parallel/context.h).
 *
 * One sequence after another: its keys and values are gathered from their owners (grouped queries:
 * keys and values themselves; latent attention: the normed latent and the rotary key, from which
 * every rank projects the keys and values that it sees), then each of this rank's two pieces
 * attends to what comes before it. Backward gathers them again, adds up the gradients of keys and
 * values of both pieces in f32, and sums them over the ranks for their owners.
 */
#ifndef TRAINER_CONTEXT_H
#define TRAINER_CONTEXT_H

#include "kernels/base/arena.h"
#include "kernels/base/tensor.h"

struct attention_shape;
struct model;
struct block_call;

/* Of one sequence of T tokens, shared by all blocks; n: this rank's of them. All NULL with one
 * rank. */
struct context_scratch {
    void *keys;          /* [T, W] act: keys and values; grouped queries: W = 2GD, keys first;
                            latent: W = H*(nope+v), as struct attention_state's kv */
    float *dkeys;        /* [T, W]: their gradients */
    void *own;           /* [n, 2GD] act: grouped queries: this rank's part on its way */
    void *c, *k_rope;    /* latent: [T, kv_rank], [T, rope_dim] act */
    float *dc, *dk_rope; /* the same, gradients */
    void *dkv;           /* [T, W] act: dkeys rounded; in fp32 dkeys itself */
    float *lse;          /* [B*T] of routers, for the z-loss (context_lse); NULL: there is none */
};

void context_layout(const struct model *model, struct context_scratch *scratch,
                    struct arena *arena);

/* Both collective over cp; shape: of the block's queries (attention.c), of all sequences of the
 * call, keys as they stand in the states.
 *
 * attended and lse of this rank's tokens from q, and from qkv or c and k_rope of the state. */
void context_forward(struct model *model, int64_t block, const struct block_call *call,
                     const struct attention_shape *shape, const void *q);
/* From attention.dattended: into attention.dqkv all three; or dq, dk_rope and dc, and the gradient
 * of kv_b adds. */
void context_backward(struct model *model, int64_t block, const struct block_call *call,
                      const struct attention_shape *shape, const void *q, void *dq);

/* lse of all tokens of `count` sequences of `tokens`, from this rank's. */
const float *context_lse(const struct model *model, const float *own, int64_t count,
                         int64_t tokens);

#endif
