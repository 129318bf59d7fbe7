/* context: attention of this rank's tokens where sequences are divided between ranks
 * (parallel/context.h).
 *
 * One sequence after another, blocks of keys and values go round the ring while the block that is
 * here is attended to (grouped queries: keys and values themselves; latent attention: the normed
 * latent and the rotary key, from which every rank projects the keys and values that it sees). What
 * a piece of queries has of each piece of keys is merged in f32 (attention_shape, kernels/ops.h),
 * in the order of the turns. Pieces that no query of a piece sees are not computed.
 *
 * Backward sends them round again, and behind them their gradients, in f32, each rank adding its
 * own, until they reach their owner, where they are rounded once:
 *
 *     turn          0            1                 ...   size - 1          size
 *     keys of       own, late    rank - 1                rank + 1          own, early
 *     on their way  keys         keys                    gradients         gradients
 *
 * What is on its way at a turn is needed at the next. Nothing here is as long as a whole sequence.
 */
#ifndef TRAINER_CONTEXT_H
#define TRAINER_CONTEXT_H

#include "kernels/base/arena.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

struct attention_shape;
struct model;
struct block_call;

/* A block's gradients: of this rank's own, what comes in, two on their way in turn. */
enum context_gradient { CONTEXT_OWN, CONTEXT_INCOMING, CONTEXT_TRAVELLING, CONTEXT_GRADIENTS = 4 };

/* Of one sequence of n tokens on this rank, in chunks of n/2; shared by all layers. All NULL with
 * one rank. */
struct context_scratch {
    void *block[2]; /* keys and values, [n, 2GD] act, keys first; latent: [n, kv_rank], behind it
                       [n, rope_dim]; in FP8 codes of the latent (fewer bytes) */
    float *gradient[CONTEXT_GRADIENTS]; /* the same, f32 */
    float *sums;  /* [n, H * the larger of qk_dim and v_dim]: o of forward, dq of backward */
    void *keys;   /* latent: [n/2, W] act of one piece, W = H*(nope+v), as attention_state's kv */
    float *dkeys; /* [n/2, W] gradients */
    void *dkv;    /* [n/2, W] act: dkeys rounded; in fp32 dkeys itself */
    float *lse, *lse_parts; /* [B*T] of routers, [T], for the z-loss (context_lse); NULL: there is
                               none */
};

/* Local, the same on every rank. Errors: STATUS_USAGE: a block is too long for a message between
 * CPU ranks (comm_pass_start). */
enum status context_check(const struct model *model) __attribute__((warn_unused_result));
void context_layout(const struct model *model, struct context_scratch *scratch,
                    struct arena *arena);

/* Both collective over cp; shape: of the block's queries (attention.c), of all sequences of the
 * call, keys as they stand in the states.
 *
 * attended and lse of this rank's tokens from q, and from qkv or c and k_rope of the state. */
void context_forward(struct model *model, int64_t block, const struct block_call *call,
                     const struct attention_shape *shape, const void *q);
/* From attention.dattended, which is scratch then: into attention.dqkv all three; or dq, dk_rope
 * and dc, and the gradient of kv_b adds. */
void context_backward(struct model *model, int64_t block, const struct block_call *call,
                      const struct attention_shape *shape, const void *q, void *dq);

/* lse of all tokens of `count` sequences of `tokens`, from this rank's. */
const float *context_lse(const struct model *model, const float *own, int64_t count,
                         int64_t tokens);

#endif
